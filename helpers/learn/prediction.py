"""What a trained network says of scans or images, and what in them it says it of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from helpers.learn.checkpoints import load_weights, read_checkpoint
from helpers.learn.devices import Scans, autocast, pick_device, pick_precision, seeded
from helpers.learn.networks import adjacent_slices, encode_slice_by_slice


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


def gradient_maps(
    model: nn.Module, volume: np.ndarray, layer: nn.Module, device: str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """Input gradient and Grad-CAM of one scan, uint8 (D, H, W): two heat maps of its shape.

    layer: the part of model.encoder whose maps (n, C, h, w) Grad-CAM weighs, each by the mean of
    the logit's gradient over it; what is left is positive, and enlarged to (H, W). The other map is
    the size of the gradient at every voxel. Selvaraju et al. 2017, arXiv 1610.02391; Simonyan et
    al. 2014, arXiv 1312.6034.
    """
    used, maps = pick_device(device), []
    model = model.to(used).eval()
    scan = Scans(volume[None], used).take(np.array([0])).requires_grad_()
    hook = layer.register_forward_hook(lambda layer, inputs, output: maps.append(output))
    # cuDNN's LSTM has no gradient in evaluation mode
    with hook, torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        to_voxels, *to_maps = torch.autograd.grad(model(scan)[0].sum(), [scan, *maps])
    weights = (gradient.mean(dim=(2, 3), keepdim=True) for gradient in to_maps)
    heat = torch.cat([(w * m).sum(dim=1).relu() for w, m in zip(weights, maps, strict=True)])
    heat = interpolate(heat[None], size=volume.shape[1:], mode="bilinear")[0]
    return to_voxels[0].abs().cpu().numpy(), heat.detach().cpu().numpy()


def occlusion_map(
    model: nn.Module,
    volume: np.ndarray,
    n_blocks: tuple[int, int, int] = (8, 6, 6),
    fill: int = 27,
    device: str = "auto",
) -> np.ndarray:
    """By how much the logit falls when a block of the scan is hidden, as a map (D, H, W).

    volume: uint8 (D, H, W). n_blocks: along each axis, side by side without overlap. fill: the grey
    value that hides; 27 are -852 HU, which is healthy lung. Only slices that a block touches are
    encoded again. Zeiler and Fergus 2014, arXiv 1311.2901.
    """
    used, heat = pick_device(device), np.zeros(volume.shape, np.float32)
    model = model.to(used).eval()
    scan = Scans(volume[None], used).take(np.array([0]))
    block = [max(1, n // k) for n, k in zip(volume.shape, n_blocks, strict=True)]
    corners = [range(0, n, step) for n, step in zip(volume.shape, block, strict=True)]
    with torch.inference_mode():
        seen = encode_slice_by_slice(model.encoder, scan)
        whole = model(seen)[0]
        for z in corners[0]:
            touched = slice(max(z - 1, 0), z + block[0] + 1)  # its neighbours show it, too
            places = [(y, x) for y in corners[1] for x in corners[2]]
            hidden = seen.repeat(len(places), 1, 1)
            for k, (y, x) in enumerate(places):
                changed = scan.clone()
                changed[0, z : z + block[0], y : y + block[1], x : x + block[2]] = fill / 255
                hidden[k, touched] = model.encoder(adjacent_slices(changed)[0, touched])
            for (y, x), fall in zip(places, (whole - model(hidden)[0]).cpu(), strict=True):
                heat[z : z + block[0], y : y + block[1], x : x + block[2]] = fall
    return heat


def hide_slices(
    model: nn.Module, sequence: np.ndarray, instead: np.ndarray, device: str = "auto"
) -> np.ndarray:
    """By how much the logit falls when a slice's features are replaced, for every slice: (D,).

    sequence: the scan's features (D, F). instead: (D, F), for example the mean of healthy scans.
    """
    used = pick_device(device)
    model = model.to(used).eval()
    whole = torch.from_numpy(np.asarray(sequence, np.float32)).to(used)
    hidden = whole.repeat(len(whole), 1, 1)
    each = torch.arange(len(whole))
    hidden[each, each] = torch.from_numpy(np.asarray(instead, np.float32)).to(used)
    with torch.inference_mode():
        return (model(whole[None])[0] - model(hidden)[0]).cpu().numpy()
