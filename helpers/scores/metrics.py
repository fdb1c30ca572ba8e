"""Scores of a classifier, each with its interval.

Everywhere: `labels` (N,) are 0 or 1, 1 is COVID, the positive class; `scores` (N,) are higher for
COVID; a study is called COVID when its score is at or above the threshold. Studies of one patient
are not independent: name their `patients` (N,) wherever a patient has more than one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import norm, rankdata, spearmanr
from sklearn.metrics import average_precision_score

N_RESAMPLES = 2000  # of every bootstrap, so that a figure says what its table says
METRICS = ["auc", "average_precision", "balanced_accuracy", "sensitivity", "specificity", "brier"]


class Interval(NamedTuple):
    """A value with the lower and upper end of its interval; JSON writes it as a list."""

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def wilson(successes, n, confidence=0.95) -> Interval:
    """The proportion successes / n of n independent trials, with its Wilson interval.

    ValueError unless 0 <= successes <= n and n > 0. Source: Wilson, JASA 22:209 (1927).
    """
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"{successes} successes in {n} trials: need 0 <= successes <= n, n > 0")
    p = float(successes / n)
    z = norm.ppf(0.5 + confidence / 2)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = np.clip(centre - half, 0, p), np.clip(centre + half, p, 1)
    return Interval(p, float(low), float(high))


def effective_number(patients) -> float:
    """How many independent studies the studies of these patients (N,) are worth: N, or fewer.

    Kish's (sum of m)^2 / (sum of m^2) over patients with m studies each. It takes the studies of
    one patient for copies of one another, so no interval becomes too narrow by them; where they
    differ it is somewhat too wide. Source: Kish, Survey Sampling (1965).
    """
    counts = np.unique(patients, return_counts=True)[1]
    return float(counts.sum() ** 2 / np.sum(counts**2))


def proportion(hits, patients=None) -> Interval:
    """The share of true among `hits` (N,), with Wilson's interval of the effective number."""
    n = effective_number(_patients(hits, patients))
    return wilson(np.mean(hits) * n, n)


def auc(labels, scores) -> float:
    """Area under the ROC curve: the share of pairs in which the positive study scores higher."""
    labels, scores = _checked(labels, scores)
    n = int(labels.sum())
    pairs_won = rankdata(scores)[labels == 1].sum() - n * (n + 1) / 2  # Mann and Whitney's U
    return float(pairs_won / (n * (len(labels) - n)))


def brier(labels, probabilities) -> float:
    """Mean squared distance of probability and label; 0 is best, always saying 0.5 gives 0.25."""
    labels, probabilities = _checked(labels, probabilities)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError("probabilities must lie in 0..1; put logits through a sigmoid first")
    return float(np.mean((probabilities - labels) ** 2))


def bootstrap_values(
    statistic, labels, scores, patients=None, n_resamples=N_RESAMPLES, seed=0
) -> np.ndarray:
    """The statistic on resamples of the patients, drawn with replacement, all their studies each.

    statistic: function (labels, scores) -> number or array. Returns (n, ...): a resample with
    one class only is skipped, so n_resamples - n were. ValueError if all were.
    """
    labels, scores = _checked(labels, scores)
    names, patient = np.unique(_patients(labels, patients), return_inverse=True)
    rng, values = np.random.default_rng(seed), []
    for _ in range(n_resamples):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        rows = np.repeat(np.arange(len(labels)), times[patient])
        if 0 < labels[rows].sum() < len(rows):
            values.append(statistic(labels[rows], scores[rows]))
    if not values:
        raise ValueError(f"{len(labels)} studies are too few: no resample holds both classes")
    return np.array(values)


def bootstrap(
    statistic, labels, scores, patients=None, n_resamples=N_RESAMPLES, seed=0
) -> Interval:
    """The statistic with its percentile bootstrap interval, from `bootstrap_values`.

    Every resample of a perfect result is perfect too: there the interval has no width, which is
    no evidence. `auc_interval`, `average_precision_interval`, `f1_interval` and `proportion` have
    formulas instead. Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993).
    """
    values = bootstrap_values(statistic, labels, scores, patients, n_resamples, seed)
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(statistic(*_checked(labels, scores))), float(low), float(high))


def auc_interval(labels, scores, patients=None) -> Interval:
    """AUC with Newcombe's interval, from the effective number of patients of each class.

    Newcombe's method 5 asks which true AUCs would make this one no surprise, with the variance of
    Hanley and McNeil, as Wilson's does for a proportion. It keeps a width at 1 and grows with the
    AUC all the way there; of the methods in docs/statistics.md it holds 95 % best. Sources:
    Newcombe, Statistics in Medicine 25:559 (2006); Hanley & McNeil, Radiology 143:29 (1982).
    """
    labels, scores = _checked(labels, scores)
    patients = _patients(labels, patients)
    n, m = (effective_number(patients[labels == k]) for k in (0, 1))

    def lowest(found):
        """The smallest true AUC that would make the found one no surprise."""

        def excess(area):
            pairs = 1 + ((n + m) / 2 - 1) * ((1 - area) / (2 - area) + area / (1 + area))
            return found - area - norm.ppf(0.975) * np.sqrt(area * (1 - area) * pairs / (n * m))

        return float(brentq(excess, 0, found * (1 - 1e-12)))

    value = auc(labels, scores)
    return Interval(value, lowest(value), 1 - lowest(1 - value))


def average_precision_interval(labels, scores, patients=None) -> Interval:
    """Area under the precision-recall curve, summed in steps as scikit-learn does.

    It is a mean over the positive studies, each between 0 and 1, and gets Wilson's interval for
    their effective number, as Boyd, Eng & Page, ECML PKDD (2013), take it for a proportion.
    """
    labels, scores = _checked(labels, scores)
    n = effective_number(_patients(labels, patients)[labels == 1])
    return wilson(min(1.0, average_precision_score(labels, scores)) * n, n)


def f1_interval(labels, called, patients=None) -> Interval:
    """F1 of calls (0 or 1), COVID as positive: 2 TP / (2 TP + FP + FN), with its interval.

    F* = TP / (TP + FP + FN) is a proportion, with Wilson's interval, and F1 = 2 F* / (1 + F*)
    rises with it. Source: Hand, Christen & Kirielle, Machine Learning 110:451 (2021).
    """
    labels, called = (each.astype(bool) for each in _checked(labels, called))
    either = labels | called
    star = proportion((labels & called)[either], _patients(labels, patients)[either])
    return Interval(*(2 * share / (1 + share) for share in star))


def balanced(sensitivity: Interval, specificity: Interval) -> Interval:
    """Balanced accuracy, their mean, with an interval from their Wilson intervals.

    Source: square-and-add, Newcombe, Statistics in Medicine 17:873 (1998), method 10.
    """
    value = (sensitivity.value + specificity.value) / 2
    below = np.hypot(sensitivity.value - sensitivity.low, specificity.value - specificity.low) / 2
    above = np.hypot(sensitivity.high - sensitivity.value, specificity.high - specificity.value) / 2
    return Interval(value, float(value - below), float(value + above))


def delong(labels, scores_a, scores_b) -> dict:
    """Compare two models' AUCs on the same studies, one a patient, at least two of each class.

    Returns Intervals auc_a, auc_b and difference, and p_value, NaN if the difference has no
    variance. Sources: DeLong, Biometrics 44:837 (1988); Sun & Xu, IEEE SPL 21:1389 (2014).
    """
    z, shares = norm.ppf(0.975), []
    for each in (scores_a, scores_b):
        labels, scores = _checked(labels, each)
        beaten = rankdata(scores)
        for k in (0, 1):
            beaten[labels == k] -= rankdata(scores[labels == k])
        shares.append(beaten / np.bincount(labels)[1 - labels])
    shares = np.array(shares)
    if min(np.bincount(labels)) < 2:
        raise ValueError("DeLong's variance needs at least two studies of each class")
    covariance = sum(np.cov(shares[:, labels == k]) / (labels == k).sum() for k in (0, 1))
    a, b = shares[:, labels == 1].mean(axis=1).tolist()
    values, weights = [a, b, a - b], np.array([[1, 0], [0, 1], [1, -1]])
    half = z * np.sqrt(np.maximum(0, np.sum(weights @ covariance * weights, axis=1)))
    low = np.maximum(np.subtract(values, half), [0, 0, -1]).tolist()
    high = np.minimum(np.add(values, half), 1).tolist()
    if half[2] > 1e-9:
        p_value = float(2 * norm.sf(abs(a - b) * z / half[2]))
    else:
        p_value = 1.0 if abs(a - b) < 1e-9 else float("nan")
    auc_a, auc_b, difference = map(Interval, values, low, high)
    return {"auc_a": auc_a, "auc_b": auc_b, "difference": difference, "p_value": p_value}


def choose_threshold(labels, scores, rule="youden", minimum=0.9) -> float:
    """The threshold for new studies, from VALIDATION labels and scores, never from test.

    rule: "youden", the largest sensitivity + specificity (on a tie, the widest gap between two
    scores), or "sensitivity", the highest threshold with a sensitivity of at least `minimum`.
    """
    labels, scores = _checked(labels, scores)
    distinct = np.unique(scores)
    thresholds = np.append(distinct[0], (distinct[1:] + distinct[:-1]) / 2)
    called = scores >= thresholds[:, None]
    sensitivity = called[:, labels == 1].mean(axis=1)
    if rule == "sensitivity":
        return float(thresholds[sensitivity >= minimum].max())
    if rule != "youden":
        raise ValueError(f'rule {rule!r} is unknown; choose "youden" or "sensitivity"')
    youden = np.round(sensitivity - called[:, labels == 0].mean(axis=1), 12)
    return float(thresholds[np.lexsort((np.diff(distinct, prepend=distinct[0]), youden))[-1]])


def evaluate(labels, scores, threshold, patients=None, seed=0, n_resamples=N_RESAMPLES) -> dict:
    """All scores of one model's probabilities on the test part: name -> Interval, and the counts.

    Intervals: `auc_interval`, `average_precision_interval`, `f1_interval`; `proportion` for
    accuracy, sensitivity and specificity; `balanced` for balanced accuracy; the bootstrap for the
    Brier score.
    """
    labels, scores = _checked(labels, scores)
    patients, called = _patients(labels, patients), (scores >= threshold).astype(int)
    is_ill, is_right = labels == 1, called == labels
    sensitivity = proportion(is_right[is_ill], patients[is_ill])
    specificity = proportion(is_right[~is_ill], patients[~is_ill])
    return {
        "auc": auc_interval(labels, scores, patients),
        "average_precision": average_precision_interval(labels, scores, patients),
        "brier": bootstrap(brier, labels, scores, patients, n_resamples, seed=seed),
        "accuracy": proportion(is_right, patients),
        "f1": f1_interval(labels, called, patients),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": balanced(sensitivity, specificity),
        "true_positive": int(np.sum(is_ill & is_right)),
        "false_negative": int(np.sum(is_ill & ~is_right)),
        "true_negative": int(np.sum(~is_ill & is_right)),
        "false_positive": int(np.sum(~is_ill & ~is_right)),
    }


def comparison_table(models, patients=None, seed=0, n_resamples=N_RESAMPLES) -> pd.DataFrame:
    """Models side by side on the same studies, as "value [low, high]", with the majority class.

    models: name -> (labels, scores, threshold). The row "majority class" gives every study the
    share of COVID as its probability. ValueError if the models were judged on different labels.
    """
    labels = np.asarray(next(iter(models.values()))[0])
    for name, (others, *_) in models.items():
        if not np.array_equal(labels, others):
            raise ValueError(f"{name}: judged on other labels; give all models the same studies")
    rows = {**models, "majority class": (labels, np.full(len(labels), labels.mean()), 0.5)}
    scores = {name: evaluate(*row, patients, seed, n_resamples) for name, row in rows.items()}
    cells = [[str(score[metric]) for metric in METRICS] for score in scores.values()]
    return pd.DataFrame(cells, list(scores), [metric.replace("_", " ") for metric in METRICS])


def curve_bands(labels, scores, kind="roc", n_resamples=N_RESAMPLES, seed=0, patients=None):
    """A ROC or precision-recall curve with its pointwise 95 % band, bootstrapped over patients.

    kind: "roc" or "pr". Returns grid (101,) of false positive rates or recalls, and the curve,
    low and high there: the sensitivity, or the precision where that recall is first reached.
    """
    grid = np.linspace(0, 1, 101)

    def curve(labels, scores):
        tp, fp = _positives(labels, scores)
        if kind == "roc":
            return np.interp(grid, np.append(0, fp / fp[-1]), np.append(0, tp / tp[-1]))
        return (tp / (tp + fp))[np.searchsorted(tp / tp[-1], grid - 1e-12)]

    values = bootstrap_values(curve, labels, scores, patients, n_resamples, seed)
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return grid, curve(*_checked(labels, scores)), low, high


def reliability(labels, probabilities, n_bins=5) -> pd.DataFrame:
    """Predicted against observed share of COVID, in bins of about equal count; ties stay together.

    Columns: predicted (mean probability), observed (with Wilson's low and high), count.
    """
    brier(labels, probabilities)
    labels, probabilities = _checked(labels, probabilities)
    edges = np.quantile(probabilities, np.linspace(0, 1, n_bins + 1)[1:-1])
    table = pd.DataFrame({"label": labels, "predicted": probabilities})
    bins = table.groupby(np.searchsorted(edges, probabilities)).agg(
        predicted=("predicted", "mean"), positives=("label", "sum"), count=("label", "size")
    )
    shares = [wilson(k, n) for k, n in zip(bins.positives, bins["count"], strict=True)]
    bins[["observed", "low", "high"]] = shares
    return bins.reset_index(drop=True)[["predicted", "observed", "low", "high", "count"]]


def _positives(labels, scores):
    """True and false positives as the threshold sinks through the distinct scores."""
    order = np.argsort(-scores)
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    tp = np.cumsum(labels[order])[last_of_tie]
    return tp, np.flatnonzero(last_of_tie) + 1 - tp


def _checked(labels, scores):
    """Labels as int and scores as float arrays (N,); ValueError that says what is wrong."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape}: need one score a label")
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} scores are NaN or infinite; check them")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels must be 0 or 1 (1 = COVID)")
    labels = labels.astype(int)
    if not 0 < labels.sum() < len(labels):
        raise ValueError("only one class among the labels; these scores need both")
    return labels, scores


def _patients(labels, patients):
    """One patient a study, as an array (N,); without any, each study has its own."""
    patients = np.arange(len(labels)) if patients is None else np.asarray(patients)
    if len(patients) != len(labels):
        raise ValueError(f"{len(labels)} labels but {len(patients)} patients; give one per study")
    return patients


def pointing(heat, lesion) -> dict:
    """How well a heat map points at a lesion: by its slices, its hottest voxel and all voxels.

    heat, lesion: (D, H, W), or (D,) for one number a slice; lesion is its share of each voxel.
    rank: Spearman's correlation of both sums over the slices. Of maps only, else NaN: hit, whether
    the hottest voxel is mostly lesion (the "pointing game", Zhang et al. 2018); auc, of the heat as
    a score for the voxels that are mostly lesion.
    """
    heat, lesion = np.asarray(heat, float), np.asarray(lesion, float)
    by_slice = (part.reshape(len(part), -1).sum(axis=1) for part in (heat, lesion))
    found = {"rank": float(spearmanr(*by_slice)[0]), "hit": float("nan"), "auc": float("nan")}
    if heat.ndim == 3:
        inside = lesion > 0.5
        found["hit"] = float(inside.flat[heat.argmax()])
        found["auc"] = auc(inside.ravel().astype(int), heat.ravel())
    return found
