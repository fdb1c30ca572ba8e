"""Training shared out among several processes, on one machine or many; the same results as one.

`torchrun` starts the processes and tells each its number, its rank, from 0.
Each batch of the one-process run is shared out (`shard`), and everything that looks at a whole
batch still does: the loss, the gradient (DistributedDataParallel), the statistics of BatchNorm
(`parallel`), the random changes of the scans. So the losses are those of one process up to
rounding. Dropout is the exception: each rank draws its own, so with it a run on two processes
is as good as one on one, but not equal to it. Only rank 0 writes files; all ranks read them, so
with several machines the folders of data and runs must be on a file system that they share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

# One process makes or downloads the cohort while the others wait.
PATIENCE = timedelta(hours=2)
# what torchrun tells each process, beside WORLD_SIZE
TOLD = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
TOLD += ("MASTER_ADDR", "MASTER_PORT")


def n_processes() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0; 0 without a process group."""
    return dist.get_rank() if n_processes() > 1 else 0


def own_device() -> torch.device:
    """Where this process computes: its GPU under NCCL, else the CPU."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, and leave them at the end.

    NCCL and the GPU cuda:LOCAL_RANK where this machine has a GPU for each of its processes, else
    gloo and the CPU. Does nothing where torchrun has started one process, or none. ValueError where
    another launcher has started several and left out what torchrun tells them.
    """
    n = os.environ.get("WORLD_SIZE") or "1"
    if not n.isdecimal() or int(n) < 2:
        yield
        return
    if missing := [name for name in TOLD if not os.environ.get(name)]:
        raise ValueError(
            f"{n} processes, but {', '.join(missing)} not set: start them with torchrun"
        )
    local = int(os.environ["LOCAL_RANK"])
    store, own, size = next(rendezvous("env://", timeout=PATIENCE))
    if os.environ["GROUP_WORLD_SIZE"] == "1":
        # After a restart torchrun's store still holds the addresses of the processes that died.
        store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    options = {"backend": "gloo", "store": store, "rank": own, "world_size": size}
    if 0 < int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count():
        torch.cuda.set_device(local)
        options |= {"backend": "nccl", "device_id": torch.device("cuda", local)}
    dist.init_process_group(timeout=PATIENCE, **options)
    try:
        yield
    finally:
        dist.destroy_process_group()


def shard(n: int) -> slice:
    """Which of n scans are this process's: sizes differ by one at most, and follow the ranks."""
    size, own = n_processes(), rank()
    return slice(n * own // size, n * (own + 1) // size)


def check_shards(n_train: int, n_validation: int, batch_size: int) -> None:
    """ValueError, in one line, unless every process gets a scan of every batch."""
    size = n_processes()
    last = (n_train - 1) % batch_size + 1
    if min(last, n_validation) >= size:
        return
    good = [b for b in range(size, n_train + 1) if (n_train - 1) % b + 1 >= size]
    if n_validation < size or not good:
        raise ValueError(
            f"{n_train} training and {n_validation} validation scans are too few for {size} "
            "processes: start fewer"
        )
    nearest = min(good, key=lambda b: abs(b - batch_size))
    raise ValueError(
        f"batch_size={batch_size} leaves {last} of {n_train} training scans for an epoch's last "
        f"batch, too few for {size} processes: take batch_size={nearest}, or start fewer processes"
    )


@contextmanager
def rank_0_first() -> Iterator[None]:
    """Rank 0 runs the block, then the others do, and all go on when all have finished.

    RuntimeError in the others when it failed in rank 0.
    """
    if n_processes() == 1:
        yield
        return
    failed = torch.ones(1, device=own_device())
    if rank() == 0:
        try:
            yield
            failed.zero_()
        finally:
            dist.broadcast(failed, src=0)
    else:
        dist.broadcast(failed, src=0)
        if failed.item():
            raise RuntimeError("stopped, because rank 0 failed; its message says why")
        yield
    dist.barrier()


def broadcast(value):
    """The value, made of plain numbers and text, that rank 0 gives; the others wait for it."""
    if n_processes() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def mean_over_batch(loss: torch.Tensor) -> float:
    """The global batch's loss, from the weighted loss of each rank's shard (see `parallel`)."""
    if n_processes() == 1:
        return loss.item()
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total.item() / n_processes()


def gather(part: torch.Tensor, n: int) -> torch.Tensor:
    """Every rank's shard of a tensor (n, ...), put together; all ranks get it, on the CPU."""
    if n_processes() == 1:
        return part
    whole = torch.zeros(n, *part.shape[1:], dtype=part.dtype, device=own_device())
    whole[shard(n)] = part.to(whole.device)
    dist.all_reduce(whole)  # a sum in which all but one are 0, so it is exact
    return whole.cpu()


class SumOverRanks(torch.autograd.Function):
    """The sum over all processes of a tensor, and on the way back of its gradients."""

    @staticmethod
    def forward(context, values: torch.Tensor) -> torch.Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> torch.Tensor:
        return SumOverRanks.apply(gradient)


def global_batch_norm(norm: _BatchNorm, values: torch.Tensor) -> torch.Tensor:
    """What `norm` makes of values (B, C, ...) when the batch is spread over the processes.

    Mean and variance (Ioffe and Szegedy 2015, arXiv 1502.03167) are those of all shares together,
    and so are the running ones. PyTorch's SyncBatchNorm does this too, but on GPUs only.
    """
    if not norm.training:
        return type(norm).forward(norm, values)
    norm._check_input_dim(values)
    axes = [0, *range(2, values.ndim)]
    per_channel = (1, -1) + (1,) * (values.ndim - 2)
    exact = values.float()
    count = exact.new_tensor([values.numel() // values.shape[1]])
    sums = SumOverRanks.apply(torch.cat([exact.sum(axes), count]))
    mean, n = sums[:-1] / sums[-1], sums[-1]
    centred = exact - mean.view(per_channel)
    variance = SumOverRanks.apply(centred.square().sum(axes)) / n
    normed = centred * torch.rsqrt(variance + norm.eps).view(per_channel)
    if norm.affine:
        normed = normed * norm.weight.view(per_channel) + norm.bias.view(per_channel)
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            momentum = norm.momentum
            momentum = 1 / norm.num_batches_tracked.item() if momentum is None else momentum
            norm.running_mean.lerp_(mean, momentum)
            norm.running_var.lerp_(variance * n / (n - 1), momentum)
    return normed.to(values.dtype)


@contextmanager
def parallel(model: nn.Module) -> Iterator[nn.Module]:
    """Yield `model` so that calling it trains on the shares of a batch as on the whole.

    The gradient is the mean of the ranks' gradients: multiply a rank's mean loss by its share
    of the batch and by the number of processes. Inside, the BatchNorm modules compute with
    `global_batch_norm`; they stay what they are, so that the model's text and the names of its
    weights do too, and a checkpoint fits one process and many.
    """
    if n_processes() == 1:
        yield model
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(global_batch_norm, norm)
    try:
        yield nn.parallel.DistributedDataParallel(model)
    finally:
        for norm in norms:
            del norm.forward
