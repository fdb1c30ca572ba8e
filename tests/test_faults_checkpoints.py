"""Checkpoints that are hostile, foreign or of something else: refused in words, never run."""

from __future__ import annotations

import copy
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from fault_marks import MISMATCH
from interrupted import LABELS, TRAIN, VALIDATION
from torch import nn

from helpers.learn import checkpoints, training
from helpers.learn.checkpoints import CheckpointError, read_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
MARK = "a-hostile-checkpoint-was-run"


def made_of(*parts):
    """An object that calls a function when it is unpickled."""

    class Hostile:
        def __reduce__(self):
            return parts

    return Hostile()


CALLS = {
    "os.mkdir": (__import__("os").mkdir, (MARK,)),
    "eval": (eval, (f"__import__('os').mkdir({MARK!r})",)),
    "exec": (exec, (f"import os; os.mkdir({MARK!r})",)),
    "subprocess": (__import__("subprocess").call, (["mkdir", MARK],)),
    "open": (open, (MARK, "w")),
    "torch.load": (torch.load, (MARK,)),
    "numpy.save": (np.save, (MARK, 1)),
    "getattr": (getattr, (nn.Linear, "mro")),
    "nn.Linear": (nn.Linear, (3, 3)),
    "os.system": (__import__("os").system, (f"mkdir {MARK}",)),
}


def as_zip(pickled):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return stream.getvalue()


def refused(path):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1 and str(path) in str(caught.value)


@pytest.mark.faults("Checkpoints and results", "a pickle that would run code")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrapped", ["zip", "bare", "inside"])
@pytest.mark.parametrize("call", CALLS)
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, monkeypatch, call, wrapped, protocol):
    monkeypatch.chdir(tmp_path)
    hostile = made_of(*CALLS[call])
    if wrapped == "inside":
        state = {"model": {}, "optimizer": {}, "scaler": {}, "epoch": 1, "best": 0.1}
        hostile = state | {"history": [{"train_loss": 0.1}], "settings": {"seed": hostile}}
    content = pickle.dumps(hostile, protocol=protocol)
    (tmp_path / "last.pt").write_bytes(content if wrapped == "bare" else as_zip(content))
    refused(tmp_path / "last.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


class Net(nn.Module):
    """Small, and as `fit` wants it: logits and no attention."""

    def __init__(self, width=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(32, width), nn.ReLU())
        self.head = nn.Linear(width, 1)

    def forward(self, volumes):
        return self.head(self.layers(volumes))[:, 0], None


def train(folder, net=None, **options):
    torch.manual_seed(0)
    scans = np.random.default_rng(0).integers(0, 255, (16, 2, 4, 4), dtype=np.uint8)
    options = {"epochs": 2, "batch_size": 5, "device": "cpu", "augment": 0} | options
    net = net or Net()
    return training.fit(net, scans, LABELS, TRAIN, VALIDATION, folder, **options)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """A checkpoint after one of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    train(folder, max_epochs_this_call=1)
    return torch.load(folder / "last.pt", weights_only=True)


def without(name):
    return lambda state: state.pop(name)


def with_value(value, *names):
    def change(state):
        for name in names[:-1]:
            state = state[name]
        state[names[-1]] = value

    return change


def moments_of_another_shape(state):
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)


def weight_that_repeats_one_number(state):
    state["model"]["head.weight"] = torch.zeros(1).expand(10**6, 10**6)


CHANGES = {
    **{
        f"without {name}": without(name)
        for name in ("model", "optimizer", "scaler", "epoch", "history", "best", "settings")
    },
    **{
        f"{name} is {value!r}": with_value(value, name)
        for name in ("model", "optimizer", "scaler", "history", "settings")
        for value in (None, 3, "x", [1])
    },
    "no epoch at all": with_value(0, "epoch"),
    "fewer epochs in the history": with_value(5, "epoch"),
    "an empty history": with_value([], "history"),
    "a history without losses": with_value([{"epoch": 1}], "history"),
    "a history of words": with_value([{"train_loss": "low"}], "history"),
    "a weight that is a number": with_value(3.0, "model", "head.weight"),
    "a weight too many": with_value(torch.zeros(3), "model", "more"),
    "a weight too few": lambda state: state["model"].pop("head.bias"),
    "a weight of another shape": with_value(torch.zeros(9), "model", "head.weight"),
    "a weight of 4 TB that repeats one number": weight_that_repeats_one_number,
    "an optimizer of no parameter": with_value({"state": {}, "param_groups": []}, "optimizer"),
    "an optimizer without groups": with_value({"state": {}}, "optimizer"),
    "moments of another shape": moments_of_another_shape,
    "settings without a seed": lambda state: state["settings"].pop("seed"),
    "settings of another run": with_value(99, "settings", "seed"),
}


@MISMATCH()
@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_does_not_fit_is_refused_and_stays(state, tmp_path, change):
    changed = copy.deepcopy(state)
    CHANGES[change](changed)
    torch.save(changed, tmp_path / "last.pt")
    content = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(ValueError) as caught:
        train(tmp_path)
    message = str(caught.value)
    assert isinstance(caught.value, CheckpointError) or "made with" in message
    assert len(message.splitlines()) == 1 and str(tmp_path / "last.pt") in message
    assert (tmp_path / "last.pt").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.faults("Checkpoints and results", "a checkpoint that unpacks to a huge size")
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packed_checkpoint_is_refused_before_it_is_unpacked(state, tmp_path, method):
    torch.save(state, plain := io.BytesIO())
    path = tmp_path / "last.pt"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", method) as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name))
        packed.writestr("archive/data/99", bytes(10**7))
    refused(path)


@pytest.mark.faults("Checkpoints and results", "a checkpoint cut off")
@pytest.mark.parametrize("share", [k / 20 for k in range(20)])
def test_a_checkpoint_cut_off_is_refused(state, tmp_path, share):
    torch.save(state, whole := io.BytesIO())
    content = whole.getvalue()
    (tmp_path / "last.pt").write_bytes(content[: int(share * len(content))])
    refused(tmp_path / "last.pt")


def test_the_changed_checkpoint_was_good_before(state, tmp_path):
    torch.save(state, tmp_path / "last.pt")
    torch.save(state, tmp_path / "best.pt")
    assert len(train(tmp_path)) == 2
    assert checkpoints.read_checkpoint(tmp_path / "last.pt")["epoch"] == 2
