"""The phantom's classifiers here and in another hospital: the first table of docs/transfer.md.

python -m tests.benchmarks.hospitals --profile quick

Five folds by patient, all trained on the phantom cohort; the scans of the other hospital are
predicted by the mean of all networks. Three seeds of what is trained on features, --seeds of what
is trained on pixels. Finished trainings are kept in --runs-dir: an interrupted call goes on.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import pandas as pd

from helpers.course import runs
from helpers.learn import features
from helpers.scores import baselines, metrics

WAYS = {
    "Bi-LSTM, frozen encoder": ("frozen", 0),
    "the same, trained on three views more": ("frozen", 3),
    "Bi-LSTM from scratch": ("bilstm", 0),
    "3-D CNN (Keras recipe)": ("cnn3d", 0),
}


def histogram(data, other):
    """The tables of both hospitals with the probability by a histogram of HU."""
    here, there = (
        baselines.hu_histogram(cohort.volumes[row] for row in cohort.table.row)
        for cohort in (data, other)
    )
    labels, patients = data.table.label.to_numpy(), data.table.patient.to_numpy()
    seeds, outside = range(data.profile.n_seeds), []
    found = np.empty((len(seeds), len(labels)))
    for seed in seeds:
        fold_of = features.folds(labels, patients, data.profile.n_folds, seed)
        for fold in range(data.profile.n_folds):
            kept = fold_of != fold
            model = baselines.logistic_regression(here[kept], labels[kept], seed, patients[kept])
            found[seed, ~kept] = model.predict_proba(here[~kept])[:, 1]
            outside.append(model.predict_proba(there)[:, 1])
    by_seed = {f"seed {seed}": found[seed] for seed in seeds}
    table = data.table.assign(probability=found.mean(axis=0), **by_seed)
    return table, other.table.assign(probability=np.mean(outside, axis=0))


def line(name, here, there, scanners, seconds) -> str:
    """A row of the table."""
    seeds = [metrics.auc(here.label, here[s]) for s in here if s.startswith("seed ")]
    inside, outside = (
        metrics.auc_interval(t.label, t.probability, t.patient) for t in (here, there)
    )
    each = [
        f"{metrics.auc(there.label[scanners == s], there.probability[scanners == s]):.2f}"
        for s in sorted(set(scanners))
    ]
    ends = f"{min(seeds):.3f} to {max(seeds):.3f}" if len(seeds) > 1 else "one"
    minutes = f"{seconds / 60:.1f}" if seconds > 20 else "–"
    return f"| {name} | {inside} | {ends} | {outside} | {', '.join(each)} | {minutes} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--runs-dir", default="runs/hospitals")
    chosen = parser.parse_args()
    data, other = (
        runs.prepare(name, chosen.profile, chosen.data_dir)
        for name in ("phantom", "phantom-elsewhere")
    )
    truth = pd.read_csv(other.root / "phantom_truth.csv").set_index("study_id").scanner
    scanners = truth[other.table.study].to_numpy()
    print("| model | AUC here | single seeds | AUC elsewhere | its scanners E, F, G | minutes |")
    print("|---|---|---|---|---|---|")
    for name, (which, n_views) in WAYS.items():
        started, these = time.perf_counter(), data
        if which != "frozen":
            these = replace(data, profile=replace(data.profile, n_seeds=chosen.seeds))
        found = runs.cross_validate(these, which, chosen.runs_dir, other, n_views)
        print(line(name, *found, scanners, time.perf_counter() - started), flush=True)
    print(line("HU histogram", *histogram(data, other), scanners, 0))


if __name__ == "__main__":
    main()
