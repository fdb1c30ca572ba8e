"""COVID-CT's classifiers on another collection: the tables of docs/transfer.md.

python -m tests.benchmarks.pictures --images COVID-CT --external FOLDER --slices FOLDER

Trained on the official training and validation parts, without any choice by another collection.
--external: a folder with COVID/ and non-COVID/. --slices: clear lungs as PNG. No network is
trained: a few minutes on two cores. What the encoder saw is kept below --data-dir.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import nn

from helpers.course import images
from helpers.covidct import lungs
from helpers.learn.features import encode_scans
from helpers.learn.networks import Lite0Encoder
from helpers.scores import baselines, metrics

PIXELS = 224


class Middle(nn.Module):
    """Lite0 up to its middle: mean and deviation of 672 maps at a sixteenth of the pixels.

    They see the grain of the tissue more than the layout of the chest. (N, 3, H, W) to (N, 1344).
    """

    features = 2 * 672

    def __init__(self) -> None:
        super().__init__()
        maps = Lite0Encoder().maps
        self.maps = nn.Sequential(*maps[:13], maps[13].layers[0])

    def forward(self, pictures):
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        maps = self.maps((pictures - 0.498) / 0.502).float()
        return torch.cat([maps.mean((2, 3)), maps.std((2, 3))], dim=1)


def hazy_share(picture) -> float:
    """How much of the lungs of one picture (H, W) is hazy."""
    return float(lungs.hazy_share(lungs.lung_histogram(picture)))


def describe(pictures, data_dir) -> dict:
    """What each kind of eye sees in uint8 pictures (N, 1, H, W): name -> (N, F)."""
    alone = np.stack([lungs.lungs_alone(picture, PIXELS) for picture in pictures[:, 0]])[:, None]
    histogram = np.stack([lungs.lung_histogram(picture) for picture in pictures[:, 0]])
    middle = Middle()
    return {
        "whole picture, last maps": images.frozen_features(pictures, data_dir),
        "whole picture, middle maps": encode_scans(middle, pictures, data_dir)[:, 0],
        "lungs alone, last maps": images.frozen_features(alone, data_dir),
        "lungs alone, middle maps": encode_scans(middle, alone, data_dir)[:, 0],
        "histogram of the lungs": np.sqrt(histogram),
    }


def judge(data, rows, seen, split, clear=None) -> list[str]:
    """Train on these rows (and clear lungs); AUC of the test part and of the other collection."""
    n_clear = 0 if clear is None else len(clear)
    features = np.concatenate([seen[0][rows], *([clear] if n_clear else [])]).astype(np.float32)
    labels = np.r_[data.labels[rows], np.zeros(n_clear, int)]
    who = [*data.patients[rows], *range(n_clear)]
    model = baselines.logistic_regression(features, labels, 0, who)
    test = data.rows("test", split)
    inside, outside = (model.predict_proba(x.astype(np.float32))[:, 1] for x in seen[:2])
    here = metrics.auc_interval(data.labels[test], inside[test], data.patients[test])
    return [str(here), str(metrics.auc_interval(seen[2], outside))]


def thirds(data) -> dict:
    """All COVID of the official training and validation parts, with a third of their others."""
    rows = np.r_[data.rows("train"), data.rows("validation")]
    ill, others = (rows[data.labels[rows] == label] for label in (1, 0))
    hazy = np.array([hazy_share(picture) for picture in data.images[others, 0]])
    others, n = others[np.argsort(hazy, kind="stable")], len(others) // 3
    chosen = {"the clearest": others[:n], "the middle": others[n : 2 * n]}
    chosen |= {"the cloudiest": others[-n:]}
    chosen["one at random"] = np.random.default_rng(0).permutation(others)[:n]
    return {name: np.r_[ill, some] for name, some in chosen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("images", "external", "slices"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--data-dir", default="data")
    given = parser.parse_args()
    data = images.prepare(given.images, "full", given.data_dir, size=PIXELS)
    pictures, truth = images.read_elsewhere(given.external, PIXELS)
    clear = images.read_slices(given.slices, PIXELS)[:, None]
    groups = {"COVID, here": data.images[data.labels == 1], "others": data.images[data.labels == 0]}
    groups |= {"COVID, elsewhere": pictures[truth == 1], "their others": pictures[truth == 0]}
    groups["clear slices"] = clear
    for name, some in groups.items():
        hazy, tissue = (
            np.median([see(picture) for picture in some[:, 0]])
            for see in (hazy_share, lungs.tissue_grey)
        )
        print(f"{name}: median hazy share {hazy:.3f}, grey of soft tissue {tissue:.0f}", flush=True)
    ours, theirs, clears = (
        describe(some, given.data_dir) for some in (data.images, pictures, clear)
    )
    print(
        "| what it sees | COVID against | official | cleaned | elsewhere |\n|---|---|---|---|---|"
    )
    for eyes in ours:
        seen = ours[eyes], theirs[eyes], truth
        for kind in ("its own others", "both", "clear slices"):
            cells = []
            for split in images.SPLITS:
                rows = np.r_[data.rows("train", split), data.rows("validation", split)]
                if kind == "clear slices":
                    rows = rows[data.labels[rows] == 1]
                extra = None if kind == "its own others" else clears[eyes]
                cells.append(judge(data, rows, seen, split, extra))
            (official, outside), (cleaned, _) = cells
            print(f"| {eyes} | {kind} | {official} | {cleaned} | {outside} |", flush=True)
    eyes = "whole picture, middle maps"
    print("| which third of its own others | official | elsewhere |\n|---|---|---|")
    for name, rows in thirds(data).items():
        cells = judge(data, rows, (ours[eyes], theirs[eyes], truth), "official")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
