"""What a step of the viewer costs, next to the usual ways: milliseconds and kB a frame.

python -m tests.benchmarks.viewer [STUDY]
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from helpers.ct import studies
from helpers.figures.rendering import PRESETS, encode, render
from helpers.phantom import simulate

LEVEL, WIDTH = PRESETS["lung"]
SIZE = 512


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", help="a NIfTI file; default: a phantom made in memory")
    parser.add_argument("--repeats", type=int, default=3, help="times through all slices")
    arguments = parser.parse_args()
    hu, spacing, mask, name = load(arguments.study)
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in hu.shape)
    heat = np.exp(-4 * (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2))
    options = {"spacing": spacing, "level": LEVEL, "width": WIDTH, "size": SIZE}
    laid_over = {"mask": mask, "heat": heat}
    redraw = redrawn_figure(hu)
    ways = {
        "JPEG (the viewer)": lambda k: encode(render(hu, "axial", k, **options)),
        "JPEG with mask and heat": lambda k: encode(render(hu, "axial", k, **options, **laid_over)),
        "PNG": lambda k: encode(render(hu, "axial", k, **options), "png"),
        "matplotlib, set_data, PNG": redraw,
        "matplotlib, new figure, PNG": lambda k: redrawn_figure(hu)(k),
    }
    print(f"{name}: {' x '.join(map(str, hu.shape[::-1]))}, frames of {SIZE} x {SIZE} pixels")
    print(f"{os.cpu_count()} cores, median of {arguments.repeats * len(hu)} frames\n")
    print(f"{'':28}{'ms a frame':>11}{'kB a frame':>11}{'times ours':>11}")
    ours = None
    for way, draw in ways.items():
        ms, size = measure(draw, len(hu), arguments.repeats)
        ours = ours or ms
        print(f"{way:28}{ms:11.1f}{size:11.0f}{ms / ours:11.1f}", flush=True)


def load(path):
    """HU, spacing, something to lay over as a mask, and a name."""
    if path is None:
        study = simulate.make_study(2020, "CT-3", matrix=512, n_slices=40)
        return study.hu, study.spacing, study.mask > 0, "phantom"
    study = studies.read_study(path)
    return study.hu, study.spacing, (study.hu > -700) & (study.hu < -300), study.path.name


def redrawn_figure(hu):
    """A function that shows slice k in one matplotlib figure and returns the PNG of it."""
    figure = Figure(figsize=(SIZE / 100, SIZE / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    low = LEVEL - WIDTH / 2
    image = axes.imshow(hu[0], cmap="gray", vmin=low, vmax=low + WIDTH)

    def draw(k):
        image.set_data(hu[k])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()

    return draw


def measure(draw, n, repeats):
    """Median milliseconds and median kB over all slices, after one frame to warm up."""
    draw(0)
    times, sizes = [], []
    for k in list(range(n)) * repeats:
        start = time.perf_counter()
        content = draw(k)
        times.append(time.perf_counter() - start)
        sizes.append(len(content))
    return statistics.median(times) * 1e3, statistics.median(sizes) / 1e3


if __name__ == "__main__":
    main()
