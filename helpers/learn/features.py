"""What a frozen encoder sees in every slice, computed once, and training that starts from there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import interpolate

from helpers.learn import training
from helpers.learn.augmentation import SequenceAugmentation
from helpers.learn.devices import Scans, autocast, pick_device, pick_precision
from helpers.learn.networks import adjacent_slices
from helpers.learn.prediction import predict
from helpers.storage.progress import progress


def encode_scans(
    encoder: nn.Module,
    volumes: np.ndarray,
    pixels: int | None = None,
    chunk: int = 64,
    device: str = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """Features of every slice of every scan: float16 (N, D, F).

    encoder: (n, 3, H, W) in [0, 1] to (n, F), taken as it is; its channels are the slice below,
    the slice and the slice above. volumes: uint8 (N, D, H, W). pixels: enlarge or reduce the
    slices to this many a side first. chunk: slices encoded at a time. precision: "auto" is fp16 on
    CUDA, which rounds ten times finer than bf16: the slices of a scan differ by little.
    """
    used = pick_device(device)
    if precision == "auto" and used.type == "cuda":
        precision = "fp16"
    precision = pick_precision(used, precision)
    encoder = encoder.to(used).eval()
    scans, found = Scans(volumes, used), None
    with torch.inference_mode(), autocast(used, precision):
        for row in progress(range(len(volumes)), desc="features", unit="scan"):
            slices = adjacent_slices(scans.take(np.array([row])))[0]
            if pixels and slices.shape[-2:] != (pixels, pixels):
                slices = interpolate(slices, size=(pixels, pixels), mode="bilinear")
            seen = torch.cat([encoder(part) for part in slices.split(chunk)])
            if found is None:
                found = np.empty((len(volumes), *seen.shape), np.float16)
            found[row] = seen.half().cpu().numpy()
    return found


def folds(labels, patients, n_folds: int = 5, seed: int = 0) -> np.ndarray:
    """The fold of every scan, (N,) of 0 .. n_folds - 1, all scans of a patient in one.

    Both classes are spread evenly (scikit-learn's StratifiedGroupKFold).
    """
    from sklearn.model_selection import StratifiedGroupKFold

    dealt = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(labels), int)
    for fold, (_, held_out) in enumerate(dealt.split(labels, labels, patients)):
        fold_of[held_out] = fold
    return fold_of


def predict_fold(
    make_model: Callable[[], nn.Module],
    data: np.ndarray,
    labels: np.ndarray,
    fold_of: np.ndarray,
    fold: int,
    run_dir: str | Path,
    seed: int = 0,
    **options,
) -> pd.DataFrame:
    """Train without one fold and predict it: a row each of its scans, with row and probability.

    make_model: gives a new network, whose initial weights follow from `seed`. data: volumes or
    features, as `fit` takes them; features are augmented by SequenceAugmentation. options: passed
    on to `fit`. The weights of the last epoch are taken, so the fold that is predicted decides
    nothing, although the history shows its loss.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_model()
    rows, held_out = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
    options = {"patience": options.get("epochs", 30), "keep": "last", **options}
    if data.ndim == 3:
        options = {"augment": SequenceAugmentation(), **options}
    training.fit(model, data, labels, rows, held_out, run_dir, seed=seed, **options)
    device, precision = options.get("device", "auto"), options.get("precision", "auto")
    probability, _ = predict(model, data, held_out, device=device, precision=precision)
    return pd.DataFrame({"row": held_out, "probability": probability})
