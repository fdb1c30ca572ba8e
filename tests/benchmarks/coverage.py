"""How often intervals of 95 % hold the truth: simulated studies whose true scores are known.

python -m tests.benchmarks.coverage --markdown docs/statistics.md

Scores are binormal: normal in both classes, with equal variance, the ill ones higher. Then the AUC,
the average precision, F1 and the sensitivity of the whole population are known.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from pathlib import Path

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helpers.scores import metrics
from helpers.scores.metrics import Interval, auc_interval, bootstrap, delong, proportion
from helpers.storage.files import write_whole

AUCS, SIZES = (0.7, 0.9, 0.97), (30, 200)
CORRELATION = 0.5  # of the scores of one patient's images
TEXT = """# Which intervals, and why

A 95 % interval should hold the truth in 95 of 100 test sets. Whether it does can be tried where the
truth is known: here {repeats} test sets are drawn for each column, half of each class, with normal
scores in both. A cell says in how many per cent of them the interval held the truth and, in
brackets, its mean width. The standard error of a percentage near 95 is {error:.1f}. Bootstraps have
{n_resamples} resamples here. **Bold** is what `helpers.scores.metrics` uses.

Made on {date} by `python -m tests.benchmarks.coverage --markdown docs/statistics.md`, in
{minutes:.0f} minutes on one core.

## AUC, one study a patient

{auc}

The percentile bootstrap and DeLong's interval are too narrow where a good classifier meets few
patients, and have no width at all where the AUC found is 1. On the logit scale DeLong's does
better, but for an AUC of 1 it has no width either, which happens often in the fifth column.
Wilson's interval with the smaller class as the number of trials stands for the largest variance
that there can be, and is too wide. Newcombe's method 5 never falls below 95 %, stays within two
points of it but in the last column, where it is too wide, and has no special case: with 15 studies
of each class it is {perfect} for a perfect AUC and {swapped} where one pair is
swapped. The bootstrap gives {bootstrap_perfect} and {bootstrap_swapped}.

## AUC, one to four images a patient

The scores of a patient's images correlate with {correlation}; n is the number of patients.

{clustered}

Intervals that take a patient's images for independent are too narrow, and the bootstrap by patient
is too, though less. The effective number of patients takes the images of a patient for copies of
one another, which these are not: its intervals are too wide, never too narrow.

## The other scores, one study a patient

The threshold lies half-way between the means of the classes.

{others}

The bootstrap of the average precision fails as that of the AUC does; Wilson's formula, for which
it is only nearly a proportion, is somewhat too wide. The rates stay within three points of 95 %;
with 15 patients of a class a rate can take 16 values, and no interval hits 95 % everywhere.

Sources stand in the docstrings of `auc_interval`, `effective_number`, `average_precision_interval`,
`f1_interval`, `balanced`, `bootstrap` and `delong`. DeLong's interval on the logit scale: Pohar
Perme & Manevski, Statistical Methods in Medical Research 28:3755 (2019). The largest variance of an
AUC: Birnbaum & Klose, Annals of Mathematical Statistics 28:933 (1957).
"""


def draw(rng, area, sizes):
    """Labels, scores and patients of one test set; sizes: images of each patient, half are ill."""
    patients = np.repeat(np.arange(len(sizes)), sizes)
    labels = patients % 2
    own, common = rng.normal(size=len(labels)), rng.normal(size=len(sizes))[patients]
    noise = np.sqrt(1 - CORRELATION) * own + np.sqrt(CORRELATION) * common
    return labels, 2 * threshold(area) * labels + noise, patients


def threshold(area) -> float:
    """Half-way between the classes' means, where their AUC is `area`."""
    return norm.ppf(area) / np.sqrt(2)


def delong_interval(labels, scores) -> Interval:
    return delong(labels, scores, scores)["auc_a"]


def delong_logit(labels, scores) -> Interval:
    """DeLong's interval, made on the logit scale; without a width for an AUC of 0 or 1."""
    value, low, _ = delong_interval(labels, scores)
    if value in (0, 1):
        return Interval(value, value, value)
    half = (value - low) / (value * (1 - value))
    return Interval(value, *expit(logit(value) + half * np.array((-1, 1))))


def smaller_class(labels, scores) -> Interval:
    """Wilson's interval of the AUC, a pair of studies a trial, as many as the smaller class has."""
    n = np.bincount(labels).min()
    return metrics.wilson(metrics.auc(labels, scores) * n, n)


def average_precision(labels, scores) -> float:
    """As scikit-learn computes it, faster."""
    tp, fp = metrics._positives(labels, scores)
    return np.sum(np.diff(tp, prepend=0) * tp / (tp + fp)) / tp[-1]


def f1(labels, called) -> float:
    return 2 * np.sum(labels * called) / (labels.sum() + called.sum())


def true_average_precision(area) -> float:
    """Of an endless test set, half of it ill."""
    ill = 2 * threshold(area) + norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    above = norm.sf(ill - 2 * threshold(area))
    return float(np.mean(above / (above + norm.sf(ill))))


def true_rate(area) -> float:
    """Sensitivity, specificity and accuracy; F1 too, with as many misses as false alarms."""
    return float(norm.cdf(threshold(area)))


def methods(n_resamples) -> tuple[dict, dict, dict]:
    """For each table: name -> function of labels, scores, patients, calls -> Interval."""

    def boot(statistic, labels, scores, patients=None):
        return bootstrap(statistic, labels, scores, patients, n_resamples)

    auc = {
        "percentile bootstrap": lambda y, s, p, c: boot(metrics.auc, y, s),
        "DeLong": lambda y, s, p, c: delong_interval(y, s),
        "DeLong, logit scale": lambda y, s, p, c: delong_logit(y, s),
        "Wilson, smaller class": lambda y, s, p, c: smaller_class(y, s),
        "**Newcombe, method 5**": lambda y, s, p, c: auc_interval(y, s),
    }
    clustered = {
        "Newcombe, images as independent": lambda y, s, p, c: auc_interval(y, s),
        "DeLong, images as independent": lambda y, s, p, c: delong_interval(y, s),
        "percentile bootstrap by patient": lambda y, s, p, c: boot(metrics.auc, y, s, p),
        "**Newcombe, effective number**": lambda y, s, p, c: auc_interval(y, s, p),
    }
    others = {
        "average precision, bootstrap": lambda y, s, p, c: boot(average_precision, y, s),
        "**average precision, Wilson**": lambda y, s, p, c: metrics.average_precision_interval(
            y, s
        ),
        "F1, bootstrap": lambda y, s, p, c: boot(f1, y, c),
        "**F1, Wilson of F\\***": lambda y, s, p, c: metrics.f1_interval(y, c),
        "**sensitivity, Wilson**": lambda y, s, p, c: proportion(c[y == 1]),
        "**balanced accuracy, square and add**": lambda y, s, p, c: metrics.balanced(
            proportion(c[y == 1]), proportion(~c[y == 0])
        ),
        "**accuracy, Wilson**": lambda y, s, p, c: proportion(c == y),
    }
    return auc, clustered, others


def table(methods, truth_of, sizes_of, repeats) -> str:
    """Markdown: a row a method, a column an AUC and a number of patients.

    truth_of: name of a method, AUC -> what it estimates. sizes_of: n -> images of each patient.
    """
    cells = {name: [] for name in methods}
    for area in AUCS:
        for n in SIZES:
            found = {name: [] for name in methods}
            for seed in range(repeats):
                test_set = draw(np.random.default_rng([seed, n]), area, sizes_of(n))
                called = test_set[1] >= threshold(area)
                for name, method in methods.items():
                    found[name].append(method(*test_set, called))
            for name, intervals in found.items():
                _, low, high = np.transpose(intervals)
                inside = np.mean((low <= truth_of(name, area)) & (truth_of(name, area) <= high))
                cells[name].append(f"{100 * inside:.1f} ({np.mean(high - low):.2f})")
            print(f"AUC {area}, n = {n} done", file=sys.stderr, flush=True)
    heads = [f"AUC {area}, n = {n}" for area in AUCS for n in SIZES]
    lines = [f"| {' | '.join(['', *heads])} |", "|---" * (len(heads) + 1) + "|"]
    return "\n".join(lines + [f"| {' | '.join([name, *row])} |" for name, row in cells.items()])


def page(tables, repeats, n_resamples, minutes) -> str:
    """The page, from its three tables."""
    labels, scores = np.repeat([0, 1], 15), np.arange(30.0)
    swapped = np.where(np.isin(scores, (14, 15)), 29 - scores, scores)

    def ends(interval):
        return "[{1:.3f}, {2:.3f}]".format(*interval)

    return TEXT.format(
        **dict(zip(("auc", "clustered", "others"), tables, strict=True)),
        perfect=ends(auc_interval(labels, scores)),
        swapped=ends(auc_interval(labels, swapped)),
        bootstrap_perfect=ends(bootstrap(metrics.auc, labels, scores)),
        bootstrap_swapped=ends(bootstrap(metrics.auc, labels, swapped)),
        repeats=repeats,
        n_resamples=n_resamples,
        error=100 * np.sqrt(0.95 * 0.05 / repeats),
        correlation=CORRELATION,
        date=f"{datetime.date.today():%d %B %Y}",
        minutes=minutes,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=500, help="test sets a column")
    parser.add_argument("--resamples", type=int, default=400, help="of each bootstrap")
    parser.add_argument("--markdown", help="write the page here")
    options = parser.parse_args()
    start = time.perf_counter()

    def area(name, area):
        return area

    def other(name, area):
        return (true_average_precision if "average precision" in name else true_rate)(area)

    def one(n):
        return [1] * n

    def several(n):
        return 1 + np.arange(n) // 2 % 4

    settings = ((area, one), (area, several), (other, one))
    tables = [
        table(rows, *setting, options.repeats)
        for rows, setting in zip(methods(options.resamples), settings, strict=True)
    ]
    minutes = (time.perf_counter() - start) / 60
    text = page(tables, options.repeats, options.resamples, minutes)
    if options.markdown:
        write_whole(options.markdown, lambda file: file.write(text.encode()))
    else:
        print(text)


if __name__ == "__main__":
    main()
