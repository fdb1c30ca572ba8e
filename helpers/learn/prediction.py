"""What a trained network says of scans or images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from helpers.learn.checkpoints import load_weights, read_checkpoint
from helpers.learn.devices import Scans, autocast, pick_device, pick_precision, seeded


def infer(
    network: nn.Module, scans: Scans, rows: np.ndarray, batch_size: int, precision: str
) -> list[torch.Tensor | None]:
    """What the network answers for the rows, in evaluation mode: each answer (n, ...) on the CPU.

    A classifier of the course answers logits and attention, the latter None for one without any;
    an encoder answers features alone. [] for no rows.
    """
    network.eval()
    answers = []
    # Seeded for the control that shuffles the slices: it shuffles them alike every time.
    with torch.inference_mode(), seeded(scans.device, 0), autocast(scans.device, precision):
        for first in range(0, len(rows), batch_size):
            answer = network(scans.take(rows[first : first + batch_size]))
            answers.append(answer if isinstance(answer, tuple) else (answer,))
    return [
        None if parts[0] is None else torch.cat(parts).float().cpu()
        for parts in zip(*answers, strict=True)
    ]


def predict(
    model: nn.Module,
    volumes: np.ndarray,
    rows: np.ndarray,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "auto",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Probability of COVID (n,) and attention (n, D), or None, for rows of `volumes`.

    volumes: uint8 (N, D, H, W). The model is left in evaluation mode on the device.
    """
    used = pick_device(device)
    precision = pick_precision(used, precision)
    found = infer(model.to(used), Scans(volumes, used), np.asarray(rows), batch_size, precision)
    logits, attention = found or (torch.empty(0), None)
    return logits.sigmoid().numpy(), None if attention is None else attention.numpy()


def load_model(model: nn.Module, checkpoint_path: str | Path, device: str = "auto") -> nn.Module:
    """Put a checkpoint's weights into `model`, move it to the device, and return it.

    CheckpointError, in one line, when the file is missing, damaged, no checkpoint of this
    course, or made by a network of another shape.
    """
    load_weights(model, read_checkpoint(checkpoint_path), checkpoint_path)
    return model.to(pick_device(device))
