"""The course in a real browser: JupyterLab on 127.0.0.1, clicked by Playwright in Chromium.

Screenshots land in runs/screenshots. Skipped, saying so, where there is no Chromium.
"""

import base64
import io
import json
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pytest
from notebook_tools import CHROMIUM, FILES, IN_BROWSER, assert_solved
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from helpers.course import runner
from helpers.ct.cohort import find_studies
from helpers.ct.studies import read_mask, read_study
from helpers.figures import rendering, viewers

SCREENSHOTS = runner.ROOT / "runs" / "screenshots"
PATIENCE = 60  # seconds; only a test that fails waits so long
OTHERS = [file for file in FILES if file.stem[:2] in IN_BROWSER and file.stem[:2] != "03"]
IMAGE_BYTES = """async image => {
    const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
    return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
}"""
WATCH_LATENCY = """image => {
    window.latencies = [];
    let pressed;
    addEventListener("keydown", () => { pressed = performance.now(); }, true);
    image.addEventListener("load", () => {
        if (pressed !== undefined) window.latencies.push(performance.now() - pressed);
        pressed = undefined;
    });
}"""


@dataclass
class Lab:
    """A JupyterLab that runs: its address, its token and the folder it shows."""

    url: str
    token: str
    root: Path

    def ask(self, path, method="GET"):
        """Ask the server's REST interface."""
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method)
        request.add_header("Authorization", f"token {self.token}")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or "null")


def copy_course(lab, file):
    """The course in a folder of its own, with the solutions; all but 03 in the tiny profile."""
    root = lab.root / file.stem
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for part in ("helpers", "docs/diagrams"):
        shutil.copytree(runner.ROOT / part, root / part, ignore=ignored)
    shutil.copy(runner.ROOT / "pyproject.toml", root)
    (root / "notebooks").mkdir()
    notebook = runner.copy_for_class(file, solved=True)
    for cell in notebook.cells:
        if "parameters" in runner.tags(cell) and file in OTHERS:
            cell.source = cell.source.replace('PROFILE = "quick"', 'PROFILE = "tiny"')
    nbformat.write(notebook, root / "notebooks" / file.name)
    return root


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    root = tmp_path_factory.mktemp("lab")
    (root / "courses").mkdir()
    settings = root / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16), root / "courses")
    environment = {
        **os.environ,
        "JUPYTER_TOKEN": found.token,
        "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
        "JUPYTER_CONFIG_DIR": str(root / "config"),
        "JUPYTER_RUNTIME_DIR": str(root / "runtime"),
        "TQDM_DISABLE": "1",
    }
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--no-browser", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={found.root}"]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    with open(root / "lab.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=found.root, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 2 * PATIENCE
        while True:
            try:
                found.ask("status")
                break
            except OSError:
                assert server.poll() is None, (root / "lab.log").read_text()[-2000:]
                assert time.monotonic() < deadline, "JupyterLab does not answer"
                time.sleep(0.2)
        yield found
    finally:
        server.terminate()
        server.wait(PATIENCE)


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium here: install it (on Debian, the package chromium)")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page that reaches 127.0.0.1 alone; at the end it must have had no error."""
    opened = browser.new_page(viewport={"width": 1200, "height": 1000})
    opened.set_default_timeout(1000 * PATIENCE)
    errors = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on(
        "console",
        lambda message: errors.append(message.text) if message.type == "error" else None,
    )
    elsewhere = re.compile(r"^https?://(?!127\.0\.0\.1[:/])")
    opened.route(elsewhere, lambda route: route.fulfill(status=200, content_type="image/svg+xml"))
    yield opened
    opened.close()
    assert not errors, "JavaScript errors"


def wait_until(page, condition, what):
    """Ask again and again, while the page goes on, until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        page.wait_for_timeout(100)


def open_and_run_all(page, lab, file, seconds=600):
    """Open a notebook in JupyterLab, Run All, wait; returns it as JupyterLab saved it."""
    # a workspace of its own, so that no tab of another test comes back
    workspace = f"{lab.url}/lab/workspaces/{file.stem}"
    page.goto(f"{workspace}/tree/{file.stem}/notebooks/{file.name}?token={lab.token}")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text(re.compile(r"Python 3 .*\| Idle")).wait_for()
    files = page.locator(".jp-FileBrowser").first

    def has_the_width():
        """The file browser goes."""
        if files.is_visible():
            page.keyboard.press("Control+b")
        page.wait_for_timeout(500)
        return not files.is_visible()

    wait_until(page, has_the_width, "the file browser stays")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        page.wait_for_timeout(1000)
        states = [kernel["execution_state"] for kernel in lab.ask("kernels")]
        page.keyboard.press("Control+s")
        page.wait_for_timeout(300)
        try:
            saved = lab.ask(f"contents/{file.stem}/notebooks/{file.name}")["content"]
            saved = nbformat.from_dict(saved)
        except urllib.error.HTTPError:  # just being written
            continue
        code = [cell for cell in saved.cells if cell.cell_type == "code"]
        failed = [o for cell in code for o in cell.outputs if o.output_type == "error"]
        assert not failed, [f"{o.ename}: {o.evalue}" for o in failed]
        if all(cell.execution_count for cell in code) and set(states) <= {"idle"}:
            return saved
    raise AssertionError(f"{file.name} is not done after {seconds} s: kernels {states}")


def shut_down_kernels(lab):
    for session in lab.ask("sessions"):
        lab.ask(f"sessions/{session['id']}", "DELETE")


def output_of(page, source, nth=0):
    """The output of the nth cell with this source, scrolled to."""
    cell = page.locator(".jp-CodeCell", has_text=source).nth(nth)
    cell.scroll_into_view_if_needed()
    output = cell.locator(".jp-OutputArea-output").last
    output.locator("img").first.wait_for()
    output.locator("img").first.scroll_into_view_if_needed()
    return output


def picture_in(output, nth=0):
    """The pixels of a widget's picture, as the browser has them."""
    return np.asarray(Image.open(io.BytesIO(bytes_in(output, nth))).convert("RGB"))


def bytes_in(output, nth=0):
    """The bytes of a widget's picture, as the browser has them."""
    return base64.b64decode(output.locator("img").nth(nth).evaluate(IMAGE_BYTES))


def wait_for_text(output, text):
    output.get_by_text(text).first.wait_for()


def slice_in(output):
    """The number of the slice in the readout, from 1."""
    return int(re.search(r"slice (\d+) of", output.inner_text())[1])


def assert_shows(output, viewer):
    """The browser's picture becomes the viewer's, byte for byte as the kernel encodes it."""
    expected = rendering.encode(viewer.picture())
    wait_until(
        output.page,
        lambda: bytes_in(output) == expected,
        lambda: (viewer.readout(), output.inner_text()),
    )


def take_screenshot(page, output, name, width):
    """At this width of the page, when the picture has found its place there."""
    page.set_viewport_size({"width": width, "height": 1000})
    picture = output.locator("img").first

    def fits():
        picture.scroll_into_view_if_needed()
        before = picture.bounding_box()
        page.wait_for_timeout(600)
        box = picture.bounding_box()
        return box == before and box["x"] >= 0 and box["x"] + box["width"] <= width

    wait_until(page, fits, lambda: (picture.bounding_box(), width))
    page.screenshot(path=SCREENSHOTS / f"{name}-{width}.png")


@pytest.fixture(scope="module")
def explored(browser, lab):
    """Notebook 03, run once in a page that the tests share."""
    opened = browser.new_page(viewport={"width": 1200, "height": 1000})
    opened.set_default_timeout(1000 * PATIENCE)
    opened.errors = []
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    (file,) = [file for file in FILES if file.stem.startswith("03")]
    elsewhere = re.compile(r"^https?://(?!127\.0\.0\.1[:/])")
    opened.route(elsewhere, lambda route: route.fulfill(status=200, content_type="image/svg+xml"))
    opened.on(
        "console",
        lambda message: opened.errors.append(message.text) if message.type == "error" else None,
    )
    copy_course(lab, file)
    opened.saved = open_and_run_all(opened, lab, file)
    yield opened
    opened.close()
    shut_down_kernels(lab)


@pytest.fixture(scope="module")
def studies(explored, lab):
    """The studies that 03 made: healthy, ill, and the ill one's mask."""
    folder = lab.root / "03_explore_slices" / "data" / "phantom-pair-512"
    table = find_studies(folder)
    return (*(read_study(folder / file) for file in table.file), folder / table["mask"].iloc[1])


def test_scroll_by_key_and_by_drag(explored, studies):
    output = output_of(explored, "viewers.explore(ill)")
    expected = viewers.explore(studies[1])
    assert_shows(output, expected)
    wait_for_text(output, "slice 20 of 43, 152 mm above the lowest")
    knob = output.locator(".noUi-handle").first
    knob.click()
    explored.keyboard.press("ArrowRight")
    wait_for_text(output, "slice 21 of 43, 160 mm above the lowest")
    expected.move(0, 20)
    assert_shows(output, expected)
    box, rail = knob.bounding_box(), output.locator(".noUi-base").first.bounding_box()
    explored.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    explored.mouse.down()
    explored.mouse.move(rail["x"] + rail["width"] * 0.75, box["y"] + 4, steps=6)
    explored.mouse.up()
    wait_until(explored, lambda: 31 <= slice_in(output) <= 34, output.inner_text)

    def shows_what_it_says():
        expected.move(0, slice_in(output) - 1)
        return bytes_in(output) == rendering.encode(expected.picture())

    wait_until(explored, shows_what_it_says, output.inner_text)
    assert 31 <= slice_in(output) <= 34


def test_play(explored):
    output = output_of(explored, "viewers.explore(ill)")
    play = output.locator(".widget-play button").first
    play.click()
    seen, pictures = set(), set()

    def has_played():
        seen.add(slice_in(output))
        pictures.add(bytes_in(output))
        return len(seen) >= 3 and len(pictures) >= 3

    wait_until(explored, has_played, lambda: f"{len(seen)} slices, {len(pictures)} pictures")
    play.click()

    def stands_still():
        before = output.inner_text(), bytes_in(output)
        explored.wait_for_timeout(1500)
        return (output.inner_text(), bytes_in(output)) == before

    wait_until(explored, stands_still, "it plays on")


def test_windows_planes_zoom_and_point(explored, studies):
    output, ill = output_of(explored, "viewers.explore(ill)"), studies[1]
    expected = viewers.explore(ill)
    expected.move(0, slice_in(output) - 1)
    for preset, words in (("bone", "−500 … 1300 HU"), ("mediastinum", "−160 … 240 HU")):
        output.get_by_role("button", name=preset).click()
        wait_for_text(output, f"window {words}")
        expected.level, expected.width = rendering.PRESETS[preset]
        assert_shows(output, expected)
    output.locator(".widget-slider .noUi-handle").nth(1).focus()
    explored.keyboard.press("ArrowRight")
    wait_for_text(output, "window −150 … 250 HU")
    expect(output.locator("button.mod-active", has_text="mediastinum")).to_have_count(0)
    output.get_by_role("button", name="lung", exact=True).click()
    wait_for_text(output, "window −1350 … 150 HU")
    expected.level, expected.width = rendering.PRESETS["lung"]
    for plane, words in (("sagittal", "from the right"), ("coronal", "from the front")):
        output.get_by_role("button", name=plane).click()
        wait_for_text(output, words)
        expected.plane = plane
        assert_shows(output, expected)
    output.get_by_role("button", name="zoom on the lungs").click()
    output.get_by_role("button", name="HU at a point").click()
    expected.zoom = expected.cross = True
    value = f"{ill.hu[expected.point(expected.scans[0])]} HU".replace("-", "−")
    wait_for_text(output, f"at the cross {value}")
    assert_shows(output, expected)
    for width in (1200, 700):
        take_screenshot(explored, output, "03-point", width)
    explored.set_viewport_size({"width": 1200, "height": 1000})


def test_mask_and_strip(explored, studies):
    output = output_of(explored, "viewers.explore(ill, mask=mask)")
    expected = viewers.explore(studies[1], mask=read_mask(studies[2]))
    assert_shows(output, expected)
    strip = rendering.encode(expected.strip(), "png")
    wait_until(explored, lambda: bytes_in(output, 1) == strip, "the strip is another")
    covered = picture_in(output)
    handles = output.locator(".noUi-handle:visible")
    expect(handles, "slice, level, width and overlay").to_have_count(4)
    handles.nth(3).focus()
    explored.keyboard.press("Home")
    output.get_by_text("0.00").wait_for()
    expected.opacity = 0
    assert_shows(output, expected)
    orange = [
        int(picture[..., 0].sum()) - int(picture[..., 2].sum())
        for picture in (covered, picture_in(output))
    ]
    assert orange[0] > 10 * abs(orange[1]), "the overlay did not fade"
    handles.nth(3).focus()
    for _ in range(8):
        explored.keyboard.press("ArrowRight")
    output.get_by_text("0.40").wait_for()
    expected.opacity = 0.4
    assert_shows(output, expected)
    take_screenshot(explored, output, "03-mask", 1200)


def test_compare_scrolls_both(explored, studies):
    output = output_of(explored, "viewers.compare(healthy, ill")
    expected = viewers.compare(*studies[:2], names=("CT-0", "CT-23"))
    assert_shows(output, expected)
    output.locator(".noUi-handle").first.focus()
    explored.keyboard.press("End")
    n_slices = [study.shape[0] for study in studies[:2]]
    wait_for_text(output, f"slice {n_slices[0]} of {n_slices[0]}")
    assert f"slice {n_slices[1]} of {n_slices[1]}" in output.inner_text()
    expected.move(0, n_slices[0] - 1)
    assert_shows(output, expected)
    explored.keyboard.press("Home")
    wait_for_text(output, f"slice 1 of {n_slices[0]}")
    for _ in range(20):
        explored.keyboard.press("ArrowRight")
    wait_for_text(output, f"slice 21 of {n_slices[0]}")
    expected.move(0, 20)
    assert_shows(output, expected)
    for width in (1200, 700):
        take_screenshot(explored, output, "03-compare", width)
    explored.set_viewport_size({"width": 1200, "height": 1000})


def test_latency_is_measured(explored, studies):
    """From the key press to the new picture, in the page; the figure is printed, not judged."""
    output = output_of(explored, 'viewers.explore(ill, plane="coronal")')
    output.get_by_role("button", name="axial").click()
    assert_shows(output, viewers.explore(studies[1]))
    output.locator("img").first.evaluate(WATCH_LATENCY)
    output.locator(".noUi-handle").first.focus()
    for k, key in enumerate(["ArrowRight"] * 15 + ["ArrowLeft"] * 15, 1):
        explored.keyboard.press(key)
        explored.wait_for_timeout(180)
        explored.wait_for_function("n => window.latencies.length >= n", arg=k)
    found = explored.evaluate("window.latencies")
    median = statistics.median(found)
    print(f"key press to picture: median {median:.0f} ms, {min(found):.0f} to {max(found):.0f}")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    (SCREENSHOTS / "latency.json").write_text(json.dumps({"milliseconds": found}))
    assert len(found) == 30, "one new picture for each key"


def test_03_had_no_javascript_error_and_is_solved(explored):
    assert not explored.errors
    assert_solved(explored.saved)


DRAGGED = "viewers.Threshold([0, 0, 1, 0, 1, 1], [0.0, 0.1, 0.4, 0.5, 0.8, 1.0])"


def test_a_threshold_is_dragged(page, lab, tmp_path):
    """By key and by mouse, in a notebook of one cell; the picture is what the kernel draws."""
    file = tmp_path / "threshold.ipynb"
    source = f"import sys\nsys.path.insert(0, '..')\nfrom helpers.figures import viewers\n{DRAGGED}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, file)
    copy_course(lab, file)
    try:
        open_and_run_all(page, lab, file)
        output = output_of(page, "viewers.Threshold")
        wait_for_text(output, "Threshold 0.50: 2 of 3 ill are called")
        knob, rail = output.locator(".noUi-handle"), output.locator(".noUi-base").first
        knob.focus()
        page.keyboard.press("Home")
        wait_for_text(output, "3 of 3 ill are called, sensitivity 1.00; 0 of 3 healthy are not")
        slider, words, picture = eval(DRAGGED).widget.children
        slider.value = 0
        wait_until(page, lambda: bytes_in(output) == picture.value, "another picture")
        box, ends = knob.bounding_box(), rail.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(ends["x"] + ends["width"] * 0.9, box["y"] + 4, steps=8)
        page.mouse.up()
        wait_for_text(output, "1 of 3 ill are called, sensitivity 0.33; 3 of 3 healthy are not")
        for width in (1200, 700):
            take_screenshot(page, output, "06-threshold", width)
    finally:
        page.close()
        shut_down_kernels(lab)


@pytest.mark.parametrize("file", OTHERS, ids=lambda file: file.stem)
def test_opened_first_in_jupyterlab(file, page, lab):
    """With nothing there it makes what it needs, where it should, and its solutions are right."""
    root = copy_course(lab, file)
    try:
        saved = open_and_run_all(page, lab, file)
        if any("viewers.explore(" in cell.source for cell in saved.cells):
            output = output_of(page, "viewers.explore(")
            output.locator(".noUi-handle").first.click()
            before, shown = slice_in(output), bytes_in(output)
            page.keyboard.press("ArrowRight")
            wait_until(page, lambda: slice_in(output) == before + 1, output.inner_text)
            wait_until(page, lambda: bytes_in(output) != shown, output.inner_text)
            take_screenshot(page, output, f"{file.stem[:2]}-viewer", 1200)
        page.screenshot(path=SCREENSHOTS / f"{file.stem}.png")
    finally:
        page.close()  # first, for it would miss its kernel
        shut_down_kernels(lab)
    assert (root / "runs" / file.stem / "results.json").exists()
    names = ["data", "docs", "helpers", "notebooks", "pyproject.toml", "runs"]
    assert sorted(path.name for path in root.iterdir()) == names
    for cell in saved.cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", output.get("text")
    assert_solved(saved)
