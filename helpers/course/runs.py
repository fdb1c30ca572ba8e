"""What every notebook begins and ends with: a cohort that is ready, a trained model, results.json.

Nothing here teaches; it puts together what the notebooks explain, so that any of them can be the
first one opened.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.course.sources import Keeper, Profile, bring_studies, find_profile, restore
from helpers.ct import cohort
from helpers.ct.cache import preprocess_cohort
from helpers.storage.files import write_whole

MODELS = {"bilstm": "Bi-LSTM", "cnn3d": "3-D CNN (Keras recipe)"}


@dataclass(frozen=True)
class CourseData:
    """A cohort, ready to train on.

    root: the folder of studies. table: one line a study, with category, label, part, row and
    geometry. volumes: uint8, (N, D, H, W), indexed by the table's `row`. caption: what every
    figure of these data must say. mirror: where data and runs are kept as well, or "".
    """

    name: str
    root: Path
    table: pd.DataFrame
    volumes: np.ndarray
    skipped: pd.DataFrame
    caption: str
    profile: Profile
    run_name: str
    mirror: str = ""

    @property
    def labels(self) -> np.ndarray:
        """Label of every row of `volumes`; -1 where this task has none."""
        labels = np.full(len(self.volumes), -1)
        labels[self.table.row] = self.table.label
        return labels

    def rows(self, part: str) -> np.ndarray:
        """Rows of `volumes` that belong to one part of the split."""
        return self.table.row[self.table.part == part].to_numpy()


def prepare(
    dataset="phantom",
    profile="quick",
    data_dir="data",
    seed=0,
    task="ct0-ct23",
    on_error="raise",
    mirror="",
) -> CourseData:
    """Everything up to training: studies, labels, cache and split; done once, then reused.

    profile: a key of `sources.PROFILES`. task: a key of cohort.TASKS. on_error: "skip" leaves
    studies out that cannot be used, and lists them in `skipped`. mirror: as in `get_studies`; the
    work folder is kept there with cache and split, and `train` keeps its runs there.
    """
    sizes = find_profile(profile)
    root, work, caption = bring_studies(dataset, profile, data_dir, mirror)
    table = cohort.label_studies(cohort.find_studies(root), task)
    cache = preprocess_cohort(table, root, work / "cache", sizes.size, on_error=on_error)
    geometry = cache.index.drop(columns=["category", "file"])
    table = table.merge(geometry, on="study").reset_index(drop=True)
    table["part"] = cohort.saved_split(table, work / f"split-{task}-seed{seed}.csv", seed=seed)
    name = work.name if dataset not in ("phantom", "mosmed") else dataset
    run_name = f"{name}-{profile}-{task}-seed{seed}"
    if mirror:
        Keeper(work, mirror)()
    return CourseData(
        name, root, table, cache.volumes, cache.skipped, caption, sizes, run_name, str(mirror)
    )


def new_model(which, profile: Profile, seed=0, dropout=0.3):
    """The Bi-LSTM classifier ("bilstm") or its opponent ("cnn3d"), seeded, untrained."""
    import torch

    from helpers.learn import networks

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if which == "bilstm":
            return networks.BiLSTMClassifier(dropout=dropout)
        return networks.Keras3DCNN(profile.opponent_width, dropout)


def train(data: CourseData, which="bilstm", seed=0, runs_dir="runs", dropout=0.3, **options):
    """Train one of the two models, or load it where it is trained; returns model and history.

    The run lies in `runs_dir`/<model>-<cohort>-<profile>-<task>-seed<seed>; an unfinished one is
    resumed. options: passed on to `training.fit`. With a mirror in `data` a missing run is
    restored first, and kept after every epoch; a mirror that fails meanwhile is only a warning.
    Under torchrun (`ranks`) the processes share the work.
    """
    from helpers.learn import training

    model = new_model(which, data.profile, seed, dropout)
    run_dir = Path(runs_dir).expanduser() / f"{which}-{data.run_name}"
    epochs = data.profile.epochs if which == "bilstm" else data.profile.opponent_epochs
    if data.mirror:
        restore(run_dir, data.mirror)
        mirror, on_epoch = Keeper(run_dir, data.mirror), options.get("on_epoch")

        def keep_epoch(history):
            mirror()
            if on_epoch:
                on_epoch(history)

        options["on_epoch"] = keep_epoch
    history = training.fit(
        model,
        data.volumes,
        data.labels,
        data.rows("train"),
        data.rows("validation"),
        run_dir,
        **{"epochs": epochs, "batch_size": data.profile.batch_size, "seed": seed, **options},
    )
    if data.mirror:
        mirror()
    return model, history


def predictions(data: CourseData, which="bilstm", seed=0, runs_dir="runs") -> pd.DataFrame:
    """Probability of COVID of every study by one trained model: the table with `probability`.

    Computed anew at every call, and kept as predictions.csv beside the checkpoint.
    """
    from helpers.learn import prediction

    model, _ = train(data, which, seed, runs_dir)
    probability, _ = prediction.predict(model, data.volumes, data.table.row.to_numpy())
    table = data.table.assign(probability=probability)
    path = Path(runs_dir).expanduser() / f"{which}-{data.run_name}" / "predictions.csv"
    kept = table[["study", "label", "part", "probability"]]
    write_whole(path, lambda file: kept.to_csv(file, index=False))
    return table


def save_results(notebook, results, runs_dir="runs") -> Path:
    """Write `runs_dir`/<notebook>/results.json, which the tests and `make course` read.

    results: plain values, arrays, or intervals; its entry "summary" (text by name) is what the
    table at the end of `make course` shows.
    """
    path = Path(runs_dir).expanduser() / notebook / "results.json"
    text = json.dumps(results, indent=2, default=_plain) + "\n"
    return write_whole(path, lambda file: file.write(text.encode()))


def _plain(value):
    """Turn NumPy and pandas values into what JSON knows."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, pd.DataFrame):
        return value.to_dict("records")
    return str(value)
