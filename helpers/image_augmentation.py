"""Random changes of 2-D images, batched on the device: crops, turns, grey values, blur, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from helpers.augmentation import normal_noise


@dataclass(frozen=True)
class Recipe:
    """How far images may be changed; call it with a batch and a generator.

    scale: the share of the area that a crop keeps, drawn evenly between the two; the crop fills
    the image again. ratio: its sides may differ by this factor; a side longer than the image is
    cut, and the area with it. degrees: turned by up to this either way. flip: left-right, half of
    them. contrast, brightness: factor and offset of the grey values, up to this from 1 and 0.
    gamma: up to this factor either way. blur: the largest standard deviation in pixels of a
    Gaussian, applied to half of the images. noise: the largest standard deviation.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    ratio: float = 1.0
    degrees: float = 0.0
    flip: bool = True
    contrast: float = 0.0
    brightness: float = 0.0
    gamma: float = 1.0
    blur: float = 0.0
    noise: float = 0.0

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Change every image of a batch by itself.

        images: float (B, 1, H, W) in [0, 1] on any device; returns the same, a new tensor.
        generator: a CPU generator; the same seed gives the same images on every device, but for
        the noise.
        """
        n = len(images)

        def draw(low: float, high: float) -> torch.Tensor:
            numbers = low + (high - low) * torch.rand(n, generator=generator)
            return numbers.to(images.device)

        area, stretch = draw(*self.scale), draw(-1, 1) * math.log(self.ratio)
        height = (area * torch.exp(stretch)).sqrt().clamp(max=1)
        width = (area * torch.exp(-stretch)).sqrt().clamp(max=1)
        top, left = draw(0, 1) * (1 - height), draw(0, 1) * (1 - width)
        angle = math.radians(self.degrees) * draw(-1, 1)
        mirror = (draw(0, 1) < 0.5) & self.flip
        images = cut_out(images, top, left, height, width, angle, mirror)
        if self.blur:
            sigma = self.blur * draw(0.05, 1)
            blurred = blur(images, sigma, self.blur)
            chosen = (draw(0, 1) < 0.5).view(-1, 1, 1, 1)
            images = torch.where(chosen, blurred, images)
        power = torch.exp(math.log(self.gamma) * draw(-1, 1)).view(-1, 1, 1, 1)
        factor = (1 + self.contrast * draw(-1, 1)).view(-1, 1, 1, 1)
        offset = (self.brightness * draw(-1, 1)).view(-1, 1, 1, 1)
        images = images.clamp(0, 1).pow(power)
        middle = images.mean(dim=(2, 3), keepdim=True)
        images = (images - middle) * factor + middle + offset
        if self.noise:
            field = normal_noise(images.shape, generator, images.device)
            images = images + self.noise * draw(0, 1).view(-1, 1, 1, 1) * field
        return images.clamp(0, 1)


# He et al. 2020 (medRxiv 2020.04.13.20063941): random resized crop with scale 0.5 to 1, and flip
PUBLISHED = Recipe(scale=(0.5, 1.0), ratio=4 / 3)
# MoCo v2 (Chen et al. 2020, arXiv 2003.04297) without its colours
CONTRAST = Recipe(
    scale=(0.2, 1.0), ratio=4 / 3, contrast=0.4, brightness=0.4, gamma=1.5, blur=2.0, noise=0.04
)


def cut_out(
    images: torch.Tensor,
    top: torch.Tensor,
    left: torch.Tensor,
    height: torch.Tensor,
    width: torch.Tensor,
    angle: torch.Tensor,
    mirror: torch.Tensor,
) -> torch.Tensor:
    """Enlarge a box of each image to the whole image, turned by `angle` (radians, (B,)).

    images: (B, C, H, W). top, left, height, width: (B,), as fractions of H and W. mirror: (B,)
    bool, left-right. Bilinear; what lies outside is black.
    """
    rows, columns = images.shape[-2:]
    cosine, sine, ratio = torch.cos(angle), torch.sin(angle), rows / columns
    sign = torch.where(mirror, -1.0, 1.0)
    # affine_grid asks where each output pixel comes from, in half widths and half heights
    from_columns = [sign * width * cosine, -height * sine * ratio, 2 * left + width - 1]
    from_rows = [sign * width * sine / ratio, height * cosine, 2 * top + height - 1]
    where = torch.stack([torch.stack(from_columns, 1), torch.stack(from_rows, 1)], 1)
    grid = functional.affine_grid(where, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid.to(images.dtype), align_corners=False)


def blur(images: torch.Tensor, sigma: torch.Tensor, largest: float) -> torch.Tensor:
    """Gaussian blur with a standard deviation of its own for each image, edges repeated.

    images: (B, 1, H, W). sigma: (B,) pixels. largest: the largest that may come.
    """
    reach = max(1, math.ceil(2 * largest))
    places = torch.arange(-reach, reach + 1, device=images.device)
    kernels = torch.exp(-0.5 * (places / sigma.view(-1, 1)) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).to(images.dtype)
    n, length = kernels.shape
    padded = functional.pad(images, (reach, reach, reach, reach), mode="replicate")
    across = functional.conv2d(padded.transpose(0, 1), kernels.view(n, 1, 1, length), groups=n)
    down = functional.conv2d(across, kernels.view(n, 1, length, 1), groups=n)
    return down.transpose(0, 1)
