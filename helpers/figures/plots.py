"""The course's figures: plain data in, a matplotlib Figure out, the same style everywhere.

A figure shows itself as the last line of a cell, or through `display`. Slices are (H, W) with the
patient's right in column 0, so the image's left is the patient's right, as radiologists see it.
"""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import sklearn.metrics
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from helpers.ct import quality
from helpers.scores import metrics

if TYPE_CHECKING:
    import pandas as pd

    from helpers.ct.studies import Study

# Okabe and Ito's colours, told apart by every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SEVERITY = ("#0072B2", "#F0E442", "#E69F00", "#D55E00", "#CC79A7")
CATEGORIES = {f"CT-{k}": colour for k, colour in enumerate(SEVERITY)}
GREY, WIDTH = "#777777", 9
CHECKS = {
    "air": "air, HU",
    "fat": "fat, HU",
    "soft": "soft tissue, HU",
    "vessels": "heart and vessels, HU",
    "lung": "lung, litres",
    "height": "height, mm",
    "spacing_z": "slice spacing, mm",
    "spacing_x": "pixel spacing, mm",
    "padding": "padding, share",
}


class CourseFigure(Figure):
    """A Figure that shows itself in a notebook without pyplot."""

    def _repr_png_(self):
        return png_with_text(self)


def png_with_text(figure) -> tuple[bytes, dict]:
    """A figure as Jupyter shows it: the PNG, and its alternative text for who cannot see it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08)
    return buffer.getvalue(), {"alt": alternative_text(figure)}


def alternative_text(figure) -> str:
    """What a figure shows, in words: its label, or all that is written on its axes.

    Give one that says what is to be seen with `figure.set_label("...")`.
    """
    if figure.get_label():
        return figure.get_label()
    parts = [figure.get_suptitle()]
    for axis in figure.axes:
        kind = "picture" if axis.images else "chart"
        labels = " against ".join(filter(None, (axis.get_ylabel(), axis.get_xlabel())))
        legend, rows = axis.get_legend(), axis.get_yticklabels()
        words = [text.get_text() for text in legend.get_texts()] if legend else []
        said = [text.get_text() for text in axis.texts if len(text.get_text()) > 1]
        if len(said) == len(rows):  # a line of words for each row, as in `intervals`
            said = [f"{row.get_text()} {text}" for row, text in zip(rows, said, strict=True)]
        words = ", ".join(words + said)
        parts.append(": ".join(filter(None, (axis.get_title() or kind, labels, words))))
    parts = dict.fromkeys(" ".join(part.split()) for part in [*parts, figure.get_supxlabel()])
    return "; ".join(filter(None, parts))


def diagram(name) -> None:
    """Show one of the drawings that explain, docs/diagrams/NAME.svg (made by `make diagrams`)."""
    path = Path(__file__).parents[2] / "docs" / "diagrams" / f"{name}.svg"
    if not path.exists():  # where helpers alone were installed
        print(f"No drawing here: {path.name} lies in docs/diagrams of the repository.")
        return
    drawing = path.read_text(encoding="utf-8")
    (words,) = re.findall(r"<desc[^>]*>(.+?)</desc>", drawing, re.S)
    words = " ".join(html.unescape(words).split())
    display({"image/svg+xml": drawing}, metadata={"image/svg+xml": {"alt": words}}, raw=True)


def use_course_style() -> None:
    """Give every later matplotlib figure the course's fonts, grid and colour-blind-safe colours."""
    mpl.rc("figure", dpi=100)
    mpl.rc("savefig", dpi=100)
    mpl.rc("font", size=10)
    mpl.rc("axes", titlesize=10.5, grid=True, axisbelow=True, prop_cycle=mpl.cycler(color=COLOURS))
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc("grid", alpha=0.3)
    mpl.rc("legend", frameon=False, fontsize=9)
    if shell := get_ipython():  # figures made with pyplot carry an alternative text as well
        plt.switch_backend(mpl.get_backend())  # now, since it brings a formatter of its own
        shell.display_formatter.formatters["image/png"].for_type(Figure, png_with_text)


def show_slices(
    slices, titles=None, spacing=None, window=None, caption="", columns=4, marks=True
) -> Figure:
    """Slices side by side in grey, with R and L at the patient's right and left.

    slices: (H, W), or (H, W, 3) in colour. spacing: mm, (y, x) or a study's (z, y, x), for axes
    in mm. window: (low, high) in HU; None shows each slice's full range. marks: False, or a list,
    leaves R and L out where they would be wrong. caption: below, for example "synthetic".
    """
    n, columns = len(slices), min(len(slices), columns)
    step_y, step_x = (1, 1) if spacing is None else spacing[-2:]
    n_rows, n_y, n_x = -(-n // columns), *np.shape(slices[0])[:2]
    width = min(WIDTH, 0.8 + 3.6 * columns)
    height = n_rows * (width / columns * (n_y * step_y) / (n_x * step_x) + 0.6) + 0.3
    figure, axes = _figure(n_rows, columns, height, width, caption, grid=False)
    low, high = window or (None, None)
    words = f"\n{low:g} to {high:g} HU".replace("-", "\N{MINUS SIGN}") if window else ""
    for axis in axes.flat[n:]:
        axis.remove()
    for k, (axis, picture) in enumerate(zip(axes.flat, slices, strict=False)):
        extent = (0, np.shape(picture)[1] * step_x, np.shape(picture)[0] * step_y, 0)
        axis.imshow(picture, cmap="gray", vmin=low, vmax=high, extent=extent)
        if marks[k] if isinstance(marks, list) else marks:
            _mark_sides(axis)
        axis.set_title(((titles[k] if titles else "") + words).strip())
        if spacing is None:
            axis.set(xticks=[], yticks=[])
        else:
            axis.set(xlabel="mm", ylabel="mm" if k % columns == 0 else "")
    return figure


def class_balance(table, caption="") -> Figure:
    """Bars of the studies of each category; table: `category`, one row a study."""
    counts = table.category.value_counts().sort_index()
    figure, [[axis]] = _figure(1, 1, 3, 5, caption)
    colours = [CATEGORIES.get(name, GREY) for name in counts.index]
    bars = axis.bar(counts.index, counts, color=colours)
    axis.bar_label(bars, [f"{n}\n{100 * n / counts.sum():.2g} %" for n in counts], padding=2)
    axis.set(ylabel="studies", ylim=(0, counts.max() * 1.25))
    axis.grid(visible=False, axis="x")
    return figure


def geometry(table, caption="") -> Figure:
    """Slices, height and pixel size of each study, by category; the bar is the median.

    table: `category`, `n_slices`, `spacing_z` and `spacing_x` in mm, one row a study.
    """
    figure, axes = _figure(1, 3, 3.2, WIDTH, caption, sharey=True)
    labels = ("slices", "height in mm", "pixel size in mm")
    columns = (table.n_slices, table.n_slices * table.spacing_z, table.spacing_x)
    names = sorted(table.category.unique())
    for axis, label, values in zip(axes.flat, labels, columns, strict=True):
        for k, name in enumerate(names):
            mine, colour = values[table.category == name].to_numpy(), CATEGORIES.get(name, GREY)
            spread = k + np.random.default_rng(0).uniform(-0.25, 0.25, len(mine))
            axis.scatter(mine, spread, s=14, color=colour, edgecolor=GREY, linewidth=0.3)
            axis.vlines(np.median(mine), k - 0.38, k + 0.38, color="black", linewidth=2)
        axis.set(xlabel=label, yticks=range(len(names)), yticklabels=names)
    axes.flat[0].invert_yaxis()
    return figure


def quality_sheet(sheet, caption="") -> Figure:
    """A panel for each check of a cohort's scans: a dot a scan, the usual range shaded.

    sheet: as `quality.sheet` gives it. A row for each category; titles count the scans outside the
    range. Up to eight of them are exceptions, and the four farthest out carry their names.
    """
    names = sorted(sheet.category.unique())
    figure, axes = _figure(3, 3, 2.6 + 1.3 * max(2, len(names)), WIDTH, caption, sharey=True)
    where, words = sheet.category.map(names.index), [f"Quality of {len(sheet)} scans"]
    spread = where + np.random.default_rng(0).uniform(-0.3, 0.3, len(sheet))
    for axis, (check, title) in zip(axes.flat, CHECKS.items(), strict=True):
        low, high = quality.RANGES[check][:2]
        values = sheet[check].astype(float)
        for k, name in enumerate(names):
            look = {"color": CATEGORIES.get(name, GREY), "marker": "osD^v"[k % 5], "s": 20}
            mine = (where == k) & values.notna()
            axis.scatter(values[mine], spread[mine], edgecolor="black", linewidth=0.4, **look)
        axis.axvspan(low, high, color=COLOURS[2], alpha=0.13, linewidth=0)
        ends = min(low, values.min()), max(high, values.max())
        room = 0.06 * (np.nanmax(ends) - np.nanmin(ends))
        axis.set(xlim=(np.nanmin(ends) - room, np.nanmax(ends) + room))
        axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        away = (low - values).clip(lower=0) + (values - high).clip(lower=0)
        outside = away[away > 0].sort_values(ascending=False).index
        axis.locator_params(axis="x", nbins=6)
        if len(outside) <= 8:
            _name_points(axis, [(values[k], spread[k], sheet.study[k]) for k in outside[:4]])
        says = f"{len(outside)} outside" if len(outside) else "all usual"
        missing = f", {values.isna().sum()} without" if values.isna().any() else ""
        axis.set_title(f"{title}: {says}{missing}", fontsize=9.5)
        named = ", ".join(f"{sheet.study[k]} {values[k]:.3g}" for k in outside)
        words.append(f"{title}: {len(outside)} outside {low:g} to {high:g}{missing} {named}")
    figure.set_label("; ".join(" ".join(part.split()) for part in words))
    return figure


def _name_points(axis, points):
    """Write names at points (x, y, name), away from the nearer side and from one another."""
    bottom, top = axis.get_ylim()
    step, last = abs(bottom - top) / 7, -np.inf
    middle, y_of = np.mean(axis.get_xlim()), []
    for _, y, _ in sorted(points, key=lambda point: point[1]):
        last = max(y, last + step, min(bottom, top) + step / 2)
        y_of.append(last)
    over = max(0, y_of[-1] + step / 2 - max(bottom, top)) if y_of else 0
    for (x, y, name), height in zip(sorted(points, key=lambda p: p[1]), y_of, strict=True):
        name = name if len(name) <= 16 else f"{name[:9]}…{name[-6:]}"
        side = 1 if x < middle else -1
        axis.annotate(
            name, (x, y), (x + side * 0.05 * np.ptp(axis.get_xlim()), height - over), fontsize=8,
            ha="left" if side > 0 else "right", va="center",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6},
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip


def quality_of_one(study: Study, measured, caption="") -> Figure:
    """Where `quality.measure` found its numbers: the histogram's peaks, and outlines in 3 planes.

    measured: what `quality.measure(study)` gives, or the study's line of a sheet.
    """
    found, hu = quality.regions(study), study.hu
    parts = {"front": "air in front", "even": "even parts", "lung": "lung"}
    parts |= {"middle": "heart, vessels", "padding": "padding"}
    colours = dict(zip(parts, [COLOURS[k] for k in (5, 4, 2, 1, 3)], strict=True))
    figure, axes = _figure(2, 2, 7.4, WIDTH, caption, grid=False)
    brightest = np.nanmax([400, measured["vessels"] + 100])
    chart, edges = axes[0, 0], np.arange(-1100, brightest, 10)
    for part, name in parts.items():
        counts = np.histogram(found["hu"][found[part]], edges)[0]
        chart.stairs(counts / 1000, edges, color=colours[part], label=name, linewidth=1.6)
    top = chart.get_ylim()[1]
    for k, check in enumerate(("air", "fat", "soft", "vessels")):
        value = measured[check]
        text = f"{check} {value:.0f}".replace("-", "\N{MINUS SIGN}")
        if np.isfinite(value):
            chart.axvline(value, color="black", linestyle=":", linewidth=1)
            side = "left" if k in (0, 3) else "right"
            chart.text(value, top * (1.02 + 0.07 * (k == 2)), text, ha=side, fontsize=9)
    chart.set(xlabel="HU (means of blocks of 3 mm)", ylabel="thousands of blocks")
    chart.set(xlim=(-1100, brightest), ylim=(0, top))
    chart.legend(loc="upper center", bbox_to_anchor=(0.42, 0.97), fontsize=8)
    there = np.argwhere(found["middle"] if found["middle"].any() else found["body"])
    place = np.median(there, axis=0).astype(int) if len(there) else np.array(hu.shape) // 2
    scale = np.array(hu.shape) // np.array(found["hu"].shape)
    names = (f"axial, slice {place[0]}", "coronal", "sagittal")
    for fixed, (axis, name) in enumerate(zip(axes.flat[1:], names, strict=True)):
        down, right = (k for k in range(3) if k != fixed)
        sides = [hu.shape[k] * study.spacing[k] for k in (down, right)]
        extent = (0, sides[1], 0, sides[0]) if fixed else (0, sides[1], sides[0], 0)
        picture = hu.take(place[fixed] * scale[fixed], axis=fixed)
        origin = "lower" if fixed else "upper"
        axis.imshow(picture, cmap="gray", vmin=-1000, vmax=400, extent=extent, origin=origin)
        for part in ("padding", "front", "lung", "middle"):
            mask = found[part].take(place[fixed], axis=fixed)
            if mask.any():
                y, x = (
                    (np.arange(n) + 0.5) * study.spacing[k] * scale[k]
                    for n, k in zip(mask.shape, (down, right), strict=True)
                )
                axis.contour(x, y, mask, [0.5], colors=colours[part], linewidths=1.3)
        if fixed < 2:
            _mark_sides(axis)
        axis.set(title=f"{name}\n−1000 to 400 HU", xlabel="mm", ylabel="mm")
    numbers = ", ".join(f"{name} {measured[check]:.4g}" for check, name in CHECKS.items())
    figure.set_label(f"Histogram and three planes of a scan with what was measured: {numbers}")
    return figure


def split_overview(table, caption="") -> Figure:
    """Stacked bars of the categories in each part; table: `part` and `category`, a row a study."""
    figure, [[axis]] = _figure(1, 1, 2.4, WIDTH, caption)
    counts = table.groupby(["part", "category"]).size().unstack(fill_value=0)
    counts = counts.reindex(["test", "validation", "train"]).dropna()
    parts = [f"{part} ({n:g})" for part, n in counts.sum(axis=1).items()]
    left, readable = np.zeros(len(counts)), 0.025 * counts.sum(axis=1).max()
    for name, values in counts.items():
        bars = axis.barh(parts, values, left=left, label=name, color=CATEGORIES.get(name, GREY))
        texts = [f"{n:g}" if n > readable else "" for n in values]
        axis.bar_label(bars, texts, label_type="center", fontsize=9)
        left += values.to_numpy()
    axis.set(xlabel="studies")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def roc_and_pr(
    models, patients=None, n_resamples=metrics.N_RESAMPLES, seed=0, caption=""
) -> Figure:
    """ROC and precision-recall curves with 95 % bands, of models: name -> (labels, scores).

    The intervals in the legend are those of `metrics.evaluate`.
    """
    figure, [[roc, pr]] = _figure(1, 2, 4.4 + 0.2 * len(models), WIDTH, caption)
    for k, (name, (labels, scores)) in enumerate(models.items()):
        area = metrics.auc_interval(labels, scores, patients)
        mean = metrics.average_precision_interval(labels, scores, patients)
        for axis, kind, interval in ((roc, "roc", area), (pr, "pr", mean)):
            band = metrics.curve_bands(labels, scores, kind, n_resamples, seed, patients)
            grid, curve, low, high = band
            axis.plot(grid, curve, color=COLOURS[k % 7], label=f"{name}: {interval}")
            axis.fill_between(grid, low, high, color=COLOURS[k % 7], alpha=0.15, linewidth=0)
    roc.plot([0, 1], [0, 1], ":", color=GREY)
    pr.axhline(np.mean(labels), linestyle=":", color=GREY)
    roc.set(xlabel="1 − specificity", ylabel="sensitivity")
    pr.set(xlabel="recall (sensitivity)", ylabel="precision")
    for axis, title in ((roc, "AUC [95 % interval]"), (pr, "average precision [95 % interval]")):
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axis.legend(title=title, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure


def reliability_diagram(labels, probabilities, caption="") -> Figure:
    """Observed share of COVID against the predicted one; bars are Wilson intervals of each bin.

    The line below tells how many studies each point stands for, from left to right.
    """
    bins = metrics.reliability(labels, probabilities)
    figure, [[axis]] = _figure(1, 1, 4.6, 5, caption)
    axis.plot([0, 1], [0, 1], ":", color=GREY, label="perfect")
    ends = np.abs(bins[["low", "high"]].to_numpy().T - bins.observed.to_numpy())
    axis.errorbar(bins.predicted, bins.observed, ends, fmt="o-", capsize=3, label="this model")
    counts = ", ".join(map(str, bins["count"]))
    axis.set(title=f"Brier score {metrics.brier(labels, probabilities):.3f}", aspect="equal")
    axis.set(xlabel=f"predicted probability\n(bins of {counts} studies)", ylim=(-0.05, 1.1))
    axis.set(ylabel="observed share of COVID")
    axis.legend(loc="upper left")
    return figure


def confusion_matrix(labels, predictions, caption="") -> Figure:
    """Counts of truth (rows) against prediction (columns), with the percentages of each row."""
    figure, [[axis]] = _figure(1, 1, 3.4, 3.8, caption, grid=False)
    _count(axis, labels, predictions)
    return figure


def threshold(labels, scores, value, caption="") -> Figure:
    """What a threshold does: the scores of healthy and ill, the calls, its point on the ROC curve.

    labels, scores: (N,); a scan is called ill when its score is at or above `value`. The figure's
    label says it in words. ValueError for labels and scores that no ROC curve can be drawn of.
    """
    area, labels, scores = metrics.auc(labels, scores), np.asarray(labels), np.asarray(scores)
    called = scores >= value
    figure, [[left, middle, right]] = _figure(1, 3, 3.4, WIDTH, caption)
    for k, name in enumerate(("healthy", "ill")):
        of_class, bins = scores[labels == k], np.linspace(scores.min(), scores.max(), 26)
        left.hist(of_class, bins, color=COLOURS[k], alpha=0.55, label=name, histtype="stepfilled")
    left.axvline(value, color="black", label="threshold")
    left.set(xlabel="score", ylabel="scans")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, columnspacing=1)
    _count(middle, labels, called, names=("healthy", "ill"))
    alarms, found, _ = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    right.plot(alarms, found, color=COLOURS[0])
    right.plot([0, 1], [0, 1], ":", color=GREY)
    right.plot(called[labels == 0].mean(), called[labels == 1].mean(), "o", color="black")
    right.set(xlabel="1 − specificity", ylabel="sensitivity", title=f"AUC {area:.2f}")
    right.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    figure.set_layout_engine("none")  # it is slow, and a slider draws this at every step
    for axis, x, width in ((left, 0.06, 0.29), (middle, 0.47, 0.22), (right, 0.76, 0.23)):
        axis.set_position((x, 0.25, width, 0.63))
    figure.set_label(calls_in_words(labels, scores, value))
    return figure


def calls_in_words(labels, scores, value) -> str:
    """What comes of calling ill whatever scores at or above `value`; labels, scores: (N,)."""
    ill, called = np.asarray(labels) == 1, np.asarray(scores) >= value
    found, spared = called[ill], ~called[~ill]
    return (
        f"Threshold {value:.2f}: {found.sum()} of {len(found)} ill are called, "
        f"sensitivity {found.mean():.2f}; {spared.sum()} of {len(spared)} healthy are not, "
        f"specificity {spared.mean():.2f}"
    )


def _count(axis, labels, predictions, names=("no COVID", "COVID")):
    """Draw the counts of truth (rows) against prediction (columns)."""
    counts = sklearn.metrics.confusion_matrix(labels, predictions, labels=[0, 1])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.grid(visible=False)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (truth, call), share in np.ndenumerate(shares):
        words, ink = f"{counts[truth, call]}\n{100 * share:.0f} %", "wk"[int(share <= 0.5)]
        axis.text(call, truth, words, ha="center", va="center", color=ink, fontsize=12)
    axis.set(xticks=(0, 1), yticks=(0, 1), xticklabels=names, yticklabels=names)
    axis.set(xlabel="predicted", ylabel="truth")


def training_curves(history, caption="") -> Figure:
    """Losses, validation AUC and learning rate; the dotted line is the lowest validation loss.

    history: `epoch`, `train_loss`, `validation_loss`, `validation_auc`, `learning_rate`.
    """
    figure, [axes] = _figure(1, 3, 3, WIDTH, caption)
    panels = (("train_loss", "validation_loss"), ("validation_auc",), ("learning_rate",))
    best = history.epoch[history.validation_loss.idxmin()]
    for axis, names in zip(axes, panels, strict=True):
        for name in names:
            axis.plot(history.epoch, history[name], marker=".", label=name.split("_")[0])
        axis.axvline(best, linestyle=":", color=GREY)
        axis.set(xlabel="epoch", title=names[-1].replace("_", " ").replace("auc", "AUC"))
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set(title="loss")
    axes[0].legend()
    axes[1].set(ylim=(min(0.45, history.validation_auc.min() - 0.05), 1.02))
    axes[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    return figure


def intervals(scores, metrics=("auc",), chance=None, caption="") -> Figure:
    """Forest plot: a row a model, a panel a metric, each value with its interval and in words.

    scores: model -> {metric: Interval}, as `evaluate` gives. chance: {metric: value}, dotted.
    """
    width = min(WIDTH, 4 + 3.5 * len(metrics))
    figure, axes = _figure(1, len(metrics), 1.1 + 0.36 * len(scores), width, caption, sharey=True)
    for axis, metric in zip(axes.flat, metrics, strict=True):
        found = [score[metric] for score in scores.values()]
        for k, (value, low, high) in enumerate(found):
            axis.hlines(k, low, high, color=COLOURS[0], linewidth=2)
            axis.plot(value, k, "o", color=COLOURS[0])
            axis.text(1.1, k, str(found[k]), va="center", fontsize=9)
        if chance and metric in chance:
            axis.axvline(chance[metric], linestyle=":", color=GREY)
        title = metric.replace("_", " ").replace("auc", "AUC")
        axis.set(title=title, xlim=(-0.04, 1.04), yticks=range(len(scores)), yticklabels=scores)
    axes.flat[0].set_ylim(len(scores) - 0.5, -0.5)
    return figure


def failures_gallery(volumes, rows, threshold=0.5, n=4, caption="") -> Figure:
    """The worst wrong calls, worst first, each with five slices around the one in its row.

    volumes: uint8, (N, D, H, W). rows: `row` (place in volumes), `study`, `label`,
    `probability`, `slice`. The slice of the row stands in the middle, framed.
    """
    wrong = rows[(rows.probability >= threshold) != (rows.label == 1)]
    wrong = wrong.iloc[np.argsort(-np.abs(wrong.label - wrong.probability))[:n]]
    n_rows = max(len(wrong), 1)
    figure, axes = _figure(n_rows, 5, 2.05 * n_rows, WIDTH, caption, grid=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], visible=False)
    if not len(wrong):
        figure.suptitle("no wrong calls")
    for line, row in zip(axes, wrong.itertuples(), strict=False):
        volume = volumes[row.row]
        for axis, step in zip(line, range(-2, 3), strict=True):
            place = row.slice + step * max(1, len(volume) // 15)
            if 0 <= place < len(volume):
                axis.imshow(volume[place], cmap="gray", vmin=0, vmax=255)
                axis.set_title(f"slice {place}", fontsize=8)
                axis.set_visible(True)
                _mark_sides(axis)
        truth = "COVID" if row.label == 1 else "no COVID"
        title = f"{row.study}: {truth}, p = {row.probability:.2f}\nslice {row.slice}"
        line[2].set_title(title, fontsize=9)
        line[2].spines[:].set(visible=True, color=COLOURS[1], linewidth=2.5)
    return figure


def attention_strip(attention, lesion=None, title="", caption="") -> Figure:
    """A bar of attention for each slice, from the feet up; the slices with lesion are shaded.

    attention: (D,), sums to 1. lesion: (D,) true or positive where a slice holds lesion, or None.
    """
    attention = np.asarray(attention)
    figure, [[axis]] = _figure(1, 1, 2.2, WIDTH, caption)
    if lesion is not None:
        places, top = np.flatnonzero(lesion), attention.max() * 1.1
        axis.bar(places, top, 1.0, color=COLOURS[4], alpha=0.3, label="slices with lesion")
    axis.bar(np.arange(len(attention)), attention, 0.8, color=COLOURS[0], label="attention")
    axis.axhline(1 / len(attention), linestyle=":", color=GREY, label="even")
    axis.set(title=title, xlabel="slice (feet to head)", ylabel="attention")
    axis.set(xlim=(-0.6, len(attention) - 0.4), ylim=(0, attention.max() * 1.1))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _figure(n_rows, n_columns, height, width, caption, grid=True, **options):
    """A figure and its axes (n_rows, n_columns), the caption small below."""
    use_course_style()
    figure = CourseFigure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.grid(grid)
    if caption:
        figure.supxlabel(caption, fontsize=8.5, color=GREY)
    return figure, axes


def _mark_sides(axis) -> None:
    """Write R at the image's left edge and L at its right edge."""
    how = {"color": "white", "path_effects": [withStroke(linewidth=2, foreground="black")]}
    axis.text(0.03, 0.5, "R", ha="left", va="center", transform=axis.transAxes, **how)
    axis.text(0.97, 0.5, "L", ha="right", va="center", transform=axis.transAxes, **how)


class LiveCurve:
    """For fit's on_epoch: draws the training curves again in place, after every `every` epochs.

    Outside a notebook it does nothing; in one that runs without a screen the last picture stays.
    """

    def __init__(self, every: int = 1) -> None:
        self.every, self.display = every, None

    def __call__(self, history: pd.DataFrame) -> None:
        if len(history) % self.every or not hasattr(get_ipython(), "kernel"):
            return
        if self.display is None:
            self.display = display(training_curves(history), display_id=True)
        else:
            self.display.update(training_curves(history))
