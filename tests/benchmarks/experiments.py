"""What the network has learned: the study of notebook 07 in full, into helpers/course.

make experiments        (an hour or two on two cores; an interrupted call goes on)

Phantom, quick profile. Five folds by patient; five seeds of what is trained on features, one of
what is trained on pixels. A line a result: part, question, what, value and its 95 % interval by
patient, and for the controls the difference to the whole network on the same patients.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from helpers.course import runs
from helpers.ct.preprocessing import preprocess_fast
from helpers.learn import features, networks, prediction
from helpers.learn.augmentation import SequenceAugmentation
from helpers.scores import baselines, metrics
from tests.benchmarks.hospitals import histogram
from tests.benchmarks.training import processor

WHOLE = "Bi-LSTM"
CHANGES = {
    "Bi-LSTM": "",
    "one direction": "unidirectional",
    "attention, no LSTM": "attention",
    "max pool": "max",
    "mean pool": "mean",
    "shuffled slices": "shuffled",
    "shuffled after training": "shuffled later",
}
OPTIONS = {"epochs": 12, "batch_size": 8, "learning_rate": 1e-3}
SIZES = (10, 20, 40, 80)
N_RESAMPLES = 1000


class MiddleSlice(nn.Module):
    """An encoder that is shown the slice alone, not its neighbours."""

    def __init__(self, encoder) -> None:
        super().__init__()
        self.encoder, self.features = encoder, encoder.features

    def forward(self, images):
        return self.encoder(images[:, 1:2])


def network(change, width, seed, fold=0):
    """The Bi-LSTM on features, or a control of it."""
    torch.manual_seed(seed)
    if not change:
        return networks.BiLSTMClassifier(width)
    return networks.Control(change, width)


def new_model(which, profile, seed, fold):
    """One of the course's models."""
    return runs.new_model(which, profile, seed)


def line(part, question, what, labels, scores, groups, whole=None, **more) -> dict:
    """A row: the AUC, and if `whole` has scores the difference to them, paired by patient."""
    value, low, high = metrics.auc_interval(labels, scores, groups)
    row = {"part": part, "question": question, "what": what, **more}
    row |= {"n": len(labels), "value": value, "low": low, "high": high}
    if whole is not None:

        def apart(truth, rows):
            rows = rows.astype(int)
            return metrics.auc(truth, scores[rows]) - metrics.auc(truth, whole[rows])

        places = np.arange(len(labels), dtype=float)
        found = metrics.bootstrap(apart, labels, places, groups, N_RESAMPLES)
        row |= dict(zip(("difference", "difference_low", "difference_high"), found, strict=True))
    return row


def questions(data):
    """name -> (features, labels, groups), and the lesion areas (n ill, D)."""
    sequences, labels = runs.inputs(data), data.table.label.to_numpy()
    ill, healthy = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    areas = np.stack([runs.lesion(data, row).sum(axis=(1, 2)) for row in ill])
    return {
        "disease": (sequences, labels, data.table.patient.to_numpy()),
        "order": features.order_question(sequences[ill], areas),
        "needle": features.needle_question(sequences[healthy], sequences[ill], areas),
    }


def controls(data, other, seeds, runs_dir):
    """Every change on every question, and on the disease what needs other inputs."""
    asked, outside, whole = questions(data), runs.inputs(other), {}
    there = other.table.label.to_numpy(), other.table.patient.to_numpy()

    def validated(question, what, change, sequences=None, beyond=None):
        given, labels, groups = asked[question]
        given = given if sequences is None else sequences
        each, elsewhere = features.cross_validate(
            *(partial(network, change, given.shape[2]), given, labels, groups),
            Path(runs_dir) / "controls" / question / what.replace(" ", "-"),
            seeds=seeds,
            outside=beyond,
            augment=SequenceAugmentation(flip=question == "disease"),
            **OPTIONS,
        )
        found = each.mean(axis=0)
        if what == WHOLE:
            whole[question], whole["elsewhere"] = found, whole.get("elsewhere", elsewhere)
        yield line("controls", question, what, labels, found, groups, whole[question])
        if elsewhere is not None:
            found = elsewhere, there[1], whole["elsewhere"]
            yield line("controls", "disease elsewhere", what, there[0], *found)

    for question in asked:
        for what, change in CHANGES.items():
            yield from validated(
                question, what, change, None, outside if question == "disease" else None
            )
    alone = MiddleSlice(networks.Lite0Encoder())
    cache = Path(runs_dir) / "features"
    seen = (features.encode_scans(alone, cohort.volumes, cache) for cohort in (data, other))
    yield from validated("disease", "one slice, no neighbours", "", *seen)
    # an 8-bit cast keeps 0 to 255 HU: the lung becomes 0
    cast = [
        np.stack([preprocess_fast(cohort.root / f, data.profile.size, (0, 255)) for f in files])
        for cohort, files in ((data, data.table.file), (other, other.table.file))
    ]
    eyes = networks.Lite0Encoder()
    seen = (features.encode_scans(eyes, volumes, cache) for volumes in cast)
    yield from validated("disease", "after an 8-bit cast", "", *seen)
    pixels = replace(data, profile=replace(data.profile, n_seeds=1))
    for what, which in (("Bi-LSTM from scratch", "bilstm"), ("3-D CNN (Keras recipe)", "cnn3d")):
        yield from both(what, *runs.cross_validate(pixels, which, runs_dir, other), whole)
    # the network of the repository that this course began with, in small: a 3-D CNN on the cast
    shape = (len(cast[0]), *data.profile.size)
    blind = np.lib.format.open_memmap(
        Path(runs_dir) / "cast.npy", mode="w+", dtype=np.uint8, shape=shape
    )
    blind[:] = cast[0]
    folder = Path(runs_dir) / "controls" / "cast"
    each, elsewhere = features.cross_validate(
        partial(new_model, "cnn3d", data.profile),
        *(blind, data.table.label.to_numpy(), data.table.patient.to_numpy(), folder),
        seeds=(0,),
        outside=cast[1],
        **runs.options_of("cnn3d", data.profile),
    )
    tables = data.table.assign(probability=each[0]), other.table.assign(probability=elsewhere)
    yield from both("3-D CNN after an 8-bit cast", *tables, whole)
    yield from both("HU histogram", *histogram(data, other), whole)
    yield from both("no lungs: spacing, noise, padding", *by_traits(data, other, seeds), whole)


def both(what, here, there, whole):
    """The rows of a model at home and elsewhere, from its tables."""
    for question, table, key in (
        ("disease", here, "disease"),
        ("disease elsewhere", there, "elsewhere"),
    ):
        columns = table.label.to_numpy(), table.probability.to_numpy(), table.patient.to_numpy()
        yield line("controls", question, what, *columns, whole[key])


def by_traits(data, other, seeds):
    """Both cohorts' tables with the probability by what is known of a scan without its lungs."""
    here, there = (baselines.scan_traits(c.table, c.volumes).to_numpy() for c in (data, other))
    labels, patients = data.table.label.to_numpy(), data.table.patient.to_numpy()
    found, outside = np.zeros((len(seeds), len(labels))), []
    for k, seed in enumerate(seeds):
        fold_of = features.folds(labels, patients, 5, seed)
        for fold in range(5):
            kept = fold_of != fold
            model = baselines.logistic_regression(here[kept], labels[kept], seed, patients[kept])
            found[k, ~kept] = model.predict_proba(here[~kept])[:, 1]
            outside.append(model.predict_proba(there)[:, 1])
    table = data.table.assign(probability=found.mean(axis=0))
    return table, other.table.assign(probability=np.mean(outside, axis=0))


def learning_curve(data, seeds, runs_dir):
    """Both ways to train on fewer scans: the same folds, as many steps as with all scans."""
    labels, patients = data.table.label.to_numpy(), data.table.patient.to_numpy()
    for which, these in (("frozen", seeds), ("bilstm", seeds[:1])):
        given, options = runs.inputs(data, which), runs.options_of(which, data.profile)
        n_steps = options["epochs"] * (len(labels) * 4 // 5)
        if which == "frozen":
            options["augment"] = SequenceAugmentation()
        most = len(labels) * 4 // 5
        for size in (*(size for size in SIZES if size < most), most):
            found = np.zeros((len(these), len(labels)))
            options["epochs"] = round(n_steps / size)
            for k, seed in enumerate(these):
                fold_of = features.folds(labels, patients, 5, seed)
                for fold in range(5):
                    held_out, rows = np.flatnonzero(fold_of == fold), []
                    rng = np.random.default_rng([seed, fold])
                    for label in (0, 1):  # the smaller sizes are parts of the larger ones
                        mine = rng.permutation(
                            np.flatnonzero((fold_of != fold) & (labels == label))
                        )
                        rows.extend(mine[: size // 2])
                    some = np.array([*rows, *held_out])
                    _, found[k, held_out] = features.train_fold(
                        partial(new_model, which, data.profile),
                        *(given[some], labels[some], fold_of[some], fold),
                        Path(runs_dir) / "curve" / f"{which}-{size}-seed{seed}-fold{fold}",
                        seed,
                        **options,
                    )
            what = {"frozen": "frozen encoder", "bilstm": "from scratch"}[which]
            mean = found.mean(axis=0)
            yield line("learning curve", "disease", what, labels, mean, patients, size=size)


def explanations(data, runs_dir):
    """How well heat maps point at the lesions of ill scans that their network has not seen."""
    labels, patients = data.table.label.to_numpy(), data.table.patient.to_numpy()
    fold_of = features.folds(labels, patients, 5, 0)
    ill = np.flatnonzero(labels == 1)
    masks = {row: runs.lesion(data, row) for row in ill}
    sequences = runs.inputs(data)
    shuffled = np.random.default_rng(0).permutation(labels)
    found = []
    for fold in range(5):
        mine = ill[fold_of[ill] == fold]
        healthy = sequences[(labels == 0) & (fold_of != fold)].astype(np.float32).mean(axis=0)
        for twin, truth in (("trained", labels), ("random weights", None), ("shuffled", shuffled)):
            folder = Path(runs_dir) / "explanations" / f"{twin.replace(' ', '-')}-fold{fold}"
            scratch = runs.new_model("bilstm", data.profile, fold)
            width = sequences.shape[2]
            behind = {change: network(change, width, fold) for change in ("", "attention")}
            if truth is not None:
                scratch, _ = features.train_fold(
                    partial(new_model, "bilstm", data.profile),
                    *(runs.inputs(data, "bilstm"), truth, fold_of, fold, folder / "scratch"),
                    **runs.options_of("bilstm", data.profile),
                )
                for name in behind:
                    behind[name], _ = features.train_fold(
                        partial(network, name, width),
                        *(sequences, truth, fold_of, fold, folder / f"frozen-{name}"),
                        **OPTIONS,
                    )
            whole = networks.BiLSTMClassifier(networks.Lite0Encoder())
            whole.load_state_dict(behind[""].state_dict(), strict=False)
            if truth is None:
                for module in whole.encoder.modules():
                    if isinstance(module, nn.Conv2d):
                        module.reset_parameters()
            for k, row in enumerate(mine):
                volume, sequence = np.asarray(data.volumes[row]), sequences[row : row + 1]
                heats = {}
                for name, model, maps in (
                    ("scratch", scratch, scratch.encoder.layers),
                    ("frozen", whole, whole.encoder.maps),
                ):
                    pair = prediction.gradient_maps(model, volume, maps)
                    heats[f"{name}: gradient"], heats[f"{name}: Grad-CAM"] = pair
                heats["scratch: occlusion"] = prediction.occlusion_map(scratch, volume)
                heats["scratch: attention"] = prediction.predict(scratch, volume[None], [0])[1][0]
                for name, words in (("", "the LSTM"), ("attention", "features")):
                    _, weights = prediction.predict(behind[name], sequence, [0])
                    heats[f"frozen: attention on {words}"] = weights[0]
                heats["frozen: slices hidden"] = prediction.hide_slices(
                    behind[""], sequence[0], healthy
                )
                another = masks[mine[k - 1]]
                for name, heat in heats.items():
                    scores = metrics.pointing(heat, masks[row])
                    chance = metrics.pointing(heat, another)
                    for measure in scores:
                        each = {"what": name, "question": f"{measure}, {twin}", "row": row}
                        found.append(each | {"value": scores[measure], "other": chance[measure]})
        print(f"explanations of fold {fold} done", flush=True)
    table = pd.DataFrame(found).dropna(subset="value")
    rng = np.random.default_rng(0)
    for (what, question), rows in table.groupby(["what", "question"], sort=False):
        drawn = rng.integers(len(rows), size=(N_RESAMPLES, len(rows)))
        value, other = rows.value.to_numpy(), rows.other.to_numpy()
        row = {"part": "explanations", "question": question, "what": what, "n": len(rows)}
        for name, each in (("", value), ("difference", value - other)):
            low, high = np.quantile(each[drawn].mean(axis=1), [0.025, 0.975])
            if not name and question.startswith("hit"):
                _, low, high = metrics.wilson(each.sum(), len(each))
            joint = f"{name}_" if name else ""
            row |= {name or "value": each.mean(), f"{joint}low": low, f"{joint}high": high}
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--runs-dir", default="runs/experiments")
    parser.add_argument("--csv", default="helpers/course/experiments.csv")
    chosen = parser.parse_args()
    data, other = (
        runs.prepare(name, chosen.profile, chosen.data_dir)
        for name in ("phantom", "phantom-elsewhere")
    )
    seeds, rows = tuple(range(chosen.seeds)), []
    Path(chosen.runs_dir).mkdir(parents=True, exist_ok=True)
    for part in (
        controls(data, other, seeds, chosen.runs_dir),
        learning_curve(data, seeds, chosen.runs_dir),
        explanations(data, chosen.runs_dir),
    ):
        for row in part:
            rows.append(row)
            value, low, high = (row[name] for name in ("value", "low", "high"))
            print(row["part"], row["question"], row["what"], row.get("size", ""), end=" ")
            print(metrics.Interval(value, low, high), flush=True)
    machine = f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}"
    header = f"# make experiments: {machine}, {date.today()}\n"
    table = pd.DataFrame(rows).round(4).to_csv(index=False)
    Path(chosen.csv).write_text(header + table, encoding="utf-8")


if __name__ == "__main__":
    main()
