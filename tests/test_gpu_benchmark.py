"""The GPU benchmark on the CPU, in tiny sizes: that it runs, resumes and loses nothing."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from helpers.course import sources
from tests.benchmarks import gpu, gpu_data, gpu_report, gpu_trainings


def run(folder, *words):
    """Run the command; returns its results and its page."""
    files = ["--json", str(folder / "gpu.json"), "--markdown", str(folder / "gpu.md")]
    gpu.main(["--tiny", "--processes", "0", *files, *words])
    return json.loads((folder / "gpu.json").read_text()), (folder / "gpu.md").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The whole command: folder, results, page."""
    folder = tmp_path_factory.mktemp("gpu")
    return folder, *run(folder)


def test_every_part_runs_or_says_why_not(whole):
    _, results, page = whole
    assert list(results["parts"]) == list(gpu.PARTS)
    for name, part in results["parts"].items():
        reason = {"small_card": "skipped: needs a GPU", "compile": "skipped: not in tiny"}
        assert part["status"] == reason.get(name, "done"), (name, part["status"])
        assert not [r["error"] for r in part["records"] if "kind" in r and "error" in r]
    for title in gpu_report.ABOUT.values():
        assert title.splitlines()[0] in page
    assert page.count(gpu_report.NOT_MEASURED) == 2 and "needs a GPU" in page
    assert results["hardware"] in page


def test_the_records_hold_what_they_should(whole):
    _, results, _ = whole
    parts = {name: part["records"] for name, part in results["parts"].items()}
    steps = {(r["model"], r["variant"]): r for r in parts["steps"]}
    ours = steps["bilstm", "bf16"]
    assert ours["status"] == "ok" and ours["seconds"] > 0
    shares = ours["tflops"] / next(r for r in parts["card"] if r["what"] == "matrix bf16")["tflops"]
    assert ours["share_of_matrix_speed"] == pytest.approx(shares)
    for record in parts["agreement"]:
        if "loss" in record:
            assert record["loss"] == pytest.approx(record["cpu_loss"], abs=0.05)
    same = {r["what"]: r["difference"] for r in parts["mechanics"] if "difference" in r}
    assert same["again, largest difference of a weight"] == 0
    assert same["resumed, largest difference of a weight"] == 0
    assert same["gloo, one rank, gradient error"] < 1e-6
    # every scan of the cohort is predicted once a way
    n_scans = sum(sources.PROFILES["tiny"].counts.values())
    for way in ("frozen", "scratch", "finetuned"):
        assert rows(parts, way) == list(range(n_scans))
    assert {(r["network"], r["start"]) for r in parts["scores"]} == {
        ("probe", "imagenet"),
        ("lite0", "imagenet"),
        ("densenet169", "random"),
        ("small", "random"),
        ("small", "moco"),
    }
    for record in parts["scores"]:
        value, low, high = record["auc"]
        assert 0 <= low <= value <= high <= 1


def rows(parts, way):
    return sorted(row for r in parts["scans"] if r["which"]["way"] == way for row in r["rows"])


def test_a_second_run_does_what_is_missing_and_nothing_else(whole, tmp_path):
    folder, results, _ = whole
    results = json.loads(json.dumps(results))
    left_out = results["parts"]["steps"]["records"].pop(0)
    del results["parts"]["steps"]["status"]
    (tmp_path / "gpu.json").write_text(json.dumps(results))
    again, page = run(tmp_path, "--parts", "card", "steps", "mechanics")
    before = {name: part["records"] for name, part in results["parts"].items()}
    for name, part in again["parts"].items():
        new = [r for r in part["records"] if r not in before[name]]
        assert len(new) == (name == "steps"), name
    redone = again["parts"]["steps"]["records"][-1]
    assert redone["model"] == left_out["model"] and redone["status"] == "ok"
    assert "Whole trainings" in page


def test_without_time_the_files_are_written_all_the_same(tmp_path):
    results, page = run(tmp_path, "--seconds", "0")
    assert all(part["status"] == "no time was left" for part in results["parts"].values())
    assert page.count(gpu_report.NOT_MEASURED) == len(gpu_report.ABOUT) + 1


def test_a_missing_package_skips_its_part_only(tmp_path, monkeypatch):
    def needs_nibabel(bench, part):
        raise ImportError("nibabel is not installed")

    def breaks(bench, part):
        bench.record(part, what="copy", gb_per_second=1.0)
        raise RuntimeError("no\nluck")

    monkeypatch.setitem(gpu.PARTS, "card", breaks)
    monkeypatch.setitem(gpu.PARTS, "features", needs_nibabel)
    results, page = run(tmp_path, "--parts", "card", "features", "mechanics")
    assert results["parts"]["features"]["status"] == "skipped: nibabel is not installed"
    assert results["parts"]["card"]["status"] == "failed: RuntimeError: no luck"
    assert results["parts"]["card"]["records"] and results["parts"]["mechanics"]["records"]
    assert "1 GB/s" in page and "nibabel is not installed" in page


def test_jobs_in_processes_one_after_the_other_and_to_the_deadline(tmp_path, monkeypatch):
    told = []
    jobs = [("moco", {"start": "x"}), ("images", {"network": "y"})]
    arguments = (tmp_path, "tiny", gpu_trainings.TINY)
    # an unknown argument is an error of that job, and no more
    n_left = gpu_trainings.run_jobs(
        jobs, *arguments, 1, time.time() + 120, lambda *answer: told.append(answer)
    )
    assert n_left == 0 and [kind for kind, _, _ in told] == ["moco", "images"]
    assert all("TypeError" in answer["error"] for _, _, answer in told)
    assert gpu_trainings.run_jobs(jobs, *arguments, 0, 0, told.append) == 2
    assert gpu_trainings.run_jobs(jobs, *arguments, 1, 0, told.append) == 2


def test_packed_images_come_back_to_the_pixel(tmp_path):
    rng = np.random.default_rng(0)
    squares = {}
    for place in ("slices", "outside/COVID", "outside/non-COVID"):
        (tmp_path / place).mkdir(parents=True)
        squares[place] = rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)
        for k, square in enumerate(squares[place]):
            Image.fromarray(square).save(tmp_path / place / f"{k}.png")
    data_dir = str(tmp_path / "data")
    packed = tmp_path / "packed.zip"
    places = (str(tmp_path / "slices"), str(tmp_path / "outside"))
    n_bytes = gpu_data.pack(packed, "phantom", *places, 32, "tiny", data_dir)
    assert n_bytes == packed.stat().st_size
    held, twin = gpu_data.unpack(packed, "tiny"), gpu_data.twin("tiny", data_dir)
    assert np.array_equal(held.data.images, twin.data.images)
    assert held.data.rows("test", "clean").tolist() == twin.data.rows("test", "clean").tolist()
    assert np.array_equal(held.data.labels, twin.data.labels)
    assert held.data.patients.tolist() == twin.data.patients.tolist()
    assert np.array_equal(held.slices[:, 0], squares["slices"])
    assert held.external_labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert np.array_equal(held.external[3:, 0], squares["outside/non-COVID"])


def test_packing_a_folder_that_is_no_collection_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--pack", str(tmp_path / "a.zip"), "--images", str(tmp_path)])
    said = capsys.readouterr().err.splitlines()[-1]
    assert "Data-split" in said and not (tmp_path / "a.zip").exists()


def test_a_page_of_nothing_says_not_measured():
    page = gpu_report.as_markdown({"parts": {}})
    assert page.count(gpu_report.NOT_MEASURED) == len(gpu_report.ABOUT) + 1
