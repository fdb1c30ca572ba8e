"""Odd files: each is read like its clean twin, or refused in one line with reason and remedy.

Every file is written here byte by byte, so that the reader is not tested by its own library.
"""

import bz2
import gzip
import itertools
import math
import os
import re
import tempfile
import threading
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fault_marks import BAD, COHORT, ODD

from helpers.ct import cohort
from helpers.ct.cache import preprocess_cohort
from helpers.ct.layouts import files_of
from helpers.ct.nifti import UnreadableStudy
from helpers.ct.preprocessing import preprocess_fast
from helpers.ct.studies import read_mask, read_study
from helpers.phantom import dicom_export

SPACING = (2.0, 0.7, 0.9)
DIRECTIONS = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}
OPPOSITE = dict(zip("LRPAIS", "RLAPSI", strict=True))
FOUR_ZEROS = bytes(4)
NAN = float("nan")


def clean():
    """The clean twin, (S, P, L) from -1000 to 679 HU: no two voxels are alike."""
    values = np.arange(-1000, -1000 + 10 * 12 * 14)
    return np.random.default_rng(0).permutation(values).reshape(10, 12, 14)


def along(hu, codes):
    """The same volume stored along other axes, for example "LAS"."""
    order = ["".join(sorted("SPL"[k] + OPPOSITE["SPL"[k]])) for k in range(3)]
    axes = [order.index("".join(sorted(code + OPPOSITE[code]))) for code in codes]
    flips = tuple(k for k, code in enumerate(codes) if code not in "SPL")
    return np.flip(hu.transpose(axes), flips), tuple(SPACING[axis] for axis in axes)


def affine_of(codes, spacing):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (code, step) in enumerate(zip(codes, spacing, strict=True)):
        row, sign = DIRECTIONS[code]
        affine[row, column] = sign * step
    return affine


def nifti(stored, affine, spacing, kind=nib.Nifti1Header, end="<", **fields):
    """The bytes of a NIfTI header and of its voxels; `fields` are set as they are, unchecked."""
    header = kind(endianness=end)
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape)
    header.set_zooms(tuple(spacing) + (1.0,) * (stored.ndim - 3))
    header.set_sform(affine, 1)
    header["scl_slope"], header["scl_inter"] = NAN, NAN
    if kind.is_single:
        header["vox_offset"] = header.single_vox_offset
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock, stored.astype(stored.dtype.newbyteorder(end)).tobytes(order="F")


def write(folder, hu=None, codes="LAS", name="study_0001.nii.gz", dtype="i2", turn=None, **fields):
    """Write `hu` (S, P, L), stored along `codes`, as one file; returns its path."""
    stored, spacing = along(clean() if hu is None else hu, codes)
    affine = affine_of(codes, spacing)
    if turn is not None:
        affine[:3, :3] = turn @ affine[:3, :3]
    header, voxels = nifti(stored.astype(dtype), affine, spacing, **fields)
    content = header + FOUR_ZEROS + voxels
    path = folder / name
    path.write_bytes(gzip.compress(content, 1) if name.lower().endswith("gz") else content)
    return path


def scaled(dtype, slope, inter, **fields):
    """Stored values of another scale, with the slope and intercept that lead back to HU."""

    def make(folder):
        stored = np.rint((clean() - inter) / slope)
        return write(folder, stored, dtype=dtype, scl_slope=slope, scl_inter=inter, **fields)

    return make


def plain(**options):
    return lambda folder: write(folder, **options)


def spaced(*steps):
    return plain(pixdim=(1, *steps, 1, 1, 1, 1))


def pair(folder):
    stored, spacing = along(clean(), "LAS")
    affine = affine_of("LAS", spacing)
    header, voxels = nifti(stored.astype("i2"), affine, spacing, kind=nib.Nifti1Pair.header_class)
    (folder / "study_0001.img").write_bytes(voxels)
    (folder / "study_0001.hdr").write_bytes(header)
    return folder / "study_0001.hdr"


def singletons(folder):
    stored, spacing = along(clean(), "LAS")
    header, voxels = nifti(stored.astype("i2")[..., None], affine_of("LAS", spacing), spacing)
    path = folder / "study_0001.nii.gz"
    path.write_bytes(gzip.compress(header + FOUR_ZEROS + voxels))
    return path


def by_quaternion(axes="LPS", **options):
    """A header with a qform along these axes, and a sform along the same unless told otherwise."""

    def make(folder):
        header = nib.Nifti1Header()
        header.set_qform(affine_of(axes, along(clean(), axes)[1]), 1)
        names = ("qform_code", "quatern_b", "quatern_c", "quatern_d")
        fields = {name: header[name] for name in names}
        fields["pixdim"] = (*header["pixdim"][:4], 1, 1, 1, 1)
        return write(folder, **{"codes": axes, **fields, **options})

    return make


def with_extension(folder):
    """A comment of 32 bytes between header and voxels."""
    path = write(folder, name="study_0001.nii", vox_offset=384)
    content = path.read_bytes()
    comment = np.array([32, 6], "<i4").tobytes() + b"a comment".ljust(24, b"\0")
    path.write_bytes(content[:348] + b"\1\0\0\0" + comment + content[352:])
    return path


def commented(size):
    """A comment between header and voxels that says that it is so many bytes long."""

    def make(folder):
        path = with_extension(folder)
        content = path.read_bytes()
        path.write_bytes(content[:352] + size.to_bytes(4, "little") + content[356:])
        return path

    return make


def with_a_gap(folder):
    """Eight bytes between header and voxels, of which nibabel would log a warning."""
    path = write(folder, name="study_0001.nii", vox_offset=360)
    content = path.read_bytes()
    path.write_bytes(content[:352] + bytes(8) + content[352:])
    return path


def in_two_members(folder):
    """A gzip file of two members, as pigz and cat make them."""
    path = write(folder)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    return path


def rotation(angles):
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles)):
        one, other = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[[one, other], [one, other]] = math.cos(angle)
        step[one, other], step[other, one] = -math.sin(angle), math.sin(angle)
        turn = step @ turn
    return turn


INTEGERS = ("i2", "i4", "i8")
READ = {
    **{f"{dtype}": plain(dtype=dtype) for dtype in (*INTEGERS, "f4", "f8")},
    **{f"{dtype}, big-endian": plain(dtype=dtype, end=">") for dtype in (*INTEGERS, "f4", "f8")},
    **{f"{dtype}, scaled": scaled(dtype, 1, -1024) for dtype in ("u2", "u4", "u8", *INTEGERS)},
    "u2, big-endian, scaled": scaled("u2", 1, -1024, end=">"),
    "u1 with a slope": scaled("u1", 7, -1000),
    "i1 with a slope": scaled("i1", 7, -150),
    "slope of 2.5": scaled("i2", 2.5, -24),
    "slope below 1": scaled("i2", 0.25, 0),
    "negative slope": scaled("i2", -1, 0),
    "f4 with a slope": scaled("f4", 0.5, 100),
    "slope 0": plain(scl_slope=0, scl_inter=0),
    "slope 0, intercept left over": plain(scl_slope=0, scl_inter=-1024),
    "slope NaN": plain(scl_slope=NAN, scl_inter=0),
    "slope 1, intercept 0": plain(scl_slope=1, scl_inter=0),
    "plain .nii": plain(name="study_0001.nii"),
    "plain .nii, big-endian": plain(name="study_0001.nii", end=">"),
    "name in capitals": plain(name="STUDY_0001.NII"),
    "compressed, name in capitals": plain(name="STUDY_0001.NII.GZ"),
    "NIfTI-2": plain(kind=nib.Nifti2Header),
    "NIfTI-2, plain, big-endian": plain(kind=nib.Nifti2Header, name="s.nii", end=">"),
    ".hdr and .img": pair,
    ".img and .hdr": lambda folder: pair(folder).with_suffix(".img"),
    "4-D with one volume": singletons,
    "qform alone": by_quaternion(sform_code=0),
    "qform and sform": by_quaternion(),
    "pixdim rounded": spaced(0.9001, 0.699, 2.01),
    "header extension": with_extension,
    "a comment longer than its room": commented(1 << 28),
    "a comment of 0 bytes": commented(0),
    "a comment of -8 bytes": commented(0xFFFFFFF8),
    "voxels from byte 360 on": with_a_gap,
    "fractions": lambda folder: write(folder, clean() + 0.4, dtype="f4"),
    "slope with fractions": scaled("f4", 1.5, 0.3),
    "gzip of two members": in_two_members,
    "words in another script": plain(descrip="снимок".encode()),
    "oblique by 10 degrees": plain(turn=rotation((10, 0, 0))),
    "oblique about three axes": plain(turn=rotation((15, -20, 25))),
    "oblique, stored sagittally": plain(codes="PSR", turn=rotation((12, 20, -8))),
    "flipped left to right": plain(codes="RAS"),
    "flipped front to back": plain(codes="LPS"),
    "flipped head to feet": plain(codes="LAI"),
}
ROUNDING = {"u1 with a slope": 3.5, "i1 with a slope": 3.5, "slope of 2.5": 1.75}
ROUNDING["slope with fractions"] = 1.25


@ODD()
@pytest.mark.parametrize("kind", READ)
def test_odd_but_sound_files_read_like_their_twin(tmp_path, caplog, kind):
    path = READ[kind](tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = read_study(path)
        hu = study.hu
    assert not caplog.records
    assert hu.dtype == np.int16 and hu.flags["C_CONTIGUOUS"]
    assert study.shape == hu.shape == clean().shape
    assert study.spacing == pytest.approx(SPACING, rel=1e-5)
    assert np.abs(hu - clean()).max() <= ROUNDING.get(kind, 0)


ORIENTATIONS = [
    "".join(codes)
    for order in itertools.permutations(("LR", "AP", "SI"))
    for codes in itertools.product(*order)
]


@ODD()
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_reads_like_its_twin(tmp_path, codes):
    study = read_study(write(tmp_path, codes=codes))
    assert "".join(study.source_axes) == codes and len(ORIENTATIONS) == 48
    assert study.spacing == pytest.approx(SPACING)
    np.testing.assert_array_equal(study.hu, clean())


@ODD()
def test_a_missing_affine_is_said_and_taken_as_las(tmp_path):
    with pytest.warns(UserWarning, match=r"study_0001\.nii\.gz: no affine"):
        study = read_study(write(tmp_path, sform_code=0))
    np.testing.assert_array_equal(study.hu, clean())


@ODD()
@pytest.mark.parametrize("padding", [-1024, -2000, -2048, -3024, -32768])
@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_padding_outside_the_field_of_view_is_kept(tmp_path, padding, dtype):
    hu = clean()
    hu[:, :3] = padding
    np.testing.assert_array_equal(read_study(write(tmp_path, hu, dtype=dtype)).hu, hu)


@ODD()
@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4"])
def test_voxels_without_a_value_become_air_and_are_counted(tmp_path, value, dtype):
    hu = clean().astype(float)
    hu[3, 4, 5:9] = value
    path = write(tmp_path, hu, dtype=dtype, end=">" if ">" in dtype else "<")
    with pytest.warns(
        UserWarning, match=r"study_0001\.nii\.gz: voxels without a value, set to air: 4"
    ):
        read = read_study(path).hu
    assert (read[3, 4, 5:9] == -1000).all()
    np.testing.assert_array_equal(np.delete(read, 3, 0), np.delete(clean(), 3, 0))


def damaged(change, **options):
    """A sound file whose bytes are then changed."""

    def make(folder):
        path = write(folder, **options)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def holding(content, name="study_0001.nii.gz"):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def with_one_byte_changed(position):
    def change(content):
        content = bytearray(content)
        content[position] ^= 1
        return bytes(content)

    return change


def shaped(shape, dtype="i2", **fields):
    """A file of this shape; what its voxels hold does not matter."""

    def make(folder):
        stored = np.resize(clean(), shape).astype(dtype)
        spacing = (0.9, 0.7, 2.0)[: max(len(shape), 3)]
        header = nib.Nifti1Header()
        header.set_data_dtype(stored.dtype)
        header.set_data_shape([max(n, 1) for n in shape])
        header.set_zooms((*spacing, 1, 1)[: len(shape)])
        header.set_sform(affine_of("LAS", spacing), 1)
        header["dim"][1 : len(shape) + 1] = shape
        header["vox_offset"] = 352
        for name, value in fields.items():
            header[name] = value
        path = folder / "study_0001.nii.gz"
        path.write_bytes(gzip.compress(header.binaryblock + FOUR_ZEROS + stored.tobytes("F")))
        return path

    return make


def coloured(channels):
    """A file of 8-bit colours."""

    def make(folder):
        stored = np.zeros((14, 12, 10), [(channel, "u1") for channel in channels])
        header, voxels = nifti(stored, affine_of("LAS", (0.9, 0.7, 2)), (0.9, 0.7, 2))
        path = folder / "study_0001.nii.gz"
        path.write_bytes(gzip.compress(header + FOUR_ZEROS + voxels))
        return path

    return make


def valued(change, dtype="i2", **fields):
    """A file whose header is sound and whose values are not HU."""
    return lambda folder: write(folder, change(clean()), dtype=dtype, **fields)


def sform(**rows):
    return plain(**{f"srow_{name}": row for name, row in rows.items()})


def in_another_order(folder, spacing):
    """Slices, rows, columns in the file's x, y and z, as arrays of SimpleITK lie."""
    affine = np.diag([*spacing[::-1], 1.0])
    stored = np.resize(clean(), (10, 24, 24)).astype("i2")
    header, voxels = nifti(stored, affine, spacing[::-1])
    path = folder / "study_0001.nii.gz"
    path.write_bytes(gzip.compress(header + FOUR_ZEROS + voxels))
    return path


def without_its_voxels(folder):
    path = pair(folder)
    path.with_suffix(".img").unlink()
    return path


def with_padding_and_offset(hu):
    """Stored values as some scanners write them: air at 24, -2000 outside the field of view."""
    stored = hu + 1024
    stored[:, :3] = -2000
    return stored


def with_a_comment_of_2_gb(content):
    plain = gzip.decompress(content)
    comment = np.array([2**31 - 16, 6], "<i4").tobytes()
    return gzip.compress(plain[:348] + b"\1\0\0\0" + comment + plain[352:])


def with_twice_the_voxels_plain(content):
    return content + content[352:]


def with_twice_the_voxels(content):
    return gzip.compress(with_twice_the_voxels_plain(gzip.decompress(content)))


def with_a_signalling_nan(content):
    """In the last number of srow_z, of which NumPy warns when it is made longer."""
    return content[:324] + b"\0\0\x81\x7f" + content[328:]


HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n"
TERA = (30000, 30000, 30000)
REFUSED = {
    "wrong checksum": (damaged(with_one_byte_changed(-8)), "damaged .*CRC"),
    "wrong length in the gzip": (damaged(with_one_byte_changed(-4)), "damaged"),
    "a byte flipped within": (damaged(with_one_byte_changed(1500)), "damaged"),
    "bytes after the gzip": (damaged(lambda c: c + b"rubbish"), "damaged"),
    "cut in the gzip header": (damaged(lambda c: c[:7]), "damaged header|no NIfTI"),
    "cut in the header": (damaged(lambda c: gzip.compress(gzip.decompress(c)[:200])), "no NIfTI"),
    "cut in the header, gzip too": (damaged(lambda c: c[:60]), "damaged header|no NIfTI"),
    "cut after the header": (damaged(lambda c: gzip.compress(gzip.decompress(c)[:352])), "damaged"),
    "cut in half": (damaged(lambda c: c[: len(c) // 2]), "damaged"),
    "cut by the last 8 bytes": (damaged(lambda c: c[:-8]), "damaged"),
    "cut by 1 byte": (damaged(lambda c: c[:-1]), "damaged"),
    "plain .nii cut in the header": (
        damaged(lambda c: c[:100], name="s.nii"),
        "damaged header|no NIfTI",
    ),
    "plain .nii cut in half": (damaged(lambda c: c[: len(c) // 2], name="s.nii"), "damaged"),
    "plain .nii cut by 8": (damaged(lambda c: c[:-8], name="s.nii"), "damaged"),
    "empty": (holding(b""), "is empty"),
    "empty .nii": (holding(b"", "s.nii"), "is empty"),
    "gzip of nothing": (holding(gzip.compress(b"")), "damaged header|no NIfTI"),
    "gzip of text": (holding(gzip.compress(b"no CT at all\n" * 99)), "no NIfTI"),
    "a web page": (holding(HTML), "web page"),
    "a web page as .nii": (holding(HTML, "s.nii"), "web page"),
    "a web page, compressed": (holding(gzip.compress(HTML)), "damaged header|no NIfTI"),
    "a web page after blanks": (holding(b"\r\n\r\n   " + HTML), "web page"),
    "git-LFS pointer": (holding(POINTER), "git-LFS"),
    "git-LFS pointer as .nii": (holding(POINTER, "s.nii"), "git-LFS"),
    "plain text": (holding(b"see the other folder\n"), "no gzip"),
    "plain NIfTI named .nii.gz": (damaged(gzip.decompress), "no gzip"),
    "compressed NIfTI named .nii": (damaged(gzip.compress, name="s.nii"), "NIfTI"),
    "zeros": (holding(bytes(5000)), "no gzip"),
    "zeros as .nii": (holding(bytes(5000), "s.nii"), "NIfTI"),
    "a picture": (holding(b"\x89PNG\r\n\x1a\n" + bytes(99), "s.nii"), "NIfTI"),
    "another packing": (damaged(bz2.compress, name="study_0001.nii.bz2"), "named as"),
    "another ending": (holding(b"PK\3\4" + bytes(99), "s.zip"), "zip file"),
    ".hdr without .img": (without_its_voxels, r"damaged|\.img"),
    "2-D": (shaped((14, 12)), "shape"),
    "4-D with two volumes": (shaped((14, 12, 10, 2)), "shape"),
    "5-D": (shaped((14, 12, 10, 1, 3)), "shape"),
    "axis of size 0": (shaped((14, 0, 10)), "shape"),
    "all axes of size 0": (shaped((0, 0, 0)), "shape"),
    "axis of size -5": (plain(dim=(3, 14, -5, 10, 1, 1, 1, 1)), "shape"),
    "no dimensions": (plain(dim=(0, 0, 0, 0, 0, 0, 0, 0)), "shape|header"),
    "one slice": (shaped((14, 12, 1)), r"too few slices \(1\)"),
    "seven slices": (shaped((14, 12, 7)), r"slices \(7\)"),
    "RGB": (coloured("RGB"), "colours"),
    "RGBA": (coloured("RGBA"), "colours"),
    "complex": (shaped((14, 12, 10), "c8"), "complex"),
    "unknown data type": (plain(datatype=999), "damaged header|no NIfTI"),
    "data type of one bit": (plain(datatype=1, bitpix=1), "damaged header|no NIfTI"),
    "constant 0": (valued(lambda hu: hu * 0), "every voxel"),
    "constant air": (valued(lambda hu: hu * 0 - 1000, "f4"), "every voxel"),
    "8 bits, windowed": (valued(lambda hu: np.clip(hu, 0, 255), "u1"), "8-bit"),
    "8 bits, signed": (valued(lambda hu: np.clip(hu, -128, 127), "i1"), "8-bit"),
    "8 bits as floats": (valued(lambda hu: np.clip(hu, 0, 255), "f4"), "8-bit"),
    "windowed to 0 .. 1": (valued(lambda hu: np.clip((hu + 1000) / 1400, 0, 1), "f4"), "0 to 1"),
    "offset 1024": (valued(lambda hu: hu + 1024), "offset"),
    "offset 1024, u2": (valued(lambda hu: hu + 1024, "u2"), "offset"),
    "offset 1024, u8": (valued(lambda hu: hu + 1024, "u8"), "offset"),
    "intercept applied twice": (valued(lambda hu: hu - 1024), "no soft tissue"),
    "intercept of 1000 applied twice": (valued(lambda hu: hu - 1000, "f4"), "no soft tissue"),
    "slope applied twice": (valued(lambda hu: hu * 3), "Hounsfield"),
    "air and bone alone": (valued(lambda hu: np.where(hu < -160, hu, 900)), "no soft tissue"),
    "offset 1024, padded": (valued(with_padding_and_offset), "offset"),
    "slope of 1e30": (plain(scl_slope=1e30, scl_inter=0), "Hounsfield"),
    "slope of 1e-30": (plain(scl_slope=1e-30, scl_inter=0), "Hounsfield|every voxel"),
    "slope without intercept": (plain(scl_slope=1, scl_inter=NAN), "damaged header|no NIfTI"),
    "spacing 0": (spaced(0.9, 0.7, 0), "spacing"),
    "negative spacing": (spaced(0.9, -0.7, 2), "spacing"),
    "spacing NaN": (spaced(0.9, NAN, 2), "spacing"),
    "spacing infinite": (spaced(0.9, 0.7, math.inf), "spacing"),
    "spacing 1000 mm": (spaced(0.9, 0.7, 1000), "spacing"),
    "spacing 1000 mm in the affine": (sform(z=(0, 0, 1000, 0)), "spacing"),
    "spacing in metres": (spaced(0.0009, 0.0007, 0.002), "spacing"),
    "affine of signalling NaN": (damaged(with_a_signalling_nan, name="s.nii"), "affine"),
    "affine NaN": (sform(x=(NAN, 0, 0, 0)), "affine"),
    "affine of zeros": (sform(x=(0, 0, 0, 0), y=(0, 0, 0, 0), z=(0, 0, 0, 0)), "affine"),
    "affine with two like axes": (sform(y=(0.9, 0, 0, 0), x=(0.9, 0, 0, 0)), "affine"),
    "no rotation": (plain(sform_code=0, qform_code=1, quatern_b=1, quatern_c=1), "damaged header"),
    "terabytes": (plain(dim=(3, *TERA, 1, 1, 1, 1)), "GB"),
    "terabytes as .nii": (plain(name="s.nii", dim=(3, *TERA, 1, 1, 1, 1)), "GB"),
    "exabytes": (plain(kind=nib.Nifti2Header, dim=(3, *[10**6] * 3, 1, 1, 1, 1)), "GB"),
    "beyond 64 bits": (plain(kind=nib.Nifti2Header, dim=(3, *[2**40] * 3, 1, 1, 1, 1)), "GB"),
    "4 GB that are not there": (plain(dim=(3, 1290, 1290, 1290, 1, 1, 1, 1)), "damaged"),
    "voxels at 10 TB": (plain(kind=nib.Nifti2Header, vox_offset=10**13), "GB"),
    "voxels at -100": (plain(vox_offset=-100), "damaged header"),
    "voxels at 0": (plain(vox_offset=0), "from byte 0 on"),
    "voxels at NaN": (plain(vox_offset=NAN), "damaged header"),
    "a comment of 2 GB": (
        damaged(with_a_comment_of_2_gb, vox_offset=2.1e9),
        "shorter",
    ),
    "floats called integers": (damaged(with_twice_the_voxels), "longer"),
    "floats called integers, .nii": (damaged(with_twice_the_voxels_plain, name="s.nii"), "longer"),
    "voxels within the header": (plain(vox_offset=100), "damaged header"),
    "voxels at infinity": (plain(vox_offset=math.inf), "damaged header"),
    "pixdim of 1 mm, another affine": (spaced(1, 1, 1), "affine, of 1 x 1 x 1 mm by its pixdim"),
    "pixdim in another order": (spaced(2, 0.7, 0.9), "by its pixdim"),
    "qform of another axis": (by_quaternion("RAS", codes="LAS"), "LAS by its sform, RAS by its"),
    "z, y, x under the affine of x, y, z": (
        lambda folder: in_another_order(folder, (1.0, 0.7, 8.0)),
        "pixels of 8 x 0.7 mm",
    ),
    "z, y, x and no affine": (lambda folder: in_another_order(folder, (1, 1, 1)), "identity"),
    "no such sform code": (plain(sform_code=7), "sform_code 7"),
    "no such qform code": (plain(qform_code=-2), "qform_code -2"),
}


def refusal(path):
    """What the reader says of a file that it refuses."""
    with pytest.raises(UnreadableStudy) as caught, warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = read_study(path).hu
    error = caught.value
    message = str(error)
    assert len(message.splitlines()) == 1
    assert message == f"{path}: {error.reason}; {error.remedy}"
    assert path.name not in error.reason, "the file is named once"
    assert 5 < len(error.reason) < 200 and 5 < len(error.remedy) < 100
    return error.reason


@BAD()
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_usable_study_is_refused_in_one_line(tmp_path, caplog, kind):
    make, reason = REFUSED[kind]
    path = make(tmp_path)
    tracemalloc.start()
    said = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert re.search(reason, said), said
    assert not caplog.records, "nothing is said twice"
    assert peak < 8 << 20, "what the header claims is not yet asked of the memory"


@BAD(4)
def test_a_folder_and_what_is_not_there_are_refused(tmp_path):
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    (tmp_path / "loop.nii.gz").symlink_to(tmp_path / "loop.nii.gz")
    assert "no CT image" in refusal(tmp_path / "folder.nii.gz")
    for name in ("gone", "loop", "none"):
        assert "does not exist" in refusal(tmp_path / f"{name}.nii.gz")


@BAD()
def test_a_name_with_a_line_break_is_still_one_line(tmp_path):
    with pytest.raises(UnreadableStudy) as caught:
        read_study(tmp_path / "study\n0001.nii.gz")
    assert len(str(caught.value).splitlines()) == 1


@BAD()
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no fifos")
@pytest.mark.parametrize("part", ["study.nii.gz", "its .img", "study.zip", "study.mhd", "IM0001"])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path, part):
    path = pair(tmp_path) if part == "its .img" else tmp_path / part
    fifo = path.with_suffix(".img") if part == "its .img" else path
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    said = []
    reader = threading.Thread(
        target=lambda: said.append(refusal(path) * bool(files_of(path))), daemon=True
    )
    reader.start()
    reader.join(timeout=20)
    assert said and re.search(r"no regular file|no file study_0001\.img", said[0])


@BAD()
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no POSIX permissions")
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_file_without_permission_is_refused(closed):
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write(folder)
        folder.chmod(0o755 if closed == "file" else 0o600)
        if closed == "file":
            path.chmod(0)
        try:
            if is_root:  # whom no permission stops: read as another user
                os.seteuid(65534)
            said = refusal(path)
        finally:
            if is_root:
                os.seteuid(0)
            folder.chmod(0o755)
    assert "cannot be opened (Permission denied)" in said


@BAD()
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no POSIX permissions")
@pytest.mark.parametrize("closed", ["scan/IM0003", "scan/IM0012", "scan/*", "scan", "class"])
def test_what_has_no_permission_among_dicom_files_is_not_passed_over(closed):
    pytest.importorskip("pydicom")
    hu, is_root = np.resize(clean(), (12, 12, 14)).astype(np.int16), os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        scan = Path(name) / "class" / "scan"
        dicom_export.write(dicom_export.slices(hu, SPACING), scan)
        Path(name).chmod(0o755)
        listed = cohort.find_studies(name)
        paths = [scan.parent] if closed == "class" else [*scan.parent.glob(closed)]
        modes = {path: path.stat().st_mode for path in paths}
        for path in paths:
            path.chmod(0)
        try:
            if is_root:
                os.seteuid(65534)
            with pytest.raises((UnreadableStudy, cohort.CohortError)) as caught:
                if closed == "class":
                    cohort.find_studies(name)
                read_study(Path(name) / listed.file[0])
        finally:
            if is_root:
                os.seteuid(0)
            for path, mode in modes.items():
                path.chmod(mode)
    text = str(caught.value)
    assert "cannot be opened" in text and len(text.splitlines()) == 1, text


@pytest.fixture
def mixed_cohort(tmp_path):
    """A cohort of 4 sound studies among all that is refused; returns its folder and the bad."""
    folder, bad = tmp_path / "cohort" / "studies" / "CT-0", []
    folder.mkdir(parents=True)
    for number, (make, _) in enumerate(REFUSED.values(), start=100):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        path = make(scratch)
        if path.name.endswith(".nii.gz"):
            path.rename(folder / f"study_{number:04}.nii.gz")
            bad.append(f"study_{number:04}")
    (folder / "study_0500.nii.gz").mkdir()
    for number in (1, 50, 300, 600):
        write(folder, np.roll(clean(), number), name=f"study_{number:04}.nii.gz")
    return tmp_path / "cohort", [*bad, "study_0500"]


def build(root, **options):
    return preprocess_cohort(
        cohort.find_studies(root), root, root / "cache", (8, 12, 12), workers=1, **options
    )


@COHORT()
def test_a_cohort_lists_every_bad_study_and_goes_on_only_when_asked(mixed_cohort):
    root, bad = mixed_cohort
    assert len(bad) > 50
    with pytest.raises(cohort.CohortError) as caught:
        build(root)
    first, *listed, last = str(caught.value).splitlines()
    assert f"{len(bad)} of {len(bad) + 4} studies" in first and "on_error" in last
    assert [Path(line.split(": ")[0]).name[:10] for line in listed] == bad
    assert not list(root.glob("cache/*/volumes-*"))

    with ThreadPoolExecutor(3) as threads:
        cache = build(root, on_error="skip", executor=threads)
    assert list(cache.skipped.study) == bad
    assert list(cache.skipped.error) == [line.strip() for line in listed]
    assert list(cache.index.study) == ["study_0001", "study_0050", "study_0300", "study_0600"]
    for row, number in enumerate((1, 50, 300, 600)):
        path = root / "studies" / "CT-0" / f"study_{number:04}.nii.gz"
        np.testing.assert_array_equal(cache.volumes[row], preprocess_fast(path, (8, 12, 12)))


@COHORT()
def test_a_cohort_without_a_sound_study_is_refused_even_when_asked_to_skip(tmp_path):
    folder = tmp_path / "studies" / "CT-0"
    folder.mkdir(parents=True)
    for number in (1, 2):
        holding(HTML + b"%d" % number, f"study_{number:04}.nii.gz")(folder)
    for _ in range(2):
        with pytest.raises(cohort.CohortError, match="2 of 2 studies"):
            build(tmp_path, on_error="skip")


READ_OF_REAL = ["fourD_singleton", "nan_inf", "no_affine", "orient_PIR", "pad_-3024"]
READ_OF_REAL += ["uint16_sclinter-1024"]


def test_every_real_odd_file_is_read_or_refused(real_data):
    read = []
    for path in sorted((real_data / "odd_volumes").glob("*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        if name in READ_OF_REAL:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                assert read_study(path).hu.min() in (-1024, -3024)
            assert len(said) == (name in ("nan_inf", "no_affine"))
            read.append(name)
        else:
            refusal(path)
    assert read == READ_OF_REAL


def test_no_real_study_or_mask_is_refused(real_data):
    studies = sorted((real_data / "volumes").glob("*.nii.gz"))
    assert min(read_study(path).shape[0] for path in studies) == 13
    for path in studies:
        assert read_study(path).hu.max() > 300
    for path in sorted((real_data / "mosmed" / "masks").glob("*.nii.gz")):
        assert read_mask(path).any()
