"""The synthetic twin of COVID-CT: layout, planted truths, reproducibility, label signal."""

from __future__ import annotations

import json
import re
import time
import zipfile

import numpy as np
import openpyxl
import pytest

from helpers.course import sources
from helpers.covidct import covid_ct
from helpers.phantom import covidct_twin


def truth_of(root):
    return json.loads((root / "twin_truth.json").read_text(encoding="utf-8"))


def by_image(root):
    return {row["image"]: row for row in truth_of(root)["images"]}


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """A small twin: its folder and its collection."""
    folder = tmp_path_factory.mktemp("data")
    root, caption = sources.get_images("phantom", folder, "tiny")
    assert root == folder / "covid-ct-phantom-tiny"
    assert "ynthetic" in caption and "not a patient" in caption
    return root, covid_ct.read_collection(root)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The twin that the notebooks use: its folder and its collection."""
    start = time.perf_counter()
    root = sources.get_images("phantom", tmp_path_factory.mktemp("quick"))[0]
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in root.rglob("*"))
    print(f"\nquick twin: {seconds:.1f} s, {size / 1e6:.1f} MB")
    return root, covid_ct.read_collection(root)


def test_quick_twin_has_the_size_and_split_it_should(quick):
    table = quick[1]
    assert table.groupby("label").size().to_dict() == {0: 140, 1: 120}
    patients = table.groupby("label").patient.nunique()
    assert 55 <= patients[0] <= 75 and 45 <= patients[1] <= 65
    assert 18 <= table.paper[table.label == 1].nunique() <= 32
    shares = table.groupby("label").part.value_counts(normalize=True)
    for label, part, share in (
        (1, "train", 191 / 349),
        (1, "validation", 60 / 349),
        (1, "test", 98 / 349),
        (0, "train", 234 / 397),
        (0, "validation", 58 / 397),
        (0, "test", 105 / 397),
    ):
        assert shares[label, part] == pytest.approx(share, abs=0.04)
    assert table.width.between(115, 700).all() and table.height.between(61, 700).all()
    assert table.width.max() > 2.5 * table.width.min()
    ratio = table.width / table.height
    assert ratio.max() > 1.5 * ratio.min()


@pytest.mark.parametrize("which", ["twin", "quick"])
def test_planted_truths_are_in(which, request):
    root, table = request.getfixturevalue(which)
    truth, rows = truth_of(root), by_image(root)
    assert truth["synthetic"] is True
    assert set(table.image) == set(rows) and table.attrs["not_in_a_split"] == 0
    for line in table.itertuples():
        row = rows[line.image]
        assert (line.label, line.part) == (row["label"], row["part"])
        assert (line.patient, line.paper) == (row["patient"], row["paper"])
    assert table.groupby("patient").part.nunique().max() == 1
    positive = table[table.label == 1]
    parts = positive.groupby("paper").part.nunique()
    assert sorted(parts.index[parts > 1]) == truth["papers_in_two_parts"]
    assert len(truth["papers_in_two_parts"]) == 2
    assert positive.paper.str.fullmatch(r"10\.5555/twin\.2020\.\d{3}").all()
    assert table.paper[table.label == 0].eq("").all()
    assert table.image.str.contains("%").any()
    assert positive.caption.str.contains("Synthetic")[positive.caption != ""].all()
    assert positive.caption.eq("").any() and positive.age.isna().any()
    assert positive.age.notna().any() and positive.gender.eq("").any()


@pytest.mark.parametrize("which", ["twin", "quick"])
def test_near_duplicates_across_classes_and_parts(which, request):
    root, table = request.getfixturevalue(which)
    pairs = truth_of(root)["near_duplicates"]
    assert len(pairs) == 2
    table = table.set_index("image", drop=False)
    for covid, other in pairs:
        lines = table.loc[[covid, other]]
        assert lines.label.tolist() == [1, 0]
        assert lines.part.tolist() == ["test", "train"]
        assert lines.n_bytes.nunique() == 2
        images = covid_ct.read_images(root, lines, (96, 96)).reshape(2, -1)
        assert np.corrcoef(images)[0, 1] > 0.95


@pytest.mark.parametrize("which", ["twin", "quick"])
def test_file_format_shortcut(which, request):
    table = request.getfixturevalue(which)[1]
    positive, negative = table[table.label == 1], table[table.label == 0]
    assert 0.3 < positive["mode"].eq("RGBA").mean() < 0.7
    assert not negative["mode"].eq("RGBA").any()
    assert positive.extension.eq(".png").all()
    assert set(negative.extension) == {".png", ".jpg"}
    assert ((positive.extension == ".png") & (positive.format == "JPEG")).any()
    named_jpg = negative.extension == ".jpg"
    assert (negative.format.eq("JPEG") == named_jpg).all()


@pytest.mark.parametrize("which", ["twin", "quick"])
def test_labels_follow_the_lesions(which, request):
    rows = by_image(request.getfixturevalue(which)[0]).values()
    copies = [row for row in rows if row["copy_of"]]
    assert len(copies) == 2 and not any(row["label"] for row in copies)
    for row in rows:
        if row["label"]:
            assert row["lesion_share"] >= covidct_twin.LEAST_LESION
            assert row["category"] in ("CT-2", "CT-3")
        elif not row["copy_of"]:
            assert row["lesion_share"] == 0 and row["category"] == "CT-0"


def test_figures_carry_marks_in_both_classes(quick):
    rows = by_image(quick[0]).values()
    for label in (0, 1):
        marks = [mark for row in rows if row["label"] == label for mark in row["marks"]]
        assert set(marks) == {"arrow", "letter", "border", "jpeg"}
    root, table = quick
    framed = [row["image"] for row in rows if row["marks"] == ["border"]]
    for image in covid_ct.read_images(root, table[table.image.isin(framed)]):
        assert min(image[:5].mean(), image[:, :5].mean(), image[-5:].mean()) >= 250


def test_metadata_are_as_untidy_as_the_real_ones(twin):
    root, table = twin
    sheet = openpyxl.load_workbook(root / "COVID-CT-MetaInfo.xlsx")["positive_captions"]
    head, *lines = sheet.iter_rows(values_only=True)
    assert len(head) == 11 and head[0] == "File name" and head[-1] == "Captions"
    assert lines[-1][0] is None and lines[-1][-1]
    assert len(lines) == table.label.sum() + 1
    names = [line[0] for line in lines[:-1]]
    assert any(name.endswith(".png") for name in names)
    assert any(not name.endswith(".png") for name in names)
    dois = {line[9] for line in lines[:-1]}
    for form in (r"10\.5555/.*\d", r"10\.5555/.* ", "https://doi.org/.*", "doi:.*", r".*\."):
        assert any(re.fullmatch(form, doi) for doi in dois)
    csv = (root / "NonCOVID-CT-MetaInfo.csv").read_text()
    assert csv.startswith(",image name,patient id\n0,0%0.jpg,crawled_patient_0\n")


def test_nothing_in_the_archives_leads_elsewhere_or_is_dated(twin):
    for name in ("COVID", "NonCOVID"):
        with zipfile.ZipFile(twin[0] / f"Images-processed/CT_{name}.zip") as archive:
            assert archive.namelist()[0] == f"CT_{name}/"
            assert {info.date_time for info in archive.infolist()} == {(2020, 4, 1, 0, 0, 0)}


def test_same_bytes_again_and_other_bytes_from_another_seed(tmp_path):
    options = {"n_covid": 20, "n_noncovid": 20, "matrix": 64}
    one = covidct_twin.make_twin(tmp_path / "one", **options, workers=1)
    two = covidct_twin.make_twin(tmp_path / "two", **options, workers=2)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len([file for file in files if not file.name.startswith(".")]) == 12
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    jobs = [covidct_twin._plan(20, 20, seed)[0] | {"matrix": 64} for seed in (2020, 1)]
    first, other = (list(covidct_twin._make_patient(job).values())[0][1] for job in jobs)
    assert first != other
    with zipfile.ZipFile(one / "Images-processed/CT_COVID.zip") as archive:
        assert archive.read(archive.namelist()[1]) == first


def test_finished_twin_is_kept_and_a_broken_one_made_whole(twin, monkeypatch):
    root = twin[0]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    content = {path: path.read_bytes() for path in before if path.is_file()}
    size = (30, 36)

    def refuse(*args):
        raise AssertionError("made again")

    with monkeypatch.context() as patch:
        patch.setattr(covidct_twin, "make_all", refuse)
        assert covidct_twin.make_twin(root, *size) == root
        assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        for setting in ({"seed": 1}, {"matrix": 64}, {"n_covid": 31}):
            name = next(iter(setting))
            with pytest.raises(ValueError, match=f"another {name}; choose another folder"):
                covidct_twin.make_twin(
                    root, **{"n_covid": size[0], "n_noncovid": size[1]} | setting
                )
        (root / "twin_truth.json").unlink()
        with pytest.raises(AssertionError, match="made again"):
            covidct_twin.make_twin(root, *size)
    path = root / "Images-processed" / "CT_COVID.zip"
    path.write_bytes(b"cut off")
    covidct_twin.make_twin(root, *size)
    assert content == {path: path.read_bytes() for path in content}


def test_real_images_are_never_written_over(tmp_path):
    path = tmp_path / "Images-processed" / "CT_COVID.zip"
    path.parent.mkdir()
    path.write_bytes(b"of a learner")
    with pytest.raises(ValueError, match="holds no twin.*choose another folder"):
        covidct_twin.make_twin(tmp_path)
    assert path.read_bytes() == b"of a learner"
    assert not (tmp_path / "twin_settings.json").exists()
    with pytest.raises(ValueError, match="too few"):
        covidct_twin.make_twin(tmp_path / "new", 19, 40)
    assert not (tmp_path / "new").exists()
