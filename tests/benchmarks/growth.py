"""How preprocessing grows with the number of studies: seconds, peak memory, opening the cache.

python -m tests.benchmarks.growth [--counts 10 100 1000] [--open 1110]

Twenty phantom studies at full size, 512 x 512, stand under as many names as wanted, to 64 x 256 x
256. The cache takes 4.2 MB a study, twice that while it is put together.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.preprocessing import CPUS, SIZE, hardware, link_cohort  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--open", type=int, default=1110, help="studies of the cache to open")
    parser.add_argument("--distinct", type=int, default=20, help="studies that are really made")
    parser.add_argument("--folder", help="where to work; 15 GB free for 1110 studies")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    from helpers.phantom import simulate

    print(hardware())
    results = {"hardware": hardware(), "runs": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        simulate.make_cohort(Path(folder, "made"), {"CT-0": options.distinct}, 512)
        made = sorted(Path(folder, "made").glob("studies/*/*.nii.gz"))
        print(f"\n{'studies':>8}{'s':>9}{'ms each':>9}{'MB at peak':>12}{'... a worker':>14}")
        for count in options.counts:
            with tempfile.TemporaryDirectory(dir=folder) as root:
                found = in_new_process(build, made, count, root)
            results["runs"].append(found)
            each = 1000 * found["seconds"] / count
            print(f"{count:8}{found['seconds']:9.1f}{each:9.0f}{found['main_mb']:12.0f}", end="")
            print(f"{found['worker_mb']:14.0f}", flush=True)
        if options.open:
            with tempfile.TemporaryDirectory(dir=folder) as root:
                in_new_process(build, made, options.open, root)
                results["open"] = in_new_process(open_cache, root)
            print(
                f"\n{options.open} studies: cache opened and first batch of 4 scans out in", end=" "
            )
            print(f"{results['open']['seconds']:.2f} s, imports not counted")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2))


def in_new_process(function, *arguments):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def build(made, count, root):
    """Preprocess `count` studies; peaks of resident memory, of this process and of a worker."""
    import psutil

    from helpers.ct.cache import preprocess_cohort
    from helpers.ct.cohort import find_studies

    link_cohort(made, count, Path(root))
    table = find_studies(root)
    me, peaks, stop = psutil.Process(), {"main": 0, "worker": 0}, threading.Event()

    def watch():
        while not stop.wait(0.02):
            peaks["main"] = max(peaks["main"], me.memory_info().rss)
            for child in me.children():
                try:
                    peaks["worker"] = max(peaks["worker"], child.memory_info().rss)
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    preprocess_cohort(table, root, Path(root, "cache"), SIZE, workers=CPUS)
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    megabytes = {f"{name}_mb": peak / 1e6 for name, peak in peaks.items()}
    return {"studies": count, "seconds": seconds, **megabytes}


def open_cache(root):
    """Seconds from a folder of studies with a finished cache to a batch of four scans."""
    import numpy as np
    import torch

    from helpers.ct.cache import preprocess_cohort
    from helpers.ct.cohort import find_studies
    from helpers.learn.devices import Scans

    started = time.perf_counter()
    cache = preprocess_cohort(find_studies(root), root, Path(root, "cache"), SIZE)
    rows = np.linspace(0, len(cache.volumes) - 1, 4).astype(int)
    batch = Scans(cache.volumes, torch.device("cpu")).take(rows)
    assert batch.shape == (4, *SIZE)
    return {"studies": len(cache.volumes), "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
