"""What every notebook begins and ends with: a cohort that is ready, a trained model, results.json.

Nothing here teaches; it puts together what the notebooks explain, so that any of them can be the
first one opened.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import cohort
from helpers.files import write_whole


@dataclass(frozen=True)
class Profile:
    """The sizes of one way to take the course; `tiny` is for tests of the machinery alone."""

    size: tuple[int, int, int]
    batch_size: int
    epochs: int
    opponent_width: int
    opponent_epochs: int
    phantom_counts: dict[str, int]
    phantom_matrix: int


PROFILES = {
    "tiny": Profile((16, 48, 48), 4, 2, 4, 1, {"CT-0": 8, "CT-2": 6, "CT-3": 2}, 64),
    "quick": Profile((32, 96, 96), 4, 12, 8, 4, {"CT-0": 60, "CT-2": 44, "CT-3": 16}, 192),
    "full": Profile((64, 256, 256), 4, 40, 64, 40, {"CT-0": 100, "CT-2": 74, "CT-3": 26}, 512),
}
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


def get_studies(
    dataset="phantom", profile="quick", data_dir="data", mirror=""
) -> tuple[Path, Path, str]:
    """Make sure that the studies are there; returns their folder, a work folder and a caption.

    dataset: "phantom" (made here), "mosmed" (downloaded) or a folder in MosMedData's layout.
    The work folder is below `data_dir`; nothing is ever written into a folder of yours.
    mirror: a folder that outlives this machine, on a mounted Drive for example. A missing work
    folder is restored from it, and a new one is kept there. MirrorError if it cannot be reached.
    """
    root, work, caption = _bring_studies(dataset, profile, data_dir, mirror)
    if mirror:
        from helpers.mirror import archive_of

        if not archive_of(work, mirror).exists():
            _Keeper(work, mirror)()
    return root, work, caption


def _bring_studies(dataset, profile, data_dir, mirror):
    """Restore, make or download; what `get_studies` returns."""
    if dataset == "phantom":
        from helpers import phantom

        root = Path(data_dir) / f"phantom-{profile}"
        sizes = PROFILES[profile]
        _restore(root, mirror)
        phantom.make_cohort(root, sizes.phantom_counts, sizes.phantom_matrix)
        return root, root, "Synthetic phantom, not a patient."
    if dataset == "mosmed":
        from helpers import mosmed

        root = Path(data_dir) / "mosmed"
        _restore(root, mirror)
        mosmed.download(root)
        return root, root, "MosMedData (Morozov et al. 2020), CC BY-NC-ND 3.0."
    root = Path(dataset).expanduser()
    if not (root / "studies").is_dir():
        raise cohort.CohortError(
            f'{dataset}: no folder with studies/ in it; DATASET is "phantom", "mosmed" or one'
        )
    digest = hashlib.sha1(str(root.resolve()).encode(), usedforsecurity=False).hexdigest()[:8]
    work = Path(data_dir) / f"{root.resolve().name}-{digest}"
    _restore(work, mirror)
    return root, work, f"Studies of {root.name}."


def _restore(folder, mirror):
    if mirror:
        from helpers.mirror import restore

        restore(folder, mirror)


class _Keeper:
    """Call it to mirror the folder; where that fails, the first failure is a warning."""

    def __init__(self, folder, mirror):
        self.folder, self.mirror, self.has_warned = folder, mirror, False

    def __call__(self):
        from helpers.mirror import MirrorError, keep

        try:
            keep(self.folder, self.mirror)
        except MirrorError as error:
            if not self.has_warned:
                warnings.warn(f"not mirrored: {error}", stacklevel=2)
            self.has_warned = True


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

    profile: "quick" or "full" (PROFILES). task: a key of cohort.TASKS. on_error: "skip" leaves
    studies out that cannot be used, and lists them in `skipped`. mirror: as in `get_studies`; the
    work folder is kept there with cache and split, and `train` keeps its runs there.
    """
    if profile not in PROFILES:
        raise ValueError(f'PROFILE is "{profile}"; choose one of {", ".join(PROFILES)}')
    root, work, caption = _bring_studies(dataset, profile, data_dir, mirror)
    sizes = PROFILES[profile]
    table = cohort.label_studies(cohort.find_studies(root), task)
    cache = cohort.preprocess_cohort(table, root, work / "cache", sizes.size, on_error=on_error)
    geometry = cache.index.drop(columns=["category", "file"])
    table = table.merge(geometry, on="study").reset_index(drop=True)
    table["part"] = cohort.saved_split(table, work / f"split-{task}-seed{seed}.csv", seed=seed)
    name = work.name if dataset not in ("phantom", "mosmed") else dataset
    run_name = f"{name}-{profile}-{task}-seed{seed}"
    if mirror:
        _Keeper(work, mirror)()
    return CourseData(
        name, root, table, cache.volumes, cache.skipped, caption, sizes, run_name, str(mirror)
    )


def new_model(which, profile: Profile, seed=0, dropout=0.3):
    """The Bi-LSTM classifier ("bilstm") or its opponent ("cnn3d"), seeded, untrained."""
    import torch

    from helpers import models

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if which == "bilstm":
            return models.BiLSTMClassifier(dropout=dropout)
        return models.Keras3DCNN(profile.opponent_width, dropout)


def train(data: CourseData, which="bilstm", seed=0, runs_dir="runs", dropout=0.3, **options):
    """Train one of the two models, or load it where it is trained; returns model and history.

    The run lies in `runs_dir`/<model>-<cohort>-<profile>-<task>-seed<seed>; an unfinished one is
    resumed. options: passed on to `training.fit`. With a mirror in `data` a missing run is
    restored first, and kept after every epoch; a mirror that fails meanwhile is only a warning.
    Under torchrun (`distributed`) the processes share the work.
    """
    from helpers import training

    model = new_model(which, data.profile, seed, dropout)
    run_dir = Path(runs_dir) / f"{which}-{data.run_name}"
    epochs = data.profile.epochs if which == "bilstm" else data.profile.opponent_epochs
    if data.mirror:
        _restore(run_dir, data.mirror)
        keep, on_epoch = _Keeper(run_dir, data.mirror), options.get("on_epoch")

        def keep_epoch(history):
            keep()
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
        keep()
    return training.load_model(model, run_dir / "best.pt"), history


def predictions(data: CourseData, which="bilstm", seed=0, runs_dir="runs") -> pd.DataFrame:
    """Probability of COVID of every study by one trained model: the table with `probability`.

    Kept as predictions.csv beside the checkpoint, and made anew when the checkpoint changes.
    """
    from helpers import training

    model, _ = train(data, which, seed, runs_dir)
    probability, _ = training.predict(model, data.volumes, data.table.row.to_numpy())
    table = data.table.assign(probability=probability)
    path = Path(runs_dir) / f"{which}-{data.run_name}" / "predictions.csv"
    kept = table[["study", "label", "part", "probability"]]
    write_whole(path, lambda file: kept.to_csv(file, index=False))
    return table


def save_results(notebook, results, runs_dir="runs") -> Path:
    """Write `runs_dir`/<notebook>/results.json, which the tests and `make course` read.

    results: plain values, arrays, or intervals; its entry "summary" (text by name) is what the
    table at the end of `make course` shows.
    """
    path = Path(runs_dir) / notebook / "results.json"
    text = json.dumps(results, indent=2, default=_plain) + "\n"
    return write_whole(path, lambda file: file.write(text.encode()))


def _plain(value):
    """Turn NumPy and pandas values into what JSON knows."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, pd.DataFrame):
        return value.to_dict("records")
    return str(value)
