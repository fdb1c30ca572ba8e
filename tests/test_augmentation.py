"""The augmentation: range, seeds, and each change against an independent computation."""

from __future__ import annotations

import pytest
import torch

from helpers.learn.augmentation import augment, move_slices, normal_noise

STILL = dict.fromkeys(
    ("degrees", "shift", "scale", "slice_shift", "slice_stretch", "gain", "offset", "gamma"), 0.0
) | {"noise": 0.0, "flip": False}


def random_volumes(n_scans: int = 4, shape: tuple[int, int, int] = (6, 20, 24)) -> torch.Tensor:
    return torch.rand(n_scans, *shape, generator=torch.Generator().manual_seed(5))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shape_type_and_range_are_kept_and_the_input_too():
    volumes = random_volumes()
    before = volumes.clone()
    result = augment(volumes, seeded(), strength=3.0)
    assert result.shape == volumes.shape
    assert result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 1
    assert torch.equal(volumes, before)
    assert (result - volumes).abs().mean() > 0.05


def test_strength_zero_changes_nothing():
    volumes = random_volumes()
    result = augment(volumes, seeded(), strength=0)
    assert torch.equal(result, volumes)
    assert result.data_ptr() != volumes.data_ptr()


def test_strength_multiplies_the_changes():
    volumes = torch.full((5, 2, 6, 6), 0.5)
    full = augment(volumes, seeded(), **(STILL | {"offset": 0.2})) - 0.5
    half = augment(volumes, seeded(), strength=0.5, **(STILL | {"offset": 0.2})) - 0.5
    middle = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(half[middle], full[middle] / 2, atol=1e-5, rtol=1e-4)
    assert full[middle].abs().max() > 0.05


def test_every_change_switched_off_changes_nothing():
    volumes = random_volumes()
    torch.testing.assert_close(augment(volumes, seeded(), **STILL), volumes, atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_scans_and_another_does_not():
    volumes = random_volumes()
    first = augment(volumes, seeded(1))
    torch.rand(7)
    assert torch.equal(first, augment(volumes, seeded(1)))
    assert not torch.equal(first, augment(volumes, seeded(2)))


def test_scans_of_a_batch_are_changed_differently():
    volumes = random_volumes(1).repeat(3, 1, 1, 1)
    result = augment(volumes, seeded())
    assert not torch.allclose(result[0], result[1], atol=1e-2)
    assert not torch.allclose(result[1], result[2], atol=1e-2)


def test_flip_is_left_right_and_exact_for_about_half_of_the_scans():
    volumes = random_volumes(64, (2, 8, 8))
    result = augment(volumes, seeded(), **(STILL | {"flip": True}))
    mirrored = [
        torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(result, volumes, strict=True)
    ]
    kept = [torch.allclose(a, b, atol=1e-5) for a, b in zip(result, volumes, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 20 <= sum(mirrored) <= 44


def test_slices_move_and_stretch_and_the_ends_are_repeated():
    volumes = torch.arange(7.0).view(1, 7, 1, 1).repeat(3, 1, 2, 2)
    result = move_slices(volumes, torch.tensor([0.0, 2.0, -0.5]), torch.tensor([2.0, 1.0, 1.0]))
    expected = [
        [1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
        [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0],
        [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.0],
    ]
    torch.testing.assert_close(result[:, :, 0, 0], torch.tensor(expected))
    torch.testing.assert_close(result[:, :, 1, 1], torch.tensor(expected))


@pytest.mark.parametrize(
    ("name", "size", "low", "high"),
    [("offset", 0.2, 0.3, 0.7), ("gain", 0.4, 0.3, 0.7), ("gamma", 0.5, 0.5**1.5, 0.5**0.5)],
)
def test_brightness_stays_in_its_range_and_is_one_value_a_scan(name, size, low, high):
    result = augment(torch.full((40, 2, 6, 6), 0.5), seeded(), **(STILL | {name: size}))
    values = result[:, 0, 3, 3]
    assert torch.allclose(result[:, :, 1:-1, 1:-1], values.view(-1, 1, 1, 1), atol=1e-5)
    assert low - 1e-4 <= values.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < values.max() <= high + 1e-4


def test_noise_has_the_size_that_was_asked_for_and_differs_between_slices():
    volumes = torch.full((30, 3, 40, 40), 0.5)
    result = augment(volumes, seeded(), **(STILL | {"noise": 0.05}))[:, :, 2:-2, 2:-2] - 0.5
    deviations = result.std(dim=(1, 2, 3))
    assert 0.04 < deviations.max() < 0.052
    assert deviations.min() < 0.01
    assert abs(result.mean()) < 1e-3
    one, other = result[0, 0].flatten(), result[0, 1].flatten()
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.1


def test_noise_is_normal_and_hangs_on_the_seed_alone():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        field = normal_noise(torch.Size([8, 50, 50]), generator, torch.device("cpu"))
        return field, generator.get_state()

    field, state = draw(0)
    assert field.mean().abs() < 0.03 and field.std() == pytest.approx(1, abs=0.03)
    again, same_state = draw(0)
    assert torch.equal(field, again) and torch.equal(state, same_state)
    assert not torch.equal(field, draw(1)[0])


@pytest.mark.parametrize(("first", "last"), [(0, 2), (2, 5), (4, 6)])
def test_a_part_of_a_batch_is_changed_as_in_the_whole(first, last):
    volumes = random_volumes(6)
    whole = augment(volumes, seeded())
    part = augment(volumes[first:last], seeded(), within=(first, 6))
    torch.testing.assert_close(part, whole[first:last], atol=1e-5, rtol=0)
