"""Train a network on the cohort's memory map, with checkpoints that resume exactly."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.profiler import record_function

from helpers.learn import ranks
from helpers.learn.augmentation import augment as augment_batch
from helpers.learn.checkpoints import (
    epochs_since_best,
    fingerprint,
    save_run,
    start_run,
)
from helpers.learn.devices import (
    Scans,
    autocast,
    check_memory,
    out_of_gpu_memory,
    pick_device,
    pick_precision,
    seeded,
)
from helpers.learn.prediction import infer, load_model
from helpers.storage.progress import progress


def learning_rate_factor(step: int, n_steps: int, n_warmup: int) -> float:
    """The part of the full learning rate to use at `step` (0 to n_steps - 1).

    It rises linearly over the first n_warmup steps, reaches 1, and falls along half a cosine
    to almost 0 (Loshchilov and Hutter 2017, arXiv 1608.03983).
    """
    if step < n_warmup:
        return (step + 1) / n_warmup
    progress = (step - n_warmup) / max(1, n_steps - n_warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def positive_weight(labels: np.ndarray) -> float:
    """What one positive scan must count for both classes to weigh the same in the loss."""
    return float(np.sum(labels == 0) / np.sum(labels == 1))


def fit(
    model: nn.Module,
    volumes: np.ndarray,
    labels: np.ndarray,
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    run_dir: str | Path,
    epochs: int = 30,
    batch_size: int = 8,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    warmup: float = 0.1,
    precision: str = "auto",
    device: str = "auto",
    class_weighting: bool = True,
    augment: float | Callable = 1.0,
    schedule: str = "cosine",
    patience: int = 10,
    clip: float = 1.0,
    seed: int = 0,
    resume: bool = True,
    on_epoch: Callable[[pd.DataFrame], Any] | None = None,
    max_epochs_this_call: int | None = None,
    keep: str = "best",
) -> pd.DataFrame:
    """Train `model` and return its history; afterwards it holds the weights to `keep`.

    volumes: uint8 (N, D, H, W), usually a memory map. labels: (N,) of 0 and 1. train_rows,
    validation_rows: rows of both. run_dir gets last.pt, best.pt and history.csv.

    Loss: binary cross-entropy; class_weighting counts a positive scan n_negative / n_positive
    times. AdamW, linear warm-up (a fraction of all steps), cosine decay, gradients clipped at
    norm `clip`. schedule="constant" keeps the learning rate as it is after the warm-up. augment:
    strength of the augmentation, 0 for none, or a function (batch, generator) -> batch whose
    repr names its settings.

    keep: "best" or "last", the weights of which epoch the model holds at the end, on the device
    that it was trained on. The best epoch has the lowest validation loss, and `patience` epochs
    without a better one end the training. The AUC does not decide: with few scans it takes few
    values and stays at 1 while the network still learns.

    resume: go on from last.pt, with the same settings. On the CPU an interrupted and resumed
    run equals an unbroken one to the last digit. max_epochs_this_call ends a call early, for a
    later one to resume. The initial weights are the caller's: torch.manual_seed before them.

    Under torchrun (`ranks`) the batches are shared out among the processes; batch_size is
    that of all together, every process calls fit alike, and rank 0 alone calls on_epoch and
    writes. An augment function gets the whole batch in every process, of which each keeps its
    share: right, whatever it draws, but no faster than with one process.

    Returns one row an epoch: epoch (from 1), train_loss, validation_loss, validation_auc,
    learning_rate (of its last step), seconds. ValueError for unusable labels or changed
    settings, CheckpointError for a damaged last.pt, RuntimeError for a loss that is not finite.
    ValueError, too, for a batch that has fewer scans than there are processes; NotEnoughMemory for
    one that does not fit, on a CPU before anything is trained.
    """
    labels, train_rows = np.array(labels), np.array(train_rows)
    validation_rows = np.array(validation_rows)
    check_labels(labels[train_rows], "training")
    check_labels(labels[validation_rows], "validation")
    if min(epochs, batch_size, patience) < 1:
        raise ValueError(
            f"epochs={epochs}, batch_size={batch_size}, patience={patience}: give 1 at least"
        )
    if schedule not in ("cosine", "constant") or keep not in ("best", "last"):
        raise ValueError(
            f"schedule={schedule!r}, keep={keep!r}: give 'cosine' or 'constant', 'best' or 'last'"
        )
    settings = {
        "model": f"{type(model).__name__} {zlib.crc32(repr(model).encode()):08x}",
        "data": describe(volumes, labels, train_rows, validation_rows),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "precision": precision,
        "class_weighting": class_weighting,
        "augment": repr(augment) if callable(augment) else float(augment),
        "schedule": schedule,
        "patience": patience,
        "clip": clip,
        "seed": seed,
    }
    ranks.check_shards(len(train_rows), len(validation_rows), batch_size)
    folder, used = Path(run_dir), pick_device(device)
    precision = pick_precision(used, precision)
    components, history = begin_run(model.to(used), folder, settings, precision, resume)
    if not is_finished(history, settings):
        check_memory(model, batch_size, volumes.shape[1:], used, precision)
    scans = Scans(volumes, used, keep=True)
    targets = torch.tensor(labels, dtype=torch.float32)
    weight = positive_weight(labels[train_rows]) if class_weighting else 1.0
    own_rows = validation_rows[ranks.shard(len(validation_rows))]

    def one_epoch(epoch: int) -> dict[str, float]:
        row = train_one_epoch(
            *(network, components, scans, targets, train_rows, weight, precision, settings),
            *(epoch, augment),
        )
        logits, _ = infer(model, scans, own_rows, batch_size, precision)
        logits = ranks.gather(logits, len(validation_rows))
        loss, auc = validation_loss_and_auc(logits, targets[validation_rows], weight)
        return row | {"validation_loss": loss, "validation_auc": auc}

    with ranks.parallel(model) as network:
        table = run_epochs(
            components, history, folder, settings, one_epoch, max_epochs_this_call, on_epoch
        )
    with ranks.rank_0_first():
        load_model(model, folder / f"{keep}.pt", str(used))
    return table


def begin_run(
    model: nn.Module, folder: Path, settings: dict, precision: str, resume: bool = True
) -> tuple[dict, list[dict]]:
    """Model, AdamW and scaler, brought to where the run in `folder` stands, and its history."""
    components = {
        "model": model,
        "optimizer": torch.optim.AdamW(parameter_groups(model, settings["weight_decay"])),
        "scaler": torch.amp.GradScaler("cuda", enabled=precision == "fp16"),
    }
    with ranks.rank_0_first():
        return components, start_run(folder, settings, components, resume)


def run_epochs(
    components: dict,
    history: list[dict],
    folder: Path,
    settings: dict,
    one_epoch: Callable[[int], dict],
    max_epochs_this_call: int | None = None,
    on_epoch: Callable[[pd.DataFrame], Any] | None = None,
) -> pd.DataFrame:
    """Train epoch after epoch, each saved before the next one begins; returns the history.

    one_epoch: trains the epoch of this number, from 0, and returns its row. max_epochs_this_call:
    stop before `is_finished` says so. Under torchrun rank 0 alone saves and calls on_epoch.
    """
    is_first, epochs = ranks.rank() == 0, settings["epochs"]
    stop = len(history) + (max_epochs_this_call or epochs)
    if history and on_epoch and is_first:
        on_epoch(pd.DataFrame(history))
    with progress(total=epochs, initial=len(history), desc="epochs", disable=not is_first) as bar:
        while len(history) < stop and not is_finished(history, settings):
            started = time.perf_counter()
            try:
                row = {"epoch": len(history) + 1, **one_epoch(len(history))}
            except torch.cuda.OutOfMemoryError:
                raise out_of_gpu_memory(settings["batch_size"]) from None
            row["seconds"] = time.perf_counter() - started
            history.append(ranks.broadcast(row))
            if is_first:
                save_run(folder, settings, components, history)
            bar.update()
            bar.set_postfix({name: row[name] for name in row if name.endswith("loss")})
            if on_epoch and is_first:
                on_epoch(pd.DataFrame(history))
    return pd.DataFrame(history)


def is_finished(history: list[dict], settings: dict) -> bool:
    """Whether all epochs are through, or settings["patience"] of them brought no lower loss."""
    epochs = settings["epochs"]
    patience = settings.get("patience", epochs)
    return len(history) >= epochs or epochs_since_best(history) >= patience


def describe(volumes: np.ndarray, labels: np.ndarray, *parts: np.ndarray) -> str:
    """A fingerprint of all scans and labels of these parts, given as rows."""
    scans = (volumes[row] for row in np.concatenate(parts))
    return fingerprint(*(labels[rows] for rows in parts), *scans)


def train_one_epoch(
    network: nn.Module,
    components: dict,
    scans: Scans,
    targets: torch.Tensor,
    rows: np.ndarray,
    weight: float,
    precision: str,
    settings: dict,
    epoch: int,
    augment: float | Callable,
) -> dict[str, float]:
    """One pass over the rows in random order; `epoch` counts from 0.

    network: the model, as `ranks.parallel` yields it. The spans of time that torch's
    profiler sees are called load, augment, forward, backward and step.
    """
    batches = range(0, len(rows), settings["batch_size"])
    n_steps = settings["epochs"] * len(batches)
    total = 0.0
    network.train()
    # Each epoch has a seed of its own, so a resumed run draws what an unbroken one would have.
    with seeded(scans.device, settings["seed"], epoch) as generator:
        order = rows[torch.randperm(len(rows), generator=generator).numpy()]
        for k, first in enumerate(batches):
            chosen = order[first : first + settings["batch_size"]]
            rate = set_learning_rate(components, settings, epoch * len(batches) + k, n_steps)
            volumes, own = augmented_share(scans, chosen, augment, generator)
            with record_function("forward"):
                with autocast(scans.device, precision):
                    logits, _ = network(volumes)
                loss = weighted_loss(logits, targets[own].to(scans.device), weight)
                loss = loss * (len(own) * ranks.n_processes() / len(chosen))
                batch_loss = ranks.mean_over_batch(loss)
            check_loss(batch_loss, epoch, settings)
            follow_gradient(components, loss, settings["clip"])
            total += batch_loss * len(chosen)
    return {"train_loss": total / len(rows), "learning_rate": rate}


def set_learning_rate(components: dict, settings: dict, step: int, n_steps: int) -> float:
    """The rate of this step, by `learning_rate_factor` or constant after the warm-up; set."""
    n_warmup = round(settings["warmup"] * n_steps)
    if settings["schedule"] == "constant":
        factor = min(1.0, (step + 1) / max(1, n_warmup))
    else:
        factor = learning_rate_factor(step, n_steps, n_warmup)
    for group in components["optimizer"].param_groups:
        group["lr"] = factor * settings["learning_rate"]
    return factor * settings["learning_rate"]


def check_loss(loss: float, epoch: int, settings: dict) -> None:
    """RuntimeError, in one line, for a loss that is not finite; `epoch` counts from 0."""
    if not math.isfinite(loss):
        raise RuntimeError(
            f"the loss became {loss} in epoch {epoch + 1}: start again with a learning_rate "
            f"below {settings['learning_rate']} or with precision='fp32'"
        )


def follow_gradient(components: dict, loss: torch.Tensor, clip: float) -> None:
    """Compute the loss's gradient, clip it to the length `clip`, and let the optimizer step.

    The scaler leaves the step out where a gradient in fp16 overflowed.
    """
    model, optimizer, scaler = components["model"], components["optimizer"], components["scaler"]
    with record_function("backward"):
        optimizer.zero_grad()
        scaler.scale(loss).backward()
    with record_function("step"):
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()


def augmented_share(
    scans: Scans, rows: np.ndarray, augment: float | Callable, generator: torch.Generator
) -> tuple[torch.Tensor, np.ndarray]:
    """This process's share of a batch of rows: its scans, changed as in the whole batch, and rows.

    All random numbers of the batch are drawn in every process, so the generators stay alike.
    """
    share = ranks.shard(len(rows))
    with record_function("load"):
        volumes = scans.take(rows if callable(augment) else rows[share])
    with record_function("augment"):
        if callable(augment):
            return augment(volumes, generator)[share], rows[share]
        within = (share.start, len(rows))
        volumes = augment_batch(volumes, generator, float(augment), within=within)
    return volumes, rows[share]


def check_labels(labels: np.ndarray, part: str) -> None:
    """ValueError unless both classes, 0 and 1, are there and nothing else."""
    if set(np.unique(labels)) != {0, 1}:
        raise ValueError(
            f"the {part} rows have the labels {np.unique(labels).tolist()}, not 0 and 1: "
            "choose rows in which both classes occur"
        )


def weighted_loss(logits: torch.Tensor, labels: torch.Tensor, weight: float) -> torch.Tensor:
    """Mean binary cross-entropy of (B,) logits, a positive scan counted `weight` times."""
    pos_weight = torch.tensor(weight, device=logits.device)
    return binary_cross_entropy_with_logits(logits.float(), labels, pos_weight=pos_weight)


def validation_loss_and_auc(
    logits: torch.Tensor, labels: torch.Tensor, weight: float
) -> tuple[float, float]:
    """What an epoch is judged by."""
    from sklearn.metrics import roc_auc_score  # only here, since its import takes half a second

    return weighted_loss(logits, labels, weight).item(), float(roc_auc_score(labels, logits))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW's two groups: matrices are decayed, biases and norms are not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
