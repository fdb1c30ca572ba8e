"""What one training step costs at 64 x 256 x 256: seconds and memory of three networks.

python -m tests.benchmarks.training
python -m tests.benchmarks.training --models bilstm cnn3d --batches 2 4 --variants fp32 bf16+compile

The step is the course's own, of `training.fit`: uint8 from a memory map, augmentation,
forward, weighted loss, backward, clipping, AdamW. The voxels are random numbers. Every line is
measured in a process of its own, so that its memory is its own; one that runs out of memory or of
time says so. A variant is a precision (fp32, bf16, fp16) and, after +, channels_last, compile
(torch.compile) or checkpoint (activation checkpointing).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint_sequential  # noqa: E402

from helpers.learn import networks, training  # noqa: E402
from helpers.learn.augmentation import augment  # noqa: E402
from helpers.learn.devices import pick_device  # noqa: E402

NAMES = {
    "bilstm": "Bi-LSTM (ours)",
    "cnn3d": "3-D CNN (Keras, width 64)",
    "densenet121": "3-D DenseNet121 (MONAI)",
}
BATCHES = (2, 4, 8, 16)
PRECISIONS = ("fp32", "bf16", "fp16")
OPTIONS = ("channels_last", "compile", "checkpoint")
N_TRAIN = 140  # scans in an epoch: what MosMedData's CT-0 and CT-23 leave for training
CARD_GB, CARD_SPARE_GB = 16, 1  # CUDA itself and the driver need the spare one
GB = 2**30


class DenseNet121(nn.Module):
    """MONAI's 3-D DenseNet121 with the course's interface: (B, D, H, W) to (logits (B,), None)."""

    def __init__(self) -> None:
        super().__init__()
        from monai.networks import nets

        self.network = nets.DenseNet121(spatial_dims=3, in_channels=1, out_channels=1)

    def forward(self, volumes):
        return self.network(volumes.unsqueeze(1)).squeeze(-1), None


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", nargs=3, type=int, default=(64, 256, 256), metavar=("D", "H", "W")
    )
    parser.add_argument("--models", nargs="+", choices=NAMES)
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--variants", nargs="+", help="for example fp32 bf16 fp32+channels_last")
    parser.add_argument("--steps", type=int, default=5, help="counted steps at most (default 5)")
    parser.add_argument("--warm-up", type=int, help="steps before them (default 1, on CUDA 3)")
    parser.add_argument("--seconds", type=float, default=8, help="no new step after so many")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one line")
    parser.add_argument("--memory-limit", type=float, help="GB for one line, without CUDA")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--markdown", action="store_true", help="a table for GitHub")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.one:
        print(json.dumps(measure(json.loads(arguments.one))))
        return
    device = pick_device(arguments.device).type
    warm_up = arguments.warm_up or (3 if device == "cuda" else 1)
    job = {"size": list(arguments.size), "steps": arguments.steps, "warm_up": warm_up}
    job |= {"seconds": arguments.seconds, "device": device}
    grid = configurations(arguments.models, arguments.batches, arguments.variants, device)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        job["volumes"] = random_volumes(folder, max(batch for _, batch, _ in grid), job["size"])
        for k, (model, batch, variant) in enumerate(grid, start=1):
            job |= {"model": model, "batch": batch, "variant": variant}
            if device == "cpu":
                job["memory_limit_gb"] = arguments.memory_limit or spare_memory()
            records.append(in_own_process(job, arguments.limit))
            print(f"{k}/{len(grid)}  {in_words(records[-1])}", file=sys.stderr, flush=True)
            if arguments.json:
                content = {"hardware": hardware(device), "size": job["size"], "records": records}
                arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    print(hardware(device))
    print(f"{' x '.join(map(str, job['size']))}, random voxels; an epoch: {N_TRAIN} scans\n")
    print(as_text(table(records), arguments.markdown))
    print("\n" + "\n".join(notes(device)) + "\n")
    print("\n".join(card_lines(records, device)))


def configurations(chosen, batches, variants, device):
    """(model, batch, variant) of every line: all combinations of what was asked for.

    Where nothing was, on a CPU: our model at every batch, everything else at batch 2, which two
    cores do in about ten minutes.
    """
    precisions = PRECISIONS if device == "cuda" else PRECISIONS[:2]
    if device == "cuda" or chosen or batches or variants:
        every = [
            precision + extra
            for precision in precisions
            for extra in ("", *(f"+{option}" for option in OPTIONS))
        ]
        return list(itertools.product(chosen or NAMES, batches or BATCHES, variants or every))
    grid = list(itertools.product(["bilstm"], BATCHES, precisions))
    for model in NAMES:
        more = [f"fp32+{option}" for option in OPTIONS]
        more = more if model == "bilstm" else [*precisions, *more]
        grid += [(model, BATCHES[0], variant) for variant in more]
    return grid


def random_volumes(folder, n, size):
    """The path of a uint8 array (n, D, H, W) of random voxels."""
    path = Path(folder) / "volumes.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (n, *size), dtype=np.uint8))
    return str(path)


def in_own_process(job, limit):
    """Measure one line in a fresh process; returns its record, whatever happens to it."""
    command = [sys.executable, "-m", "tests.benchmarks.training", "--one", json.dumps(job)]
    record = {name: job[name] for name in ("model", "batch", "variant")}
    record["memory_limit_gb"] = job.get("memory_limit_gb")
    # one process does all of torch.compile's work: none is left over after a time limit
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TQDM_DISABLE": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=limit, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return record | {"status": f"not done in {limit:g} s"}
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return record | json.loads(lines[-1])
    if done.returncode < 0:
        return record | {"status": f"ended by {signal.Signals(-done.returncode).name}"}
    return record | {"status": (done.stderr.splitlines() or ["no answer"])[-1]}


def measure(job):
    """Seconds of the counted steps and the memory they took; what the fresh process does."""
    if job.get("memory_limit_gb"):
        # beyond it an allocation fails here, instead of the machine's memory running out
        limit = int(job["memory_limit_gb"] * GB)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        return {"status": "ok"} | measure_steps(job)
    except ImportError as error:
        return {"status": f"{error}: pip install -r tests/benchmarks/requirements.txt"}
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        signs = ("allocate memory", "bad_alloc", "out of memory", "not enough memory")
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in signs):
            return {"status": "out of memory"}
        return {"status": f"{type(error).__name__}: {text}"}


def measure_steps(job):
    device = pick_device(job["device"])
    precision, *options = job["variant"].split("+")
    before = resident_gb()
    model = job.get("build", build)(job["model"], options)
    volumes = np.load(job["volumes"], mmap_mode="r")
    clock = Clock(device, job["warm_up"], job["steps"], job["seconds"], job.get("is_still"))
    n_rows = job["batch"] * (job["warm_up"] + job["steps"] + 1)
    rows = np.resize(np.arange(len(volumes)), n_rows)
    with tempfile.TemporaryDirectory() as folder, suppress(EnoughSteps):
        training.fit(
            model,
            volumes,
            np.arange(len(volumes)) % 2,
            rows,
            np.arange(2),
            folder,
            epochs=1,
            batch_size=job["batch"],
            learning_rate=1e-4,
            precision=precision,
            device=device.type,
            augment=clock,
        )
    if device.type == "cuda":
        own, whole = torch.cuda.max_memory_allocated() / GB, torch.cuda.max_memory_reserved() / GB
    else:
        whole = peak_gb()
        own = whole - before
    seconds = np.diff(clock.times).tolist()
    return {
        "first_step": seconds[0],
        "steps": seconds[job["warm_up"] :],
        "own_gb": own,
        "whole_gb": whole,
        "parameters": networks.count_parameters(model),
    }


class EnoughSteps(Exception):
    """Ends the training when the clock has counted its steps."""


class Clock:
    """The course's augmentation, which `fit` calls once a step: notes the time of every call.

    From one call to the next is one step: augment, forward, loss, backward, clip, AdamW, and
    loading the next batch.
    """

    def __init__(self, device, warm_up, steps, seconds, is_still=False):
        self.device, self.warm_up, self.steps, self.seconds = device, warm_up, steps, seconds
        self.is_still, self.times = is_still, []

    def __call__(self, batch, generator):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        counted = np.diff(self.times)[self.warm_up :]
        if len(counted) >= self.steps or sum(counted) > self.seconds:
            raise EnoughSteps
        return batch if self.is_still else augment(batch, generator)


def build(name, options):
    """One of the networks, with what the variant's options change in it."""
    if unknown := set(options) - set(OPTIONS):
        raise ValueError(f"unknown {', '.join(sorted(unknown))}; use {', '.join(OPTIONS)}")
    torch.manual_seed(0)
    if name == "bilstm":
        model = networks.BiLSTMClassifier(checkpoint="checkpoint" in options)
    else:
        model = networks.Keras3DCNN(width=64) if name == "cnn3d" else DenseNet121()
        if "checkpoint" in options:
            keep_four_activations(model.layers if name == "cnn3d" else model.network.features)
    if "channels_last" in options:
        is_2d = name == "bilstm"
        model.to(memory_format=torch.channels_last if is_2d else torch.channels_last_3d)
    return torch.compile(model) if "compile" in options else model


def keep_four_activations(layers):
    """Activation checkpointing of a Sequential in four parts: what is inside is computed again."""
    parts = list(layers)
    layers.forward = lambda maps: checkpoint_sequential(parts, 4, maps, use_reentrant=False)


def resident_gb():
    """Memory of this process now."""
    return _from_proc("VmRSS") or resource_peak_gb()


def peak_gb():
    """The most memory that this process ever had."""
    return _from_proc("VmHWM") or resource_peak_gb()


def _from_proc(name):
    # Linux hands ru_maxrss down from the parent process, this not
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / GB for line in lines if line.startswith(name)), None)


def resource_peak_gb():
    """Peak memory where there is no /proc: bytes on macOS, kB elsewhere."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GB


def spare_memory():
    """85 % of the memory that is free now, in GB; None where Linux does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return round(0.85 * free * 1024 / GB, 1)


def hardware(device):
    """One line: what the figures were measured on."""
    if device == "cuda":
        on = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
        on += ", TF32 in fp32 convolutions" * torch.backends.cudnn.allow_tf32
    else:
        on = f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{on}, torch {torch.__version__}, {platform.system()}, {date.today():%d %B %Y}"


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def median_step(record):
    """Seconds a step, or None for a line that failed."""
    return float(np.median(record["steps"])) if record["status"] == "ok" else None


def in_words(record):
    what = f"{NAMES[record['model']]}, batch {record['batch']}, {record['variant']}"
    if record["status"] != "ok":
        return f"{what}: {record['status']}"
    return f"{what}: {median_step(record):.2f} s a step, {record['own_gb']:.2f} GB"


def ratios(record, records):
    """A line's time and memory over those of two others at the same batch.

    "plain": the same model in fp32 without options. "ours": our model in the same variant.
    None where either was not measured.
    """
    found = {(r["model"], r["batch"], r["variant"]): r for r in records if r["status"] == "ok"}
    others = {
        "plain": (record["model"], record["batch"], "fp32"),
        "ours": ("bilstm", record["batch"], record["variant"]),
    }
    result = {}
    for name, key in others.items():
        other, is_known = found.get(key), record["status"] == "ok"
        known = is_known and other is not None
        result[f"time/{name}"] = median_step(record) / median_step(other) if known else None
        result[f"memory/{name}"] = record["own_gb"] / other["own_gb"] if known else None
    return result


def table(records):
    """The lines of the table, as text by column."""
    lines = []
    for record in records:
        line = {"model": NAMES[record["model"]], "batch": str(record["batch"])}
        line["variant"] = record["variant"]
        seconds, ok = median_step(record), record["status"] == "ok"
        line["s/step"] = f"{seconds:.2f}" if ok else ""
        line["steps"] = str(len(record["steps"])) if ok else ""
        line["scans/s"] = f"{record['batch'] / seconds:.2f}" if ok else ""
        line["s/epoch"] = f"{N_TRAIN * seconds / record['batch']:.0f}" if ok else ""
        line["first step s"] = f"{record['first_step']:.1f}" if ok else ""
        line["GB"] = f"{record['own_gb']:.2f}" if ok else ""
        line["GB whole"] = f"{record['whole_gb']:.2f}" if ok else ""
        for name, value in ratios(record, records).items():
            line[name] = "" if value is None else f"{value:.2f}"
        line["failed"] = "" if ok else record["status"][:80]
        lines.append(line)
    return lines


def as_text(lines, markdown=False):
    """Lines of text by column, as a table: aligned, or in GitHub's markdown."""
    rows = [list(lines[0]), *(list(line.values()) for line in lines)]
    if markdown:
        rows.insert(1, ["---"] * len(rows[0]))
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def notes(device):
    """What the columns are."""
    if device == "cuda":
        yield "GB: most memory that torch had allocated; GB whole: that it had reserved."
    else:
        yield "GB: growth of the process to its peak; GB whole: the peak, libraries included."
    yield "s/step: median of the counted steps. first step s: before them, compilation included."
    yield "time/plain, memory/plain: over the same model and batch in fp32 without options."
    yield "time/ours, memory/ours: over our model with the same batch and variant."


def fits_card(record):
    """Whether a 16 GB card would hold what was measured: True, False, or None if unknown."""
    room = CARD_GB - CARD_SPARE_GB
    if record["status"] == "ok":
        return record["whole_gb"] <= room
    limit = record.get("memory_limit_gb")
    return False if record["status"] == "out of memory" and limit and limit > room else None


def card_lines(records, device):
    """One line a model and batch: would a 16 GB card hold the peak memory of its variants?"""
    words = {True: "yes", False: "no", None: "not known"}
    found = {}
    for record in records:
        amount = f" ({record['whole_gb']:.1f} GB)" if record["status"] == "ok" else ""
        text = f"{record['variant']} {words[fits_card(record)]}{amount}"
        found.setdefault((record["model"], record["batch"]), []).append(text)
    source = "measured on the GPU" if device == "cuda" else "the CPU's figure, not a card's"
    for (model, batch), texts in found.items():
        yield (
            f"peak memory for training at batch {batch} fits a {CARD_GB} GB card ({source}), "
            f"{NAMES[model]}: {', '.join(texts)}"
        )


if __name__ == "__main__":
    main()
