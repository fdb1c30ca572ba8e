"""Random changes of scans, of their features and of images, whole batches on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as functional


def augment(
    volumes: torch.Tensor,
    generator: torch.Generator,
    strength: float = 1.0,
    flip: bool = True,
    degrees: float = 10.0,
    shift: float = 0.05,
    scale: float = 0.05,
    slice_shift: float = 1.0,
    slice_stretch: float = 0.05,
    gain: float = 0.02,
    offset: float = 0.01,
    gamma: float = 0.04,
    noise: float = 0.01,
    within: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Augment a batch: each scan as a whole gets its own random change.

    volumes: float (B, D, H, W) in [0, 1] on any device; returns the same, a new tensor.
    generator: a CPU generator. All random numbers come from it, so the same seed gives the
    same scans on every device, but for the noise (`normal_noise`). strength multiplies every
    range below; 0 changes nothing.

    flip: left-right, half of the scans. degrees: rotation in the plane, up to this much either
    way. shift, scale: of the plane, as a fraction of its size. slice_shift (slices),
    slice_stretch (fraction): along the depth. gain, offset, gamma: brightness, as deviations
    from 1, 0 and 1 (small, because HU are calibrated). noise: largest standard deviation.
    Outside the plane is air (0).

    within: (first, n) where the volumes are only a part of a batch, its scans `first` to
    first + B - 1 of n: each is changed as it would be in the whole batch.
    """
    if volumes.ndim != 4:
        raise ValueError(
            f"scans of shape {tuple(volumes.shape)}: only (B, D, H, W) can be augmented"
        )
    if strength == 0:
        return volumes.clone()
    first, n_scans = within or (0, len(volumes))
    own = slice(first, first + len(volumes))

    def draw(largest: float) -> torch.Tensor:
        numbers = 2 * torch.rand(n_scans, generator=generator) - 1
        return (strength * largest * numbers[own]).to(volumes.device)

    flipped = (draw(1.0) > 0) & flip
    angle, enlarge = draw(math.radians(degrees)), 1 + draw(scale)
    across, along = draw(2 * shift), draw(2 * shift)
    moved, stretch = draw(slice_shift), 1 + draw(slice_stretch)
    gains, offsets, gammas = 1 + draw(gain), draw(offset), 1 + draw(gamma)
    deviations = draw(noise)

    volumes = torch.where(flipped.view(-1, 1, 1, 1), volumes.flip(-1), volumes)
    volumes = move_slices(volumes, moved, stretch)
    volumes = move_plane(volumes, angle, enlarge, across, along)
    volumes = volumes.clamp(0, 1).pow(gammas.view(-1, 1, 1, 1))
    volumes = volumes * gains.view(-1, 1, 1, 1) + offsets.view(-1, 1, 1, 1)
    if noise > 0:
        # One field for the batch, with an amplitude and a sign of its own in each scan: on a CPU
        # noise for every voxel of the batch would take longer than the network.
        field = normal_noise(volumes.shape[1:], generator, volumes.device)
        volumes = torch.addcmul(volumes, deviations.view(-1, 1, 1, 1), field)
    return volumes.clamp(0, 1)


@dataclass(frozen=True)
class SequenceAugmentation:
    """Random changes of feature sequences (B, D, F), for `fit`.

    flip: read half of the scans from the other end. drop: the share of features that are 0 in a
    whole scan; the others are enlarged to make up for them.
    """

    flip: bool = True
    drop: float = 0.1

    def __call__(self, sequences: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        n, _, width = sequences.shape
        flipped = (torch.rand(n, generator=generator) < 0.5) & self.flip
        kept = torch.rand(n, 1, width, generator=generator) >= self.drop
        flipped = flipped.view(n, 1, 1).to(sequences.device)
        sequences = torch.where(flipped, sequences.flip(1), sequences)
        return sequences * kept.to(sequences) / (1 - self.drop)


def normal_noise(
    shape: torch.Size, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    """Standard normal numbers, drawn on the device from a seed that the CPU generator gives.

    From the same seed a GPU draws other numbers than a CPU does, and much faster than a CPU could
    draw and send them: four million for one field of 64 x 256 x 256.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def move_plane(
    volumes: torch.Tensor,
    angle: torch.Tensor,
    enlarge: torch.Tensor,
    across: torch.Tensor,
    along: torch.Tensor,
) -> torch.Tensor:
    """Rotate, scale and shift every slice of a scan alike, about the middle of the plane.

    volumes: (B, D, H, W). angle: (B,) radians, positive turns columns towards rows. enlarge:
    (B,) factor. across, along: (B,) shifts of columns and rows, in half widths and half heights.
    """
    n_rows, n_columns = volumes.shape[-2:]
    cosine, sine = torch.cos(angle) / enlarge, torch.sin(angle) / enlarge
    # grid_sample asks where each output pixel comes from, in half widths and half heights.
    ratio = n_rows / n_columns
    from_columns = torch.stack([cosine, sine * ratio, -across], dim=1)
    from_rows = torch.stack([-sine / ratio, cosine, -along], dim=1)
    inverse = torch.stack([from_columns, from_rows], dim=1)
    grid = functional.affine_grid(inverse, list(volumes.shape), align_corners=False)
    return functional.grid_sample(volumes, grid.to(volumes.dtype), align_corners=False)


def move_slices(volumes: torch.Tensor, moved: torch.Tensor, stretch: torch.Tensor) -> torch.Tensor:
    """Shift and stretch scans along the depth, linear between slices, end slices repeated.

    volumes: (B, D, H, W). moved: (B,) slices upwards. stretch: (B,) factor about the middle.
    """
    n_scans, n_slices = volumes.shape[:2]
    middle = (n_slices - 1) / 2
    places = torch.arange(n_slices, device=volumes.device) - middle
    source = places / stretch.view(-1, 1) - moved.view(-1, 1) + middle
    source = source.clamp(0, n_slices - 1)
    below = source.floor().long()
    above = (below + 1).clamp(max=n_slices - 1)
    weight = (source - below).view(n_scans, n_slices, 1, 1).to(volumes.dtype)
    scan = torch.arange(n_scans, device=volumes.device).view(-1, 1)
    return torch.lerp(volumes[scan, below], volumes[scan, above], weight)


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
        images = crop(images, top, left, height, width, angle, mirror)
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


def crop(
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

    images: (B, 1, H, W). sigma: (B,) pixels. largest: the largest that may occur.
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
