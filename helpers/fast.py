"""The same as `volumes.preprocess`, several times faster: for whole cohorts.

Most of the time of preprocessing goes into unpacking the file, so the rest must not add much:
whole numbers while they last, one slice at a time so that it stays in the processor's cache, and
only the old slices that a new one is mixed from.
"""

from __future__ import annotations

import numpy as np

from helpers.volumes import Study, pad_to_square, read_study, resampling_matrix, window


def preprocess_fast(study, size=(64, 256, 256), limits=(-1000, 400)):
    """Turn a study into what the network sees: uint8, (D, H, W) = `size`.

    study: a Study or the path of one. limits: the window's low and high end, HU. Equal to
    `volumes.preprocess`, except that a value half-way between two grey levels may round to
    either. UnreadableStudy if the file cannot be used.
    """
    if not isinstance(study, Study):
        study = read_study(study)
    return preprocess_hu(study.read_hu(), study.spacing, size, limits)


def preprocess_hu(hu, spacing, size=(64, 256, 256), limits=(-1000, 400)):
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
