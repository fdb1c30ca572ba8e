"""Run a network over scans of the cohort's memory map: device, precision, batches, prediction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn

from helpers import distributed
from helpers.checkpoints import load_weights, read_checkpoint


def pick_device(device: str = "auto") -> torch.device:
    """The device that `device` names; "auto" takes CUDA, else Apple's MPS, else the CPU.

    Under torchrun "auto" is the GPU of this process, or the CPU where there is none for each.
    """
    if device != "auto":
        return torch.device(device)
    if distributed.n_processes() > 1:
        return distributed.own_device()
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_precision(device: torch.device, precision: str = "auto") -> str:
    """The number format of the network's activations: "bf16", "fp16" or "fp32".

    "auto" is bf16 on a CUDA card that computes it natively (compute capability 8 and above),
    fp16 on an older one such as the T4, and fp32 elsewhere. ValueError for an unknown name,
    and for fp16 without CUDA.
    """
    if precision == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if precision not in ("bf16", "fp16", "fp32"):
        raise ValueError(f"precision={precision!r}: give 'auto', 'bf16', 'fp16' or 'fp32'")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision='fp16' needs CUDA, not {device}: give 'auto' or 'fp32'")
    return precision


class Scans:
    """An array or memory map, given out as float32 batches on the device.

    volumes: uint8 (N, D, H, W), or features of their slices as float16 (N, D, F).

    With keep=True it is copied to a GPU once, if it takes less than 40 % of the free memory
    there; else every batch travels from pinned memory. The CPU reads the map as it is.
    """

    def __init__(self, volumes: np.ndarray, device: torch.device, keep: bool = False) -> None:
        self.volumes, self.device, self.resident = volumes, device, None
        keep = keep and device.type == "cuda"
        if keep and volumes.nbytes < 0.4 * torch.cuda.mem_get_info(device)[0]:
            kind = torch.from_numpy(np.array(volumes[0])).dtype
            self.resident = torch.empty(volumes.shape, dtype=kind, device=device)
            for k, volume in enumerate(volumes):
                self.resident[k] = torch.from_numpy(np.array(volume))

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """The scans of these rows: uint8 as float32 in [0, 1], features as they are."""
        if self.resident is not None:
            batch = self.resident[torch.from_numpy(rows).to(self.device)]
        else:
            batch = torch.from_numpy(self.volumes[rows])
            batch = batch.pin_memory() if self.device.type == "cuda" else batch
            batch = batch.to(self.device, non_blocking=True)
        return batch.float().div_(255) if batch.dtype == torch.uint8 else batch.float()


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context in which a network computes at this precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


@contextmanager
def seeded(device: torch.device, *numbers: int) -> Iterator[torch.Generator]:
    """Random numbers that depend on `numbers` alone; the caller's own go on afterwards.

    The generator is the same on every rank of `distributed`; torch's own numbers, which dropout
    draws from, are others on each.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + distributed.rank())
        yield torch.Generator().manual_seed(seed)


def read_scans(
    model: nn.Module, scans: Scans, rows: np.ndarray, batch_size: int, precision: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits (n,) and attention (n, D) or None of the rows, on the CPU; dropout is off."""
    model.eval()
    logits, attention = [], []
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
    logits, attention = read_scans(
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
