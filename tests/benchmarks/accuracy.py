"""Accuracy against minutes of training: our Bi-LSTM and 3-D CNNs on the synthetic phantom.

python -m tests.benchmarks.accuracy --json runs/accuracy.json --figure runs/accuracy.png

Every model trains on the same cohort (quick profile), in the same loop (`training.fit`),
on the same device in the same precision, for the same minutes and seeds. The learning rate is
constant after one epoch of warm-up, so that no schedule favours a length of training. Scored is
what one would have at that minute: the checkpoint of the lowest validation loss so far, on phantom
studies made from another seed, that no training sees. That scoring is not counted as training.
A model may have its own learning rate: densenet121@1e-3. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402

from helpers.course import runs, sources
from helpers.ct import cohort
from helpers.ct.cache import preprocess_cohort
from helpers.figures import plots
from helpers.learn import devices, networks, prediction, training
from helpers.phantom import simulate
from helpers.scores import metrics
from helpers.storage.files import write_whole
from tests.benchmarks.training import DenseNet121, as_text, hardware  # noqa: E402

NETWORKS = {
    "bilstm": ("Bi-LSTM (ours)", networks.BiLSTMClassifier),
    "cnn3d-8": ("3-D CNN (Keras, width 8)", lambda: networks.Keras3DCNN(width=8)),
    "cnn3d-64": ("3-D CNN (Keras, width 64)", lambda: networks.Keras3DCNN(width=64)),
    "densenet121": ("3-D DenseNet121 (MONAI)", DenseNet121),
}
OURS = "bilstm"
# at fit's own learning rate the large 3-D networks stay at an AUC of 0.5 for a minute: a lower one
DEFAULT = ("bilstm", "cnn3d-8", "cnn3d-64@3e-4", "densenet121@3e-4")
LEARNING_RATE = 3e-3  # fit's own
UNSEEN_SEED = 4040  # the course's cohort has 2020
TABLE_MINUTES = (0.25, 0.5, 1, 2, 3)
STEP = 0.05  # minutes between two points of the curves
CAPTION = "Synthetic phantom, not patients."


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.5, help="of training, for each run")
    parser.add_argument("--seeds", type=int, default=3, help="how many: 0, 1, ...")
    parser.add_argument("--models", nargs="+", default=DEFAULT, help="NAME or NAME@RATE")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--profile", choices=sources.PROFILES, default="quick")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--figure", type=Path, help="save the figure to this file")
    parser.add_argument("--json", type=Path, help="keep the runs in this file, and go on from it")
    parser.add_argument("--markdown", action="store_true", help="tables for GitHub")
    arguments = parser.parse_args(words)
    if unknown := {name.split("@")[0] for name in arguments.models} - set(NETWORKS):
        parser.error(f"unknown model {', '.join(sorted(unknown))}; use {', '.join(NETWORKS)}")
    device = devices.pick_device(arguments.device)
    precision = devices.pick_precision(device, arguments.precision)
    data = runs.prepare("phantom", arguments.profile, arguments.data_dir)
    unseen, volumes = unseen_cohort(data.profile, arguments.data_dir, arguments.profile)
    os.environ["TQDM_DISABLE"] = "1"  # epochs without end need no bar
    results = {"settings": {"minutes": arguments.minutes, "precision": precision}}
    results["settings"] |= {"profile": arguments.profile, "device": device.type}
    results["hardware"] = hardware(device.type)
    results |= {"labels": unseen.label.tolist(), "patients": unseen.patient.tolist(), "runs": []}
    results = resumed(results, arguments.json)
    done = {(run["model"], run["seed"]) for run in results["runs"]}
    for seed in range(arguments.seeds):
        for name in arguments.models:
            if (name, seed) in done:
                continue
            epochs = train(name, seed, data, unseen, volumes, arguments.minutes, device, precision)
            results["runs"].append({"model": name, "seed": seed, "epochs": epochs})
            last = epochs[-1]
            print(
                f"{label(name)}, seed {seed}: {len(epochs)} epochs in {last['minutes']:.2f} min, "
                f"AUC {last['auc']:.3f}",
                file=sys.stderr,
                flush=True,
            )
            save(results, arguments.json)
    results["runs"] = [
        run
        for run in results["runs"]
        if run["model"] in arguments.models and run["seed"] < arguments.seeds
    ]
    print("\n".join(report(results, arguments.markdown)))
    if arguments.figure:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        figure(results).savefig(arguments.figure, dpi=150)


def label(name):
    """A model's name in tables, with its learning rate where it has one of its own."""
    network, _, rate = name.partition("@")
    return NETWORKS[network][0] + (f", rate {rate}" if rate else "")


def unseen_cohort(profile, data_dir, profile_name):
    """As many phantom studies as the cohort has, of other patients: table and volumes."""
    root = data_dir / f"phantom-{profile_name}-unseen"
    simulate.make_cohort(root, profile.counts, profile.matrix, seed=UNSEEN_SEED)
    table = cohort.label_studies(cohort.find_studies(root))
    cache = preprocess_cohort(table, root, root / "cache", profile.size)
    table = table.merge(cache.index[["study", "row"]], on="study").sort_values("row")
    return table, cache.volumes


def resumed(results, path):
    """The results in the file at `path`, if they are of the same settings and studies."""
    if path is None or not path.exists():
        return results
    found = json.loads(path.read_text())
    if any(found[name] != results[name] for name in ("settings", "labels", "patients")):
        sys.exit(f"{path}: made with {found['settings']}; delete it or name another file")
    return found


def save(results, path):
    if path is not None:
        write_whole(path, lambda file: file.write(json.dumps(results).encode()))


class TimeIsUp(Exception):
    """Ends a training after its minutes."""


def train(name, seed, data, unseen, volumes, minutes, device, precision):
    """Train one model for some minutes; returns a dictionary an epoch.

    minutes: of training up to its end, validation included. validation_loss. auc and scores: of
    the checkpoint selected by then, on the unseen studies.
    """
    network, _, rate = name.partition("@")
    torch.manual_seed(seed)
    model = NETWORKS[network][1]()
    epochs = []

    def on_epoch(history):
        is_best = history.validation_loss.idxmin() == len(history) - 1
        if is_best:
            batch_size = 2 * data.profile.batch_size
            options = {"device": device.type, "precision": precision}
            scores, _ = prediction.predict(model, volumes, unseen.row, batch_size, **options)
            scores = np.round(scores.astype(float), 6)
        else:
            scores = epochs[-1]["scores"]
        epoch = {"minutes": history.seconds.sum() / 60, "is_best": bool(is_best)}
        epoch["validation_loss"] = float(history.validation_loss.iloc[-1])
        epoch["auc"] = metrics.auc(unseen.label, scores)
        epoch["scores"] = list(scores)
        epochs.append(epoch)
        if epoch["minutes"] >= minutes:
            raise TimeIsUp

    n_epochs = 10_000
    with tempfile.TemporaryDirectory() as folder, suppress(TimeIsUp):
        training.fit(
            model,
            data.volumes,
            data.labels,
            data.rows("train"),
            data.rows("validation"),
            folder,
            epochs=n_epochs,
            patience=n_epochs,
            warmup=1 / n_epochs,
            schedule="constant",
            batch_size=data.profile.batch_size,
            learning_rate=float(rate or LEARNING_RATE),
            precision=precision,
            device=device.type,
            seed=seed,
            on_epoch=on_epoch,
        )
    return epochs


def at_minute(epochs, minute):
    """The last epoch that has ended by that minute; None before the first."""
    ended = [epoch for epoch in epochs if epoch["minutes"] <= minute]
    return ended[-1] if ended else None


def curves(runs, minutes):
    """Model -> AUC (seeds, minutes), NaN where no epoch has ended yet."""
    found = {}
    for run in runs:
        epochs = [at_minute(run["epochs"], minute) for minute in minutes]
        line = [np.nan if epoch is None else epoch["auc"] for epoch in epochs]
        found.setdefault(run["model"], []).append(line)
    return {name: np.array(lines) for name, lines in found.items()}


def scores_at(runs, name, minute):
    """Scores (seeds, studies) of one model's checkpoints at that minute; None if one has none."""
    epochs = [at_minute(run["epochs"], minute) for run in runs if run["model"] == name]
    return None if None in epochs else np.array([epoch["scores"] for epoch in epochs])


def mean_auc(labels, scores):
    """Mean over the seeds of the AUC of scores (seeds, studies)."""
    return float(np.mean([metrics.auc(labels, row) for row in scores]))


def interval(labels, patients, *scores):
    """Mean AUC of one model, or the difference of two, bootstrapped by patient; seeds are fixed.

    scores: one or two arrays (seeds, studies). If all studies of all resamples are told apart
    without an error, the interval has no width, which is no evidence.
    """

    def statistic(labels, columns):
        columns = columns.astype(int)
        values = [mean_auc(labels, each[:, columns]) for each in scores]
        return values[0] - sum(values[1:])

    columns = np.arange(len(labels))
    return metrics.bootstrap(statistic, labels, columns, patients, n_resamples=1000)


def table(results):
    """Lines of the table: mean AUC of every model at each minute, and ours minus it."""
    labels, patients = np.array(results["labels"]), results["patients"]
    runs, lines = results["runs"], []
    end = results["settings"]["minutes"]
    for minute in (*(minute for minute in TABLE_MINUTES if minute < end), end):
        ours = scores_at(runs, OURS, minute)
        for name in dict.fromkeys(run["model"] for run in runs):
            scores = scores_at(runs, name, minute)
            line = {"minutes": f"{minute:g}", "model": label(name), "AUC": "no epoch yet"}
            line["ours minus it"] = ""
            if scores is not None:
                line["AUC"] = str(interval(labels, patients, scores))
            if scores is not None and ours is not None and name != OURS:
                line["ours minus it"] = str(interval(labels, patients, ours, scores))
            lines.append(line)
    return lines


def verdict(minutes, ours, opponent):
    """Whether ours is ahead at every minute at which either has a score.

    ours, opponent: AUC at each of the minutes, NaN where there is none yet. Returns "yes", or
    "no" with the first minute at which it is not ahead; level is not ahead.
    """
    for minute, a, b in zip(minutes, ours, opponent, strict=True):
        if np.isnan(b):
            continue
        if np.isnan(a) or a <= b:
            own = "no epoch yet" if np.isnan(a) else f"{a:.3f}"
            return f"no, first not at minute {minute:.2f} ({own} against {b:.3f})"
    return "yes" if not np.all(np.isnan(opponent)) else "no epoch of it to compare with"


def report(results, markdown=False):
    """The lines that the benchmark prints."""
    settings, runs = results["settings"], results["runs"]
    seeds = sorted({run["seed"] for run in runs})
    yield f"{results['hardware']}, {settings['precision']}"
    n_studies = len(results["labels"])
    yield f"{CAPTION} Profile {settings['profile']}; AUC on {n_studies} unseen studies,"
    yield f"mean of seeds {seeds}, 95 % interval by bootstrap over patients.\n"
    yield as_text(table(results), markdown) + "\n"
    minutes = np.arange(STEP, settings["minutes"] + STEP / 2, STEP)
    means = {name: lines.mean(axis=0) for name, lines in curves(runs, minutes).items()}
    for name in means:
        if name != OURS and OURS in means:
            words = verdict(minutes, means[OURS], means[name])
            yield f"ours ahead of {label(name)} at every minute: {words}"


def figure(results):
    """AUC against minutes: median of the seeds, band from the lowest to the highest."""
    minutes = np.arange(STEP, results["settings"]["minutes"] + STEP / 2, STEP)
    plots.use_course_style()
    drawn = plots.CourseFigure(figsize=(plots.WIDTH, 4.4), layout="constrained")
    axis = drawn.subplots()
    for k, (name, lines) in enumerate(curves(results["runs"], minutes).items()):
        # NaN as long as one seed has no epoch: a median of the quick ones would flatter
        middle, low, high = np.median(lines, axis=0), lines.min(axis=0), lines.max(axis=0)
        colour = plots.COLOURS[k % len(plots.COLOURS)]
        axis.plot(minutes, middle, color=colour, label=label(name))
        axis.fill_between(minutes, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.axhline(0.5, linestyle=":", color=plots.GREY)
    axis.set(xlabel="minutes of training", ylabel="AUC on unseen phantom studies")
    axis.set(xlim=(0, minutes[-1]), ylim=(0.3, 1.02))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    n_seeds = len({run["seed"] for run in results["runs"]})
    text = f"{CAPTION} Median and range of {n_seeds} seeds. {results['hardware']}."
    drawn.supxlabel(text, fontsize=8.5, color=plots.GREY)
    return drawn


if __name__ == "__main__":
    main()
