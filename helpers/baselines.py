"""What a network has to beat: a histogram, a constant, and what others published."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

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


def histogram_baseline(
    train_volumes, train_labels, volumes, bins=32, seed=0
) -> tuple[Pipeline, np.ndarray]:
    """Logistic regression on `hu_histogram`; returns it, and the probability of COVID (N,).

    Fits on the training volumes, with the regularisation chosen there by cross-validation, and
    predicts `volumes`. ValueError with fewer than two training studies of a class.
    """
    train_labels = np.asarray(train_labels)
    smallest = int(min(np.sum(train_labels == 0), np.sum(train_labels == 1)))
    if smallest < 2:
        raise ValueError("the training part needs at least two studies of each class")
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
        {"logisticregression__C": np.logspace(-4, 2, 7)},
        scoring="neg_log_loss",
        cv=StratifiedKFold(min(5, smallest), shuffle=True, random_state=seed),
    )
    search.fit(hu_histogram(train_volumes, bins), train_labels)
    best = search.best_estimator_
    return best, best.predict_proba(hu_histogram(volumes, bins))[:, 1]


def majority_class(train_labels, n) -> np.ndarray:
    """The share of COVID in the training part, as everybody's probability: (n,)."""
    return np.full(n, np.mean(train_labels))


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
