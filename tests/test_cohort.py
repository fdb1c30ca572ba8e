"""Listing, labels, splits and the cache of preprocessed volumes."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

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


def test_registry_names_the_patients(root):
    pd.DataFrame({"study_id": ["study_0001", "study_0002"], "patient_id": ["p7", "p7"]}).to_excel(
        root / "dataset_registry.xlsx", index=False
    )
    assert list(find_studies(root).patient)[:3] == ["p7", "p7", "study_0003"]


def test_an_empty_folder_and_a_double_study_are_refused(root, tmp_path):
    with pytest.raises(CohortError, match="studies/CT-"):
        find_studies(tmp_path)
    write_study(root / "studies" / "CT-4" / "study_0001.nii.gz", 1)
    with pytest.raises(CohortError, match="study_0001"):
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
