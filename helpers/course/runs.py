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

from helpers.course.sources import DATASETS, Keeper, Profile, bring_studies, find_profile, restore
from helpers.ct import cohort, layouts, preprocessing, studies
from helpers.ct.cache import preprocess_cohort
from helpers.ct.nifti import UnreadableStudy
from helpers.storage.files import write_whole

MODELS = {
    "frozen": "Bi-LSTM on a frozen ImageNet encoder",
    "finetuned": "the same, encoder fine-tuned",
    "bilstm": "Bi-LSTM from scratch",
    "cnn3d": "3-D CNN (Keras recipe)",
}


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

    profile: a key of `sources.PROFILES`. task: as in `cohort.labels_of`. on_error: "skip" leaves
    studies out that cannot be used, and lists them in `skipped`. mirror: as in `get_studies`; the
    work folder is kept there with cache and split, and `train` keeps its runs there.
    """
    sizes = find_profile(profile)
    root, work, caption = bring_studies(dataset, profile, data_dir, mirror)
    table = cohort.find_studies(root)
    labels = cohort.labels_of(table, task)
    table, task = cohort.label_studies(table, labels), cohort.name_of_task(labels)
    cache = preprocess_cohort(table, root, work / "cache", sizes.size, on_error=on_error)
    geometry = cache.index.drop(columns=["category", "file"])
    table = table.merge(geometry, on="study").reset_index(drop=True)
    table["part"] = cohort.saved_split(table, work / f"split-{task}-seed{seed}.csv", seed=seed)
    name = dataset if dataset in DATASETS else work.name
    run_name = f"{name}-{profile}-{task}-seed{seed}"
    if mirror:
        Keeper(work, mirror)()
    return CourseData(
        name, root, table, cache.volumes, cache.skipped, caption, sizes, run_name, str(mirror)
    )


def inputs(data: CourseData, which="frozen", executor=None, view=0) -> np.ndarray:
    """What a model of MODELS is trained on, in the order of `data.table`.

    Volumes (N, D, H, W), or for "frozen" the features of their slices (N, D, F), computed once and
    kept beside the cohort's cache (`features.encode_scans`, which takes executor and view).
    """
    rows, volumes = data.table.row.to_numpy(), data.volumes
    if len(rows) != len(volumes) or (rows != np.arange(len(rows))).any():
        volumes = volumes[rows]
    if which != "frozen":
        return volumes
    from helpers.learn import features, networks

    cache = Path(data.volumes.filename).parent
    had = len([*cache.glob("features-*/*.npy")])
    found = features.encode_scans(networks.Lite0Encoder(), volumes, cache, executor, view=view)
    if data.mirror and len([*cache.glob("features-*/*.npy")]) > had:
        Keeper(cache.parents[1], data.mirror)()
    return found


def lesion(data: CourseData, row) -> np.ndarray | None:
    """The share of lesion in every voxel that a network sees, (D, H, W), by the study's mask.

    row: of `data.table`. None where the study has no mask. UnreadableStudy, as `studies.read_mask`.
    """
    line = data.table.iloc[row]
    if not line["mask"]:
        return None
    mask = studies.read_mask(data.root / line["mask"], data.root / line.file)
    spacing = line[["spacing_z", "spacing_y", "spacing_x"]].to_numpy(float)
    mask = preprocessing.pad_to_square(mask.astype(np.float32), spacing, fill=0)
    return preprocessing.resample(mask, data.profile.size)


def as_nifti(path, folder) -> Path:
    """A scan as a NIfTI file: itself if it is one, or a copy of it, `folder`/study.nii."""
    if layouts.NIFTI.search(Path(path).name):
        return Path(path)
    import nibabel as nib

    study = studies.read_study(path)
    image = nib.Nifti1Image(study.hu.transpose(2, 1, 0), study.affine[:, [2, 1, 0, 3]])
    target = Path(folder).expanduser() / "study.nii"
    return write_whole(target, lambda file: file.write(image.to_bytes()))


def new_model(which, profile: Profile, seed=0, dropout=0.3):
    """A model of MODELS, seeded, untrained but for what ImageNet has taught its encoder."""
    import torch

    from helpers.learn import networks

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if which == "cnn3d":
            return networks.Keras3DCNN(profile.opponent_width, dropout)
        encoder = "small"
        if which == "frozen":
            encoder = networks.Lite0Encoder.features
        elif which == "finetuned":
            encoder = networks.Lite0Encoder().freeze_early()
        return networks.BiLSTMClassifier(encoder, dropout=dropout)


def options_of(which, profile: Profile) -> dict:
    """How `training.fit` trains one of MODELS."""
    from helpers.learn import augmentation, devices

    found = {"epochs": profile.epochs, "batch_size": profile.batch_size}
    if which == "cnn3d":
        found |= {"epochs": profile.opponent_epochs}
    if which == "frozen":  # small: 12 epochs take seconds
        found |= {"epochs": 12, "batch_size": 8, "learning_rate": 1e-3}
        found |= {"augment": augmentation.SequenceAugmentation()}
    if which == "finetuned":  # an encoder that has learned already needs few and small steps
        found |= {"epochs": profile.finetuning_epochs, "learning_rate": 1e-4}
        is_cpu = devices.pick_device().type == "cpu"
        found |= {"precision": "bf16" if is_cpu and devices.has_bf16() else "auto"}
    return found


def train(
    data: CourseData, which="bilstm", seed=0, runs_dir="runs", dropout=0.3, every=1, **options
):
    """Train one of MODELS, or load it where it is trained; returns model and history.

    The run lies in `runs_dir`/<model>-<cohort>-<profile>-<task>-seed<seed>; an unfinished one is
    resumed. "finetuned" begins with what "frozen" has learned. every: train on every n-th scan of
    the training part, in a run of its own. options: passed on to `training.fit`. With a mirror in
    `data` a missing run is restored first, and kept after every epoch; a mirror that fails
    meanwhile is only a warning. Under torchrun (`ranks`) the processes share the work.
    """
    from helpers.learn import training

    model = new_model(which, data.profile, seed, dropout)
    if which == "finetuned":
        frozen, _ = train(data, "frozen", seed, runs_dir, dropout)
        model.load_state_dict(frozen.state_dict(), strict=False)
    name = f"{which}-{data.run_name}" + (f"-every{every}" if every > 1 else "")
    run_dir = Path(runs_dir).expanduser() / name
    if data.mirror:
        restore(run_dir, data.mirror)
        mirror, on_epoch = Keeper(run_dir, data.mirror), options.get("on_epoch")

        def keep_epoch(history):
            mirror()
            if on_epoch:
                on_epoch(history)

        options["on_epoch"] = keep_epoch
    part = data.table.part
    history = training.fit(
        model,
        inputs(data, which),
        data.table.label.to_numpy(),
        np.flatnonzero(part == "train")[::every],
        np.flatnonzero(part == "validation"),
        run_dir,
        **options_of(which, data.profile) | {"seed": seed} | options,
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
    probability, _ = prediction.predict(model, inputs(data, which), np.arange(len(data.table)))
    table = data.table.assign(probability=probability)
    path = Path(runs_dir).expanduser() / f"{which}-{data.run_name}" / "predictions.csv"
    _keep_predictions(table, path)
    return table


def cross_validate(data: CourseData, which="frozen", runs_dir="runs", elsewhere=None, n_views=0):
    """Predict every study by networks that have not seen its patient: folds by patient x seeds.

    which: one of MODELS. elsewhere: CourseData of another cohort, of which nothing is trained or
    chosen. n_views: for "frozen", of how many random changes of every scan the features are trained
    on as well; each takes as long as the first features. Returns the table with `probability`, the
    mean over the seeds, and one column for each seed ("seed 0"); and the table of `elsewhere` with
    the mean of all networks, or None. Finished trainings are loaded from
    `runs_dir`/<model>-<cohort>-<profile>-<task>-folds.
    """
    from helpers.learn import features, prediction

    name = f"{data.run_name.rpartition('-')[0]}-folds"
    name += f"-{n_views}views" if n_views else ""
    run_dir = Path(runs_dir).expanduser() / f"{which}-{name}"
    seeds = tuple(range(data.profile.n_seeds))
    if which == "finetuned":
        cross_validate(data, "frozen", runs_dir, n_views=n_views)

    def make_model(seed, fold):
        model = new_model(which, data.profile, seed)
        if which == "finetuned":
            begun = new_model("frozen", data.profile, seed)
            trained = run_dir.with_name(f"frozen-{name}") / f"seed{seed}-fold{fold}" / "last.pt"
            begun = prediction.load_model(begun, trained, "cpu")
            model.load_state_dict(begun.state_dict(), strict=False)
        return model

    each, outside = features.cross_validate(
        make_model,
        inputs(data, which),
        data.table.label.to_numpy(),
        data.table.patient.to_numpy(),
        run_dir,
        data.profile.n_folds,
        seeds,
        None if elsewhere is None else inputs(elsewhere, which),
        [inputs(data, which, view=view) for view in range(1, n_views + 1)],
        **options_of(which, data.profile),
    )
    by_seed = {f"seed {seed}": probability for seed, probability in zip(seeds, each, strict=True)}
    table = data.table.assign(probability=each.mean(axis=0), **by_seed)
    _keep_predictions(table, run_dir / "predictions.csv")
    return table, None if elsewhere is None else elsewhere.table.assign(probability=outside)


def study() -> pd.DataFrame:
    """The experiments of notebook 07 at full size: part, question, what, n, value, low, high, ...

    `make experiments` writes them; the first line of the file says on which machine, and when.
    """
    return pd.read_csv(Path(__file__).with_name("experiments.csv"), comment="#")


def predict_files(place, model, size) -> list[dict]:
    """Study and probability of scans from elsewhere, by a model on the frozen encoder.

    place: a folder of scans as in `layouts.scans_in`, or one of them; "" for none. size: (D, H, W).
    Prints what is left out, and why there is nothing.
    """
    from helpers.learn import features, networks, prediction

    if not place:
        print("no folder is named: nothing to look at")
        return []
    place, found = Path(place).expanduser(), []
    try:
        scans, others = ([place], []) if place.is_file() else layouts.scans_in(place)
    except UnreadableStudy as error:  # of DICOM files that cannot be told apart
        print(error)
        return []
    if not place.exists():
        print(f"{place}: does not exist; correct the name of the folder")
    elif not scans:
        print(f"{place}: no .nii.gz or .nii file in it, nor DICOM; name the folder of the scans")
    elif others:
        print(f"left out, because they are no scans: {len(others)} ({others[0].name} ...)")
    for path in scans:
        try:
            volume = preprocessing.preprocess_fast(path, size)
        except UnreadableStudy as error:
            print(f"left out: {error}")
            continue
        seen = features.encode_scans(networks.Lite0Encoder(), volume[None])
        value = float(prediction.predict(model, seen, np.array([0]))[0][0])
        found.append({"study": path.name, "probability": round(value, 2)})
    return found


def _keep_predictions(table, path):
    kept = table[["study", "label", "part", "probability"]]
    write_whole(path, lambda file: kept.to_csv(file, index=False))


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
