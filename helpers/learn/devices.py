"""Where a network computes, in which numbers, what it is fed, and whether it fits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn

from helpers.learn import ranks


def pick_device(device: str = "auto") -> torch.device:
    """The device that `device` names; "auto" takes CUDA, else Apple's MPS, else the CPU.

    Under torchrun "auto" is the GPU of this process, or the CPU where there is none for each.
    """
    if device != "auto":
        return torch.device(device)
    if ranks.n_processes() > 1:
        return ranks.own_device()
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


def has_bf16() -> bool:
    """Whether this CPU has instructions for bf16, as far as PyTorch tells (newer releases do)."""
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16"))


class Scans:
    """An array or memory map, handed out as float32 batches on the device.

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

    The generator is the same on every rank of `ranks`; torch's own numbers, which dropout
    draws from, differ from rank to rank.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + ranks.rank())
        yield torch.Generator().manual_seed(seed)


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
    """Bytes that this process can still take; None where that cannot be found out."""
    try:
        import psutil
    except ImportError:
        return None
    limits = [psutil.virtual_memory().available]
    used, allowed, kinds = (
        Path("/sys/fs/cgroup", f"memory.{name}") for name in ("current", "max", "stat")
    )
    if allowed.exists() and allowed.read_text().strip().isdigit():  # a container
        # files read before count as used, until somebody else needs the room
        pages = dict(line.split() for line in kinds.read_text().splitlines())
        cached = sum(int(pages.get(kind, 0)) for kind in ("inactive_file", "active_file"))
        limits.append(int(allowed.read_text()) - int(used.read_text()) + cached)
    try:
        import resource
    except ImportError:  # Windows
        return min(limits)
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]  # ulimit -v
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space - psutil.Process().memory_info().vms)
    return max(0, min(limits))
