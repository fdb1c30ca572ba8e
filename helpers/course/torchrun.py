"""The command that torchrun starts: train a model of the course on several processes.

With two of them (gloo on CPUs, NCCL where there is a GPU for each):

    torchrun --nproc-per-node=2 -m helpers.course.torchrun --dataset phantom --profile quick

`lose_a_worker` does this and kills one of them on the way.
"""

from __future__ import annotations

import argparse
import os
import subprocess  # nosec B404
import sys
import tempfile
from functools import partial

import torch
import torch.distributed as dist

from helpers.learn.ranks import (
    gather,
    n_processes,
    own_device,
    process_group,
    rank,
    rank_0_first,
)
from helpers.storage.processes import kill

OPTIONS = ("epochs", "batch_size", "learning_rate", "dropout")


def main(arguments: list[str] | None = None) -> None:
    """The command line: prepare a cohort and train one of the course's two models on it.

    What a user can cause, a wrong value for example, is reported in one line, by rank 0.
    """
    from helpers.course import runs, sources

    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node=N -m helpers.course.torchrun",
        description="Train a model of the course on several processes.",
    )
    parser.add_argument("--dataset", default="phantom", help="phantom, mosmed or a folder")
    parser.add_argument("--profile", default="quick", choices=sorted(sources.PROFILES))
    parser.add_argument("--model", default="bilstm", choices=sorted(runs.MODELS))
    parser.add_argument("--epochs", type=int, help="as in the profile, unless given")
    parser.add_argument("--batch-size", type=int, help="of all processes together")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--dropout", type=float, help="0 to compare with one process")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    try:
        with process_group():
            run(chosen)
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr)
        sys.exit(1)


def run(chosen: argparse.Namespace) -> None:
    """Prepare, train, and print what is going on, a line an epoch; rank 0 alone prints."""
    from helpers.course import runs

    # they take seconds to import; in the block below one rank would wait for the other
    from helpers.learn import features, training  # noqa: F401

    say = partial(print, flush=True) if rank() == 0 else lambda *_: None
    n = n_processes()
    pids = gather(torch.tensor([os.getpid()]), n).tolist()
    where = f"{own_device().type}, {dist.get_backend()}" if n > 1 else "no torchrun"
    say(f"{n} processes ({where}), pids {' '.join(map(str, pids))}")

    def tell(history):
        last = history.iloc[-1]
        losses = f"training loss {last.train_loss:.4f}, validation loss {last.validation_loss:.4f}"
        say(f"epoch {last.epoch:.0f}: {losses}")

    options = {name: getattr(chosen, name) for name in OPTIONS}
    options = {name: value for name, value in options.items() if value is not None}
    with rank_0_first():  # the others find what it has made
        data = runs.prepare(chosen.dataset, chosen.profile, chosen.data_dir, chosen.seed)
        if chosen.model in ("frozen", "finetuned"):
            runs.inputs(data, "frozen")
    _, history = runs.train(
        data, chosen.model, chosen.seed, chosen.runs_dir, on_epoch=tell, **options
    )
    say(f"{len(history)} epochs, best validation loss {history.validation_loss.min():.4f}")


def lose_a_worker(**options) -> int:
    """Train on two processes of this machine, and kill rank 1 after the first epoch.

    torchrun starts both again, once. options: those of the command line. Prints what rank 0 says.
    Returns how often torchrun has started them; RuntimeError with its last words where it fails.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=1", "-m", "helpers.course.torchrun"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    environment = {"OMP_NUM_THREADS": "1", "USE_LIBUV": "0" if os.name == "nt" else "1"}
    environment |= os.environ
    environment |= {"TQDM_DISABLE": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    n_starts, was_killed = 0, False
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
        # this Python with a list of arguments, and no shell
        with subprocess.Popen(command, env=environment, **pipes) as started:  # nosec B603
            for line in started.stdout:
                said, _, pids = line.strip().partition(", pids ")
                print(said)
                if pids:
                    n_starts, victim = n_starts + 1, int(pids.split()[-1])
                if said.startswith("epoch 1:") and not was_killed:
                    kill(victim)
                    was_killed = True
                    print("- rank 1 is killed -")
        if started.returncode:
            errors.seek(0)
            raise RuntimeError(errors.read()[-2000:])
    return n_starts


if __name__ == "__main__":
    main()
