"""What the processes of test_distributed run under torchrun: a job and the folder it works in."""

import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from helpers.learn import devices, ranks, training
from helpers.learn.networks import BiLSTMClassifier, Keras3DCNN, SliceEncoder

TRAIN, VALIDATION = np.arange(0, 13), np.arange(13, 20)
LABELS = np.arange(20) % 2
EPOCHS = 3


class Brighter:
    """An augmentation of one's own."""

    def __repr__(self):
        return "Brighter()"

    def __call__(self, batch, generator):
        return (batch + 0.3 * torch.rand(len(batch), 1, 1, 1, generator=generator)).clamp(0, 1)


# name -> (network without dropout, options of fit); 13 scans in batches of 5 leave 3 for the last
RUNS = {
    "bilstm": (lambda: BiLSTMClassifier(SliceEncoder(8), 16, hidden=8, dropout=0.0), {}),
    "cnn3d": (lambda: Keras3DCNN(width=2, dropout=0.0), {}),
    "own": (
        lambda: BiLSTMClassifier(SliceEncoder(8), 16, hidden=8, dropout=0.0),
        {"augment": Brighter(), "learning_rate": 3e-3},
    ),
}


def volumes():
    """20 small scans; odd ones have a bright slice."""
    scans = np.random.default_rng(0).integers(0, 60, size=(20, 16, 16, 16), dtype=np.uint8)
    scans[1::2, 5:8, 4:12, 4:12] += 120
    return scans


class SGD(torch.optim.SGD):
    """In AdamW's place: it follows the gradient, so a difference by rounding stays one.

    AdamW divides by the size of the gradient. Where that is 0 but for rounding, as for a bias ahead
    of a BatchNorm, it moves a weight by the learning rate either way, on every processor otherwise.
    """

    def __init__(self, groups):
        super().__init__(groups, lr=1.0, momentum=0.9)


def train(name, folder, **options):
    """One of RUNS, seeded, by SGD; returns the trained model and its history."""
    make, own = RUNS[name]
    torch.manual_seed(0)
    model = make()
    options = {"epochs": EPOCHS, "batch_size": 5, "learning_rate": 1e-2} | own | options
    options |= {"device": "cpu"}
    with mock.patch.object(torch.optim, "AdamW", SGD):
        history = training.fit(model, volumes(), LABELS, TRAIN, VALIDATION, folder, **options)
    return model, history


def job_compare(folder):
    """Every run; the weights that each rank ends with; a too small batch; one process's run."""
    for name in RUNS:
        model, history = train(name, folder / name)
        torch.save(model.state_dict(), folder / f"{name}-rank{ranks.rank()}.pt")
        history.to_csv(folder / f"{name}-rank{ranks.rank()}.csv", index=False)
    try:
        train("bilstm", folder / "small", batch_size=4)
    except ValueError as error:
        (folder / f"refused-rank{ranks.rank()}.txt").write_text(str(error))
    train("bilstm", folder / "begun")


def job_break(folder):
    """A run with dropout in which rank 1 kills itself, once, within the second epoch."""
    RUNS["dropout"] = (
        lambda: BiLSTMClassifier(SliceEncoder(8), 16, hidden=8, dropout=0.5),
        {},
    )
    train("dropout", folder / "unbroken")
    flag, calls, original = folder / "was_killed", [], training.augmented_share

    def deadly(*arguments):
        calls.append(arguments)
        if len(calls) == 5 and ranks.rank() == 1 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    training.augmented_share = deadly
    seen = []
    train("dropout", folder / "broken", on_epoch=lambda history: seen.append(len(history)))
    text = json.dumps({"seen": seen, "restarts": os.environ["TORCHELASTIC_RESTART_COUNT"]})
    (folder / f"rank{ranks.rank()}.json").write_text(text)


def job_draws(folder):
    """The random numbers that a rank's generator and its dropout draw in an epoch."""
    with devices.seeded(torch.device("cpu"), 0, 1) as generator:
        drawn = [torch.rand(1, generator=generator).item(), torch.rand(1).item()]
    (folder / f"draws-rank{ranks.rank()}.json").write_text(json.dumps(drawn))
    job_compare(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ranks.process_group():
        globals()[f"job_{sys.argv[1]}"](Path(sys.argv[2]))
