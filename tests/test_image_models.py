"""Networks for 2-D images: against torchvision's, or written out layer by layer."""

from __future__ import annotations

import re
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import DenseNet169_Weights, ResNet18_Weights, densenet169, resnet18
from torchvision.transforms.functional import normalize

from helpers.learn.augmentation import ImageAugmentation
from helpers.learn.networks import (
    BiLSTMClassifier,
    ImageClassifier,
    ResidualBlock,
    SmallCNN,
    TorchvisionEncoder,
    WeightsError,
    count_parameters,
)
from helpers.learn.prediction import predict
from helpers.learn.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")


def random_images(n: int = 2, rows: int = 64, columns: int = 64) -> torch.Tensor:
    return torch.rand(n, 1, rows, columns, generator=torch.Generator().manual_seed(3))


def group_norm(maps: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    """Written out: eight groups of channels, each standardised over its channels and places."""
    groups = maps.view(len(maps), 8, -1)
    middle = groups.mean(dim=2, keepdim=True)
    deviation = (groups.var(dim=2, unbiased=False, keepdim=True) + norm.eps).sqrt()
    standard = ((groups - middle) / deviation).view_as(maps)
    return standard * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


@pytest.mark.parametrize(("n_out", "stride"), [(8, 1), (16, 1), (16, 2)])
def test_a_residual_block_is_two_convolutions_and_a_way_around_them(n_out, stride):
    torch.manual_seed(0)
    block, maps = ResidualBlock(8, n_out, stride), torch.randn(2, 8, 12, 20)
    around = maps
    if (n_out, stride) != (8, 1):
        around = functional.conv2d(functional.avg_pool2d(maps, stride), block.shortcut[1].weight)
    torch.testing.assert_close(block(maps), around.relu(), msg="at first the input passes on")

    for norm in (block.layers[1], block.layers[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    inner = functional.conv2d(maps, block.layers[0].weight, stride=stride, padding=1)
    inner = group_norm(inner, block.layers[1]).relu()
    inner = group_norm(functional.conv2d(inner, block.layers[3].weight, padding=1), block.layers[4])
    expected = (inner + around).relu()
    torch.testing.assert_close(block(maps), expected, atol=1e-4, rtol=1e-4)
    assert block(maps).shape == (2, n_out, 12 // stride, 20 // stride)


@pytest.mark.parametrize("shape", [(32, 32), (48, 40), (50, 70), (61, 33), (100, 100)])
def test_the_small_network_takes_every_size_from_32(shape):
    torch.manual_seed(0)
    encoder = SmallCNN(width=8)
    found = encoder(random_images(2, *shape))
    assert found.shape == (2, encoder.features) == (2, 128)
    assert torch.isfinite(found).all()
    mean, maximum = found.chunk(2, dim=1)
    assert (maximum >= mean).all()
    assert (maximum > mean).any() == (shape != (32, 32)), "32 pixels become one place"


@pytest.mark.parametrize("width", [8, 16])
def test_the_small_networks_parameters_are_counted(width):
    def block(n_in, n_out):
        around = n_in * n_out if n_in != n_out else 0
        return 9 * n_in * n_out + 9 * n_out * n_out + 2 * 2 * n_out + around

    widths = [width, width, 2 * width, 4 * width, 8 * width]
    expected = 25 * width + 2 * width
    expected += sum(block(*pair) for pair in zip(widths, widths[1:], strict=False))
    assert count_parameters(SmallCNN(width)) == expected


def test_the_small_network_looks_at_one_image_at_a_time():
    torch.manual_seed(0)
    encoder, images = SmallCNN(width=8).train(), random_images(5)
    alone, among = encoder(images[3:4]), encoder(images)[3:4]
    torch.testing.assert_close(alone, among, atol=1e-5, rtol=1e-4)
    beside_white = encoder(torch.cat([images[3:4], torch.ones(4, 1, 64, 64)]))[:1]
    torch.testing.assert_close(alone, beside_white, atol=1e-5, rtol=1e-4)


def test_every_parameter_of_the_small_network_learns():
    torch.manual_seed(0)
    model = ImageClassifier(SmallCNN(width=8), dropout=0.0)
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            nn.init.ones_(module.layers[-1].weight)
    model(random_images())[0].pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """torchvision's DenseNet169 in evaluation mode, with statistics as if it had been trained."""
    torch.manual_seed(0)
    network = densenet169()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


@pytest.fixture
def download(published, monkeypatch):
    """Answers as the published file does: with the names that layers had when it was made."""

    def load(url, **options):
        assert url == DenseNet169_Weights.IMAGENET1K_V1.url
        assert options["check_hash"] and options["weights_only"]
        old = {
            re.sub(r"(denselayer\d+)\.(norm|conv)(\d)\.", r"\1.\2.\3.", name): value.clone()
            for name, value in published.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        assert "features.denseblock1.denselayer1.norm.1.weight" in old
        assert "features.denseblock4.denselayer32.conv.2.weight" in old
        assert "features.transition1.norm.weight" in old and "classifier.weight" in old
        return old

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)


def test_densenet_with_the_published_weights_answers_as_torchvisions(published, download, capsys):
    encoder = TorchvisionEncoder().eval()
    assert capsys.readouterr().out == "" and encoder.pretrained
    images = random_images()
    with torch.inference_mode():
        found = encoder(images)
        colours = images.repeat(1, 3, 1, 1)
        ready = normalize(colours, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        torch.testing.assert_close(published.classifier(found), published(ready))
    assert found.shape == (2, encoder.features) == (2, 1664)
    # as torchvision lists it, without the last layer's 1664 weights and 1 bias for 1000 classes
    expected = DenseNet169_Weights.IMAGENET1K_V1.meta["num_params"] - 1665 * 1000
    assert count_parameters(encoder) == count_parameters(published) - 1665 * 1000 == expected


def statistics(encoder: TorchvisionEncoder) -> list[torch.Tensor]:
    return [value.clone() for name, value in encoder.named_buffers() if "running" in name]


@pytest.mark.parametrize("freeze", [True, False])
def test_freeze_norm_keeps_the_statistics_and_nothing_else(download, freeze):
    encoder = TorchvisionEncoder(freeze_norm=freeze).eval().train()
    before = statistics(encoder)
    with torch.no_grad():
        encoder(random_images(2, 32, 32))
    same = [torch.equal(a, b) for a, b in zip(before, statistics(encoder), strict=True)]
    assert len(same) == 2 * 169 and (all(same) if freeze else not any(same))
    assert encoder.training and encoder.network.features.denseblock1.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    "error",
    [URLError("Name or service not known"), RuntimeError("invalid hash value\n(got 0)")],
    ids=lambda e: type(e).__name__,
)
def test_densenet_without_its_weights_says_so_in_one_line_and_its_norm_is_free(
    monkeypatch, capsys, error
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    encoder = TorchvisionEncoder(freeze_norm=True)
    message = capsys.readouterr().out
    assert message.count("\n") == 1 and message.startswith("densenet169: ")
    assert "random weights" in message and ("service" in message or "hash" in message)
    assert not encoder.freeze_norm and encoder.network.features.norm0.training


def test_densenet_from_random_weights_asks_for_none(monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: 1 / 0)
    encoder = TorchvisionEncoder(pretrained=False, freeze_norm=True)
    assert capsys.readouterr().out == ""
    assert not encoder.freeze_norm
    assert "imagenet" not in encoder.state_dict(), "checkpoints would not fit torchvision's"


def test_resnet18_by_name_with_the_published_weights(monkeypatch):
    torch.manual_seed(0)
    published = resnet18().eval()

    def load(url, **options):
        assert url == ResNet18_Weights.IMAGENET1K_V1.url and options["check_hash"]
        return published.state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)
    encoder = BiLSTMClassifier("resnet18").encoder.train()
    assert encoder.features == 512 and encoder.freeze_norm and not encoder.network.bn1.training
    images = random_images()
    with torch.inference_mode():
        ready = normalize(images.repeat(1, 3, 1, 1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        torch.testing.assert_close(published.fc(encoder(images)), published(ready))


def test_resnet18_without_its_weights_in_one_line(monkeypatch, capsys):
    def fail(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(WeightsError, match="encoder='imagenet'") as error:
        BiLSTMClassifier("resnet18")
    assert "\n" not in str(error.value) and "no network" in capsys.readouterr().out


class Corners(nn.Module):
    """An encoder that anyone can check: the first and the last pixel of each image."""

    features = 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, [0, -1]]


def test_a_classifier_is_its_encoder_dropout_and_one_logit():
    torch.manual_seed(0)
    model, images = ImageClassifier(Corners(), dropout=0.5), random_images(64)
    weight, bias = model.head.weight[0], model.head.bias
    first, last = images[:, 0, 0, 0], images[:, 0, -1, -1]
    logits, attention = model.eval()(images)
    assert attention is None
    torch.testing.assert_close(logits, weight[0] * first + weight[1] * last + bias)
    assert model(images[:1])[0].shape == (1,)

    # in training each feature is 0 or doubled
    found = model.train()(images)[0] - bias
    ways = [2 * a * weight[0] * first + 2 * b * weight[1] * last for a in (0, 1) for b in (0, 1)]
    nearest = torch.stack([(found - way).abs() for way in ways]).argmin(dim=0)
    assert torch.stack(ways).gather(0, nearest[None])[0].allclose(found, atol=1e-5)
    assert len(nearest.unique()) == 4


def test_the_training_loop_of_3d_scans_trains_a_classifier_of_images(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = rng.integers(0, 100, (40, 1, 32, 32), dtype=np.uint8)
    for k in np.flatnonzero(labels):
        row, column = rng.integers(0, 20, 2)
        images[k, 0, row : row + 10, column : column + 10] += 150
    torch.manual_seed(0)
    model = ImageClassifier(SmallCNN(width=8))
    history = fit(
        model, images, labels, np.arange(24), np.arange(24, 40), tmp_path,
        epochs=8, batch_size=4, learning_rate=1e-2, device="cpu",
        augment=ImageAugmentation(noise=0.02),
    )  # fmt: skip
    assert history.validation_loss.min() < 0.2 < 0.6 < history.train_loss[0]
    probabilities, attention = predict(model, images, np.arange(24, 40), device="cpu")
    assert attention is None
    assert ((probabilities > 0.5) == labels[24:]).mean() >= 15 / 16
