"""The networks: shapes, gradients, and that each part does what its name says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.learn.networks import (
    AttentionPooling,
    BiLSTMClassifier,
    Control,
    Keras3DCNN,
    SliceEncoder,
    adjacent_slices,
    count_parameters,
)


class MeanEncoder(nn.Module):
    """A slice's features are the means of its three channels."""

    features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


class MiddleEncoder(nn.Module):
    """Features of the slice itself, without its neighbours."""

    features = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 1, 0, :4]


def random_volumes(n_scans: int = 2, n_slices: int = 6, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n_scans, n_slices, size, size, generator=generator)


def make(seed: int = 0, change: str = "", **options) -> BiLSTMClassifier:
    torch.manual_seed(seed)
    return Control(change, **options) if change else BiLSTMClassifier(**options)


def test_neighbours_are_the_slices_below_and_above():
    volumes = torch.arange(5.0).view(1, 5, 1, 1).expand(2, 5, 4, 6)
    result = adjacent_slices(volumes)
    assert result.shape == (2, 5, 3, 4, 6)
    expected = [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4]]
    assert result[1, :, :, 2, 3].tolist() == expected


@pytest.mark.parametrize("size", [48, 96, 256])
def test_slice_encoder_works_at_every_size(size):
    encoder = SliceEncoder()
    features = encoder(torch.rand(2, 3, size, size))
    assert features.shape == (2, encoder.features)
    assert torch.isfinite(features).all()


def test_an_image_has_the_same_features_in_any_batch():
    torch.manual_seed(0)
    encoder, images = SliceEncoder(), torch.rand(5, 3, 48, 48)
    torch.testing.assert_close(encoder(images)[3:4], encoder(images[3:4]), atol=1e-5, rtol=1e-4)


def test_attention_is_a_weighted_mean():
    torch.manual_seed(0)
    pooling, sequence = AttentionPooling(5), torch.randn(3, 7, 5)
    pooled, attention = pooling(sequence)
    assert attention.shape == (3, 7)
    assert (attention > 0).all()
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(3))
    for k in range(3):
        expected = sum(attention[k, i] * sequence[k, i] for i in range(7))
        torch.testing.assert_close(pooled[k], expected)
    assert attention.std() > 1e-3


OPTIONS = [
    {},
    {"change": "mean"},
    {"change": "max"},
    {"change": "attention"},
    {"change": "unidirectional"},
    {"change": "shuffled"},
    {"change": "shuffled later"},
    {"checkpoint": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_answers_have_their_shapes_and_every_parameter_learns(options):
    model = make(**options)
    logits, attention = model(random_volumes())
    assert logits.shape == (2,)
    assert attention.shape == (2, 6)
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(2))
    logits.pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        # one bias adds the same to the score of every slice, and softmax takes it away again
        if name != "pooling.score.2.bias":
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_there_is_one_real_bidirectional_lstm():
    model = make(hidden=32)
    lstms = [module for module in model.modules() if isinstance(module, nn.LSTM)]
    assert len(lstms) == 1
    assert lstms[0].bidirectional and lstms[0].batch_first and lstms[0].hidden_size == 32
    for change in ("mean", "max", "attention"):
        assert not any(isinstance(m, nn.LSTM) for m in make(change=change).modules())
    with pytest.raises(ValueError, match="'median' is unknown"):
        Control("median")


@pytest.mark.parametrize(("changed", "looked_at"), [(-1, 0), (0, -1)])
def test_the_lstm_reads_in_both_directions(changed, looked_at):
    model = make(encoder=MiddleEncoder()).eval()
    read = []
    model.lstm.register_forward_hook(lambda module, inputs, output: read.append(output[0]))
    volumes = random_volumes()
    model(volumes)
    volumes[:, changed] = 1 - volumes[:, changed]
    model(volumes)
    assert (read[0][:, looked_at] - read[1][:, looked_at]).abs().max() > 1e-6


def test_the_order_of_the_slices_matters_to_the_lstm():
    volumes = random_volumes()
    model = make(encoder=MiddleEncoder()).eval()
    logits, attention = model(volumes)
    reversed_logits, reversed_attention = model(volumes.flip(1))
    assert (logits - reversed_logits).abs().min() > 1e-5
    assert (attention - reversed_attention.flip(1)).abs().max() > 1e-6


def test_one_direction_knows_only_what_came_before():
    model, read = make(encoder=MiddleEncoder(), change="unidirectional").eval(), []
    model.lstm.register_forward_hook(lambda module, inputs, output: read.append(output[0]))
    volumes = random_volumes()
    model(volumes)
    volumes[:, 3] = 1 - volumes[:, 3]
    model(volumes)
    moved = (read[0] - read[1]).abs().amax(dim=(0, 2))
    assert moved[:3].max() == 0 < moved[3:].min()


@pytest.mark.parametrize("change", ["mean", "max", "attention"])
def test_the_order_of_the_slices_does_not_matter_without_the_lstm(change):
    volumes, order = random_volumes(), torch.tensor([3, 0, 5, 1, 4, 2])
    model = make(encoder=MiddleEncoder(), change=change).eval()
    logits, attention = model(volumes)
    other_logits, other_attention = model(volumes[:, order])
    torch.testing.assert_close(logits, other_logits)
    torch.testing.assert_close(attention[:, order], other_attention)


def test_mean_pooling_without_lstm_is_a_linear_function_of_the_mean_features():
    model = make(encoder=MeanEncoder(), change="mean").eval()
    volumes = random_volumes()
    logits, attention = model(volumes)
    mean = adjacent_slices(volumes).mean(dim=(1, 3, 4))
    mean = model.project(mean / (1 + 1e-5) ** 0.5)  # what an untrained norm does
    expected = (mean @ model.head.weight.T + model.head.bias)[:, 0]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(attention, torch.full((2, 6), 1 / 6))


def test_the_maximum_is_taken_feature_by_feature_and_says_from_which_slices():
    model, volumes = make(encoder=MiddleEncoder(), change="max").eval(), random_volumes()
    logits, attention = model(volumes)
    sequence = model.encode(volumes).detach()
    for k in range(2):
        largest = torch.stack([max(sequence[k, :, f]) for f in range(128)])
        expected = largest @ model.head.weight[0] + model.head.bias[0]
        torch.testing.assert_close(logits[k], expected)
        given = [int(sequence[k, :, f].argmax()) for f in range(128)]
        shares = torch.tensor([given.count(t) / 128 for t in range(6)])
        torch.testing.assert_close(attention[k], shares)


def test_features_take_the_place_of_volumes():
    model, volumes = make(encoder=MiddleEncoder()).eval(), random_volumes()
    features = volumes[:, :, 0, :4]
    torch.testing.assert_close(model(features), model(volumes))


@pytest.mark.parametrize("change", ["shuffled", "shuffled later"])
def test_shuffled_slices_are_read_in_another_order_but_reported_in_theirs(change):
    volumes = random_volumes(n_scans=4)
    model = make(encoder=MiddleEncoder(), change=change).eval()
    first, again = model(volumes)[0], model(volumes)[0]
    assert not torch.allclose(first, again)
    torch.manual_seed(1)
    first = model(volumes)[0]
    torch.manual_seed(1)
    assert torch.equal(first, model(volumes)[0])

    model.lstm, model.pooling = None, AttentionPooling(128)  # which the order cannot change
    model.head = nn.Linear(128, 1)
    shuffled, attention = model(volumes)
    model.change = "attention"
    torch.testing.assert_close(model(volumes), (shuffled, attention))


def test_what_is_shuffled_later_is_trained_like_the_whole_network():
    volumes = random_volumes(n_scans=4)
    whole, later = (make(encoder=MiddleEncoder(), change=c) for c in ("", "shuffled later"))
    whole.dropout = later.dropout = nn.Identity()
    torch.testing.assert_close(later(volumes), whole(volumes))
    again = make(encoder=MiddleEncoder(), change="shuffled")
    again.dropout = nn.Identity()
    assert not torch.allclose(again(volumes)[0], whole(volumes)[0])


def test_every_scan_is_shuffled_in_an_order_of_its_own():
    model = make(encoder=MiddleEncoder(), change="shuffled").eval()
    logits, _ = model(random_volumes(1).repeat(8, 1, 1, 1))
    assert len(logits.unique()) > 4


@pytest.mark.parametrize("encoder", ["small", "imagenet"])
def test_the_chunk_does_not_change_the_result(encoder):
    volumes = random_volumes()
    model = make(encoder=encoder, dropout=0.0)
    results = []
    for chunk in (1, 5, 64):
        model.chunk = chunk
        results.append(model(volumes)[0])
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(results[0], results[2], atol=1e-5, rtol=1e-4)


def test_checkpointing_gives_the_same_gradients_and_encodes_twice():
    def gradients(checkpoint):
        model, calls = make(checkpoint=checkpoint, chunk=5), []
        model.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
        torch.manual_seed(7)
        model(random_volumes())[0].sum().backward()
        return [p.grad for p in model.parameters()], len(calls)

    plain, n_plain = gradients(False)
    recomputed, n_recomputed = gradients(True)
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other)
    assert (n_plain, n_recomputed) == (3, 6)


@pytest.mark.parametrize("change", ["", "mean"])
def test_dropout_acts_in_training_only(change):
    volumes, model = random_volumes(), make(dropout=0.5, change=change)
    assert not torch.equal(model(volumes)[0], model(volumes)[0])
    model.eval()
    assert torch.equal(model(volumes)[0], model(volumes)[0])


def test_unknown_options_are_refused_by_name():
    with pytest.raises(ValueError, match="vgg"):
        BiLSTMClassifier("vgg")


def test_keras_cnn_has_the_tutorials_numbers():
    model = Keras3DCNN(width=64)
    statistics = [buffer.numel() for name, buffer in model.named_buffers() if "running" in name]
    assert count_parameters(model) + sum(statistics) == 1_352_897
    assert sum(statistics) == 2 * (64 + 64 + 128 + 256)


def test_keras_cnn_survives_a_depth_of_16_and_learns():
    model = Keras3DCNN(width=4)
    logits, attention = model(random_volumes(n_slices=16))
    assert logits.shape == (2,)
    assert attention is None
    logits.pow(2).sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    # BatchNorm takes a constant away again, so what is before it may learn nothing from a bias
    assert missing == []


def test_count_parameters_leaves_out_what_is_frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1, bias=False))
    assert count_parameters(model) == 3 * 4 + 4 + 4
    model[1].weight.requires_grad_(False)
    assert count_parameters(model) == 16
