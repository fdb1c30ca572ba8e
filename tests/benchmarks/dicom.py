"""What it takes to open a DICOM series and to list a folder of them, beside other readers.

python -m tests.benchmarks.dicom    (some minutes, 0.5 GB on the disk)
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helpers.ct import cohort, dicom  # noqa: E402
from helpers.ct.studies import Study
from helpers.phantom import dicom_export, simulate


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--series", type=int, default=100, help="to be listed, 40 slices each")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(arguments)
    few = simulate.make_study(2020, "CT-3", asked.matrix, n_slices=min(40, asked.slices)).hu
    hu = few[np.arange(asked.slices) % len(few)]
    with tempfile.TemporaryDirectory() as name:
        folder = dicom_export.write(dicom_export.slices(hu, (1, 0.7, 0.7)), Path(name, "one"))
        ways = {
            "ours": lambda: Study(folder).hu,
            "SimpleITK's reader of series": lambda: by_simpleitk(folder),
            "dcm2niix, to .nii": lambda: by_dcm2niix(folder, Path(name, "out")),
        }
        seconds = {way: [] for way in ways}
        for _ in range(asked.rounds):
            for way, read in ways.items():  # in turn, so that noise meets all of them
                started = time.perf_counter()
                read()
                seconds[way].append(time.perf_counter() - started)
        print(f"{os.cpu_count()} cores; a series of {len(hu)} slices of {asked.matrix} pixels")
        ours = statistics.median(seconds["ours"])
        for way, times in seconds.items():
            median = statistics.median(times)
            print(f"{way:30}{median:7.2f} s{median / ours:7.1f} times ours")
        for k in range(asked.series):
            small = few[:, ::32, ::32]
            slices = dicom_export.slices(small, (8, 20, 20), patient=str(k), seed=k)
            dicom_export.write(slices, Path(name, "many", ("a", "b")[k % 2], f"{k}"))
        for what, listed in {
            "as a cohort": lambda: cohort.find_studies(Path(name, "many")),
            "every header": lambda: dicom.list_series(Path(name, "many")),
        }.items():
            started = time.perf_counter()
            n_found, elapsed = len(listed()), time.perf_counter() - started
            print(f"{n_found} series of {len(few)} slices, {what}: {elapsed:.2f} s")


def by_simpleitk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def by_dcm2niix(folder, target):
    program = Path(sys.executable).with_name("dcm2niix")
    target.mkdir(exist_ok=True)
    command = [program, "-w", "1", "-f", "made", "-o", target, folder]
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
