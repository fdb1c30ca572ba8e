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

    mirror = torch.where((draw(1.0) > 0) & flip, -1.0, 1.0)
    angle, side = draw(math.radians(degrees)), 1 / (1 + draw(scale))
    across, along = draw(2 * shift), draw(2 * shift)
    moved, stretch = draw(slice_shift), 1 + draw(slice_stretch)
    gains, offsets, gammas = 1 + draw(gain), draw(offset), 1 + draw(gamma)
    deviations = draw(noise)

    volumes = move_slices(volumes, moved, stretch)
    volumes = move_plane(volumes, mirror * side, side, across, along, angle)
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
    images: torch.Tensor,
    width: torch.Tensor,
    height: torch.Tensor,
    across: torch.Tensor,
    along: torch.Tensor,
    angle: torch.Tensor,
) -> torch.Tensor:
    """Fill each image with a box of itself; outside the image is 0, between pixels bilinear.

    images: (B, C, H, W), all C alike: the slices of a scan, or one grey image. All others (B,).
    width, height: of the box, as shares of the image's; a negative width mirrors left and right.
    across, along: of the box's middle from the image's, in half widths and half heights. angle:
    radians by which the box is turned, positive from the columns towards the rows.
    """
    ratio = images.shape[-2] / images.shape[-1]
    cosine, sine = torch.cos(angle), torch.sin(angle)
    # affine_grid asks where each output pixel comes from, in half widths and half heights
    from_columns = torch.stack([width * cosine, -height * sine * ratio, across], dim=1)
    from_rows = torch.stack([width * sine / ratio, height * cosine, along], dim=1)
    places = torch.stack([from_columns, from_rows], dim=1)
    grid = functional.affine_grid(places, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid.to(images.dtype), align_corners=False)


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
class ImageAugmentation:
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
        along, across = draw(-1, 1) * (1 - height), draw(-1, 1) * (1 - width)
        angle = math.radians(self.degrees) * draw(-1, 1)
        mirror = torch.where((draw(0, 1) < 0.5) & self.flip, -1.0, 1.0)
        images = move_plane(images, mirror * width, height, across, along, angle)
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
PUBLISHED = ImageAugmentation(scale=(0.5, 1.0), ratio=4 / 3)
# MoCo v2 (Chen et al. 2020, arXiv 2003.04297) without its colours
CONTRAST = ImageAugmentation(
    scale=(0.2, 1.0), ratio=4 / 3, contrast=0.4, brightness=0.4, gamma=1.5, blur=2.0, noise=0.04
)


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
