"""Notebooks executed alone: tiny in an empty folder, on real data, with parameters of a learner."""

import gzip
import json
import os
import subprocess
from pathlib import Path

import nbformat
import nibabel as nib
import pytest
from local_server import LocalServer
from notebook_tools import CHROMIUM, FILES, IN_BROWSER, assert_solved, check_11, results

from helpers.course import runner, sources
from helpers.ct import cohort
from helpers.ct.studies import read_study
from helpers.phantom import dicom_export, simulate

HAS_REAL_DATA = Path(os.environ.get("REAL_DATA_DIR") or "none").is_dir()
ELSEWHERE = (IN_BROWSER if CHROMIUM else ()) + (("02", "08") if HAS_REAL_DATA else ())
NUMBERED = {file.stem[:2]: file for file in FILES}


def run_alone(number, folder, in_front="", **parameters):
    """Open a notebook first, tiny, in an empty folder, with its solutions; returns its outputs.

    It makes what it needs, where it stands, and its solutions are right. in_front: of the path.
    """
    file = NUMBERED[number]
    executed, solved = folder / "out" / file.name, folder / "out" / f"solved-{file.name}"
    solved.parent.mkdir()
    nbformat.write(runner.copy_for_class(file, solved=True), solved)
    path = os.pathsep.join(filter(None, (str(in_front), str(runner.ROOT))))
    environment = {"PYTHONPATH": path, "TQDM_DISABLE": "1"}
    runner.execute(solved, executed, {"PROFILE": "tiny", **parameters}, folder, environment)
    assert (folder / "runs" / file.stem / "results.json").exists()
    assert {path.name for path in folder.iterdir()} <= {"data", "out", "runs"}
    notebook = nbformat.read(executed, 4)
    assert_solved(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    return outputs


@pytest.mark.parametrize("number", [n for n in NUMBERED if n < "10" and n not in ELSEWHERE])
def test_alone_in_an_empty_folder(number, tmp_path):
    """All but those that test_browser opens in JupyterLab, and those below, on real data or not."""
    run_alone(number, tmp_path)


def test_10_alone_pre_trains_from_imagenet_as_self_trans_did(tmp_path):
    run_alone("10", tmp_path, NETWORK="lite0")
    found = results(tmp_path / "runs", "10")
    assert max(found["apart"].values()) < 1e-4  # the step by hand
    assert {"ImageNet, official", "ImageNet, then MoCo, clean"} <= set(found["scores"])
    assert [*(tmp_path / "runs").glob("moco-lite0-imagenet-*/last.pt")]
    probes = {name: line["linear probe"] for name, line in found["probe"].items()}
    assert probes["random network"] == probes["ImageNet, Lite0"] != probes["pre-trained"]


def test_11_alone_does_without_dask(tmp_path, tmp_path_factory):
    none = tmp_path_factory.mktemp("none")
    (none / "distributed.py").write_text("raise ImportError('not installed')\n")
    outputs = run_alone("11", tmp_path, in_front=none)
    found = results(tmp_path / "runs", "11")
    check_11(found)
    assert found["engine"] == "ProcessPoolExecutor"
    said = "".join(output.get("text", "") for output in outputs)
    assert said.count('the package "distributed"') == 1


def test_12_alone_takes_what_kaggle_holds_and_does_without_dicom(tmp_path, tmp_path_factory):
    """Unpacked studies, in a folder with blanks in its name, that nobody may write to."""
    none = tmp_path_factory.mktemp("none")
    (none / "pydicom.py").write_text("raise ImportError('not installed', name='pydicom')\n")
    made = simulate.make_cohort(tmp_path / "made", {"CT-0": 8, "CT-2": 6, "CT-3": 2}, 64)
    inside = "MosMedData Chest CT Scans with COVID-19 Related Findings COVID19_1110 1.0"
    kaggle = tmp_path / "input" / "mosmeddata chest ct" / inside
    for study in made.glob("studies/*/*.nii.gz"):
        target = kaggle / study.relative_to(made).with_suffix("")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.decompress(study.read_bytes()))
    held = sorted(kaggle.rglob("*"))
    for path in (kaggle, *held):
        path.chmod(path.stat().st_mode & ~0o222)
    folder = tmp_path / "empty"
    folder.mkdir()
    try:
        outputs = run_alone("12", folder, none, DATASET=str(tmp_path / "input"))
    finally:
        for path in (kaggle, *held):
            path.chmod(path.stat().st_mode | 0o200)
    assert sorted(kaggle.rglob("*")) == held
    found = results(folder / "runs", "12")
    assert found["n_studies"] == found["n_kept"] + len({f["study"] for f in found["findings"]})
    assert 0 <= found["auc"]["trained here"][0] <= 1
    said = "".join(output.get("text", "") for output in outputs)
    assert said.count("%pip install pydicom SimpleITK") == 1


def test_12_alone_takes_a_hospitals_real_series_and_shows_nobodys_name(real_data, tmp_path):
    """DICOM folders by class, as an archive sends them; of few real scans, each in parts."""
    export, names = tmp_path / "our hospital" / "export", ["ricord", "covidctmd_P", "covidctmd_n"]
    volumes = [next((real_data / "volumes").glob(f"mosmedlike_{name}*")) for name in names]
    for number, path in enumerate(volumes * 6):
        study = read_study(path)
        part = study.hu[:, number // 4 :: 4, number % 4 :: 4]  # another grid each time
        spacing = (study.spacing[0], *(4 * step for step in study.spacing[1:]))
        slices = dicom_export.slices(part, spacing, patient=f"Geheim^{number}", seed=number)
        dicom_export.write(slices, export / ("sick", "normal")[number % 2] / f"{number:03}")
    folder = tmp_path / "empty"
    folder.mkdir()
    outputs = run_alone("12", folder, DATASET=str(export))
    assert results(folder / "runs", "12")["n_patients"] == number + 1
    written = [path for path in folder.rglob("*") if path.suffix in (".csv", ".json", ".ipynb")]
    said = json.dumps(outputs) + "".join(path.read_text() for path in written)
    assert "Geheim" not in said and len(written) > 5


def test_a_notebook_clones_the_course_where_it_is_missing(tmp_path):
    """As in Colab: a bare folder, no helpers, an address to clone."""
    bare = tmp_path / "remote" / "course.git"
    files = ["helpers", "notebooks", "docs", "pyproject.toml"]
    work = tmp_path / "work"
    work.mkdir()
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (
        ["git", "init", "--quiet", str(work)],
        ["cp", "-r", *(str(runner.ROOT / name) for name in files), str(work)],
        ["git", "-C", str(work), "add", "-A"],
        ["git", "-C", str(work), *identity, "commit", "--quiet", "-m", "course"],
        ["git", "clone", "--quiet", "--bare", str(work), str(bare)],
    ):
        subprocess.run(command, check=True)
    notebook = nbformat.read(FILES[0], 4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(runner.repository_url(), f"file://{bare}")
    empty = tmp_path / "empty"
    empty.mkdir()
    nbformat.write(notebook, tmp_path / FILES[0].name)
    parameters = {"PROFILE": "tiny"}
    runner.execute(tmp_path / FILES[0].name, empty / "out.ipynb", parameters, cwd=empty)
    assert (empty / "course.git" / "runs" / FILES[0].stem / "results.json").exists()


def test_a_failing_notebook_is_named_with_its_cell(tmp_path):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("1"), nbformat.v4.new_code_cell("int('x')")]
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    with pytest.raises(runner.NotebookError, match=r"broken\.ipynb, cell 1: ValueError"):
        runner.execute(tmp_path / "broken.ipynb", tmp_path / "out.ipynb", cwd=tmp_path)


def test_a_cell_that_never_ends_is_stopped_and_shown(tmp_path, monkeypatch):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("import time\ntime.sleep(600)  # forever")]
    nbformat.write(notebook, tmp_path / "slow.ipynb")
    monkeypatch.setitem(runner.CELL_TIMEOUT, "quick", 2)
    with pytest.raises(runner.NotebookError, match=r"slow\.ipynb: .*forever"):
        runner.execute(tmp_path / "slow.ipynb", tmp_path / "out.ipynb", cwd=tmp_path)


@pytest.mark.parametrize("is_right", [True, False])
def test_03_fetches_a_real_scan_and_goes_on_without(is_right, real_data, tmp_path):
    (file,) = [file for file in FILES if file.name.startswith("03")]
    (scan,) = (real_data / "volumes").glob("ts_example_ct_int32*.nii.gz")
    server = LocalServer()
    server.files["example_ct.nii.gz"] = scan.read_bytes() if is_right else b"\x1f\x8b other"
    parameters = {"PROFILE": "tiny", "REAL_SCAN": f"{server.url}/example_ct.nii.gz"}
    environment = {"PYTHONPATH": str(runner.ROOT), "TQDM_DISABLE": "1"}
    try:
        runner.execute(file, tmp_path / "out.ipynb", parameters, tmp_path, environment)
    finally:
        server.close()
    assert results(tmp_path / "runs", "03")["real_scan"] is is_right
    assert (tmp_path / "data" / "real" / "example_ct.nii.gz").exists() is is_right
    cells = nbformat.read(tmp_path / "out.ipynb", 4).cells
    said = "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))
    assert ("No real scan this time" in said) is not is_right


def test_02_alone_reads_a_real_volume(real_data, tmp_path):
    """test_volumes reads them all."""
    run_alone("02", tmp_path, STUDY=str(next((real_data / "volumes").glob("*_LPS_*"))))
    found = results(tmp_path / "runs", "02")
    assert found["largest_difference"] <= 1 and 0 < found["black_after_cast"] < 0.95


def test_08_alone_audits_the_real_covid_ct(real_data, tmp_path):
    run_alone("08", tmp_path, IMAGES=str(real_data / "covid_ct"))
    found = results(tmp_path / "runs", "08")
    assert found["n_images"] == 746 and found["n_patients"] == 213 + 171
    assert (found["patients_in_two_parts"], found["papers_in_two_parts"]) == (0, 3)
    names = [(pair["image_a"], pair["image_b"]) for pair in found["pairs_across_classes"]]
    assert names == [("kjr-21-e24-p5-29.png", "71%0.jpg"), ("kjr-21-e24-p5-31.png", "71%1.jpg")]
    assert found["format_rule"][0] == pytest.approx(161 / 203)
    assert found["nothing_lost"] and found["merged"] == 747


def test_08_works_twice_on_a_read_only_data_set(tmp_path):
    (file,) = [file for file in FILES if file.name.startswith("08")]
    root, _ = sources.get_images("phantom", tmp_path, "tiny")
    data = [root, *root.rglob("*")]
    for path in data:
        path.chmod(path.stat().st_mode & ~0o222)
    before = {path: path.stat().st_mtime_ns for path in data}
    parameters = {"IMAGES": str(root), "RUNS_DIR": str(tmp_path / "runs"), "PROFILE": "tiny"}
    try:
        for k in range(2):
            runner.execute(file, tmp_path / f"out{k}.ipynb", parameters)
            assert results(tmp_path / "runs", "08")["nothing_lost"]
        assert before == {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
        # root may write anywhere, so look at the permissions too
        copied = [*(tmp_path / "runs/08_covid_ct_images/copy").rglob("*")]
        assert copied and all(path.stat().st_mode & 0o200 for path in copied)
    finally:
        for path in data:
            path.chmod(path.stat().st_mode | 0o200)


def test_10_alone_trains_on_the_real_covid_ct(real_data, tmp_path):
    """Short: one seed, two epochs. What a full training reaches stands in the README."""
    more = {"DATASET": "", "SLICES": str(real_data / "luna_slices")}
    run_alone("10", tmp_path, IMAGES=str(real_data / "covid_ct"), **more)
    found = results(tmp_path / "runs", "10")
    for score in found["scores"].values():
        assert all(0 <= low <= value <= high <= 1 for value, low, high in score.values())
    # of the 425 training images the cleaned split moves or leaves out five
    assert found["n_unlabelled"] == {"COVID-CT, training": 420, "further slices": 700}


def test_a_folder_of_real_studies_runs_through_the_notebooks_on_studies(real_data, tmp_path):
    """DATASET=<folder>: real scans in MosMedData's layout, labels of convenience.

    Each scan makes two studies, the second without its last slice: copies would be refused.
    """
    for number, path in enumerate(sorted((real_data / "volumes").glob("*.nii.gz")) * 2, start=1):
        folder = tmp_path / "mine" / "studies" / ("CT-0" if number % 2 else "CT-2")
        folder.mkdir(parents=True, exist_ok=True)
        study = folder / f"study_{number:04}.nii.gz"
        if number <= 8:
            study.symlink_to(path)
        else:
            nib.save(nib.load(path).slicer[:, :, :-1], study)
    studies = cohort.find_studies(tmp_path / "mine")
    assert len(studies) == 16
    parameters = {"DATASET": str(tmp_path / "mine"), "PROFILE": "tiny"}
    environment = {"PYTHONPATH": str(runner.ROOT), "TQDM_DISABLE": "1"}
    for number in ("01", "06"):  # the others take what these make, or a study of their own
        executed = tmp_path / "out" / f"{number}.ipynb"
        more = {"EXTERNAL": str(tmp_path / "mine" / "studies" / "CT-2")} if number == "06" else {}
        runner.execute(NUMBERED[number], executed, parameters | more, tmp_path, environment)
    assert len(list((tmp_path / "runs").glob("*/results.json"))) == 2
    assert len(results(tmp_path / "runs", "06")["external"]) == 8
