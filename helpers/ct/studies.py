"""A NIfTI file as a study: HU, in one orientation.

Arrays are (D, H, W) everywhere: slice 0 is the most inferior (feet), row 0 anterior, column 0
the patient's right. In nibabel's axis codes that is (S, P, L): the letters name the direction
in which each index grows.
"""

from __future__ import annotations

import os
import warnings
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np

from helpers.ct import nifti
from helpers.ct.nifti import MIN_SLICES, UnreadableStudy

AIR = -1000
AXES = ("S", "P", "L")
# Between which HU a chest CT has air and soft tissue, each at least a twentieth of it. In the eight
# real studies that the tests read it is a third or more.
TISSUES = {"air": (-1200, -500), "soft tissue": (-150, 300)}
LEAST = 0.05
MOST_BELOW = 0.2  # more than padding and its blurred edge


class Study:
    """One CT study: its header at once, its voxels when `hu` is first read.

    path: the file. shape: (D, H, W) in voxels. spacing: (z, y, x) in mm.
    affine: (4, 4), from a voxel (d, h, w) to mm, (R, A, S).
    source_axes: nibabel axis codes of the file as stored, for example ("L", "A", "S").
    name: what to call it. description: the header's own words, at most 80 characters. notes: what
    was left out in a folder of DICOM slices, a line each; `read_study` gives them as warnings.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).expanduser()
        self._stored = stored = _open(self.path)
        self.name, self.description = stored.name, stored.description
        self.notes = stored.notes
        axes = nib.io_orientation(stored.affine)
        self.source_axes = nib.orientations.ornt2axcodes(axes)
        self._transform = nib.orientations.ornt_transform(axes, nib.orientations.axcodes2ornt(AXES))
        as_read = nib.orientations.inv_ornt_aff(self._transform, stored.shape)
        self.affine = stored.affine @ as_read
        order = np.argsort(self._transform[:, 0])
        self.shape = tuple(stored.shape[axis] for axis in order)
        self.spacing = tuple(nib.affines.voxel_sizes(self.affine).tolist())
        if self.shape[0] < MIN_SLICES:
            remedy = f"give a study of at least {MIN_SLICES} slices"
            raise UnreadableStudy(path, f"has too few slices ({self.shape[0]})", remedy)

    @cached_property
    def hu(self) -> np.ndarray:
        """The voxels in HU: int16, (D, H, W). UnreadableStudy if damaged or not in HU."""
        return np.ascontiguousarray(self.read_hu(), dtype=np.int16)

    def read_hu(self) -> np.ndarray:
        """As `hu`, but read anew, not kept, and in the file's own order in memory."""
        return _to_hu(self._read_voxels(), self._stored.label or self.path)

    def _read_voxels(self):
        """The voxels as stored, scaled, (D, H, W); UnreadableStudy if damaged."""
        return nib.orientations.apply_orientation(self._stored.read(), self._transform)

    def __repr__(self):
        spacing = " x ".join(f"{step:.2f}" for step in self.spacing)
        return f"Study({self.name}, shape={self.shape}, spacing={spacing} mm)"


def read_study(path: str | os.PathLike) -> Study:
    """Open a chest CT, in any orientation.

    path: a NIfTI file (.nii, .nii.gz, .hdr/.img), .mha, .mhd or .nrrd, a folder or a zip of DICOM
    slices, or one of the slices for its whole series. Only headers are read now; `.hu` reads the
    voxels. UnreadableStudy names the file, what is wrong and what to do.
    """
    study = Study(path)
    for note in study.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return study


def read_mask(path: str | os.PathLike, study: Study | str | os.PathLike = None) -> np.ndarray:
    """Read a lesion mask as a boolean array (D, H, W), in the order of `read_study`.

    What is above 0 is lesion. study: the study that it is to be laid over. UnreadableStudy if the
    file is no 3-D volume or damaged, or if its voxels do not lie where the study's lie.
    """
    mask = Study(path)
    if study is not None:
        study = study if isinstance(study, Study) else Study(study)
        away = (np.abs(mask.affine - study.affine)[:3] @ (*study.shape, 1)).max()  # at most, in mm
        if mask.shape != study.shape or away > min(study.spacing) / 2:
            reason = f"has the shape {mask.shape}, and its study {study.path.name} {study.shape}"
            if mask.shape == study.shape:
                reason = f"lies up to {away:.0f} mm away from its study {study.path.name}"
            raise UnreadableStudy(path, reason, "save the mask with the affine of its study")
    return mask._read_voxels() > 0


def _open(path):
    """The volume that a path stands for, as it is stored."""
    from helpers.ct import dicom

    is_series = os.path.isdir(path) or path.suffix.lower() in (".zip", *dicom.VOLUMES)
    if is_series or (not nifti.is_named(path) and dicom.is_dicom(path)):
        return dicom.open_volume(path)
    return nifti.open_volume(path)


def _to_hu(voxels, path):
    """The voxels as int16 HU; UnreadableStudy if they are not in HU.

    What is not a number or infinite becomes air, with a warning.
    """
    if voxels.dtype.kind == "f":
        odd = ~np.isfinite(voxels)
        if odd.any():
            text = f"{path}: voxels without a value, set to air: {odd.sum():,}"
            warnings.warn(text, stacklevel=5)
            voxels = np.where(odd, AIR, voxels)
    _check_scale(voxels, path)
    if voxels.dtype.kind == "f":
        voxels = np.rint(voxels)
    if voxels.dtype != np.int16:
        voxels = np.clip(voxels, -32768, 32767).astype(np.int16)
    return voxels


def _check_scale(voxels, path):
    """UnreadableStudy unless there is air and soft tissue where a chest CT in HU has them."""
    low, high = voxels.min(), voxels.max()
    if low == high:
        reason = f"has the value {low:g} in every voxel"
        raise UnreadableStudy(path, reason, "convert the original CT again")
    step = 1 + min(voxels.shape[1:]) // 128
    seen = voxels[:, ::step, ::step].copy()
    n_seen = max(1, np.count_nonzero(seen > low))  # the lowest value may be padding

    def share(start, end):
        return np.count_nonzero((seen > max(low, start)) & (seen <= end)) / n_seen

    wrong = [f"no {tissue}" for tissue, span in TISSUES.items() if share(*span) < LEAST]
    if share(low, TISSUES["air"][0]) > MOST_BELOW:
        wrong.append("much that is below air")
    if wrong:
        what = _scale(low, high, wrong[0])
        raise UnreadableStudy(
            path,
            f"has {wrong[0]} (values {low:g} to {high:g}): these are {what}, not Hounsfield units",
            "convert it from the original CT with its rescale slope and intercept",
        )


def _scale(low, high, wrong):
    """In words, what values from `low` to `high` may be that are not HU."""
    low, high = float(low), float(high)
    if low >= -128 and high <= 255:
        return "8-bit grey values" if high - low > 2 else "scaled grey values"
    if wrong != "no air":
        return "values of another scale, perhaps with the intercept applied twice"
    return "stored values without their offset" if high < 1 << 16 else "values of another scale"
