"""The data that the GPU benchmark takes along: real 2-D images in one small file, and phantoms.

python -m tests.benchmarks.gpu_data --pack data/gpu.zip --images ../COVID-CT \
    --slices ../LUNA16-slices --external ../SARS-CoV-2-CT

The file holds other people's images: keep it out of the repository. It is a zip of lossless WebP
images, letterboxed to 224 pixels, and of two tables.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from helpers.course import images, sources  # noqa: E402
from helpers.covidct import covid_ct  # noqa: E402
from helpers.storage.files import write_whole  # noqa: E402

COLUMNS = ["image", "label", "part", "clean_part", "patient"]
SEED = 2020  # of the phantom cohort, as in the course


@dataclass
class Images:
    """What a packed file holds. data: the labelled collection; slices: uint8 (N, 1, H, W) without
    labels; external: images of another collection, with external_labels."""

    data: images.ImageData
    slices: np.ndarray
    external: np.ndarray
    external_labels: np.ndarray = field(default_factory=lambda: np.empty(0, int))


def pack(path, collection, slices="", external="", pixels=224, profile="full", data_dir="data"):
    """Write a file for `unpack`; returns its size in bytes.

    collection: as `images.prepare` takes it. slices: a folder of PNG images. external: a folder
    with the folders COVID/ and non-COVID/ of PNG images. Either may be "".
    """
    data = images.prepare(collection, profile, data_dir, size=pixels)
    sets, labels = {"labelled": data.images[:, 0]}, []
    if slices:
        sets["slices"] = images.read_slices(slices, pixels)
    if external:
        outside, labels = images.read_elsewhere(external, pixels)
        sets["external"] = outside[:, 0]
    about = {
        "caption": data.caption,
        "run_name": data.run_name,
        "external_labels": [*map(int, labels)],
    }
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive:
        archive.writestr("about.json", json.dumps(about))
        archive.writestr("labelled.csv", data.table[COLUMNS].to_csv(index=False))
        for name, squares in sets.items():
            for k, square in enumerate(squares):
                Image.fromarray(square).save(image := io.BytesIO(), "WEBP", lossless=True)
                archive.writestr(f"{name}/{k:05}.webp", image.getvalue())
    write_whole(path, lambda file: file.write(packed.getvalue()))
    return len(packed.getvalue())


def unpack(path, profile="full") -> Images:
    """Read what `pack` wrote."""
    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read("about.json"))
        table = pd.read_csv(io.BytesIO(archive.read("labelled.csv")), keep_default_na=False)
        sets = {"labelled": [], "slices": [], "external": []}
        for name in sorted(archive.namelist()):
            if name.endswith(".webp"):
                with Image.open(io.BytesIO(archive.read(name)), formats=["WEBP"]) as image:
                    sets[name.split("/")[0]].append(np.asarray(image.convert("L")))
    size = sets["labelled"][0].shape
    stacked = {
        name: np.array(squares, np.uint8).reshape(-1, 1, *size) for name, squares in sets.items()
    }
    profile = sources.PROFILES[profile].images
    data = images.ImageData(
        table, stacked["labelled"], about["caption"], profile, about["run_name"]
    )
    labels = np.array(about["external_labels"], int)
    return Images(data, stacked["slices"], stacked["external"], labels)


def twin(profile, data_dir) -> Images:
    """The phantom's twin of the collection, for where no packed file is given."""
    data = images.prepare("phantom", profile, data_dir)
    nothing = np.empty((0, *data.images.shape[1:]), np.uint8)
    return Images(data, nothing, nothing)


def start_phantoms(folder, profile, processes) -> subprocess.Popen:
    """Begin to simulate and preprocess a profile's whole cohort in the background."""
    command = [sys.executable, "-m", "tests.benchmarks.gpu_data", "--phantoms", str(folder)]
    command += ["--profile", profile, "--processes", str(processes)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TQDM_DISABLE": "1"})


def load_phantoms(folder) -> tuple[np.ndarray, np.ndarray]:
    """Volumes (N, D, H, W) and labels (N,) that `make_phantoms` wrote."""
    return np.load(Path(folder) / "volumes.npy", mmap_mode="r"), np.load(folder / "labels.npy")


def make_phantoms(folder, profile, processes):
    """The profile's cohort as the course makes it, without the files between."""
    from threadpoolctl import threadpool_limits

    from helpers.ct.cohort import TASKS
    from helpers.phantom import simulate
    from helpers.storage.processes import start_workers

    sizes = sources.PROFILES[profile]
    jobs = simulate._plan(sizes.counts, SEED)
    labels = np.array([TASKS["ct0-ct23"][job["category"]] for job in jobs])
    volumes = np.lib.format.open_memmap(
        Path(folder) / "unfinished.npy", "w+", np.uint8, (len(jobs), *sizes.size)
    )
    with threadpool_limits(1), start_workers(processes) as pool:
        arguments = (sizes.matrix, sizes.size)
        tasks = {pool.submit(make_phantom, job, *arguments): k for k, job in enumerate(jobs)}
        for task in as_completed(tasks):
            volumes[tasks[task]] = task.result()
    volumes.flush()
    np.save(Path(folder) / "labels.npy", labels)
    os.replace(Path(folder) / "unfinished.npy", Path(folder) / "volumes.npy")


def make_phantom(job, matrix, size) -> np.ndarray:
    """One study of the cohort, preprocessed."""
    from helpers.ct.preprocessing import preprocess_hu
    from helpers.phantom.simulate import make_study

    study = make_study(job["seed"], job["category"], matrix, None, job["scanner"])
    return preprocess_hu(study.hu, study.spacing, size)


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", type=Path, help="the file to write")
    parser.add_argument("--images", default="covid-ct", help="phantom, covid-ct or a folder")
    parser.add_argument("--slices", default="", help="a folder of PNG images without labels")
    parser.add_argument("--external", default="", help="a folder with COVID/ and non-COVID/")
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--phantoms", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--profile", default="full", choices=sources.PROFILES)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    chosen = parser.parse_args(words)
    if chosen.phantoms:
        make_phantoms(chosen.phantoms, chosen.profile, chosen.processes)
        return
    if not chosen.pack:
        parser.error("give --pack FILE")
    try:
        with tempfile.TemporaryDirectory() as folder:
            n_bytes = pack(
                *(chosen.pack, chosen.images, chosen.slices, chosen.external, chosen.pixels),
                *(chosen.profile, "data" if chosen.images == "covid-ct" else folder),
            )
    except covid_ct.CovidCTError as error:
        parser.error(str(error))
    print(f"{chosen.pack}: {n_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
