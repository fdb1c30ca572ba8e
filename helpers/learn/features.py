"""What a frozen encoder sees in every slice, computed once; what can be asked of it.

Cross-validation by folds and seeds, and two questions made of the same slices that tell a reader
of sequences from a pool.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import torch
from torch import nn

from helpers.learn import training
from helpers.learn.augmentation import SequenceAugmentation, augment
from helpers.learn.checkpoints import fingerprint
from helpers.learn.devices import Scans, autocast, has_bf16, pick_device, pick_precision
from helpers.learn.networks import adjacent_slices, usual_chunk
from helpers.learn.prediction import predict
from helpers.storage.files import write_whole
from helpers.storage.processes import KILLED
from helpers.storage.progress import progress


def encode_scans(
    encoder: nn.Module,
    volumes: np.ndarray,
    folder: str | Path = "",
    executor: Executor | None = None,
    device: str = "auto",
    precision: str = "auto",
    view: int = 0,
) -> np.ndarray:
    """Features of every slice of every scan: float16 (N, D, F).

    encoder: (n, 3, H, W) in [0, 1] to (n, F), taken as it is; its channels are the slice below,
    the slice and the slice above. volumes: uint8 (N, D, H, W); single images are scans of one
    slice. precision: "auto" is fp16 on CUDA, which rounds ten times finer than bf16 (the slices of
    a scan differ by little), and bf16 on a CPU that has instructions for it.

    folder: where they are kept, a file for each scan, named after what is in the scan; a folder for
    each encoder and precision. What is there is not computed again, so an interrupted call goes on,
    and a changed scan is encoded anew. executor: any of concurrent.futures, whose workers take one
    thread each; by default this process takes all cores. view: 0 for the scans as they are; each
    other number stands for one random change of every scan (`augment`). ValueError for features
    that are not finite.
    """
    used = pick_device(device)
    if precision == "auto" and (used.type == "cuda" or has_bf16()):
        precision = "fp16" if used.type == "cuda" else "bf16"
    precision = pick_precision(used, precision)
    kept = None
    if folder:
        weights = fingerprint(*(value.cpu().numpy() for value in encoder.state_dict().values()))
        name = f"features-{weights}{zlib.crc32(repr(encoder).encode()):08x}-{precision}"
        name += f"-view{view}" if view else ""
        kept = [Path(folder) / name / f"{_content(volume)}.npy" for volume in volumes]
    found: list = [_read(path, volumes.shape[1]) for path in kept or []] or [None] * len(volumes)
    todo = [row for row in range(len(volumes)) if found[row] is None]
    together = max(1, 64 // volumes.shape[1])
    groups = [todo[first : first + together] for first in range(0, len(todo), together)]
    encode = partial(encode_slices, encoder, device=str(used), precision=precision, view=view)
    with progress(total=len(todo), desc="features", unit="scan", disable=not todo) as bar:
        for rows, answer in zip(groups, _answers(encode, volumes, groups, executor), strict=True):
            if not np.isfinite(answer).all():
                raise ValueError(
                    f"scans {rows[0]} to {rows[-1]}: features that are not finite; "
                    "choose precision='fp32', or look at the encoder's weights"
                )
            for row, features in zip(rows, answer, strict=True):
                found[row] = features
                if kept:
                    write_whole(kept[row], partial(np.save, arr=features))
            bar.update(len(rows))
    return np.stack(found)


def encode_slices(
    encoder: nn.Module, volumes: np.ndarray, device: str, precision: str, view: int = 0
) -> np.ndarray:
    """Features of all slices of a few scans, uint8 (n, D, H, W), at once: float16 (n, D, F)."""
    used = torch.device(device)
    encoder = encoder.to(used).eval()
    with torch.inference_mode(), autocast(used, precision):
        scans = Scans(volumes, used).take(np.arange(len(volumes)))
        if view:  # each changed by what is in it, whichever scans it comes with
            seeds = [(zlib.crc32(np.ascontiguousarray(v)) + view) % 2**32 for v in volumes]
            each = (torch.Generator().manual_seed(seed) for seed in seeds)
            scans = torch.cat([augment(s[None], g) for s, g in zip(scans, each, strict=True)])
        images = adjacent_slices(scans).flatten(0, 1)
        chunk = 2 * usual_chunk(used, checkpoint=False)
        seen = torch.cat([encoder(part) for part in images.split(chunk)]).half()
    return seen.unflatten(0, volumes.shape[:2]).cpu().numpy()


def _answers(encode, volumes, groups, executor) -> Iterator[np.ndarray]:
    """encode() of every group of rows, in order; few of them are under way at a time."""
    if executor is None:
        yield from (encode(volumes[rows]) for rows in groups)
        return
    n_ahead = 16
    jobs = [executor.submit(_with_one_thread, encode, volumes[r]) for r in groups[:n_ahead]]
    for k in range(len(groups)):
        answer = jobs[k].result()
        jobs[k] = None  # its memory is not needed any more
        if k + n_ahead < len(groups):
            jobs.append(executor.submit(_with_one_thread, encode, volumes[groups[k + n_ahead]]))
        yield answer


def _with_one_thread(encode, volumes) -> np.ndarray:
    """What a worker does: more threads in each would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return encode(volumes)
    finally:
        torch.set_num_threads(before)


def _content(volume) -> str:
    """What a scan's file is named after: 16 hexadecimal digits of all its voxels."""
    return hashlib.blake2b(np.ascontiguousarray(volume), digest_size=8).hexdigest()


def _read(path, n_slices) -> np.ndarray | None:
    """The features of one scan, or None: not there, or damaged, and to be made anew."""
    try:
        features = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    is_whole = features.ndim == 2 and len(features) == n_slices and features.dtype == np.float16
    return features if is_whole and np.isfinite(features).all() else None


def folds(labels, patients, n_folds: int = 5, seed: int = 0) -> np.ndarray:
    """The fold of every scan, (N,) of 0 .. n_folds - 1, all scans of a patient in one.

    Both classes are spread evenly (scikit-learn's StratifiedGroupKFold). ValueError if a class has
    fewer patients than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels, patients = np.asarray(labels), np.asarray(patients)
    for label in (0, 1):
        if (n := len(np.unique(patients[labels == label]))) < n_folds:
            raise ValueError(
                f"{n} patients with label {label} for {n_folds} folds: take fewer folds"
            )
    # Shuffled here: up to scikit-learn 1.7 its own shuffling mixes up whose classes are whose.
    names, patient = np.unique(patients, return_inverse=True)
    shuffled = np.argsort(np.random.RandomState(seed).permutation(len(names)))[patient]
    dealt = StratifiedGroupKFold(n_folds)
    fold_of = np.empty(len(labels), int)
    for fold, (_, held_out) in enumerate(dealt.split(labels, labels, shuffled)):
        fold_of[held_out] = fold
    return fold_of


def train_fold(
    make_model: Callable[[int, int], nn.Module],
    data: np.ndarray,
    labels: np.ndarray,
    fold_of: np.ndarray,
    fold: int,
    run_dir: str | Path,
    seed: int = 0,
    views: Sequence[np.ndarray] = (),
    **options,
) -> tuple[nn.Module, np.ndarray]:
    """Train without one fold; returns the network and its probability for the fold's scans.

    make_model: (seed, fold) to a new network. data: volumes or features, as `fit` takes them.
    views: the same scans changed, to train on as well; the fold is predicted as it is. options:
    passed on to `fit`; features are augmented by SequenceAugmentation unless they say otherwise.
    The weights of the last epoch are taken, so the fold that is predicted decides nothing, although
    the history shows its loss.
    """
    model = make_model(seed, fold)
    held_out, all_data = np.flatnonzero(fold_of == fold), data
    rows = np.flatnonzero(np.tile(fold_of, 1 + len(views)) != fold)
    if len(views):
        all_data, labels = np.concatenate([data, *views]), np.tile(labels, 1 + len(views))
    options = {"patience": options.get("epochs", 30), "keep": "last", **options}
    if data.ndim == 3:
        options = {"augment": SequenceAugmentation(), **options}
    training.fit(model, all_data, labels, rows, held_out, run_dir, seed=seed, **options)
    (Path(run_dir) / "best.pt").unlink(missing_ok=True)  # nobody asks for it here
    device, precision = options.get("device", "auto"), options.get("precision", "auto")
    return model, predict(model, data, held_out, device=device, precision=precision)[0]


def cross_validate(
    make_model: Callable[[int, int], nn.Module],
    data: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    run_dir: str | Path,
    n_folds: int = 5,
    seeds: tuple[int, ...] = (0, 1, 2),
    outside: np.ndarray | None = None,
    views: Sequence[np.ndarray] = (),
    **options,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Predict every scan by networks that have not seen its patient.

    Each seed deals the patients into `n_folds` anew (`folds`) and trains a network without each
    fold (`train_fold`), so there are n_folds * len(seeds) trainings; a finished one is loaded from
    `run_dir`. On a CPU, trainings on features run side by side, one thread each. Returns the
    probability of every scan by each seed, (len(seeds), N), and the mean probability by all
    networks of the scans in `outside`, (n,), which are of another cohort; None without them. views:
    see `train_fold`. What is reported of the cohort itself is the mean over the seeds, with an
    interval by patient. RuntimeError if a process was killed.
    """
    found, elsewhere = np.empty((len(seeds), len(labels))), []
    jobs = [(k, fold) for k in range(len(seeds)) for fold in range(n_folds)]
    fold_of = [folds(labels, patients, n_folds, seed) for seed in seeds]
    places = [Path(run_dir) / f"seed{seeds[k]}-fold{fold}" for k, fold in jobs]
    calls = [
        joblib.delayed(_predict_fold)(
            *(outside, make_model, data, labels, fold_of[k], fold, place, seeds[k], views),
            **options,
        )
        for (k, fold), place in zip(jobs, places, strict=True)
    ]
    workers = 1
    if data.ndim == 3 and pick_device(options.get("device", "auto")).type == "cpu":
        n_new = sum(not (place / "last.pt").exists() for place in places)
        workers = max(1, min(joblib.cpu_count(), n_new // 2))  # a process takes seconds to start
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        answers = joblib.Parallel(workers, return_as="generator")(calls)
    bar = progress(answers, desc="folds", total=len(jobs), unit="training")
    try:
        for (k, fold), (inside, there) in zip(jobs, bar, strict=True):
            found[k, fold_of[k] == fold] = inside
            elsewhere.append(there)
    except BrokenExecutor:
        raise RuntimeError(KILLED) from None
    return found, None if outside is None else np.mean(elsewhere, axis=0)


def _predict_fold(outside, *arguments, **options):
    """One training of `cross_validate`: the probabilities of its fold and of `outside`, or None."""
    if multiprocessing.current_process().name != "MainProcess":
        os.environ["TQDM_DISABLE"] = "1"  # its bars would mix with those of the other processes
    model, inside = train_fold(*arguments, **options)
    if outside is None:
        return inside, None
    kinds = {name: options[name] for name in ("device", "precision") if name in options}
    return inside, predict(model, outside, np.arange(len(outside)), **kinds)[0]


def order_question(
    sequences: np.ndarray, areas: np.ndarray, n_slices: int = 16
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Does the disease grow along the sequence, or shrink? Features, labels, and whose they are.

    sequences: features of ill scans (n, D, F). areas: lesion in each slice (n, D). Of the slices
    with lesion `n_slices` are put in the order of their areas, and once more in the other order,
    label 0: the same slices, so no pool over them can know. Scans with fewer are left out.
    """
    rows = [row for row, area in enumerate(areas) if (area > 0).sum() >= n_slices]
    chosen = []
    for row in rows:
        ascending = np.argsort(areas[row], kind="stable")[-(areas[row] > 0).sum() :]
        evenly = np.linspace(0, len(ascending) - 1, n_slices).round().astype(int)
        chosen.append(sequences[row, ascending[evenly]])
    rising = np.stack(chosen)
    labels = np.repeat([1, 0], len(rows))
    return np.concatenate([rising, rising[:, ::-1]]), labels, np.tile(rows, 2)


def needle_question(
    healthy: np.ndarray, ill: np.ndarray, areas: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Is there one ill slice? Features, labels, and the group of patients that each is made of.

    healthy, ill: features (n, D, F). areas: lesion in each slice of the ill (n, D). Every healthy
    scan comes twice: with one slice of an ill scan, at the height of its largest lesion (label 1),
    and with the same slice of another healthy scan. What is mixed stays within one group, of two
    healthy scans or more.
    """
    rng, found, labels, groups = np.random.default_rng(seed), [], [], []
    n_groups = min(len(healthy) // 2, len(ill))
    parts = zip(
        *(np.array_split(rng.permutation(len(s)), n_groups) for s in (healthy, ill)), strict=True
    )
    for group, (hosts, givers) in enumerate(parts):
        for k, host in enumerate(hosts):
            giver = givers[k % len(givers)]
            place = areas[giver].argmax()
            for label, slice_ in ((1, ill[giver, place]), (0, healthy[hosts[k - 1], place])):
                sequence = healthy[host].copy()
                sequence[place] = slice_
                found.append(sequence)
                labels.append(label)
                groups.append(group)
    return np.stack(found), np.array(labels), np.array(groups)
