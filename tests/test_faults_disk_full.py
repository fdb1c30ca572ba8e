"""A full disk: one clear line, and what was there before is as it was.

The disk is a tmpfs of 8 MB, which only root can mount; skipped, saying so, elsewhere.
"""

from __future__ import annotations

import errno
import gzip
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fault_marks import FULL
from local_server import LocalServer
from PIL import Image
from test_faults_interruptions import files

from helpers.course import runs
from helpers.ct import cohort, mosmed
from helpers.ct.cache import preprocess_cohort
from helpers.figures import gifs
from helpers.learn import checkpoints
from helpers.phantom import covidct_twin, simulate
from helpers.storage import archives, downloads, mirror
from helpers.storage.files import write_whole

pytestmark = FULL()
MEGABYTE = 1 << 20


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no small disk could be mounted: that needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk, left=0):
    """Leave room for so many bytes."""
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(file.tell() - left)


def rng():
    return np.random.default_rng(0)


class Downloading:
    """A file whose length the server does not tell."""

    def __init__(self, disk, tmp_path):
        self.path, self.content = disk / "new" / "a.gz", b"\x1f\x8b" + rng().bytes(2 * MEGABYTE)
        self.server = LocalServer()
        self.server.files["a.gz"] = self.content

    def __call__(self):
        self.server.faults["a.gz"] = [{"chunked": True}] * 3
        downloads.download(f"{self.server.url}/a.gz", self.path, attempts=2)
        assert self.path.read_bytes() == self.content


class Unpacking:
    """Room vanishes while it is unpacked."""

    def __init__(self, disk, tmp_path):
        self.target, self.archive = disk / "out", tmp_path / "a.zip"
        self.members = {f"{k}": rng().bytes(MEGABYTE // 2) for k in range(4)}
        with zipfile.ZipFile(self.archive, "w") as packed:
            for name, content in self.members.items():
                packed.writestr(name, content)

    def __call__(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(archives, "check_space", lambda *_: None)
            archives.unpack_zip(self.archive, self.target)
        assert files(self.target) == self.members


class MosMed:
    """Its studies and its note on what is unpacked."""

    def __init__(self, disk, tmp_path):
        self.root = disk / "mosmed"
        self.root.mkdir()
        with zipfile.ZipFile(self.root / "full.zip", "w") as packed:
            for name in mosmed.catalogue().file:
                packed.writestr(name, gzip.compress(b"x"))

    def __call__(self):
        mosmed.download(self.root, "full")
        assert len(json.loads((self.root / mosmed.MARKER).read_text())["full.zip"]) == 1110


class Preprocessing:
    def __init__(self, disk, tmp_path):
        self.root, self.cache = tmp_path / "cohort", disk / "cache"
        simulate.make_cohort(self.root, {"CT-0": 2, "CT-3": 2}, 64, workers=1, n_slices=8)
        self.build(tmp_path / "whole")
        self.whole = files(tmp_path / "whole")

    def build(self, cache):
        table = cohort.find_studies(self.root)
        preprocess_cohort(table, self.root, cache, (8, 160, 160), workers=1)

    def __call__(self):
        self.build(self.cache)
        assert files(self.cache) == self.whole


class Checkpoint:
    def __init__(self, disk, tmp_path):
        self.folder, self.net = disk / "run", torch.nn.Linear(300, 300)
        self.parts = {"model": self.net, "optimizer": torch.optim.SGD(self.net.parameters())}
        self.parts["scaler"] = torch.amp.GradScaler("cuda", enabled=False)
        self.save(1)

    def save(self, n):
        history = [{"epoch": k + 1, "train_loss": 1.0 / (k + 1)} for k in range(n)]
        checkpoints.save_run(self.folder, {}, self.parts, history)

    def __call__(self):
        self.save(2)
        assert checkpoints.read_checkpoint(self.folder / "last.pt")["epoch"] == 2


class Results:
    def __init__(self, disk, tmp_path):
        self.runs = disk / "runs"
        runs.save_results("06", {"a": 1}, self.runs)

    def __call__(self):
        runs.save_results("06", {"a": list(range(100_000))}, self.runs)


class Array:
    def __init__(self, disk, tmp_path):
        self.path = disk / "a.npy"
        write_whole(self.path, lambda file: np.save(file, np.zeros(9)))

    def __call__(self):
        write_whole(self.path, lambda file: np.save(file, np.zeros(100_000)))
        assert np.load(self.path).shape == (100_000,)


class Table(Array):
    def __call__(self):
        table = pd.DataFrame({"a": range(100_000)})
        write_whole(self.path, lambda file: table.to_csv(file, index=False))


class Gif:
    def __init__(self, disk, tmp_path):
        self.path = disk / "a.gif"
        gifs.save_gif(np.zeros((2, 8, 8), np.uint8), self.path, size=16)

    def __call__(self):
        noise = rng().integers(0, 255, (9, 256, 256), dtype=np.uint8)
        gifs.save_gif(noise, self.path, size=256)
        with Image.open(self.path) as picture:
            assert picture.n_frames == 9


class Phantom:
    def __init__(self, disk, tmp_path):
        self.root = disk / "phantom"

    def __call__(self):
        simulate.make_cohort(self.root, {"CT-0": 1, "CT-3": 1}, 128, workers=1, n_slices=12)
        assert len(cohort.find_studies(self.root)) == 2


class PhantomByWorkers(Phantom):
    def __call__(self):
        simulate.make_cohort(self.root, {"CT-0": 1, "CT-3": 1}, 128, workers=2, n_slices=12)


class Twin:
    def __init__(self, disk, tmp_path):
        self.root = disk / "twin"
        self.whole = covidct_twin.make_twin(tmp_path / "twin", 20, 20, matrix=64, workers=1)

    def __call__(self):
        covidct_twin.make_twin(self.root, 20, 20, matrix=64, workers=1)
        assert files(self.root) == files(self.whole)


class Keeping:
    def __init__(self, disk, tmp_path):
        self.folder, self.drive = tmp_path / "folder", disk / "drive"
        self.folder.mkdir()
        (self.folder / "a").write_bytes(b"a")
        mirror.keep(self.folder, self.drive)
        (self.folder / "b").write_bytes(rng().bytes(MEGABYTE))

    def __call__(self):
        mirror.keep(self.folder, self.drive)


class Restoring(Keeping):
    def __init__(self, disk, tmp_path):
        super().__init__(tmp_path, tmp_path)
        mirror.keep(self.folder, self.drive)
        self.target = disk / "folder"

    def __call__(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mirror, "check_space", lambda *_: None)
            mirror.restore(self.target, self.drive)
        assert files(self.target) == files(self.folder)


class Split:
    def __init__(self, disk, tmp_path):
        self.path = disk / "split.csv"
        studies = [f"study_{k:04}" for k in range(1000)]
        self.table = pd.DataFrame({"study": studies, "patient": studies, "category": "CT-0"})
        self.table["label"] = np.arange(1000) % 2

    def __call__(self):
        cohort.saved_split(self.table, self.path)


JOBS = [Downloading, Unpacking, MosMed, Preprocessing, Checkpoint, Results, Array, Table, Gif]
JOBS += [Phantom, PhantomByWorkers, Twin, Keeping, Restoring, Split]


@pytest.mark.parametrize("left", [0, 40_000])
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_a_full_disk_is_one_line_and_costs_nothing(job, left, disk, tmp_path):
    work = job(disk, tmp_path)
    before = files(disk)
    fill(disk, min(left, 4096) if job in (Results, Split) else left)
    with pytest.raises((OSError, RuntimeError)) as caught:
        work()
    error = caught.value
    assert type(error).__module__.startswith("helpers."), repr(error)
    message = str(error)
    assert len(message.splitlines()) == 1 and str(disk) in message, message
    assert "room" in message or "No space left" in message
    (disk / "filler").unlink()
    now = files(disk)
    assert {name: now.get(name) for name in before} == before
    work()
    shown = [path.name for path in Path(disk).rglob("*.part*") if job is not Downloading]
    assert not shown, "temporary files stay"
