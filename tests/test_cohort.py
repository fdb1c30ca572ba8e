"""Listing, labels, splits and the cache of preprocessed volumes."""

import gzip
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pandas as pd
import psutil
import pytest

from helpers.ct import cache as cache_module
from helpers.ct.cache import _preprocess_one, preprocess_cohort
from helpers.ct.cohort import (
    CohortError,
    SplitError,
    find_studies,
    label_studies,
    saved_split,
    split_by_patient,
)
from helpers.ct.preprocessing import preprocess_fast
from helpers.storage.files import WriteError
from helpers.storage.processes import start_workers

SIZE = (8, 12, 12)


@pytest.fixture
def root(tmp_path):
    """Six small studies in MosMedData's layout."""
    folder = tmp_path / "cohort"
    for number, category in enumerate(["CT-0", "CT-0", "CT-0", "CT-2", "CT-2", "CT-3"], start=1):
        write_study(folder / "studies" / category / f"study_{number:04}.nii.gz", number)
    return folder


def write_study(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    hu = np.random.default_rng(seed).integers(-1000, 400, (16, 16, 10)).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, np.diag([-0.7, 0.7, 8, 1])), path)


def build(root, **options):
    table = find_studies(root)
    return preprocess_cohort(table, root, root / "cache", SIZE, workers=1, **options)


def count_calls(monkeypatch):
    calls = []
    real = _preprocess_one
    monkeypatch.setattr(
        "helpers.ct.cache._preprocess_one", lambda *a: calls.append(a[0]) or real(*a)
    )
    return calls


def test_studies_are_found_with_category_and_mask(root):
    (root / "masks").mkdir()
    (root / "masks" / "study_0004_mask.nii.gz").touch()
    table = find_studies(root)
    assert list(table.study) == [f"study_{n:04}" for n in range(1, 7)]
    assert list(table.category) == ["CT-0"] * 3 + ["CT-2"] * 2 + ["CT-3"]
    assert table["mask"][3] == "masks/study_0004_mask.nii.gz" and table["mask"][0] == ""
    assert list(table.patient) == list(table.study)


STUDIES = [f"study_{n:04}" for n in range(1, 7)]


def register(root, ids, studies=STUDIES, titles=("study_id", "patient_id"), **options):
    """Write the registry of the six studies."""
    table = pd.DataFrame(dict(zip(titles, (studies, ids), strict=True)))
    table.to_excel(root / "dataset_registry.xlsx", index=False, **options)


def patients(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return find_studies(root).patient.tolist()


def test_registry_names_the_patients(root):
    register(root, ["p7", "p7"], STUDIES[:2])
    with pytest.warns(UserWarning, match="does not list 4 of 6 studies"):
        found = find_studies(root).patient.tolist()
    assert found == ["p7", "p7", *STUDIES[2:]]


TWO = ["P1"] * 3 + ["P2"] * 3
UNDERSTOOD = {
    "as it should be": (TWO, {}),
    "blanks around": (["P1", " P1", "P1\u00a0", "P2", "P2 ", "P2"], {}),
    "text and numbers": (["01", 1, "1", 2, 2.0, "2.0"], {}),
    **{
        f"the title {title!r}": (TWO, {"titles": ("Study ID ", title)})
        for title in ("Patient ID", "patient_id ", "PatientID", "PATIENT-ID")
    },
    "numbers of studies": (TWO, {"studies": range(1, 7)}),
    "numbers as text": (TWO, {"studies": [f"{n:04}" for n in range(1, 7)]}),
    "file names": (TWO, {"studies": [f"{study}.nii.gz" for study in STUDIES]}),
    "paths": (TWO, {"studies": [f"/studies/CT-0/{study}.nii" for study in STUDIES]}),
    "blanks around studies": (TWO, {"studies": [f" {study} " for study in STUDIES]}),
    "capitals": (TWO, {"studies": [study.upper() for study in STUDIES]}),
    "titles from the third row on": (TWO, {"startrow": 2}),
    "a study twice": ([*TWO, "P1"], {"studies": [*STUDIES, STUDIES[0]]}),
    "blank rows": (
        [*TWO[:3], None, " ", *TWO[3:]],
        {"studies": [*STUDIES[:3], None, "", *STUDIES[3:]]},
    ),
    "more studies than there are": ([*TWO, "P9"], {"studies": [*STUDIES, "study_0999"]}),
}


@pytest.mark.parametrize("kind", UNDERSTOOD)
def test_a_registry_is_understood_where_its_meaning_is_plain(root, kind):
    ids, options = UNDERSTOOD[kind]
    register(root, ids, **options)
    first, second = patients(root)[:3], patients(root)[3:]
    assert len({*first}) == len({*second}) == 1 and first[0] != second[0]


@pytest.mark.parametrize("empty", [None, "", "  ", float("nan")])
def test_an_empty_cell_is_a_patient_of_its_own(root, empty):
    register(root, [101, empty, 101, empty, 102, empty])
    assert patients(root) == ["101", "study_0002", "101", "study_0004", "102", "study_0006"]
    register(root, [empty] * 6)
    assert patients(root) == STUDIES


GOOD = {"study_id": STUDIES, "patient_id": TWO}
REFUSED = {
    "a study of two patients": ({**GOOD, "study_id": STUDIES[:5] + STUDIES[:1]}, "two patients"),
    "other studies": ({**GOOD, "study_id": [f"scan-{n}" for n in "abcdef"]}, "none of the studies"),
    "no studies": ({"study_id": [], "patient_id": []}, "none of the studies"),
    "no column study_id": ({"study": STUDIES, "patient_id": TWO}, "no column study_id"),
    "nothing": ({}, "no column study_id"),
    "empty": (b"", "Excel workbook"),
    "git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Excel workbook"),
    "csv": (b"study_id,patient_id\nstudy_0001,P1\n", "Excel workbook"),
    "old xls, or a password": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "Excel workbook"),
    "another zip": (b"PK\5\6" + bytes(18), "Excel workbook"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_registry_that_cannot_be_understood_is_refused_in_one_line(root, kind):
    content, reason = REFUSED[kind]
    path = root / "dataset_registry.xlsx"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pd.DataFrame(content).to_excel(path, index=False)
    with pytest.raises(CohortError, match=rf"dataset_registry\.xlsx: .*{reason}.*;") as caught:
        find_studies(root)
    assert len(str(caught.value).splitlines()) == 1


def test_a_registry_cut_off_or_under_another_name_is_refused(root):
    register(root, TWO)
    path = root / "dataset_registry.xlsx"
    whole = path.read_bytes()
    for n_bytes in (100, 2000, len(whole) - 30):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(CohortError, match="Excel workbook"):
            find_studies(root)
    path.unlink()
    for name in ("dataset_registry.csv", "dataset_registry.xls"):
        (root / name).write_bytes(b"study_id,patient_id\n")
        with pytest.raises(CohortError, match=f"{name}: is not read; save it as"):
            find_studies(root)
        (root / name).unlink()


def test_a_registry_without_patients_says_so_unless_it_is_mosmeddatas(root):
    register(root, TWO, titles=("study_id", "subject"))
    with pytest.warns(UserWarning, match="no column patient_id"):
        assert find_studies(root).patient.tolist() == STUDIES
    register(root, ["CT-0"] * 6, titles=("study_id", "category"))
    assert patients(root) == STUDIES


def test_every_way_to_write_the_ending_is_found(root):
    folder = root / "studies" / "CT-2"
    for study in ("study_0004", "study_0005"):
        packed = folder / f"{study}.nii.gz"
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    first = root / "studies" / "CT-0" / "study_0001.nii.gz"
    first.rename(first.with_name("study_0001.NII.GZ"))
    (root / "masks").mkdir()
    (root / "masks" / "study_0004_mask.nii").touch()
    table = find_studies(root)
    assert table.study.tolist() == STUDIES
    assert table.file[3] == "studies/CT-2/study_0004.nii"
    assert table["mask"].tolist() == ["", "", "", "masks/study_0004_mask.nii", "", ""]
    assert build(root).volumes.shape == (6, *SIZE)
    shutil.copy(root / table.file[3], folder / "STUDY_0004.nii.gz")
    with pytest.raises(CohortError, match=r"STUDY_0004\.nii\.gz, .*study_0004\.nii.*keep one"):
        find_studies(root)


def test_what_is_left_out_is_said_and_what_a_system_wrote_is_not(root):
    for name in ("._study_0001.nii.gz", "desktop.ini", "Thumbs.db", ".DS_Store", "notes.txt"):
        (root / "studies" / "CT-0" / name).write_bytes(b"x")
    assert len(patients(root)) == 6
    (root / "studies" / "other").mkdir()
    shutil.copy(root / "studies/CT-0/study_0001.nii.gz", root / "studies/other/study_0009.nii.gz")
    with pytest.warns(UserWarning, match="left out below studies/, .*: 1 .*study_0009"):
        assert len(find_studies(root)) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_in_latin_1_is_refused_in_one_line(root):
    folder = os.fsencode(root / "studies" / "CT-0")
    os.rename(folder + b"/study_0001.nii.gz", folder + b"/study_M\xfcller.nii.gz")
    with pytest.raises(CohortError, match="cannot be printed; rename it"):
        find_studies(root)


def test_a_copy_is_named_and_is_of_the_same_patient(root):
    folder = root / "studies" / "CT-0"
    shutil.copy(folder / "study_0001.nii.gz", folder / "study_0001 (1).nii.gz")
    for name in ("study_0100.nii.gz", "study_0101.nii.gz"):  # empty ones are refused when read
        (folder / name).touch()
    said = r"copies.*: 1 \(CT-0/study_0001 \(1\).* of CT-0/study_0001\.nii\.gz\).*delete"
    with pytest.warns(UserWarning, match=said):
        table = find_studies(root).set_index("study")
    assert table.patient["study_0001 (1)"] == "study_0001"
    assert table.patient.nunique() == 8


def test_files_of_one_size_are_no_copies_of_one_another(root):
    for number, study in enumerate(STUDIES):
        path = next(root.glob(f"studies/*/{study}.nii.gz"))
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[-1] = number  # alike but for the last byte
        path.unlink()
        path.with_suffix("").write_bytes(content[:100] + bytes(200_000) + content[-1:])
    assert patients(root) == STUDIES


@pytest.mark.parametrize("packed_anew", [False, True])
def test_a_scan_that_is_there_twice_is_not_split(root, packed_anew):
    source = root / "studies" / "CT-0" / "study_0001.nii.gz"
    copy = root / "studies" / "CT-2" / "study_0099.nii.gz"
    content = gzip.decompress(source.read_bytes())
    copy.write_bytes(gzip.compress(content, 1) if packed_anew else source.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error" if packed_anew else "ignore")
        table = label_studies(find_studies(root))
    cache = preprocess_cohort(table, root, root / "cache", SIZE, workers=1)
    table = table.merge(cache.index.drop(columns=["category", "file"]), on="study")
    with pytest.raises(SplitError, match="study_0001 and study_0099 hold the same scan"):
        saved_split(table, root / "split.csv")
    assert not (root / "split.csv").exists()


def test_an_empty_folder_and_a_double_study_are_refused(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError, match="studies/CT-"):
        find_studies(tmp_path / "empty")
    write_study(root / "studies" / "CT-4" / "study_0001.nii.gz", 1)
    with pytest.raises(CohortError, match="CT-0/study_0001.*CT-4/study_0001"):
        find_studies(root)


def test_labels_follow_the_task(root):
    table = find_studies(root)
    assert list(label_studies(table).label) == [0, 0, 0, 1, 1, 1]
    assert list(label_studies(table, {"CT-0": 0, "CT-3": 1}).label) == [0, 0, 0, 1]
    with pytest.raises(CohortError, match="CT-1"):
        label_studies(table, {"CT-0": 0, "CT-1": 1})


def many(n_by_category, studies_per_patient=1):
    lines = [
        {"study": f"{category}-{n}-{k}", "patient": f"{category}-{n}", "category": category}
        for category, n_patients in n_by_category.items()
        for n in range(n_patients)
        for k in range(studies_per_patient)
    ]
    table = pd.DataFrame(lines)
    return table.assign(label=(table.category != "CT-0").astype(int))


def test_split_is_stratified_seeded_and_by_patient():
    table = many({"CT-0": 60, "CT-2": 44, "CT-3": 16}, studies_per_patient=2)
    table["part"] = split_by_patient(table, (0.5, 0.2, 0.3), seed=1)
    assert (table.groupby("patient").part.nunique() == 1).all()
    patients = table.drop_duplicates("patient")
    counts = pd.crosstab(patients.category, patients.part)
    for part, fraction in (("train", 0.5), ("validation", 0.2), ("test", 0.3)):
        for category, n_patients in (("CT-0", 60), ("CT-2", 44), ("CT-3", 16)):
            assert abs(counts.loc[category, part] - fraction * n_patients) <= 1
    again = split_by_patient(table, (0.5, 0.2, 0.3), seed=1)
    other = split_by_patient(table, (0.5, 0.2, 0.3), seed=2)
    assert again.equals(table.part) and not other.equals(table.part)
    shuffled = table.sample(frac=1, random_state=0)
    assert split_by_patient(shuffled, (0.5, 0.2, 0.3), seed=1).sort_index().equals(table.part)


def test_split_is_saved_and_used_again(tmp_path):
    table = many({"CT-0": 10, "CT-2": 10})
    first = saved_split(table, tmp_path / "split.csv", seed=3)
    assert saved_split(table, tmp_path / "split.csv", seed=4).equals(first)
    assert list((tmp_path).iterdir()) == [tmp_path / "split.csv"]
    more = many({"CT-0": 11, "CT-2": 10})
    with pytest.raises(SplitError, match="1 studies.*CT-0-10-0"):
        saved_split(more, tmp_path / "split.csv")
    with pytest.raises(SplitError, match="too few"):
        saved_split(many({"CT-0": 2, "CT-2": 2}), tmp_path / "small.csv")
    assert not (tmp_path / "small.csv").exists()


def test_a_stored_split_is_compared_with_todays_patients(tmp_path):
    table, path = many({"CT-0": 20, "CT-2": 20}), tmp_path / "split.csv"
    parts = saved_split(table, path)
    a, b = (table.study[parts == part].iloc[0] for part in ("train", "test"))
    corrected = table.assign(patient=table.patient.mask(table.study.isin([a, b]), "P7"))
    with pytest.raises(
        SplitError, match=r"csv: has patients in two parts: 1, P7 .*delete it.*train anew"
    ):
        saved_split(corrected, path)
    path.unlink()
    again = saved_split(corrected, path)
    assert again.groupby(corrected.patient).nunique().max() == 1
    # patients that one part holds together do not tear it
    a, b = corrected.study[again == "train"].iloc[:2]
    joined = corrected.assign(patient=corrected.patient.mask(table.study.isin([a, b]), "P8"))
    assert saved_split(joined, path).equals(again)
    assert saved_split(joined.drop(index=0), path).equals(again.drop(index=0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: "", "is no split"),
        (lambda text: text.replace("part", "teil", 1), "is no split"),
        (lambda text: text[: len(text) // 2], "does not know"),
        (
            lambda text: re.sub("test$", "exam", text, count=1, flags=re.M),
            "does not know 1 of ",
        ),
        (lambda text: text + text.splitlines()[1], "is no split"),
    ],
)
def test_a_damaged_split_is_refused_in_one_line(tmp_path, change, reason):
    table, path = many({"CT-0": 20, "CT-2": 20}), tmp_path / "split.csv"
    saved_split(table, path)
    path.write_text(change(path.read_text()))
    with pytest.raises(SplitError, match=reason) as caught:
        saved_split(table, path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_stored_split_whose_part_lost_a_class_is_refused(tmp_path):
    table, path = many({"CT-0": 20, "CT-2": 20}), tmp_path / "split.csv"
    parts = saved_split(table, path)
    is_lost = (parts == "validation") & (table.label == 1)
    with pytest.raises(SplitError, match="no study of one class"):
        saved_split(table[~is_lost], path)


def test_cache_holds_what_preprocess_gives(root):
    cache = build(root)
    assert cache.volumes.dtype == np.uint8 and cache.volumes.shape == (6, *SIZE)
    assert isinstance(cache.volumes, np.memmap)
    for line in cache.index.itertuples():
        np.testing.assert_array_equal(
            cache.volumes[line.row], preprocess_fast(root / line.file, SIZE, (-1000, 400))
        )
    assert list(cache.index.n_slices) == [10] * 6
    assert cache.index.spacing_z.unique() == pytest.approx([8])
    assert len(cache.skipped) == 0


def test_only_what_changed_is_done_again(root, monkeypatch):
    before = build(root)
    calls = count_calls(monkeypatch)
    build(root)
    assert calls == []
    path = root / "studies" / "CT-0" / "study_0002.nii.gz"
    os.utime(path, (1, 1))
    build(root)
    assert calls == [], "a new date on the same bytes is no change"
    write_study(path, 99)
    after = build(root)
    assert [os.path.basename(call) for call in calls] == ["study_0002.nii.gz"]
    assert not np.array_equal(before.volumes[1], after.volumes[1])
    np.testing.assert_array_equal(before.volumes[[0, 2, 3]], after.volumes[[0, 2, 3]])
    build(root, limits=(-1350, 150))
    assert len(calls) == 7, "another window is another cache"


def test_studies_can_come_and_go(root, monkeypatch):
    build(root)
    (root / "studies" / "CT-0" / "study_0001.nii.gz").unlink()
    write_study(root / "studies" / "CT-3" / "study_0007.nii.gz", 7)
    calls = count_calls(monkeypatch)
    cache = build(root)
    assert len(calls) == 1 and list(cache.index.study) == [f"study_{n:04}" for n in range(2, 8)]
    np.testing.assert_array_equal(
        cache.volumes[5], preprocess_fast(root / cache.index.file[5], SIZE)
    )
    assert len(list((root / "cache").glob("*/volumes-*"))) == 1


def test_an_interrupted_call_goes_on_where_it_stopped(root, monkeypatch):
    whole = np.array(build(root).volumes)
    other = root / "again"
    real, calls = _preprocess_one, []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    table = find_studies(root)
    monkeypatch.setattr("helpers.ct.cache._preprocess_one", stops)
    with pytest.raises(KeyboardInterrupt):
        preprocess_cohort(table, root, other, SIZE, workers=1)
    assert not list(other.glob("*/volumes-*")) and not list(other.glob("*/index.csv"))
    cache = preprocess_cohort(table, root, other, SIZE, workers=1)
    assert len(calls) == 4 + 3
    np.testing.assert_array_equal(cache.volumes, whole)
    assert sorted(path.name[:7] for path in other.glob("*/*")) == ["index.c", "volumes"]


def test_bad_studies_are_all_listed_or_left_out_when_asked(root):
    for number, category in ((2, "CT-0"), (4, "CT-2")):
        path = root / "studies" / category / f"study_{number:04}.nii.gz"
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CohortError) as caught:
        build(root)
    message = str(caught.value)
    assert "2 of 6" in message and "study_0002" in message and "study_0004" in message
    cache = build(root, on_error="skip")
    assert list(cache.skipped.study) == ["study_0002", "study_0004"]
    assert len(cache.volumes) == 4 and list(cache.index.row) == [0, 1, 2, 3]
    np.testing.assert_array_equal(
        cache.volumes[1], preprocess_fast(root / cache.index.file[1], SIZE)
    )


def test_any_executor_gives_the_same_cache(root):
    alone = build(root)
    table = find_studies(root)
    with ThreadPoolExecutor(2) as threads:
        cache = preprocess_cohort(table, root, root / "b", SIZE, executor=threads)
    np.testing.assert_array_equal(alone.volumes, cache.volumes)
    cache = preprocess_cohort(table, root, root / "c", SIZE, workers=2)
    np.testing.assert_array_equal(alone.volumes, cache.volumes)


def test_calls_at_the_same_moment_end_with_one_cache(root):
    table = find_studies(root)
    for attempt in range(10):
        folder = root / f"attempt {attempt}"
        with ThreadPoolExecutor(4) as threads:
            jobs = [
                threads.submit(preprocess_cohort, table, root, folder, SIZE, workers=1)
                for _ in range(4)
            ]
        caches = [job.result() for job in jobs]
        assert all(len(cache.volumes) == len(table) for cache in caches)
        assert len(list(folder.glob("*/*volumes-*"))) == 1


def test_a_killed_process_leaves_a_usable_folder(root):
    code = f"""
        import os, signal, threading, time
        from pathlib import Path
        from helpers.ct import cache, cohort
        real = cache.write_whole
        def slow(path, write):
            real(path, write)
            if path.name == "study_0003.json":
                os.kill(os.getpid(), signal.SIGKILL)
        cache.write_whole = slow
        root = Path({str(root)!r})
        table = cohort.find_studies(root)
        cache.preprocess_cohort(table, root, root / "cache", {SIZE}, workers=1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -9
    cache = build(root)
    for line in cache.index.itertuples():
        np.testing.assert_array_equal(
            cache.volumes[line.row], preprocess_fast(root / line.file, SIZE)
        )


def test_real_studies_make_a_cohort(real_data, tmp_path):
    for number, path in enumerate(sorted((real_data / "volumes").glob("*.nii.gz")), start=1):
        folder = tmp_path / "studies" / ("CT-2" if "covid_" in path.name else "CT-0")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"study_{number:04}.nii.gz").symlink_to(path)
    cache = preprocess_cohort(find_studies(tmp_path), tmp_path, tmp_path / "cache", (32, 96, 96))
    assert cache.volumes.shape == (8, 32, 96, 96) and len(cache.skipped) == 0
    assert (cache.volumes.reshape(8, -1).std(axis=1) > 40).all()


def test_two_tasks_take_turns_without_preprocessing_again(root, monkeypatch):
    calls = count_calls(monkeypatch)
    table = find_studies(root)
    tasks = [label_studies(table, {"CT-0": 0, category: 1}) for category in ("CT-2", "CT-3")]
    first = [preprocess_cohort(task, root, root / "cache", SIZE, workers=1) for task in tasks]
    n_done, held = len(calls), first[1].volumes.copy()
    assert n_done == len({*tasks[0].study, *tasks[1].study}) == len(held)
    for _ in range(2):
        for task, before in zip(tasks, first, strict=True):
            cache = preprocess_cohort(task, root, root / "cache", SIZE, workers=1)
            assert cache.index.study.tolist() == task.study.tolist()
            assert cache.index.row.tolist() == before.index.row.tolist()
            np.testing.assert_array_equal(cache.volumes, held)
    assert len(calls) == n_done
    for line in cache.index.itertuples():
        alone = preprocess_fast(root / line.file, SIZE)
        np.testing.assert_array_equal(cache.volumes[line.row], alone)


def test_a_study_that_is_gone_leaves_the_cache_too(root):
    table = find_studies(root)
    before = preprocess_cohort(table, root, root / "cache", SIZE, workers=1)
    gone = table[table.category == "CT-0"].iloc[0]
    (root / gone.file).unlink()
    cache = preprocess_cohort(
        table[table.category != "CT-0"], root, root / "cache", SIZE, workers=1
    )
    assert len(cache.volumes) == len(before.volumes) - 1
    assert gone.study not in cache.index.study.tolist()


@contextmanager
def read_only(folder):
    """Nothing in `folder` can be written; for root as for anybody else."""
    real = {name: getattr(os, name) for name in ("mkdir", "open", "replace", "unlink")}

    def refuse(name):
        def call(path, *arguments, **options):
            is_inside = str(folder) in str(path)
            if is_inside and (name != "open" or arguments[0] & (os.O_WRONLY | os.O_RDWR)):
                raise OSError(30, "Read-only file system", str(path))
            return real[name](path, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in real:
            patch.setattr(os, name, refuse(name))
        yield


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_complete_cache_is_used_as_it_is_and_not_written_to(root):
    before = build(root)
    held = contents(root / "cache")
    with read_only(root):
        after = build(root)
        task = find_studies(root).iloc[[3, 0]]
        some = preprocess_cohort(task, root, root / "cache", SIZE)
    np.testing.assert_array_equal(before.volumes, after.volumes)
    pd.testing.assert_frame_equal(before.index, after.index)
    assert some.index.study.tolist() == task.study.tolist() and len(after.skipped) == 0
    assert contents(root / "cache") == held


def test_an_incomplete_cache_that_cannot_be_written_is_one_line(root):
    table = find_studies(root)
    preprocess_cohort(table[:4], root, root / "cache", SIZE, workers=1)
    with read_only(root), pytest.raises(WriteError, match="cannot be written.*another folder") as e:
        build(root)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("damage", ["index", "array", "both"])
def test_a_damaged_cache_is_made_anew(root, damage):
    whole = np.array(build(root).volumes)
    for path in root.glob("cache/*/*"):
        if damage in ("both", "index" if path.suffix == ".csv" else "array"):
            path.write_bytes(path.read_bytes()[:10])
    np.testing.assert_array_equal(build(root).volumes, whole)


def test_a_home_folder_is_expanded(root, monkeypatch, tmp_path):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    table = label_studies(find_studies("~/cohort"))
    cache = preprocess_cohort(table, "~/cohort", "~/cache", SIZE, workers=1)
    assert len(cache.volumes) == 6
    saved_split(many({"CT-0": 20, "CT-2": 20}), "~/split.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"cohort", "cache", "split.csv"}


def kill_one_worker(folder):
    """Kill a child of this process as soon as a study is done, as a system without memory does."""
    own = psutil.Process()
    while not list(folder.glob("*/rows/*.json")):
        time.sleep(0.005)
    next(child for child in own.children() if "spawn_main" in " ".join(child.cmdline())).kill()


def test_a_killed_worker_is_one_line_and_what_is_done_is_kept(root, monkeypatch):
    for number in range(10, 120):
        write_study(root / "studies" / "CT-1" / f"study_{number:04}.nii.gz", number)
    table, folder = find_studies(root), root / "cache"
    threading.Thread(target=kill_one_worker, args=(folder,), daemon=True).start()
    with pytest.raises(CohortError, match="memory ran out; .*workers=1.* are kept") as caught:
        preprocess_cohort(table, root, folder, (32, 96, 96), workers=2)
    assert len(str(caught.value).splitlines()) == 1
    n_kept = int(re.search(r"studies that are kept: (\d+)", str(caught.value))[1])
    calls = count_calls(monkeypatch)
    preprocess_cohort(table, root, folder, (32, 96, 96), workers=1)
    assert 0 < n_kept == len(table) - len(calls)


def test_a_pool_of_the_callers_own_fails_as_it_does(root):
    class Broken:
        def submit(self, *_):
            job = Future()
            job.set_exception(BrokenProcessPool("a process is gone"))
            return job

    with pytest.raises(BrokenProcessPool, match="a process is gone"):
        preprocess_cohort(find_studies(root), root, root / "cache", SIZE, executor=Broken())


@pytest.mark.parametrize(("asked", "started"), [(None, 3), (2, 2)])
def test_as_many_processes_as_cores_may_be_used(root, monkeypatch, asked, started):
    """Of a machine of 16 cores this process may use three."""
    seen = []

    def start(n):
        seen.append(n)
        return start_workers(1)

    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(cache_module, "start_workers", start)
    preprocess_cohort(find_studies(root), root, root / "cache", SIZE, workers=asked)
    assert seen == [started]


def test_other_voxels_in_a_file_of_the_same_size_are_preprocessed_anew(root):
    path = root / "studies" / "CT-2" / "study_0009.nii"
    write_study(path, 9)
    before, size = build(root), path.stat().st_size
    write_study(path, 10)
    os.utime(path, ns=(1, 1))
    after = build(root)
    assert path.stat().st_size == size
    for cache, is_new in ((before, False), (after, True)):
        row = int(cache.index.set_index("study").row["study_0009"])
        same = np.array_equal(cache.volumes[row], preprocess_fast(path, SIZE))
        assert same == is_new
    others = before.index.study != "study_0009"
    np.testing.assert_array_equal(
        before.volumes[before.index.row[others]], after.volumes[after.index.row[others]]
    )


@pytest.mark.parametrize("limits", [(-1000, 200), (-900, 400)])
def test_another_window_is_another_cache(root, limits):
    usual, other = build(root), build(root, limits=limits)
    for cache, window in ((usual, (-1000, 400)), (other, limits)):
        for line in cache.index.itertuples():
            expected = preprocess_fast(root / line.file, SIZE, window)
            np.testing.assert_array_equal(cache.volumes[line.row], expected)
