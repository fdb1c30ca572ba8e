"""The CT viewer: pixels against independent arithmetic, controls, links, traffic, real scans."""

import io
import json
import re
from types import SimpleNamespace

import ipywidgets
import matplotlib as mpl
import nibabel as nib
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from PIL import Image
from scipy import ndimage

from helpers.ct import studies
from helpers.ct.cohort import find_studies
from helpers.ct.nifti import UnreadableStudy
from helpers.ct.preprocessing import pad_to_square, resample
from helpers.ct.studies import read_study
from helpers.figures import rendering, viewers
from helpers.figures.rendering import CROSS_COLOUR, MASK_COLOUR, PLANES, PRESETS, annotate, render
from helpers.figures.viewers import Viewer, compare, explore, load_scan, montage
from helpers.phantom import simulate
from tests.conftest import ROOT

SHAPE = (7, 10, 12)
LETTERS = {"axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}
THROUGH = {"axial": 0, "coronal": 1, "sagittal": 2}


@pytest.fixture(scope="module")
def made():
    """A synthetic study whose three sides differ."""
    study = simulate.make_study(5, "CT-3", matrix=96, n_slices=16, scanner="B")
    return SimpleNamespace(
        hu=study.hu[:, 8:88].copy(), mask=study.mask[:, 8:88] > 0, spacing=study.spacing
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Paths of a synthetic study and of its mask."""
    root = tmp_path_factory.mktemp("cohort")
    simulate.make_cohort(root, {"CT-3": 1}, matrix=64, n_slices=10, seed=3, workers=1)
    row = find_studies(root).iloc[0]
    return SimpleNamespace(study=root / row.file, mask=root / row["mask"])


@pytest.fixture(scope="module")
def real_scans(real_data):
    paths = sorted((real_data / "volumes").glob("*.nii.gz"))
    assert paths
    return {path.name: load_scan(path) for path in paths}


@pytest.fixture
def distinct():
    """A volume in which every voxel has an HU of its own."""
    rng = np.random.default_rng(1)
    return rng.permutation(np.arange(np.prod(SHAPE))).reshape(SHAPE).astype(np.int16) - 1100


def as_shown(volume, plane, index):
    """A plane in the way it is looked at, voxel by voxel."""
    depth, height, width = volume.shape
    size = {"axial": (height, width), "coronal": (depth, width), "sagittal": (depth, height)}
    row, column = np.indices(size[plane])
    if plane == "axial":
        return volume[index, row, column]
    if plane == "coronal":
        return volume[depth - 1 - row, index, column]
    return volume[depth - 1 - row, column, index]


def grey_of(hu, level, width):
    low = level - width / 2
    return np.rint(255 * np.clip((np.asarray(hu, float) - low) / width, 0, 1)).astype(int)


def plain(volume, plane="axial", index=None, **options):
    return render(volume, plane, index, **({"marks": False} | options))


def decode(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def is_close(picture, other, mean=3.0):
    """Equal to within what a JPEG may change."""
    return picture.shape == other.shape and np.abs(picture.astype(int) - other).mean() < mean


def cross_at(picture):
    """Row and column of the cross, from the ends of its lines at the picture's edges."""
    is_cross = (picture == CROSS_COLOUR).all(axis=-1)
    return (
        np.flatnonzero(is_cross[:, 0] & is_cross[:, -1]).tolist(),
        np.flatnonzero(is_cross[0] & is_cross[-1]).tolist(),
    )


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("plane", PLANES)
def test_window(preset, plane):
    level, width = PRESETS[preset]
    hu = np.linspace(-3024, 3071, np.prod(SHAPE)).astype(np.int16).reshape(SHAPE)
    picture = plain(hu, plane, 4, level=level, width=width)
    expected = grey_of(as_shown(hu, plane, 4), level, width)
    np.testing.assert_array_equal(picture, np.stack([expected] * 3, -1))
    assert picture.dtype == np.uint8


def test_presets_are_the_windows_of_the_radiologists():
    ends = {
        name: (level - width / 2, level + width / 2) for name, (level, width) in PRESETS.items()
    }
    assert ends == {
        "lung": (-1350, 150),
        "mediastinum": (-160, 240),
        "bone": (-500, 1300),
        "course": (-1000, 400),
    }


@pytest.mark.parametrize("plane", PLANES)
def test_every_slice_of_every_plane(distinct, plane):
    for index in range(SHAPE[THROUGH[plane]]):
        picture = plain(distinct, plane, index, level=-700, width=900)
        expected = grey_of(as_shown(distinct, plane, index), -700, 900)
        np.testing.assert_array_equal(picture[..., 1], expected)
    np.testing.assert_array_equal(
        plain(distinct, plane), plain(distinct, plane, SHAPE[THROUGH[plane]] // 2)
    )


def test_corners_stand_where_a_radiologist_looks_for_them():
    hu = np.full((3, 3, 3), -1000, np.int16)
    hu[2, 0, 0], hu[2, 2, 2], hu[0, 0, 0], hu[0, 2, 2] = 100, 200, 300, 400  # z, y, x

    def corners(plane, index):
        picture = plain(hu, plane, index, level=0, width=2000)[..., 0]
        values = picture[[0, 0, -1, -1], [0, -1, 0, -1]] / 255 * 2000 - 1000
        return np.rint(values / 10).astype(int).tolist()

    air = -100
    assert corners("axial", 2) == [10, air, air, 20], "front right, .., .., back left"
    assert corners("axial", 0) == [30, air, air, 40]
    assert corners("coronal", 0) == [10, air, 30, air], "head right, .., feet right, .."
    assert corners("coronal", 2) == [air, 20, air, 40]
    assert corners("sagittal", 0) == [10, air, 30, air], "head front, .., feet front, .."
    assert corners("sagittal", 2) == [air, 20, air, 40]


@pytest.mark.parametrize("plane", PLANES)
def test_marks_are_the_sides_of_the_plane(plane):
    hu = np.full((60, 60, 60), -600, np.int16)
    bare, marked = plain(hu, plane, size=256), render(hu, plane, size=256)
    changed = (bare != marked).any(axis=-1)
    zones = {
        "left": np.s_[110:146, :30],
        "right": np.s_[110:146, -30:],
        "top": np.s_[:30, 110:146],
        "bottom": np.s_[-30:, 110:146],
    }
    outside = changed.copy()
    for k, zone in enumerate(zones.values()):
        assert changed[zone].sum() > 20
        outside[zone] = False
        letter = annotate(bare, " " * k + LETTERS[plane][k])
        np.testing.assert_array_equal(marked[zone], letter[zone])
        others = [annotate(bare, " " * k + other) for other in set("RLAPHF") - {LETTERS[plane][k]}]
        assert all((marked[zone] != other[zone]).any() for other in others)
    assert not outside.any()


def test_right_is_at_the_left_edge():
    bare = np.full((100, 200, 3), 90, np.uint8)
    rows, columns = np.nonzero((annotate(bare, "R   ") != bare).any(axis=-1))
    assert columns.max() < 30 and rows.min() > 30 and rows.max() < 70
    assert (annotate(bare) == bare).all()
    rows, columns = np.nonzero((annotate(bare, text="words") != bare).any(axis=-1))
    assert rows.min() > 75 and columns.min() < 12
    rows, columns = np.nonzero((annotate(bare, title="words") != bare).any(axis=-1))
    assert rows.max() < 25 and columns.min() < 12
    assert (bare == 90).all()


@pytest.mark.parametrize("size", [57, 200])
@pytest.mark.parametrize(
    ("plane", "mm"), [("axial", (32, 30)), ("coronal", (50, 30)), ("sagittal", (50, 32))]
)
def test_true_proportions(plane, mm, size):
    hu = np.zeros((10, 40, 60), np.int16)
    picture = plain(hu, plane, spacing=(5, 0.8, 0.5), size=size)
    assert max(picture.shape[:2]) == size
    np.testing.assert_allclose(picture.shape[:2], np.array(mm) * size / max(mm), atol=0.51)
    assert picture.shape[2] == 3


def test_anatomy_is_interpolated_between_the_centres(distinct):
    picture = plain(distinct, index=2, size=90, level=-700, width=900)[..., 0]
    grey = grey_of(distinct[2], -700, 900)
    rows = (np.arange(75) + 0.5) * 10 / 75 - 0.5
    columns = (np.arange(90) + 0.5) * 12 / 90 - 0.5
    between = np.stack([np.interp(columns, np.arange(12), row) for row in grey])
    between = np.stack([np.interp(rows, np.arange(10), column) for column in between.T], axis=1)
    np.testing.assert_allclose(picture, between, atol=1.5)


@pytest.mark.parametrize("opacity", [0, 0.4, 1])
@pytest.mark.parametrize("plane", PLANES)
def test_colour_of_a_mask(distinct, plane, opacity):
    mask = np.random.default_rng(2).random(SHAPE) < 0.3
    bare = plain(distinct, plane, 3).astype(float)
    picture = plain(distinct, plane, 3, mask=mask, opacity=opacity)
    lesion = as_shown(mask, plane, 3)
    expected = np.where(
        lesion[..., None], (1 - opacity) * bare + opacity * np.array(MASK_COLOUR), bare
    )
    np.testing.assert_allclose(picture, expected, atol=0 if opacity in (0, 1) else 1)
    np.testing.assert_array_equal(picture[~lesion], bare[~lesion])


@pytest.mark.parametrize("plane", PLANES)
def test_a_resized_mask_is_the_nearest_voxel(plane):
    mask = np.random.default_rng(8).random((13, 19, 25)) < 0.5
    hu = np.full(mask.shape, -1000, np.int16)
    shown = plain(hu, plane, 4, mask=mask, opacity=1, size=97)
    lesion = as_shown(mask, plane, 4)
    rows, columns = (
        ((np.arange(m) + 0.5) * n / m).astype(int)
        for m, n in zip(shown.shape, lesion.shape, strict=False)
    )
    np.testing.assert_array_equal((shown == MASK_COLOUR).all(axis=-1), lesion[rows][:, columns])


@pytest.mark.parametrize("opacity", [0, 0.4, 1])
@pytest.mark.parametrize("plane", PLANES)
def test_colour_of_heat(distinct, plane, opacity):
    heat = np.random.default_rng(3).random(SHAPE)
    heat[0, 0, :2] = 0, 1
    bare = plain(distinct, plane, 0).astype(float)
    picture = plain(distinct, plane, 0, heat=heat, opacity=opacity)
    value = np.rint(as_shown(heat, plane, 0) * 255) / 255
    colour = mpl.colormaps["inferno"](value)[..., :3] * 255
    weight = opacity * value[..., None]
    np.testing.assert_allclose(picture, (1 - weight) * bare + weight * colour, atol=1.6)
    if opacity == 0:
        np.testing.assert_array_equal(picture, bare)


def test_a_mask_lies_over_heat(distinct):
    mask, heat = np.ones(SHAPE, bool), np.ones(SHAPE)
    picture = plain(distinct, mask=mask, heat=heat, opacity=1)
    assert (picture == MASK_COLOUR).all()


BOX = ((1, 6), (2, 9), (4, 11))


@pytest.mark.parametrize("plane", PLANES)
def test_a_box_is_exactly_that_part(distinct, plane):
    index, (start, stop) = 5, BOX[THROUGH[plane]]
    assert start <= index < stop
    mask, heat = distinct % 3 == 0, (distinct + 1100) / np.prod(SHAPE)
    part = tuple(slice(*side) for side in BOX)
    options = {"level": -700, "width": 900}
    picture = plain(distinct, plane, index, box=BOX, **options)
    expected = grey_of(as_shown(distinct[part], plane, index - start), -700, 900)
    np.testing.assert_array_equal(picture[..., 0], expected)
    for size in (None, 130):
        np.testing.assert_array_equal(
            plain(distinct, plane, index, box=BOX, mask=mask, heat=heat, size=size, **options),
            plain(
                distinct[part],
                plane,
                index - start,
                mask=mask[part],
                heat=heat[part],
                size=size,
                **options,
            ),
        )


@pytest.mark.parametrize("box", [None, ((2, 30), (5, 38), (8, 47))])
@pytest.mark.parametrize("size", [None, 170])
@pytest.mark.parametrize("plane", PLANES)
def test_the_cross_marks_the_voxel(plane, size, box):
    hu = np.full((33, 40, 50), -1000, np.int16)
    z, y, x = 9, 25, 31
    z0, y0, x0 = (start for start, _ in box) if box else (0, 0, 0)
    z1, y1, x1 = (stop for _, stop in box) if box else hu.shape
    expected = {
        "axial": (y - y0, x - x0),
        "coronal": (z1 - 1 - z, x - x0),
        "sagittal": (z1 - 1 - z, y - y0),
    }[plane]
    sides = {"axial": (y1 - y0, x1 - x0), "coronal": (z1 - z0, x1 - x0)}
    shape = sides.get(plane, (z1 - z0, y1 - y0))
    picture = plain(hu, plane, (z, y, x)[THROUGH[plane]], box=box, point=(z, y, x), size=size)
    scale = np.array(picture.shape[:2]) / shape
    rows, columns = cross_at(picture)
    row, column = ((np.array(expected) + 0.5) * scale).astype(int)
    assert (rows, columns) == ([row], [column])
    hidden = (picture[rows[0], :] != CROSS_COLOUR).any(axis=-1).sum()
    assert 3 <= hidden <= 15, "the voxel itself stays visible"
    is_cross = (picture == CROSS_COLOUR).all(axis=-1)
    is_cross[rows], is_cross[:, columns] = False, False
    assert not is_cross.any()


@pytest.mark.parametrize(
    "point", [(0, 15, 16), (39, 15, 16), (14, 1, 16), (14, 38, 16), (14, 15, 0)]
)
@pytest.mark.parametrize("plane", PLANES)
def test_a_point_outside_the_box_is_not_marked(plane, point):
    hu = np.zeros((40, 39, 38), np.int16)
    box, index = ((2, 30),) * 3, point[THROUGH[plane]]
    is_along = not 2 <= index < 30
    for size in (None, 20, 90):
        bare = plain(hu, plane, index, box=box, size=size)
        picture = plain(hu, plane, index, box=box, size=size, point=point)
        assert (picture != bare).any() == is_along


def test_rendering_changes_no_input(distinct):
    mask, heat = distinct % 2 == 0, np.random.default_rng(4).random(SHAPE)
    before = [array.copy() for array in (distinct, mask, heat)]
    for array in (distinct, mask, heat):
        array.setflags(write=False)
    for plane in PLANES:
        for size in (None, 60):
            picture = render(
                distinct, plane, 3, mask=mask, heat=heat, size=size, point=(1, 2, 3), text="a"
            )
            assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    for array, copy in zip((distinct, mask, heat), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_strip_shows_attention_lesions_and_the_slice():
    attention, lesion = np.array([0.0, 1, 0.5, 0.25]), np.array([0, 5, 0, 1])
    bars = rendering.strip(attention, lesion, index=2, size=(200, 44))
    assert bars.shape == (44, 200, 3) and bars.dtype == np.uint8
    blue = (bars == (0, 114, 178)).all(axis=-1)
    heights = [blue[:, left + 20].sum() for left in (0, 50, 100, 150)]
    assert heights == [0, 40, 20 - 2, 10], "the frame hides the lowest two rows of slice 2"
    shaded = (bars == (248, 214, 140)).all(axis=-1).any(axis=0)
    assert shaded[[75, 175]].all() and not shaded[[25, 125]].any()
    black = (bars == 0).all(axis=-1)
    assert np.flatnonzero(black.any(axis=0)).tolist() == list(range(100, 150))
    assert black[:, [100, 149]].all() and black[[0, 1, -2, -1], 100:150].all()


@pytest.mark.parametrize("n", [1, 13, 700])
def test_strip_of_any_number_of_slices(n):
    for index in (0, n - 1):
        bars = rendering.strip(lesion=np.ones(n), index=index, size=(512, 40))
        assert bars.shape == (40, 512, 3)
        columns = np.flatnonzero((bars[20] == 0).all(axis=-1))
        assert abs(columns.mean() - (index + 0.5) * 512 / n) <= 1


def test_beside_and_in_squares():
    tall, wide = np.full((40, 10, 3), 200, np.uint8), np.full((20, 30, 3), 100, np.uint8)
    sheet = rendering.beside([tall, wide], gap=6)
    assert sheet.shape == (40, 46, 3)
    assert (sheet[:, :10] == 200).all() and (sheet[10:30, 16:] == 100).all()
    assert (sheet[:, 10:16] == rendering.BACKGROUND).all()
    assert (sheet[:10, 16:] == rendering.BACKGROUND).all()
    frame = rendering.beside([wide], square=30)
    assert frame.shape == (30, 30, 3) and (frame[5:25] == 100).all()
    assert (frame[:5] == rendering.BACKGROUND).all() and (frame[25:] == rendering.BACKGROUND).all()


def test_encoded_pictures_decode(made):
    picture = render(made.hu, spacing=made.spacing, mask=made.mask, size=256)
    lossless, jpeg = rendering.encode(picture, "png"), rendering.encode(picture)
    assert lossless.startswith(b"\x89PNG") and jpeg.startswith(b"\xff\xd8")
    np.testing.assert_array_equal(decode(lossless), picture)
    assert is_close(decode(jpeg), picture, mean=4)
    assert len(jpeg) < len(lossless)


@pytest.mark.parametrize(
    ("seed", "category", "scanner"), [(0, "CT-0", "A"), (3, "CT-3", "C"), (15, "CT-4", "B")]
)
def test_lung_box_holds_the_lungs_of_a_phantom(seed, category, scanner):
    study = simulate.make_study(seed, category, matrix=128, n_slices=16, scanner=scanner)
    box = rendering.lung_box(study.hu, study.spacing)
    inside = study.lung[tuple(slice(*side) for side in box)].sum()
    assert inside >= 0.98 * study.lung.sum()
    size = np.prod([stop - start for start, stop in box])
    assert size < 0.7 * study.hu.size
    assert all(0 <= a < b <= n for (a, b), n in zip(box, study.hu.shape, strict=True))
    wider = rendering.lung_box(study.hu, study.spacing, margin=30)
    assert all(a <= b and c >= d for (a, c), (b, d) in zip(wider, box, strict=True))


def test_lung_box_follows_the_lungs_by_value():
    hu = np.full((20, 256, 256), -1000, np.int16)
    hu[:, 40:220, 20:240] = 40
    hu[4:15, 80:180, 50:110] = hu[4:15, 90:170, 140:200] = -850
    box = rendering.lung_box(hu, (5, 1, 1), margin=10)
    for side, expected in zip(box, ((2, 17), (70, 190), (40, 210)), strict=True):
        assert np.abs(np.subtract(side, expected)).max() <= 2


@pytest.mark.parametrize("hu", [-1000, 40])
def test_lung_box_without_lungs_is_everything(hu):
    assert rendering.lung_box(np.full((9, 30, 40), hu, np.int16)) == ((0, 9), (0, 30), (0, 40))


def test_lung_box_of_real_scans(real_scans):
    for name, scan in real_scans.items():
        box, shape = scan.lungs, scan.hu.shape
        assert all(0 <= a < b <= n for (a, b), n in zip(box, shape, strict=True)), name
        if name.startswith("mosmedlike"):
            mm = [(b - a) * step for (a, b), step in zip(box, scan.spacing, strict=True)]
            assert mm[0] > 70 and 150 < mm[1] < 300 and 200 < mm[2] < 380, (name, mm)
            assert (box[1], box[2]) != ((0, shape[1]), (0, shape[2])), name
            coarse = scan.hu[:, ::4, ::4]
            pieces, _ = ndimage.label((coarse > -950) & (coarse < -700))
            sizes = np.bincount(pieces.ravel())
            sizes[np.unique([pieces[:, [0, -1]], pieces[:, :, [0, -1]].swapaxes(1, 2)])] = 0
            lung = pieces == sizes.argmax()
            part = box[0], *((a // 4, -(-b // 4)) for a, b in box[1:])
            share = lung[tuple(slice(*side) for side in part)].sum() / lung.sum()
            assert share > 0.98, (name, share)


@pytest.mark.parametrize("kind", [str, lambda path: path, read_study])
def test_load_a_file(cohort, kind):
    scan = load_scan(kind(cohort.study))
    image = nib.as_closest_canonical(nib.load(cohort.study))
    expected = np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]
    np.testing.assert_array_equal(scan.hu, expected)
    assert scan.spacing == pytest.approx(image.header.get_zooms()[::-1])
    assert scan.name == cohort.study.name.removesuffix(".nii.gz")
    assert scan.caption == "synthetic phantom"
    assert load_scan(cohort.study, name="mine").name == "mine"


def test_load_arrays():
    whole = np.arange(-500, -500 + 24, dtype=np.int16).reshape(2, 3, 4)
    scan = load_scan(whole, spacing=np.array([8, 0.7, 0.7]))
    np.testing.assert_array_equal(scan.hu, whole)
    assert scan.spacing == pytest.approx((8, 0.7, 0.7)) and scan.caption == ""
    assert load_scan(whole).spacing == (1, 1, 1)

    broken = whole.astype(np.float32)
    broken[0, 1, 2] = np.nan
    hu = load_scan(broken).hu
    assert hu[0, 1, 2] == -1000 and np.isnan(broken[0, 1, 2])
    np.testing.assert_array_equal(np.delete(hu.ravel(), 6), np.delete(whole.ravel(), 6))

    seen = np.array([0, 51, 128, 255], np.uint8).reshape(1, 2, 2)
    assert load_scan(seen).hu.ravel().tolist() == [-1000, -720, -297, 400]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"study": np.zeros((4, 4))}, "(4, 4)"),
        ({"study": np.zeros((0, 4, 4))}, "(0, 4, 4)"),
        ({"study": np.zeros((4, 4, 4), complex)}, "complex128"),
        ({"study": np.full((4, 4, 4), "a")}, "<U1"),
        ({"study": np.zeros((4, 4, 4)), "mask": np.zeros((4, 4, 5))}, "(4, 4, 5)"),
        ({"study": np.zeros((4, 4, 4)), "heat": np.zeros((4, 4))}, "(4, 4)"),
        ({"study": np.zeros((4, 4, 4)), "heat": np.zeros(0)}, "(0,)"),
        ({"study": np.zeros((4, 4, 4)), "heat": np.zeros((0, 4, 4))}, "(0, 4, 4)"),
        ({"study": "nowhere/study.nii.gz"}, "does not exist"),
        ({"study": np.zeros((4, 4, 4)), "mask": "nowhere/mask.nii.gz"}, "does not exist"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(arguments, words):
    with pytest.raises(ValueError) as caught:
        load_scan(**arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, UnreadableStudy) == ("exist" in words)


def test_mask_from_a_file(cohort):
    image = nib.as_closest_canonical(nib.load(cohort.mask))
    expected = np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1] > 0
    assert expected.any()
    for mask in (cohort.mask, str(cohort.mask), expected.astype(np.uint8) * 7):
        scan = load_scan(cohort.study, mask=mask)
        np.testing.assert_array_equal(scan.mask, expected)
        np.testing.assert_array_equal(scan.lesion, expected.sum(axis=(1, 2)))


def test_heat_a_slice():
    hu = np.zeros((20, 5, 5), np.int16)
    heat = np.array([0, 1, 4, 2, 2, 9, 3, 1.0])
    between = np.interp((np.arange(20) + 0.5) * 8 / 20 - 0.5, np.arange(8), heat)
    np.testing.assert_allclose(load_scan(hu, heat=heat).attention, between, rtol=1e-5)
    many = np.random.default_rng(5).random(40)
    means = many.reshape(20, 2).mean(axis=1)
    np.testing.assert_allclose(load_scan(hu, heat=many).attention, means, rtol=1e-5)
    assert load_scan(hu, heat=heat).heat is None


def test_heat_of_the_same_size_is_scaled_to_its_maximum(distinct):
    heat = np.random.default_rng(6).random(SHAPE) * 7
    scan = load_scan(distinct, heat=heat)
    np.testing.assert_allclose(scan.heat, heat / heat.max(), rtol=1e-5)
    np.testing.assert_allclose(scan.attention, scan.heat.mean(axis=(1, 2)), rtol=1e-5)
    assert (load_scan(distinct, heat=np.zeros(SHAPE)).heat == 0).all()


@pytest.mark.parametrize("shape", [(16, 80, 96), (16, 96, 70)])
def test_heat_comes_back_from_what_the_network_sees(shape):
    block = np.zeros(shape, np.float32)
    block[6:9, 50:58, 20:30] = 1
    seen = resample(pad_to_square(block, (8, 1, 1), fill=0), (32, 64, 64))
    heat = load_scan(np.zeros(shape, np.int16), heat=seen, spacing=(8, 1, 1)).heat
    assert heat[block > 0].mean() > 0.7 and heat[block == 0].mean() < 0.01
    places = [(heat * at).sum() / heat.sum() for at in np.indices(shape, dtype=np.float32)]
    np.testing.assert_allclose(places, (7, 53.5, 24.5), atol=0.1)


@pytest.mark.parametrize("n", [1, 7, 8, 33, 40, 64, 113, 512])
def test_every_slice_can_be_chosen(n):
    viewer = Viewer([load_scan(np.zeros((n, n, n // 2 + 1), np.int16))])
    for axis, side in enumerate(viewer.scans[0].hu.shape):
        for index in range(side):
            viewer.move(axis, index)
            assert viewer.point(viewer.scans[0])[axis] == index


@pytest.mark.parametrize(("n", "m"), [(20, 40), (40, 20), (37, 112), (13, 42), (30, 30)])
def test_compared_scans_are_linked_by_the_height(n, m):
    viewer = compare(np.zeros((n, 8, 8), np.int16), np.zeros((m, 8, 8), np.int16))
    first, second = viewer.scans
    reached = []
    for index in range(n):
        viewer.move(0, index)
        assert viewer.point(first)[0] == index
        reached.append(viewer.point(second)[0])
        assert abs((reached[-1] + 0.5) / m - (index + 0.5) / n) <= 0.5 / m + 1e-9
    step = max(m / n, 1)
    assert reached[0] <= step / 2 and reached[-1] >= m - 1 - step / 2
    assert reached == sorted(reached)
    if n == m:
        assert reached == list(range(n))


def test_compare_shows_both_with_one_window(made):
    viewer = compare(made.hu, made.hu[::2], masks=(made.mask, None), names=("a", None), size=200)
    viewer.level, viewer.width = 40, 400
    picture = viewer.picture()
    assert picture.shape == (200, 2 * 200 + rendering.GAP, 3)
    for scan, part in zip(viewer.scans, (picture[:, :200], picture[:, -200:]), strict=True):
        index = viewer.point(scan)[0]
        mask = None if scan.mask is None else scan.mask
        alone = render(scan.hu, "axial", index, level=40, width=400, mask=mask, size=200)
        alone = annotate(alone, title=scan.name)
        np.testing.assert_array_equal(part, rendering.beside([alone], square=200))


def test_readout(distinct):
    viewer = explore(distinct, spacing=(8, 0.5, 2))
    for axis, index in enumerate((4, 7, 3)):
        viewer.move(axis, index)
    texts = {
        "axial": "slice 5 of 7, 32 mm above the lowest",
        "coronal": "slice 8 of 10, 4 mm from the front",
        "sagittal": "slice 4 of 12, 6 mm from the right",
    }
    for viewer.plane, text in texts.items():
        viewer.cross = False
        assert viewer.readout() == f"{text} · window −1350 … 150 HU"
        viewer.cross = True
        assert viewer.readout().endswith(f" · at the cross −{-distinct[4, 7, 3]} HU")


def test_readout_of_a_pair(distinct):
    viewer = compare(distinct, distinct[:, :, ::-1].copy())
    viewer.cross = True
    viewer.move(2, 2)
    z, y, x = viewer.point(viewer.scans[0])
    parts = viewer.readout().replace("−", "-").split(" · ")
    assert parts[0].count("slice") == 2
    expected = f"{distinct[z, y, 2]} HU | {distinct[z, y, 12 - 1 - 2]} HU"
    assert x == 2 and parts[2] == f"at the cross {expected}"


@pytest.mark.parametrize("plane", PLANES)
def test_zoom_shows_the_box_of_the_lungs(made, plane):
    viewer = explore(made.hu, spacing=made.spacing, plane=plane, size=240)
    whole = viewer.picture()
    viewer.zoom = True
    scan, index = viewer.scans[0], viewer.point(viewer.scans[0])[THROUGH[plane]]
    box = rendering.lung_box(made.hu, made.spacing)
    assert box != tuple((0, n) for n in made.hu.shape)
    alone = render(made.hu, plane, index, scan.spacing, box=box, size=240)
    np.testing.assert_array_equal(viewer.picture(), rendering.beside([alone], square=240))
    assert (viewer.picture() != whole).any()


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("end", [0, 0.999])
def test_the_cross_stays_in_the_zoom(made, plane, end):
    """Wherever it was before, it is seen, and its sliders end where the picture ends."""
    viewer = explore(made.hu, spacing=made.spacing, plane=plane, size=200)
    controls, scan = viewer.widget.controls, viewer.scans[0]
    viewer.place = [end] * 3
    outside = viewer.point(scan)
    controls.cross.value = controls.zoom.value = True
    through, down, across = rendering.plane_axes(plane)
    box, at = scan.lungs, viewer.point(scan)
    assert at[through] == outside[through]
    assert all(box[axis][0] <= at[axis] < box[axis][1] for axis in (down, across))
    assert (viewer.picture() == CROSS_COLOUR).all(axis=-1).any()
    assert f"at the cross {scan.hu[at]} HU".replace("-", "−") in viewer.readout()
    for axis in (down, across):
        control = controls.axes[axis]
        assert (control.min, control.max + 1) == box[axis]
        for value in (control.min, control.max):
            control.value = value
            assert viewer.point(scan)[axis] == value
    viewer.place = [end] * 3
    controls.zoom.value = False
    assert viewer.point(scan) == outside
    assert [control.min for control in controls.axes] == [0, 0, 0]
    assert [control.max + 1 for control in controls.axes] == list(made.hu.shape)


def test_still_picture(made):
    alone = explore(made.hu, mask=made.mask, spacing=made.spacing)
    sheet = np.asarray(alone.still())
    scan, point = alone.scans[0], alone.point(alone.scans[0])
    left = 0
    for plane, size in (("axial", 400), ("coronal", 300), ("sagittal", 300)):
        part = render(
            made.hu, plane, point[THROUGH[plane]], scan.spacing, mask=made.mask, size=size
        )
        top = (sheet.shape[0] - 26 - part.shape[0]) // 2
        shown = sheet[top : top + part.shape[0], left : left + part.shape[1]]
        np.testing.assert_array_equal(shown, part)
        left += part.shape[1] + rendering.GAP
    assert sheet.shape[1] == left - rendering.GAP
    assert sheet[-26:].max() > 200, "the readout"
    pair = compare(made.hu, made.hu).still()
    assert pair.size == (2 * 400 + rendering.GAP, round(400 * 80 / 96) + 26)


def test_explore_starts_where_the_lesion_is_largest(made):
    viewer = explore(made.hu, mask=made.mask)
    assert viewer.point(viewer.scans[0])[0] == made.mask.sum(axis=(1, 2)).argmax()
    bare = explore(made.hu, mask=np.zeros_like(made.mask))
    assert bare.place == explore(made.hu).place


@pytest.mark.parametrize("wrong", [{"preset": "brain"}, {"plane": "oblique"}])
def test_an_unknown_preset_or_plane_is_refused(wrong):
    with pytest.raises(ValueError, match="lung, mediastinum, bone, course.*axial, coronal"):
        explore(np.zeros((4, 4, 4)), **wrong)


@pytest.fixture
def shown(made):
    """A viewer, its controls, and how often it was drawn since the last look."""
    viewer = explore(made.hu, mask=made.mask, spacing=made.spacing, size=128)
    controls, draw, calls = viewer.widget.controls, viewer.picture, []

    def picture(*arguments):
        calls.append(arguments)
        return draw(*arguments)

    viewer.picture = picture

    def n_drawn():
        n = len(calls)
        calls.clear()
        return n

    return SimpleNamespace(viewer=viewer, controls=controls, n_drawn=n_drawn)


def check(shown):
    """One drawing, of what the viewer says, in all that the widget sends."""
    assert shown.n_drawn() == 1
    picture = Viewer.picture(shown.viewer)
    assert is_close(decode(shown.controls.picture.value), picture)
    for line in shown.viewer.readout().split(" · "):
        assert line in shown.controls.readout.value


def test_the_widget_starts_with_the_picture(shown):
    controls, viewer = shown.controls, shown.viewer
    assert controls.box is viewer.widget and isinstance(viewer.widget, ipywidgets.Box)
    assert is_close(decode(controls.picture.value), Viewer.picture(viewer))
    assert (controls.preset.value, controls.plane.value) == ("lung", "axial")
    assert (controls.level.value, controls.width.value) == (-600, 1500)
    assert controls.slice.value == viewer.point(viewer.scans[0])[0]
    assert controls.opacity.value == viewer.opacity == 0.4
    np.testing.assert_array_equal(decode(controls.strip.value), viewer.strip())


CHANGES = [
    ("slice", 3, {}),
    ("plane", "coronal", {"plane": "coronal"}),
    ("plane", "sagittal", {"plane": "sagittal"}),
    ("preset", "mediastinum", {"level": 40, "width": 400}),
    ("preset", "bone", {"level": 400, "width": 1800}),
    ("level", -200, {"level": -200, "width": 1500}),
    ("width", 700, {"level": -600, "width": 700}),
    ("zoom", True, {"zoom": True}),
    ("cross", True, {"cross": True}),
    ("opacity", 0.9, {"opacity": 0.9}),
]


@pytest.mark.parametrize(("control", "value", "attributes"), CHANGES)
def test_each_control_draws_once(shown, control, value, attributes):
    before = shown.controls.picture.value
    getattr(shown.controls, control).value = value
    assert shown.controls.picture.value != before
    assert {name: getattr(shown.viewer, name) for name in attributes} == attributes
    check(shown)


def test_scrolling_reaches_every_slice(shown, made):
    pictures = set()
    for index in (*range(len(made.hu)), 2):
        shown.controls.slice.value = index
        assert f"slice {index + 1} of {len(made.hu)}," in shown.controls.readout.value
        check(shown)
        strip = rendering.strip(None, made.mask.sum(axis=(1, 2)), index, (128, 40))
        np.testing.assert_array_equal(decode(shown.controls.strip.value), strip)
        pictures.add(shown.controls.picture.value)
    assert len(pictures) == len(made.hu)


@pytest.mark.parametrize("plane", PLANES)
def test_the_cross_follows_its_sliders(shown, made, plane):
    controls, viewer = shown.controls, shown.viewer
    controls.plane.value, controls.cross.value = plane, True
    shown.n_drawn()
    point = (8, 11, 21)
    for axis in range(3):
        control = controls.slice if axis == THROUGH[plane] else controls.axes[axis]
        control.value = point[axis]
        check(shown)
    assert viewer.point(viewer.scans[0]) == point
    assert [control.value for control in controls.axes] == list(point)
    hu = f"{made.hu[point]} HU".replace("-", "−")
    assert f"at the cross {hu}" in controls.readout.value


def test_a_window_by_hand_and_by_name(shown):
    controls = shown.controls
    controls.level.value = -500
    assert controls.preset.value is None
    check(shown)
    controls.preset.value = "course"
    assert (controls.level.value, controls.width.value) == (-300, 1400)
    check(shown)
    controls.width.value = 1000
    assert controls.preset.value is None and shown.viewer.width == 1000
    check(shown)
    controls.width.value = 1400
    assert controls.preset.value == "course"
    check(shown)


def test_a_change_of_plane_keeps_the_place(shown, made):
    controls, viewer = shown.controls, shown.viewer
    controls.slice.value = 11
    viewer.move(1, 61)
    viewer.move(2, 83)
    shown.n_drawn()
    for plane in ("coronal", "sagittal", "axial", "sagittal", "coronal"):
        controls.plane.value = plane
        assert viewer.point(viewer.scans[0]) == (11, 61, 83)
        through = THROUGH[plane]
        for control in (controls.slice, controls.play):
            assert (control.min, control.max) == (0, made.hu.shape[through] - 1)
            assert control.value == (11, 61, 83)[through]
        assert [control.value for control in controls.axes] == [11, 61, 83]
        check(shown)


@pytest.mark.parametrize("plane", PLANES)
def test_what_shows_with_the_cross_and_what_with_the_axial_plane(shown, plane):
    controls = shown.controls
    controls.plane.value = plane
    assert controls.strip.layout.visibility == ("visible" if plane == "axial" else "hidden")
    for cross in (False, True, False):
        controls.cross.value = cross
        visible = [control.layout.display == "" for control in controls.axes]
        assert visible == [cross and axis != THROUGH[plane] for axis in range(3)]
        assert ("at the cross" in controls.readout.value) == cross


def test_the_strip_and_the_overlay_slider_need_something_to_show(made):
    def all_widgets(box):
        for child in box.children:
            yield child
            if isinstance(child, ipywidgets.Box):
                yield from all_widgets(child)

    heat = np.arange(4.0)
    for options, has_strip, has_opacity in (
        ({}, False, False),
        ({"mask": made.mask}, True, True),
        ({"heat": heat}, True, False),
        ({"heat": np.ones((2, 3, 3))}, True, True),
    ):
        controls = explore(made.hu, size=64, **options).widget.controls
        parts = list(all_widgets(controls.box))
        assert (controls.strip in parts) == has_strip
        assert (controls.opacity in parts) == has_opacity
        assert {controls.picture, controls.slice, controls.play, controls.readout} < set(parts)


@pytest.fixture
def sent(monkeypatch):
    """What the kernel sends to the browser: (widget, state)."""
    messages = []

    def record(widget, message, buffers=None):
        if message.get("method") == "update":
            messages.append((widget, message["state"]))

    monkeypatch.setattr(ipywidgets.Widget, "_send", record)
    return messages


def test_a_change_of_window_leaves_the_scrolling_alone(shown, sent):
    controls = shown.controls
    controls.level.set_state({"value": -450})
    controls.preset.set_state({"index": 1})
    controls.zoom.set_state({"value": True})
    scrolling = (controls.slice, controls.play, *controls.axes)
    assert not [state for widget, state in sent if widget in scrolling]
    assert shown.viewer.level == 40 and shown.n_drawn() == 3
    assert sum(widget is controls.picture for widget, _ in sent) == 3


def test_the_browser_never_gets_a_value_beyond_the_range_it_knows(shown, sent):
    """It would cut the value off and send that back: the viewer would jump."""
    controls, made = shown.controls, shown.viewer.scans[0].hu
    sliders = (controls.slice, controls.play, *controls.axes)
    known = {
        id(control): {name: getattr(control, name) for name in ("min", "max", "value")}
        for control in sliders
    }
    shown.viewer.place = [0.999, 0.999, 0]
    changes = [(controls.plane, {"index": plane}) for plane in (2, 0, 1, 2, 0)]
    changes[2:2] = [(control, {"value": True}) for control in (controls.zoom, controls.cross)]
    for pressed, change in (*changes, (controls.zoom, {"value": False})):
        sent.clear()
        pressed.set_state(change)
        for widget, state in sent:
            if widget in sliders:
                assert len(state) == 1, "the order within one message is not certain"
                now = known[id(widget)] = known[id(widget)] | state
                assert now["min"] <= now["value"] <= now["max"]
        through = rendering.plane_axes(shown.viewer.plane)[0]
        point = shown.viewer.point(shown.viewer.scans[0])[through]
        for control in (controls.slice, controls.play):
            last = made.shape[through] - 1
            assert known[id(control)] == {"min": 0, "max": last, "value": point}


@pytest.mark.parametrize("control", ["slice", "level", "plane"])
def test_a_change_in_the_browser_is_one_picture(shown, sent, control):
    widget = getattr(shown.controls, control)
    widget.set_state({"plane": {"index": 1}}.get(control, {"value": 7}))
    assert shown.n_drawn() == 1
    assert sum(owner is shown.controls.picture for owner, _ in sent) == 1
    assert sum(owner is shown.controls.readout for owner, _ in sent) == 1


def test_a_pair_has_one_set_of_controls(made):
    viewer = compare(made.hu, made.hu[:9], names=("a", "b"), size=96)
    controls = viewer.widget.controls
    controls.slice.value = 15
    assert [viewer.point(scan)[0] for scan in viewer.scans] == [15, 8]
    assert is_close(decode(controls.picture.value), viewer.picture(), mean=4)
    assert "slice 16 of 16" in controls.readout.value and "slice 9 of 9" in controls.readout.value


def test_no_cell_output_is_used_as_a_canvas():
    sources = {path: path.read_text() for path in (ROOT / "helpers").rglob("*.py")}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        sources[path] = "\n".join(code)
    assert len(sources) > 20
    used = r"\b(?:Output|interact|interactive|interact_manual|interactive_output)\b\s*\("
    used += r"|import.*\b(?:interact|Output)\b|@(?:\w+\.)*interact\b"
    assert not [path.name for path, source in sources.items() if re.search(used, source)]


def bytes_to_play(viewer):
    """What the browser gets while every slice is shown once."""
    controls, total = viewer.widget.controls, 0
    for index in range(controls.slice.max + 1):
        controls.slice.value = index
        total += len(controls.picture.value) + len(controls.readout.value.encode())
        total += len(controls.strip.value) if viewer.strip() is not None else 0
    return total


def test_traffic_of_a_noisy_chest():
    rng = np.random.default_rng(7)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body, lungs = (x / 0.9) ** 2 + (y / 0.65) ** 2 < 1, np.hypot((abs(x) - 0.4) / 0.3, y / 0.4) < 1
    anatomy = np.where(body, np.where(lungs, -850, 40), -1000)
    noise = 25 * rng.standard_normal((8, 512, 512), dtype=np.float32)
    hu = np.tile((anatomy + noise).astype(np.int16), (5, 1, 1))
    mask = np.broadcast_to(lungs & (y > 0.1), hu.shape)
    assert bytes_to_play(explore(hu)) <= 3e6
    assert bytes_to_play(explore(hu, mask=mask)) <= 3e6


@pytest.mark.parametrize(
    ("content", "is_still"),
    [({"allow_stdin": False}, True), ({"allow_stdin": True}, False), ({}, False)],
)
def test_display_where_nobody_sits_in_front(monkeypatch, made, content, is_still):
    shell = SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda: {"content": content}))
    displayed = []
    monkeypatch.setattr(viewers, "get_ipython", lambda: shell)
    monkeypatch.setattr(viewers, "display", lambda what, **how: displayed.append((what, how)))
    viewer = explore(made.hu, size=64)
    viewer._ipython_display_()
    [(what, options)] = displayed
    if is_still:
        assert options["raw"] and what["text/plain"] == viewer.readout()
        assert viewer.readout() in options["metadata"]["image/jpeg"]["alt"]
        difference = decode(what["image/jpeg"]).astype(int) - np.asarray(viewer.still())
        assert np.abs(difference).mean() < 4
        assert "widget" not in viewer.__dict__
    else:
        assert what is viewer.widget


def test_a_threshold_that_is_dragged_draws_its_calls_anew():
    labels, scores = [0, 0, 1, 0, 1, 1], [0.0, 0.1, 0.4, 0.5, 0.8, 1.0]
    shown = viewers.Threshold(labels, scores, 0.45, "synthetic")
    slider, words, picture = shown.widget.children
    assert (slider.min, slider.max, slider.value) == (0, 1, 0.45)
    assert words.value == "Threshold 0.45: 2 of 3 ill are called, sensitivity 0.67; " + (
        "2 of 3 healthy are not, specificity 0.67"
    )
    before = decode(picture.value)
    slider.value = 0.4
    assert shown.value == 0.4 and "3 of 3 ill are called" in words.value
    after = decode(picture.value)
    assert before.shape == after.shape == (340, 900, 3)
    assert 0.001 < (before != after).any(axis=-1).mean() < 0.2
    slider.value = 0.45
    np.testing.assert_array_equal(decode(picture.value), before)
    slider.set_state({"value": 1.0})  # as a browser does it
    assert "1 of 3 ill" in words.value


@pytest.mark.parametrize("is_still", [True, False])
def test_a_threshold_where_nobody_drags_is_a_figure(monkeypatch, is_still):
    displayed = []
    monkeypatch.setattr(viewers, "_is_headless", lambda: is_still)
    monkeypatch.setattr(viewers, "display", displayed.append)
    shown = viewers.Threshold([0, 1, 1], [-3, -4, 2], 0)
    shown._ipython_display_()
    if is_still:
        assert displayed[0].get_label() == shown.figure().get_label()
        assert "widget" not in shown.__dict__
    else:
        assert displayed == [shown.widget]
    with pytest.raises(ValueError, match="NaN"):
        viewers.Threshold([0, 1], [np.nan, 1])


@pytest.mark.parametrize("shell", [None, SimpleNamespace()], ids=["none", "terminal"])
def test_display_without_a_kernel_is_a_picture(monkeypatch, shell):
    monkeypatch.setattr(viewers, "get_ipython", lambda: shell)
    assert viewers._is_headless()


@pytest.mark.parametrize(("n", "columns"), [(6, 3), (5, 4), (1, 5), (30, 7), (99, 9)])
@pytest.mark.parametrize("plane", PLANES)
def test_montage(n, columns, plane):
    sides = (30, 31, 32)
    n_slices, through = sides[THROUGH[plane]], THROUGH[plane]
    along = np.arange(n_slices).reshape([-1 if axis == through else 1 for axis in range(3)])
    hu = np.broadcast_to(along * 25 - 900, sides).astype(np.int16)
    height, width = as_shown(hu, plane, 0).shape
    height, width = round(height * 64 / max(height, width)), round(width * 64 / max(height, width))
    sheet = montage(hu, n, columns, None, plane, "course", spacing=(3, 3, 3), size=64)
    n = min(n, n_slices)
    n_rows = -(-n // columns)
    assert sheet.size == (
        min(n, columns) * (width + 3) - 3,
        n_rows * (height + 3) + 24,
    )
    expected = [int((k + 0.5) * n_slices / n) for k in range(n)]
    assert len(set(expected)) == n
    pixels = np.asarray(sheet)
    for k, index in enumerate(expected):
        top, left = k // columns * (height + 3), k % columns * (width + 3)
        middle = pixels[top + height // 2, left + width // 2]
        assert (middle == grey_of(index * 25 - 900, -300, 1400)).all()
        text = f"{index + 1} · {index * 3} mm"
        tile = render(hu, plane, index, level=-300, width=1400, size=64, text=text)
        np.testing.assert_array_equal(pixels[top : top + height, left : left + width], tile)
    assert pixels[-24:].max() > 200, "a caption"


def test_a_mask_of_another_place_is_not_laid_over(cohort, tmp_path):
    image = nib.load(cohort.mask)
    voxels, affine = np.asarray(image.dataobj), image.affine.copy()
    affine[0, 3] += 120  # mm: on the other lung
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "mask.nii.gz")
    for study in (cohort.study, read_study(cohort.study)):
        with pytest.raises(UnreadableStudy, match="mm away from its study"):
            explore(study, mask=tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(
        load_scan(cohort.study, cohort.mask).mask, studies.read_mask(cohort.mask)
    )


def test_a_notebook_shows_a_montage_as_one_jpeg_with_its_text(made):
    shown = DisplayFormatter().format(montage(made.hu, 6, 3))
    assert "image/png" not in shown[0] and decode(shown[0]["image/jpeg"]).ndim == 3
    assert shown[1]["image/jpeg"]["alt"].startswith("A contact sheet of 6 slices: axial")


def test_montage_says_what_is_synthetic(cohort):
    study = read_study(cohort.study)
    sheet = np.asarray(montage(study, 4, 4, mask=cohort.mask))
    mask = studies.read_mask(cohort.mask)
    bare = np.asarray(montage(study.hu, 4, 4, mask=mask, spacing=study.spacing))
    np.testing.assert_array_equal(sheet[:-24], bare[:-24])
    foot = np.full_like(sheet, rendering.BACKGROUND)
    words = f"synthetic phantom · {study.path.name[:-7]} · axial, −1350 to 150 HU"
    np.testing.assert_array_equal(sheet[-24:], annotate(foot, text=words)[-24:])
    assert (sheet[-24:] != bare[-24:]).any()
    viewer = explore(study)
    assert (viewer.picture()[-40:, :200] != explore(study.hu).picture()[-40:, :200]).any()


def test_every_real_scan_can_be_explored(real_scans):
    for name, scan in real_scans.items():
        viewer = Viewer([scan], size=256)
        for viewer.plane in PLANES:
            pictures = []
            for viewer.zoom in (False, True):
                pictures.append(viewer.picture())
                assert pictures[-1].shape == (256, 256, 3), name
                assert pictures[-1].std() > 15, (name, viewer.plane, viewer.zoom)
            if name.startswith("mosmedlike"):
                assert (pictures[0] != pictures[1]).any(), name
            assert f"of {scan.hu.shape[THROUGH[viewer.plane]]}," in viewer.readout()


def test_real_scans_lie_on_their_back(real_scans):
    for name, scan in real_scans.items():
        if "covidctmd" in name:
            box, index = scan.lungs, sum(scan.lungs[0]) // 2
            bone = plain(scan.hu, "axial", index, level=400, width=400)[..., 0] > 0
            rows, columns = np.nonzero(bone)
            assert np.median(rows) > np.mean(box[1]), f"{name}: the spine is at the back"
            assert abs(np.median(columns) - np.mean(box[2])) < 40, name
