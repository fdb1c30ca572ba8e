"""Training on two processes under torchrun equals training on one, and survives a lost worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import distributed_worker as worker
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from helpers.course.torchrun import lose_a_worker
from helpers.course.torchrun import main as command_line
from helpers.learn import devices, prediction, ranks
from helpers.learn.augmentation import augment
from helpers.learn.networks import Keras3DCNN

HERE = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("one_thread")


def torchrun(*arguments, restarts=0):
    """Two processes on this machine; returns the finished torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "--monitor-interval=0.1", *map(str, arguments)]
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    # a group of its own, so that a hung one can be ended with its workers
    started = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = started.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        raise AssertionError(f"torchrun hangs: {started.communicate()}") from None
    return subprocess.CompletedProcess(command, started.returncode, out, errors)


def without_seconds(history):
    return history.drop(columns="seconds")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every run on one process and on two: the folder with both, and the one-process models."""
    folder = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    models = {name: worker.train(name, folder / "one" / name)[0] for name in worker.RUNS}
    (folder / "two").mkdir()
    worker.train("bilstm", folder / "two" / "begun", max_epochs_this_call=1)
    done = torchrun(HERE / "distributed_worker.py", "draws", folder / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == "", done.stderr
    return folder, models


@pytest.mark.parametrize("name", worker.RUNS)
def test_two_processes_reach_the_losses_of_one(runs, name):
    folder, _ = runs
    one, two = (pd.read_csv(folder / place / name / "history.csv") for place in ("one", "two"))
    assert len(one) == len(two) == worker.EPOCHS
    np.testing.assert_allclose(two.train_loss, one.train_loss, rtol=3e-5)
    np.testing.assert_allclose(without_seconds(two), without_seconds(one), rtol=2e-4)
    assert one.train_loss.nunique() == worker.EPOCHS


@pytest.mark.parametrize("name", worker.RUNS)
def test_both_ranks_end_with_the_weights_of_one_process(runs, name):
    folder, models = runs
    first, second = (
        torch.load(folder / "two" / f"{name}-rank{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    expected = models[name].state_dict()
    assert list(first) == list(second) == list(expected)
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-5, msg=key)
    histories = [pd.read_csv(folder / "two" / f"{name}-rank{rank}.csv") for rank in (0, 1)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    files = sorted(path.name for path in (folder / "two" / name).iterdir())
    assert files == ["best.pt", "history.csv", "last.pt"]


def test_running_statistics_are_those_of_the_whole_batch(runs):
    folder, models = runs
    two = torch.load(folder / "two" / "cnn3d-rank1.pt", weights_only=True)
    norms = {name: value for name, value in models["cnn3d"].state_dict().items() if "run" in name}
    assert len(norms) == 8
    for name, value in norms.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    assert two["layers.3.num_batches_tracked"] == 3 * worker.EPOCHS


def test_a_checkpoint_of_two_processes_is_one_of_one_process(runs):
    """The same weights by the same names, and settings that let either go on with it."""
    folder, _ = runs
    one, two = (
        torch.load(folder / place / "cnn3d" / "last.pt", weights_only=True)
        for place in ("one", "two")
    )
    assert one["settings"] == two["settings"]
    assert list(one["model"]) == list(two["model"])
    prediction.load_model(Keras3DCNN(width=2), folder / "two" / "cnn3d" / "best.pt", "cpu")
    _, history = worker.train("cnn3d", folder / "two" / "cnn3d")
    assert len(history) == worker.EPOCHS


def test_a_run_begun_with_one_process_goes_on_with_two(runs):
    folder, _ = runs
    whole = pd.read_csv(folder / "one" / "bilstm" / "history.csv")
    begun = pd.read_csv(folder / "two" / "begun" / "history.csv")
    pd.testing.assert_frame_equal(
        without_seconds(begun[:1]), without_seconds(whole[:1]), check_exact=True
    )
    assert len(begun) == worker.EPOCHS
    np.testing.assert_allclose(without_seconds(begun), without_seconds(whole), rtol=3e-5)


def test_a_batch_too_small_to_share_is_refused_in_one_line(runs):
    folder, _ = runs
    said = [(folder / "two" / f"refused-rank{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and "\n" not in said[0]
    assert "batch_size=4 leaves 1 of 13 training scans" in said[0]
    assert "too few for 2 processes: take batch_size=5, or start fewer" in said[0]
    assert not (folder / "two" / "small").exists()


def test_ranks_share_the_generator_but_not_the_dropout(runs):
    folder, _ = runs
    first, second = (
        json.loads((folder / "two" / f"draws-rank{rank}.json").read_text()) for rank in (0, 1)
    )
    assert first[0] == second[0] and first[1] != second[1]
    with devices.seeded(torch.device("cpu"), 0, 1) as generator:
        assert first == [torch.rand(1, generator=generator).item(), torch.rand(1).item()]


def test_a_killed_worker_costs_nothing_but_its_epoch(tmp_path):
    done = torchrun(HERE / "distributed_worker.py", "break", tmp_path, restarts=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "was_killed").exists() and "exitcode: -9" in done.stderr
    told = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    # the second life begins with the epoch that the first had finished; rank 1 is told nothing
    assert told[0] == {"seen": [1, 2, 3], "restarts": "1"} and told[1]["seen"] == []
    histories = [pd.read_csv(tmp_path / name / "history.csv") for name in ("unbroken", "broken")]
    pd.testing.assert_frame_equal(*map(without_seconds, histories), check_exact=True)
    ends = [
        torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]
        for name in ("unbroken", "broken")
    ]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_the_command_trains_and_tells_errors_in_one_line(tmp_path):
    command = [
        "-m",
        "helpers.course.torchrun",
        "--profile",
        "tiny",
        "--data-dir",
        tmp_path / "data",
    ]
    command += ["--runs-dir", tmp_path / "runs", "--model", "cnn3d", "--epochs", 2]
    done = torchrun(*command)
    assert done.returncode == 0 and done.stderr == "", done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 processes (cpu, gloo), pids ") and len(lines) == 4
    assert lines[1].startswith("epoch 1: training loss 0.") and lines[2].startswith("epoch 2: ")
    run = tmp_path / "runs" / "cnn3d-phantom-tiny-ct0-ct23-seed0"
    assert len(pd.read_csv(run / "history.csv")) == 2

    done = torchrun(*command, "--dropout", 0.1)
    assert done.returncode == 1
    own = done.stderr.split("\n")[0]
    assert own.startswith(f"{run / 'last.pt'}: made with model=Keras3DCNN")
    assert own.endswith("to start again") and "helpers/course/torchrun.py" not in done.stderr


@pytest.mark.parametrize("fails", [False, True])
def test_a_worker_is_killed_once_and_a_failure_is_told(fails, tmp_path, monkeypatch, capsys):
    """As torchrun's processes speak; notebook 11 does it with torchrun itself."""
    told = ["2 processes (cpu, gloo), pids 11 12", "epoch 1: training loss 0.6"] * 2
    told += ["epoch 2: training loss 0.5"]
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nprint(*{told}, sep='\\n')\n"
        f"print(*sys.argv[5:], 'no such cohort', file=sys.stderr)\nsys.exit({int(fails)})\n"
    )
    script.chmod(0o755)
    killed = []
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr("helpers.course.torchrun.kill", killed.append)
    if fails:
        with pytest.raises(RuntimeError, match="--data-dir=x --epochs=2 no such cohort"):
            lose_a_worker(data_dir="x", epochs=2)
    else:
        assert lose_a_worker(data_dir="x") == 2
    assert killed == [12]
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["2 processes (cpu, gloo)", told[1], "- rank 1 is killed -"]
    assert said[3:] == ["2 processes (cpu, gloo)", *told[3:]]


def test_the_command_runs_without_torchrun(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    places = ["--data-dir", str(tmp_path / "data"), "--runs-dir", str(tmp_path / "runs")]
    command_line(["--profile", "tiny", "--epochs", "1", *places])
    assert capsys.readouterr().out.startswith("1 processes (no torchrun), pids ")
    with pytest.raises(SystemExit):
        command_line(["--dataset", str(tmp_path / "none"), *places])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no studies there" in said


@pytest.mark.parametrize("told", [{}, {"RANK": "0"}, {"RANK": "0", "LOCAL_RANK": "0"}])
def test_another_launcher_that_leaves_something_out_is_told_in_one_line(monkeypatch, capsys, told):
    for name in ranks.TOLD:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", **told}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        command_line(["--profile", "tiny"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "start them with torchrun" in said
    assert "LOCAL_WORLD_SIZE" in said and (" LOCAL_RANK," in said) == ("LOCAL_RANK" not in told)


@pytest.mark.parametrize("size", ["", "1", "none"])
def test_an_empty_world_size_is_one_process(monkeypatch, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    with ranks.process_group():
        assert ranks.n_processes() == 1


def test_shares_follow_each_other_and_differ_by_one_at_most(monkeypatch):
    monkeypatch.setattr(ranks, "n_processes", lambda: 3)
    for n in (3, 4, 5, 17):
        found = []
        for own in range(3):
            monkeypatch.setattr(ranks, "rank", lambda own=own: own)
            found.append(list(range(n))[ranks.shard(n)])
        assert sum(found, []) == list(range(n))
        assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.parametrize(
    ("n_train", "n_validation", "batch_size", "advice"),
    [
        (13, 9, 4, "batch_size=5, or"),
        (13, 9, 2, "batch_size=5, or"),
        (13, 2, 5, "start fewer"),
        (2, 9, 5, "start fewer"),
    ],
)
def test_advice_on_batches_is_good(n_train, n_validation, batch_size, advice, monkeypatch):
    monkeypatch.setattr(ranks, "n_processes", lambda: 3)
    with pytest.raises(ValueError, match=advice) as caught:
        ranks.check_shards(n_train, n_validation, batch_size)
    assert "\n" not in str(caught.value)
    if advice.endswith(", or"):
        better = int(advice.split("=")[1].split(",")[0])
        ranks.check_shards(n_train, n_validation, better)


def test_a_part_of_a_batch_is_changed_as_in_the_whole():
    scans = torch.rand(5, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    whole = augment(scans, torch.Generator().manual_seed(0))
    parts = [
        augment(scans[own], torch.Generator().manual_seed(0), within=(own.start, 5))
        for own in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)
    assert not torch.allclose(augment(scans[2:], torch.Generator().manual_seed(0)), whole[2:])


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_global_batch_norm_of_one_rank_is_batch_norm(momentum, affine, monkeypatch):
    """Values, gradients and running statistics; the sum over ranks is left out here."""
    monkeypatch.setattr(ranks.dist, "all_reduce", lambda tensor: None)
    torch.manual_seed(0)
    norms = [nn.BatchNorm3d(3, momentum=momentum, affine=affine) for _ in range(2)]
    values = [(5 + 2 * torch.randn(4, 3, 2, 5, 5)).requires_grad_()]
    values.append(values[0].detach().clone().requires_grad_())
    for _ in range(2):
        expected = norms[0](values[0])
        found = ranks.global_batch_norm(norms[1], values[1])
        (expected**3).sum().backward()
        (found**3).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values[1].grad, values[0].grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norms[1].state_dict(), norms[0].state_dict())
    norms[1].eval()
    torch.testing.assert_close(
        ranks.global_batch_norm(norms[1], values[1]), norms[0].eval()(values[0])
    )


def test_the_profiler_sees_the_parts_of_a_step(tmp_path):
    with torch.profiler.profile() as profiler:
        worker.train("bilstm", tmp_path, epochs=1)
    calls = {event.key: event.count for event in profiler.key_averages()}
    parts = ("load", "augment", "forward", "backward", "step")
    assert {part: calls.get(part) for part in parts} == dict.fromkeys(parts, 3)
