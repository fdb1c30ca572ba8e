"""Checkpoints of a training run: written whole or not at all, read without running their code."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from helpers.storage.files import write_whole


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, foreign, or of another network."""


def fingerprint(*arrays: np.ndarray) -> str:
    """Eight hexadecimal digits that change with the contents and the shapes of the arrays."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(repr(array.shape).encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return f"{checksum:08x}"


def save_run(folder: Path, settings: dict, components: dict, history: list[dict]) -> None:
    """Write best.pt where the last epoch is the best one, then last.pt and history.csv.

    Where nothing is validated there is no best.pt: the lowest training loss says little, least of
    all MoCo's, which is lowest before its queue is full. components: model, optimizer and scaler.
    A run that stops between the files does the last epoch again: last.pt comes after best.pt.
    """
    losses = judged_losses(history)
    state = {name: part.state_dict() for name, part in components.items()}
    state |= {"epoch": len(history), "history": history, "best": min(losses), "settings": settings}
    # into memory first: on a full disk torch.save fails in words of its own
    torch.save(state, packed := io.BytesIO())
    if "validation_loss" in history[-1] and epochs_since_best(history) == 0:
        write_whole(folder / "best.pt", lambda file: file.write(packed.getbuffer()))
    write_whole(folder / "last.pt", lambda file: file.write(packed.getbuffer()))
    write_history(folder, history)


def write_history(folder: Path, history: list[dict]) -> None:
    """Write history.csv, one row an epoch."""
    table = pd.DataFrame(history)
    write_whole(folder / "history.csv", lambda file: table.to_csv(file, index=False))


def start_run(folder: Path, settings: dict, components: dict, resume: bool) -> list[dict]:
    """Bring the components to where last.pt left them and return its history; else start anew.

    ValueError when last.pt was made with other settings. resume=False starts anew in any case:
    what is there is replaced when the first epoch is through.
    """
    path = folder / "last.pt"
    if not resume or not path.exists():
        return []
    state = read_checkpoint(path)
    for name, now in settings.items():
        before = state["settings"].get(name)
        if before != now:
            raise ValueError(
                f"{path}: made with {name}={before}, now {name}={now}; use the old value, "
                "another run_dir, or resume=False to start again"
            )
    load_weights(components["model"], state, path)
    _load_optimizer(components, state, path)
    table = folder / "history.csv"
    if not table.exists() or len(pd.read_csv(table)) != len(state["history"]):
        write_history(folder, state["history"])  # the run stopped just before it did
    return state["history"]


def load_weights(model: nn.Module, state: dict, path: str | Path) -> None:
    """Put the weights of a checkpoint's state into `model`; CheckpointError if they do not fit."""
    here, there = model.state_dict(), state["model"]
    for name in sorted(set(here) | set(there)):
        shapes = [tuple(w[name].shape) if name in w else "missing" for w in (here, there)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{path}: weights of another network ({name}: {shapes[1]} in the file, "
                f"{shapes[0]} in {type(model).__name__}); build the model with the same options"
            )
    model.load_state_dict(there)


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint to the CPU; CheckpointError, in one line, if it is none."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such checkpoint; train first, or correct the path")
    try:
        state = torch.load(_verified(path), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can fail in any way
        raise CheckpointError(
            f"{path}: damaged, or no checkpoint of this course ({type(error).__name__}); "
            "delete it and train again"
        ) from error
    if not _is_ours(state):
        raise CheckpointError(f"{path}: no checkpoint of this course; give a last.pt or best.pt")
    return state


def _verified(path) -> io.BytesIO:
    """The file written anew from its members, each with the right checksum, or an error.

    torch.load looks at no checksum, and takes what a damaged list of members points at.
    """
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy := io.BytesIO(), "w") as whole:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:  # may unpack to any size
                raise ValueError("not as torch.save wrote it")
            whole.writestr(info.filename, archive.read(info))
    copy.seek(0)
    return copy


def _is_ours(state) -> bool:
    """Whether all that `save_run` writes is there, each of its kind."""
    kinds = {"model": dict, "optimizer": dict, "scaler": dict, "history": list, "settings": dict}
    if not isinstance(state, dict) or not {"epoch", "best", *kinds} <= set(state):
        return False
    if not all(isinstance(state[name], kind) for name, kind in kinds.items()):
        return False
    losses = [row.get("train_loss") for row in state["history"] if isinstance(row, dict)]
    is_history = len(losses) == len(state["history"]) == state["epoch"] > 0
    is_history = is_history and all(isinstance(loss, float) for loss in losses)
    return is_history and all(isinstance(w, torch.Tensor) for w in state["model"].values())


def _load_optimizer(components: dict, state: dict, path: Path) -> None:
    """Bring optimizer and scaler back; CheckpointError if they are of another network."""
    optimizer, fits = components["optimizer"], True
    try:
        optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            components["scaler"].load_state_dict(state["scaler"])
        for weight, moments in optimizer.state.items():
            fits &= all(m.shape in ((), weight.shape) for m in moments.values())
    except Exception:  # what torch raises for a state that does not fit has no common kind
        fits = False
    if not fits:
        raise CheckpointError(f"{path}: optimizer of another network; delete it and train again")


def epochs_since_best(history: list[dict]) -> int:
    """How many epochs ago the loss was lowest; 0 for the last one or before any."""
    losses = judged_losses(history)
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def judged_losses(history: list[dict]) -> list[float]:
    """The validation losses, or the training losses where nothing is validated."""
    return [row.get("validation_loss", row["train_loss"]) for row in history]
