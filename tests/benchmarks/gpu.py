"""All that the course has to measure on a GPU, in one command of about ten minutes.

python -m tests.benchmarks.gpu
python -m tests.benchmarks.gpu --data data/gpu.zip --json runs/gpu.json --markdown docs/gpu.md

Parts, in this order: the card's own speed; one training step of four networks; what fits a card of
16 GB; frozen features of a cohort; numbers against the CPU's; loading, fp16 overflow, resuming,
NCCL; whole trainings on the phantom cohort and on 2-D images; torch.compile. After every part, and
after every training, the JSON file and the Markdown page are written, so that a run that is cut
off loses nothing; a later run with the same files does what is missing. A part whose packages are
not installed is skipped and says so. --data: real images, packed by `tests.benchmarks.gpu_data`;
without it the phantom's twin stands in. Without a GPU everything runs on the CPU: take --tiny.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch  # noqa: E402
from torch import nn  # noqa: E402

GB = 2**30
NAMES = {
    "bilstm": "Bi-LSTM, from scratch",
    "lite0": "Bi-LSTM, Lite0 fine-tuned",
    "cnn3d": "3-D CNN (Keras, width 64)",
    "densenet121": "3-D DenseNet121 (MONAI)",
}
# the part of a 16 GB card that is left beside CUDA's own
CARD_GB = 15
PRECISIONS = ("fp32", "bf16", "fp16")


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="real images, packed")
    parser.add_argument("--json", type=Path, default=Path("runs/gpu.json"))
    parser.add_argument("--markdown", type=Path, default=Path("runs/gpu.md"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=3600, help="begin nothing after so many")
    parser.add_argument("--processes", type=int, help="trainings at a time (GPU: 4, CPU: 0)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--pack", help="write the images for --data, as `gpu_data --help` says")
    words = sys.argv[1:] if words is None else words
    if "--pack" in words:
        from tests.benchmarks import gpu_data

        return gpu_data.main(words)
    chosen = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        Benchmark(chosen, Path(folder)).run()


class Benchmark:
    """One run: its options, its folder, and the results so far."""

    def __init__(self, chosen, folder):
        self.chosen, self.folder = chosen, folder
        self.deadline = time.time() + chosen.seconds
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.profile = "tiny" if chosen.tiny else "full"
        self.size = (16, 48, 48) if chosen.tiny else (64, 256, 256)
        self.results = {"parts": {}}
        if chosen.json.exists():
            self.results = json.loads(chosen.json.read_text())
        self.results["hardware"] = hardware(self.device)
        self.phantoms = None

    def run(self):
        print(self.results["hardware"], flush=True)
        if self.chosen.data:
            shutil.copy(self.chosen.data, self.folder / "images.zip")
        if {"features", "agreement", "scans"} & {*self.chosen.parts} and importlib.util.find_spec(
            "nibabel"
        ):
            from tests.benchmarks import gpu_data

            # the CPU's other cores simulate the cohort while the GPU is measured
            n = max(1, (os.cpu_count() or 1) - 3)
            self.phantoms = gpu_data.start_phantoms(self.folder, self.profile, n)
        for name in self.chosen.parts:
            part = self.results["parts"].setdefault(name, {"records": []})
            if part.get("status") == "done":
                continue
            if time.time() > self.deadline:
                part.setdefault("status", "no time was left")
                continue
            started = time.time()
            try:
                part["status"] = PARTS[name](self, part) or "done"
            except ImportError as error:
                part["status"] = f"skipped: {error}"
            except Exception as error:
                part["status"] = f"failed: {type(error).__name__}: {one_line(error)}"
            part["seconds"] = round(time.time() - started, 1)
            part["hardware"] = self.results["hardware"]
            print(f"{name}: {part['status']}, {part['seconds']} s", flush=True)
            self.write()
            free_memory()
        self.write()
        if self.phantoms:
            self.phantoms.kill()
            self.phantoms.wait()

    def record(self, part, **values):
        """Keep one measurement, print it, and write all files anew."""
        part["records"].append(values)
        print(json.dumps({k: v for k, v in values.items() if k not in LONG}), flush=True)
        self.write()

    def write(self):
        from helpers.storage.files import write_whole

        text = json.dumps(self.results, indent=1) + "\n"
        write_whole(self.chosen.json, lambda file: file.write(text.encode()))
        from tests.benchmarks.gpu_report import as_markdown

        page = as_markdown(self.results)
        write_whole(self.chosen.markdown, lambda file: file.write(page.encode()))

    def wait_for_phantoms(self):
        if self.phantoms is None:
            raise ImportError("nibabel is not installed, so there is no phantom")
        if self.phantoms.wait(max(1, self.deadline - time.time())):
            raise RuntimeError("the phantom cohort could not be made")


# lists that only the JSON file shows
LONG = ("rows", "labels", "probability", "external", "history")


def hardware(device):
    """One line: what the figures were measured on."""
    if device.type != "cuda":
        from tests.benchmarks import training

        return training.hardware("cpu")
    driver = ""
    if shutil.which("nvidia-smi"):
        import subprocess

        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout
        driver = f"driver {answer.split()[0]}, " if answer.split() else ""
    memory = torch.cuda.get_device_properties(0).total_memory / GB
    return (
        f"{torch.cuda.get_device_name()}, {memory:.0f} GiB, {driver}CUDA {torch.version.cuda}, "
        f"torch {torch.__version__}, {os.cpu_count()} CPU cores, {date.today():%d %B %Y}"
    )


def measure_card(bench, part):
    """Copy bandwidth and matrix speed: what a perfect program could use of this card."""
    n_bytes = 2**22 if bench.chosen.tiny else 4 * GB
    source = torch.randint(0, 255, (n_bytes,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = timed(partial(target.copy_, source), bench.device)
    # every byte is read once and written once
    bench.record(part, what="copy", gb_per_second=2 * n_bytes / seconds / 1e9)
    del source, target
    n = 256 if bench.chosen.tiny else 8192
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if bench.device.type == "cuda":
        kinds |= {"tf32": torch.float32, "fp16": torch.float16}
    for name, kind in kinds.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, b = (torch.randn(n, n, device=bench.device).to(kind) for _ in range(2))
        seconds = timed(partial(torch.matmul, a, b), bench.device)
        bench.record(part, what=f"matrix {name}", tflops=2 * n**3 / seconds / 1e12)
    torch.backends.cuda.matmul.allow_tf32 = False


def timed(call, device, n=10):
    """Median seconds of a call, after three that do not count."""
    seconds = []
    for k in range(n + 3):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        seconds += [time.perf_counter() - started] if k >= 3 else []
    return float(np.median(seconds))


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def free_memory():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def one_line(error):
    return " ".join(str(error).split())[:300]


def build(name, options=()):
    """One of NAMES, with what the options of a variant change in it."""
    from helpers.learn.networks import BiLSTMClassifier
    from tests.benchmarks import training

    if name == "densenet121" and not importlib.util.find_spec("monai"):
        raise ImportError("monai is not installed")
    torch.manual_seed(0)
    if name not in ("bilstm", "lite0"):
        return training.build(name, [o for o in options if o != "still"])
    chunk = next((int(o.removeprefix("chunk")) for o in options if o.startswith("chunk")), None)
    encoder = "small" if name == "bilstm" else "imagenet"
    model = BiLSTMClassifier(encoder, checkpoint="checkpoint" in options, chunk=chunk)
    if "channels_last" in options:
        model.to(memory_format=torch.channels_last)
    return torch.compile(model) if "compile" in options else model


def step_configurations(tiny, is_gpu):
    """(network, batch, variant) of every line, the most wanted first."""
    precisions = PRECISIONS if is_gpu else PRECISIONS[:2]
    if tiny:
        return [(name, 2, "bf16") for name in NAMES] + [("bilstm", 2, "fp32+checkpoint")]
    found = [(name, 4, precision) for name in NAMES for precision in precisions]
    found += [(name, 4, f"bf16+{o}") for name in NAMES for o in ("channels_last", "checkpoint")]
    # still: without augmentation. chunk: slices encoded at a time
    found += [(name, 4, f"bf16+{o}") for name in ("bilstm", "lite0") for o in ("still", "chunk16")]
    return found + [(name, batch, "bf16") for batch in (2, 8, 16) for name in NAMES]


def is_known(part, **values):
    """Whether the part has a record with these values, from a run before."""
    return any(values.items() <= record.items() for record in part["records"])


def measure_steps(bench, part, configurations=None):
    """Seconds and memory of the course's own training step."""
    speeds = {r["what"]: r for r in bench.results["parts"].get("card", {}).get("records", [])}
    size, wanted = bench.size, configurations
    wanted = wanted or step_configurations(bench.chosen.tiny, bench.device.type == "cuda")
    costs = {}
    volumes = random_volumes(bench.folder, size)
    for name, batch, variant in wanted:
        found = {"model": name, "batch": batch, "variant": variant}
        if is_known(part, **found):
            continue
        if time.time() > bench.deadline:
            return "no time was left for all of it"
        found |= one_step(bench, name, batch, variant, volumes)
        if found["status"] == "ok":
            if name not in costs:
                costs[name] = step_costs(name, size)
            found |= shares(found, costs[name], speeds)
        bench.record(part, **found)


def random_volumes(folder, size):
    from tests.benchmarks import training

    path = folder / "volumes" / "volumes.npy"
    if not path.exists():
        path.parent.mkdir()
        training.random_volumes(path.parent, 16, size)
    return str(path)


def one_step(bench, name, batch, variant, volumes, steps=8):
    """The record of one configuration, by the step of `helpers.learn.training.fit`."""
    from tests.benchmarks import training

    free_memory()
    precision, *options = variant.split("+")
    is_gpu = bench.device.type == "cuda"
    job = {"model": name, "batch": batch, "variant": variant, "volumes": volumes}
    job |= {"size": list(bench.size), "device": bench.device.type, "seconds": 3.0}
    job |= {"warm_up": 3 if is_gpu else 1, "steps": steps if is_gpu else 2}
    job |= {"build": build, "is_still": "still" in options}
    found = training.measure(job)
    if found["status"] == "ok":
        found["seconds"] = float(np.median(found.pop("steps")))
    return found


def step_costs(name, size):
    """Of one scan: operations of a step, and bytes kept for the backward pass in fp32.

    Counted on the meta device: convolutions and matrix products, forward and backward.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from helpers.learn.devices import bytes_kept

    model = build(name)
    kept = bytes_kept(model, (1, *size))
    twin = copy.deepcopy(model).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        twin(torch.empty((1, *size), device="meta"))[0].sum().backward()
    return {"flops": counter.get_total_flops(), "kept_bytes": kept}


def shares(found, costs, speeds):
    """How much of the card a step uses, of its matrix speed and of its bandwidth at least.

    At least: what the forward pass keeps is written once and read once; more is moved than that.
    Convolutions in fp32 use TF32 on cards that have it.
    """
    precision = found["variant"].split("+")[0]
    is_half = precision != "fp32"
    tflops = costs["flops"] * found["batch"] / found["seconds"] / 1e12
    moved = 2 * costs["kept_bytes"] * (0.5 if is_half else 1) * found["batch"] / 1e9
    result = {"tflops": tflops, "gb_per_second": moved / found["seconds"]}
    known = speeds.get("matrix tf32" if precision == "fp32" else f"matrix {precision}")
    known = known or speeds.get(f"matrix {precision}")
    if known:
        result["share_of_matrix_speed"] = tflops / known["tflops"]
    if "copy" in speeds:
        result["share_of_bandwidth"] = result["gb_per_second"] / speeds["copy"]["gb_per_second"]
    return result


def measure_small_card(bench, part):
    """The largest batch that trains within the memory of a 16 GB card."""
    if bench.device.type != "cuda":
        return "skipped: needs a GPU"
    total = torch.cuda.get_device_properties(0).total_memory / GB
    volumes = random_volumes(bench.folder, bench.size)
    torch.cuda.set_per_process_memory_fraction(min(1.0, CARD_GB / total))
    try:
        for name in NAMES:
            for variant in ("fp16", "fp16+checkpoint", "fp32"):
                if is_known(part, model=name, variant=variant):
                    continue
                for batch in (16, 8, 4, 2, 1):
                    if time.time() > bench.deadline:
                        return "no time was left for all of it"
                    found = one_step(bench, name, batch, variant, volumes, steps=2)
                    if found["status"] != "out of memory":
                        break
                fits = batch if found["status"] == "ok" else 0
                found = {key: found.get(key) for key in ("status", "own_gb", "seconds")}
                bench.record(part, model=name, variant=variant, largest_batch=fits, **found)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measure_features(bench, part):
    """The frozen encoder over the whole cohort; the features are kept for the trainings."""
    from helpers.learn.features import encode_scans
    from helpers.learn.networks import Lite0Encoder

    volumes = phantom_volumes(bench)
    encoder = Lite0Encoder()
    is_gpu, n = bench.device.type == "cuda", max(2, len(volumes) // 4)
    # the first one sees all scans, and its features are kept
    wanted = {"fp16" if is_gpu else "bf16": len(volumes), "fp32": n}
    wanted |= {"bf16": n} if is_gpu else {}
    seen = {}
    for precision, n in wanted.items():
        encode_scans(encoder, volumes[:2], device=bench.device.type, precision=precision)
        free_memory()
        started = time.perf_counter()
        seen[precision] = encode_scans(
            encoder, volumes[:n], device=bench.device.type, precision=precision
        )
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated() / GB if bench.device.type == "cuda" else None
        found = {"precision": precision, "scans": n, "seconds": seconds, "peak_gb": peak}
        bench.record(part, **found, megabytes=seen[precision].nbytes / 1e6)
    np.save(bench.folder / "features.npy", seen[next(iter(wanted))])
    exact = seen.pop("fp32").astype(np.float64)
    for precision, found in seen.items():
        difference = found[: len(exact)].astype(np.float64) - exact
        error = np.linalg.norm(difference) / np.linalg.norm(exact)
        bench.record(part, what=f"{precision} against fp32, relative", error=float(error))


def phantom_volumes(bench):
    """The phantom cohort, (N, D, H, W) uint8, in memory."""
    from tests.benchmarks import gpu_data

    bench.wait_for_phantoms()
    return np.array(gpu_data.load_phantoms(bench.folder)[0])


def measure_agreement(bench, part):
    """Loss and gradients of one scan beside those of the CPU in fp32."""
    scan = torch.from_numpy(phantom_volumes(bench)[:1]).float() / 255
    for name in NAMES:
        if is_known(part, model=name):
            continue
        try:
            compare_with_cpu(bench, part, name, scan)
        except (ImportError, RuntimeError) as error:
            bench.record(part, model=name, status=one_line(error))


def compare_with_cpu(bench, part, name, scan):
    from helpers.learn.devices import autocast
    from helpers.learn.training import weighted_loss

    model, reference = build(name), None
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    precisions = PRECISIONS if bench.device.type == "cuda" else ("bf16",)
    for device, precision in [("cpu", "fp32"), *((bench.device.type, p) for p in precisions)]:
        twin = copy.deepcopy(model).to(device).train()
        with autocast(torch.device(device), precision):
            logit, _ = twin(scan.to(device))
        loss = weighted_loss(logit, torch.ones(1, device=device), 1.0)
        loss.backward()
        gradient = torch.cat([p.grad.double().cpu().flatten() for p in twin.parameters()])
        if reference is None:
            reference = loss.item(), gradient
            continue
        error = (gradient - reference[1]).norm() / reference[1].norm()
        found = {"model": name, "precision": precision, "loss": loss.item()}
        bench.record(part, **found, cpu_loss=reference[0], gradient_error=error.item())


def measure_mechanics(bench, part):
    """Loading, an overflow made on purpose, determinism and resuming, NCCL."""
    for check in (measure_loading, provoke_overflow, check_resume, check_nccl):
        try:
            check(bench, part)
        except ImportError as error:
            bench.record(part, what=check.__name__, status=f"skipped: {error}")
        except Exception as error:
            bench.record(part, what=check.__name__, status=f"failed: {one_line(error)}")


def measure_loading(bench, part):
    """A batch of four from the GPU's memory, and from the CPU's by way of pinned memory."""
    from helpers.learn.augmentation import augment
    from helpers.learn.devices import Scans

    volumes = np.load(random_volumes(bench.folder, bench.size), mmap_mode="r")
    rows = np.array([3, 1, 7, 5])
    for name, keep in {"resident": True, "pinned": False}.items():
        scans = Scans(volumes, bench.device, keep=keep)
        seconds = timed(partial(scans.take, rows), bench.device)
        bench.record(part, what=f"load four scans, {name}", milliseconds=1000 * seconds)
    batch, generator = scans.take(rows), torch.Generator().manual_seed(0)
    seconds = timed(partial(augment, batch, generator), bench.device)
    bench.record(part, what="augment four scans", milliseconds=1000 * seconds)


def provoke_overflow(bench, part):
    """Train in fp16 with a scale at which every gradient overflows, until the scaler has found
    a better one: no weight may change before, and none become NaN."""
    from helpers.learn.devices import Scans
    from helpers.learn.networks import BiLSTMClassifier
    from helpers.learn.training import parameter_groups, train_one_epoch

    if bench.device.type != "cuda":
        bench.record(part, what="fp16 overflow", status="skipped: needs a GPU")
        return
    volumes = np.load(random_volumes(bench.folder, bench.size))
    torch.manual_seed(0)
    model = BiLSTMClassifier().to(bench.device)
    parts = {
        "model": model,
        "optimizer": torch.optim.AdamW(parameter_groups(model, 1e-2)),
        "scaler": torch.amp.GradScaler("cuda", init_scale=2.0**40),
    }
    settings = {"batch_size": 4, "epochs": 12, "warmup": 0.0, "seed": 0, "clip": 1.0}
    settings |= {"schedule": "constant", "learning_rate": 1e-3}
    labels = torch.tensor(np.arange(16) % 2, dtype=torch.float32)
    scans = Scans(volumes, bench.device, keep=True)
    before, n_without_change, losses = flat_weights(model), 0, []
    for epoch in range(12):
        row = train_one_epoch(
            *(model, parts, scans, labels, np.arange(16), 1.0, "fp16", settings, epoch, 0.0)
        )
        losses.append(row["train_loss"])
        n_without_change += bool(torch.equal(before, flat_weights(model)))
    after = flat_weights(model)
    bench.record(
        part,
        what="fp16 overflow",
        status="ok" if bool(after.isfinite().all()) and 0 < n_without_change < 12 else "failed",
        epochs_without_a_step=n_without_change,
        scale_from=2.0**40,
        scale_to=parts["scaler"].get_scale(),
        first_loss=losses[0],
        last_loss=losses[-1],
    )


def flat_weights(model):
    return torch.cat([p.detach().float().flatten() for p in model.parameters()]).cpu()


def check_resume(bench, part):
    """Four epochs in one go, once more, and interrupted after two: the same weights?"""
    from helpers.learn.networks import BiLSTMClassifier
    from helpers.learn.training import fit

    volumes = np.load(random_volumes(bench.folder, bench.size))
    labels, found = np.arange(16) % 2, {}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for name, calls in {"one": [None], "again": [None], "resumed": [2, None]}.items():
            torch.manual_seed(0)
            model = BiLSTMClassifier()
            for n in calls:
                fit(
                    *(model, volumes, labels, np.arange(12), np.arange(12, 16)),
                    bench.folder / f"resume-{name}",
                    epochs=4,
                    batch_size=4,
                    device=bench.device.type,
                    max_epochs_this_call=n,
                )
            found[name] = flat_weights(model)
    finally:
        torch.use_deterministic_algorithms(False)
    for name in ("again", "resumed"):
        difference = (found[name] - found["one"]).abs().max().item()
        bench.record(part, what=f"{name}, largest difference of a weight", difference=difference)


def check_nccl(bench, part):
    """The gradient that DistributedDataParallel gives on one rank, beside the plain one.

    With two cards, two ranks of torchrun train as well, and their losses stand beside one's.
    """
    import torch.distributed as dist

    backend = "nccl" if bench.device.type == "cuda" else "gloo"
    store = (bench.folder / "store").as_uri()
    volumes = torch.rand((2, *bench.size), generator=torch.Generator().manual_seed(0))
    model, gradients = build("bilstm").to(bench.device), []
    dist.init_process_group(backend, init_method=store, rank=0, world_size=1)
    try:
        for network in (model, nn.parallel.DistributedDataParallel(model)):
            model.zero_grad()
            torch.manual_seed(1)
            network(volumes.to(bench.device))[0].sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]).cpu())
    finally:
        dist.destroy_process_group()
    error = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    bench.record(part, what=f"{backend}, one rank, gradient error", difference=error.item())
    n_cards = torch.cuda.device_count()
    if n_cards >= 2:
        losses = [torchrun_loss(bench, n) for n in (1, 2)]
        bench.record(part, what="nccl, loss of one and of two ranks", losses=losses)


def torchrun_loss(bench, n):
    """The best validation loss that `n` ranks print."""
    import subprocess

    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}"]
    command += ["-m", "helpers.course.torchrun", "--profile", "tiny", "--dropout", "0"]
    command += ["--data-dir", str(bench.folder), "--runs-dir", str(bench.folder / f"ranks-{n}")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def train_on_scans(bench, part):
    """Cross-validation on the phantom cohort: frozen, fine-tuned and from scratch."""
    from tests.benchmarks import gpu_trainings

    bench.wait_for_phantoms()
    if not (bench.folder / "features.npy").exists():
        measure_features(bench, {"records": []})
    return run_jobs(bench, part, gpu_trainings.scan_jobs(sizes_of(bench)))


def train_on_images(bench, part):
    """COVID-CT or its twin: probe, fine-tuned Lite0, DenseNet169, small CNN, MoCo."""
    from tests.benchmarks import gpu_trainings

    held = gpu_trainings.read_images(bench.folder, bench.profile)
    part["about"] = (
        f"{held.data.caption} {len(held.data.images)} images with labels, {len(held.slices)} "
        f"without (for MoCo), {len(held.external)} of another collection; "
        f"{held.data.images.shape[-1]} pixels."
    )
    jobs = gpu_trainings.image_jobs(sizes_of(bench))
    return run_jobs(bench, part, jobs)


def sizes_of(bench):
    from tests.benchmarks import gpu_trainings

    return gpu_trainings.TINY if bench.chosen.tiny else gpu_trainings.FULL


def run_jobs(bench, part, jobs):
    """Do what the records do not have yet; returns a status unless all was done."""
    from tests.benchmarks import gpu_trainings

    known = [(r["kind"], r["which"]) for r in part["records"] if "error" not in r]
    part["records"] = [r for r in part["records"] if "error" not in r]
    todo = [job for job in jobs if job not in known or job[0] == "moco"]
    if all(job[0] == "moco" for job in todo):
        return None
    processes = bench.chosen.processes
    if processes is None:
        processes = 4 if bench.device.type == "cuda" else 0
    started = time.time()

    def tell(kind, which, answer):
        bench.record(part, kind=kind, which=which, at_a_time=max(1, processes), **answer)

    n_left = gpu_trainings.run_jobs(
        *(todo, bench.folder, bench.profile, sizes_of(bench), processes, bench.deadline, tell)
    )
    part["wall_seconds"] = part.get("wall_seconds", 0) + round(time.time() - started, 1)
    if n_left:
        return f"no time was left for {n_left} trainings"


def score_images(bench, part):
    """The scores of every network and split: of each seed, and of the seeds' mean. No training."""
    from helpers.course import images
    from helpers.scores.metrics import auc, auc_interval
    from tests.benchmarks import gpu_trainings

    held, groups = gpu_trainings.read_images(bench.folder, bench.profile), {}
    for record in bench.results["parts"].get("images", {"records": []})["records"]:
        if record["kind"] in ("images", "probe") and "error" not in record:
            which = record["which"]
            key = (which.get("network", "probe"), which.get("start", "imagenet"), which["split"])
            groups.setdefault(key, []).append(record)
    part["records"] = []
    for (network, start, split), records in groups.items():
        test = held.data.rows("test", split)
        each = np.array([r["probability"] for r in records])
        found = images.scores(held.data, each.mean(axis=0), split)
        line = {"network": network, "start": start, "split": split, "seeds": len(records)}
        line |= {k: v for k, v in found.items() if isinstance(v, tuple | float)}
        line["each_auc"] = [auc(held.data.labels[test], p[test]) for p in each]
        line["seconds"] = float(np.median([r["seconds"] for r in records]))
        outside = np.array([r["external"] for r in records if r["external"]])
        if len(outside):
            line["external_auc"] = auc_interval(held.external_labels, outside.mean(axis=0))
            line["each_external_auc"] = [auc(held.external_labels, p) for p in outside]
        bench.record(part, **line)


def measure_compile(bench, part):
    """torch.compile, last: compiling takes longer than many steps."""
    wanted = [(name, 4, "bf16+compile") for name in ("bilstm", "lite0")]
    if bench.chosen.tiny:
        return "skipped: not in tiny"
    return measure_steps(bench, part, wanted)


PARTS = {
    "card": measure_card,
    "steps": measure_steps,
    "small_card": measure_small_card,
    "features": measure_features,
    "agreement": measure_agreement,
    "mechanics": measure_mechanics,
    "scans": train_on_scans,
    "images": train_on_images,
    "scores": score_images,
    "compile": measure_compile,
}

if __name__ == "__main__":
    main()
