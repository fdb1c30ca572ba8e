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

BLUE, RED, GREEN, PINK, ORANGE, SKY, INK = COLOURS
PALE = {BLUE: "#d6e8f4", RED: "#f9e0d0", GREEN: "#d3efe6", ORANGE: "#fbecc9", "grey": "#ebebe6"}
HERE = Path(__file__).parent
DIAGRAMS = {}


def diagram(height):
    """Register a function that draws on an axis 100 wide and `height` high."""

    def register(function):
        DIAGRAMS[function.__name__] = (function, height)
        return function

    return register


def draw(name) -> Figure:
    """The figure of one diagram, with its card."""
    function, height = DIAGRAMS[name]
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
    words = " ".join(DIAGRAMS[name][0].__doc__.split())
    with mpl.rc_context({"svg.hashsalt": "course", "svg.fonttype": "path", "font.size": 11}):
        buffer = io.StringIO()
        draw(name).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\n?", "", text[text.index("<svg") :], flags=re.S)
    title = name.replace("_", " ")
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


@diagram(45.5)
def hu_scale(axis):
    """Hounsfield units from air at -1000 to compact bone above 1000, with lung, fat, water, soft
    tissue and bone in place, and below them the ranges that the lung window, the mediastinal window
    and the course's own window of -1000 to 400 show."""

    def place(hu):
        return 24 + (hu + 1400) * 72 / 2600

    axis.plot([24, 96], [25, 25], color=INK, linewidth=1.5)
    for hu in range(-1000, 1001, 500):
        axis.plot([place(hu)] * 2, [24.4, 25.6], color=INK, linewidth=1.5)
        say(axis, place(hu), 22.4, f"{hu}".replace("-", "−"))
    say(axis, 22, 25, "HU", weight="bold", align="right")
    tissues = [("air", -1000, 31), ("lung", -800, 36), ("fat", -100, 31), ("water", 0, 36)]
    tissues += [("muscle, blood", 50, 41), ("spongy bone", 200, 31), ("compact bone", 1000, 31)]
    for name, hu, y in tissues:
        axis.plot([place(hu)] * 2, [25.6, y - 1.4], color="#999999", linewidth=1)
        side = {"spongy bone": "left", "fat": "right"}.get(name, "center")
        say(axis, place(hu) + {"left": -0.8, "right": 0.8}.get(side, 0), y, name, align=side)
    windows = [("lung window", -1350, 150, BLUE), ("mediastinal window", -135, 215, RED)]
    windows += [("the course's window", -1000, 400, GREEN)]
    for k, (name, low, high, colour) in enumerate(windows):
        y = 14.6 - 4.9 * k
        square(axis, place(low), y, place(high) - place(low), 3.4, PALE[colour], colour)
        say(axis, 22, y + 1.7, name, align="right")
        middle, ends = (place(low) + place(high)) / 2, f"{low} to {high}".replace("-", "−")
        wide = high - low > 800
        x = middle if wide else place(high) + 1
        say(axis, x, y + 1.7, ends, 10.5, align="center" if wide else "left")


@diagram(47)
def volume_and_affine(axis):
    """A volume as a stack of slices: axis D from the feet to the head, H from front to back, W from
    the patient's right to the left; one voxel is 8 mm high and 0.7 mm wide; the affine turns
    slice, row and column into millimetres."""
    for k in range(5):
        square(axis, 15 + 2.2 * k, 9 + 3.6 * k, 25, 15, PALE[BLUE] if k < 4 else "#eef6fb", BLUE)
    arrow(axis, (12, 9), (20.8, 23.4))
    say(axis, 9.5, 20.5, "D (z)\nto the\nhead")
    arrow(axis, (23.8, 41.4), (48.8, 41.4))
    say(axis, 36, 43.3, "W (x): right to left")
    arrow(axis, (51, 38.4), (51, 23.4))
    say(axis, 57.2, 31, "H (y):\nfront\nto back")
    say(axis, 36.3, 31, "slice: D fixed")
    say(axis, 27.5, 6, "feet")
    square(axis, 70, 27, 5, 12, PALE[ORANGE], ORANGE)
    say(axis, 77, 33, "one voxel,\nnot to scale:\n8 mm high,\n0.7 mm wide", align="left")
    box(
        axis,
        58,
        7,
        38,
        13,
        "mm = affine · (d, h, w, 1)\ncolumns: one step in D, H, W;\nthe last: where voxel 0 lies",
        BLUE,
    )


@diagram(42)
def depth_resampling(axis):
    """Five thick slices become eight thinner ones over the same height: each new slice is a mean of
    the two old ones nearest to its middle, the nearer one counted more; no detail is added."""
    for k in range(5):
        square(axis, 18, 6 + 6 * k, 18, 6, PALE[BLUE], BLUE)
        say(axis, 27, 9 + 6 * k, f"old {k}")
    for k in range(8):
        y = 6 + 3.75 * (k + 0.5)
        square(axis, 58, 6 + 3.75 * k, 18, 3.75, PALE[RED], RED)
        say(axis, 67, y, f"new {k}", 10.5)
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


@diagram(47)
def split_by_patient(axis):
    """Above, a split by slice: slices of the same patient lie in the training part and in the test
    part, which is a leak. Below, a split by patient: all slices of a patient lie on one side."""
    for row, (title, y) in enumerate((("by slice: a leak", 26), ("by patient: sound", 5))):
        say(axis, 4, y + 16.6, title, weight="bold", align="left")
        box(axis, 4, y, 56, 14, "")
        box(axis, 66, y, 30, 14, "")
        say(axis, 60, y + 16.6, "training", align="right")
        say(axis, 96, y + 16.6, "test", align="right")
        for patient, colour in enumerate((BLUE, RED, GREEN)):
            for k in range(6):
                is_test = k >= 4 if row == 0 else patient == 2
                column = (k if not is_test else k - 4) if row == 0 else k
                x = (68.5 + 8.6 * column if row == 0 else 68.5 + 4.3 * column) if is_test else 7
                x = x if is_test else 7 + (12.6 if row == 0 else 8.4) * column
                line = patient if row == 0 else (1 if is_test else patient + 0.5)
                at = y + 9.6 - 4.2 * line
                square(axis, x, at, 3.4, 3.4, PALE[colour], colour)
                say(axis, x + 1.7, at + 1.7, "ABC"[patient], 10)


@diagram(40)
def slice_encoder(axis):
    """The slice below, the slice and the one above are three channels of 96 by 96 pixels; four
    convolutions halve the size to 48, 24, 12 and 6 while the channels grow to 16, 32, 64 and 128;
    mean and maximum over the plane give 256 features."""
    for k, name in enumerate(("above", "slice", "below")):
        square(axis, 5 + 1.5 * k, 18.5 - 3.2 * k, 13, 13, PALE[BLUE], BLUE)
        say(axis, 11.5 + 1.5 * k, 29.9 - 3.2 * k, name, 10)
    say(axis, 13, 8.5, "3 × 96 × 96")
    sizes = [(16, 48, 12), (32, 24, 9.5), (64, 12, 7.5), (128, 6, 6)]
    x = 25
    for k, (channels, size, side) in enumerate(sizes):
        arrow(axis, (x - 4, 21), (x - 1, 21))
        for layer in range(3):
            square(axis, x + layer, 21 - side / 2 - layer, side, side, PALE[ORANGE], ORANGE)
        say(
            axis,
            x + side / 2 + 0.6,
            8.5 + (0 if k % 2 == 0 else 2.6),
            f"{channels} × {size} × {size}",
            10.5,
        )
        x += side + 6.2
    arrow(axis, (x - 3.4, 22.5), (x - 0.6, 26))
    arrow(axis, (x - 3.4, 19.5), (x - 0.6, 16))
    box(axis, x, 24.4, 10, 5, "mean", GREEN)
    box(axis, x, 12.4, 10, 5, "max", GREEN)
    say(axis, x + 4, 8.3, "256 features")
    say(axis, 47, 35.5, "four times: convolution with step 2, GroupNorm, ReLU")


@diagram(48)
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


@diagram(56)
def bilstm_unrolled(axis):
    """Five slices from the feet to the head, each encoded into 128 features; one LSTM reads them
    upwards, another downwards; attention weights that sum to 1 pool their outputs of 128 numbers
    for each slice into one vector, and a linear layer turns it into one logit."""
    weights = (0.05, 0.15, 0.5, 0.25, 0.05)
    for k, weight in enumerate(weights):
        x = 22 + 12 * k
        box(axis, x, 4, 9, 5, f"slice {k}")
        box(axis, x, 12.6, 9, 5, "128", ORANGE)
        box(axis, x, 21.4, 9, 5, "up", BLUE)
        box(axis, x, 29.6, 9, 5, "down", RED)
        for low, high in ((9, 12.6), (17.6, 21.4)):
            arrow(axis, (x + 4.5, low), (x + 4.5, high))
        arrow(axis, (x + 4.5, 26.4), (x + 4.5, 29.6), style="-")
        arrow(axis, (x + 4.5, 34.6), (52, 44.2), GREEN)
        square(axis, x + 6.6, 36.4, 1.6, 0.6 + 7 * weight, GREEN, GREEN)
        if k < 4:
            arrow(axis, (x + 9, 23.9), (x + 12, 23.9), BLUE)
            arrow(axis, (x + 12, 32.1), (x + 9, 32.1), RED)
    names = ((6.5, "slices, from\nthe feet up"), (15.1, "encoder and\nprojection"))
    for y, name in (*names, (23.9, "LSTM up: 64"), (32.1, "LSTM down: 64")):
        say(axis, 11, y, name)
    say(axis, 11, 40.5, "attention:\nsums to 1")
    box(axis, 43, 44.2, 18, 6, "weighted mean", GREEN)
    arrow(axis, (61, 47.2), (69, 47.2))
    box(axis, 69, 44.2, 10, 6, "linear")
    arrow(axis, (79, 47.2), (86, 47.2))
    say(axis, 91, 47.2, "logit", weight="bold")


@diagram(42)
def three_ways(axis):
    """Three ways to get the encoder: from scratch, encoder and Bi-LSTM are trained; frozen, the
    ImageNet encoder stays as it is, its features are computed once and only the Bi-LSTM is
    trained; fine-tuned, the encoder's last blocks are trained as well, with small steps."""
    ways = [
        ("from scratch", (("small encoder", RED),)),
        ("frozen", (("ImageNet encoder", "grey"),)),
    ]
    ways += [("fine-tuned", (("ImageNet: early", "grey"), ("last blocks", RED)))]
    for row, (name, parts) in enumerate(ways):
        y = 27 - 10.6 * row
        say(axis, 4, y + 3.5, name, weight="bold", align="left")
        width = 36 / len(parts)
        for k, (words, colour) in enumerate(parts):
            kept = "kept" if colour == "grey" else "trained"
            box(axis, 21 + k * width, y, width - 1, 7, f"{words}\n{kept}", colour)
        arrow(axis, (56, y + 3.5), (60, y + 3.5))
        box(axis, 60, y, 17, 7, "Bi-LSTM\ntrained", RED)
        cost = ("minutes", "seconds: features\nare computed once", "a GPU, or a\nfew epochs")[row]
        say(axis, 79, y + 3.5, cost, align="left", size=10.5)
    say(axis, 50, 38.3, "red: changed by the training; grey: stays as ImageNet left it")


@diagram(38)
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
    low = [("step\n32 bits", BLUE), ("clip the\nlength", GREEN), ("divide\nby scale", GREEN)]
    low += [("backward\n16 bits", ORANGE)]
    for k, (words, colour) in enumerate(low):
        box(axis, 6 + 23 * k, 6, 18, 9, words, colour)
        if k:
            arrow(axis, (6 + 23 * k, 10.5), (1 + 23 * k, 10.5))
    arrow(axis, (84, 23), (84, 15))
    arrow(axis, (15, 15), (15, 23))


@diagram(48)
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
    axis.plot([29.5, 29.5], [10, 38], color=INK, linewidth=2)
    say(axis, 29.5, 40.6, "threshold")
    axis.plot([6, 52], [10, 10], color=INK, linewidth=1.2)
    say(axis, 29, 6.2, "score: called healthy | called ill")
    for at, words in ((17, "TN"), (26.7, "FN"), (32, "FP"), (40, "TP")):
        say(axis, at, 14, words, 10.5)
    axis.plot([62, 62, 94], [42, 10, 10], color=INK, linewidth=1.2)
    thresholds = np.linspace(1.4, -0.4, 200)
    fpr, tpr = norm.sf(thresholds, 0.36, 0.13), norm.sf(thresholds, 0.66, 0.13)
    axis.plot(62 + 32 * fpr, 10 + 32 * tpr, color=GREEN, linewidth=2)
    axis.plot([62, 94], [10, 42], ":", color="#777777")  # what a coin gets
    at = norm.sf(0.511, [0.36, 0.66], 0.13)
    axis.plot(62 + 32 * at[0], 10 + 32 * at[1], "o", color=INK, ms=9)
    arrow(axis, (74, 35.2), (67.6, 37.4))
    say(axis, 74.8, 34.6, "this threshold", align="left")
    say(axis, 78, 6.2, "1 − specificity = FP / (FP + TN)")
    axis.text(59, 26, "sensitivity = TP / (TP + FN)", rotation=90, ha="center", va="center")
    say(axis, 84, 22, "a coin", colour="#555555", align="left")


@diagram(44)
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


@diagram(38)
def dense_block(axis):
    """A dense block: every layer reads the maps of all layers before it, side by side, and adds 32
    new ones, so 64 channels become 96, 128 and 160."""
    xs = (8, 31, 54, 77)
    names = ("input\n64 maps", "layer 1\n+ 32 = 96", "layer 2\n+ 32 = 128", "layer 3\n+ 32 = 160")
    for k, (x, name) in enumerate(zip(xs, names, strict=True)):
        box(axis, x, 8, 16, 8, name, BLUE if k == 0 else ORANGE)
        for j in range(k):
            if j == k - 1:
                arrow(axis, (xs[j] + 16, 12), (x, 12))
            else:
                arrow(axis, (xs[j] + 8, 16), (x + 8, 16.2), BLUE if j == 0 else RED, bend=-0.36)
    say(axis, 50, 34, "every layer reads all maps before it, and adds a few of its own")


@diagram(46)
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
    say(axis, 46, 23.5, "momentum:\n0.99 old + 0.01 new", 10.5, align="left")
    box(axis, 74, 33, 22, 7, "loss: which key\nis mine?", GREEN)
    arrow(axis, (67, 36.5), (74, 36.5))
    arrow(axis, (66, 14), (76, 33))
    box(axis, 77, 7, 19, 7, "queue of keys\nof other images", ORANGE)
    arrow(axis, (67, 10.5), (77, 10.5))
    arrow(axis, (87, 14), (87, 33))


@diagram(44)
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
        box(axis, 80, y, 16, 8, "same step,\nsame weights", colour, 10.5)
    box(axis, 61, 17, 18, 10, "mean, weighted\nby share:\n3 : 1", GREEN)
    say(axis, 88, 39.8, "rank 0 writes the run")


def main():
    """Write every diagram."""
    for name in DIAGRAMS:
        (HERE / f"{name}.svg").write_text(svg(name), encoding="utf-8")


if __name__ == "__main__":
    main()
