"""Work that is killed in the middle, and how it is started, killed and finished.

Each job runs in a process of its own, forked from a server that has the libraries loaded: that
takes a twentieth of a second instead of three.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("TQDM_DISABLE", "1")
# torch._dynamo: the first optimizer imports it
LIBRARIES = ["torch", "torch._dynamo", "sklearn.metrics", "pooch", "requests", "openpyxl"]
LIBRARIES += [
    "helpers.learn.training",
    "helpers.learn.networks",
    "helpers.ct.cohort",
    "helpers.storage.mirror",
]
LIBRARIES += ["helpers.ct.mosmed", "helpers.course.sources", "helpers.phantom.simulate"]
SIZE = (8, 32, 32)
TRAIN, VALIDATION, LABELS = np.arange(0, 10), np.arange(10, 16), np.arange(16) % 2


def download(url, path, size):
    from helpers.storage import downloads

    downloads.FIRST_PAUSE = 0.01
    downloads.download(url, path, size=size)


def unpack(archive, folder):
    from helpers.storage import archives

    archives.unpack_zip(archive, folder)


def preprocess(root, cache):
    from helpers.ct import cohort
    from helpers.ct.cache import preprocess_cohort

    preprocess_cohort(cohort.find_studies(root), root, cache, SIZE, workers=1)


def train(volumes, folder, epochs=5):
    import torch

    from helpers.learn import networks, training

    torch.set_num_threads(1)
    torch.manual_seed(0)
    # 4 MB a checkpoint, so that much of the time it is being written
    model = networks.BiLSTMClassifier(networks.SliceEncoder(width=8), 16, hidden=256)
    scans = np.load(volumes, mmap_mode="r")
    options = {"epochs": epochs, "batch_size": 5, "device": "cpu"}
    training.fit(model, scans, LABELS, TRAIN, VALIDATION, folder, **options)


def save_results(folder):
    """Results and tables, written again and again."""
    import pandas as pd

    from helpers.course import runs
    from helpers.storage.files import write_whole

    table = pd.DataFrame({"study": range(4000)})
    for number in range(40):
        runs.save_results("06", {"values": [number] * 20_000}, folder)
        lines = table.assign(value=number)
        write_whole(Path(folder) / "table.csv", lambda file, t=lines: t.to_csv(file, index=False))


def keep(folder, drive):
    from helpers.storage import mirror

    mirror.keep(folder, drive)


def restore(folder, drive):
    from helpers.storage import mirror

    mirror.restore(folder, drive)


def make_phantom(root, workers):
    from helpers.phantom import simulate

    simulate.make_cohort(root, {"CT-0": 3, "CT-3": 3}, 32, workers=workers, n_slices=8)


def _begin(pipe, job, arguments):
    pipe.send("begun")
    job(*arguments)
    pipe.send("done")


class Killer:
    """Runs jobs to their end, or kills them (kill -9) at a moment that the case's number gives."""

    def __init__(self):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(LIBRARIES)

    def start(self, job, *arguments):
        """The process and its end of a pipe, at the moment the job begins."""
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_begin, args=(theirs, job, arguments), daemon=True)
        process.start()
        theirs.close()
        assert ours.poll(120) and ours.recv() == "begun"
        return process, ours

    def finish(self, job, *arguments):
        """Run the job unbroken; returns the seconds it took."""
        process, pipe = self.start(job, *arguments)
        started = time.perf_counter()
        assert pipe.poll(300) and pipe.recv() == "done"
        seconds = time.perf_counter() - started
        process.join()
        return seconds

    def kill(self, share, seconds, job, *arguments):
        """Kill the job after a share of the time it takes; True unless it was over before."""
        process, pipe = self.start(job, *arguments)
        time.sleep(share * seconds)
        process.kill()
        process.join()
        pipe.close()
        return process.exitcode < 0


def shares(n=15, seed=2020):
    """Moments in (0, 1): one at random in each n-th."""
    rng = random.Random(seed)
    return [round((k + rng.random()) / n, 4) for k in range(n)]


def read_results(folder):
    return json.loads((Path(folder) / "06" / "results.json").read_text())["values"]
