"""The fast preprocessing of a cohort equals the simple one that notebook 02 builds."""

import gzip
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from helpers.ct import nifti
from helpers.ct.cohort import find_studies
from helpers.ct.nifti import UnreadableStudy
from helpers.ct.preprocessing import (
    add_blocks,
    mix,
    pad_to_square,
    preprocess,
    preprocess_fast,
    resampling_matrix,
    shrink_slices,
    window,
)
from helpers.ct.studies import read_study
from helpers.phantom import simulate

LAS = np.diag([-0.7, 0.7, 8.0, 1.0])


def study_of(tmp_path, shape, spacing=(0.7, 0.7, 8.0), dtype=np.int16):
    """A file of random HU (x, y, z), -1200 to 600, in MosMedData's orientation."""
    hu = np.random.default_rng(sum(shape)).integers(-1200, 600, shape).astype(dtype)
    path = tmp_path / "study.nii.gz"
    nib.save(nib.Nifti1Image(hu, LAS @ np.diag([*np.divide(spacing, (0.7, 0.7, 8.0)), 1])), path)
    return path


def exact(study, size, limits):
    """Grey levels before rounding, in double precision, one matrix an axis."""
    scaled = (np.clip(study.hu, *limits).astype(float) - limits[0]) / (limits[1] - limits[0])
    scaled = pad_to_square(scaled, study.spacing, fill=0)
    matrices = (resampling_matrix(*n).astype(float) for n in zip(scaled.shape, size, strict=True))
    return 255 * np.einsum("zyx,az,by,cx->abc", scaled, *matrices, optimize=True)


def assert_equal_but_for_ties(study, size=(64, 256, 256), limits=(-1000, 400)):
    """Both round the exact value; they differ only where it lies half-way between two levels."""
    fast, simple = preprocess_fast(study, size, limits), preprocess(study, size, limits)
    assert fast.dtype == np.uint8 and fast.shape == size and fast.flags["C_CONTIGUOUS"]
    truth = exact(study, size, limits)
    assert np.abs(fast - truth).max() < 0.5 + 1e-3
    differing = fast != simple
    assert np.abs(truth[differing] % 1 - 0.5).max(initial=0) < 1e-3
    assert differing.mean() < 1e-2


CASES = {
    "halved": ((64, 64, 20), (32, 32, 32), (-1000, 400)),
    "a quarter": ((64, 64, 20), (32, 16, 16), (-1000, 400)),
    "same pixels": ((32, 32, 20), (32, 32, 32), (-1000, 400)),
    "fewer slices": ((64, 64, 40), (16, 32, 32), (-1000, 400)),
    "same slices": ((64, 64, 20), (20, 32, 32), (-1000, 400)),
    "odd ratio": ((50, 50, 20), (32, 32, 32), (-1000, 400)),
    "more pixels": ((24, 24, 20), (32, 32, 32), (-1000, 400)),
    "other ratios": ((64, 96, 20), (32, 32, 32), (-1000, 400)),
    "broken limits": ((64, 64, 20), (32, 32, 32), (-1000.5, 400.25)),
    "narrow window": ((64, 64, 20), (32, 32, 32), (-160, 240)),
    "too wide for 16 bits": ((64, 64, 20), (32, 32, 32), (-1000, 30000)),
    "limits beyond 16 bits": ((64, 64, 20), (32, 32, 32), (-50000, 400)),
}


@pytest.mark.parametrize("shape, size, limits", CASES.values(), ids=CASES)
def test_fast_equals_simple(tmp_path, shape, size, limits):
    assert_equal_but_for_ties(read_study(study_of(tmp_path, shape)), size, limits)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64, ">i2"])
def test_fast_equals_simple_in_every_type(tmp_path, dtype):
    path = study_of(tmp_path, (64, 64, 20), dtype=dtype)
    assert_equal_but_for_ties(read_study(path), (32, 32, 32))


@pytest.mark.parametrize("shape", [(64, 48, 20), (48, 64, 20)])
def test_fast_equals_simple_where_the_slices_are_not_square(tmp_path, shape):
    assert_equal_but_for_ties(read_study(study_of(tmp_path, shape)), (32, 32, 32))


def test_fast_equals_simple_on_the_phantom(tmp_path):
    simulate.make_cohort(tmp_path, {"CT-2": 1}, 128, workers=1)
    study = read_study(tmp_path / find_studies(tmp_path).file[0])
    assert_equal_but_for_ties(study, (32, 64, 64))


def test_fast_equals_simple_on_real_scans(real_data):
    for path in sorted((real_data / "volumes").glob("*.nii.gz")):
        assert_equal_but_for_ties(read_study(path))


def test_fast_takes_a_path_and_refuses_what_simple_refuses(tmp_path):
    path = study_of(tmp_path, (64, 64, 20))
    whole = preprocess_fast(path, (32, 32, 32))
    np.testing.assert_array_equal(whole, preprocess_fast(read_study(path), (32, 32, 32)))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UnreadableStudy, match="is damaged"):
        preprocess_fast(path, (32, 32, 32))
    with pytest.raises(ValueError, match="low < high"):
        preprocess_fast(study_of(tmp_path, (64, 64, 20)), (32, 32, 32), (400, -1000))


def test_whole_numbers_are_summed_and_never_overflow():
    hu = np.full((8, 8, 8), 32767, np.int16)
    planes, full = shrink_slices(hu, (4, 4), (-1000, 400))
    assert planes.dtype == np.int16 and full == 4 * 1400 and (planes == full).all()
    planes, full = shrink_slices(hu, (2, 2), (-1000, 3000))
    assert planes.dtype == np.float32 and np.allclose(planes / full, 1)


def test_blocks_and_mixtures_against_loops():
    image = np.random.default_rng(0).integers(0, 1400, (12, 12)).astype(np.int16)
    out = np.empty((4, 4), np.int16)
    add_blocks(image, 3, out)
    for r, c in np.ndindex(4, 4):
        assert out[r, c] == sum(
            int(image[y, x]) for y in range(3 * r, 3 * r + 3) for x in range(3 * c, 3 * c + 3)
        )
    planes = np.random.default_rng(1).normal(size=(3, 2, 2)).astype("f4")
    weights = np.array([0.25, 0, 0.75], "f4")
    np.testing.assert_allclose(mix(planes, weights), 0.25 * planes[0] + 0.75 * planes[2], 1e-6)
    planes[1] = np.nan
    assert np.isfinite(mix(planes, weights)).all()


def test_the_window_comes_before_the_mean(tmp_path):
    """Half air, half bone: the mean of what the window leaves, not the window of the mean.

    Beside it a block of soft tissue, without which it could be no CT.
    """
    hu = np.full((64, 64, 20), -1000, np.int16)
    hu[::2] = 3000
    hu[17, 1, 1] = -1001
    hu[:16] = 40
    path = tmp_path / "study.nii.gz"
    nib.save(nib.Nifti1Image(hu, LAS), path)
    seen = preprocess_fast(path, (32, 32, 32))[:, :, 8:]
    assert set(np.unique(seen)) <= {127, 128}
    assert window(hu.mean()) == 1


def test_without_the_fast_library_everything_is_read_alike(tmp_path):
    """In a process of its own that cannot import isal."""
    path = study_of(tmp_path, (64, 64, 20))
    code = (
        "import sys; sys.modules['isal'] = None\n"
        "from helpers.ct import nifti, preprocessing\n"
        "import gzip; assert nifti.gzip is gzip\n"
        f"volume = preprocessing.preprocess_fast({str(path)!r}, (32, 32, 32))\n"
        "sys.stdout.buffer.write(volume.tobytes())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    )
    assert there.stdout == preprocess_fast(path, (32, 32, 32)).tobytes()


@pytest.mark.parametrize("library", ["isal", "gzip"])
def test_unpacking_reads_to_the_end(tmp_path, monkeypatch, library):
    if library == "isal":
        monkeypatch.setattr(nifti, "gzip", pytest.importorskip("isal.igzip"))
    else:
        monkeypatch.setattr(nifti, "gzip", gzip)
    path, content = tmp_path / "x.nii.gz", os.urandom(5000)
    packed = gzip.compress(content)
    path.write_bytes(packed)
    assert nifti.unpack(path, 5000) == content
    path.write_bytes(gzip.compress(content[:2000]) + gzip.compress(content[2000:]))
    assert nifti.unpack(path, 5000) == content
    for damaged in (packed + packed, gzip.compress(content[:-1])):
        path.write_bytes(damaged)
        with pytest.raises(UnreadableStudy, match="longer|shorter"):
            nifti.unpack(path, 5000)
    wrong_crc = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    for damaged in (packed[:-8], packed[:-4], packed[:2000], wrong_crc):
        path.write_bytes(damaged)
        with pytest.raises((OSError, EOFError)):
            nifti.unpack(path, 5000)
