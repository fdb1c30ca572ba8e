"""What a trained network says of scans or images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from helpers.learn.checkpoints import load_weights, read_checkpoint
from helpers.learn.devices import Scans, autocast, pick_device, pick_precision, seeded


def infer(
    model: nn.Module, scans: Scans, rows: np.ndarray, batch_size: int, precision: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits (n,) and attention (n, D) of the rows, on the CPU; dropout is off.

    Attention is None for a network without any, and where there are no rows.
    """
    model.eval()
    logits, attention = [], []
    if not len(rows):
        return torch.empty(0), None
    # Seeded for the control that shuffles the slices: it shuffles them alike every time.
    with torch.inference_mode(), seeded(scans.device, 0), autocast(scans.device, precision):
        for first in range(0, len(rows), batch_size):
            answer = model(scans.take(rows[first : first + batch_size]))
            logits.append(answer[0].float().cpu())
            attention.append(answer[1])
    if attention[0] is None:
        return torch.cat(logits), None
    return torch.cat(logits), torch.cat(attention).float().cpu()


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
    rows = np.asarray(rows)
    scans = Scans(volumes, used)
    logits, attention = infer(
        model.to(used), scans, rows, batch_size, pick_precision(used, precision)
    )
    return logits.sigmoid().numpy(), None if attention is None else attention.numpy()


def load_model(model: nn.Module, checkpoint_path: str | Path, device: str = "auto") -> nn.Module:
    """Put a checkpoint's weights into `model`, move it to the device, and return it.

    CheckpointError, in one line, when the file is missing, damaged, no checkpoint of this
    course, or made by a network of another shape.
    """
    load_weights(model, read_checkpoint(checkpoint_path), checkpoint_path)
    return model.to(pick_device(device))
