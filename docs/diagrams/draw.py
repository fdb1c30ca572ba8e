"""Draw the diagrams of the notebooks: python docs/diagrams/draw.py writes *.svg beside this file.

Each function draws one on a card of its own, so that it reads on a white page and on a dark one;
its docstring is the alternative text. Units: 100 across, as many up as the diagram is high.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers.figures.plots import COLOURS  # noqa: E402
from helpers.figures.rendering import PRESETS  # noqa: E402

BLUE, RED, GREEN, PINK, ORANGE, SKY, INK = COLOURS
PALE = {BLUE: "#d6e8f4", RED: "#f9e0d0", GREEN: "#d3efe6", ORANGE: "#fbecc9", "grey": "#ebebe6"}
HERE = Path(__file__).parent
DIAGRAMS = {}


def diagram(title, height):
    """Register a function that draws on an axis 100 wide and `height` high."""

    def register(function):
        DIAGRAMS[function.__name__] = (function, title, height)
        return function

    return register


def draw(name) -> Figure:
    """The figure of one diagram, with its card."""
    function, _, height = DIAGRAMS[name]
    figure = Figure(figsize=(8.4, 8.4 * height / 100))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 100), ylim=(0, height))
    axis.axis("off")
    card = FancyBboxPatch((1.2, 1.2), 97.6, height - 2.4, "round,pad=0,rounding_size=2")
    card.set(facecolor="#fdfdfb", edgecolor="#c8c8c0", linewidth=1, zorder=-9)
    axis.add_patch(card)
    function(axis)
    return figure


def svg(name) -> str:
    """The diagram as SVG text, the same at every call, with a title and a description."""
    function, title, _ = DIAGRAMS[name]
    words = " ".join(function.__doc__.split())
    with mpl.rc_context({"svg.hashsalt": "course", "svg.fonttype": "path", "font.size": 11}):
        buffer = io.StringIO()
        draw(name).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\n?", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r"\b[1-9]\d*\.\d{3,}", lambda found: f"{float(found[0]):.2f}", text)  # smaller
    text = re.sub(r"\s*\n\s*", "\n", text)
    head = (
        f"\n <title>{title}</title>\n <desc>{words}</desc>\n <!-- matplotlib {mpl.__version__} -->"
    )
    return text.replace("<svg ", '<svg role="img" ', 1).replace(">", ">" + head, 1)


def say(axis, x, y, words, size=11, colour=INK, weight="normal", align="center"):
    """Words around the point (x, y)."""
    how = {"fontsize": size, "color": colour, "weight": weight, "linespacing": 1.35}
    axis.text(x, y, words, ha=align, va="center", **how)


def box(axis, x, y, width, height, words="", colour="grey", size=11, weight="normal"):
    """A rounded box with its lower left corner at (x, y), and words in its middle."""
    patch = FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.8")
    edge = "#777777" if colour == "grey" else colour
    axis.add_patch(patch)
    patch.set(facecolor=PALE[colour], edgecolor=edge, linewidth=1.3)
    say(axis, x + width / 2, y + height / 2, words, size, weight=weight)


def arrow(axis, start, end, colour="#444444", bend=0.0, style="-|>", line="-"):
    """An arrow from one point to another; bend makes it a curve."""
    how = {"arrowstyle": style, "mutation_scale": 13, "shrinkA": 0, "shrinkB": 0}
    patch = FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **how)
    patch.set(color=colour, linewidth=1.5, linestyle=line)
    axis.add_patch(patch)


def square(axis, x, y, width, height, colour, edge="#666666"):
    """A plain filled rectangle."""
    axis.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=edge, linewidth=1))


@diagram("The HU scale", 45.5)
def hu_scale(axis):
    """Hounsfield units from air at -1000 to compact bone at 1000 and more, with lung, fat, water,
    soft tissue and spongy bone in between; below them the ranges that the lung window, the
    mediastinal window and the course's own window of -1000 to 400 show."""

    def place(hu):
        return 26 + (hu + 1400) * 69 / 2600

    def words(*numbers):
        return " to ".join(f"{hu:g}" for hu in numbers).replace("-", "\N{MINUS SIGN}")

    axis.plot([26, 96], [25, 25], color=INK, linewidth=1.5)
    for hu in range(-1000, 1001, 500):
        axis.plot([place(hu)] * 2, [24.4, 25.6], color=INK, linewidth=1.5)
        say(axis, place(hu), 22.4, words(hu))
    say(axis, 24, 25, "HU", weight="bold", align="right")
    square(axis, place(-900), 25.7, place(-700) - place(-900), 2, PALE[BLUE], BLUE)
    tissues = [("air", -1000, 31, "right", 0.9), ("lung", -800, 36, "center", 0)]
    tissues += [("fat", -100, 31, "right", 0.9), ("water", 0, 36, "right", 1)]
    tissues += [("muscle and blood", 50, 41, "center", 0), ("spongy bone", 200, 33, "left", -1)]
    for name, hu, y, align, shift in [*tissues, ("compact bone\nand more", 1000, 33, "center", 0)]:
        low = 27.7 if name == "lung" else 25.6
        axis.plot([place(hu)] * 2, [low, y - 1.6 - y // 33 % 2 * (hu == 1000)], color="#999999")
        say(axis, place(hu) + shift, y, name, align=align)
    windows = (("lung window", "lung", BLUE), ("mediastinal window", "mediastinum", RED))
    for k, (name, preset, colour) in enumerate(
        (*windows, ("the course's window", "course", GREEN))
    ):
        level, width = PRESETS[preset]
        low, high, y = level - width / 2, level + width / 2, 14.6 - 4.9 * k
        square(axis, place(low), y, place(high) - place(low), 3.4, PALE[colour], colour)
        say(axis, 24, y + 1.7, name, align="right")
        say(axis, place(high) + 1, y + 1.7, words(low, high), align="left")


@diagram("Volume and affine", 47)
def volume_and_affine(axis):
    """A volume as a stack of slices: axis D runs from the feet to the head, H from front to back, W
    from the patient's right to the left. One voxel is 8 mm high and 0.7 mm wide and deep; the
    affine turns its slice, row and column into millimetres."""
    for k in range(5):
        square(axis, 19 + 2.2 * k, 6 + 3.6 * k, 25, 15, PALE[BLUE] if k < 4 else "#eef6fb", BLUE)
    say(axis, 31.5, 7.8, "slice 0: the feet")
    say(axis, 40.3, 27.9, "slice 4: the head")
    arrow(axis, (16.8, 22.4), (25.6, 36.8))
    say(axis, 12, 31, "D (z)\nfeet to\nhead")
    arrow(axis, (27.8, 38.2), (52.8, 38.2))
    say(axis, 40.3, 42, "W (x): patient's\nright to left")
    arrow(axis, (55, 35.4), (55, 20.4))
    say(axis, 60.4, 28, "H (y)\nfront to\nback")
    for xs, ys in (
        ((74, 77, 77, 74), (26, 26, 38, 38)),
        ((77, 79, 79, 77), (26, 28, 40, 38)),
        ((74, 77, 79, 76), (38, 38, 40, 40)),
    ):
        axis.fill(xs, ys, facecolor=PALE[ORANGE], edgecolor=ORANGE, linewidth=1.3)
    say(axis, 71.5, 32, "8 mm", align="right")
    say(axis, 75.5, 23.6, "0.7 mm")
    say(axis, 82, 33, "one voxel\n(not to scale)", align="left")
    words = (
        "mm = affine · (d, h, w, 1)\ncolumns: one step in D, H, W;\nthe last: where voxel 0 lies"
    )
    box(axis, 58, 5.5, 38, 13, words, BLUE)


@diagram("Depth resampling", 42)
def depth_resampling(axis):
    """Five thick slices become eight thinner ones over the same height: each new slice is a mean
    of the two old ones nearest to its middle, the nearer one counted more. At the ends the end
    slice is repeated; no detail is added."""
    for k in range(5):
        square(axis, 18, 6 + 6 * k, 18, 6, PALE[BLUE], BLUE)
        say(axis, 27, 9 + 6 * k, f"old {k}")
    for k in range(8):
        y = 6 + 3.75 * (k + 0.5)
        square(axis, 58, 6 + 3.75 * k, 18, 3.75, PALE[RED], RED)
        say(axis, 67, y, f"new {k}")
        where = (k + 0.5) * 5 / 8 - 0.5
        low = int(np.clip(np.floor(where), 0, 3))
        for old, weight in ((low, 1 - (where - low)), (low + 1, where - low)):
            weight = min(max(weight, 0), 1)
            if weight > 0.02:
                axis.plot([36, 58], [9 + 6 * old, y], color=INK, linewidth=2.2 * weight, alpha=0.7)
    say(axis, 27, 38.4, "5 slices, 8 mm", weight="bold")
    say(axis, 67, 38.4, "8 slices, 5 mm", weight="bold")
    say(axis, 47, 38.4, "weights")
    axis.annotate("", (14, 6), (14, 36), arrowprops={"arrowstyle": "<->", "color": INK})
    say(axis, 8.3, 21, "the same\n40 mm")
    say(axis, 87.3, 21, "thick lines\ncount more;\neach row of\nweights\nsums to 1")


@diagram("Split by patient", 48)
def split_by_patient(axis):
    """Above, a split by slice: slices of the patients A, B and C lie in the training part and in
    the test part, which is a leak. Below, a split by patient: all slices of a patient lie on one
    side, and the test patient C is new."""
    kinds = (("by slice: a leak", 26.5, "A, B and C\nare on\nboth sides"),)
    kinds += (("by patient: sound", 4.5, "C was never\nseen in\ntraining"),)
    for row, (title, y, meaning) in enumerate(kinds):
        say(axis, 4, y + 17.3, title, weight="bold", align="left")
        for x, part in ((26, "training"), (61, "test")):
            box(axis, x, y, 32 if x == 26 else 18, 15)
            say(axis, x + (16 if x == 26 else 9), y + 17.3, part)
        say(axis, 88, y + 7.5, meaning)
        for patient, colour in enumerate((BLUE, RED, GREEN)):
            for k in range(6):
                is_test = k >= 4 if row == 0 else patient == 2
                x = 28.2 + 4.9 * k if not is_test else 65.2 + 5.6 * (k - 4)
                at = y + 10.6 - 4.65 * patient
                if row == 1 and is_test:  # two rows of three
                    x, at = 62.6 + 5.6 * (k % 3), y + 8.5 - 5 * (k // 3)
                elif row == 1:
                    at -= 2.3
                square(axis, x, at, 3.6, 3.6, PALE[colour], colour)
                say(axis, x + 1.8, at + 1.8, "ABC"[patient])
        say(axis, 14, y + 7.5, "three patients,\nsix slices each")


@diagram("The slice encoder", 38)
def slice_encoder(axis):
    """The slice below, the slice and the one above are three channels of 96 by 96 pixels; four
    convolutions halve the size to 48, 24, 12 and 6 while the channels grow to 16, 32, 64 and 128;
    mean and maximum over the plane give 256 features."""
    for k, name in enumerate(("above", "slice", "below")):
        square(axis, 4 + 1.5 * k, 17 - 3.2 * k, 13, 13, PALE[BLUE], BLUE)
        say(axis, 10.5 + 1.5 * k, 28.4 - 3.2 * k, name)
    say(axis, 12, 6.5, "3 × 96 × 96")
    for k, (channels, size, side) in enumerate(
        ((16, 48, 11), (32, 24, 8), (64, 12, 6), (128, 6, 4))
    ):
        middle = 31 + 15 * k
        for layer in (2, 1, 0):
            x, y = middle - side / 2 + layer - 1, 20 - side / 2 + layer - 1
            square(axis, x, y, side, side, PALE[ORANGE], ORANGE)
        start = (21, 9.3, 7.6, 6.4)[k]
        arrow(
            axis,
            (start if k == 0 else middle - 15 + start - 1.2, 20),
            (middle - side / 2 - 1.6, 20),
        )
        say(axis, middle, 6.5, f"{channels} × {size} × {size}")
    for y, name in ((24.4, "mean"), (10.6, "max")):
        arrow(axis, (80.2, 20), (84, y + 2.5))
        box(axis, 84, y, 12, 5, f"{name}: 128", GREEN)
    say(axis, 89.5, 6.5, "256 features")
    say(axis, 53.5, 33.5, "four times: convolution with step 2, GroupNorm, ReLU")


@diagram("An LSTM cell", 48)
def lstm_cell(axis):
    """An LSTM cell: the cell state runs along the top, is multiplied by the forget gate and gets
    the candidate times the input gate added; the output gate times tanh of the state is the new
    hidden state. All four are computed from the slice and the last hidden state."""
    arrow(axis, (6, 38), (30.4, 38), BLUE)
    arrow(axis, (35.6, 38), (53.4, 38), BLUE)
    arrow(axis, (58.6, 38), (94, 38), BLUE)
    say(axis, 10, 41.4, "cell state c")
    say(axis, 89, 41.4, "new c")
    for x, sign in ((33, "×"), (56, "+")):
        axis.plot(x, 38, "o", ms=25, mfc="white", mec=INK)
        say(axis, x, 38, sign, 15)
    gates = [("forget f", 26, BLUE), ("input i", 43, GREEN), ("candidate g", 58, ORANGE)]
    for name, x, colour in [*gates, ("output o", 75, RED)]:
        kind = "tanh" if "candidate" in name else "sigmoid"
        box(axis, x, 14, 14, 8, f"{name}\n{kind}", colour)
        arrow(axis, (x + 7, 7.5), (x + 7, 14))
    arrow(axis, (33, 22), (33, 35.4))
    axis.plot(56, 29, "o", ms=25, mfc="white", mec=INK)
    say(axis, 56, 29, "×", 15)
    arrow(axis, (50, 22), (54.2, 27))
    arrow(axis, (65, 22), (58, 27))
    arrow(axis, (56, 31.7), (56, 35.4))
    axis.plot(82, 29, "o", ms=25, mfc="white", mec=INK)
    say(axis, 82, 29, "×", 15)
    arrow(axis, (82, 22), (82, 26.3))
    arrow(axis, (75, 38), (80, 30.8))
    say(axis, 74.6, 33.4, "tanh")
    arrow(axis, (84.7, 29), (93.5, 29), RED)
    say(axis, 92, 32.2, "new h")
    axis.plot([16, 82], [7.5, 7.5], color="#444444", linewidth=1.5)
    say(axis, 10, 7.5, "slice x\nand old h")


@diagram("The Bi-LSTM, unrolled", 60)
def bilstm_unrolled(axis):
    """Four slices from the feet to the head, each encoded into 128 features; one LSTM reads them
    upwards, another downwards, 64 numbers each. Attention weights that sum to 1 pool the 128
    numbers of each slice into one vector, and a linear layer turns it into one logit."""
    for k, weight in enumerate((0.1, 0.2, 0.6, 0.1)):
        x = 25 + 19 * k
        box(axis, x, 3.5, 12, 4.6, f"slice {k}")
        arrow(axis, (x + 6, 8.1), (x + 6, 11))
        box(axis, x, 11, 12, 4.6, "128", ORANGE)
        arrow(axis, (x + 2.8, 15.6), (x + 2.8, 19))
        arrow(axis, (x + 9.2, 15.6), (x + 9.2, 26.6))
        box(axis, x, 19, 5.6, 4.6, "up", BLUE)
        box(axis, x + 5.7, 26.6, 7, 4.6, "down", RED)
        arrow(axis, (x + 2.8, 23.6), (x + 2.8, 34.4))
        arrow(axis, (x + 9.2, 31.2), (x + 9.2, 34.4))
        box(axis, x, 34.4, 12, 4.6, "64 + 64", GREEN)
        arrow(axis, (x + 6, 39), (50.5 + 3 * k, 49.4), GREEN)
        say(axis, x + (2, 2, 10, 10)[k], 41.3, f"{weight:g}", weight="bold")
        if k < 3:
            arrow(axis, (x + 5.6, 21.3), (x + 19, 21.3), BLUE)
            arrow(axis, (x + 24.7, 28.9), (x + 12.7, 28.9), RED)
    names = ((5.8, "slices, from\nthe feet up"), (13.3, "encoder and\nprojection"))
    names += ((21.3, "LSTM up: 64"), (28.9, "LSTM down: 64"), (36.7, "side by side"))
    for y, name in (*names, (43.5, "attention:\nsums to 1")):
        say(axis, 11.5, y, name)
    box(axis, 45, 49.4, 20, 6, "weighted mean", GREEN)
    arrow(axis, (65, 52.4), (70, 52.4))
    box(axis, 70, 49.4, 10, 6, "linear")
    arrow(axis, (80, 52.4), (87, 52.4))
    say(axis, 91.5, 52.4, "logit", weight="bold")


@diagram("Three ways to get the encoder", 42)
def three_ways(axis):
    """Three ways to get the encoder: from scratch, encoder and Bi-LSTM are trained; frozen, the
    ImageNet encoder stays as it is, its features are computed once and only the Bi-LSTM is
    trained; fine-tuned, the encoder's last blocks are trained as well."""
    ways = [("from scratch", (("small encoder", RED),), "begins with\nrandom weights")]
    ways += [("frozen", (("ImageNet encoder", "grey"),), "features are\ncomputed once")]
    parts = (("early blocks", "grey"), ("last blocks", RED))
    ways += [("fine-tuned", parts, "begins where\nfrozen ended")]
    for row, (name, parts, words) in enumerate(ways):
        y, width = 26 - 10.6 * row, 38 / len(parts)
        say(axis, 4, y + 3.5, name, weight="bold", align="left")
        for k, (part, colour) in enumerate(parts):
            kept = "kept" if colour == "grey" else "trained"
            box(axis, 20 + k * width, y, width - 1, 7, f"{part}\n{kept}", colour)
        arrow(axis, (57, y + 3.5), (62, y + 3.5))
        box(axis, 62, y, 15, 7, "Bi-LSTM\ntrained", RED)
        say(axis, 80, y + 3.5, words, align="left")
    say(axis, 50, 37.5, "red: changed by the training; grey: stays as ImageNet left it")


@diagram("Mixed precision", 38)
def mixed_precision(axis):
    """One step of mixed precision: weights in 32 bits are read in 16 bits by the forward pass; the
    loss is scaled up so that small gradients survive 16 bits, the backward pass runs, gradients
    are scaled back, clipped, and the optimizer changes the 32-bit weights."""
    top = [("weights\n32 bits", BLUE), ("forward\n16 bits", ORANGE), ("loss\n32 bits", BLUE)]
    top += [("times scale\n(fp16 only)", GREEN)]
    for k, (words, colour) in enumerate(top):
        box(axis, 6 + 23 * k, 23, 18, 9, words, colour)
        if k:
            arrow(axis, (1 + 23 * k, 27.5), (6 + 23 * k, 27.5))
    low = [("step\n32 bits", BLUE), ("clip the\nlength", GREEN), ("divide by\nscale (fp16)", GREEN)]
    low += [("backward\n16 bits", ORANGE)]
    for k, (words, colour) in enumerate(low):
        box(axis, 6 + 23 * k, 6, 18, 9, words, colour)
        if k:
            arrow(axis, (6 + 23 * k, 10.5), (1 + 23 * k, 10.5))
    arrow(axis, (84, 23), (84, 15))
    arrow(axis, (15, 15), (15, 23))


@diagram("Threshold and ROC curve", 48)
def threshold_and_roc(axis):
    """Left, the scores of healthy and of ill scans as two overlapping hills with a threshold: right
    of it healthy scans are false positives and ill ones true positives. Right, the ROC curve, on
    which this threshold is one point."""
    x = np.linspace(0, 1, 200)
    for middle, colour, name in ((0.36, BLUE, "healthy"), (0.66, RED, "ill")):
        y = np.exp(-0.5 * ((x - middle) / 0.13) ** 2)
        axis.plot(6 + 46 * x, 10 + 22 * y, color=colour, linewidth=2)
        axis.fill_between(6 + 46 * x, 10, 10 + 22 * y, color=colour, alpha=0.12, linewidth=0)
        say(axis, 6 + 46 * middle, 34.6, name, colour=colour, weight="bold")
    axis.plot([29.5, 29.5], [5, 38], color=INK, linewidth=2)
    say(axis, 29.5, 40.6, "threshold")
    axis.plot([6, 52], [10, 10], color=INK, linewidth=1.2)
    say(axis, 28.7, 6.2, "called healthy", align="right")
    say(axis, 30.3, 6.2, "called ill", align="left")
    for at, y, words in ((19, 17, "TN"), (27.3, 12, "FN"), (31.8, 12, "FP"), (40, 17, "TP")):
        say(axis, at, y, words)
    axis.plot([62, 62, 94], [42, 10, 10], color=INK, linewidth=1.2)
    thresholds = np.linspace(1.4, -0.4, 200)
    fpr, tpr = norm.sf(thresholds, 0.36, 0.13), norm.sf(thresholds, 0.66, 0.13)
    axis.plot(62 + 32 * fpr, 10 + 32 * tpr, color=GREEN, linewidth=2)
    axis.plot([62, 94], [10, 42], ":", color="#777777")  # what a coin gets
    at = norm.sf(0.511, [0.36, 0.66], 0.13)
    axis.plot(62 + 32 * at[0], 10 + 32 * at[1], "o", color=INK, ms=9)
    arrow(axis, (69.6, 34.2), (66.8, 37.2))
    say(axis, 70.2, 33, "this threshold", align="left")
    say(axis, 78, 6.2, "1 − specificity = FP / (FP + TN)")
    axis.text(59, 26, "sensitivity = TP / (TP + FN)", rotation=90, ha="center", va="center")
    say(axis, 84, 22, "a coin", colour="#555555", align="left")


@diagram("The bootstrap", 44)
def bootstrap(axis):
    """Patients A to F are drawn with replacement, again and again: some come twice, some not at
    all, each with all of their scans. Every draw gives a score; the middle 95 percent of the
    scores are the interval."""
    for k, name in enumerate("ABCDEF"):
        box(axis, 4 + 5.4 * k, 36, 4.4, 4.4, name, BLUE)
    say(axis, 38, 38.2, "six patients", align="left")
    draws = ("AACDFF", "BCCDEF", "ABBBDE")
    for row, names in enumerate(draws):
        y = 24 - 7.6 * row
        for k, name in enumerate(names):
            box(axis, 4 + 5.4 * k, y, 4.4, 4.4, name, ORANGE)
        arrow(axis, (37, y + 2.2), (41, y + 2.2))
        say(axis, 47, y + 2.2, f"AUC {(0.88, 0.93, 0.84)[row]:.2f}")
        arrow(axis, (53, y + 2.2), (57.5, 18), "#999999")
    arrow(axis, (20, 35.2), (20, 29.4))
    say(axis, 22, 32.4, "draw six, with replacement", align="left")
    say(axis, 19.5, 4.6, "... a thousand times")
    heights = np.exp(-0.5 * ((np.arange(13) - 6.6) / 2.4) ** 2)
    for k, height in enumerate(heights):
        inside = 2 <= k <= 11
        square(axis, 60 + 2.7 * k, 12, 2.4, 20 * height, PALE[GREEN] if inside else "white", GREEN)
    arrow(axis, (65.4, 9.6), (92.1, 9.6), style="<->")
    say(axis, 78.7, 6.4, "95 % interval: the middle of the scores")
    say(axis, 78.7, 36, "all scores")


@diagram("A dense block", 46)
def dense_block(axis):
    """A dense block: every layer reads the maps of all layers before it, side by side, and adds 32
    new ones, so 64 channels become 96, 128 and 160."""
    xs, colours = (4.5, 28, 51.5, 75), (BLUE, RED, GREEN, ORANGE)
    for k, (x, colour) in enumerate(zip(xs, colours, strict=True)):
        box(axis, x, 17, 14, 7, f"layer {k}\n+ 32 maps" if k else "input\n64 maps", colour)
        for j in range(k):
            if j == k - 1:
                arrow(axis, (xs[j] + 14, 20.5), (x, 20.5))
            else:
                arrow(axis, (xs[j] + 7, 24), (x + 7 - 3 * (j == 0), 24), colours[j], bend=-0.36)
        left = x
        for j in range(k + 1):  # what is there now, to scale
            width = 8 if j == 0 else 4
            square(axis, left, 9.5, width, 3.6, PALE[colours[j]], colours[j])
            say(axis, left + width / 2, 11.3, f"{j}" if j else "in")
            left += width
        say(axis, (x + left) / 2, 6, f"{64 + 32 * k} maps")
    say(axis, 50, 42, "every layer reads all maps before it, and adds a few of its own")


@diagram("MoCo", 46)
def moco(axis):
    """MoCo: two random views of an image; encoder_q turns one into a query, the slowly following
    encoder_k turns the other into a key; the loss asks the query to be closer to its own key than
    to the keys of other images in the queue; the key then joins the queue."""
    box(axis, 3.5, 20, 12, 8, "image")
    for y, colour, view, encoder, out in (
        (33, BLUE, "view 1", "encoder_q\nlearns", "query"),
        (7, RED, "view 2", "encoder_k\nfollows", "key"),
    ):
        arrow(axis, (15.5, 24), (20, y + 3.5))
        box(axis, 20, y, 12, 7, view, colour)
        arrow(axis, (32, y + 3.5), (37, y + 3.5))
        box(axis, 37, y, 15, 7, encoder, colour)
        arrow(axis, (52, y + 3.5), (57, y + 3.5))
        box(axis, 57, y, 10, 7, out, colour)
    arrow(axis, (44.5, 33), (44.5, 14), line="--")
    say(axis, 46, 23.5, "momentum:\n0.99 old + 0.01 new", align="left")
    box(axis, 74, 33, 22, 7, "loss: which key\nis mine?", GREEN)
    arrow(axis, (67, 36.5), (74, 36.5))
    arrow(axis, (66, 14), (76, 33))
    box(axis, 77, 7, 19, 7, "queue of keys\nof other images", ORANGE)
    arrow(axis, (67, 10.5), (77, 10.5))
    say(axis, 72, 6.8, "then\njoins")
    arrow(axis, (87, 14), (87, 33))


@diagram("Data parallel training", 44)
def data_parallel(axis):
    """Two processes, the ranks 0 and 1, have the same weights and share out one batch; each
    computes the gradient of its share, the gradients are averaged by share and both take the same
    step; rank 0 alone writes the checkpoint."""
    box(axis, 4, 18, 14, 8, "one batch\n4 scans")
    for y, rank, share, colour in ((29, 0, "3 scans", BLUE), (7, 1, "1 scan", RED)):
        arrow(axis, (18, 22), (23, y + 4))
        box(axis, 23, y, 14, 8, f"rank {rank}\n{share}", colour)
        arrow(axis, (37, y + 4), (42, y + 4))
        box(axis, 42, y, 13, 8, "its\ngradient", colour)
        arrow(axis, (55, y + 4), (61, 22 + (1.6 if rank == 0 else -1.6)))
        arrow(axis, (79, 22 + (1.6 if rank == 0 else -1.6)), (85, y if rank == 0 else y + 8))
        box(axis, 80, y, 16, 8, "same step,\nsame weights", colour)
    box(axis, 61, 17, 18, 10, "mean, weighted\nby share:\n3 : 1", GREEN)
    say(axis, 88, 40, "rank 0 writes")
    say(axis, 30, 40, "the same weights")
    say(axis, 30, 4.6, "the same weights")


def main():
    """Write every diagram."""
    for name in DIAGRAMS:
        (HERE / f"{name}.svg").write_text(svg(name), encoding="utf-8")


if __name__ == "__main__":
    main()
