"""Reading, windowing and resampling, against scipy, plain loops and real scans."""

import gzip
import itertools
import pickle

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from helpers.ct.nifti import UnreadableStudy
from helpers.ct.preprocessing import pad_to_square, preprocess, resample, resampling_matrix, window
from helpers.ct.studies import read_mask, read_study
from helpers.phantom import simulate


@pytest.fixture
def chest():
    """A volume (S, P, L) with air in it in which every voxel is different."""
    rng = np.random.default_rng(0)
    return rng.permutation(np.arange(-1000, -1000 + 10 * 12 * 14)).reshape(10, 12, 14)


def save(hu, path, codes="LAS", dtype=np.int16, spacing=(2.0, 0.7, 0.9), slope=None, inter=None):
    """Write an (S, P, L) array, spacing (z, y, x), as NIfTI stored along `codes`."""
    image = nib.Nifti1Image(hu.astype("f8"), nib_affine("SPL", spacing))
    stored = nib.orientations.axcodes2ornt(codes)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), stored)
    image = image.as_reoriented(turn)
    data = np.asarray(image.dataobj)
    if slope is not None:
        data = np.rint((data - inter) / slope)
    out = nib.Nifti1Image(data.astype(dtype), image.affine)
    if slope is not None:
        out.header.set_slope_inter(slope, inter)
    nib.save(out, path)
    return path


def nib_affine(codes, spacing):
    directions = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, (code, step) in enumerate(zip(codes, spacing, strict=True)):
        axis, sign = directions[code]
        affine[axis, column] = sign * step
    return affine


def all_axis_codes():
    for order in itertools.permutations(("LR", "AP", "SI")):
        for codes in itertools.product(*order):
            yield "".join(codes)


@pytest.mark.parametrize("codes", list(all_axis_codes()))
def test_every_orientation_reads_as_the_same_array(chest, tmp_path, codes):
    study = read_study(save(chest, tmp_path / "s.nii.gz", codes))
    assert study.shape == chest.shape
    assert study.spacing == pytest.approx((2.0, 0.7, 0.9))
    assert "".join(study.source_axes) == codes
    np.testing.assert_array_equal(study.hu, chest)
    assert study.hu.dtype == np.int16


@pytest.mark.parametrize("dtype", ["i2", ">i2", "i4", "f4", ">f8", "u2", "u4"])
def test_every_dtype_and_scaling_reads_as_the_same_array(chest, tmp_path, dtype):
    slope, inter = (1.0, -1024.0) if "u" in dtype else (None, None)
    path = save(chest, tmp_path / "s.nii", dtype=np.dtype(dtype), slope=slope, inter=inter)
    np.testing.assert_array_equal(read_study(path).hu, chest)


def test_slope_is_applied(chest, tmp_path):
    even = chest // 2 * 2
    path = save(even, tmp_path / "s.nii.gz", slope=2.0, inter=0.0)
    np.testing.assert_array_equal(read_study(path).hu, even)


def test_one_volume_in_four_dimensions_is_read(chest, tmp_path):
    affine = nib_affine("SPL", (2, 1, 1))
    nib.save(nib.Nifti1Image(chest[..., None].astype("i2"), affine), tmp_path / "s.nii")
    np.testing.assert_array_equal(read_study(tmp_path / "s.nii").hu, chest)


def test_not_a_number_becomes_air_and_warns(chest, tmp_path):
    odd = chest.astype("f4")
    odd[0, 0, :3] = np.nan, np.inf, -np.inf
    path = save(odd, tmp_path / "s.nii.gz", dtype=np.float32)
    with pytest.warns(UserWarning, match="set to air: 3$"):
        hu = read_study(path).hu
    assert (hu[0, 0, :3] == -1000).all()
    np.testing.assert_array_equal(hu[1:], chest[1:])


def test_header_is_read_without_voxels(chest, tmp_path):
    path = save(chest, tmp_path / "s.nii.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert read_study(path).shape == chest.shape
    with pytest.raises(UnreadableStudy, match="damaged"):
        _ = read_study(path).hu


def wrong_crc(path):
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


def cut(n_last):
    return lambda path: path.write_bytes(path.read_bytes()[:-n_last])


def replaced(content):
    return lambda path: path.write_bytes(content)


def rewritten(change):
    def damage(path):
        image = nib.load(path)
        data = change(np.asarray(image.dataobj))
        nib.save(nib.Nifti1Image(data, image.affine), path)

    return damage


def terabytes(path):
    image = nib.load(path)
    header = bytearray(gzip.decompress(path.read_bytes()))
    header[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    assert image.ndim == 3
    path.write_bytes(gzip.compress(bytes(header)))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (wrong_crc, "damaged.*CRC"),
        (cut(4), "damaged"),
        (replaced(b""), "is empty"),
        (replaced(b"<!DOCTYPE html><p>404"), "web page"),
        (replaced(b"version https://git-lfs.github.com/spec/v1"), "git-LFS"),
        (replaced(b"plain text"), "no gzip"),
        (replaced(gzip.compress(b"short")), "no NIfTI|header"),
        (rewritten(lambda v: v[0]), "shape"),
        (rewritten(lambda v: np.stack([v, v], -1)), "shape"),
        (rewritten(lambda v: v[..., :5]), r"slices \(5\)"),
        (rewritten(lambda v: np.full_like(v, -1000)), "every voxel"),
        (rewritten(lambda v: np.clip(v, 0, 255).astype("u1")), "8-bit"),
        (rewritten(lambda v: v + 1024), "offset"),
        (terabytes, "GB"),
    ],
)
def test_unusable_files_are_refused_in_one_line(chest, tmp_path, damage, reason):
    path = save(chest, tmp_path / "study_0001.nii.gz")
    assert read_study(path).hu is not None
    damage(path)
    with pytest.raises(UnreadableStudy, match=reason) as caught:
        _ = read_study(path).hu
    message = str(caught.value)
    assert "study_0001.nii.gz" in message and ";" in message and "\n" not in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


PHANTOMS = [(32, 8), (48, 16), (96, 12)]


@pytest.mark.parametrize(("matrix", "n_slices"), PHANTOMS)
@pytest.mark.parametrize("category", simulate.CATEGORIES)
def test_a_chest_of_any_class_is_in_hu_and_not_on_another_scale(
    tmp_path, category, matrix, n_slices
):
    for scanner in simulate.SITES["home"].scanners:
        hu = simulate.make_study(matrix, category, matrix, n_slices, scanner).hu
        path = save(hu, tmp_path / "study_0001.nii.gz", spacing=(8, 4, 4))
        np.testing.assert_array_equal(read_study(path).hu, hu)
        for change in (-1024, -1000, -512, 512, 1000, 1024):
            save(hu.astype(int) + change, path, dtype=np.float32, spacing=(8, 4, 4))
            with pytest.raises(UnreadableStudy, match="not Hounsfield units"):
                _ = read_study(path).hu
        for factor in (-1, 0.001, 2, 10):
            save(hu * float(factor), path, dtype=np.float32, spacing=(8, 4, 4))
            with pytest.raises(UnreadableStudy, match="not Hounsfield units"):
                _ = read_study(path).hu


@pytest.mark.parametrize("intercept", [-1024, -1000, 1000, 1024])
def test_a_real_chest_whose_intercept_is_wrong_is_refused(real_data, tmp_path, intercept):
    for source in sorted((real_data / "volumes").glob("*.nii.gz")):
        hu = read_study(source).hu[:, ::4, ::4]
        path = save(hu, tmp_path / "study_0001.nii.gz", spacing=(8, 3, 3))
        np.testing.assert_array_equal(read_study(path).hu, hu)
        save(hu.astype(int) + intercept, path, dtype=np.int32, spacing=(8, 3, 3))
        with pytest.raises(UnreadableStudy, match="not Hounsfield units"):
            _ = read_study(path).hu


def test_padding_in_the_range_of_air_is_no_air(chest, tmp_path):
    """Stored values without their offset, and outside the field of view what would be HU of air."""
    stored = chest + 1024
    stored[:, :4] = -976
    with pytest.raises(UnreadableStudy, match="no air"):
        _ = read_study(save(stored, tmp_path / "s.nii.gz")).hu


def test_a_blurred_edge_of_the_padding_is_kept(chest, tmp_path):
    padded = chest.copy()
    padded[:, :2], padded[:, 2, ::2] = -3024, -2000
    np.testing.assert_array_equal(read_study(save(padded, tmp_path / "s.nii.gz")).hu, padded)


def test_a_home_folder_is_expanded(chest, tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    save(chest, tmp_path / "s.nii.gz")
    np.testing.assert_array_equal(read_study("~/s.nii.gz").hu, chest)


def test_folder_and_missing_file_are_refused(tmp_path):
    for path, reason in ((tmp_path, "folder"), (tmp_path / "no.nii.gz", "exist")):
        with pytest.raises(UnreadableStudy, match=reason):
            read_study(path)


def test_window_values():
    hu = np.array([-3024, -1000, -300, 400, 3000], dtype=np.int16)
    np.testing.assert_allclose(window(hu), [0, 0, 0.5, 1, 1])
    lung = window(np.array([-1350, -600, 150]), level=-600, width=1500)
    np.testing.assert_allclose(lung, [0, 0.5, 1])
    with pytest.raises(ValueError, match="low < high"):
        window(hu, 400, -1000)


def area_by_loop(line, n_out):
    """Mean over each share of the line, by summing a thousand points per share."""
    fine = np.repeat(line, 1000 * n_out)
    return fine.reshape(n_out, -1).mean(axis=1)


@pytest.mark.parametrize(("n_in", "n_out"), [(8, 4), (7, 4), (10, 3), (12, 11)])
def test_reduction_is_the_area_mean(n_in, n_out):
    line = np.random.default_rng(1).normal(size=n_in)
    reduced = resampling_matrix(n_in, n_out) @ line
    np.testing.assert_allclose(reduced, area_by_loop(line, n_out), atol=1e-5)


@pytest.mark.parametrize(("n_in", "n_out"), [(5, 5), (8, 13), (33, 64), (1, 4)])
def test_stretch_is_scipy_zoom_on_pixel_areas(n_in, n_out):
    line = np.random.default_rng(2).normal(size=n_in)
    expected = ndimage.zoom(line, n_out / n_in, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(resampling_matrix(n_in, n_out) @ line, expected, atol=1e-5)


def test_stretch_invents_nothing_beyond_the_ends(chest):
    stretched = resample(chest.astype("f4"), (64, 12, 14))
    np.testing.assert_array_equal(stretched[0], chest[0])
    np.testing.assert_array_equal(stretched[-1], chest[-1])
    assert stretched.min() >= chest.min() and stretched.max() <= chest.max()


def test_reduction_does_not_alias():
    stripes = np.zeros((8, 64, 64), "f4")
    stripes[:, :, ::2] = 1
    reduced = resample(stripes, (8, 24, 24))
    assert np.abs(reduced - 0.5).max() < 0.2
    assert np.ptp(ndimage.zoom(stripes, (1, 24 / 64, 24 / 64), order=0)) == 1


def slow_preprocess(hu, size):
    """Window, then area means in the plane and linear depth, with scipy and means of blocks."""
    grey = np.clip((hu.astype("f8") + 1000) / 1400, 0, 1)
    step = hu.shape[1] // size[1]
    grey = grey.reshape(len(hu), size[1], step, size[2], step).mean(axis=(2, 4))
    zoom = (size[0] / len(hu), 1, 1)
    return 255 * ndimage.zoom(grey, zoom, order=1, mode="nearest", grid_mode=True)


def test_preprocess_is_within_one_level_of_scipy(tmp_path):
    hu = np.random.default_rng(3).integers(-1100, 600, (21, 64, 64))
    path = save(hu, tmp_path / "s.nii.gz", spacing=(8, 1, 1))
    ours = preprocess(path, (32, 32, 32))
    assert ours.dtype == np.uint8 and ours.shape == (32, 32, 32)
    assert np.abs(ours - slow_preprocess(hu, (32, 32, 32))).max() <= 1


def test_a_field_of_view_that_is_not_square_is_padded_not_squeezed():
    volume = np.ones((4, 20, 10), "f4")
    square = pad_to_square(volume, (8, 1.0, 1.0), fill=0)
    assert square.shape == (4, 20, 20)
    assert square[:, :, 5:15].min() == 1 and square[:, :, :5].max() == 0
    assert pad_to_square(volume, (8, 1.0, 2.0), fill=0) is volume


@pytest.mark.parametrize("codes", ["LAS", "RPI", "SPL", "AIR"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_masks_come_in_the_order_of_the_study(tmp_path, chest, codes, dtype):
    lesion = (chest > -300) * 3
    path = save(lesion, tmp_path / "mask.nii.gz", codes, dtype)
    mask = read_mask(path)
    assert mask.dtype == bool and np.array_equal(mask, lesion > 0)


@pytest.mark.parametrize("codes", ["LAS", "RPI", "SPL"])
def test_a_mask_is_laid_over_its_own_study_alone(tmp_path, chest, codes):
    """Compared by the affine: the order in which either is stored does not matter."""
    study = save(chest, tmp_path / "study.nii.gz")
    lesion = chest > 0
    path = save(lesion, tmp_path / "mask.nii.gz", codes, np.uint8)
    for same in (study, str(study), read_study(study)):
        np.testing.assert_array_equal(read_mask(path, same), lesion)
    image = nib.load(path)
    stored, affine = np.asarray(image.dataobj), image.affine
    nudged, shifted, mirrored = affine.copy(), affine.copy(), affine.copy()
    nudged[:3, 3] += 0.01
    shifted[0, 3] += 5
    mirrored[0] *= -1
    nib.save(nib.Nifti1Image(stored, nudged), path)
    np.testing.assert_array_equal(read_mask(path, study), lesion)
    for wrong in (shifted, mirrored, affine @ np.diag([1.1, 1.1, 1.1, 1])):
        nib.save(nib.Nifti1Image(stored, wrong), path)
        with pytest.raises(UnreadableStudy, match=r"mask.*away from its study study\.nii\.gz"):
            read_mask(path, study)
    nib.save(image.slicer[:, :-1], path)
    with pytest.raises(UnreadableStudy, match="shape"):
        read_mask(path, study)


def test_a_mask_that_forgot_its_affine_is_refused(tmp_path, chest):
    study, path = save(chest, tmp_path / "study.nii.gz"), save(chest > 0, tmp_path / "mask.nii.gz")
    stored = np.asarray(nib.load(path).dataobj)
    nib.save(nib.Nifti1Image(stored, np.eye(4)), path)
    with pytest.raises(UnreadableStudy, match="away from its study"):
        read_mask(path, study)


def test_a_damaged_mask_is_refused(tmp_path, chest):
    path = save(chest > 0, tmp_path / "mask.nii.gz")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UnreadableStudy, match=r"mask\.nii\.gz: is damaged"):
        read_mask(path)


def test_a_study_knows_its_description(tmp_path, chest):
    image = nib.load(save(chest, tmp_path / "plain.nii.gz"))
    assert read_study(tmp_path / "plain.nii.gz").description == ""
    image.header["descrip"] = b"synthetic, caf\xe9"
    nib.save(image, tmp_path / "said.nii.gz")
    assert read_study(tmp_path / "said.nii.gz").description == "synthetic, café"


def test_real_volumes_read_and_match_scipy(real_data):
    for path in sorted((real_data / "volumes").glob("mosmedlike_*.nii.gz")):
        study = read_study(path)
        assert study.shape == study.hu.shape and study.spacing[0] > 7
        assert np.abs(preprocess(study) - slow_preprocess(study.hu, (64, 256, 256))).max() <= 1


def lung_voxels(hu):
    """Air inside the body: what is below -500 HU and not connected with the border of a slice."""
    air = ndimage.binary_opening(hu < -500, np.ones((1, 3, 3)))
    inside = np.zeros_like(air)
    for k, plane in enumerate(air):
        labels, n = ndimage.label(plane)
        border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        inside[k] = plane & ~np.isin(labels, border)
    return inside


WHOLE_CHESTS = ["ricord", "cptac", "covidctmd_P001", "covidctmd_normal001"]


@pytest.mark.parametrize("name", WHOLE_CHESTS)
def test_real_chests_stand_the_right_way_round(real_data, name):
    """Spine behind the lungs' centre, heart on the patient's left, apex up."""
    (path,) = (real_data / "volumes").glob(f"mosmedlike_{name}*.nii.gz")
    study = read_study(path)
    hu, spacing = study.hu[:, ::4, ::4], study.spacing[2]
    lung = lung_voxels(hu)
    area = lung.sum(axis=(1, 2))
    chest = np.flatnonzero(area > 0.3 * area.max())
    centre = ndimage.center_of_mass(lung[chest])
    bone = ndimage.center_of_mass((hu > 250)[chest])
    assert bone[1] > centre[1], "the spine lies behind the centre of the lungs"
    thirds = np.array_split(chest, 3)
    assert area[thirds[2][-2:]].mean() < area[thirds[1]].mean(), "the lungs narrow to the apex"
    heart = chest[int(0.4 * len(chest)) : int(0.6 * len(chest))]
    spine = round(bone[2])
    reach = round(60 / (4 * spacing))
    soft = ((hu > -20) & (hu < 300))[heart, : int(centre[1])].sum(axis=(0, 1))
    left, right = soft[spine : spine + reach].sum(), soft[spine - reach : spine].sum()
    assert left > 1.05 * right, "the heart's larger part lies on the patient's left"


@pytest.mark.parametrize(
    "name",
    ["orient_PIR", "uint16_sclinter-1024", "no_affine", "nan_inf", "pad_-3024"],
)
@pytest.mark.filterwarnings("ignore:.*(voxels without a value|no affine)")
def test_real_odd_volumes_read_like_their_twins(real_data, name):
    folder = real_data / "odd_volumes"
    twin = read_study(folder / "fourD_singleton.nii.gz").hu
    hu = read_study(folder / f"{name}.nii.gz").hu
    if name == "no_affine":
        twin = twin[:, ::-1]
    filled = (hu == -1000) if name == "nan_inf" else (hu == -3024)
    assert filled.mean() < 0.3
    np.testing.assert_array_equal(hu[~filled], twin[~filled])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bitrot_crc", "CRC"),
        ("git_lfs_pointer", "git-LFS"),
        ("html_404", "web page"),
        ("offset1024_noscale", "offset"),
        ("one_slice", r"slices \(1\)"),
        ("truncated_half", "damaged"),
        ("truncated_last8", "damaged"),
        ("twoD", "shape"),
        ("windowed_uint8", "8-bit"),
    ],
)
def test_real_odd_volumes_are_refused(real_data, name, reason):
    with pytest.raises(UnreadableStudy, match=reason):
        _ = read_study(real_data / "odd_volumes" / f"{name}.nii.gz").hu


@pytest.mark.parametrize(
    ("shape", "spacing", "margins"),
    [
        ((2, 30, 40), (8, 1.0, 0.5), ((0, 0), (10, 10))),  # 30 x 20 mm
        ((2, 40, 30), (8, 0.5, 1.0), ((10, 10), (0, 0))),
        ((2, 40, 25), (8, 0.5, 1.0), ((5, 5), (0, 0))),  # 20 x 25 mm
        ((2, 40, 31), (8, 1.0, 1.0), ((0, 0), (4, 5))),
    ],
)
def test_padding_is_counted_in_mm_and_lies_on_both_sides(shape, spacing, margins):
    volume = np.random.default_rng(0).random(shape)
    np.testing.assert_array_equal(
        pad_to_square(volume, spacing, fill=7),
        np.pad(volume, ((0, 0), *margins), constant_values=7),
    )
