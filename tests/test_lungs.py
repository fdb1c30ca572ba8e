"""Lungs cut out of grey pictures: on phantoms whose lungs are known, and on COVID-CT."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from helpers.covidct import covid_ct, lungs
from helpers.phantom.simulate import make_study


def windowed(hu, low=-1200, high=200):
    return (np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="module", params=["CT-0", "CT-2"])
def slices(request):
    """HU, lungs and lesions of the slices of two phantoms that show much lung."""
    found = []
    for seed in (1, 2):
        study = make_study(seed, request.param, 192, 12)
        area = study.lung.sum(axis=(1, 2))
        large = np.flatnonzero(area > 0.6 * area.max())
        found += [(study.hu[k], study.lung[k], study.mask[k] > 0) for k in large]
    assert len(found) >= 8
    return found


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_otsu_parts_two_groups_of_greys():
    rng = np.random.default_rng(0)
    dark, bright = rng.normal(60, 8, 3000), rng.normal(180, 12, 900)
    grey = np.concatenate([dark, bright]).clip(0, 255).astype(np.uint8)
    found = lungs.otsu(grey)
    within = [
        (grey <= t).sum() * grey[grey <= t].var() + (grey > t).sum() * grey[grey > t].var()
        for t in range(int(grey.min()), int(grey.max()))
    ]
    assert within[found - int(grey.min())] == pytest.approx(min(within), rel=1e-6)
    assert np.array_equal(grey > found, np.arange(3900) >= 3000)


def test_bars_are_cut_away_and_nothing_else():
    rng = np.random.default_rng(0)
    inside = rng.integers(20, 255, (30, 40), dtype=np.uint8)
    picture = np.full((64, 64), 5, np.uint8)
    picture[17:47, 12:52] = inside
    np.testing.assert_array_equal(lungs.without_bars(picture), inside)
    np.testing.assert_array_equal(lungs.without_bars(inside), inside)


def test_the_phantoms_lungs_are_found_with_what_is_opaque_in_them(slices):
    """Over half of the lesions: those that reach the chest wall stay out."""
    shares = [dice(lungs.find_lungs(windowed(hu)), lung) for hu, lung, _ in slices]
    assert np.median(shares) > 0.85 and min(shares) > 0.65
    inside = [lungs.find_lungs(windowed(hu))[mask].mean() for hu, _, mask in slices if mask.any()]
    assert not inside or np.mean(inside) > 0.5


def test_a_figure_that_was_cropped_inside_the_body_still_has_its_lungs(slices):
    """Then the lungs may touch the picture's edge, and there is no air around the body."""
    for hu, lung, _ in slices:
        rows, columns = (np.flatnonzero(lung.any(axis=axis)) for axis in (1, 0))
        box = slice(rows[0] - 4, rows[-1] + 5), slice(columns[0] - 4, columns[-1] + 5)
        assert dice(lungs.find_lungs(windowed(hu[box])), lung[box]) > 0.75


def test_without_lungs_none_are_found_and_the_whole_picture_counts():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :96]
    body = ((rows - 48) / 40) ** 2 + ((columns - 48) / 44) ** 2 < 1
    abdomen = np.where(body, rng.normal(160, 8, (96, 96)), 15).clip(0, 255).astype(np.uint8)
    assert not lungs.find_lungs(abdomen).any()
    assert lungs.lung_histogram(abdomen).sum() == pytest.approx(1)
    assert lungs.lungs_alone(abdomen, 64).shape == (64, 64)


def test_a_linear_change_of_the_greys_moves_nothing(slices):
    for hu, _, _ in slices:
        grey = windowed(hu) // 2 * 2
        one, other = lungs.lung_histogram(grey), lungs.lung_histogram(grey // 2 + 40)
        assert one.shape == (16,) and one.sum() == pytest.approx(1)
        assert np.abs(np.cumsum(one - other)).max() < 0.02


def test_two_windows_give_nearly_the_same_histogram(slices):
    """Not the same: a window clips what is below and above it, and bone counts as tissue."""
    pairs = [[windowed(hu, -1100, 300), windowed(hu, -1200, 500)] for hu, _, _ in slices]
    apart = [np.subtract(*map(lungs.lung_histogram, pair)) for pair in pairs]
    assert np.median([np.abs(np.cumsum(one)).max() for one in apart]) < 0.04


def test_standardised_grey_puts_aired_lung_at_0_and_soft_tissue_at_1(slices):
    for hu, lung, lesion in slices:
        standard = lungs.standardise_grey(windowed(hu), lung)
        assert abs(np.median(standard[(hu > 0) & (hu < 90)]) - 1) < 0.2
        assert abs(np.median(standard[lung & ~lesion])) < 0.1


def test_opaque_lungs_have_more_of_the_bright_bins():
    def opaque(category):
        studies = [make_study(seed, category, 128, 12) for seed in range(8)]
        worst = [s.hu[(s.mask if s.mask.any() else s.lung).sum((1, 2)).argmax()] for s in studies]
        return np.array([lungs.lung_histogram(windowed(hu))[7:].sum() for hu in worst])

    severe, clear = opaque("CT-3"), opaque("CT-0")
    assert (severe[:, None] > clear).mean() > 0.65


def test_only_lungs_remain(slices):
    hu, lung, _ = slices[0]
    picture = windowed(hu)
    alone = lungs.lungs_alone(picture, 100)
    assert alone.shape == (100, 100) and alone.dtype == np.uint8
    assert (alone[:2] > 200).all() and (alone[-2:] > 200).all()
    box = [np.flatnonzero(lung.any(axis=axis)) for axis in (1, 0)]
    rows, columns = (np.flatnonzero((alone < 190).any(axis=axis)) for axis in (1, 0))
    shape = np.ptp(columns) / np.ptp(rows)
    assert shape == pytest.approx(np.ptp(box[1]) / np.ptp(box[0]), rel=0.1)
    assert max(np.ptp(rows), np.ptp(columns)) > 85


def test_what_lies_outside_the_lungs_is_not_seen(slices):
    """A mark burnt into the chest wall changes nothing; the same mark in a lung does."""
    hu, lung, _ = slices[0]
    plain, marked, inside = windowed(hu), windowed(hu), windowed(hu)
    wall = np.argwhere((hu > 0) & (hu < 90) & (np.arange(len(hu))[:, None] > 0.75 * len(hu)))
    row, column = wall[len(wall) // 2]
    marked[row - 2 : row + 3, column - 2 : column + 3] = 255
    row, column = np.argwhere(ndimage.binary_erosion(lung, iterations=8))[0]
    inside[row - 2 : row + 3, column - 2 : column + 3] = 255
    expected = lungs.lungs_alone(plain).astype(int)
    assert not np.array_equal(marked, plain)
    assert np.abs(lungs.lungs_alone(marked) - expected).max() <= 2
    assert np.abs(lungs.lungs_alone(inside) - expected).max() > 40


@pytest.mark.parametrize("work", [lungs.without_bars, lungs.lung_histogram, lungs.lungs_alone])
def test_a_black_picture_is_refused_in_one_line(work):
    with pytest.raises(ValueError, match="black all over") as caught:
        work(np.zeros((40, 40), np.uint8))
    assert "\n" not in str(caught.value)


def test_the_lungs_of_covid_ct_are_found(real_data):
    root = real_data / "covid_ct"
    pictures = covid_ct.read_images(root, covid_ct.read_collection(root).iloc[::5])
    found = [lungs.find_lungs(lungs.without_bars(picture)).mean() for picture in pictures]
    assert np.mean(np.array(found) > 0.05) > 0.95
