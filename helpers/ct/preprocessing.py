"""From HU to the array that a network sees, the simple way and the fast way.

`preprocess_fast` does what `preprocess` does, several times faster, for whole cohorts. Most of its
time goes into unpacking the file, so the rest must not add much: whole numbers while they last, one
slice at a time so that it stays in the processor's cache, and only the old slices that a new one is
mixed from.
"""

from __future__ import annotations

import math

import numpy as np

from helpers.ct.studies import Study, read_study

WINDOW = (-1000, 400)  # HU: what the network sees
SIZE = (64, 256, 256)


def window(hu, low=WINDOW[0], high=WINDOW[1], level=None, width=None):
    """Map Hounsfield units to [0, 1]; `low` and below become 0, `high` and above 1.

    hu: array of any shape, HU. A radiologist's `level` and `width` replace low and high:
    level - width / 2 to level + width / 2. Returns float32, same shape. ValueError unless
    low < high.
    """
    if level is not None and width is not None:
        low, high = level - width / 2, level + width / 2
    if not low < high:
        raise ValueError(f"a window needs low < high, not {low} and {high} HU")
    scaled = np.clip(hu, low, high).astype(np.float32)
    return (scaled - np.float32(low)) / np.float32(high - low)


def resampling_matrix(n_in, n_out):
    """Weights (n_out, n_in) that turn n_in samples along an axis into n_out samples.

    Both grids cover the same length. Fewer samples: each is the mean over its share of the axis,
    so fine detail does not alias. More: linear between the two nearest centres, and beyond the
    first and last centre the end sample itself, so nothing is extrapolated.
    """
    weights = np.zeros((n_out, n_in), dtype=np.float32)
    ratio = n_in / n_out
    for row in range(n_out):
        if n_out < n_in:
            start, stop = row * ratio, (row + 1) * ratio
            for k in range(int(start), min(n_in, math.ceil(stop))):
                weights[row, k] = (min(k + 1, stop) - max(k, start)) / ratio
        else:
            centre = min(max((row + 0.5) * ratio - 0.5, 0), n_in - 1)
            below = min(int(centre), max(n_in - 2, 0))
            above = min(below + 1, n_in - 1)
            weights[row, below] += 1 - (centre - below)
            weights[row, above] += centre - below
    return weights


def resample(volume, size=SIZE):
    """Resample a volume (D, H, W) to `size`, one axis after the other; float32."""
    depth, height, width = (
        resampling_matrix(n_in, n_out) for n_in, n_out in zip(volume.shape, size, strict=True)
    )
    planes = height @ (volume @ width.T)
    return (depth @ planes.reshape(len(planes), -1)).reshape(size)


def pad_to_square(volume, spacing, fill):
    """Pad the slices of a volume (D, H, W) evenly with `fill` until they are square in mm.

    Without it, a field of view that is not square would be squeezed into the square slices that
    the network sees. Slices that are square to within a pixel are returned as they are.
    """
    height, width = volume.shape[1] * spacing[1], volume.shape[2] * spacing[2]
    rows = max(0, round((width - height) / spacing[1]))
    columns = max(0, round((height - width) / spacing[2]))
    if rows <= 1 and columns <= 1:
        return volume
    margins = ((0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
    return np.pad(volume, margins, constant_values=fill)


def preprocess(study, size=SIZE, limits=WINDOW):
    """Turn a study into what the network sees: uint8, (D, H, W) = `size`.

    study: a Study or the path of one. limits: the window's low and high end, HU. Window, square
    field of view, resample, 256 grey levels. UnreadableStudy if the file cannot be used.
    """
    if not isinstance(study, Study):
        study = read_study(study)
    scaled = pad_to_square(window(study.hu, *limits), study.spacing, fill=0)
    return np.rint(resample(scaled, size) * 255).astype(np.uint8)


def preprocess_fast(study, size=SIZE, limits=WINDOW):
    """Turn a study into what the network sees: uint8, (D, H, W) = `size`.

    study: a Study or the path of one. limits: the window's low and high end, HU. Equal to
    `preprocessing.preprocess`, except that a value half-way between two grey levels may round to
    either. UnreadableStudy if the file cannot be used.
    """
    if not isinstance(study, Study):
        study = read_study(study)
    return preprocess_hu(study.read_hu(), study.spacing, size, limits)


def preprocess_hu(hu, spacing, size=SIZE, limits=WINDOW):
    """As `preprocess_fast`, from int16 HU (D, H, W) and their spacing (z, y, x) in mm."""
    air = int(np.clip(np.floor(limits[0]), -32768, 32767))
    hu = pad_to_square(hu, spacing, fill=air)
    planes, full = shrink_slices(hu, size[1:], limits)
    mixed = np.empty(size, dtype=np.uint8)
    for new, weights in zip(mixed, resampling_matrix(len(hu), size[0]), strict=True):
        new[:] = np.rint(mix(planes, weights * np.float32(255 / full)))
    return mixed


def shrink_slices(hu, size, limits):
    """Window and resample every slice of int16 HU (D, H, W) to `size`.

    Returns the planes (D, *size) and the value in them that stands for the window's high end. If
    pixels and limits are whole multiples, a new pixel is a sum of whole numbers, not yet a mean.
    """
    low, high = limits
    step = hu.shape[1] // size[0]
    full = step * step * (high - low)
    is_whole = hu.shape[1:] == (step * size[0], step * size[1])
    fits = low == int(low) >= -32768 and high == int(high) and high > low and 0 < full <= 32767
    if is_whole and fits:
        low, high = np.int16(low), np.int16(high)
        planes = np.empty((len(hu), *size), dtype=np.int16)
        for plane, image in zip(planes, hu, strict=True):
            add_blocks(np.clip(image, low, high) - low, step, plane)
        return planes, full
    rows, columns = (resampling_matrix(*n) for n in zip(hu.shape[1:], size, strict=True))
    planes = np.empty((len(hu), *size), dtype=np.float32)
    for plane, image in zip(planes, hu, strict=True):
        np.matmul(rows @ window(image, *limits), columns.T, out=plane)
    return planes, 1


def add_blocks(image, step, out):
    """Sum the blocks of step x step pixels of `image` into `out`."""
    rows = sum(image[k::step] for k in range(step))
    np.copyto(out, sum(rows[:, k::step] for k in range(step)))


def mix(planes, weights):
    """Weighted sum of planes (D, H, W), float32; planes of weight 0 are not even read."""
    used = np.flatnonzero(weights)
    mixed = planes[used[0]] * weights[used[0]]
    for k in used[1:]:
        mixed += planes[k] * weights[k]
    return mixed
