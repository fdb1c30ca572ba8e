"""kill -9 at any moment: the next run finishes, and nothing shows that there was another."""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from pathlib import Path

import interrupted
import numpy as np
import pandas as pd
import pytest
import torch
from interrupted import shares
from local_server import LocalServer

from helpers.phantom import simulate
from helpers.storage import mirror
from helpers.storage.downloads import file_size

pytestmark = pytest.mark.usefixtures("killer")
moments = pytest.mark.parametrize("share", shares())
CONTENT = b"PK" + random.Random(0).randbytes(3_000_000)
NAMES = [f"CT-{k % 2}/study_{k:04}.nii.gz" for k in range(40)]


def killed(name):
    return pytest.mark.faults("Interruptions", f"kill -9 while {name}")


def kill_in(folder, killer, share, seconds, job, *arguments):
    """Kill the job in the middle; begin again, earlier, where it was over before."""
    for _ in range(8):
        if killer.kill(share, seconds, job, *arguments):
            return
        shutil.rmtree(folder)
        share *= 0.8
    raise AssertionError("it is always over too soon")


def files(folder):
    """Name -> contents of all files but temporary ones and locks."""
    found = {p.relative_to(folder).as_posix(): p for p in Path(folder).rglob("*") if p.is_file()}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if not mirror.TEMPORARY.fullmatch(path.name) and path.name != mirror.MANIFEST
    }


@pytest.fixture(scope="module")
def server():
    site = LocalServer()
    site.files["a.zip"] = CONTENT
    yield site
    site.close()


@pytest.fixture(scope="module")
def download_seconds(server, killer, tmp_path_factory):
    server.pace = 0.004
    arguments = f"{server.url}/a.zip", tmp_path_factory.mktemp("whole") / "a.zip", len(CONTENT)
    killer.finish(interrupted.download, *arguments)
    return killer.finish(interrupted.download, arguments[0], arguments[1].with_name("b.zip"), None)


@killed("a file is downloaded")
@moments
def test_a_killed_download_goes_on(share, server, download_seconds, killer, tmp_path):
    path = tmp_path / "data" / "a.zip"
    arguments = f"{server.url}/a.zip", path, len(CONTENT)
    server.pace = 0.004
    kill_in(path.parent, killer, share, download_seconds, interrupted.download, *arguments)
    assert not path.exists() or path.read_bytes() == CONTENT
    part, note = path.with_name("a.zip.part"), path.with_name("a.zip.part.validator")
    got = file_size(part)
    assert part.read_bytes() == CONTENT[: file_size(part)] if part.exists() else True
    is_there = path.exists()
    server.pace = 0
    server.requests.clear()
    interrupted.download(*arguments)
    assert path.read_bytes() == CONTENT
    if is_there or got == len(CONTENT):
        assert not server.requests, "fetched again"
    else:
        assert server.requests == [("a.zip", f"bytes={got}-" if got else None)]
    assert {name.name for name in path.parent.iterdir()} <= {"a.zip", ".a.zip.lock", note.name}


@pytest.fixture(scope="module")
def archive(killer, tmp_path_factory):
    """An archive, what is in it, and the seconds that unpacking it takes."""
    rng, folder = random.Random(1), tmp_path_factory.mktemp("archive")
    members = {name: rng.randbytes(400_000) for name in NAMES}
    with zipfile.ZipFile(folder / "a.zip", "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    killer.finish(interrupted.unpack, folder / "a.zip", folder / "warm")
    seconds = killer.finish(interrupted.unpack, folder / "a.zip", folder / "whole")
    return folder / "a.zip", members, seconds


@killed("an archive is unpacked")
@moments
def test_killed_unpacking_goes_on(share, archive, killer, tmp_path):
    path, members, seconds = archive
    target = tmp_path / "out"
    kill_in(target, killer, share, seconds, interrupted.unpack, path, target)
    for name, content in files(target).items():
        assert content == members[name]
    interrupted.unpack(path, target)
    assert files(target) == members


@pytest.fixture(scope="module")
def studies(killer, tmp_path_factory):
    """A cohort, the files of its cache, and the seconds that it takes to make."""
    root = tmp_path_factory.mktemp("cohort")
    simulate.make_cohort(root, {"CT-0": 6, "CT-3": 6}, 64, workers=1, n_slices=16)
    killer.finish(interrupted.preprocess, root, root / "warm")
    seconds = killer.finish(interrupted.preprocess, root, root / "cache")
    return root, files(root / "cache"), seconds


@killed("a cohort is preprocessed")
@moments
def test_killed_preprocessing_ends_with_the_same_cache(share, studies, killer, tmp_path):
    root, expected, seconds = studies
    cache = tmp_path / "cache"
    kill_in(cache, killer, share, seconds, interrupted.preprocess, root, cache)
    interrupted.preprocess(root, cache)
    assert files(cache) == expected
    interrupted.preprocess(root, cache)
    assert files(cache) == expected


def without_seconds(path):
    """A table as text, without the times."""
    return pd.read_csv(path, dtype=str).drop(columns="seconds")


def assert_same_run(one, other):
    """Same history, weights and optimizer, to the last bit."""
    pd.testing.assert_frame_equal(
        without_seconds(one / "history.csv"), without_seconds(other / "history.csv")
    )
    for name in ("last.pt", "best.pt"):
        states = [torch.load(folder / name, weights_only=True) for folder in (one, other)]
        for state in states:
            state["history"] = [
                {k: v for k, v in row.items() if k != "seconds"} for row in state["history"]
            ]
        texts = []
        for state in states:
            tensors = [*state["model"].values()]
            for moments_of_one in state["optimizer"]["state"].values():
                tensors += moments_of_one.values()
            texts.append([tensor.numpy().tobytes() for tensor in tensors])
        assert texts[0] == texts[1]
        assert states[0]["history"] == states[1]["history"]
        assert states[0]["settings"] == states[1]["settings"]


@pytest.fixture(scope="module")
def run(killer, tmp_path_factory):
    """Scans, an unbroken training run on them, and its seconds."""
    folder = tmp_path_factory.mktemp("training")
    scans = np.random.default_rng(0).integers(0, 60, size=(16, 6, 16, 16), dtype=np.uint8)
    scans[1::2, 2:4, 4:12, 4:12] += 120
    np.save(folder / "volumes.npy", scans)
    killer.finish(interrupted.train, folder / "volumes.npy", folder / "warm")
    seconds = killer.finish(interrupted.train, folder / "volumes.npy", folder / "whole")
    assert_same_run(folder / "warm", folder / "whole")
    return folder / "volumes.npy", folder / "whole", seconds


@killed("a network is trained")
@moments
def test_killed_training_is_resumed_to_the_same_history(share, run, killer, tmp_path):
    volumes, whole, seconds = run
    folder = tmp_path / "run"
    folder.mkdir()
    kill_in(folder, killer, share, seconds, interrupted.train, volumes, folder)
    killer.finish(interrupted.train, volumes, folder)
    assert_same_run(folder, whole)


@pytest.fixture(scope="module")
def results_seconds(killer, tmp_path_factory):
    return killer.finish(interrupted.save_results, tmp_path_factory.mktemp("results"))


@killed("results.json and tables are written")
@moments
def test_killed_results_are_the_old_or_the_new_ones(share, results_seconds, killer, tmp_path):
    interrupted.save_results(tmp_path)
    killer.kill(share, results_seconds, interrupted.save_results, tmp_path)
    values = interrupted.read_results(tmp_path)
    assert len(values) == 20_000 and len(set(values)) == 1
    table = pd.read_csv(tmp_path / "table.csv")
    assert len(table) == 4000 and table.value.nunique() == 1


@pytest.fixture(scope="module")
def mirrored(killer, tmp_path_factory):
    """A folder, its mirror, and the seconds that it takes to keep and to restore it."""
    root = tmp_path_factory.mktemp("mirrored")
    for name in NAMES:
        path = root / "cohort" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(400_000))
    for drive in ("warm", "drive"):
        kept = killer.finish(interrupted.keep, root / "cohort", root / drive)
    for copy in ("warm-copy", "copy"):
        target = root / copy / "cohort"
        restored = killer.finish(interrupted.restore, target, root / "drive")
    assert files(target) == files(root / "cohort")
    return root, kept, restored


@killed("a folder is copied to its mirror, or back")
@moments
def test_a_killed_copy_to_the_mirror_is_made_again(share, mirrored, killer, tmp_path):
    root, seconds, _ = mirrored
    drive = tmp_path / "drive"
    drive.mkdir()
    kill_in(drive, killer, share, seconds, interrupted.keep, root / "cohort", drive)
    drive.mkdir(exist_ok=True)
    archives = [path for path in drive.iterdir() if not path.name.startswith(".")]
    assert not archives or archives[0].stat().st_size == (root / "drive/cohort.tar").stat().st_size
    mirror.keep(root / "cohort", drive)
    mirror.restore(tmp_path / "copy" / "cohort", drive)
    assert files(tmp_path / "copy" / "cohort") == files(root / "cohort")


@killed("a folder is copied to its mirror, or back")
@moments
def test_a_killed_copy_back_is_made_again(share, mirrored, killer, tmp_path):
    root, _, seconds = mirrored
    target = tmp_path / "copy" / "cohort"
    target.parent.mkdir()
    kill_in(target.parent, killer, share, seconds, interrupted.restore, target, root / "drive")
    assert not target.exists() or files(target) == files(root / "cohort")
    mirror.restore(target, root / "drive")
    assert files(target) == files(root / "cohort")
