"""A NIfTI file as a stored volume: its header checked before any voxel is read.

Format: NIfTI-1, https://nifti.nimh.nih.gov/nifti-1; gzip, RFC 1952.
"""

from __future__ import annotations

import logging
import math
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

try:
    from isal import igzip as gzip
except ImportError:  # the standard library does the same in twice the time
    import gzip
ENDINGS = (".nii", ".nii.gz", ".hdr", ".img")
GZIP_MAGIC = b"\x1f\x8b"
GZIP_RATIO = 1100  # gzip packs no more than 1032 bytes into one
MAX_BYTES = 4 << 30
MIN_SLICES = 8  # of a chest CT, in any format
SPACINGS = (0.05, 50)  # mm
GIVE = "give a .nii.gz, .nii, .mha or .nrrd file, or a folder of DICOM slices"
REDO = "convert the original CT again"
AGAIN = "download it again or convert the original CT"
DAMAGE = (OSError, EOFError, ValueError, OverflowError, zlib.error)
DAMAGE += (nib.spatialimages.HeaderDataError,)
# What nibabel would log about a header, the checks here say once, with the file's name
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)


class UnreadableStudy(ValueError):
    """A file that is no usable chest CT; the message names the file, the reason and the remedy."""

    def __init__(self, path, reason, remedy):
        self.path, self.reason, self.remedy = str(path), reason, remedy
        text = " ".join(f"{path}: {reason}; {remedy}".splitlines())
        super().__init__(text.encode(errors="backslashreplace").decode())  # any name can be printed

    def __reduce__(self):
        return type(self), (self.path, self.reason, self.remedy)


@dataclass(frozen=True)
class Stored:
    """A volume as its file holds it, whatever the format.

    shape: of the array as stored, any order of axes. affine: (4, 4), from an index of it to mm,
    (R, A, S). read: returns the array, scaled. name: what to call it where others may look.
    description: the header's own words on it, at most 80 characters. label: what messages call it,
    where the path does not say enough. notes: what its reader has to know, a line each.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    read: Callable[[], np.ndarray]
    name: str
    description: str = ""
    label: str = ""
    notes: list[str] = field(default_factory=list)


def open_volume(path: Path) -> Stored:
    """A NIfTI file by its header (see `open_header`); UnreadableStudy."""
    header, file = open_header(path)
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        warnings.warn(f"{path}: no affine in the header, taken to be stored as LAS", stacklevel=5)
    description = bytes(header["descrip"].item()).decode("latin-1").strip()
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    read = partial(_read_voxels, path, header, file)
    return Stored(volume_shape(header), header.get_best_affine(), read, name, description)


def _read_voxels(path, header, file):
    """The voxels as stored, scaled; UnreadableStudy if damaged."""
    try:
        if is_packed(path):
            content = unpack(path, bytes_claimed(header))
        else:
            content = np.fromfile(file, np.uint8, bytes_claimed(header))
        shape, start = volume_shape(header), header.get_data_offset()
        # the bytes as they are: nothing is copied
        voxels = np.ndarray(shape, header.get_data_dtype(), content, start, order="F")
        return nib.volumeutils.apply_read_scaling(voxels, *header.get_slope_inter())
    except UnreadableStudy:
        raise
    except (*DAMAGE, TypeError) as error:  # TypeError: the file has become shorter
        reason = f"is damaged ({one_line(error)})"
        raise UnreadableStudy(path, reason, "download or copy it again") from None


def open_header(path: Path) -> tuple[nib.Nifti1Header, Path]:
    """The header of a NIfTI file and the file that its voxels are in, the same or its .img.

    Only the header's own bytes are read, comments behind it are passed over. nibabel mends a header
    where it can; here what decides how the voxels are read has to be right as it stands: shape,
    spacing, affine, and a file long enough for what the header claims. Else UnreadableStudy.
    """
    header_file, voxel_file = find_files(path)
    try:
        with open(header_file, "rb") as file:
            check_start(path, file.read(64))
        with nib.openers.ImageOpener(header_file) as file:
            start = file.read(nib.Nifti2Header.sizeof_hdr)
        kind = header_kind(path, start)
        start = start[: kind.sizeof_hdr]
        check_header(path, kind(start, check=False), voxel_file.stat().st_size)
        with np.errstate(all="ignore"):  # what is no number is refused below
            header = kind(start)
            header.get_slope_inter()  # fails where a slope has no intercept
            check_geometry(path, header)
    except UnreadableStudy:
        raise
    except DAMAGE as error:
        raise UnreadableStudy(path, f"has a damaged header ({one_line(error)})", AGAIN) from None
    return header, voxel_file


def find_files(path):
    """The files of header and voxels; UnreadableStudy unless they are regular files of NIfTI."""
    check_file(path)
    if not is_named(path):
        raise UnreadableStudy(path, "is neither DICOM nor named as a NIfTI file", GIVE)
    if path.suffix.lower() not in (".hdr", ".img"):
        return path, path
    parts = nib.Nifti1Pair.filespec_to_file_map(path)
    files = [Path(parts[part].filename) for part in ("header", "image")]
    for file in files:
        if not file.is_file():
            raise UnreadableStudy(path, f"has no file {file.name} beside it", "copy both files")
        check_file(file)
    return files


def check_file(path):
    """UnreadableStudy unless a regular file is there that can be opened."""
    try:
        if not path.is_file():
            reason = "is no regular file" if path.exists() else "does not exist"
            raise UnreadableStudy(path, reason, GIVE)
        open(path, "rb").close()
    except OSError as error:
        reason = f"cannot be opened ({error.strerror})"
        raise UnreadableStudy(path, reason, "check its permissions") from None


def check_start(path, start):
    """UnreadableStudy unless the file's first bytes are what its name promises."""
    text, what = start.lstrip().lower(), None
    if not start:
        what = "is empty"
    elif text.startswith((b"<!doctype", b"<html")):
        what = "is a web page saved under a study's name"
    elif text.startswith(b"version https://"):
        what = "is a git-LFS pointer, not the file itself"
    elif is_packed(path) and not start.startswith(GZIP_MAGIC):
        what = "is no gzip file"
    if what:
        raise UnreadableStudy(path, what, "download it again")


def header_kind(path, start):
    """nibabel's class for the header that begins with these bytes."""
    kinds = [nib.Nifti1Image, nib.Nifti2Image]
    if path.suffix.lower() in (".hdr", ".img"):
        kinds = [nib.Nifti1Pair, nib.Nifti2Pair]
    for kind in kinds:
        if kind.header_class.may_contain_header(start):
            return kind.header_class
    raise UnreadableStudy(path, "is no NIfTI file", AGAIN)


def check_header(path, header, n_bytes):
    """UnreadableStudy if it is no header of one 3-D volume in a file of `n_bytes`."""
    shape, code = volume_shape(header), int(header["datatype"])
    if len(shape) != 3 or min(shape) < 1:
        raise UnreadableStudy(path, f"has the shape {shape}", "give one 3-D volume per file")
    if code not in nib.nifti1.data_type_codes.value_set("code"):
        raise UnreadableStudy(path, f"has a damaged header (no data type {code})", AGAIN)
    for name in ("qform_code", "sform_code"):
        if int(header[name]) not in nib.nifti1.xform_codes.value_set("code"):
            # nibabel would take it for 0 and the file for one without an affine
            raise UnreadableStudy(path, f"has a damaged header ({name} {header[name]})", AGAIN)
    if header.get_data_dtype().fields or header.get_data_dtype().kind == "c":
        reason = "holds colours or complex numbers"
        raise UnreadableStudy(path, reason, REDO)
    begin = header.get_data_offset()
    claimed = bytes_claimed(header)
    if claimed > MAX_BYTES:
        raise UnreadableStudy(path, f"claims {claimed / 1e9:,.0f} GB of voxels", "check the header")
    if begin < (header.single_vox_offset if header.is_single else 0):
        reason = f"has a damaged header (voxels from byte {begin} on)"
        raise UnreadableStudy(path, reason, AGAIN)
    if is_packed(path):
        n_bytes = min(n_bytes * GZIP_RATIO, claimed)
    check_length(path, n_bytes, claimed)
    check_spacing(path, header["pixdim"][1:4])


def unpack(path, claimed):
    """The unpacked bytes of a .gz file, read to its end, so that gzip's checksum is tested.

    claimed: how many there are by the study's header. UnreadableStudy if there are fewer, or many
    more; what is damaged fails as gzip does.
    """
    with gzip.open(path) as file:
        content = file.read(claimed)
        n_bytes = len(content) + sum(map(len, iter(lambda: file.read(1 << 20), b"")))
    check_length(path, n_bytes, claimed)
    return content


def volume_shape(header):
    """The header's shape; without the fourth axis if it holds a single volume."""
    shape = tuple(int(n) for n in header.get_data_shape())
    return shape[:3] if len(shape) == 4 and shape[3] == 1 else shape


def bytes_claimed(header):
    """How long the unpacked file of the voxels is by the header."""
    n_voxels = math.prod(volume_shape(header))
    return header.get_data_offset() + n_voxels * header.get_data_dtype().itemsize


def check_spacing(path, steps):
    """UnreadableStudy if a step between voxels, in mm, is none that a CT has."""
    if not all(SPACINGS[0] <= step <= SPACINGS[1] for step in steps):
        raise UnreadableStudy(path, f"has a voxel spacing of {in_mm(steps)}", "check the header")


def check_geometry(path, header):
    """UnreadableStudy if what the header says of the voxels' places is contradictory or no CT's."""
    affine = header.get_best_affine()
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise UnreadableStudy(path, "has no usable affine", REDO)
    steps, told = nib.affines.voxel_sizes(affine), header["pixdim"][1:4]
    check_spacing(path, steps)
    qform, _ = header.get_qform(coded=True)
    # the file's axes from right to left and from front to back: columns and rows of a slice
    order = np.argsort(nib.io_orientation(affine)[:, 0])[:2]
    columns, rows = (volume_shape(header)[axis] for axis in order)
    width, height = steps[order]
    is_forgotten = np.array_equal(np.abs(affine), np.eye(4))
    reason = None
    if not np.allclose(steps, told, rtol=0.05):
        reason = f"has voxels of {in_mm(steps)} by its affine, of {in_mm(told)} by its pixdim"
    elif qform is not None and nib.aff2axcodes(qform) != nib.aff2axcodes(affine):
        axes = ("".join(nib.aff2axcodes(one)) for one in (affine, qform))
        reason = "has the axes {} by its sform, {} by its qform".format(*axes)
    elif max(width, height) > 2 * min(width, height):
        reason = f"has pixels of {in_mm((width, height))}, as if its axes were mixed up"
    elif is_forgotten and max(columns, rows) > 1.25 * min(columns, rows):
        reason = f"has no affine but the identity, and slices of {columns} x {rows} pixels"
    if reason:
        raise UnreadableStudy(path, reason, REDO)


def check_length(path, n_bytes, claimed):
    """UnreadableStudy if the unpacked file is shorter than its header claims, or much longer."""
    if claimed <= n_bytes <= claimed * 1.05:
        return
    wrong = "shorter" if n_bytes < claimed else "longer"
    reason = f"is damaged ({wrong} than the {claimed:,} bytes that its header claims)"
    raise UnreadableStudy(path, reason, "download or copy it again")


def is_named(path):
    """Whether a file has a NIfTI file's ending."""
    return path.name.lower().endswith(ENDINGS)


def is_packed(path):
    """Whether the file is compressed, by its name."""
    return path.name.lower().endswith(".gz")


def in_mm(steps):
    """Steps between voxels, in words."""
    return " x ".join(f"{step:g}" for step in steps) + " mm"


def one_line(error):
    """An error's own words, short enough to stand within a message."""
    return " ".join(str(error).split())[:100]
