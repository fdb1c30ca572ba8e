"""The course as Colab runs it: its package versions, a bare folder, a clone, no installation.

`make test-colab` builds the environment and runs this file. Colab itself is simulated: its
machine, its front-end and its Drive are not here.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from queue import Empty

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from notebook_tools import FILES, cells

from helpers.course import runner

ROOT = runner.ROOT
COLAB = ROOT / ".venv-colab"
PYTHON = COLAB / "bin/python"
HERE = Path(__file__).parent / "colab"
KEPT = {"PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"}
BADGE = re.compile(r"https://colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/([^)]+)")
VIEW = "application/vnd.jupyter.widget-view+json"
FIRST_CELL = f"""
import importlib.util, os, sys
assert sys.prefix == {str(COLAB)!r}, sys.prefix
assert os.listdir() == [], os.listdir()
assert importlib.util.find_spec("helpers") is None
"""

every_notebook = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
needs_colab = pytest.mark.skipif(
    not (COLAB / "installed").exists(), reason="no .venv-colab; `make test-colab` builds it"
)


def git(*arguments):
    return subprocess.run(["git", *map(str, arguments)], check=True, capture_output=True, text=True)


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    """A bare repository of the working tree's files, on branch main."""
    bare = tmp_path_factory.mktemp("remote") / runner.repository_url().rsplit("/", 1)[-1]
    git("init", "--quiet", "--bare", "--initial-branch=main", bare)
    here = ["--git-dir", bare, "--work-tree", ROOT]
    git(*here, "add", "--all")
    git(*here, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "course")
    yield bare
    shutil.rmtree(bare)


def kernel(folder, python, **variables):
    """Write a kernelspec below `folder`; returns what JUPYTER_PATH has to be.

    Of this process's environment, which pytest and people add to, only KEPT reaches the kernel.
    """
    unset = [part for name in sorted(set(os.environ) - KEPT) for part in ("-u", name)]
    command = [*(f"{name}={value}" for name, value in variables.items()), str(python)]
    command = ["env", *unset, *command, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    target = folder / "kernels" / "python3" / "kernel.json"
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps(spec))
    return str(folder)


@pytest.fixture(scope="session")
def colab(tmp_path_factory):
    """The kernel of a fresh machine of Colab's: the value of JUPYTER_PATH that leads to it."""
    folder = tmp_path_factory.mktemp("colab")
    (folder / "home").mkdir()
    variables = {
        "HOME": folder / "home",
        "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": HERE / "stub",
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": "/dev/null",
        "OMP_WAIT_POLICY": "passive",  # half the time where cores are shared
        "GIT_TRACE": folder / "git.log",
    }
    command = [PYTHON, "-c", "import matplotlib.font_manager"]  # its list of fonts, once
    subprocess.run(command, check=True, env={"HOME": str(folder / "home")}, capture_output=True)
    return Path(kernel(folder, PYTHON, **variables))


@pytest.fixture
def bare_folder(tmp_path):
    """A folder for one notebook, gone afterwards with the clone in it."""
    folder = tmp_path / "content"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def installed():
    """Name and version of all that the environment holds."""
    places = [str(place) for place in COLAB.glob("lib/python3*/site-packages")]
    return sorted((d.name, d.version) for d in importlib.metadata.distributions(path=places))


def run_in_colab(file, folder, colab, address, parameters=(), first=FIRST_CELL):
    """Execute a notebook in a bare folder; returns the executed copy and its clone's folder.

    first: a cell that is run before the notebook's own.
    """
    notebook = nbformat.read(file, 4)
    replaced = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            replaced += cell.source.count(runner.repository_url())
            cell.source = cell.source.replace(runner.repository_url(), f"file://{address}")
    assert replaced == 1
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    source, target = folder.with_name(file.name), folder.with_name(f"executed-{file.name}")
    nbformat.write(notebook, source)
    parameters = {"PROFILE": "tiny", **dict(parameters)}
    if file.name.startswith("03"):
        parameters["REAL_SCAN"] = ""
    before, log = installed(), colab / "git.log"
    log.write_text("")
    runner.execute(source, target, parameters, folder, {"JUPYTER_PATH": str(colab)})
    assert log.read_text().count("built-in: git clone") == 1
    assert [path.name for path in folder.iterdir()] == [address.name]
    assert installed() == before and not (colab / "home/.local/lib").exists()
    return nbformat.read(target, 4), folder / address.name


@needs_colab
@every_notebook
def test_a_notebook_runs_in_colab(file, bare_folder, colab, address):
    executed, clone = run_in_colab(file, bare_folder, colab, address)
    results = json.loads((clone / "runs" / file.stem / "results.json").read_text())
    assert results["summary"]
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    said = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert not said
    assert any("image/png" in output.get("data", {}) for output in outputs)


@needs_colab
def test_a_second_machine_gets_from_drive_what_the_first_made(bare_folder, colab, address):
    (file,) = [file for file in FILES if file.name.startswith("05")]
    drive = bare_folder.with_name("drive")
    mount = f"from google.colab import drive\ndrive.mount({str(drive)!r})"
    mirror, found = drive / "MyDrive" / "ct-course", []
    for _ in range(2):
        parameters = {"MIRROR": str(mirror)}
        _, clone = run_in_colab(file, bare_folder, colab, address, parameters, FIRST_CELL + mount)
        made = [path for kind in ("nii.gz", "npy", "pt") for path in clone.rglob(f"*.{kind}")]
        # the training that is compared with one by hand begins anew every time
        made = [path for path in made if path.parent.name != "few"]
        times = {path.relative_to(clone): path.stat().st_mtime_ns for path in made}
        times |= {path.name: path.stat().st_mtime_ns for path in mirror.iterdir()}
        found.append(times)
        shutil.rmtree(clone)
    first, second = found
    assert sum(str(name).endswith(".nii.gz") for name in first) >= 16
    assert sum(str(name).endswith("best.pt") for name in first) == 3
    assert sum(str(name).endswith(".tar") for name in first) == 4
    assert first == second, "something was made again"
    shutil.rmtree(drive)


@every_notebook
def test_a_notebook_installs_nothing(file):
    for cell in cells(file, "code"):
        found = re.search(r"pip3? install|[%!] ?(pip|conda|uv)\b|\bapt(-get)?\b", cell.source)
        assert not found, found


@pytest.mark.parametrize("file", [*FILES, ROOT / "README.md"], ids=lambda file: file.stem)
def test_badges_lead_to_files(file, address):
    text = file.read_text("utf-8")
    if file.suffix == ".ipynb":
        text = "\n".join(cell.source for cell in nbformat.read(file, 4).cells)
    badges = BADGE.findall(text)
    assert badges and len(badges) == text.count("//colab.research.google.com/github/")
    for slug, place in badges:
        branch, path = place.split("/", 1)
        assert f"https://github.com/{slug}" == runner.repository_url()
        assert branch == "main"
        git("--git-dir", address, "cat-file", "-e", f"{branch}:{path}")
        assert file.suffix != ".ipynb" or path == f"notebooks/{file.name}"


class Live:
    """A kernel, and what a page with widgets in front of it does."""

    def __init__(self, client):
        self.client = client

    def run(self, code, has_person=True):
        """Execute; returns the messages that came back."""
        return self.messages(self.client.execute(code, allow_stdin=has_person))

    def value(self, code):
        """What a line of code prints."""
        return "".join(m["content"]["text"] for m in self.run(code) if m["msg_type"] == "stream")

    def press(self, comm_id, **state):
        """Change a widget, as a press of a button in the page does; returns what came back."""
        data = {"method": "update", "state": state, "buffer_paths": []}
        message = self.client.session.msg("comm_msg", {"comm_id": comm_id, "data": data})
        self.client.shell_channel.send(message)
        return self.messages(message["header"]["msg_id"])

    def messages(self, identifier):
        found = []
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=60)
            except Empty:
                raise AssertionError("the kernel does not answer") from None
            if message["parent_header"].get("msg_id") != identifier:
                continue
            assert message["msg_type"] != "error", "\n".join(message["content"]["traceback"])
            if message["content"].get("execution_state") == "idle":
                return found
            found.append(message)


@contextmanager
def live(jupyter_path, folder, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", str(jupyter_path))
    manager, client = start_new_kernel(startup_timeout=runner.START_TIMEOUT, cwd=str(folder))
    try:
        yield Live(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def updates(messages, comm_id):
    """The states, and the buffers, that the kernel sent to one widget."""
    states, buffers = {}, []
    for message in messages:
        content = message["content"]
        is_mine = message["msg_type"] == "comm_msg" and content["comm_id"] == comm_id
        if is_mine and content["data"].get("method") == "update":
            states |= content["data"]["state"]
            buffers += [bytes(buffer) for buffer in message["buffers"]]
    return states, buffers


def kinds(messages):
    """The formats of all that is shown."""
    shown = [m for m in messages if m["msg_type"] in ("display_data", "execute_result")]
    return {kind for message in shown for kind in message["content"]["data"]}


@needs_colab
def test_the_versions_are_colabs(colab, tmp_path, monkeypatch):
    lines = (HERE / "constraints.txt").read_text().splitlines()
    wanted = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    code = f"""
import importlib.metadata, json, sys
versions = {{name: importlib.metadata.version(name).split("+")[0] for name in {list(wanted)}}}
print(json.dumps([sys.version_info[:2], versions]))"""
    with live(colab, tmp_path, monkeypatch) as front:
        python, versions = json.loads(front.value(code))
    assert versions == wanted
    if python != [3, 13]:
        pytest.skip(f".venv-colab was built with Python {python[0]}.{python[1]}, Colab has 3.13")


@pytest.mark.parametrize(
    "place", [pytest.param("colab", marks=needs_colab), "own"], ids=["colab", "own"]
)
def test_the_viewer_answers_a_front_end(place, request, tmp_path, monkeypatch):
    """The widget appears, and slider and buttons bring a new picture and a new text."""
    if place == "colab":
        path = request.getfixturevalue("colab")
    else:
        path = kernel(tmp_path, sys.executable, HOME=tmp_path)
    with live(path, ROOT, monkeypatch) as front:
        if place == "colab":
            assert front.value("import ipywidgets; print(ipywidgets.__version__)") == "7.7.1\n"
        front.run(
            "import numpy as np; from helpers.figures import viewers\n"
            "hu = np.random.default_rng(0).integers(-1000, 400, (12, 64, 64)).astype('int16')\n"
            "v = viewers.explore(hu)"
        )
        still = kinds(front.run("v", has_person=False))
        assert "image/jpeg" in still and VIEW not in still
        assert VIEW in kinds(front.run("v"))
        names = ["slice", "plane", "preset", "picture", "readout"]
        ids = {n: front.value(f"print(v.widget.controls.{n}.model_id, end='')") for n in names}
        seen = [front.value("print(v.widget.controls.readout.value, end='')")]
        pictures = [bytes.fromhex(front.value("print(v.widget.controls.picture.value.hex())"))]
        for control, state in (
            ("slice", {"value": 7}),
            ("preset", {"index": 2}),
            ("plane", {"index": 1}),
        ):
            answer = front.press(ids[control], **state)
            (picture,) = updates(answer, ids["picture"])[1]
            text = updates(answer, ids["readout"])[0]["value"]
            assert picture.startswith(b"\xff\xd8") and picture not in pictures
            assert text not in seen
            pictures.append(picture)
            seen.append(text)
        assert "slice 8 of 12" in seen[1] and "from the front" in seen[3]
        assert front.value("print(v.point(v.scans[0])[0], v.plane, end='')") == "7 coronal"
