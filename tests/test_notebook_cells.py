"""Cells of notebooks 01, 02, 06 and 09 that take what a learner gives them, each run by itself."""

import gzip
import warnings
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from notebook_tools import FILES, cells
from PIL import Image

from helpers.course import images, runner, runs
from helpers.covidct import covid_ct, lungs
from helpers.learn import features, prediction
from helpers.phantom import simulate

SETUP = "REPOSITORY ="


def code_of(number, holding=""):
    """The code cells of a notebook that hold a text, without its setup cell."""
    (file,) = (file for file in FILES if file.name.startswith(number))
    found = [cell for cell in cells(file, "code") if holding in cell.source]
    return [cell for cell in found if SETUP not in cell.source]


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    """A phantom study of 24 slices of 256 x 256 as (x, y, z), and its affine."""
    root = tmp_path_factory.mktemp("chest")
    simulate.make_cohort(root, {"CT-2": 1}, 256, workers=1, n_slices=24)
    image = nib.load(next(root.glob("studies/*/*.nii.gz")))
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("shape", ["x, y, z, 1", "255 x 256", "256 x 200"])
def test_02_reads_a_study_of_any_shape(shape, chest, tmp_path, monkeypatch):
    voxels, affine = chest
    voxels = {
        "x, y, z, 1": voxels[..., None],
        "255 x 256": voxels[:255],
        "256 x 200": voxels[:, :200],
    }[shape]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "mine.nii.gz")
    space = {"Path": Path}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*non-interactive")  # plt.show
        for cell in code_of("02"):
            exec(cell.source, space)
            if "parameters" in runner.tags(cell):
                space |= {"STUDY": "~/mine.nii.gz", "RUNS_DIR": str(tmp_path)}
    assert space["difference"] <= 1 and space["apart"].max() <= 1
    assert 0.2 < space["body"].mean() < 0.9
    assert not Path("~").exists()


def say(external, capsys):
    """What notebook 06 makes of EXTERNAL: the table's names, and what is printed."""
    (cell,) = code_of("06", "runs.predict_files(EXTERNAL")
    data = SimpleNamespace(profile=SimpleNamespace(size=(16, 48, 48)))
    space = {"EXTERNAL": external, "pd": pd, "runs": runs, "model": None, "data": data}
    exec(cell.source, space)
    return [line["study"] for line in space["outside"]], capsys.readouterr().out


def test_06_reads_scans_from_elsewhere_and_says_what_it_cannot(
    chest, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setattr(prediction, "predict", lambda *_: (np.array([0.25]), None))
    monkeypatch.setattr(features, "encode_scans", lambda *_: None)
    folder = tmp_path / "scans"
    folder.mkdir()
    nib.save(nib.Nifti1Image(*chest), folder / "a.nii.gz")
    assert say("", capsys) == ([], "no folder is named: nothing to look at\n")
    assert say(str(folder), capsys) == (["a.nii.gz"], "")
    assert say("~/scans", capsys) == (["a.nii.gz"], "")
    assert say(str(folder / "a.nii.gz"), capsys) == (["a.nii.gz"], "")

    names, said = say(str(tmp_path / "scanz"), capsys)
    assert names == [] and said.startswith(f"{tmp_path / 'scanz'}: does not exist")

    (folder / "b.nii").write_bytes(gzip.decompress((folder / "a.nii.gz").read_bytes()))
    (folder / "._a.nii.gz").write_bytes(b"\0\5\x16\7" + bytes(200))
    (folder / "desktop.ini").write_text("x")
    (folder / "c.nii.gz").write_bytes(b"no scan")
    names, said = say(str(folder), capsys)
    assert names == ["a.nii.gz", "b.nii"]
    assert said.startswith("left out: ") and "c.nii.gz" in said and said.count("\n") == 1

    (tmp_path / "none").mkdir()
    names, said = say(str(tmp_path / "none"), capsys)
    assert names == [] and "none: no .nii.gz or .nii file in it" in said


def test_01_a_split_by_slice_recognises_patients_and_not_disease(capsys):
    """Studies of noise, each with a pattern of its own: there is nothing to learn but who it is."""
    rng = np.random.default_rng(0)
    volumes = rng.integers(0, 60, (40, 16, 48, 48)) + rng.integers(0, 190, (40, 1, 48, 48))
    table = pd.DataFrame({"label": np.arange(40) % 2, "row": np.arange(40)})
    table["part"] = np.where(np.arange(40) < 28, "train", "test")
    data = SimpleNamespace(volumes=volumes.astype(np.uint8), table=table)
    (cell,) = code_of("01", "KNeighborsClassifier")
    space = {"np": np, "data": data, "SEED": 0}
    exec(cell.source, space)
    found = space["accuracy"]
    assert found["by slice, real labels"] > 0.95 and found["by slice, coin labels"] > 0.95
    assert found["by patient, real labels"] < 0.8 and found["by patient, coin labels"] < 0.8
    assert capsys.readouterr().out.count("accuracy") == 4


def test_09_takes_another_collection_and_clear_slices(tmp_path, monkeypatch):
    """Each group has the grey of its own soft tissue, whichever folder it comes from."""
    rows, columns = np.mgrid[:120, :120]
    body = ((rows - 60) / 48) ** 2 + ((columns - 60) / 56) ** 2 < 1
    lung = np.abs(np.abs(columns - 60) - 26) ** 2 / 14**2 + ((rows - 60) / 26) ** 2 < 1

    def chest(tissue):
        return np.where(lung, 30, np.where(body, tissue, 5)).astype(np.uint8)

    for name, tissue in (("out/COVID", 120), ("out/NonCOVID", 150), ("clear", 180)):
        (tmp_path / name).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(chest(tissue)).save(tmp_path / name / f"{k}.png")
    monkeypatch.setattr(covid_ct, "read_images", lambda root, table: [chest(210), chest(240)])
    space = {"np": np, "Path": Path, "images": images, "covid_ct": covid_ct, "lungs": lungs}
    space |= {"EXTERNAL_IMAGES": str(tmp_path / "out"), "SLICES": str(tmp_path / "clear")}
    space |= {"root": None, "size": 64}
    space["data"] = SimpleNamespace(table=None, caption="Here.", labels=np.array([1, 0]))
    for cell in (*code_of("09", "read_elsewhere("), *code_of("09", "lungs.tissue_grey")):
        exec(cell.source, space)
    assert space["pictures"].shape == (4, 1, 64, 64) and space["truth"].tolist() == [1, 1, 0, 0]
    assert space["patients"] is None and space["caption"] == "Here. Elsewhere: out."
    tissue = [np.median(greys) for greys, _ in space["groups"].values()]
    np.testing.assert_allclose(tissue, [210, 240, 120, 150, 180], atol=2)
    assert list(space["groups"])[-1] == "SLICES"
