"""Training: learning, exact resume, refused checkpoints, and what is written."""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fault_marks import FULL, MISMATCH
from sklearn.metrics import roc_auc_score
from torch import nn

from helpers.learn import devices, training
from helpers.learn.checkpoints import CheckpointError
from helpers.learn.devices import pick_device, pick_precision
from helpers.learn.networks import BiLSTMClassifier, Control, Keras3DCNN, SliceEncoder
from helpers.learn.prediction import load_model, predict
from helpers.learn.training import fit, learning_rate_factor, positive_weight

pytestmark = pytest.mark.usefixtures("one_thread")


TRAIN, VALIDATION = np.arange(0, 12), np.arange(12, 20)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> np.ndarray:
    """A read-only memory map of 20 small scans; odd ones have a bright slice."""
    rng = np.random.default_rng(0)
    scans = rng.integers(0, 60, size=(20, 6, 16, 16), dtype=np.uint8)
    scans[1::2, 2:4, 4:12, 4:12] += 120
    path = tmp_path_factory.mktemp("cache") / "volumes.npy"
    np.save(path, scans)
    return np.load(path, mmap_mode="r")


LABELS = np.arange(20) % 2


def make(seed: int = 0, dropout: float = 0.3, change: str = "") -> BiLSTMClassifier:
    torch.manual_seed(seed)
    kind = partial(Control, change) if change else BiLSTMClassifier
    return kind(SliceEncoder(width=8), 16, hidden=8, dropout=dropout)


def train(volumes, folder, model=None, **options) -> pd.DataFrame:
    options = {"epochs": 4, "batch_size": 5, "device": "cpu"} | options
    model = model or make()
    return fit(model, volumes, LABELS, TRAIN, VALIDATION, folder, **options)


def without_seconds(history: pd.DataFrame) -> pd.DataFrame:
    return history.drop(columns="seconds")


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    there = other.state_dict()
    return all(torch.equal(value, there[name]) for name, value in one.state_dict().items())


def test_learning_rate_factor_rises_in_a_line_and_falls_along_a_cosine():
    factors = [learning_rate_factor(step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[32] == pytest.approx(0.5 * (1 + math.cos(math.pi * 22 / 90)))
    assert 0 < factors[99] < 0.001
    assert all(a > b for a, b in zip(factors[10:], factors[11:], strict=False))
    assert learning_rate_factor(0, 5, 0) == 1


def test_positive_weight_makes_both_classes_weigh_the_same():
    assert positive_weight(np.array([0, 0, 0, 1])) == 3
    assert positive_weight(np.array([0, 1, 1, 1, 1])) == 0.25


def test_weighted_loss_is_the_written_out_formula():
    logits, labels = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1.0, 0.0, 1.0])
    p = 1 / (1 + np.exp(-logits.numpy()))
    expected = -(2.5 * np.log(p[0]) + np.log(1 - p[1]) + 2.5 * np.log(p[2])) / 3
    assert training.weighted_loss(logits, labels, 2.5).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("weighting", "expected"), [(True, 2.0), (False, 1.0)])
def test_the_class_weight_comes_from_the_training_rows(
    volumes, tmp_path, monkeypatch, weighting, expected
):
    seen = set()
    original = training.weighted_loss

    def spy(logits, labels, weight):
        seen.add(weight)
        return original(logits, labels, weight)

    monkeypatch.setattr(training, "weighted_loss", spy)
    rows = np.array([0, 2, 4, 6, 1, 3])
    fit(
        make(), volumes, LABELS, rows, VALIDATION, tmp_path,
        epochs=1, device="cpu", class_weighting=weighting,
    )  # fmt: skip
    assert seen == {expected}


def test_fit_learns_a_small_set_and_leaves_the_best_weights(volumes, tmp_path):
    model = make(dropout=0.0)
    history = train(
        volumes, tmp_path, model, epochs=25, batch_size=12, learning_rate=1e-2, augment=0.0
    )
    assert history.train_loss.iloc[-1] < 0.1 < 0.5 < history.train_loss.iloc[0]
    assert history.validation_auc.iloc[-1] == 1
    best = history.loc[history.validation_loss.idxmin()]
    state = torch.load(tmp_path / "best.pt", weights_only=True)
    assert state["epoch"] == best.epoch
    assert state["best"] == best.validation_loss
    assert all(torch.equal(v, state["model"][n]) for n, v in model.state_dict().items())

    probabilities, attention = predict(model, volumes, VALIDATION, 3, "cpu")
    logits = np.log(probabilities / (1 - probabilities))
    losses = np.where(LABELS[VALIDATION] == 1, np.log1p(np.exp(-logits)), np.log1p(np.exp(logits)))
    assert losses.mean() == pytest.approx(best.validation_loss, rel=1e-3)
    assert roc_auc_score(LABELS[VALIDATION], probabilities) == best.validation_auc
    assert attention.shape == (8, 6)


def test_history_is_returned_written_and_shown(volumes, tmp_path):
    shown = []
    history = train(volumes, tmp_path, on_epoch=shown.append, learning_rate=0.01, warmup=0.25)
    assert history.columns.tolist() == [
        "epoch", "train_loss", "learning_rate", "validation_loss", "validation_auc", "seconds",
    ]  # fmt: skip
    assert history.epoch.tolist() == [1, 2, 3, 4]
    # 3 steps an epoch, 12 in all, 3 of warm-up; the rate is that of an epoch's last step
    expected = [0.01 * learning_rate_factor(step, 12, 3) for step in (2, 5, 8, 11)]
    assert history.learning_rate.tolist() == pytest.approx(expected)
    assert (history.seconds > 0).all()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), history)
    assert [len(table) for table in shown] == [1, 2, 3, 4]
    pd.testing.assert_frame_equal(shown[-1], history)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "history.csv", "last.pt"]


def test_every_epoch_takes_each_training_scan_once_in_a_new_order(volumes, tmp_path, monkeypatch):
    taken = []
    original = devices.Scans.take

    def spy(self, rows):
        taken.extend(rows.tolist())
        return original(self, rows)

    monkeypatch.setattr(devices.Scans, "take", spy)
    train(volumes, tmp_path, epochs=2)
    n_train, n_all = len(TRAIN), len(TRAIN) + len(VALIDATION)
    first, second = taken[:n_train], taken[n_all : n_all + n_train]
    assert sorted(first) == sorted(second) == TRAIN.tolist()
    assert first != second
    assert taken[n_train:n_all] == taken[n_all + n_train :] == VALIDATION.tolist()


def test_two_runs_agree_to_the_last_digit_and_another_seed_does_not(volumes, tmp_path):
    models = [make(), make(), make()]
    first = train(volumes, tmp_path / "a", models[0])
    torch.rand(11)
    np.random.random(3)
    second = train(volumes, tmp_path / "b", models[1])
    other = train(volumes, tmp_path / "c", models[2], seed=1)
    pd.testing.assert_frame_equal(without_seconds(first), without_seconds(second), check_exact=True)
    assert same_weights(models[0], models[1])
    assert first.train_loss.iloc[0] != other.train_loss.iloc[0]


def test_an_interrupted_and_resumed_run_equals_an_unbroken_one(volumes, tmp_path):
    whole, parts = make(), make()
    expected = train(volumes, tmp_path / "whole", whole, epochs=5)
    calls = []

    def interrupt(history):
        calls.append(len(history))
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(volumes, tmp_path / "parts", parts, epochs=5, on_epoch=interrupt)
    torch.rand(5)
    parts = make(seed=9)
    assert len(train(volumes, tmp_path / "parts", parts, epochs=5, max_epochs_this_call=1)) == 3
    parts = make(seed=10)
    resumed = train(volumes, tmp_path / "parts", parts, epochs=5)
    pd.testing.assert_frame_equal(
        without_seconds(resumed), without_seconds(expected), check_exact=True
    )
    assert same_weights(whole, parts)
    for name in ("last.pt", "best.pt"):
        one, other = (
            torch.load(tmp_path / folder / name, weights_only=True) for folder in ("whole", "parts")
        )
        assert one["epoch"] == other["epoch"]
        moments = [state["optimizer"]["state"] for state in (one, other)]
        assert all(
            torch.equal(value, moments[1][k][key])
            for k, entries in moments[0].items()
            for key, value in entries.items()
        )


def test_an_interrupt_within_an_epoch_leaves_the_last_finished_one(volumes, tmp_path, monkeypatch):
    train(volumes, tmp_path, max_epochs_this_call=2)
    before = (tmp_path / "last.pt").read_bytes()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "augment_batch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(volumes, tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == before
    monkeypatch.undo()
    assert len(train(volumes, tmp_path)) == 4


@FULL()
def test_a_failed_write_leaves_the_old_checkpoint(volumes, tmp_path, monkeypatch):
    train(volumes, tmp_path, max_epochs_this_call=2)
    before = [(tmp_path / name).read_bytes() for name in ("best.pt", "last.pt", "history.csv")]

    def half(state, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space"):
        train(volumes, tmp_path)
    after = [(tmp_path / name).read_bytes() for name in ("best.pt", "last.pt", "history.csv")]
    assert after == before


def test_a_finished_run_returns_its_history_without_training(volumes, tmp_path, monkeypatch):
    model, shown = make(), []
    history = train(volumes, tmp_path, model)

    def fail(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train_one_epoch", fail)
    other = make(seed=5)
    again = train(volumes, tmp_path, other, on_epoch=shown.append)
    pd.testing.assert_frame_equal(again, history)
    assert same_weights(model, other)
    assert [len(table) for table in shown] == [4]


def test_a_history_that_a_killed_run_left_behind_is_written_again(volumes, tmp_path):
    """The run stopped after last.pt of its last epoch and before history.csv."""
    train(volumes, tmp_path)
    whole = (tmp_path / "history.csv").read_bytes()
    (tmp_path / "history.csv").write_bytes(whole[: whole.rstrip().rindex(b"\n") + 1])
    train(volumes, tmp_path)
    assert (tmp_path / "history.csv").read_bytes() == whole


def test_resume_false_starts_again(volumes, tmp_path):
    first = train(volumes, tmp_path, seed=1)
    second = train(volumes, tmp_path, seed=2, resume=False, epochs=2)
    assert len(second) == 2
    assert second.train_loss[0] != first.train_loss[0]
    assert len(pd.read_csv(tmp_path / "history.csv")) == 2


CHANGED = {
    "epochs": 5,
    "batch_size": 3,
    "learning_rate": 0.5,
    "weight_decay": 0.5,
    "warmup": 0.5,
    "precision": "fp32",
    "class_weighting": False,
    "augment": 0.5,
    "schedule": "constant",
    "patience": 3,
    "clip": 0.5,
    "seed": 8,
}


def test_changed_settings_are_refused_by_name(volumes, tmp_path):
    train(volumes, tmp_path, epochs=1)
    for name, value in CHANGED.items():
        with pytest.raises(ValueError, match=rf"{name}=.*{name}={value}.*resume=False") as caught:
            train(volumes, tmp_path, **({"epochs": 1} | {name: value}))
        assert "\n" not in str(caught.value)
    assert len(train(volumes, tmp_path, epochs=1)) == 1


def test_another_model_or_other_data_are_refused(volumes, tmp_path):
    train(volumes, tmp_path, epochs=1)
    for other in (make(dropout=0.2), make(change="shuffled"), Keras3DCNN(width=2)):
        with pytest.raises(ValueError, match="made with model=BiLSTMClassifier"):
            train(volumes, tmp_path, other, epochs=1)
    brighter = np.array(volumes)
    brighter[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="made with data="):
        train(brighter, tmp_path, epochs=1)
    with pytest.raises(ValueError, match="made with data="):
        fit(
            make(), volumes, LABELS, TRAIN[:-2], VALIDATION, tmp_path,
            epochs=1, batch_size=5, device="cpu",
        )  # fmt: skip


@dataclass(frozen=True)
class Brighter:
    """An augmentation of one's own; its repr names its setting."""

    by: float

    def __call__(self, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (batch + self.by * torch.rand(len(batch), 1, 1, 1, generator=generator)).clamp(0, 1)


def test_an_augmentation_of_ones_own_is_used_for_training_and_not_for_validation(volumes, tmp_path):
    model, seen = make(), []
    model.register_forward_pre_hook(
        lambda module, inputs: seen.append((module.training, inputs[0].clone()))
    )
    fit(
        model, np.zeros_like(volumes), LABELS, TRAIN, VALIDATION, tmp_path,
        epochs=2, batch_size=5, device="cpu", augment=Brighter(0.5),
    )  # fmt: skip
    trained = torch.cat([scans for training_now, scans in seen if training_now])[:, 0, 0, 0]
    validated = torch.cat([scans for training_now, scans in seen if not training_now])
    assert len(trained) == 24 and len(trained.unique()) == 24
    assert 0 < trained.min() < 0.1 and 0.4 < trained.max() < 0.5
    assert len(validated) == 16 and not validated.any()


def test_an_augmentation_of_ones_own_is_resumed_and_another_refused(volumes, tmp_path):
    whole, parts = make(), make()
    expected = train(volumes, tmp_path / "whole", whole, augment=Brighter(0.5))
    train(volumes, tmp_path / "parts", parts, augment=Brighter(0.5), max_epochs_this_call=2)
    for other in (Brighter(0.25), 1.0):
        with pytest.raises(ValueError, match=r"augment=Brighter\(by=0.5\), now augment=") as caught:
            train(volumes, tmp_path / "parts", augment=other)
        assert "\n" not in str(caught.value)
    resumed = train(volumes, tmp_path / "parts", parts, augment=Brighter(0.5))
    pd.testing.assert_frame_equal(
        without_seconds(resumed), without_seconds(expected), check_exact=True
    )
    assert same_weights(whole, parts)


def test_a_constant_schedule_stays_after_the_warm_up(volumes, tmp_path):
    options = {"learning_rate": 0.01, "schedule": "constant"}
    history = train(volumes, tmp_path / "warm", warmup=0.5, **options)
    # 3 steps an epoch, 12 in all, 6 of warm-up; the rate is that of an epoch's last step
    assert history.learning_rate.tolist() == pytest.approx([0.005, 0.01, 0.01, 0.01])
    history = train(volumes, tmp_path / "cold", warmup=0.0, epochs=2, **options)
    assert history.learning_rate.tolist() == [0.01, 0.01]


def test_an_unknown_schedule_is_refused(volumes, tmp_path):
    with pytest.raises(ValueError, match="schedule='linear'.*give 'cosine' or 'constant'"):
        train(volumes, tmp_path, schedule="linear")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_one_class_are_refused(volumes, tmp_path):
    odd = np.arange(1, 12, 2)
    with pytest.raises(ValueError, match="training rows have the labels"):
        fit(make(), volumes, LABELS, odd, VALIDATION, tmp_path, device="cpu")
    with pytest.raises(ValueError, match="validation rows have the labels"):
        fit(make(), volumes, LABELS, TRAIN, odd, tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_training_stops_early_and_stays_stopped(volumes, tmp_path, monkeypatch):
    losses = iter([0.9, 0.7, 0.8, 0.75, 0.71, 0.6, 0.5])
    monkeypatch.setattr(training, "validation_loss_and_auc", lambda *_: (next(losses), 0.5))
    model = make()
    history = train(volumes, tmp_path, model, epochs=7, patience=3)
    assert history.validation_loss.tolist() == [0.9, 0.7, 0.8, 0.75, 0.71]
    assert torch.load(tmp_path / "best.pt", weights_only=True)["epoch"] == 2
    assert same_weights(model, load_model(make(), tmp_path / "best.pt", "cpu"))
    assert not same_weights(model, load_model(make(), tmp_path / "last.pt", "cpu"))
    assert len(train(volumes, tmp_path, epochs=7, patience=3)) == 5


def test_the_count_towards_early_stopping_is_kept_on_resume(volumes, tmp_path, monkeypatch):
    losses = iter([0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6])
    monkeypatch.setattr(training, "validation_loss_and_auc", lambda *_: (next(losses), 0.5))
    train(volumes, tmp_path, epochs=7, patience=3, max_epochs_this_call=2)
    assert len(train(volumes, tmp_path, epochs=7, patience=3)) == 4


def test_a_loss_that_is_not_finite_stops_with_advice(volumes, tmp_path):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, scans):
            return self.weight * scans.mean(dim=(1, 2, 3)) / 0, None

    with pytest.raises(RuntimeError, match="nan in epoch 1.*learning_rate") as caught:
        train(volumes, tmp_path, Broken())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "last.pt").exists()


def test_predict_is_the_sigmoid_of_the_logits_with_dropout_off(volumes):
    model = make(dropout=0.5).train()
    rows = np.array([7, 0, 3])
    probabilities, attention = predict(model, volumes, rows, 2, "cpu")
    again, _ = predict(model, volumes, rows, 3, "cpu")
    model.eval()
    scans = torch.from_numpy(np.array(volumes)[rows]).float() / 255
    with torch.no_grad():
        logits, expected = model(scans)
    np.testing.assert_allclose(probabilities, torch.sigmoid(logits).numpy(), rtol=1e-5)
    np.testing.assert_allclose(attention, expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(probabilities, again, rtol=1e-5)


def test_predict_repeats_itself_with_shuffled_slices_and_leaves_the_random_numbers(volumes):
    model = make(change="shuffled")
    state = torch.get_rng_state()
    first, _ = predict(model, volumes, VALIDATION, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    np.testing.assert_array_equal(first, predict(model, volumes, VALIDATION, device="cpu")[0])


def test_predict_with_a_network_without_attention(volumes):
    deep = np.repeat(np.array(volumes[:3]), 3, axis=1)
    probabilities, attention = predict(Keras3DCNN(width=2), deep, np.arange(3), device="cpu")
    assert probabilities.shape == (3,)
    assert attention is None


def test_fit_leaves_the_callers_random_numbers_alone(volumes, tmp_path):
    model = make()
    state = torch.get_rng_state()
    train(volumes, tmp_path, model, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_load_model_takes_the_weights(volumes, tmp_path):
    model = make()
    train(volumes, tmp_path, model, epochs=1)
    other = make(seed=4)
    assert not same_weights(model, other)
    assert load_model(other, tmp_path / "best.pt", "cpu") is other
    assert same_weights(model, other)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-was-run",)


def broken_files(good: bytes) -> dict[str, bytes]:
    hostile = io.BytesIO()
    with zipfile.ZipFile(hostile, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Hostile(), protocol=2))
        archive.writestr("archive/version", "3\n")
    foreign = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, foreign)
    listed = io.BytesIO()
    torch.save([1, 2], listed)
    return {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "text": b"not a checkpoint",
        "hostile": hostile.getvalue(),
        "bare pickle": pickle.dumps(Hostile(), protocol=2),
        "foreign": foreign.getvalue(),
        "list": listed.getvalue(),
    }


@MISMATCH(7)
def test_unusable_checkpoints_are_refused_in_one_line(volumes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(volumes, tmp_path / "run", epochs=1)
    good = (tmp_path / "run/last.pt").read_bytes()
    for name, content in broken_files(good).items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}.pt: .*checkpoint of this") as caught:
            load_model(make(), path, "cpu")
        assert "\n" not in str(caught.value)
        (tmp_path / "run/last.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match="last.pt"):
            train(volumes, tmp_path / "run", epochs=1)
    assert not (tmp_path / "hostile-was-run").exists()
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_model(make(), tmp_path / "none.pt", "cpu")


@MISMATCH(2)
def test_weights_of_another_network_are_refused_by_name(volumes, tmp_path):
    train(volumes, tmp_path, epochs=1)
    torch.manual_seed(0)
    wider = BiLSTMClassifier(SliceEncoder(width=8), 16, hidden=9)
    with pytest.raises(CheckpointError, match=r"head.weight: \(1, 16\) in the file, \(1, 18\)"):
        load_model(wider, tmp_path / "best.pt", "cpu")
    with pytest.raises(CheckpointError, match="missing in") as caught:
        load_model(Keras3DCNN(width=2), tmp_path / "best.pt", "cpu")
    assert "\n" not in str(caught.value)


def test_device_and_precision(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick_device("cpu") == cpu
    assert pick_precision(cpu) == "fp32"
    assert pick_precision(torch.device("mps")) == "fp32"
    assert pick_precision(cpu, "bf16") == "bf16"
    for capability, expected in [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert pick_precision(cuda) == expected
    assert pick_precision(cuda, "fp32") == "fp32"
    with pytest.raises(ValueError, match="fp16.*needs CUDA"):
        pick_precision(cpu, "fp16")
    with pytest.raises(ValueError, match="int8"):
        pick_precision(cuda, "int8")


def test_bf16_on_the_cpu_gives_nearly_the_same_answer(volumes):
    model = make()
    exact, _ = predict(model, volumes, VALIDATION, device="cpu", precision="fp32")
    rough, _ = predict(model, volumes, VALIDATION, device="cpu", precision="bf16")
    np.testing.assert_allclose(rough, exact, atol=0.02)
    assert not np.array_equal(rough, exact)


def test_biases_and_norms_are_not_decayed():
    model = make()
    decayed, others = training.parameter_groups(model, 0.3)
    assert decayed["weight_decay"] == 0.3 and others["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"])
    n = sum(p.numel() for group in (decayed, others) for p in group["params"])
    assert n == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_the_gradient_is_cut_to_its_length(clip):
    """A step of SGD with rate 1 is the gradient itself: here 3, 4 and so 5 long."""
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    parts = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=1.0)}
    parts["scaler"] = torch.amp.GradScaler("cuda", enabled=False)
    training.follow_gradient(parts, model(torch.tensor([[3.0, 4.0]])).sum(), clip)
    step = (before - model.weight.detach())[0]
    expected = torch.tensor([3.0, 4.0]) * min(1.0, clip / 5)
    torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("keep", "epoch"), [("best", 1), ("last", 3)])
def test_the_model_keeps_the_epoch_that_was_asked_for(volumes, tmp_path, monkeypatch, keep, epoch):
    losses = iter([0.5, 0.6, 0.7])
    monkeypatch.setattr(training, "validation_loss_and_auc", lambda *_: (next(losses), 0.5))
    model = make()
    train(volumes, tmp_path, model, epochs=3, keep=keep)
    held = torch.load(tmp_path / f"{keep}.pt", weights_only=True)
    assert held["epoch"] == epoch
    assert all(torch.equal(w, held["model"][name]) for name, w in model.state_dict().items())


def test_another_epoch_to_keep_is_refused(volumes, tmp_path):
    with pytest.raises(ValueError, match="'best' or 'last'"):
        train(volumes, tmp_path / "none", keep="first")
    assert not (tmp_path / "none").exists()


def test_no_rows_have_no_probabilities(volumes):
    probability, attention = predict(make(), volumes, np.array([], int), device="cpu")
    assert probability.shape == (0,) and attention is None


def test_another_scan_in_any_place_is_another_data_set(tmp_path):
    volumes = np.random.default_rng(0).integers(0, 256, (8, 8, 16, 16), dtype=np.uint8)
    labels, train, validation = np.arange(8) % 2, np.arange(4), np.arange(4, 7)
    before = training.describe(volumes, labels, train, validation)
    for row in range(7):
        changed = volumes.copy()
        changed[row] = volumes[row][::-1]
        assert training.describe(changed, labels, train, validation) != before, row
    changed = volumes.copy()
    changed[7] = 0  # in neither part
    assert training.describe(changed, labels, train, validation) == before
    assert training.describe(volumes, 1 - labels, train, validation) != before
    # an array that has grown by studies of another task holds the same data
    more = np.concatenate([volumes, volumes])
    assert training.describe(more, np.append(labels, [-1] * 8), train, validation) == before


@pytest.mark.parametrize(("epochs", "batch_size"), [(0, 4), (2, 0), (-1, 4)])
def test_no_epoch_and_no_batch_are_refused_in_one_line(volumes, tmp_path, epochs, batch_size):
    with pytest.raises(ValueError, match="give 1 at least") as refused:
        train(volumes, tmp_path / "run", epochs=epochs, batch_size=batch_size)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_a_training_anew_that_does_not_begin_leaves_the_old_one(volumes, tmp_path, monkeypatch):
    train(volumes, tmp_path, epochs=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(training, "train_one_epoch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(volumes, tmp_path, epochs=2, seed=5, resume=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
