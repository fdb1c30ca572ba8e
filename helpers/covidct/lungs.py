"""The lungs of a grey CT picture, cut out by thresholds alone, and what their greys say.

A picture from a paper has no HU: its window, its crop and its sharpness are the journal's. What is
left of these when only the lungs remain, on a scale of their own?
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

TISSUE, AIRED = 208, 64  # the greys of soft tissue and of aired lung in `lungs_alone`
SHARPNESS = 96  # pixels a side


def otsu(grey: np.ndarray) -> int:
    """The grey that parts dark and bright pixels best; grey: uint8, any shape.

    It makes the variance between the two groups largest (Otsu 1979, IEEE SMC 9:62).
    """
    counts = np.bincount(grey.ravel(), minlength=256)
    below, summed = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    gap = summed / np.maximum(below, 1) - (summed[-1] - summed) / np.maximum(above, 1)
    return int(np.argmax(below * above * gap**2))


def without_bars(grey: np.ndarray) -> np.ndarray:
    """The picture (H, W), uint8, without the black rows and columns around it.

    ValueError for a picture that is black all over.
    """
    rows, columns = (np.flatnonzero(grey.max(axis=axis) > 12) for axis in (1, 0))
    if not len(rows):
        raise ValueError("the picture is black all over: leave it out")
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def find_lungs(grey: np.ndarray) -> np.ndarray:
    """Mask (H, W) of the lungs in a picture (H, W), uint8; empty where none are found.

    Lungs are large dark parts. Air around the body has a corner of the picture, air below the
    table runs from its left edge to its right. Closing brings back vessels and opacities, which
    are bright; a consolidation that reaches the chest wall stays out.
    """
    height, width = grey.shape
    dark = ndimage.gaussian_filter(grey.astype(np.float32), 1) < otsu(grey)
    parts, n_parts = ndimage.label(ndimage.binary_opening(dark))
    tall, wide = max(2, height // 12), max(2, width // 12)
    at_left, at_right = np.unique(parts[:, :3]), np.unique(parts[:, -3:])
    ends = np.concatenate([parts[:tall], parts[-tall:]])
    at_corner = np.unique([ends[:, :wide], ends[:, -wide:]])
    area = np.bincount(parts.ravel(), minlength=n_parts + 1)
    large = np.flatnonzero(area > 0.012 * grey.size)
    mask = np.isin(parts, np.setdiff1d(large, [0, *at_corner, *np.intersect1d(at_left, at_right)]))
    if not mask.any():
        return mask
    r = max(2, round(0.06 * width))
    grown = ndimage.distance_transform_edt(~np.pad(mask, r)) <= r
    closed = ndimage.distance_transform_edt(grown) > r
    return ndimage.binary_fill_holes(closed)[r:-r, r:-r] | mask


def tissue_grey(picture: np.ndarray) -> float:
    """The grey of soft tissue: the median of what is bright in a picture (H, W), uint8.

    ValueError for a picture that is black all over.
    """
    grey = without_bars(picture)
    return float(np.median(grey[grey > otsu(grey)]))


def standardise_grey(grey: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Greys with aired lung at 0 and soft tissue at 1, whatever the window was; float32 (H, W).

    Aired lung: the 20th percentile inside the mask. Soft tissue: see `tissue_grey`.
    """
    aired, tissue = np.percentile(grey[lungs], 20), tissue_grey(grey)
    return ((grey - aired) / max(tissue - aired, 20)).astype(np.float32)


def lung_histogram(picture: np.ndarray) -> np.ndarray:
    """How much of the lungs has which standardised grey: (16,), sums to 1; picture: uint8.

    The bins share -0.15 to 1.05 equally. Three pixels at the rim, half lung and half wall, do not
    count. No lungs: the whole picture. ValueError for a black picture.
    """
    grey, lungs = _cut_out(picture)
    inner = ndimage.binary_erosion(lungs, iterations=3)
    values = standardise_grey(grey, lungs)[inner if inner.any() else lungs]
    counts, _ = np.histogram(values.clip(-0.15, 1.05), 16, (-0.15, 1.05))
    return counts / counts.sum()


def hazy_share(histogram: np.ndarray) -> np.ndarray:
    """The share of the lungs that is greyer than aired lung: 0.225 to 0.75 on their own scale.

    histogram: (..., 16), from `lung_histogram`; returns (...,).
    """
    return histogram[..., 5:12].sum(axis=-1)


def lungs_alone(picture: np.ndarray, size: int = 224) -> np.ndarray:
    """Only the lungs, cropped to their box, in a square: uint8 (size, size); picture: uint8.

    Everything else has the grey of soft tissue, 208, and aired lung has 64. A picture is reduced to
    SHARPNESS before it is enlarged, so that all are equally blurred. No lungs: the whole picture.
    ValueError for a black picture.
    """
    grey, lungs = _cut_out(picture)
    standard = np.clip(AIRED + (TISSUE - AIRED) * standardise_grey(grey, lungs), 0, TISSUE)
    alone = np.where(lungs, standard, TISSUE).astype(np.uint8)
    alone = alone[ndimage.find_objects(lungs.astype(int))[0]]
    factor = 0.94 * SHARPNESS / max(alone.shape)
    fitted = Image.fromarray(alone).resize(
        [max(1, round(n * factor)) for n in alone.shape[::-1]], Image.Resampling.LANCZOS
    )
    square = Image.new("L", (SHARPNESS, SHARPNESS), TISSUE)
    square.paste(fitted, [(SHARPNESS - n) // 2 for n in fitted.size])
    smooth = square.filter(ImageFilter.MedianFilter(3))
    return np.asarray(smooth.resize((size, size), Image.Resampling.BICUBIC))


def _cut_out(picture):
    """The picture without bars, and the mask of its lungs: all of it where none are found."""
    grey = without_bars(picture)
    lungs = find_lungs(grey)
    return grey, lungs if lungs.any() else np.ones(grey.shape, bool)
