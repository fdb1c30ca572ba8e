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
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch, Rectangle
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers.ct.preprocessing import resampling_matrix  # noqa: E402
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
    for part in axis.get_children():  # nothing leaves the card, so the file needs no clipping
        part.set_clip_on(False)
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


def elbow(axis, *points, colour="#444444"):
    """A line around corners, from point to point, that ends as an arrow."""
    axis.plot(*zip(*points[:-1], strict=True), color=colour, linewidth=1.5)
    arrow(axis, points[-2], points[-1], colour)


def sign(axis, x, y, words):
    """A small circle with the sign of an operation."""
    axis.plot(x, y, "o", ms=25, mfc="white", mec=INK)
    say(axis, x, y, words, 15)


def minus(words):
    """Numbers with a real minus sign."""
    return f"{words}".replace("-", "\N{MINUS SIGN}")


def square(axis, x, y, width, height, colour, edge="#666666"):
    """A plain filled rectangle."""
    axis.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=edge, linewidth=1))


@diagram("The HU scale", 52)
def hu_scale(axis):
    """Hounsfield units from air at -1000 to compact bone at 1000 and more, with lung, fat, water,
    soft tissue and spongy bone in between. Below them three windows, each black up to its lower
    end and white from its upper end on: the lung window, the mediastinal window and the course's
    own window of -1000 to 400."""

    def place(hu):
        return 28 + (hu + 1500) * 68 / 2700

    axis.plot([28, 96], [29, 29], color=INK, linewidth=1.5)
    for hu in range(-1500, 1001, 500):
        axis.plot([place(hu)] * 2, [28.4, 29.6], color=INK, linewidth=1.5)
        say(axis, place(hu), 26.2, minus(hu))
    say(axis, 25, 29, "HU", weight="bold", align="right")
    square(axis, place(-900), 29.7, place(-700) - place(-900), 2, PALE[BLUE], BLUE)
    tissues = [("air", -1000, 37.5, "right", 0.8), ("lung", -800, 37.5, "center", 0)]
    tissues += [("fat", -100, 37.5, "right", 0.8), ("water", 0, 42, "right", 0.8)]
    tissues += [("muscle and blood", 50, 46.5, "center", 0), ("spongy bone", 200, 37.5, "left", -1)]
    for name, hu, y, align, shift in [*tissues, ("compact bone", 1000, 37.5, "center", -1)]:
        axis.plot([place(hu)] * 2, [31.7 if hu == -800 else 29.6, y - 1.8], color="#888888")
        say(axis, place(hu) + shift, y, name, align=align)
    windows = (("lung", "lung"), ("mediastinal", "mediastinum"), ("the course's", "course"))
    for k, (name, preset) in enumerate(windows):
        level, width = PRESETS[preset]
        low, high, y = level - width / 2, level + width / 2, 18.4 - 7 * k
        square(axis, place(-1500), y, place(1200) - place(-1500), 4.4, "white")
        square(axis, place(-1500), y, place(low) - place(-1500), 4.4, "black")
        step = (place(high) - place(low)) / 16
        for grey in range(16):
            colour = f"{(grey + 0.5) / 16:.2f}"
            square(axis, place(low) + grey * step, y, step, 4.4, colour, colour)
        square(axis, place(-1500), y, place(1200) - place(-1500), 4.4, "none")
        ends = minus(f"{low:g} to {high:g}")
        say(axis, 25, y + 2.2, f"{name} window\n{ends}", align="right")


@diagram("Volume and affine", 52)
def volume_and_affine(axis):
    """A volume as a stack of slices: axis D runs from the feet to the head, H from front to back, W
    from the patient's right to the left. One voxel is 8 mm high, 0.7 mm wide and deep. The affine,
    a 4 by 4 matrix, turns slice, row and column into millimetres to the right, to the front and
    upwards: three columns are the steps, the last is the place of voxel (0, 0, 0)."""
    for k in range(5):
        x, y = 16 + 2.6 * k, 6 + 4 * k
        square(axis, x, y, 24, 17, PALE[BLUE] if k < 4 else "#f3f9fd", BLUE)
    body, lungs = (38.4, 30.5, 19, 13, "#d9d9d4"), ((33.7, 30, 6.6, 9.4), (43, 30, 6, 9))
    heart, vertebra = (40, 32.2, 5.4, 5, "#b9b9b2"), (38.4, 26.6, 2.8, 2.6, "white")
    for x, y, wide, tall, colour in (body, *((*lung, INK) for lung in lungs), heart, vertebra):
        axis.add_patch(Ellipse((x, y), wide, tall, facecolor=colour, edgecolor="#666666"))
    say(axis, 27.7, 30.5, "R", weight="bold")
    say(axis, 49.2, 30.5, "L", weight="bold")
    say(axis, 28, 8, "slice 0, at the feet")
    arrow(axis, (13.4, 25), (23.8, 41))
    say(axis, 9.6, 35.5, "D (z):\nfeet to\nhead")
    arrow(axis, (26.4, 41.2), (50.4, 41.2))
    say(axis, 38.4, 45.2, "W (x): the patient's\nright to left")
    arrow(axis, (52.6, 39), (52.6, 22))
    say(axis, 58, 30.5, "H (y):\nfront to\nback")
    for xs, ys in (
        ((78, 81, 81, 78), (31, 31, 43, 43)),
        ((81, 83, 83, 81), (31, 33, 45, 43)),
        ((78, 81, 83, 80), (43, 43, 45, 45)),
    ):
        axis.fill(xs, ys, facecolor=PALE[ORANGE], edgecolor=ORANGE, linewidth=1.3)
    say(axis, 75.5, 39, "one voxel", weight="bold", align="right")
    say(axis, 75.5, 36, "(not to scale)", align="right")
    say(axis, 84.5, 40, "8 mm high", align="left")
    say(axis, 84.5, 34, "0.7 mm wide\nand deep", align="left")
    rows = (("mm right", "0", "0", "-0.7", "$x_0$"), ("front", "0", "-0.7", "0", "$y_0$"))
    rows += (("up", "8", "0", "0", "$z_0$"), ("1", "0", "0", "0", "1"))
    columns = (("D", BLUE), ("H", GREEN), ("W", RED), ("voxel 0", "grey"))
    for j, (name, colour) in enumerate(columns):
        x = 69 + 6.3 * j + (j == 3)
        box(axis, x - 2.7, 5, 5.4, 15.6, "", colour)
        say(axis, x, 23, name, weight="bold")
        for i, row in enumerate(rows):
            say(axis, x, 18.4 - 3.8 * i, minus(row[1 + j]))
    for i, (row, index) in enumerate(zip(rows, "dhw1", strict=True)):
        say(axis, 62.4, 18.4 - 3.8 * i, row[0], align="right")
        say(axis, 95, 18.4 - 3.8 * i, index)
    say(axis, 64.4, 12.7, "=")
    say(axis, 92.6, 12.7, "·", weight="bold")


@diagram("Depth resampling", 47)
def depth_resampling(axis):
    """41 slices of 8 mm become 64 of 5.1 mm, drawn with five that become eight over the same
    height: each new slice is a mean of the two old ones nearest to its middle, the nearer one
    counted more. At the ends the end slice is repeated; no detail is added."""
    say(axis, 26, 41.6, "41 slices of 8 mm\n(here 5)", weight="bold")
    say(axis, 62, 41.6, "64 slices of 5.1 mm\n(here 8)", weight="bold")
    say(axis, 44, 41.6, "weights")
    arrow(axis, (13, 5.5), (13, 37.5), style="<|-|>")
    say(axis, 7.6, 21.5, "the same\nheight")
    for k in range(5):
        square(axis, 17, 5.5 + 6.4 * k, 18, 6.4, PALE[BLUE], BLUE)
        say(axis, 26, 8.7 + 6.4 * k, f"old {k}")
    for k, weights in enumerate(resampling_matrix(5, 8)):
        y = 5.5 + 4 * k
        square(axis, 53, y, 18, 4, PALE[RED if k in (0, 3, 7) else "grey"], RED)
        say(axis, 62, y + 2, f"new {k}")
        for old in np.flatnonzero(weights > 0.02):
            how = {"color": RED if k in (0, 3, 7) else "#888888", "linewidth": 3 * weights[old]}
            axis.plot([35, 53], [8.7 + 6.4 * old, y + 2], solid_capstyle="butt", **how)
    say(axis, 73, 35.5, "new 7 = old 4:\nnothing beyond", align="left")
    low, high = resampling_matrix(5, 8)[3, 1:3]
    say(axis, 73, 19.5, f"new 3 =\n{low:.2f} · old 1\n+ {high:.2f} · old 2", align="left")
    say(axis, 73, 7.5, "new 0 = old 0:\nnothing below", align="left")


@diagram("Split by patient", 52)
def split_by_patient(axis):
    """Three patients, A, B and C, with six slices each. Above, a split by slice: slices of all
    three lie in the training part and in the test part, which is a leak. Below, a split by patient:
    A and B are in the training part, all of C in the test part, so the test patient is new."""
    apart = ((2, 5), (1, 6), (3, 4))  # the slices of A, B and C that a split by slice tests on
    kinds = (("by slice:\na leak", "each patient\nis on both\nsides", 28.5),)
    kinds += (("by patient:\nsound", "C is new\nto the\nnetwork", 5),)
    for title, meaning, y in kinds:
        say(axis, 4, y + 13.4, title, weight="bold", align="left")
        say(axis, 4, y + 5, meaning, align="left")
        for x, part in ((22, "training"), (61, "test")):
            box(axis, x, y, 35, 16.6)
            say(axis, x + 17.5, y + 18.9, part)
        for patient, colour in enumerate((BLUE, RED, GREEN)):
            for k in range(1, 7):
                is_test = k in apart[patient] if "leak" in title else patient == 2
                corner = (61 if is_test else 22) + 1 + 5.5 * (k - 1), y + 11.4 - 5.1 * patient
                square(axis, corner[0] + 0.5, corner[1], 4.5, 4.2, PALE[colour], colour)
                say(axis, corner[0] + 2.75, corner[1] + 2, f"{'ABC'[patient]}{k}")


@diagram("The slice encoder", 40)
def slice_encoder(axis):
    """The slice below, the slice and the one above are three channels of 96 by 96 pixels; four
    convolutions halve the size to 48, 24, 12 and 6 while the channels grow to 16, 32, 64 and 128;
    mean and maximum over the plane give 256 features."""
    for k, name in enumerate(("above", "slice", "below")):
        square(axis, 4 + 1.6 * k, 18.4 - 3.2 * k, 13, 13, PALE[BLUE], BLUE)
        say(axis, 10.5 + 1.6 * k, 29.8 - 3.2 * k, name)
    say(axis, 12, 7, "3 × 96 × 96")
    layers = ((31, 16, 48, 10), (46.5, 32, 24, 7.6), (61, 64, 12, 5.6), (75, 128, 6, 4))
    end = 20.6
    for middle, channels, size, side in layers:
        arrow(axis, (end + 0.8, 21.5), (middle - side / 2 - 2, 21.5))
        for layer in (2, 1, 0):
            x, y = middle - side / 2 + layer - 1, 21.5 - side / 2 + layer - 1
            square(axis, x, y, side, side, PALE[ORANGE], ORANGE)
        say(axis, middle, 7, f"{channels} × {size} × {size}")
        end = middle + side / 2 + 1
    for y, name in ((25.6, "mean: 128"), (12.4, "max: 128")):
        arrow(axis, (end + 0.8, 21.5), (84, y + 2.5))
        box(axis, 84, y, 12, 5, name, GREEN)
    say(axis, 90, 7, "256 features")
    say(axis, 52, 35, "four times: convolution with step 2, GroupNorm, ReLU")


@diagram("An LSTM cell", 54)
def lstm_cell(axis):
    """An LSTM cell: the cell state c runs along the top, is multiplied by the forget gate f, and
    gets the candidate g times the input gate i added; the output gate o times tanh of c is the new
    h. All four are computed from the slice x and the last h, each with weights of its own."""
    cell = FancyBboxPatch((15, 9.5), 70, 37, "round,pad=0,rounding_size=2")
    cell.set(facecolor="#f4f4f0", edgecolor="#bbbbb4", linewidth=1)
    axis.add_patch(cell)
    arrow(axis, (5, 41), (25.4, 41), BLUE)
    arrow(axis, (30.6, 41), (48.9, 41), BLUE)
    arrow(axis, (54.1, 41), (95, 41), BLUE)
    say(axis, 9, 44, "last c")
    say(axis, 90.5, 44, "new c")
    say(axis, 39.5, 43.6, "f · c")
    say(axis, 64, 43.6, "f · c + i · g")
    for x, words, colour in (
        (28, "forget f\nσ", BLUE),
        (43, "input i\nσ", GREEN),
        (60, "candidate g\ntanh", ORANGE),
        (76.5, "output o\nσ", RED),
    ):
        box(axis, x - 6.6, 18.5, 13.2, 7.6, words, colour)
        arrow(axis, (x, 13), (x, 18.5))
    arrow(axis, (28, 26.1), (28, 38.4))
    elbow(axis, (43, 26.1), (43, 32.5), (48.9, 32.5))
    elbow(axis, (60, 26.1), (60, 32.5), (54.1, 32.5))
    arrow(axis, (51.5, 35.1), (51.5, 38.4))
    say(axis, 55.2, 36.6, "i · g")
    arrow(axis, (76.5, 41), (76.5, 38.9))
    box(axis, 73, 35.5, 7, 3.4, "tanh")
    arrow(axis, (76.5, 35.5), (76.5, 33.3))
    arrow(axis, (76.5, 26.1), (76.5, 28.1))
    for x, y, words in ((28, 41, "×"), (51.5, 41, "+"), (51.5, 32.5, "×"), (76.5, 30.7, "×")):
        sign(axis, x, y, words)
    arrow(axis, (79.1, 30.7), (95, 30.7), RED)
    say(axis, 90.5, 33.7, "new h")
    say(axis, 91.5, 26.6, "o · tanh(c)")
    axis.plot([5, 76.5], [13, 13], color="#444444", linewidth=1.5)
    axis.plot([18.5, 18.5], [6.6, 13], color="#444444", linewidth=1.5)
    say(axis, 9, 15.8, "last h")
    say(axis, 18.5, 5, "slice x")
    say(axis, 55, 5, "σ or tanh of  W x + U h + b,  each with its own W, U and b")
    say(axis, 50, 49.6, "× and + number by number")


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


@diagram("Threshold and ROC curve", 50)
def threshold_and_roc(axis):
    """Left, the scores of healthy and of ill scans as two overlapping hills with a threshold: right
    of it healthy scans are false positives (FP) and ill ones true positives (TP), left of it
    healthy ones are true negatives (TN) and ill ones false negatives (FN). Right, the ROC curve, on
    which this threshold is one point."""
    cut, x = 0.51, np.linspace(0, 1, 101)
    hills = ((0.36, BLUE, "healthy", x >= cut), (0.66, RED, "ill", x <= cut))
    for middle, colour, name, wrong in hills:
        y = 10 + 22 * norm.pdf(x, middle, 0.13) / norm.pdf(0, 0, 0.13)
        axis.plot(5 + 48 * x, y, color=colour, linewidth=2)
        axis.fill_between(5 + 48 * x, 10, y, color=colour, alpha=0.12, linewidth=0)
        axis.fill_between(5 + 48 * x, 10, y, wrong, color=colour, alpha=0.5, linewidth=0)
        say(axis, 5 + 48 * middle, 34.6, name, colour=colour, weight="bold")
    line = 5 + 48 * cut
    axis.plot([line, line], [5, 39], color=INK, linewidth=2)
    say(axis, line, 42, "threshold")
    axis.plot([5, 53], [10, 10], color=INK, linewidth=1.2)
    say(axis, line - 1, 6.2, "called healthy", align="right")
    say(axis, line + 1, 6.2, "called ill", align="left")
    for at, y, words in ((19, 18, "TN"), (27, 11.8, "FN"), (31.9, 11.8, "FP"), (40, 18, "TP")):
        say(axis, at, y, words, weight="bold")
    axis.plot([63, 63, 95], [42, 10, 10], color=INK, linewidth=1.2)
    thresholds = np.linspace(1.4, -0.4, 100)
    fpr, tpr = norm.sf(thresholds, 0.36, 0.13), norm.sf(thresholds, 0.66, 0.13)
    axis.plot(63 + 32 * fpr, 10 + 32 * tpr, color=GREEN, linewidth=2)
    axis.plot([63, 95], [10, 42], ":", color="#777777")  # what a coin gets
    at = norm.sf(cut, [0.36, 0.66], 0.13)
    axis.plot(63 + 32 * at[0], 10 + 32 * at[1], "o", color=INK, ms=9)
    arrow(axis, (70.8, 34), (67.8, 37))
    say(axis, 71.2, 32.6, "this threshold", align="left")
    say(axis, 79, 6.2, "1 − specificity = FP / (FP + TN)")
    axis.text(60, 26, "sensitivity = TP / (TP + FN)", rotation=90, ha="center", va="center")
    say(axis, 84, 21, "a coin", colour="#555555", align="left")
    arrow(axis, (70, 44.6), (88, 44.6))
    say(axis, 79, 46.4, "the threshold falls")


@diagram("The bootstrap", 46)
def bootstrap(axis):
    """Patients A to F are drawn with replacement, again and again: some come twice, some not at
    all, each with all of their scans. Every draw gives a score, here an AUC; between the 2.5th and
    the 97.5th percentile of the scores lies the 95 percent interval."""
    say(axis, 20.2, 42.2, "six patients", weight="bold")
    for k, name in enumerate("ABCDEF"):
        box(axis, 4 + 5.6 * k, 35.6, 4.4, 4.4, name, BLUE)
    arrow(axis, (7, 34.4), (7, 29))
    say(axis, 9, 31.8, "draw six, with replacement", align="left")
    for row, (names, auc) in enumerate((("AACDFF", 0.88), ("BCCDEF", 0.93), ("ABBBDE", 0.84))):
        y = 23 - 7 * row
        for k, name in enumerate(names):
            again = names.count(name) > 1
            box(axis, 4 + 5.6 * k, y, 4.4, 4.4, name, ORANGE, weight="bold" if again else "normal")
        arrow(axis, (37.4, y + 2.2), (41.4, y + 2.2))
        say(axis, 47, y + 2.2, f"AUC {auc:.2f}")
        axis.plot([52.6, 54.6], [y + 2.2] * 2, color="#444444", linewidth=1.5)
    axis.plot([54.6, 54.6], [11.2, 25.2], color="#444444", linewidth=1.5)
    arrow(axis, (54.6, 18.2), (58.6, 18.2))
    say(axis, 20.2, 5.4, "... a thousand times")
    for k, height in enumerate(norm.pdf(np.arange(13), 6, 2.2) / norm.pdf(0, 0, 2.2)):
        colour = PALE[GREEN] if 2 <= k <= 10 else "white"
        square(axis, 60 + 2.7 * k, 12, 2.4, 20 * height, colour, GREEN)
    say(axis, 77.4, 35, "all scores", weight="bold")
    axis.plot([60, 94.8], [12, 12], color=INK, linewidth=1.2)
    arrow(axis, (65.3, 9.8), (89.5, 9.8), style="<|-|>")
    say(axis, 77.4, 6, "95 % interval: 2.5 % of the\nscores below it, 2.5 % above")


@diagram("A dense block", 46)
def dense_block(axis):
    """A dense block: every layer reads the maps of all layers before it, side by side, and adds 32
    new ones, so 64 channels become 96, 128 and 160."""
    xs, colours = (4.5, 28, 51.5, 75), (BLUE, RED, GREEN, ORANGE)
    for k, (x, colour) in enumerate(zip(xs, colours, strict=True)):
        box(axis, x, 17, 14, 7, f"layer {k}\n+ 32 maps" if k else "input\n64 maps", colour)
        for j in range(k):
            if j == k - 1:
                arrow(axis, (xs[j] + 14, 20.5), (x, 20.5), colours[j])
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


@diagram("Data parallel training", 50)
def data_parallel(axis):
    """Two processes, the ranks 0 and 1, have the same weights and share out a batch of four scans,
    three and one; each computes the gradient of its share, the gradients are averaged by share,
    and both take the same step; rank 0 alone writes the checkpoint."""
    for y, rank, colour in ((28, 0, BLUE), (6, 1, RED)):
        lane = FancyBboxPatch((19, y), 77, 15, "round,pad=0,rounding_size=2")
        lane.set(facecolor="#f4f4f0", edgecolor="#bbbbb4", linewidth=1)
        axis.add_patch(lane)
        middle, share = y + 7.5, ("3 scans", "1 scan")[rank]
        say(axis, 20.5, y + 17, f"rank {rank}", weight="bold", align="left")
        box(axis, 23, middle - 4, 13, 8, f"{share}\nweights w", colour)
        box(axis, 42, middle - 4, 12, 8, "gradient\nof these", colour)
        box(axis, 78, middle - 4, 15, 8, "same step:\nthe same w", colour)
        elbow(axis, (17, 24.5), (17, middle), (23, middle))
        arrow(axis, (36, middle), (42, middle))
        elbow(axis, (54, middle), (60, middle), (60, 29 if rank == 0 else 20))
        start = 29 if rank == 0 else 20
        elbow(axis, (72, start), (72, middle), (78, middle))
    for k in range(4):
        square(
            axis,
            4 + 2.6 * k,
            22.3,
            2.2,
            4.4,
            PALE[RED if k == 3 else BLUE],
            RED if k == 3 else BLUE,
        )
    axis.plot([14.4, 17], [24.5, 24.5], color="#444444", linewidth=1.5)
    say(axis, 9, 29.6, "a batch")
    say(axis, 9, 19.4, "4 scans")
    box(axis, 57, 20, 18, 9, "mean by share:\n3 : 1", GREEN)
    say(axis, 85.5, 45, "writes the checkpoint")


def main():
    """Write every diagram."""
    for name in DIAGRAMS:
        (HERE / f"{name}.svg").write_text(svg(name), encoding="utf-8")


if __name__ == "__main__":
    main()
