"""From a NIfTI file to the array that the network sees.

Arrays are (D, H, W) everywhere: slice 0 is the most inferior (feet), row 0 anterior, column 0
the patient's right. In nibabel's axis codes that is (S, P, L): the letters name the direction
in which each index grows.
"""

from __future__ import annotations

import gzip
import math
import os
import warnings
import zlib
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np

AIR = -1000
AXES = ("S", "P", "L")
MIN_SLICES = 8
MAX_BYTES = 4 << 30
GZIP_MAGIC = b"\x1f\x8b"


class UnreadableStudy(ValueError):
    """A file that is no usable chest CT; the message names the file, the reason and the remedy."""

    def __init__(self, path, reason, remedy):
        self.path, self.reason, self.remedy = str(path), reason, remedy
        super().__init__(f"{path}: {reason}; {remedy}")

    def __reduce__(self):
        return type(self), (self.path, self.reason, self.remedy)


class Study:
    """One CT study: its header at once, its voxels when `hu` is first read.

    path: the file. shape: (D, H, W) in voxels. spacing: (z, y, x) in mm.
    source_axes: nibabel axis codes of the file as stored, for example ("L", "A", "S").
    description: the header's own words on the study, at most 80 characters.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._image = _load_header(self.path)
        header = self._image.header
        shape, zooms = header.get_data_shape(), header.get_zooms()
        if len(shape) == 4 and shape[3] == 1:
            shape = shape[:3]
        if len(shape) != 3 or min(shape) < 1:
            self._refuse(f"has the shape {shape}", "give one 3-D volume per file")
        n_bytes = math.prod(shape) * header.get_data_dtype().itemsize
        if n_bytes > MAX_BYTES:
            self._refuse(f"claims {n_bytes / 1e9:,.0f} GB of voxels", "check the header")
        if header.get_data_dtype().fields or header.get_data_dtype().kind == "c":
            self._refuse("holds colours or complex numbers", "convert the original CT again")
        self.description = bytes(header["descrip"].item()).decode("latin-1").strip()
        affine = self._image.affine
        if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
            self._refuse("has no usable affine", "convert the original CT again")
        if header["sform_code"] == 0 and header["qform_code"] == 0:
            warnings.warn(
                f"{path}: no affine in the header, taken to be stored as LAS", stacklevel=3
            )
        stored = nib.io_orientation(affine)
        self.source_axes = nib.aff2axcodes(affine)
        self._transform = nib.orientations.ornt_transform(
            stored, nib.orientations.axcodes2ornt(AXES)
        )
        order = np.argsort(self._transform[:, 0])
        self.shape = tuple(int(shape[axis]) for axis in order)
        self.spacing = tuple(float(zooms[axis]) for axis in order)
        if self.shape[0] < MIN_SLICES:
            self._refuse(f"has {self.shape[0]} slices", f"a study needs at least {MIN_SLICES}")
        if not all(0.05 <= step <= 50 for step in self.spacing):
            self._refuse(f"has a voxel spacing of {self.spacing} mm", "check the header")

    @cached_property
    def hu(self) -> np.ndarray:
        """The voxels in HU: int16, (D, H, W). UnreadableStudy if damaged or not in HU."""
        hu = _to_int16(self._read_voxels(), self.path)
        low, high = int(hu.min()), int(hu.max())
        if low == high:
            self._refuse(f"has the value {low} in every voxel", "convert the original CT again")
        if (hu < -200).mean() < 0.01:
            kind = "8-bit grey values" if high <= 255 else "stored values without their offset"
            self._refuse(
                f"has no air (values {low} to {high}): these are {kind}, not Hounsfield units",
                "convert it from the original CT with its rescale slope and intercept",
            )
        return np.ascontiguousarray(hu)

    def _read_voxels(self):
        """The voxels as stored, (D, H, W); UnreadableStudy if damaged."""
        try:
            voxels = np.asarray(_image_with_voxels(self._image, self.path).dataobj)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            self._refuse(f"is damaged ({_one_line(error)})", "download or copy it again")
        if voxels.ndim == 4:
            voxels = voxels[..., 0]
        return nib.orientations.apply_orientation(voxels, self._transform)

    def _refuse(self, reason, remedy):
        raise UnreadableStudy(self.path, reason, remedy) from None

    def __repr__(self):
        spacing = " x ".join(f"{step:.2f}" for step in self.spacing)
        return f"Study({self.path.name}, shape={self.shape}, spacing={spacing} mm)"


def read_study(path: str | os.PathLike) -> Study:
    """Open a chest CT in NIfTI format (.nii, .nii.gz, .hdr/.img), in any orientation.

    Only the header is read now; `.hu` reads the voxels. UnreadableStudy names the file, what is
    wrong and what to do. Format: NIfTI-1, https://nifti.nimh.nih.gov/nifti-1.
    """
    return Study(path)


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """Read a lesion mask as a boolean array (D, H, W), in the order of `read_study`.

    What is above 0 is lesion. UnreadableStudy if the file is no 3-D volume or damaged.
    """
    return Study(path)._read_voxels() > 0


def window(hu, low=-1000.0, high=400.0, level=None, width=None):
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


def resample(volume, size=(64, 256, 256)):
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


def preprocess(study, size=(64, 256, 256), limits=(-1000, 400)):
    """Turn a study into what the network sees: uint8, (D, H, W) = `size`.

    study: a Study or the path of one. limits: the window's low and high end, HU. Window, square
    field of view, resample, 256 grey levels. UnreadableStudy if the file cannot be used.
    """
    if not isinstance(study, Study):
        study = read_study(study)
    scaled = pad_to_square(window(study.hu, *limits), study.spacing, fill=0)
    return np.rint(resample(scaled, size) * 255).astype(np.uint8)


def _load_header(path):
    """Open the file with nibabel; UnreadableStudy when it is no NIfTI file at all."""
    if path.is_dir() or not path.exists():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise UnreadableStudy(path, reason, "give the path of a .nii.gz file")
    if not path.is_file():
        raise UnreadableStudy(path, "is no regular file", "give the path of a .nii.gz file")
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UnreadableStudy(
            path, f"cannot be opened ({error.strerror})", "check its permissions"
        ) from None
    if path.name.endswith(".gz") and not start.startswith(GZIP_MAGIC):
        what = "is empty" if not start else "is no gzip file"
        if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
            what = "is a web page saved under a study's name"
        elif start.startswith(b"version https://"):
            what = "is a git-LFS pointer, not the file itself"
        raise UnreadableStudy(path, what, "download it again")
    try:
        image = nib.load(path)
        if isinstance(image, nib.Nifti1Pair):
            return image
        reason = f"is a {type(image).__name__}, not NIfTI"
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
        reason = f"is no NIfTI file ({str(error).split(':')[0][:80]})"
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = f"has a damaged header ({_one_line(error)})"
    raise UnreadableStudy(path, reason, "download it again or convert the original CT") from None


def _one_line(error):
    return " ".join(str(error).split())[:100]


def _image_with_voxels(image, path):
    """Read a .gz file to its last byte, so that gzip's checksum is tested (nibabel stops early)."""
    if not path.name.endswith(".nii.gz"):
        return image
    n_bytes = math.prod(image.shape) * image.header.get_data_dtype().itemsize
    expected = int(image.dataobj.offset) + n_bytes
    with gzip.open(path) as file:
        content = file.read(expected)
        while file.read(1 << 20):
            pass
    return type(image).from_bytes(content)


def _to_int16(voxels, path):
    """Round to int16 HU; what is not a number or infinite becomes air, with a warning."""
    if voxels.dtype == np.int16:
        return voxels
    if voxels.dtype.kind == "f":
        odd = ~np.isfinite(voxels)
        if odd.any():
            warnings.warn(f"{path}: {odd.sum():,} voxels without a value set to air", stacklevel=4)
            voxels = np.where(odd, AIR, voxels)
        voxels = np.rint(voxels)
    return np.clip(voxels, -32768, 32767).astype(np.int16)
