"""What a network has to beat: a histogram, a constant, and what others published."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.scores.metrics import wilson

# model, test scans without and with COVID, reported accuracy and sensitivity, source
PUBLISHED = (
    ("ResNet3D-101", 76, 255, 0.818, 0.973, "arXiv 2101.05442"),
    ("DenseNet3D-121", 76, 255, 0.796, 0.922, "arXiv 2101.05442"),
    ("MC3-18", 76, 255, 0.804, 0.984, "arXiv 2101.05442"),
    ("CovidNet3D-L", 76, 255, 0.823, 0.988, "arXiv 2101.05442"),
    ("EMARS-APS", 76, 255, 0.881, 0.906, "arXiv 2101.10667"),
    ("always COVID", 76, 255, 255 / 331, 1.0, "computed"),
    ("3-D CNN, 20 scans", 10, 10, 0.80, 0.70, "qanastek/3D-Bi-LSTM-Classifier-for-MRI"),
)
# model, reported accuracy and AUC on COVID-CT's official test part, who reports it: the authors,
# an independent repeat on the same split, or a user of the published weights
PUBLISHED_2D = (
    ("DenseNet169, ImageNet", 0.847, 0.919, "authors"),
    ("Self-Trans, DenseNet169", 0.86, 0.94, "authors"),
    ("random start", 0.665, 0.793, "repeat"),
    ("ImageNet", 0.729, 0.819, "repeat"),
    ("SimCLR", 0.724, 0.792, "repeat"),
    ("Self-Trans, published weights", 0.77, 0.88, "a user"),
    ("mode and file type alone", 161 / 203, None, "notebook 8"),
)


def hu_histogram(volumes, bins=32) -> np.ndarray:
    """The share of each volume's voxels in `bins` equal grey ranges: (N, bins), rows sum to 1.

    volumes: uint8, (N, D, H, W) or any iterable of (D, H, W); read one study at a time, so a
    memory map larger than the memory will do. ValueError unless they are uint8.
    """
    bin_of = np.arange(256) * bins // 256
    histograms = []
    for volume in volumes:
        if volume.dtype != np.uint8:
            raise ValueError(f"the volumes are {volume.dtype}; give the cohort's uint8 cache")
        counts = np.bincount(np.ravel(volume), minlength=256)
        histograms.append(np.bincount(bin_of, counts, minlength=bins) / volume.size)
    return np.array(histograms)


def scan_traits(table, volumes) -> pd.DataFrame:
    """What a scan gives away without its lungs, a row a study: a probe for shortcuts.

    table: `spacing_z`, `spacing_x` and `n_slices`. volumes: uint8 (N, D, H, W) in its order.
    noise: the mean step between neighbouring pixels in soft tissue (grey 170 to 220). padding: the
    share of pixels in the corners that are exactly 0, since scanners fill what they do not see.
    """
    rows = []
    for volume in volumes:
        volume = np.asarray(volume, np.int16)
        step, edge = np.abs(np.diff(volume, axis=2)), max(1, volume.shape[1] // 12)
        soft = (volume[:, :, 1:] > 170) & (volume[:, :, 1:] < 220) & (step < 30)
        ends = [*range(edge), *range(-edge, 0)]
        corners = volume[:, ends][:, :, ends]
        rows.append((step[soft].mean() if soft.any() else 0.0, (corners == 0).mean()))
    header = table[["spacing_z", "spacing_x", "n_slices"]].reset_index(drop=True)
    return header.join(pd.DataFrame(rows, columns=["noise", "padding"]))


def logistic_regression(features, labels, seed=0, patients=None) -> Pipeline:
    """Logistic regression on features (N, F), standardised, fitted to labels (N,) of 0 and 1.

    The regularisation is chosen by cross-validation that leaves out whole `patients` (N,); without
    them each row is a patient of its own. ValueError with fewer than two patients of a class.
    """
    labels = np.asarray(labels)
    patients = np.arange(len(labels)) if patients is None else np.asarray(patients)
    smallest = min(len(np.unique(patients[labels == k])) for k in (0, 1))
    if smallest < 2:
        raise ValueError("the training part needs at least two patients of each class")
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
        {"logisticregression__C": np.logspace(-4, 2, 7)},
        scoring="neg_log_loss",
        cv=StratifiedGroupKFold(min(5, smallest)),
    )
    # Shuffled here: up to scikit-learn 1.7 its own shuffling mixes up whose classes are whose.
    names, patient = np.unique(patients, return_inverse=True)
    shuffled = np.argsort(np.random.RandomState(seed).permutation(len(names)))[patient]
    return search.fit(features, labels, groups=shuffled).best_estimator_


def published_results() -> pd.DataFrame:
    """Published scores, with the specificity and balanced accuracy that they imply.

    CT-0 against CT-1..4 on 331 scans of MosMedData; the 3-D CNN: CT-0 against CT-23 on 20.
    accuracy = share of COVID x sensitivity + share of CT-0 x specificity.
    """
    columns = ("model", "n_negative", "n_positive", "accuracy", "sensitivity", "source")
    table = pd.DataFrame(PUBLISHED, columns=columns)
    positive = table.n_positive / (table.n_positive + table.n_negative)
    specificity = (table.accuracy - positive * table.sensitivity) / (1 - positive)
    table.insert(5, "specificity", specificity.clip(0, 1))
    table.insert(6, "balanced_accuracy", (table.sensitivity + table.specificity) / 2)
    return table


def published_image_results(n_test=203) -> pd.DataFrame:
    """Published scores on COVID-CT's official test part; the accuracy as an Interval (Wilson)."""
    columns = ["model", "accuracy", "auc", "source"]
    table = pd.DataFrame(PUBLISHED_2D, columns=columns)
    table["accuracy"] = [wilson(share * n_test, n_test) for share in table.accuracy]
    return table
