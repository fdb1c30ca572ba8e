"""Momentum contrast: its logits and queue written out, learning, exact resume, and features."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from helpers.learn import moco
from helpers.learn.augmentation import ImageAugmentation
from helpers.learn.checkpoints import CheckpointError
from helpers.learn.moco import MoCo, features, nearest, pretrain
from helpers.learn.networks import SmallCNN
from helpers.learn.training import learning_rate_factor

pytestmark = pytest.mark.usefixtures("one_thread")


class Pixels(nn.Module):
    """A linear function of an image's 64 pixels, with dropout."""

    features = 6

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(64, 6), nn.Dropout(dropout)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.layer(images.flatten(1)))


def random_images(n: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def make(seed: int = 0, **options) -> MoCo:
    """Its query network differs from its key network, as after some training."""
    torch.manual_seed(seed)
    model = MoCo(Pixels(), **({"size": 4, "queue": 6} | options))
    with torch.no_grad():
        for parameter in model.encoder_q.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def weights(network: nn.Module) -> list[np.ndarray]:
    return [parameter.detach().double().numpy().copy() for parameter in network.parameters()]


def projected(numbers: list[np.ndarray], images: torch.Tensor) -> np.ndarray:
    """Encoder, norm over the batch, hidden layer, ReLU, output, and length 1: written out."""
    encoded = images.double().numpy().reshape(len(images), -1) @ numbers[0].T + numbers[1]
    encoded = (encoded - encoded.mean(axis=0)) / np.sqrt(encoded.var(axis=0) + 1e-5)
    rows = []
    for row in encoded:
        hidden = numbers[2] @ row + numbers[3]
        answer = numbers[4] @ np.maximum(hidden, 0) + numbers[5]
        rows.append(answer / math.sqrt(sum(answer**2)))
    return np.array(rows)


def followed(model: MoCo) -> list[np.ndarray]:
    """What the key network's weights become in the next step."""
    pairs = zip(weights(model.encoder_k), weights(model.encoder_q), strict=True)
    return [model.momentum * slow + (1 - model.momentum) * fast for slow, fast in pairs]


def test_logits_are_the_written_out_similarities():
    model, one, other = make(momentum=0.7, temperature=0.3), random_images(3), random_images(3, 4)
    queue, key_weights = model.queue.double().numpy().copy(), followed(model)
    queries, keys = projected(weights(model.encoder_q), one), projected(key_weights, other)
    expected = np.empty((3, 7))
    for k in range(3):
        expected[k, 0] = queries[k] @ keys[k] / 0.3
        for place in range(6):
            expected[k, 1 + place] = queries[k] @ queue[place] / 0.3
    logits = model(one, other)
    np.testing.assert_allclose(logits.detach(), expected, atol=1e-5)
    for now, then in zip(weights(model.encoder_k), key_weights, strict=True):
        np.testing.assert_allclose(now, then, atol=1e-6)
    np.testing.assert_allclose(model.queue[:3], keys, atol=1e-5)


def test_at_first_both_networks_are_the_same_and_the_queue_is_random():
    torch.manual_seed(0)
    model, images = MoCo(Pixels(), size=4, queue=50), random_images(5)
    torch.testing.assert_close(model.queue.norm(dim=1), torch.ones(50))
    assert len(model.queue.unique()) == 200
    torch.testing.assert_close(model(images, images)[:, 0], torch.full((5,), 1 / 0.2))


def test_the_queue_is_a_ring_in_which_the_newest_replace_the_oldest():
    model = make(queue=5)
    model.queue.zero_()
    for first in range(1, 12, 2):
        model.enqueue(torch.tensor([[first] * 4, [first + 1] * 4]).float())
        newest = {first + 1 - k for k in range(min(5, first + 1))}
        assert set(model.queue[:, 0].int().tolist()) - {0} == newest
    assert model.queue.tolist() == [[value] * 4 for value in (11, 12, 8, 9, 10)]
    assert model.oldest == 2


def test_a_batchs_own_keys_are_no_wrong_answers_of_it_but_of_the_next():
    model, one, other = make(queue=3, momentum=1.0), random_images(3), random_images(3, 4)
    wrong = [model(one, other)[:, 1:].detach().numpy() for _ in range(2)]
    queries = projected(weights(model.encoder_q), one)
    own = queries @ projected(weights(model.encoder_k), other).T / 0.2
    assert np.abs(wrong[0] - own).max() > 0.1
    np.testing.assert_allclose(wrong[1], own, atol=1e-4)


def test_only_the_query_network_gets_gradients():
    model = make()
    model(random_images(3), random_images(3, 4)).pow(2).sum().backward()
    for parameter in model.encoder_q.parameters():
        assert parameter.grad.abs().sum() > 0
    for parameter in model.encoder_k.parameters():
        assert parameter.grad is None and not parameter.requires_grad
    assert not model.queue.requires_grad


def test_gradients_hold_although_the_queue_moves_on():
    model, one, other = make(momentum=1.0), random_images(3), random_images(3, 4)
    with torch.no_grad():
        keys = nn.functional.normalize(model.encoder_k(other), dim=1)
        queue = model.queue.clone()
    query = nn.functional.normalize(model.encoder_q(one), dim=1)
    logits = torch.cat([(query * keys).sum(1, keepdim=True), query @ queue.T], 1) / 0.2
    expected = torch.autograd.grad(logits.pow(2).sum(), list(model.encoder_q.parameters()))
    found = model(one, other)
    model(other, one)
    found.pow(2).sum().backward()
    for parameter, gradient in zip(model.encoder_q.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


class Shades(ImageAugmentation):
    """An easy task: only the brightness differs between two views."""

    def __init__(self, **options) -> None:
        super().__init__(**({"flip": False, "brightness": 0.1} | options))


def pictures(n: int = 40) -> np.ndarray:
    """Each with a pattern of its own."""
    return np.random.default_rng(0).integers(30, 220, (n, 1, 8, 8), dtype=np.uint8)


def encoder(seed: int = 0, dropout: float = 0.3) -> Pixels:
    torch.manual_seed(seed)
    return Pixels(dropout)


def run(folder, network=None, images=None, **options) -> pd.DataFrame:
    options = {"epochs": 4, "batch_size": 8, "augment": Shades(), "device": "cpu"} | options
    images = pictures() if images is None else images
    return pretrain(network or encoder(), images, folder, **options)


def without_seconds(history: pd.DataFrame) -> pd.DataFrame:
    return history.drop(columns="seconds")


def same(one, other) -> bool:
    """Nested dictionaries and lists of tensors and numbers that agree to the last digit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def top1_accuracy(network: nn.Module, images: np.ndarray, recipe: ImageAugmentation) -> float:
    """How often, among all images, an image's second view is the most similar to its first."""
    generator = torch.Generator().manual_seed(99)
    plain = torch.from_numpy(images) / 255
    one, other = (
        features(network, (255 * recipe(plain, generator)).byte().numpy(), device="cpu")
        for _ in range(2)
    )
    return (nearest(other, one, n=1)[:, 0] == np.arange(len(images))).mean()


def test_pretraining_learns_which_views_belong_together(tmp_path):
    tiles = np.random.default_rng(2).integers(30, 220, (64, 1, 4, 4), dtype=np.uint8)
    images, recipe = np.kron(tiles, np.ones((8, 8), dtype=np.uint8)), Shades(noise=0.03)
    torch.manual_seed(2)
    network = SmallCNN(width=8)
    before = top1_accuracy(network, images, recipe)
    history = pretrain(
        network, images, tmp_path, epochs=60, batch_size=8, augment=recipe, device="cpu", seed=2
    )
    assert history.top1_accuracy.iloc[-5:].mean() > 0.9
    assert history.train_loss.iloc[-1] < 0.7 * math.log(33)
    assert top1_accuracy(network, images, recipe) > max(0.9, before + 0.1)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    trained = {f"encoder_q.0.{name}": value for name, value in network.state_dict().items()}
    assert same(trained, {name: saved[name] for name in trained}), "not changed in place"


def test_top1_accuracy_counts_the_right_partner_among_all_of_the_batch():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9))
    one = random_images(6) - 0.5
    other = one + 0.01 * random_images(6, 4)
    assert moco.top1_accuracy(network, one, other) == 1
    swapped = other[[1, 0, 2, 3, 5, 4]]
    assert moco.top1_accuracy(network, one, swapped) == pytest.approx(2 / 6)
    assert network.training, "the network's mode changed"


def test_history_is_what_happened(tmp_path, monkeypatch):
    seen, views, original = [], [], MoCo.forward

    def spy(self, one, other):
        logits = original(self, one, other)
        seen.append(logits.detach().double().numpy())
        views.append((one, other))
        return logits

    monkeypatch.setattr(MoCo, "forward", spy)
    history = run(tmp_path, epochs=3, learning_rate=0.01, warmup=0.2)
    assert history.columns.tolist() == [
        "epoch", "train_loss", "top1_accuracy", "learning_rate", "seconds",
    ]  # fmt: skip
    assert history.epoch.tolist() == [1, 2, 3]
    # 5 batches of 8 an epoch, 15 steps in all, 3 of warm-up; the queue is cut to 2 batches
    assert [logits.shape for logits in seen] == [(8, 17)] * 15
    for epoch in range(3):
        logits = np.concatenate(seen[5 * epoch : 5 * epoch + 5])
        loss = np.log(np.exp(logits).sum(axis=1)) - logits[:, 0]
        assert history.train_loss[epoch] == pytest.approx(loss.mean(), rel=1e-5)
    assert set(history.top1_accuracy * 8) <= set(range(9))
    expected = [0.01 * learning_rate_factor(step, 15, 3) for step in (4, 9, 14)]
    assert history.learning_rate.tolist() == pytest.approx(expected)
    assert all((one != other).any(dim=(1, 2, 3)).all() for one, other in views)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), history)
    # no best.pt: the lowest loss is that of the first steps, before the queue is full
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.csv", "last.pt"]


def test_every_epoch_takes_each_image_at_most_once_in_a_new_order(tmp_path):
    taken = []

    class Spy(Shades):
        def __call__(self, images, generator):
            taken.append((255 * images[:, 0, 0, 0]).round().int().tolist())
            return super().__call__(images, generator)

    images = pictures(42)
    images[:, 0, 0, 0] = np.arange(42)
    run(tmp_path, images=images, epochs=2, augment=Spy())
    assert taken[::2] == taken[1::2], "both views are made of the same images"
    first, second = (sum(taken[k : k + 10 : 2], []) for k in (0, 10))
    for order in (first, second):
        assert len(order) == len(set(order)) == 40 and set(order) <= set(range(42))
    assert first != second


@pytest.mark.parametrize(
    ("asked", "n", "used"), [(512, 40, 16), (16, 80, 16), (21, 80, 16), (3, 40, 8), (512, 16, 8)]
)
def test_the_queue_is_cut_to_whole_batches_and_half_of_the_images(tmp_path, asked, n, used):
    run(tmp_path, images=pictures(n), queue=asked, epochs=1)
    assert len(torch.load(tmp_path / "last.pt", weights_only=True)["model"]["queue"]) == used


def test_an_interrupted_and_resumed_run_equals_an_unbroken_one(tmp_path):
    whole, parts = encoder(), encoder()
    expected = run(tmp_path / "whole", whole)
    assert len(run(tmp_path / "parts", parts, max_epochs_this_call=1)) == 1
    torch.rand(5)
    np.random.random(3)
    assert len(run(tmp_path / "parts", encoder(), max_epochs_this_call=2)) == 3
    parts = encoder()
    resumed = run(tmp_path / "parts", parts)
    pd.testing.assert_frame_equal(
        without_seconds(resumed), without_seconds(expected), check_exact=True
    )
    assert same(whole.state_dict(), parts.state_dict())
    one, other = (
        torch.load(tmp_path / folder / "last.pt", weights_only=True)
        for folder in ("whole", "parts")
    )
    for name in ("model", "optimizer", "epoch"):
        assert same(one[name], other[name]), name
    assert one["model"]["oldest"] == other["model"]["oldest"] == 4 * 40 % 16


def test_a_run_of_another_start_is_refused(tmp_path):
    """Or an encoder begun at random could pass for one begun from ImageNet."""
    run(tmp_path, encoder(), epochs=1)
    with pytest.raises(ValueError, match="last.pt: made with start="):
        run(tmp_path, encoder(seed=5), epochs=1)


def test_a_finished_run_is_loaded_without_training(tmp_path, monkeypatch):
    network = encoder()
    history = run(tmp_path, network)
    monkeypatch.setattr(MoCo, "forward", lambda *_: 1 / 0)
    other = encoder()
    pd.testing.assert_frame_equal(run(tmp_path, other), history)
    assert same(network.state_dict(), other.state_dict())


def test_two_runs_agree_and_another_seed_does_not(tmp_path):
    network = encoder()
    state = torch.get_rng_state()
    first = run(tmp_path / "a", network, epochs=1)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were used"
    torch.rand(7)
    second = run(tmp_path / "b", epochs=1)
    pd.testing.assert_frame_equal(without_seconds(first), without_seconds(second), check_exact=True)
    other = run(tmp_path / "c", epochs=1, seed=1)
    assert first.train_loss[0] != other.train_loss[0]


CHANGED = {
    "epochs": 5,
    "batch_size": 4,
    "learning_rate": 0.5,
    "weight_decay": 0.5,
    "warmup": 0.5,
    "queue": 8,
    "momentum": 0.5,
    "precision": "fp32",
    "seed": 8,
}


def test_changed_settings_are_refused_by_name(tmp_path):
    run(tmp_path, epochs=1)
    for name, value in CHANGED.items():
        with pytest.raises(ValueError, match=rf"made with {name}=.*now {name}={value}") as caught:
            run(tmp_path, **({"epochs": 1} | {name: value}))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"made with augment=.*noise=0.0.*now augment=.*noise=0.1"):
        run(tmp_path, epochs=1, augment=Shades(noise=0.1))
    brighter = pictures()
    brighter[0, 0, 0, 0] += 1
    for images in (brighter, pictures(41)):
        with pytest.raises(ValueError, match="made with data="):
            run(tmp_path, images=images, epochs=1)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="made with start="):
        run(tmp_path, SmallCNN(8), epochs=1)
    assert len(run(tmp_path, epochs=1)) == 1


def test_too_few_images_are_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="15 images are too few.* 8: lower batch_size") as caught:
        run(tmp_path, images=pictures(15))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert len(run(tmp_path, images=pictures(16), epochs=1)) == 1


@pytest.mark.parametrize("content", [b"", b"half of it", None], ids=["empty", "text", "cut"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, content):
    run(tmp_path, epochs=1)
    path = tmp_path / "last.pt"
    path.write_bytes(path.read_bytes()[:1500] if content is None else content)
    with pytest.raises(CheckpointError, match="last.pt: damaged") as caught:
        run(tmp_path, epochs=1)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    network = encoder()
    nn.init.constant_(network.layer.weight, torch.nan)
    with pytest.raises(RuntimeError, match="nan in epoch 1.*learning_rate") as caught:
        run(tmp_path, network)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "last.pt").exists()


def test_bf16_on_the_cpu_gives_nearly_the_same_losses(tmp_path):
    exact = run(tmp_path / "exact", precision="fp32")
    rough = run(tmp_path / "rough", precision="bf16")
    np.testing.assert_allclose(rough.train_loss, exact.train_loss, rtol=0.03)
    assert not np.array_equal(rough.train_loss, exact.train_loss)


def test_features_are_the_encoders_with_length_1():
    network, images = encoder(dropout=0.5).train(), pictures(7)
    found = features(network, images, batch_size=3, device="cpu")
    assert found.shape == (7, 6) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    weight, bias = weights(network)
    for row, image in zip(found, images, strict=True):
        expected = weight @ (image.reshape(-1) / 255) + bias
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), atol=1e-5)
    np.testing.assert_allclose(found, features(network, images, 64, "cpu"), atol=1e-6)


def test_nearest_is_the_written_out_ranking_and_takes_the_first_of_equals():
    rng = np.random.default_rng(0)
    train, some = rng.normal(size=(9, 4)), rng.normal(size=(3, 4))
    train[6] = train[2]
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    found = nearest(train, some, n=9)
    for k in range(3):
        similar = [float(np.round(train[j] @ some[k], 9)) for j in range(9)]
        assert found[k].tolist() == sorted(range(9), key=lambda j: (-similar[j], j))
    assert nearest(train, train)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 2, 7, 8]
    assert nearest(train, some).shape == (3, 5)
    np.testing.assert_array_equal(nearest(train, some, n=2), found[:, :2])
