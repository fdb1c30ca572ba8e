"""Learn from images without labels: momentum contrast, MoCo v2.

He et al. 2020, arXiv 1911.05722 (MoCo); Chen et al. 2020, arXiv 2003.04297 (v2).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from helpers.learn.augmentation import CONTRAST
from helpers.learn.checkpoints import fingerprint
from helpers.learn.devices import Scans, autocast, pick_device, pick_precision, seeded
from helpers.learn.prediction import infer
from helpers.learn.training import (
    begin_run,
    check_loss,
    follow_gradient,
    run_epochs,
    set_learning_rate,
)


class MoCo(nn.Module):
    """Two networks and a queue: which of the keys was made from the same image?

    Unlike v2 the head begins with a BatchNorm: the features of two CT slices are so alike that
    without it training ends with all keys in one direction.
    encoder: images (B, 1, H, W) to (B, encoder.features), the one that is to learn. A projection
    head behind it is thrown away afterwards. queue: keys of earlier batches, the wrong answers;
    a multiple of the batch, and fewer than there are images. momentum: how slowly the key network
    follows. temperature: the smaller, the more the most similar wrong answers count.
    """

    def __init__(
        self,
        encoder: nn.Module,
        size: int = 64,
        queue: int = 512,
        momentum: float = 0.99,
        temperature: float = 0.2,
    ) -> None:
        super().__init__()
        width = encoder.features
        # CT slices look much alike: without the norm all keys soon point the same way
        norm = nn.BatchNorm1d(width, affine=False)
        head = nn.Sequential(norm, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size))
        self.encoder_q = nn.Sequential(encoder, head)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer("queue", normalize(torch.randn(queue, size), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def momentum_update(self) -> None:
        """The key network takes a small step towards the query network."""
        pairs = zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1 - self.momentum)

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor) -> None:
        """The newest keys take the place of the oldest."""
        places = (self.oldest + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys.to(self.queue.dtype)
        self.oldest.copy_((self.oldest + len(keys)) % len(self.queue))

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Two views of each image to similarities (B, 1 + queue); the right answer is column 0."""
        query = normalize(self.encoder_q(one).float(), dim=1)
        with torch.no_grad():
            self.momentum_update()
            key = normalize(self.encoder_k(other).float(), dim=1)
        right = (query * key).sum(dim=1, keepdim=True)
        wrong = query @ self.queue.clone().T
        self.enqueue(key)
        return torch.cat([right, wrong], dim=1) / self.temperature


def pretrain(
    encoder: nn.Module,
    images: np.ndarray,
    run_dir: str | Path,
    epochs: int = 100,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    warmup: float = 0.1,
    augment: Callable = CONTRAST,
    queue: int = 512,
    momentum: float = 0.99,
    clip: float = 1.0,
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
    max_epochs_this_call: int | None = None,
) -> pd.DataFrame:
    """Train `encoder` by MoCo and return the history; the encoder is changed in place.

    images: uint8 (N, 1, H, W), without labels, and none of a validation or test part. The queue is
    cut to whole batches, one at least and at most half of N. run_dir gets last.pt and history.csv;
    an unfinished run is resumed, a finished one is loaded, if the encoder begins with the same
    weights as then. Gradients are cut to the length `clip`. Returns one row an epoch:
    epoch, train_loss, top1_accuracy (see `top1_accuracy`, on one batch), learning_rate, seconds.
    ValueError for fewer images than two batches or changed settings, CheckpointError for a damaged
    last.pt, RuntimeError for a loss that is not finite.
    """
    n_batches = len(images) // batch_size
    if n_batches < 2:
        raise ValueError(
            f"{len(images)} images are too few for two batches of {batch_size}: lower batch_size"
        )
    queue = max(1, min(queue // batch_size, n_batches // 2)) * batch_size
    settings = {
        "start": fingerprint(*(w.detach().cpu().numpy() for w in encoder.state_dict().values())),
        "data": fingerprint(images),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "schedule": "cosine",
        "clip": clip,
        "augment": repr(augment),
        "queue": queue,
        "momentum": momentum,
        "precision": precision,
        "seed": seed,
    }
    folder, used = Path(run_dir), pick_device(device)
    precision = pick_precision(used, precision)
    with seeded(used, seed):
        model = MoCo(encoder, queue=queue, momentum=momentum).to(used)
    components, history = begin_run(model, folder, settings, precision)
    scans = Scans(images, used, keep=True)

    def one_epoch(epoch: int) -> dict[str, float]:
        losses, done = [], epoch * n_batches
        model.train()
        with seeded(used, seed, epoch) as generator:
            order = torch.randperm(len(images), generator=generator).numpy()
            for k in range(n_batches):
                rate = set_learning_rate(components, settings, done + k, epochs * n_batches)
                batch = scans.take(order[k * batch_size : (k + 1) * batch_size])
                one, other = augment(batch, generator), augment(batch, generator)
                with autocast(used, precision):
                    logits = model(one, other)
                loss = cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.long))
                losses.append(loss.item())
                check_loss(losses[-1], epoch, settings)
                follow_gradient(components, loss, clip)
            with autocast(used, precision):
                top1 = top1_accuracy(model.encoder_q, one, other)
        loss = sum(losses) / n_batches
        return {"train_loss": loss, "top1_accuracy": top1, "learning_rate": rate}

    return run_epochs(components, history, folder, settings, one_epoch, max_epochs_this_call)


def top1_accuracy(network: nn.Module, one: torch.Tensor, other: torch.Tensor) -> float:
    """How often, of all the other views of a batch, that of the same image is the most similar.

    one, other: two views of each image, (B, 1, H, W); chance is 1 / B. One network encodes
    both, without a gradient: how often the right key beats the queue would be no measure, since the
    newest keys are the most similar ones even where nothing was learned.
    """
    was_training = network.training
    network.eval()
    with torch.no_grad():
        first, second = (normalize(network(view).float(), dim=1) for view in (one, other))
    network.train(was_training)
    answers = (first @ second.T).argmax(dim=1)
    return float((answers == torch.arange(len(one), device=answers.device)).float().mean())


def features(
    encoder: nn.Module,
    images: np.ndarray,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """What the encoder makes of uint8 images (N, 1, H, W): float32 (N, F), rows of length 1."""
    used = pick_device(device)
    precision, rows = pick_precision(used, precision), np.arange(len(images))
    (found,) = infer(encoder.to(used), Scans(images, used), rows, batch_size, precision)
    return normalize(found, dim=1).numpy()


def nearest(train_features: np.ndarray, features: np.ndarray, n: int = 5) -> np.ndarray:
    """Rows of the n most similar training images, the most similar first: (N, n)."""
    return np.argsort(-features @ train_features.T, axis=1, kind="stable")[:, :n]
