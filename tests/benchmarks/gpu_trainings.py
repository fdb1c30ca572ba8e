"""The trainings of the GPU benchmark: several at once, each in a process, whole runs of the course.

Every function named in JOBS trains one network and returns plain numbers: it is what a worker
process does. They share files in one folder: the phantom's volumes and features, the packed images.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from helpers.course import images
from helpers.learn import features, moco
from helpers.learn.networks import BiLSTMClassifier, SmallCNN
from helpers.storage.processes import start_workers
from tests.benchmarks import gpu_data


@dataclass(frozen=True)
class Sizes:
    """How long everything is trained; `tiny` only shows that it runs."""

    folds: int
    scans: dict  # epochs of each way to get the slices' features
    seeds: tuple
    splits: tuple
    images: dict  # epochs of each network; {} for those of its recipe
    moco_epochs: int
    moco_batch: int


FULL = Sizes(
    5,
    {"frozen": 20, "scratch": 20, "finetuned": 4},
    (0, 1, 2),
    ("official", "clean"),
    {},
    moco_epochs=100,
    moco_batch=64,
)
TINY = Sizes(
    2,
    {"frozen": 2, "scratch": 1, "finetuned": 1},
    (0,),
    ("official",),
    {"small": 1, "densenet169": 1, "lite0": 1},
    moco_epochs=1,
    moco_batch=8,
)


def deterministic():
    """Ask torch for the same result every time, as far as it can."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False


def train_scans(folder, profile, sizes, way, fold, seed):
    """Predict one fold of the phantom cohort by a network that was trained on the others."""
    volumes, labels = gpu_data.load_phantoms(folder)
    fold_of = features.folds(labels, np.arange(len(labels)), sizes.folds)
    options = {"epochs": sizes.scans[way], "batch_size": 4}
    data = volumes
    if way == "frozen":
        data = np.load(folder / "features.npy")
        options |= {"batch_size": 16, "learning_rate": 1e-3}
    elif way == "finetuned":
        options["learning_rate"] = 2e-4
    encoder = {"frozen": data.shape[-1], "scratch": "small", "finetuned": "imagenet"}[way]
    started = time.perf_counter()

    def make_model(seed, fold):
        torch.manual_seed(seed)
        return BiLSTMClassifier(encoder)

    _, probability = features.train_fold(
        make_model,
        *(data, labels, fold_of, fold, folder / f"{way}-{fold}-{seed}", seed),
        **options,
    )
    return {
        "seconds": time.perf_counter() - started,
        "epochs": options["epochs"],
        "rows": np.flatnonzero(fold_of == fold).tolist(),
        "labels": labels[fold_of == fold].tolist(),
        "probability": probability.round(6).tolist(),
        "peak_gb": peak_gb(),
    }


def train_images(folder, profile, sizes, network, start, split, seed, recipe="course"):
    """Train one network on the images; its answers for all of them, and for the external ones."""
    held = read_images(folder, profile)
    options = {"epochs": sizes.images[network]} if sizes.images else {}
    weights = None
    if start == "moco":
        weights = torch.load(folder / "moco.pt", weights_only=True)
    elif network == "lite0":
        recipe = "fine-tuning"
    started = time.perf_counter()
    model, history = images.train(
        *(held.data, network, recipe, split, seed, folder / "runs", weights, start), **options
    )
    return {
        "seconds": time.perf_counter() - started,
        "epochs": len(history),
        "probability": images.probabilities(held.data, model).round(6).tolist(),
        "external": images.probabilities(held.data, model, held.external).round(6).tolist(),
        "peak_gb": peak_gb(),
    }


def pretrain(folder, profile, sizes):
    """MoCo on all slices without labels and the images that both splits train on."""
    held = read_images(folder, profile)
    pool = np.concatenate([held.slices, held.data.images[held.data.rows_for_pretraining()]])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = SmallCNN(held.data.profile.width)
    started = time.perf_counter()
    history = moco.pretrain(
        *(encoder, pool, folder / "moco", sizes.moco_epochs, sizes.moco_batch),
    )
    seconds = time.perf_counter() - started
    torch.save({name: w.cpu() for name, w in encoder.state_dict().items()}, folder / "moco.pt")
    found = {"seconds": seconds, "epochs": len(history), "n_slices": len(pool)}
    return found | {"history": history.round(4).to_dict("list"), "peak_gb": peak_gb()}


def probe(folder, profile, sizes, split):
    """Frozen features of ImageNet and a logistic regression."""
    held = read_images(folder, profile)
    started = time.perf_counter()
    probability, model = images.probe(held.data, split)
    external = []
    if len(held.external):
        external = model.predict_proba(images.frozen_features(held.external))[:, 1]
    return {
        "seconds": time.perf_counter() - started,
        "epochs": 0,
        "probability": probability.round(6).tolist(),
        "external": np.round(external, 6).tolist(),
    }


def read_images(folder, profile):
    packed = folder / "images.zip"
    return gpu_data.unpack(packed, profile) if packed.exists() else gpu_data.twin(profile, folder)


def peak_gb():
    """The most GPU memory that this process' tensors have taken since its last answer, in GB."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


JOBS = {"scans": train_scans, "images": train_images, "moco": pretrain, "probe": probe}


def scan_jobs(sizes):
    """(kind, arguments) of every training on scans, the first seed of each way first."""
    first, *others = sizes.seeds
    ways = {"frozen": sizes.seeds, "scratch": [first], "finetuned": [first]}
    found = [
        ("scans", {"way": way, "fold": fold, "seed": seed})
        for way, seeds in ways.items()
        for fold in range(sizes.folds)
        for seed in seeds
    ]
    return sorted(found, key=lambda job: job[1]["seed"] in others)


def image_jobs(sizes):
    """(kind, arguments) of everything on images; what begins with MoCo's weights comes after it."""
    found = [("moco", {})]
    found += [("probe", {"split": split}) for split in images.SPLITS]
    from_scratch = [("densenet169", "random"), ("small", "random")]
    for network, start in [("lite0", "imagenet"), *from_scratch, ("small", "moco")]:
        for split in sizes.splits:
            for seed in sizes.seeds:
                which = {"network": network, "start": start, "split": split, "seed": seed}
                found.append(("images", which))
    return found


def run_jobs(jobs, folder, profile, sizes, processes, deadline, tell):
    """Run the jobs, `processes` at a time (0: here, one after the other), until the deadline.

    tell(kind, arguments, answer) is called as each ends; an answer {"error": ...} is one that
    failed. Returns how many were not begun or not finished.
    """
    arguments = (Path(folder), profile, sizes)
    if processes == 0:
        for n_done, (kind, which) in enumerate(jobs):
            if time.time() > deadline:
                return len(jobs) - n_done
            tell(kind, which, run_job(kind, *arguments, **which))
        return 0
    waiting, running = list(jobs), {}
    with start_workers(processes) as pool:
        while (waiting or running) and time.time() < deadline:
            is_blocked = any(kind == "moco" for kind, _ in [*waiting, *running.values()])
            for job in list(waiting):
                needs_moco = job[1].get("start") == "moco"
                if len(running) < processes and not (needs_moco and is_blocked):
                    waiting.remove(job)
                    running[pool.submit(run_job, job[0], *arguments, **job[1])] = job
            done, _ = wait(running, max(0, deadline - time.time()), FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                error = future.exception()
                tell(*job, {"error": repr(error)} if error else future.result())
        n_left = len(waiting) + len(running)
        if n_left:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
    return n_left


def run_job(kind, *arguments, **which):
    """What a worker does: one job; an error becomes part of the answer."""
    torch.set_num_threads(max(1, min(2, torch.get_num_threads())))
    deterministic()
    try:
        return JOBS[kind](*arguments, **which)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        torch.use_deterministic_algorithms(False)
