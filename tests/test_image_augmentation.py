"""Random changes of 2-D images: each against torchvision, scipy or a written-out formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchvision.transforms import functional as transforms

from helpers.learn.augmentation import CONTRAST, PUBLISHED, ImageAugmentation, blur, move_plane

NOTHING = {"flip": False}
TURNED = ImageAugmentation(
    scale=(0.6, 1.0), ratio=1.2, degrees=15, contrast=0.3, gamma=1.5, noise=0.04
)
RECIPES = pytest.mark.parametrize(
    "recipe", [PUBLISHED, TURNED, CONTRAST], ids=["published", "turned", "contrast"]
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int = 4, rows: int = 24, columns: int = 40) -> torch.Tensor:
    return torch.rand(n, 1, rows, columns, generator=seeded(5))


def slope_images(n: int, size: int = 48) -> torch.Tensor:
    """Each grows by 0.3 from left to right and by 0.4 from top to bottom."""
    steps = (torch.arange(size) + 0.5) / size
    return (0.2 + 0.3 * steps + 0.4 * steps[:, None]).expand(n, 1, size, size).clone()


def slopes(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """How much each image grows over its whole width and height, measured in its middle."""
    size = images.shape[-1]
    middle = images[:, 0, size // 4 : -size // 4, size // 4 : -size // 4].double().numpy()
    down, across = np.gradient(middle, axis=(1, 2))
    assert down.std(axis=(1, 2)).max() < 1e-4, "not a slope any more"
    return size * across.mean(axis=(1, 2)), size * down.mean(axis=(1, 2))


def move(images, top=0.0, left=0.0, height=1.0, width=1.0, angle=0.0, mirror=False):
    """`move_plane` of a box by its corner, the same for every image or one number an image."""
    numbers = np.broadcast_arrays(top, left, height, width, angle, mirror, np.zeros(len(images)))
    top, left, height, width, angle, mirror, _ = map(torch.tensor, np.array(numbers, np.float32))
    sides = torch.where(mirror > 0, -width, width), height
    return move_plane(images, *sides, 2 * left + width - 1, 2 * top + height - 1, angle)


def moved_by_scipy(image, top, left, height, width, angle, mirror) -> np.ndarray:
    """The same in pixels: walk from the box's middle, and read bilinearly there."""
    rows, columns = image.shape
    row, column = np.mgrid[:rows, :columns]
    down = ((row + 0.5) / rows - 0.5) * height * rows
    right = ((column + 0.5) / columns - 0.5) * width * columns * (-1 if mirror else 1)
    from_row = (top + height / 2) * rows - 0.5 + math.cos(angle) * down + math.sin(angle) * right
    from_column = (
        (left + width / 2) * columns - 0.5 - math.sin(angle) * down + math.cos(angle) * right
    )
    return ndimage.map_coordinates(image, [from_row, from_column], order=1, mode="grid-constant")


@pytest.mark.parametrize(
    ("top", "left", "height", "width"), [(3, 5, 12, 20), (0, 0, 24, 40), (4, 20, 20, 10)]
)
def test_a_box_is_enlarged_as_torchvision_does_it(top, left, height, width):
    images = random_images()
    expected = transforms.resized_crop(images, top, left, height, width, (24, 40), antialias=False)
    found = move(images, top / 24, left / 40, height / 24, width / 40)
    # torchvision cuts before it enlarges, so it repeats the box's last pixels, where we read on
    rows, columns = (
        slice(math.ceil(n / n_box / 2), n - math.ceil(n / n_box / 2))
        for n, n_box in ((24, height), (40, width))
    )
    torch.testing.assert_close(found[..., rows, columns], expected[..., rows, columns])


def test_box_turn_and_mirror_together_are_scipys_and_each_image_has_its_own():
    images = random_images(5)
    rng = np.random.default_rng(1)
    height, width = rng.uniform(0.3, 1, (2, 5))
    top, left = rng.random(5) * (1 - height), rng.random(5) * (1 - width)
    angle, mirror = rng.uniform(-1, 1, 5), np.array([True, False, True, False, True])
    numbers = [top, left, height, width, angle]
    found = move(images, *numbers, mirror)
    for k in range(5):
        expected = moved_by_scipy(images[k, 0].numpy(), *(n[k] for n in numbers), mirror[k])
        np.testing.assert_allclose(found[k, 0], expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(32, 32), (32, 40), (40, 32)])
def test_turning_is_scipys_and_keeps_angles_where_sides_differ(shape):
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random(shape), 2.5)
    hill = np.outer(np.hanning(shape[0]), np.hanning(shape[1]))
    image = ((smooth - smooth.min()) / np.ptp(smooth) * hill).astype(np.float32)
    found = move(torch.from_numpy(image)[None, None], angle=math.radians(12))[0, 0].numpy()
    expected = ndimage.rotate(image, 12, reshape=False, order=1)
    other_way = ndimage.rotate(image, -12, reshape=False, order=1)
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert np.abs(found - other_way).max() > 0.05


def test_a_mirror_is_left_right():
    images = random_images()
    torch.testing.assert_close(move(images, mirror=True), images.flip(-1), atol=1e-5, rtol=0)
    mixed = move(images, mirror=[True, False, False, True])
    torch.testing.assert_close(mixed[[1, 2]], images[[1, 2]], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[[0, 3]], images[[0, 3]].flip(-1), atol=1e-5, rtol=0)


def test_outside_the_image_is_black():
    turned = move(torch.ones(1, 1, 32, 32), angle=math.pi / 4)[0, 0]
    assert torch.equal(turned[[0, 0, -1, -1], [0, -1, 0, -1]], torch.zeros(4))
    torch.testing.assert_close(turned[8:24, 8:24], torch.ones(16, 16))


@pytest.mark.parametrize("largest", [0.4, 1.0, 2.3])
def test_blur_is_scipys_and_torchvisions_and_each_image_has_its_own(largest):
    images = random_images()
    sigma = largest * torch.tensor([0.05, 0.4, 0.7, 1.0])
    found, reach = blur(images, sigma, largest), max(1, math.ceil(2 * largest))
    inside = (..., slice(reach, -reach), slice(reach, -reach))
    for k in range(4):
        expected = ndimage.gaussian_filter(
            images[k, 0].double().numpy(), sigma[k].item(), mode="nearest", radius=reach
        )
        np.testing.assert_allclose(found[k, 0], expected, atol=1e-5)
        other = transforms.gaussian_blur(images[k], 2 * reach + 1, sigma[k].item())
        torch.testing.assert_close(found[k][inside], other[inside], atol=1e-5, rtol=0)


@RECIPES
@pytest.mark.parametrize("n", [1, 4])
def test_shape_type_range_and_the_given_images_are_kept(recipe, n):
    images = random_images(n)
    before = images.clone()
    found = recipe(images, seeded())
    assert found.shape == images.shape and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    assert torch.equal(images, before)
    assert (found - images).abs().mean() > 0.02


def test_strong_changes_stay_between_black_and_white():
    strong = ImageAugmentation(contrast=3, brightness=1, gamma=4, noise=1, blur=3, degrees=90)
    found = strong(random_images(32), seeded())
    assert found.min() == 0 and found.max() == 1
    assert torch.isfinite(found).all()


def test_a_recipe_with_nothing_on_changes_nothing():
    images = random_images()
    found = ImageAugmentation(**NOTHING)(images, seeded())
    torch.testing.assert_close(found, images, atol=1e-5, rtol=0)
    assert found.data_ptr() != images.data_ptr()


@RECIPES
def test_the_same_seed_gives_the_same_images_and_another_does_not(recipe):
    images = random_images()
    first, state = recipe(images, seeded(1)), torch.get_rng_state()
    assert torch.equal(first, recipe(images, seeded(1)))
    assert not torch.equal(first, recipe(images, seeded(2)))
    assert torch.equal(torch.get_rng_state(), state), "drew from others' random numbers"
    generator = seeded(1)
    assert not torch.equal(recipe(images, generator), recipe(images, generator))


@RECIPES
def test_each_image_gets_a_change_of_its_own(recipe):
    found = recipe(random_images(1).repeat(6, 1, 1, 1), seeded())
    for k in range(6):
        for other in range(k):
            assert (found[k] - found[other]).abs().mean() > 0.02


@RECIPES
def test_the_other_images_of_a_batch_do_not_matter(recipe):
    images = random_images()
    others = images.flip(-1) ** 2
    others[2] = images[2]
    found, beside_others = recipe(images, seeded()), recipe(others, seeded())
    torch.testing.assert_close(found[2], beside_others[2], atol=1e-6, rtol=0)
    assert not torch.allclose(found[1], beside_others[1], atol=1e-2)


def test_about_half_are_mirrored_and_the_rest_are_kept():
    images = random_images(100, 8, 12)
    for recipe, low, high in [(ImageAugmentation(), 35, 65), (ImageAugmentation(flip=False), 0, 0)]:
        found = recipe(images, seeded())
        mirrored = (found - images.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-5
        kept = (found - images).abs().amax(dim=(1, 2, 3)) < 1e-5
        assert torch.equal(mirrored, ~kept)
        assert low <= mirrored.sum() <= high


def test_crops_keep_the_share_and_shape_that_were_asked_for():
    images = slope_images(400)
    across, down = slopes(ImageAugmentation((0.2, 0.5), 4 / 3, **NOTHING)(images, seeded()))
    width, height = across / 0.3, down / 0.4
    area, stretch = width * height, height / width
    # drawn evenly, so the whole range comes, and half of it lies below its middle
    assert 0.2 - 1e-3 < area.min() < 0.21 and 0.49 < area.max() < 0.5 + 1e-3
    assert area.mean() == pytest.approx(0.35, abs=0.015)
    assert 3 / 4 - 1e-2 < stretch.min() < 0.77 and 1.3 < stretch.max() < 4 / 3 + 1e-2
    assert np.log(stretch).mean() == pytest.approx(0, abs=0.03)

    across, down = slopes(ImageAugmentation((0.9, 1.0), 2.0, **NOTHING)(images, seeded()))
    assert across.max() < 0.3 + 1e-3 and down.max() < 0.4 + 1e-3


def test_crops_lie_anywhere_in_the_image_and_not_outside():
    images = slope_images(400)
    found = ImageAugmentation(scale=(0.25, 0.25), **NOTHING)(images, seeded())
    # half of each side is left: the middle of the crop lies between 1/4 and 3/4 of both
    middles = found[:, 0, 23:25, 23:25].mean(dim=(1, 2))
    lowest, highest = 0.2 + 0.7 / 4, 0.2 + 0.7 * 3 / 4
    assert lowest - 1e-3 < middles.min() < lowest + 0.04
    assert highest - 0.04 < middles.max() < highest + 1e-3
    assert found[:, :, 2:-2, 2:-2].min() > 0.19


def test_turns_go_both_ways_up_to_the_degrees_asked_for():
    across, down = slopes(ImageAugmentation(degrees=15, **NOTHING)(slope_images(200), seeded()))
    np.testing.assert_allclose(np.hypot(across, down), 0.5, atol=1e-3)
    turned = np.degrees(np.arctan2(down, across) - np.arctan2(0.4, 0.3))
    assert -15.1 < turned.min() < -14 and 14 < turned.max() < 15.1
    assert abs(turned.mean()) < 2


@pytest.mark.parametrize(
    ("name", "size", "low", "high"),
    [("brightness", 0.2, 0.3, 0.7), ("gamma", 1.5, 0.5**1.5, 0.5 ** (1 / 1.5))],
)
def test_brightness_and_gamma_stay_in_their_range(name, size, low, high):
    found = ImageAugmentation(**NOTHING, **{name: size})(torch.full((60, 1, 8, 12), 0.5), seeded())
    values = found[:, 0, 4, 6]
    torch.testing.assert_close(found, values.view(-1, 1, 1, 1).expand_as(found))
    assert low - 1e-4 <= values.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < values.max() <= high + 1e-4


def test_contrast_multiplies_the_distance_from_the_images_own_mean():
    images = 0.4 + 0.2 * random_images(60)
    images += torch.linspace(-0.1, 0.1, 60).view(-1, 1, 1, 1)
    found = ImageAugmentation(contrast=0.4, **NOTHING)(images, seeded())
    middle = images.mean(dim=(2, 3), keepdim=True)
    factor = found.std(dim=(2, 3), keepdim=True) / images.std(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(found, middle + factor * (images - middle), atol=1e-5, rtol=0)
    assert 0.6 - 1e-4 < factor.min() < 0.65 and 1.35 < factor.max() < 1.4 + 1e-4


def test_half_of_the_images_are_blurred_up_to_the_size_asked_for():
    images = torch.zeros(100, 1, 25, 25)
    images[:, :, 12, 12] = 1
    found = ImageAugmentation(blur=2.0, **NOTHING)(images, seeded())
    torch.testing.assert_close(found.sum(dim=(1, 2, 3)), torch.ones(100))
    # a Gaussian's variance is spread from the middle; cut at two deviations it loses some
    distance = (torch.arange(25) - 12.0) ** 2
    variance = (found[:, 0].sum(dim=1) * distance).sum(dim=1)
    sharp = (found - images).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert 35 <= sharp.sum() <= 65
    assert variance.max() < 2.0**2 and variance.max() > 1.5**2
    assert len(variance[~sharp].round(decimals=3).unique()) > 20


def test_noise_has_the_size_asked_for():
    found = (
        ImageAugmentation(noise=0.05, **NOTHING)(torch.full((40, 1, 40, 60), 0.5), seeded()) - 0.5
    )
    deviations = found.std(dim=(1, 2, 3))
    assert 0.045 < deviations.max() < 0.052 and deviations.min() < 0.01
    assert abs(found.mean()) < 1e-3
    one, other = found[0].flatten(), found[1].flatten()
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.1


def test_a_recipes_name_tells_its_settings():
    assert repr(ImageAugmentation(noise=0.1)) != repr(ImageAugmentation(noise=0.2))
    assert repr(ImageAugmentation(noise=0.1)) == repr(ImageAugmentation(noise=0.1))
