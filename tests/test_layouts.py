"""A cohort in every layout that DATASET takes: found, labelled, split and cached; or one line."""

import os
import shutil
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from test_cohort import count_calls

from helpers.course import runs, sources
from helpers.ct import dicom, layouts
from helpers.ct.cache import preprocess_cohort
from helpers.ct.cohort import (
    TASKS,
    CohortError,
    SplitError,
    find_studies,
    label_studies,
    labels_of,
    name_of_task,
    saved_split,
)
from helpers.ct.nifti import UnreadableStudy
from helpers.ct.studies import read_study
from helpers.learn import features, prediction
from helpers.phantom import dicom_export

KAGGLES = "MosMedData Chest CT Scans with COVID-19 Related Findings COVID19_1110 1.0"
SIZE = (8, 12, 12)
SPACING = (8.0, 0.75, 0.75)


def volume(seed, depth=10):
    """Air and soft tissue by chance: HU, (D, H, W)."""
    rng = np.random.default_rng(seed)
    return rng.integers(-1000, 400, (depth, 16, 16)).astype(np.int16)


def scan(path, seed):
    """Write a small scan; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume(seed).T, np.diag([-0.7, 0.7, 8, 1])), path)
    return path


def export(folder, seed, patient):
    """Write a small axial DICOM series of some patient."""
    slices = dicom_export.slices(volume(seed), SPACING, patient=patient, seed=seed)
    return dicom_export.write(slices, folder)


def quietly(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return find_studies(root)


def refused(root, match, error=CohortError):
    """The one line in which `root` is refused."""
    with pytest.raises(error, match=match) as caught:
        find_studies(root)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def build(root, table, where):
    return preprocess_cohort(table, root, where, SIZE, workers=1)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hospital(tmp_path):
    """Class folders of NIfTI files that are called by their patients' names."""
    root = tmp_path / "my hospital"
    for n in range(8):
        scan(root / "Normal" / f"Meyer Anna {n}.nii.gz", n)
        scan(root / "covid" / f"Schulz_{n}.nii", n + 20)
    return root


# MosMedData, as released, unpacked, and from Kaggle


def test_archives_as_they_unpack_are_mosmeddata_without_the_folder_studies(tmp_path):
    for name, numbers in {"CT-0": (1, 2), "CT-1": (3,), "CT-23": (4, 5)}.items():
        for n in numbers:
            scan(tmp_path / name / f"study_{n:04}.nii.gz", n)
    table = quietly(tmp_path)
    assert table.file.tolist()[-1] == "CT-23/study_0005.nii.gz"
    assert table.study.tolist() == table.patient.tolist() == [f"study_{n:04}" for n in range(1, 6)]
    assert label_studies(table).label.tolist() == [0, 0, 1, 1]
    assert label_studies(table, "ct0-ct1234").label.tolist() == [0, 0, 1, 1, 1]
    scan(tmp_path / "CT-23" / "other.nii.gz", 9)
    with pytest.warns(UserWarning, match="left out below .*: 1 .*other.nii.gz\\)$"):
        find_studies(tmp_path)


@pytest.mark.parametrize("wrapping", ["", "versions/1"])
def test_kaggles_copy_is_found_below_folders_with_blanks_and_stays_untouched(tmp_path, wrapping):
    root = tmp_path / "input"
    place = root / wrapping / KAGGLES
    for n in range(16):
        scan(place / "studies" / f"CT-{2 * (n % 2)}" / f"study_{n:04}.nii", n)
    scan(place / "masks" / "study_0001_mask.nii", 1)
    (place / "README_EN.md").touch()
    before = contents(root)
    for path in [*root.rglob("*"), root]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        data = runs.prepare(str(root), "tiny", tmp_path / "data")
    finally:
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)
    assert contents(root) == before
    line = data.table.set_index("study").loc["study_0001"]
    assert (data.root / line.file).is_file() and line.category == "CT-2" and line.label == 1
    assert data.root / line["mask"] == place / "masks" / "study_0001_mask.nii"
    assert data.volumes.shape == (16, 16, 48, 48)


def test_two_copies_of_mosmeddata_are_not_chosen_from(tmp_path):
    for name in "ab":
        scan(tmp_path / name / "studies/CT-0/study_0001.nii", 1)
    refused(tmp_path, "2 folders with CT-.*give one of them")
    assert len(quietly(tmp_path / "a")) == 1
    deep = tmp_path / "c" / "1/2/3/4/studies/CT-0/study_0001.nii"
    scan(deep, 1)
    refused(tmp_path / "c", "no studies there")


# Class folders


def test_class_folders_are_a_cohort_without_names_of_patients(hospital, tmp_path):
    scan(hospital / "masks" / "Schulz_3_mask.nii", 1)
    table = quietly(hospital)
    assert list(table) == ["study", "category", "file", "mask", "patient"]
    assert table.category.value_counts().to_dict() == {"Normal": 8, "covid": 8}
    assert table.study.str.fullmatch("scan_[0-9a-f]{8}").all() and table.study.is_unique
    assert table.patient.tolist() == table.study.tolist()
    assert table.set_index("file")["mask"]["covid/Schulz_3.nii"] == "masks/Schulz_3_mask.nii"
    assert (table["mask"] != "").sum() == 1
    scan(hospital / "Normal" / "Aaa.nii", 50)
    more = quietly(hospital).set_index("file").study
    assert more[table.file].tolist() == table.study.tolist(), "names change when files are added"
    scan(hospital / "Normal" / "schulz_3.mha.nii", 51)
    shutil.copy(hospital / "covid/Schulz_3.nii", hospital / "Normal/Schulz_3.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(hospital, "Schulz_3_mask.nii: fits 2 scans; give each")


def test_a_cohort_of_class_folders_is_prepared_and_remembered(hospital, tmp_path, capsys):
    before = contents(hospital)
    data = runs.prepare(str(hospital), "tiny", tmp_path / "data")
    assert "'Normal': 0, 'covid': 1" in capsys.readouterr().out
    assert (data.table.label == (data.table.category == "covid")).all()
    again = runs.prepare(str(hospital), "tiny", tmp_path / "data", task={"covid": 0, "Normal": 1})
    assert (again.table.label == (data.table.category != "covid")).all()
    assert again.run_name != data.run_name and capsys.readouterr().out == ""
    assert set("".join(again.run_name.split("-tiny-")[1])) <= {*"abcdefl-0123456789sed"}
    assert contents(hospital) == before
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    split = next(path for path in files if path.name.startswith("split-"))
    for name in ("Meyer", "Schulz"):
        assert name not in split.read_text() and not any(name in path.name for path in files)


def test_what_is_no_scan_is_left_out_with_a_word(hospital):
    (hospital / "covid" / "notes.txt").write_text("x")
    (hospital / "covid" / ".DS_Store").write_text("x")
    (hospital / "papers").mkdir()
    (hospital / "readme.md").touch()
    with pytest.warns(
        UserWarning, match="left out, because they are no scans of a class: 3 .*, \\.\\.\\."
    ) as said:
        assert len(find_studies(hospital)) == 16
    assert len(said) == 1


def test_scans_of_two_files_are_one_study(tmp_path, monkeypatch):
    root = tmp_path / "mine"
    for n, name in enumerate(["normal", "normal", "covid", "covid"]):
        pair = nib.Nifti1Pair(volume(n).T, np.diag([-0.7, 0.7, 8, 1]))
        (root / name).mkdir(parents=True, exist_ok=True)
        nib.save(pair, root / name / f"scan{n}.img")
    sitk = pytest.importorskip("SimpleITK")
    for n, name in enumerate(["a.mhd", "b.nhdr", "c.mha", "d.nrrd"], start=4):
        image = sitk.GetImageFromArray(volume(n))
        image.SetSpacing(SPACING[::-1])
        sitk.WriteImage(image, str(root / "covid" / name))
    table = quietly(root)
    assert table.file.map(lambda file: Path(file).name).tolist() == [
        *("a.mhd", "b.nhdr", "c.mha", "d.nrrd", "scan2.hdr", "scan3.hdr", "scan0.hdr", "scan1.hdr")
    ]
    assert table.patient.is_unique, "headers of two scans may be alike"
    names = {file: [f.name for f in layouts.files_of(root / file)] for file in table.file}
    assert names["covid/a.mhd"] == ["a.mhd", "a.raw"] and names["covid/c.mha"] == ["c.mha"]
    assert names["covid/scan2.hdr"] == ["scan2.hdr", "scan2.img"]
    assert names["covid/b.nhdr"][0] == "b.nhdr" and len(names["covid/b.nhdr"]) == 2
    build(root, table, tmp_path / "cache")
    calls = count_calls(monkeypatch)
    build(root, table, tmp_path / "cache")
    assert calls == []
    for name in ("a.raw", "scan2.img"):
        voxels = np.fromfile(root / "covid" / name, np.int16)
        voxels[::-1].tofile(root / "covid" / name)
    build(root, table, tmp_path / "cache")
    assert sorted(Path(call).name for call in calls) == ["a.mhd", "scan2.hdr"]


def test_a_header_is_joined_by_the_file_that_it_names(tmp_path):
    header = tmp_path / "x.mhd"
    header.write_text("NDims = 3\nElementDataFile = voxels of x.raw\n")
    (tmp_path / "x.raw").touch()
    assert layouts.files_of(header) == [header, tmp_path / "x.raw"]
    (tmp_path / "voxels of x.raw").touch()
    assert [file.name for file in layouts.files_of(header)] == ["voxels of x.raw", "x.mhd"]
    assert layouts.scans_in(tmp_path) == ([header], [tmp_path / "x.raw"])


def test_fingerprints_that_are_alike_become_longer(monkeypatch):
    real = layouts.hashlib.blake2b

    def blake2b(content, digest_size):
        return real(content if digest_size > 4 else content[:1], digest_size=digest_size)

    monkeypatch.setattr(layouts.hashlib, "blake2b", blake2b)
    names = layouts._fingerprints(["a/1", "a/2", "b/1"])
    assert len({*names}) == 3 and [len(name) for name in names] == [37, 37, 13]


def test_copies_in_class_folders_are_of_one_patient(hospital):
    shutil.copy(hospital / "covid" / "Schulz_1.nii", hospital / "covid" / "again.nii")
    with pytest.warns(UserWarning, match="copies, counted as the same patient: 1 "):
        table = find_studies(hospital).set_index("file")
    assert table.patient["covid/again.nii"] == table.patient["covid/Schulz_1.nii"]
    assert table.patient.nunique() == 16


@pytest.mark.parametrize("named", ["original", "copy"])
def test_a_patient_who_is_named_for_a_scan_is_that_of_its_copy_too(tmp_path, named):
    original, other = scan(tmp_path / "a.nii", 1), scan(tmp_path / "b.nii", 2)
    copy = shutil.copy(original, tmp_path / "the copy.nii")
    patients = ["P1", "P1", ""] if named == "original" else ["", "P1", "P1"]
    columns = {"path": [original, other, copy], "label": [0, 1, 0], "patient": patients}
    with pytest.warns(UserWarning, match="copies, counted as the same patient: 1 "):
        assert find_studies(write(tmp_path / "t.csv", columns)).patient.nunique() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_class_folders_name_in_latin_1_is_refused(hospital):
    os.rename(hospital / "covid", os.fsencode(hospital) + b"/covid M\xfcller")
    refused(hospital, r"the name 'covid M\\udcfcller/.*' cannot be printed; rename it")


@pytest.mark.parametrize("kind", ["nothing", "no classes", "no scans", "not there", "a text"])
def test_without_studies_one_line_says_what_may_be_given(tmp_path, kind):
    root = tmp_path / "root"
    if kind in ("no classes", "no scans"):
        scan(root / "a.nii", 1)
    if kind == "no scans":
        (root / "a.nii").rename(root / "a.txt")
        (root / "normal").mkdir()
    if kind == "nothing":
        root.mkdir()
    if kind == "a text":
        root.write_text("path,label\n")
    refused(root, "no studies there; .*studies/CT.*<class>/<scan>.*a table")
    with pytest.raises(CohortError, match='root: no studies there; DATASET is .*"?kaggle.*table'):
        sources.get_studies(str(root), "tiny", tmp_path)


# DICOM


@pytest.fixture
def clinic(tmp_path):
    """Sixteen DICOM folders of 14 patients, whose ids nobody may see."""
    pytest.importorskip("pydicom")
    root = tmp_path / "clinic"
    for n in range(8):
        export(
            root / "normal" / f"Anna {n}" / "deeper", n, f"ID-SECRET-{n // 2 * 2 if n < 4 else n}"
        )
        export(root / "pneumonia" / f"Bert {n}", n + 20, f"ID-SECRET-{n + 20}")
    return root


def test_a_folder_of_dicom_files_is_a_study_and_its_patient_is_known(clinic, tmp_path):
    table = quietly(clinic)
    assert table.file.tolist()[:2] == ["normal/Anna 0", "normal/Anna 1"] and len(table) == 16
    assert table.patient[1] == table.study[0] and table.patient[3] == table.study[2]
    assert table.patient.nunique() == 14
    data = runs.prepare(str(clinic), "tiny", tmp_path / "data", task={"normal": 0, "pneumonia": 1})
    together = data.table.groupby("patient").part.nunique()
    assert (together == 1).all() and len(data.table) == 16


def test_nothing_of_a_header_is_kept_or_said(clinic, tmp_path, capfd):
    export(clinic / "normal" / "Anna 0", 0, "ID-SECRET-0")  # once more beside the first
    for n in range(4):
        shutil.rmtree(clinic / "pneumonia" / f"Bert {n}")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = runs.prepare(str(clinic), "tiny", tmp_path / "data")
        (clinic / "normal" / "Anna 5" / "deeper" / "IM0004").unlink()
        with pytest.raises(CohortError, match="1 of 12 studies cannot be used") as refusal:
            runs.prepare(str(clinic), "tiny", tmp_path / "data")
    printed = "".join(capfd.readouterr())
    text = data.table.to_csv() + "".join(str(one.message) for one in said) + str(refusal.value)
    kept = b"".join(contents(tmp_path / "data").values()) + (text + printed).encode()
    assert data.table.study[0].encode() in kept
    for hidden in (b"SECRET", dicom_export.MADE.encode()):
        assert hidden not in kept


def test_dicom_files_of_a_class_are_told_apart_by_study(tmp_path, monkeypatch):
    pytest.importorskip("pydicom")
    root = tmp_path / "loose"
    for n in range(3):
        made = export(tmp_path / "made", n, f"P{n % 2}")
        scout = dicom_export.slices(volume(9, 1), SPACING, "scout", f"P{n % 2}", 7, n)
        dicom_export.write(scout, made, ["scout"])
        for file in sorted(made.iterdir()):
            target = root / "covid" / f"{'zyx'[n]}{file.name}.dcm"
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
    (root / "covid" / "DICOMDIR").write_text("an index")
    scan(root / "normal" / "a.nii", 40)
    with pytest.warns(UserWarning, match="no scans of a class: 1 .*DICOMDIR\\)$"):
        table = find_studies(root)
    assert table.file.tolist() == [*(f"covid/{c}IM0001.dcm" for c in "xyz"), "normal/a.nii"]
    assert table.patient[0] == table.patient[2] != table.patient[1]
    cache = build(root, table, tmp_path / "cache")
    assert len({*cache.index.content}) == 4
    calls = count_calls(monkeypatch)
    build(root, table, tmp_path / "cache")
    assert calls == []
    (root / "covid" / "xIM0010.dcm").unlink()
    build(root, table, tmp_path / "cache")
    assert len(calls) == 3, "the studies of this folder, and no other"


def test_a_series_that_lost_gained_or_changed_a_file_is_done_again(clinic, tmp_path, monkeypatch):
    table = quietly(clinic)
    build(clinic, table, tmp_path / "cache")
    calls = count_calls(monkeypatch)
    series = clinic / "pneumonia" / "Bert 3"
    for change in ("nothing", "date", "lost", "gained", "swapped", "thumbs"):
        calls.clear()
        last, first = series / "IM0010", series / "IM0001"
        if change == "date":
            os.utime(last, (1, 1))
        elif change == "lost":
            last.rename(tmp_path / "kept")
        elif change == "gained":
            (tmp_path / "kept").rename(last)
        elif change == "swapped":  # same names, sizes and sum; other content, an old date
            content, stat = first.read_bytes(), first.stat()
            first.write_bytes(content[:-9] + bytes(9))
            os.utime(first, ns=(1, stat.st_mtime_ns - 10**9))
        elif change == "thumbs":
            (series / "Thumbs.db").write_bytes(b"x")
        build(clinic, table, tmp_path / "cache")
        expected = [] if change in ("nothing", "date", "thumbs") else ["Bert 3"]
        assert [Path(call).name for call in calls] == expected, change


def test_one_id_for_all_says_nothing(tmp_path):
    pytest.importorskip("pydicom")
    for n in range(4):
        export(tmp_path / ("normal" if n % 2 else "covid") / f"s{n}", n, "ANONYMOUS")
    with pytest.warns(UserWarning, match="all 4 studies have the same .* of its own") as said:
        assert find_studies(tmp_path).patient.nunique() == 4
    assert not any("ANON" in str(one.message) for one in said)
    export(tmp_path / "covid" / "s9", 9, "other")
    assert quietly(tmp_path).patient.nunique() == 2


def test_zips_and_bad_folders_are_studies_too(tmp_path):
    pytest.importorskip("pydicom")
    root = tmp_path / "zips"
    for n in range(2):
        made = export(tmp_path / f"made{n}", n, "P1")
        (root / "covid").mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root / "covid" / f"{n}.zip", "w") as archive:
            for file in made.iterdir():
                archive.write(file, f"inside/{file.name}")
    scan(root / "normal" / "a.nii", 9)
    table = quietly(root)
    assert table.file.tolist() == ["covid/0.zip", "covid/1.zip", "normal/a.nii"]
    assert table.patient[0] == table.patient[1]
    assert len(build(root, table, tmp_path / "cache").volumes) == 3
    (root / "covid" / "2.zip").write_bytes(b"no archive")
    table = quietly(root)
    assert table.patient[2] == table.study[2]
    with pytest.raises(CohortError, match="1 of 4 studies cannot be used"):
        build(root, table, tmp_path / "cache")


# Tables


@pytest.fixture
def listed(hospital, tmp_path):
    """A table of the hospital's scans beside it, as (its path, its columns)."""
    files = sorted(path.relative_to(tmp_path).as_posix() for path in hospital.rglob("*.nii*"))
    labels = ["normal" if "Normal" in file else "covid" for file in files]
    columns = {"Path": files, " LABEL": labels}
    return tmp_path / "labels.csv", columns


def write(path, columns, **options):
    table = pd.DataFrame(columns)
    if path.suffix == ".xlsx":
        table.to_excel(path, index=False, **options)
    else:
        path.write_text(table.to_csv(index=False, **options), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("labels.csv", {}),
        ("labels.csv", {"sep": ";"}),
        ("labels.CSV", {"sep": "\t"}),
        ("my labels.xlsx", {}),
        ("labels.xlsx", {"startrow": 2}),
    ],
)
def test_a_table_is_a_cohort(listed, hospital, name, options, tmp_path):
    path, columns = listed[0].with_name(name), listed[1]
    if path.suffix == ".CSV":
        columns = {"file": [str(tmp_path / file) for file in columns["Path"]], "Class": [1, 0] * 8}
    table = quietly(write(path, columns, **options))
    assert list(table) == ["study", "category", "file", "mask", "patient"]
    assert table.file.tolist() == sorted(map(str, hospital.rglob("*.nii*")))
    assert table.study.str.fullmatch("scan_[0-9a-f]{8}").all()
    assert table.patient.tolist() == table.study.tolist()
    wanted = [1, 0] * 8 if path.suffix == ".CSV" else [0] * 8 + [1] * 8
    assert label_studies(table).label.tolist() == wanted


def test_a_table_is_prepared_with_its_own_parts_patients_and_masks(listed, hospital, tmp_path):
    mask = scan(hospital / "masks" / "any name.nii", 1)
    path, columns = listed
    columns |= {
        "Patient_ID": ["007", "7", "7.0", "Zoe-SECRET", "", "", "b", "c"] * 2,
        "mask": [str(mask), *[""] * 15],
        "PART": ["Train"] * 4 + ["val", "test"] * 2 + ["train"] * 4 + ["VALIDATION", "test"] * 2,
    }
    columns["Patient_ID"][8:] = [f"x{name}" if name else "" for name in columns["Patient_ID"][8:]]
    columns["Patient_ID"][8:11] = ["9", "9", "9"]
    root, work, caption = sources.get_studies(str(write(path, columns)), "tiny", tmp_path / "data")
    assert root == path and work.parent == tmp_path / "data" and caption == "Studies of labels.csv."
    table = quietly(root)
    assert len({*table.patient[:3]}) == 1 and table.patient[0] == table.study[0]
    assert table.patient[8] == table.patient[9] == table.study[8] and table.patient.nunique() == 12
    assert table["mask"][0] == str(mask) and (table["mask"][1:] == "").all()
    data = runs.prepare(str(path), "tiny", tmp_path / "data")
    assert data.root == path and len(data.volumes) == 16
    told = ["train"] * 4 + ["validation", "test"] * 2
    assert data.table.part.tolist() == told * 2
    assert not list(work.glob("split-*"))
    masked = data.table.index[data.table["mask"] != ""][0]
    assert runs.lesion(data, masked).shape == data.profile.size
    kept = b"".join(contents(tmp_path / "data").values())
    assert b"Zoe-SECRET" not in kept + data.table.to_csv().encode()


def drop(columns, name):
    return {key: value for key, value in columns.items() if key.strip().lower() != name}


def changed(columns, name, value, line=0):
    """The columns with another value in one line."""
    found = {**columns, name: list(columns.get(name, [""] * 16))}
    found[name][line] = value
    return found


WRONG = {
    "no path": (lambda c: drop(c, "path"), "has no column path or file"),
    "no label": (lambda c: drop(c, "label"), "has no column label or class or category"),
    "missing": (
        lambda c: {**c, "Path": ["a.nii", "b.nii", "c.nii", "d.nii", *c["Path"][4:]]},
        r"lines with a scan that is not there: 4 \(line 2: 'a.nii', .*, \.\.\.\); paths count",
    ),
    "unknown part": (
        lambda c: c | {"part": ["train"] * 15 + ["holdout"]},
        "lines without a known part: 1 .line 17",
    ),
    "half a part": (lambda c: c | {"part": ["train"] * 15 + [""]}, "without a known part"),
    "empty label": (lambda c: changed(c, " LABEL", " "), "lines without a label: 1 "),
    "empty path": (lambda c: changed(c, "Path", ""), "lines without a path: 1 .line 2"),
    "twice": (
        lambda c: changed(c, "Path", "./" + c["Path"][3]),
        "lines that name the same scan: 2 .line 2.* line 5",
    ),
    "no mask": (lambda c: changed(c, "mask", "m.nii"), "lines with a mask that is not there: 1 "),
    "torn": (
        lambda c: c | {"part": ["train", "test"] * 8, "patient": ["p", "p", *range(14)]},
        "lines with a patient of two parts: 2 .line 2.* line 3",
    ),
    "nothing": (lambda c: {key: [] for key in c}, "names no scan"),
    "unprintable": (lambda c: changed(c, " LABEL", "co\u200bvid"), "unprintable label: 1 .line 2"),
    "long": (lambda c: changed(c, "Path", "x" * 5000), "is not there: 1 .line 2: 'x{100}'"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("ending", [".csv", ".xlsx"])
def test_a_table_that_is_wrong_is_one_line(listed, kind, ending):
    change, match = WRONG[kind]
    path = write(listed[0].with_suffix(ending), change(listed[1]))
    assert refused(path, match).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.xlsx", b"path,label\n", "cannot be read as an Excel workbook"),
        ("a.csv", b"path,label\nM\xfcller.nii,0\n", "cannot be read as text in UTF-8"),
        ("a.csv", b"", "has no column path"),
        ("a.csv", b"PK\3\4\0\0\0", "has no column path|cannot be read as CSV"),
        ("a.csv", b"path,label\n\0.nii,1\n", "cannot be read|not there"),
        ("a.csv", b"path,label\n" + b"x" * 200_000 + b",1\n", "cannot be read as CSV"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, match)


def test_lines_of_different_lengths_and_cells_of_several_lines_are_read(listed):
    path, columns = listed
    rows = [
        f'{file},"{label}  \x0c\n 19",{"x," * n}'
        for n, (file, label) in enumerate(zip(*columns.values(), strict=True))
    ]
    path.write_text("# ours\nPath,Label\n" + "\n".join(rows), encoding="utf-8")
    assert {*quietly(path).category} == {"normal 19", "covid 19"}


def test_a_file_without_permission_is_not_called_a_damaged_table(listed, monkeypatch):
    path = write(*listed)

    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", closed)
    refused(path, "cannot be opened .Permission denied.; check its permissions")


def test_a_table_written_on_windows_is_read_elsewhere(listed):
    path, columns = listed
    columns["Path"] = [file.replace("/", "\\") for file in columns["Path"]]
    path.write_bytes(b"\xef\xbb\xbf" + pd.DataFrame(columns).to_csv(index=False).encode())
    assert len(quietly(path)) == 16


# Labels


def of(*categories):
    return pd.DataFrame({"study": [*map(str, range(len(categories)))], "category": categories})


@pytest.mark.parametrize("negative", ["Normal", "NON-COVID", "no covid", "CT-0", "healthy", "0"])
def test_two_classes_are_understood_if_one_is_called_negative(negative, capsys):
    table = of("COVID", negative, "covid")
    assert labels_of(table) == labels_of(table, None) == {"COVID": 1, negative: 0, "covid": 1}
    assert "if that is wrong" in capsys.readouterr().out
    assert label_studies(table, "ct0-ct1234").label.tolist() == [1, 0, 1]


def test_labels_0_and_1_are_taken_as_they_are(capsys):
    assert label_studies(of("1", "0", "1")).label.tolist() == [1, 0, 1]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "categories",
    [("flu", "covid"), ("normal", "healthy"), ("normal", "flu", "covid"), ("covid",), ("2", "3")],
)
def test_other_classes_are_listed_with_a_dictionary_to_give(categories):
    with pytest.raises(CohortError, match="of no known task; say which.*task=.'") as caught:
        label_studies(of(*categories, categories[0]))
    assert f"{categories[0]} (2)" in str(caught.value) and "\n" not in str(caught.value)


def test_a_dictionary_says_the_labels():
    table = of("flu", "covid", "normal")
    assert label_studies(table, {"covid": 1, "flu": 0}).label.tolist() == [0, 1]
    for wrong in ({"covid": 1}, {"covid": 1, "flu": 2}, {}):
        with pytest.raises(CohortError, match="the label 0 and others 1"):
            labels_of(table, wrong)
    with pytest.raises(CohortError, match="choose one of ct0-ct23"):
        labels_of(table, "covid")


def test_mosmeddatas_categories_are_never_guessed():
    with pytest.raises(CohortError, match="no study of CT-2"):
        label_studies(of("CT-0", "CT-1"))
    assert label_studies(of("CT-0", "CT-2", "other")).label.tolist() == [0, 1]
    assert all(labels["CT-23"] == 1 for labels in TASKS.values())


def test_a_task_has_a_name_for_files():
    assert name_of_task(dict(TASKS["ct0-ct23"])) == "ct0-ct23"
    one, two = name_of_task({"a/b ü": 0, "c": 1}), name_of_task({"a/b ü": 1, "c": 0})
    assert one != two and one.isascii() and one.replace("-", "").isalnum()
    assert one == name_of_task({"c": 1, "a/b ü": 0})


def test_a_tables_parts_are_the_split_if_they_can_be(tmp_path):
    names = [f"s{n}" for n in range(6)]
    table = pd.DataFrame({"study": names, "patient": names, "category": "x", "label": [0, 1] * 3})
    table["part"] = np.repeat(["train", "validation", "test"], 2)
    assert saved_split(table, tmp_path / "split.csv").tolist() == table.part.tolist()
    assert not (tmp_path / "split.csv").exists()
    with pytest.raises(SplitError, match="a part has no study of one class"):
        saved_split(table.assign(label=[0, 1, 0, 1, 0, 0]), tmp_path / "split.csv")
    with pytest.raises(SplitError, match="the column part has patients in two parts: 1, s0 first"):
        saved_split(table.assign(patient=["s0", "s1", "s0", *"abc"]), tmp_path / "split.csv")


# Kaggle


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """Nothing mounted, and no kagglehub."""
    monkeypatch.setattr(sources, "KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    return monkeypatch


def kaggles(place):
    for n in range(16):
        scan(place / KAGGLES / "studies" / f"CT-{2 * (n % 2)}" / f"study_{n:04}.nii", n)
    return place


def test_on_kaggle_the_mounted_copy_is_taken(no_hub, tmp_path):
    scan(tmp_path / "input/datasets/aaa/other/x/studies/CT-0/study_0001.nii.gz", 1)
    place = kaggles(tmp_path / "input/datasets/mathurinache" / sources.KAGGLE_SET.split("/")[1])
    root, work, caption = sources.get_studies("kaggle", "tiny", tmp_path / "data")
    assert root == place / KAGGLES and work == tmp_path / "data" / "kaggle"
    assert "Morozov" in caption and "BY-NC-ND" in caption
    data = runs.prepare("kaggle", "tiny", tmp_path / "data")
    assert len(data.volumes) == 16 and data.name == "kaggle"


def test_elsewhere_kagglehub_fetches_it(no_hub, tmp_path):
    asked = []

    def dataset_download(name):
        asked.append(name)
        return str(kaggles(tmp_path / "versions" / "3"))

    no_hub.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=dataset_download))
    root, _, _ = sources.get_studies("kaggle", "tiny", tmp_path / "data")
    assert asked == [sources.KAGGLE_SET] and len(find_studies(root)) == 16


@pytest.mark.parametrize("kind", ["no package", "no token", "another set"])
def test_what_kaggle_lacks_is_one_line_with_what_to_do(no_hub, tmp_path, kind):
    def fails(name):
        if kind == "another set":
            return str(tmp_path)
        raise RuntimeError("401 Client Error.\n\nYou don't have permission")

    if kind != "no package":
        no_hub.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=fails))
    match = {
        "no package": "pip install kagglehub, or get kaggle.com/datasets/.*11.9 GB.*DATASET",
        "no token": "RuntimeError: 401 Client Error. You.*token, or get kaggle.com",
        "another set": "no studies/CT",
    }[kind]
    with pytest.raises(CohortError, match=match) as caught:
        sources.get_studies("kaggle", "tiny", tmp_path / "data")
    assert "\n" not in str(caught.value)


# Scans from elsewhere (notebook 06), and real ones


def test_scans_from_elsewhere_are_of_any_format(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pydicom")
    monkeypatch.setattr(prediction, "predict", lambda *_: (np.array([0.25]), None))
    monkeypatch.setattr(features, "encode_scans", lambda *_: None)
    scan(tmp_path / "a.nii", 1)
    export(tmp_path / "b", 2, "P1")
    export(tmp_path, 3, "P2")
    (tmp_path / "notes.txt").touch()
    found = runs.predict_files(tmp_path, None, (16, 48, 48))
    assert [line["study"] for line in found] == ["IM0001", "a.nii", "b"]
    assert "left out, because they are no scans: 1 (notes.txt" in capsys.readouterr().out
    assert len(runs.predict_files(tmp_path / "b", None, (16, 48, 48))) == 1
    assert len(runs.predict_files(tmp_path / "b/IM0004", None, (16, 48, 48))) == 1

    def fail(_):
        raise UnreadableStudy("x", "needs pydicom", "pip install it")

    monkeypatch.setattr(dicom, "list_series", fail)
    assert runs.predict_files(tmp_path, None, (16, 48, 48)) == []
    assert capsys.readouterr().out.endswith("x: needs pydicom; pip install it\n")


def test_what_is_no_nifti_file_is_copied_to_one(tmp_path):
    pytest.importorskip("pydicom")
    folder = export(tmp_path / "Anna", 3, "P1")
    copy, study = runs.as_nifti(folder, tmp_path / "runs"), read_study(folder)
    assert copy == tmp_path / "runs" / "study.nii" and runs.as_nifti(copy, tmp_path) == copy
    assert np.array_equal(read_study(copy).hu, study.hu)
    np.testing.assert_allclose(read_study(copy).affine, study.affine, atol=1e-4)
    assert read_study(copy).source_axes[2] == "S", "slices lie along the last axis"


def test_real_scans_in_class_folders(real_data, tmp_path):
    root = tmp_path / "scans of ours"
    volumes = sorted((real_data / "volumes").glob("*.nii.gz"))
    for path in volumes:
        folder = root / ("covid" if "covid_" in path.name else "normal")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).symlink_to(path)
    for folder in (real_data / "dicom").glob("*"):
        (root / "normal" / folder.name).symlink_to(folder)
    table = quietly(root)
    assert len(table) >= len(volumes) == 8 and table.patient.is_unique
    cache = preprocess_cohort(table, root, tmp_path / "cache", (16, 48, 48), workers=1)
    assert len(cache.volumes) == len(table) and len(cache.skipped) == 0
    assert (cache.volumes.reshape(len(table), -1).std(axis=1) > 40).all()
