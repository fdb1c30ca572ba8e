"""Scores and intervals against scikit-learn, scipy, loops and simulations."""

from __future__ import annotations

import functools
import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from helpers.scores import baselines, metrics
from tests.benchmarks import coverage

INTERVALS = [*metrics.METRICS, "accuracy", "f1"]


def simulated(n_positive, n_negative, shift, seed, decimals=None):
    """Normal scores, the positive ones `shift` higher; rounding makes ties."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [n_positive, n_negative])
    scores = rng.normal(size=len(labels)) + shift * labels
    return labels, scores if decimals is None else scores.round(decimals)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize(("successes", "n"), [(16, 20), (0, 7), (7, 7), (1, 331), (250, 255)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(successes, n, confidence):
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    ours = metrics.wilson(successes, n, confidence)
    assert ours == pytest.approx((successes / n, theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= ours.high <= 1


def test_sixteen_of_twenty_and_how_an_interval_is_written():
    interval = metrics.wilson(16, 20)
    assert str(interval) == "0.80 [0.58, 0.92]"
    assert json.loads(json.dumps({"accuracy": interval}))["accuracy"] == list(interval)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(ValueError, match="trials"):
        metrics.wilson(successes, n)


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_scikit_learn_with_and_without_ties(seed, decimals):
    labels, scores = simulated(23, 31, 0.8, seed, decimals)
    assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    expected = average_precision_score(labels, scores)
    assert metrics.average_precision_interval(labels, scores).value == pytest.approx(expected)
    assert metrics.brier(labels, sigmoid(scores)) == pytest.approx(
        brier_score_loss(labels, sigmoid(scores))
    )


def test_bootstrap_equals_a_plain_loop_over_patients():
    labels, scores = simulated(6, 8, 0.5, 0)
    patients = np.array(list("aabbccddeeffgg"))
    values = metrics.bootstrap_values(roc_auc_score, labels, scores, patients, 50, seed=3)
    rng, expected = np.random.default_rng(3), []
    for _ in range(50):
        drawn = rng.integers(7, size=7)
        rows = [row for k in drawn for row in np.flatnonzero(patients == "abcdefg"[k])]
        if len(set(labels[rows])) == 2:
            expected.append(roc_auc_score(labels[rows], scores[rows]))
    assert values == pytest.approx(expected)
    interval = metrics.bootstrap(metrics.auc, labels, scores, patients, 50, seed=3)
    assert interval[1:] == pytest.approx(np.quantile(expected, [0.025, 0.975]))
    assert interval.value == pytest.approx(roc_auc_score(labels, scores))


def test_resamples_with_one_class_are_left_out_and_can_be_counted():
    labels, scores = [0, 1, 1], [0.1, 0.9, 0.8]
    values = metrics.bootstrap_values(metrics.auc, labels, scores, n_resamples=3000)
    # all from class 1 (8 of 27 draws) or all the same negative (1 of 27)
    assert 1 - len(values) / 3000 == pytest.approx(9 / 27, abs=0.03)
    assert len(metrics.bootstrap_values(metrics.auc, *simulated(20, 20, 1, 0))) == 2000


def test_bootstrap_is_seeded_and_one_patient_is_too_few():
    labels, scores = simulated(10, 10, 1, 0)
    first, again, other = (
        metrics.bootstrap(metrics.auc, labels, scores, n_resamples=200, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again != other
    # one patient who has both classes is drawn every time; two of one class each may not be
    same = metrics.bootstrap(metrics.auc, labels, scores, patients=[0] * 20, n_resamples=20)
    assert same.low == same.high == same.value
    one_twice = next(
        k for k in range(99) if np.ptp(np.random.default_rng(k).integers(2, size=2)) == 0
    )
    with pytest.raises(ValueError, match="too few"):
        metrics.bootstrap(metrics.auc, [0, 1], [0.1, 0.9], n_resamples=1, seed=one_twice)


def test_effective_number_of_patients():
    assert metrics.effective_number(list("abcde")) == 5
    assert metrics.effective_number(np.repeat(list("abcde"), 7)) == pytest.approx(5)
    assert metrics.effective_number(["a"] * 9) == 1
    # the mean over studies that are copies varies as the mean over this many patients would
    patients = np.repeat(np.arange(4), [1, 1, 3, 7])
    means = np.random.default_rng(0).normal(size=(40000, 4))[:, patients].mean(axis=1)
    assert 1 / means.var() == pytest.approx(metrics.effective_number(patients), rel=0.03)


def test_copies_of_a_patients_studies_do_not_narrow_the_interval():
    labels, scores = simulated(25, 25, 1, 4)
    four_times = np.repeat(labels, 4), np.repeat(scores, 4), np.repeat(np.arange(50), 4)

    def bootstrap(*data):
        return metrics.bootstrap(metrics.auc, *data, n_resamples=500)

    for interval in (bootstrap, metrics.auc_interval):
        once, clustered = interval(labels, scores), interval(*four_times)
        naive = interval(*four_times[:2])
        assert clustered == pytest.approx(once, abs=1e-9)
        assert naive.high - naive.low < 0.65 * (once.high - once.low)


def test_evaluate_widens_every_interval_when_patients_have_several_studies():
    labels, logits = simulated(25, 25, 1, 4)
    scores = sigmoid(logits - 0.5)
    once = metrics.evaluate(labels, scores, 0.5)
    four_times = np.repeat(labels, 4), np.repeat(scores, 4)
    clustered = metrics.evaluate(*four_times, 0.5, np.repeat(np.arange(50), 4))
    naive = metrics.evaluate(*four_times, 0.5)
    for name in INTERVALS:
        assert clustered[name] == pytest.approx(once[name], abs=1e-9), name
        assert naive[name].high - naive[name].low < 0.7 * (once[name].high - once[name].low), name


def test_all_right_is_all_right_whatever_the_patients():
    rng = np.random.default_rng(0)
    for n in range(1, 300):
        patients = rng.integers(rng.integers(1, 50), size=n)
        assert metrics.proportion(np.ones(n, bool), patients).value == 1
        assert metrics.proportion(np.zeros(n, bool), patients).value == 0


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("is_right", [True, False])
def test_perfect_and_worst_scores_keep_the_interval_that_their_patients_allow(n_images, is_right):
    labels = np.repeat([0, 1], 12 * n_images)
    patients = np.repeat(np.arange(24), n_images)
    scores = np.where(labels == is_right, 0.9, 0.2)
    found = metrics.evaluate(labels, scores, 0.5, patients)
    assert found["sensitivity"] == pytest.approx(metrics.wilson(12 * is_right, 12))
    assert found["accuracy"] == pytest.approx(metrics.wilson(24 * is_right, 24))
    for name in (name for name in INTERVALS if name != "brier"):
        value, low, high = found[name]
        assert value == is_right or name == "average_precision"
        assert low - 1e-12 <= value <= high + 1e-12 and high - low > 0.1, name


def newcombe(value, n, m):
    """Newcombe's method 5 by trying a million true AUCs."""
    area = np.linspace(1e-7, 1 - 1e-7, 1_000_000)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    others = (n + m) / 2 - 1
    variance = (area * (1 - area) + others * (q1 + q2 - 2 * area**2)) / (n * m)
    inside = area[(value - area) ** 2 <= norm.ppf(0.975) ** 2 * variance]
    return inside.min(), inside.max()


@pytest.mark.parametrize(("n", "m", "shift"), [(15, 15, 1), (8, 30, 2), (100, 40, 0), (6, 6, -2)])
def test_auc_interval_is_newcombes(n, m, shift):
    labels, scores = simulated(n, m, shift, 0)
    value, low, high = metrics.auc_interval(labels, scores)
    assert value == pytest.approx(roc_auc_score(labels, scores))
    assert (low, high) == pytest.approx(newcombe(value, n, m), abs=3e-6)
    mirrored = metrics.auc_interval(labels, -scores)
    assert mirrored == pytest.approx((1 - value, 1 - high, 1 - low))


@pytest.mark.parametrize("patients", [None, np.repeat(np.arange(10), 3)])
def test_a_better_auc_has_a_better_interval_all_the_way_to_one(patients):
    labels, scores = np.repeat([0, 1], 15), np.arange(30.0)
    ends = []
    for place in range(15, -1, -1):
        worse = scores.copy()
        worse[15] = place - 0.5  # below ever fewer healthy studies
        ends.append(metrics.auc_interval(labels, worse, patients))
    assert all(np.diff(ends, axis=0)[:-1].max(axis=0) < 0)
    perfect = metrics.auc_interval(labels, scores, patients)
    assert perfect[::2] == (1, 1) and perfect.low > ends[1].low
    assert perfect.low - ends[1].low < 0.05, "no leap at the end"
    if patients is None:
        assert perfect.low == pytest.approx(0.865, abs=5e-4)


def test_perfect_auc_keeps_a_lower_end_that_a_simulation_confirms():
    labels, scores = np.repeat([0, 1], 12), np.arange(24.0)
    assert metrics.bootstrap(metrics.auc, labels, scores).low == 1
    value, low, high = metrics.auc_interval(labels, scores)
    assert (value, high) == (1, 1)
    # exponential scores whose true AUC is `low` should separate fully about 2.5 % of the time
    rng, scale = np.random.default_rng(0), low / (1 - low)
    negative, positive = rng.exponential(1, (20000, 12)), rng.exponential(scale, (20000, 12))
    assert 0.003 < np.mean(negative.max(axis=1) < positive.min(axis=1)) < 0.05
    more = metrics.auc_interval(np.repeat([0, 1], 60), np.arange(120.0))
    assert low < more.low < 1


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    shift = np.sqrt(2) * norm.ppf(0.9)
    truth = {"auc": 0.9, "f1": norm.cdf(shift / 2), "sensitivity": norm.cdf(shift / 2)}
    inside = dict.fromkeys(truth, 0)
    for seed in range(400):
        labels, scores = simulated(20, 20, shift, seed)
        called = scores >= shift / 2
        found = {
            "auc": metrics.auc_interval(labels, scores),
            "f1": metrics.f1_interval(labels, called),
            "sensitivity": metrics.proportion(called[labels == 1]),
        }
        for name, (_, low, high) in found.items():
            inside[name] += low <= truth[name] <= high
    assert all(0.92 <= n / 400 <= 0.99 for n in inside.values()), inside


def test_the_simulation_of_coverage_knows_the_truth_and_counts_what_holds_it():
    labels, scores, _ = coverage.draw(np.random.default_rng(0), 0.9, [1] * 60_000)
    called = scores >= coverage.threshold(0.9)
    assert roc_auc_score(labels, scores) == pytest.approx(0.9, abs=0.005)
    expected = average_precision_score(labels, scores)
    assert coverage.true_average_precision(0.9) == pytest.approx(expected, abs=0.005)
    assert coverage.true_rate(0.9) == pytest.approx(f1_score(labels, called), abs=0.005)
    labels, scores, patients = coverage.draw(np.random.default_rng(0), 0.5, [2] * 20_000)
    assert np.corrcoef(scores[::2], scores[1::2])[0, 1] == pytest.approx(0.5, abs=0.02)
    methods = {
        "always": lambda *_: metrics.Interval(0.5, 0, 1),
        "never": lambda *_: metrics.Interval(0.5, 0.1, 0.2),
    }
    table = coverage.table(methods, lambda _, area: area, lambda n: [1] * n, 2)
    *_, always, never = table.splitlines()
    assert always == "| always |" + " 100.0 (1.00) |" * 6
    assert never == "| never |" + " 0.0 (0.10) |" * 6


@pytest.mark.parametrize("seed", range(4))
def test_f1_equals_scikit_learn_and_its_interval_is_that_of_the_jaccard_index(seed):
    labels, scores = simulated(14, 22, 1, seed)
    called = scores > 0.7
    value, low, high = metrics.f1_interval(labels, called)
    assert value == pytest.approx(f1_score(labels, called))
    n = int(np.sum(called | (labels == 1)))
    theirs = binomtest(int(np.sum(called & (labels == 1))), n).proportion_ci(method="wilson")
    ends = [2 * star / (1 + star) for star in (theirs.low, theirs.high)]
    assert (low, high) == pytest.approx(ends)


def test_average_precision_has_wilsons_interval_of_the_positive_patients():
    labels, scores = simulated(14, 22, 1, 0)
    value, low, high = metrics.average_precision_interval(labels, scores)
    assert (value, low, high) == pytest.approx(metrics.wilson(value * 14, 14))
    patients = np.where(labels == 1, np.arange(36) // 2, np.arange(36))
    clustered = metrics.average_precision_interval(labels, scores, patients)
    assert clustered == pytest.approx(metrics.wilson(value * 7, 7))


def test_balanced_interval_covers_and_keeps_a_width_at_one():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(600):
        hits, rejections = rng.binomial(20, 0.9), rng.binomial(30, 0.7)
        interval = metrics.balanced(metrics.wilson(hits, 20), metrics.wilson(rejections, 30))
        inside += interval.low <= 0.8 <= interval.high
    assert 0.93 <= inside / 600 <= 0.98
    perfect = metrics.balanced(metrics.wilson(10, 10), metrics.wilson(10, 10))
    assert perfect.value == perfect.high == 1 and perfect.low < 0.85


def placements(labels, scores):
    """DeLong's components by the definition: every positive study against every negative one."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = np.array([[(p > n) + 0.5 * (p == n) for n in negative] for p in positive])
    return wins.mean(axis=1), wins.mean(axis=0)


@pytest.mark.parametrize("decimals", [None, 0])
def test_delong_equals_the_placement_loops(decimals):
    labels, a = simulated(19, 27, 1, 5, decimals)
    b = (a + np.random.default_rng(6).normal(size=46)).round(decimals or 1)
    order = np.random.default_rng(7).permutation(46)
    labels, a, b = labels[order], a[order], b[order]
    (positive_a, negative_a), (positive_b, negative_b) = (
        placements(labels, a),
        placements(labels, b),
    )
    covariance = np.cov(positive_a, positive_b) / 19 + np.cov(negative_a, negative_b) / 27
    spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference = roc_auc_score(labels, a) - roc_auc_score(labels, b)

    result = metrics.delong(labels, a, b)
    assert result["auc_a"].value == pytest.approx(roc_auc_score(labels, a))
    assert result["auc_b"].value == pytest.approx(roc_auc_score(labels, b))
    half = norm.ppf(0.975) * spread
    assert result["difference"] == pytest.approx((difference, difference - half, difference + half))
    assert result["p_value"] == pytest.approx(2 * norm.cdf(-abs(difference) / spread))
    half = norm.ppf(0.975) * np.sqrt(covariance[1, 1])
    assert result["auc_b"].value - result["auc_b"].low == pytest.approx(half)


def test_delong_agrees_with_the_bootstrap_on_the_variance():
    labels, a = simulated(60, 60, 1, 8)
    b = a + np.random.default_rng(9).normal(size=120)
    pairs = metrics.bootstrap_values(
        lambda labels, rows: [
            metrics.auc(labels, a[rows.astype(int)]),
            metrics.auc(labels, b[rows.astype(int)]),
        ],
        labels,
        np.arange(120),
    )
    result = metrics.delong(labels, a, b)
    z = norm.ppf(0.975)
    for values, interval in (
        (pairs[:, 0], result["auc_a"]),
        (pairs[:, 0] - pairs[:, 1], result["difference"]),
    ):
        assert (interval.high - interval.low) / (2 * z) == pytest.approx(values.std(), rel=0.1)


def test_delong_on_equal_opposite_and_constant_scores():
    labels, scores = simulated(20, 20, 1, 0)
    same = metrics.delong(labels, scores, scores)
    assert (same["difference"].value, same["p_value"]) == (0, 1)
    assert metrics.delong(labels, scores, -scores)["p_value"] < 0.01
    perfect, constant = labels.astype(float), np.zeros(40)
    assert np.isnan(metrics.delong(labels, perfect, constant)["p_value"])
    labels = [0, 0, 0, 1, 1, 1]
    assert metrics.delong(labels, [1, 2, 4, 3, 5, 6], scores[:6])["auc_a"].high == 1
    far = metrics.delong(labels, [2, 5, 6, 1, 3, 4], scores[:6])["auc_a"]
    assert far.low == 0 < far.value
    with pytest.raises(ValueError, match="two studies of each class"):
        metrics.delong([0, 0, 1], [1, 2, 3], [1, 2, 3])


@pytest.mark.parametrize("decimals", [None, 0])
@pytest.mark.parametrize("seed", range(5))
def test_youden_threshold_is_the_best_there_is(seed, decimals):
    labels, scores = simulated(13, 17, 1, seed, decimals)
    threshold = metrics.choose_threshold(labels, scores)
    best = max(
        balanced_accuracy_score(labels, scores >= candidate)
        for candidate in np.append(scores, np.inf)
    )
    assert balanced_accuracy_score(labels, scores >= threshold) == pytest.approx(best)


def test_threshold_stands_in_the_widest_gap_and_other_rules():
    assert metrics.choose_threshold([0, 0, 1, 1], [0.1, 0.3, 0.7, 0.9]) == pytest.approx(0.5)
    # 0.15 and 0.75 are equally good, the gap around 0.75 is wider
    tied = metrics.choose_threshold([0, 1, 0, 1], [0.1, 0.2, 0.6, 0.9])
    assert tied == pytest.approx(0.75)
    assert metrics.choose_threshold([0, 1], [0.4, 0.4]) == 0.4
    # scores that point the wrong way: calling everybody COVID is the best they allow
    assert metrics.choose_threshold([1, 0], [0.1, 0.9]) == 0.1
    labels, scores = simulated(40, 40, 1, 0)
    threshold = metrics.choose_threshold(labels, scores, "sensitivity", minimum=0.9)
    assert (scores[labels == 1] >= threshold).mean() >= 0.9
    higher = np.min(scores[scores >= threshold])
    assert (scores[labels == 1] > higher).mean() < 0.9
    with pytest.raises(ValueError, match="rule 'f1'"):
        metrics.choose_threshold(labels, scores, "f1")


def test_evaluate_gives_every_score_and_the_counts_behind_it():
    labels, logits = simulated(18, 22, 1, 0)
    scores = sigmoid(logits)
    result = metrics.evaluate(labels, scores, 0.6, n_resamples=100)
    called = scores >= 0.6
    assert result["true_positive"] == np.sum(called & (labels == 1))
    assert result["false_positive"] == np.sum(called & (labels == 0))
    assert result["true_positive"] + result["false_negative"] == 18
    assert result["true_negative"] + result["false_positive"] == 22
    expected = {
        "auc": roc_auc_score(labels, scores),
        "average_precision": average_precision_score(labels, scores),
        "brier": brier_score_loss(labels, scores),
        "accuracy": np.mean(called == labels),
        "f1": f1_score(labels, called),
        "balanced_accuracy": balanced_accuracy_score(labels, called),
        "sensitivity": called[labels == 1].mean(),
        "specificity": 1 - called[labels == 0].mean(),
    }
    for name, value in expected.items():
        assert result[name].value == pytest.approx(value), name
        assert result[name].low <= value <= result[name].high, name
    for name, n, hits in (
        ("sensitivity", 18, "true_positive"),
        ("specificity", 22, "true_negative"),
    ):
        assert result[name] == pytest.approx(metrics.wilson(result[hits], n))
    json.dumps(result, allow_nan=False)


def test_a_score_at_the_threshold_counts_as_covid():
    result = metrics.evaluate([0, 1], [0.4, 0.5], 0.5, n_resamples=20)
    assert result["sensitivity"].value == result["specificity"].value == 1


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "one class"),
        ([0, 0, 0], [0.1, 0.2, 0.3], "one class"),
        ([], [], "one class"),
        ([0, 1, 1], [0.1, np.nan, 0.3], "1 scores are NaN"),
        ([0, 1, 1], [0.1, 0.2], "one score a label"),
        ([0, 1, 2], [0.1, 0.2, 0.3], "0 or 1"),
        ([0, 1, 1], [0.1, 0.2, 1.3], "0..1"),
        ([0, 1, 1], [-0.1, 0.2, 0.3], "0..1"),
    ],
)
def test_evaluate_refuses_what_it_cannot_judge(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(labels, scores, 0.5, n_resamples=20)


def test_patients_must_be_named_for_every_study():
    bootstrap = functools.partial(metrics.bootstrap, metrics.auc)
    for function in (bootstrap, metrics.auc_interval, metrics.f1_interval):
        with pytest.raises(ValueError, match="one per study"):
            function([0, 1, 1], [0, 1, 1], patients=[1, 2])


def test_comparison_table_has_the_majority_class_and_one_row_a_model():
    labels, logits = simulated(18, 12, 1.5, 0)
    scores = sigmoid(logits)
    models = {"good": (labels, scores, 0.6), "reversed": (labels, 1 - scores, 0.5)}
    table = metrics.comparison_table(models, n_resamples=100)
    assert list(table.index) == ["good", "reversed", "majority class"]
    single = metrics.evaluate(labels, scores, 0.6, n_resamples=100)
    for metric in metrics.METRICS:
        assert table.loc["good", metric.replace("_", " ")] == str(single[metric])
    majority = table.loc["majority class"]
    assert majority["auc"].startswith("0.50") and majority["balanced accuracy"].startswith("0.50")
    assert majority["average precision"].startswith("0.60")
    assert majority["sensitivity"].startswith("1.00")
    models["other studies"] = (1 - labels, scores, 0.5)
    with pytest.raises(ValueError, match="other studies"):
        metrics.comparison_table(models, n_resamples=10)


def test_curves_equal_scikit_learn_on_the_grid_and_lie_in_their_bands():
    labels, scores = simulated(30, 40, 1, 0, decimals=1)
    grid, curve, low, high = metrics.curve_bands(labels, scores, "roc", n_resamples=200)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    for rate, value in zip(fpr, tpr, strict=True):
        if np.isclose(grid, rate).any():
            assert curve[np.isclose(grid, rate)] >= value - 1e-9
    area = ((curve[1:] + curve[:-1]) / 2).mean()
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=0.01)
    assert (low <= curve + 0.1).all() and (curve <= high + 0.1).all() and (low < high)[1:-1].any()

    grid, curve, low, high = metrics.curve_bands(labels, scores, "pr", n_resamples=200)
    precision, recall, _ = precision_recall_curve(labels, scores)
    expected = [precision[recall >= point - 1e-9][-1 if point > 0 else -2] for point in grid]
    assert curve[1:] == pytest.approx(expected[1:])
    assert curve[1:].mean() == pytest.approx(average_precision_score(labels, scores), abs=0.01)
    assert (low <= high).all() and curve[-1] == pytest.approx(low[-1], abs=0.2)


def test_bands_narrow_with_more_patients_but_not_with_copies():
    few, many = simulated(20, 20, 1, 0), simulated(200, 200, 1, 0)
    copies = [np.repeat(each, 5) for each in few]
    patients = np.repeat(np.arange(40), 5)

    def width(data, patients=None):
        _, _, low, high = metrics.curve_bands(*data, n_resamples=200, patients=patients)
        return (high - low).mean()

    assert width(many) < 0.5 * width(few)
    assert width(copies, patients) == pytest.approx(width(few))


def test_reliability_bins_hold_equal_counts_and_their_own_means():
    rng = np.random.default_rng(0)
    probabilities = rng.random(1000)
    labels = (rng.random(1000) < probabilities).astype(int)
    bins = metrics.reliability(labels, probabilities, n_bins=4)
    assert list(bins["count"]) == [250] * 4
    order = np.argsort(probabilities).reshape(4, 250)
    assert bins.predicted.to_numpy() == pytest.approx(probabilities[order].mean(axis=1))
    assert bins.observed.to_numpy() == pytest.approx(labels[order].mean(axis=1))
    expected = metrics.wilson(int(labels[order[0]].sum()), 250)
    assert tuple(bins.loc[0, ["observed", "low", "high"]]) == pytest.approx(expected)
    assert ((bins.low <= bins.predicted) & (bins.predicted <= bins.high)).all()
    off = metrics.reliability(labels, probabilities**4, n_bins=4)
    assert (off.predicted < off.low).any()


def test_reliability_never_splits_equal_probabilities():
    labels = np.repeat([0, 1], 20)
    one = metrics.reliability(labels, np.full(40, 0.5))
    assert len(one) == 1 and one.observed[0] == 0.5 and one["count"][0] == 40
    with pytest.raises(ValueError, match="0..1"):
        metrics.reliability(labels, np.full(40, 1.5))


def test_published_specificity_follows_from_the_published_figures():
    table = baselines.published_results().set_index("model")
    assert table.accuracy["always COVID"] == pytest.approx(0.770, abs=5e-4)
    assert table.specificity["always COVID"] == pytest.approx(0, abs=1e-9)
    assert table.balanced_accuracy["always COVID"] == pytest.approx(0.5)
    low = table.loc[["ResNet3D-101", "DenseNet3D-121", "MC3-18", "CovidNet3D-L"]]
    assert low.specificity.between(0.15, 0.40).all()
    n = table.n_negative + table.n_positive
    right = table.sensitivity * table.n_positive + table.specificity * table.n_negative
    pd.testing.assert_series_equal(right / n, table.accuracy, check_names=False)
    mean = (table.sensitivity + table.specificity) / 2
    pd.testing.assert_series_equal(table.balanced_accuracy, mean, check_names=False)
    seed = table.loc["3-D CNN, 20 scans"]
    assert seed.specificity == pytest.approx(0.90)
    assert str(metrics.wilson(seed.accuracy * 20, 20)) == "0.80 [0.58, 0.92]"


def test_histogram_counts_grey_values():
    volumes = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8), dtype=np.uint8)
    for bins in (1, 16, 32, 256):
        found = baselines.hu_histogram(volumes, bins)
        for volume, row in zip(volumes, found, strict=True):
            expected = np.histogram(volume, bins, (0, 256))[0] / volume.size
            assert row == pytest.approx(expected)
    one_at_a_time = baselines.hu_histogram(volumes[k] for k in (2, 0))
    assert one_at_a_time == pytest.approx(baselines.hu_histogram(volumes)[[2, 0]])
    with pytest.raises(ValueError, match="uint8"):
        baselines.hu_histogram(volumes.astype(np.float32))


def test_a_histogram_learns_brightness_but_not_noise(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    volumes = rng.integers(0, 200, (40, 4, 16, 16), dtype=np.uint8)
    volumes[labels == 1] += 30
    np.save(tmp_path / "volumes.npy", volumes)
    histograms = baselines.hu_histogram(np.load(tmp_path / "volumes.npy", mmap_mode="r"))
    noise = rng.permutation(labels)
    found, guesses = (
        baselines.logistic_regression(histograms[:30], y[:30]).predict_proba(histograms[30:])[:, 1]
        for y in (labels, noise)
    )
    assert metrics.auc(labels[30:], found) == 1
    assert guesses.std() < 0.25 < found.std()
    with pytest.raises(ValueError, match="at least two"):
        baselines.logistic_regression(histograms[:3], [0, 0, 1])


def test_logistic_regression_standardises_and_repeats_itself():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    features = rng.normal(size=(60, 5))
    features[:, 2] += 2 * labels
    scale, shift = np.array([1e3, 1, 1e-3, 1, 10]), np.array([5e4, 0, 2, -3, 1])
    probabilities = [
        baselines.logistic_regression(table[:40], labels[:40]).predict_proba(table[40:])[:, 1]
        for table in (features, features, features * scale + shift)
    ]
    np.testing.assert_array_equal(probabilities[0], probabilities[1])
    np.testing.assert_allclose(probabilities[0], probabilities[2], atol=1e-4)
    assert metrics.auc(labels[40:], probabilities[0]) > 0.85
    with pytest.raises(ValueError, match="at least two"):
        baselines.logistic_regression(features[:3], [0, 0, 1])


def test_the_regularisation_is_chosen_with_whole_patients_left_out():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 6)
    labels = patients % 2
    # the features tell who it is, and not what he has
    features = rng.normal(size=(20, 60))[patients] + 0.1 * rng.normal(size=(120, 60))

    def chosen(**options):
        fitted = baselines.logistic_regression(features, labels, **options)
        return fitted["logisticregression"].C

    assert chosen() > 10 * chosen(patients=patients)
    two_each = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    baselines.logistic_regression(features[:8], two_each % 2, patients=two_each)
    with pytest.raises(ValueError, match="two patients of each class"):
        baselines.logistic_regression(features[:8], two_each // 3, patients=two_each)


@pytest.mark.parametrize("n", [1, 3, 7, 30, 98, 203.4])
def test_an_interval_holds_its_value_at_both_ends(n):
    """To the last digit: at 0 and 1 the formula's end and the value differ by its rounding."""
    for k in (0, n):
        value, low, high = metrics.wilson(k, n)
        assert 0 <= low <= value <= high <= 1
    labels, nobody = np.array([0, 1, 1]), np.zeros(3, int)
    assert metrics.f1_interval(labels, nobody)[:2] == (0, 0)
