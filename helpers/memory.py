"""Whether a training fits into memory, asked before it starts."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

# How many times what it keeps for the backward pass a step takes at its peak: at 64 x 256 x 256 on
# a CPU 1.4 to 1.5 were measured for the Bi-LSTM and 1.7 for the 3-D CNN of the Keras recipe.
PEAK = 1.6
# No network of the course keeps more than this many times its input.
WORST = 300


class NotEnoughMemory(MemoryError):
    """A training that cannot fit; the message says what to lower."""


def check_memory(model, batch_size, size, device, precision="fp32") -> None:
    """NotEnoughMemory if a step with `batch_size` scans of `size` (D, H, W) cannot fit.

    An estimate, to about a sixth, made without computing anything. A network that cannot be
    looked at in this way is let through. size: of what the network gets, without the batch.
    On a GPU nothing is estimated: there the first step that does not fit ends in an error, and
    `out_of_gpu_memory` says what to do.
    """
    if device.type == "cuda":
        return
    free = free_memory()
    n_bytes = 4 * batch_size * torch.Size(size).numel()
    if free is None or WORST * n_bytes < free:
        return
    try:
        kept = bytes_kept(model, (1, *size)) * (1 if precision == "fp32" else 0.5)
    except (RuntimeError, NotImplementedError, ValueError):
        return
    weights = 4 * sum(parameter.nbytes for parameter in model.parameters())  # Adam, gradients
    need = PEAK * kept * batch_size + weights
    if need <= free:
        return
    fits = int((free - weights) // (PEAK * kept))
    lower = f"lower batch_size to {fits}" if fits >= 1 else "take smaller volumes (profile)"
    raise NotEnoughMemory(
        f"training needs about {need / 1e9:.1f} GB at batch_size={batch_size}, and "
        f"{free / 1e9:.1f} GB are free on {device}: {lower}, or build a BiLSTMClassifier with "
        "checkpoint=True"
    )


def out_of_gpu_memory(batch_size: int) -> NotEnoughMemory:
    """What to raise where CUDA had no memory left."""
    lower = f"lower batch_size from {batch_size}" if batch_size > 1 else "take smaller volumes"
    return NotEnoughMemory(
        f"training at batch_size={batch_size} does not fit into the GPU's memory: {lower}, or "
        "build a BiLSTMClassifier with checkpoint=True"
    )


def bytes_kept(model: nn.Module, shape: tuple) -> int:
    """What a forward pass on input of `shape` keeps for the backward pass, in bytes, fp32.

    The pass runs on PyTorch's meta device: shapes without numbers.
    """
    kept: dict = {}

    def note(tensor):
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    twin = copy.deepcopy(model).to("meta").train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        twin(torch.empty(shape, device="meta"))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def free_memory() -> int | None:
    """Bytes that this process can still take; None where nobody says."""
    try:
        import psutil
    except ImportError:
        return None
    limits = [psutil.virtual_memory().available]
    used, allowed = (Path("/sys/fs/cgroup", f"memory.{name}") for name in ("current", "max"))
    if allowed.exists() and allowed.read_text().strip().isdigit():  # a container
        limits.append(int(allowed.read_text()) - int(used.read_text()))
    try:
        import resource
    except ImportError:  # Windows
        return min(limits)
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]  # ulimit -v
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space - psutil.Process().memory_info().vms)
    return max(0, min(limits))
