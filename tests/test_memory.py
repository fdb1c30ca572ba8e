"""What a training needs is asked before it starts."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from helpers.learn import devices, training
from helpers.learn.networks import BiLSTMClassifier, Keras3DCNN, SliceEncoder

FULL = pytest.mark.faults(
    "Memory", "a training of 64 x 256 x 256 in 12 GB runs, or is refused first"
)
CPU = torch.device("cpu")
SIZE = (16, 48, 48)


def really_kept(model, shape):
    """The same count on real numbers: every storage once, parameters left out."""
    storages = {}

    def note(tensor):
        if not isinstance(tensor, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.train()(torch.zeros(shape))
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.mark.parametrize("make", [BiLSTMClassifier, Keras3DCNN, lambda: BiLSTMClassifier(chunk=4)])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_kept_is_counted_without_computing(make, batch):
    model = make()
    counted = devices.bytes_kept(model, (batch, *SIZE))
    assert counted == pytest.approx(really_kept(model, (batch, *SIZE)), rel=0.15)
    assert next(model.parameters()).device.type == "cpu"


def test_kept_grows_with_the_batch_and_shrinks_with_checkpointing():
    one, four = (devices.bytes_kept(BiLSTMClassifier(), (n, *SIZE)) for n in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.15)
    assert devices.bytes_kept(BiLSTMClassifier(checkpoint=True), (4, *SIZE)) < four / 2


@pytest.fixture
def tight(monkeypatch):
    """Two scans fit, three do not."""
    kept = devices.bytes_kept(Keras3DCNN(8), (1, *SIZE))
    weights = 4 * sum(p.nbytes for p in Keras3DCNN(8).parameters())
    free = int(weights + 2.5 * devices.PEAK * kept)
    monkeypatch.setattr(devices, "free_memory", lambda: free)


@FULL
def test_what_fits_passes_and_what_does_not_says_what_to_lower(tight):
    devices.check_memory(Keras3DCNN(8), 2, SIZE, CPU)
    with pytest.raises(devices.NotEnoughMemory, match="lower batch_size to 2") as refused:
        devices.check_memory(Keras3DCNN(8), 3, SIZE, CPU)
    assert len(str(refused.value).splitlines()) == 1
    devices.check_memory(Keras3DCNN(8), 4, SIZE, CPU, "bf16")
    with pytest.raises(devices.NotEnoughMemory, match="smaller volumes"):
        devices.check_memory(Keras3DCNN(64), 1, (32, 96, 96), CPU)


@FULL
def test_training_is_refused_before_it_starts(tight, tmp_path):
    volumes = np.zeros((6, *SIZE), np.uint8)
    rows = np.arange(6)
    arguments = (Keras3DCNN(8), volumes, rows % 2, rows, rows, tmp_path / "run")
    with pytest.raises(devices.NotEnoughMemory, match="lower batch_size to 2"):
        training.fit(*arguments, epochs=1, batch_size=6)
    assert not (tmp_path / "run").exists()
    assert len(training.fit(*arguments, epochs=1, batch_size=2)) == 1


def test_a_finished_run_asks_for_no_memory(tmp_path, monkeypatch):
    volumes, rows = np.zeros((6, *SIZE), np.uint8), np.arange(6)
    arguments = (Keras3DCNN(8), volumes, rows % 2, rows, rows, tmp_path)
    history = training.fit(*arguments, epochs=1, batch_size=2)
    monkeypatch.setattr(devices, "free_memory", lambda: 1)
    assert len(training.fit(*arguments, epochs=1, batch_size=2)) == len(history)
    with pytest.raises(devices.NotEnoughMemory):
        training.fit(*arguments, epochs=1, batch_size=2, resume=False)
    assert (tmp_path / "last.pt").exists()


def test_files_that_a_container_keeps_in_memory_are_free(tmp_path, monkeypatch):
    """A container of 8 GB that has unpacked a cohort: 7 of 7.6 GB "used" can be taken at once."""
    kinds = "anon 600000000\nfile 7000000000\ninactive_file 6900000000\nactive_file 100000000\n"
    for name, text in {"max": "8000000000", "current": "7600000000", "stat": kinds}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(devices, "Path", lambda folder, name: tmp_path / name)
    psutil = pytest.importorskip("psutil")
    there = psutil.virtual_memory()._replace(available=100 * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: there)
    assert devices.free_memory() == 7_400_000_000
    (tmp_path / "memory.stat").write_text("anon 7600000000\n")
    assert devices.free_memory() == 400_000_000


def test_a_network_that_needs_numbers_is_let_through(monkeypatch):
    class Asks(nn.Module):
        def forward(self, volumes):
            return volumes.sum().item(), None

    monkeypatch.setattr(devices, "free_memory", lambda: 1)
    devices.check_memory(Asks(), 2, SIZE, CPU)


def test_free_memory_knows_the_limit_of_the_process():
    resource = pytest.importorskip("resource")
    psutil = pytest.importorskip("psutil")
    free = devices.free_memory()
    assert 0 < free <= psutil.virtual_memory().total
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + 100_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        assert devices.free_memory() <= 100_000_000
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


IN_12_GB = """
import resource, sys
import numpy as np, torch
resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
from helpers.course import runs, sources
from helpers.learn import training
from helpers.learn.devices import NotEnoughMemory
which, batch, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
volumes = np.random.default_rng(0).integers(0, 255, (6, 64, 256, 256), dtype=np.uint8)
model = runs.new_model(which, sources.PROFILES["full"])
options = {"epochs": 1, "batch_size": batch, "device": "cpu"}
try:
    history = training.fit(
        model, volumes, np.arange(6) % 2, np.arange(4), np.arange(4, 6), folder, **options
    )
    print("trained", len(history))
except NotEnoughMemory as error:
    print(error)
"""


@FULL
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set as Linux does")
@pytest.mark.parametrize(
    "which, batch, said",
    [("bilstm", 4, "trained 1"), ("cnn3d", 8, "lower batch_size to")],
)
def test_the_full_size_in_12_gb(tmp_path, which, batch, said):
    """The Bi-LSTM's profile fits; the wide 3-D CNN is refused before anything is computed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TQDM_DISABLE": "1"}
    command = [sys.executable, "-c", IN_12_GB, which, str(batch), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert said in done.stdout and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("batch, said", [(4, "lower batch_size from 4"), (1, "smaller volumes")])
def test_a_gpu_without_room_says_so_in_one_line(tmp_path, monkeypatch, batch, said):
    def full(*arguments):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9.00 GiB")

    monkeypatch.setattr(training, "train_one_epoch", full)
    volumes, labels = np.zeros((6, 8, 16, 16), np.uint8), np.arange(6) % 2
    parts = (np.arange(4), np.arange(4, 6), tmp_path)
    model = BiLSTMClassifier(SliceEncoder(8), 8, hidden=4)
    with pytest.raises(devices.NotEnoughMemory, match=said) as error:
        training.fit(model, volumes, labels, *parts, batch_size=batch, device="cpu")
    assert "\n" not in str(error.value) and "checkpoint=True" in str(error.value)
    assert not list(tmp_path.glob("*.pt"))


def test_on_a_gpu_nothing_is_estimated(monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda: 1)
    devices.check_memory(nn.Linear(2, 2), 8, (64, 256, 256), torch.device("cuda"))
    with pytest.raises(devices.NotEnoughMemory):
        devices.check_memory(
            BiLSTMClassifier(SliceEncoder(8), 8), 8, (16, 64, 64), torch.device("cpu")
        )
