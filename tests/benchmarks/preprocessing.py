"""From a .nii.gz to 64 x 256 x 256: ours beside the usual ways, in one run on the same studies.

python -m tests.benchmarks.preprocessing [STUDY ...]

Time: a process and a thread for each way; every round takes each way in turn, so that a machine
that slows down slows all of them. Medians over rounds, ratios round by round. Memory: what the
first study adds to a fresh process at its peak, in multiples of the study as int16. Without
STUDY, two phantoms and what REAL_DATA_DIR holds. Libraries: tests/benchmarks/requirements.txt.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # read by the libraries in every worker
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402

SIZE = (64, 256, 256)
LIMITS = (-1000, 400)
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def ours(path):
    from helpers.ct.preprocessing import preprocess_fast

    return preprocess_fast(path, SIZE, LIMITS)


def ours_simple(path):
    from helpers.ct.preprocessing import preprocess

    return preprocess(path, SIZE, LIMITS)


def eight_bit_recipe(path):
    """8-bit cast of every slice, picture library's resize, random rotation, depth by zoom."""
    import nibabel
    from PIL import Image
    from scipy import ndimage

    volume = nibabel.load(path).get_fdata()
    slices = [Image.fromarray(volume[:, :, k]).convert("L") for k in range(volume.shape[2])]
    cube = np.stack([np.asarray(image.resize(SIZE[1:])) for image in slices], axis=-1)
    angle = float(np.random.default_rng(0).uniform(-20, 20))
    cube = ndimage.rotate(cube, angle, reshape=False)
    return ndimage.zoom(cube, (1, 1, SIZE[0] / cube.shape[2]), order=1)


def keras_recipe(path):
    """Clip, scale, rotate by 90 degrees and zoom, as the Keras example prints it."""
    import nibabel
    from scipy import ndimage

    volume = nibabel.load(path).get_fdata()
    volume[volume < LIMITS[0]] = LIMITS[0]
    volume[volume > LIMITS[1]] = LIMITS[1]
    volume = ((volume - LIMITS[0]) / (LIMITS[1] - LIMITS[0])).astype("float32")
    volume = ndimage.rotate(volume, 90, reshape=False)
    factors = [n / m for n, m in zip((*SIZE[1:], SIZE[0]), volume.shape, strict=True)]
    return ndimage.zoom(volume, factors, order=1)


def monai_transforms(path):
    import torch
    from monai import transforms

    torch.set_num_threads(1)
    steps = [
        transforms.LoadImage(image_only=True, ensure_channel_first=True),
        transforms.ScaleIntensityRange(*LIMITS, 0.0, 1.0, clip=True),
        transforms.Resize((*SIZE[1:], SIZE[0]), mode="trilinear"),
    ]
    return transforms.Compose(steps)(str(path))


def torchio_transforms(path):
    import torch
    import torchio

    torch.set_num_threads(1)
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    steps = [
        torchio.Clamp(*LIMITS),
        torchio.Resize((*SIZE[1:], SIZE[0])),
        torchio.RescaleIntensity((0, 1), in_min_max=LIMITS),
    ]
    return torchio.Compose(steps)(torchio.ScalarImage(path)).data


def unpack_zlib(path):
    return gzip.decompress(Path(path).read_bytes())


def unpack_isal(path):
    from isal import igzip

    return igzip.decompress(Path(path).read_bytes())


def unpack_libdeflate(path):
    import deflate

    return deflate.gzip_decompress(Path(path).read_bytes())


def read_simpleitk(path):
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    return SimpleITK.ReadImage(str(path))


WAYS = {
    "ours": ours,
    "ours, as notebook 02 builds it": ours_simple,
    "the 8-bit recipe of 2021": eight_bit_recipe,
    "the Keras recipe": keras_recipe,
    "MONAI": monai_transforms,
    "TorchIO": torchio_transforms,
}
UNPACKING = {
    "unpacking alone, zlib": unpack_zlib,
    "unpacking alone, isal": unpack_isal,
    "unpacking alone, libdeflate": unpack_libdeflate,
    "SimpleITK's reader": read_simpleitk,
}
ALL = WAYS | UNPACKING


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", help=".nii.gz files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cohort", type=int, default=200, help="studies of the whole-cohort run")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--figure", help="draw the figure into this file")
    options = parser.parse_args()
    print(hardware())
    with tempfile.TemporaryDirectory() as folder:
        results = {"hardware": hardware()}
        for name, paths in chosen_studies(options.studies, Path(folder)).items():
            print(f"\n{name}: {len(paths)} studies, {packed_mb(paths):.1f} MB packed on average")
            results[name] = measure(paths, options.rounds)
            print(table(results[name]))
            verdict(results[name])
            if options.cohort:
                seconds = whole_cohort(paths, options.cohort, Path(folder))
                results[name]["cohort"] = {"studies": options.cohort, "seconds": seconds}
                print(f"preprocess_cohort, {options.cohort} studies, {CPUS} cores: {seconds:.1f} s")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2))
    if options.figure:
        draw(results, options.figure)


def hardware():
    names = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    names = [line.split(":")[1].strip() for line in names if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {CPUS} cores, Python {platform.python_version()}, {date.today()}"


def chosen_studies(given, folder):
    """Studies by the name of their group; phantoms are made in `folder`."""
    if given:
        return {"given": [Path(path) for path in given]}
    from helpers.phantom import simulate

    simulate.make_cohort(folder / "phantom", {"CT-0": 1, "CT-2": 1}, 512)
    groups = {"phantom": sorted((folder / "phantom").glob("studies/*/*.nii.gz"))}
    if "REAL_DATA_DIR" in os.environ:
        real = Path(os.environ["REAL_DATA_DIR"], "volumes").glob("mosmedlike_*_LAS_512x512x[34]*")
        groups["real"] = sorted(real)
    return groups


def packed_mb(paths):
    return statistics.mean(path.stat().st_size for path in paths) / 1e6


def measure(paths, rounds):
    """Seconds a study (one list a way, an entry a round), on all cores, and peak memory."""
    pools, found = {}, {}
    spawn = multiprocessing.get_context("spawn")
    for name in ALL:
        pool = ProcessPoolExecutor(1, spawn)
        try:
            found[name] = {"memory": pool.submit(peak_memory, name, paths[0]).result()}
            pools[name] = pool
        except ImportError as error:
            print(f"{name}: left out, {error.name} is not installed", flush=True)
    for name, pool in pools.items():
        pool.submit(seconds_of, name, paths).result()  # warm: libraries loaded, file in memory
        found[name]["one"] = []
    for _ in range(rounds):
        for name, pool in pools.items():
            found[name]["one"].append(pool.submit(seconds_of, name, paths).result())
    for name, pool in pools.items():
        pool.shutdown()
        if name in WAYS:
            with ProcessPoolExecutor(CPUS, spawn) as many:
                list(many.map(seconds_of, [name] * CPUS, [paths[:1]] * CPUS))
                jobs = paths * (2 * CPUS)
                started = time.perf_counter()
                list(many.map(seconds_of, [name] * len(jobs), [[path] for path in jobs]))
                found[name]["all"] = (time.perf_counter() - started) / len(jobs)
    return found


def seconds_of(name, paths):
    """Mean seconds a study."""
    started = time.perf_counter()
    for path in paths:
        ALL[name](path)
    return (time.perf_counter() - started) / len(paths)


def peak_memory(name, path):
    """What one study adds to this fresh process at its peak, as a multiple of its int16 volume."""
    import nibabel

    shape = nibabel.load(path).shape
    with tempfile.TemporaryDirectory() as folder:
        # libraries are loaded by a small study first
        small = np.zeros((32, 32, 8), np.int16)
        small[::2], small[0] = -900, -1000
        tiny = Path(folder, "tiny.nii.gz")
        nibabel.save(nibabel.Nifti1Image(small, np.diag([-1, 1, 8, 1])), tiny)
        ALL[name](tiny)
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = kilobytes(status, "VmRSS")
    result = ALL[name](path)
    after = kilobytes(status, "VmHWM")
    del result
    return (after - before) * 1024 / (2 * np.prod(shape))


def kilobytes(status, field):
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def ratio(found, name, other="ours"):
    """Median over the rounds of how many times longer `name` takes than `other`."""
    pairs = zip(found[name]["one"], found[other]["one"], strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def fastest_unpacking(found):
    here = [name for name in UNPACKING if name in found and "unpacking" in name]
    return min(here, key=lambda name: statistics.median(found[name]["one"]))


def table(found):
    """A line a way: ms a study, ms on all cores, times ours, peak memory."""
    head = f"ms a study on {CPUS} cores"
    lines = [f"{'':32}{'ms a study':>11}{'times ours':>11}{head:>24}{'memory':>9}"]
    for name, figures in found.items():
        ms = 1000 * statistics.median(figures["one"])
        many = f"{1000 * figures['all']:.0f}" if "all" in figures else ""
        memory = "" if figures["memory"] is None else f"{figures['memory']:.1f}x"
        times = ratio(found, name)
        lines.append(f"{name:32}{ms:11.0f}{times:11.1f}{many:>24}{memory:>9}")
    return "\n".join(lines)


def verdict(found):
    """How far ours is from the limit, and how much of its time is unpacking."""
    limit = fastest_unpacking(found)
    print(f"ours takes {1 / ratio(found, limit):.2f} times as long as {limit}:", end=" ")
    print(f"{ratio(found, limit):.0%} of its time would be needed to unpack the file at best")


def whole_cohort(paths, n_studies, folder):
    """Seconds of `cohort.preprocess_cohort` from nothing to the finished cache."""
    from helpers.ct.cache import preprocess_cohort
    from helpers.ct.cohort import find_studies

    with tempfile.TemporaryDirectory(dir=folder) as root:
        link_cohort(paths, n_studies, Path(root))
        studies = find_studies(root)
        os.environ["TQDM_DISABLE"] = "1"
        started = time.perf_counter()
        preprocess_cohort(studies, root, Path(root, "cache"), SIZE, LIMITS)
        return time.perf_counter() - started


def link_cohort(paths, n_studies, root):
    """A cohort of `n_studies` in MosMedData's layout that takes the room of the given few."""
    target = root / "studies/CT-0"
    target.mkdir(parents=True)
    for k in range(n_studies):
        source = paths[k % len(paths)].resolve()
        try:
            os.link(source, target / f"study_{k:05}.nii.gz")
        except OSError:
            os.symlink(source, target / f"study_{k:05}.nii.gz")


def draw(results, path):
    """Bars: times ours, one process, one panel a group of studies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = {name: found for name, found in results.items() if name != "hardware"}
    figure, panels = plt.subplots(1, len(groups), figsize=(9, 3.4), sharey=True, squeeze=False)
    for axes, (group, found) in zip(panels[0], groups.items(), strict=True):
        names = [name for name in found if name in ALL][::-1]
        values = [1000 * statistics.median(found[name]["one"]) for name in names]
        colours = ["C1" if n == "ours" else "0.75" if n in UNPACKING else "C0" for n in names]
        bars = axes.barh(names, values, color=colours)
        times = [
            f" {value:.0f} ms, {ratio(found, n):.1f}x"
            for value, n in zip(values, names, strict=True)
        ]
        axes.bar_label(bars, times, fontsize=8)
        axes.set_xlim(0, 1.45 * max(values))
        axes.set_title(f"{group} studies", fontsize=10)
        axes.set_xlabel("ms a study, one process")
    figure.text(0.01, 0.01, results["hardware"], fontsize=7)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
