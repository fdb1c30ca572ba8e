"""Checks of the exercises, in the order of the notebooks.

Each answers at once, as `answers` describes: a guess with the reason why it is right or wrong, a
function that is tried on hidden cases, or a property that the answer has to have.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers.course.answers import answer, answers_of, built, choice, numeric, same, verdict
from helpers.ct.cohort import TASKS
from helpers.scores.metrics import auc


def check_published_task(task):
    """1.1: the mapping of CT-0 against CT-1 to CT-4."""
    if not answer(task):
        return None
    expected = TASKS["ct0-ct1234"]
    if not isinstance(task, dict):
        return verdict(False, "", "Give a dictionary from category to label.")
    if task == {category: 1 - label for category, label in expected.items()}:
        return verdict(False, "", "The classes are swapped: label 1 is COVID, everywhere.")
    missing = [category for category in expected if category not in task]
    hint = f"{missing[0]} has no label." if missing else "CT-0 is 0, every other category is 1."
    return verdict(task == expected, "This is the task of most published tables.", hint)


def check_shared_patients(function):
    """1.2: the number of patients that two tables share."""
    a = pd.DataFrame({"patient": ["p1", "p1", "p2"], "study": ["s1", "s2", "s3"]})
    b = pd.DataFrame({"patient": ["p1", "p1", "p3"], "study": ["s4", "s5", "s6"]})
    found = answers_of(function, [(a, b)])
    if not found:
        return found
    hint = "Compare the column `patient`, and count every patient once."
    slips = [
        (2, "p1 was counted twice: count patients, not studies (a set helps)."),
        (0, "Studies differ although the patient is the same: compare `patient`, not `study`."),
    ]
    return numeric(found[0], 1, hint, "A split is sound when this is 0 for every pair.", slips)


def check_lung_window(low, high):
    """2.1: level -600 and width 1500 as low and high."""
    hint = "low = level - width / 2, high = level + width / 2."
    half = "The width is the whole span: half of it lies on each side of the level."
    slips = [((..., 1500), half), ((..., 900), half), ((150, ...), "low and high are swapped.")]
    praise = "Air is black, muscle is white, and the lung gets the greys."
    return numeric((low, high), (-1350, 150), hint, praise, slips)


def check_slice_distance(distance):
    """2.2: the distance between slices after 41 slices of 8 mm became 64."""
    hint = "The height stays 41 x 8 mm; 64 slices share it."
    slips = [
        (8, "8 mm is the distance before; 64 slices now share the same height."),
        (8 * 64 / 41, "More slices over the same height lie closer together, not further apart."),
    ]
    return numeric(distance, 41 * 8 / 64, hint, "A stretch adds slices, not detail.", slips)


def check_lesion_hu(value, hu, mask):
    """3.1: the mean HU inside the lesion; hu, mask: (D, H, W)."""
    if mask is None:
        print("This study comes without a lesion mask: try the phantom.")
        return None
    hint = "Index the HU with the mask, which picks the voxels where it is true, and take the mean."
    slips = [
        (hu[~mask].mean(), "That is the mean outside the lesion."),
        ((hu * mask).mean(), "hu * mask keeps a 0 for every voxel outside: the mean counts them."),
    ]
    praise = "Clear lung is near -800 HU: every step up is less air."
    return numeric(value, hu[mask].mean(), hint, praise, slips)


def check_linked(function):
    """3.2: the slice at the same fraction of the height."""
    cases = [(0, 40, 40), (39, 40, 20), (20, 41, 33), (0, 10, 40), (5, 10, 40), (32, 33, 54)]
    found = answers_of(function, cases)
    if not found:
        return found
    expected = [int((k + 0.5) / n_a * n_b) for k, n_a, n_b in cases]
    hint = "The middle of slice k is at (k + 0.5) / n_a of the height; times n_b, as an int."
    if same(found[1], 39):
        hint = "A study of 20 slices has no slice 39: use the fraction of the height."
    elif any(isinstance(number, float) and number % 1 for number in found):
        hint = "A slice is a whole number: int(...) cuts off the rest."
    right = all(map(same, found, expected))
    return verdict(right, "20 slices and 40 slices reach the top of the lung together.", hint)


def check_lstm_parameters(count):
    """4.1: the parameters of a bidirectional LSTM with 96 features and 64 hidden units."""
    gate = 64 * 96 + 64 * 64 + 2 * 64
    hint = "A direction has four gates; each has h x f and h x h weights and two biases of h."
    slips = [
        (4 * gate, "That is one direction; a bidirectional LSTM reads the slices both ways."),
        (2 * 4 * (gate - 64), "PyTorch keeps two bias vectors for each gate, not one."),
        (2 * gate, "That is one gate in each direction; an LSTM has four."),
    ]
    return numeric(count, 2 * 4 * gate, hint, "Few, beside a wide linear layer.", slips)


def check_pooling(function):
    """4.2: attention pooling with equal scores is the mean."""
    features, scores = np.arange(12.0).reshape(4, 3), np.array([0.0, 1.0, -1.0, 2.0])
    found = answers_of(function, [(features, scores)])
    if not found:
        return found
    found = np.asarray(found[0], float)
    expected = np.exp(scores) / np.exp(scores).sum() @ features
    hint = "Turn the scores into weights with a softmax, then sum weight x features over slices."
    if found.shape != (3,):
        hint = f"The result has the shape {found.shape}: sum over the slices, keep the features."
    elif np.allclose(found, scores @ features):
        hint = "The scores were used as they are: a softmax makes weights that sum to 1."
    elif np.allclose(found, features.mean(0)):
        hint = "That is the mean: the scores have to change it."
    right = found.shape == (3,) and np.allclose(found, expected)
    return verdict(right, "With equal scores it is the mean.", hint)


def check_learning_rate(step):
    """5.1: the step, counted from 0, at which a warm-up over 10 of 100 steps reaches its peak."""
    if same(step, 10):
        return verdict(True, "The rate is still full at step 10; step 9 was the first.", "")
    hint = "Look at the end of the straight piece of the curve."
    slips = [(100, "By the last step the cosine has come down to almost nothing.")]
    return numeric(step, 9, hint, "Step 10 has it too; then the cosine brings it down.", slips)


def check_positive_weight(weight):
    """5.2: the weight of the positive class with 60 healthy and 20 ill training studies."""
    hint = "The 20 ill studies together should weigh as much as the 60 healthy ones."
    share = "That is a share of the whole; what is wanted is one class against the other."
    other_way = "The other way round: the rarer class is the one to be weighted up."
    slips = [(1 / 3, other_way), (0.75, share), (0.25, share)]
    return numeric(weight, 3, hint, "The loss then counts both classes alike.", slips)


def check_threshold_for_95(function):
    """6.1: the highest threshold with a sensitivity of 95 %, and the share of false alarms."""

    def right(labels, scores, of=(1,), share=0.95):
        for threshold in np.unique(scores)[::-1]:
            called = scores >= threshold
            if called[np.isin(labels, of)].mean() >= share:
                return threshold, called[labels == 0].mean()

    def by_quantile(labels, scores):
        threshold = np.quantile(scores[labels == 1], 0.05)
        return threshold, (scores >= threshold)[labels == 0].mean()

    mistakes = [
        (by_quantile, "A quantile lies between two scores, and may miss one ill scan too many."),
        (lambda *case: right(*case, of=(0, 1)), "95 % of the ill, not of all: labels == 1."),
        (lambda *case: right(*case, of=(0,)), "That finds 95 % of the healthy: labels == 1."),
        (lambda *case: right(*case, share=1), "That misses nobody; one in twenty may be missed."),
        (lambda *case: (right(*case)[0], 1 - right(*case)[1]), "The cost is 1 − specificity."),
    ]
    hints = (
        "Try every score as the threshold, from the highest down; the ill are labels == 1.",
        "Stop at the first for which (scores >= threshold)[labels == 1].mean() is 0.95 or more.",
        "return threshold, (scores >= threshold)[labels == 0].mean()",
    )
    rng, all_labels = np.random.default_rng(6), [np.repeat([1, 0], n) for n in ((40, 50), (30, 25))]
    cases = [(labels, np.round(rng.normal(labels, 0.8), 2)) for labels in all_labels]
    praise = "The last ill scans are dear: a clinic has to agree to this price."
    return built(function, right, cases, mistakes, hints, praise)


def check_differences(function):
    """6.2: the difference of two AUCs on resamples of the patients."""

    def all_scans(patients, drawn):
        return np.concatenate([np.flatnonzero(patients == name) for name in drawn])

    def one_scan(patients, drawn):
        return np.array([np.flatnonzero(patients == name)[0] for name in drawn])

    def right(labels, a, b, patients, draws, rows_of=all_scans):
        rows = [rows_of(patients, drawn) for drawn in draws]
        return np.array([auc(labels[k], a[k]) - auc(labels[k], b[k]) for k in rows])

    mistakes = [
        (lambda *case: right(*case, np.isin), "np.isin takes once who was drawn twice."),
        (lambda *case: right(*case, one_scan), "A patient comes with all scans, not only one."),
        (lambda *case: -right(*case), "The other way round: the AUC of a minus that of b."),
    ]
    hints = (
        "Look at bootstrap_by_hand: how does it come from the drawn names to rows?",
        "One array of rows for each draw, and the same rows for a and for b.",
        "rows = np.concatenate([np.flatnonzero(patients == name) for name in drawn])",
    )
    rng, cases = np.random.default_rng(6), []
    for n in (12, 9):
        patients = np.tile([f"p{k}" for k in range(n)], 2)  # two scans each
        labels = np.tile(np.arange(n) % 2, 2)
        draws = [[*rng.choice(patients, n), "p0", "p1"] for _ in range(4)]  # both classes
        cases.append((labels, rng.normal(labels), rng.normal(labels), patients, draws))
    praise = "The same patients for both: what they share falls out of the difference."
    return built(function, right, cases, mistakes, hints, praise)


def check_prevalence(letter):
    """6.3: what becomes of sensitivity and predictive value where few are ill."""
    because = {
        "a": "The sensitivity is a share of the ill alone: how many they are does not matter.",
        "b": "Of 1000 people 10 are ill, and 9 found; 99 healthy are called as well: 9 of 108.",
        "c": "One in ten of the healthy is called, as before; but now nearly all are healthy.",
        "d": "The sensitivity looks at the ill alone, the predictive value at all who are called.",
    }
    return choice(letter, "b", because)


def check_cheapest_threshold(threshold, labels, scores):
    """6.4: a threshold at which misses, ten times as dear as false alarms, cost least."""
    if not answer(threshold):
        return None
    labels, scores = np.asarray(labels), np.asarray(scores)

    def cost(value, of_miss=10):
        called = scores >= value
        return of_miss * int((~called & (labels == 1)).sum()) + int((called & (labels == 0)).sum())

    try:
        found, lowest = cost(float(threshold)), min(map(cost, scores))
    except (TypeError, ValueError):
        return verdict(False, "", "Give one number, the threshold.")
    hint = f"It costs {found}, but {lowest} is possible: try every score of this half."
    if threshold <= scores.min():
        hint = f"It misses nobody and calls everybody, which costs {found}; {lowest} is possible."
    elif cost(threshold, 1) == min(cost(value, 1) for value in scores):
        hint = f"It costs {found}, and would be best if both errors cost 1; {lowest} is possible."
    praise = f"It costs {found}; a threshold of 0.5 would cost {cost(0.5)}."
    return verdict(found == lowest, praise, hint)


def check_preprint_doi(function):
    """8.1: the DOI that the name of an image from a preprint means."""
    names = {
        "2020.03.22.20034041-p17-80-1.png": "10.1101/2020.03.22.20034041",
        "2020.02.10.20021584-p6-52%0.png": "10.1101/2020.02.10.20021584",
        "2020.01.24.919183-p27-132.png": "10.1101/2020.01.24.919183",
        "kjr-21-e24-p5-29.png": "",
        "71%0.jpg": "",
    }
    found = answers_of(function, [(name,) for name in names])
    if not found:
        return found
    for (name, expected), doi in zip(names.items(), found, strict=True):
        if doi != expected:
            return verdict(False, "", f"{name} gives {doi!r} instead of {expected!r}.")
    return verdict(True, "A contribution from one of these papers is no new paper.", "")


def check_accuracy_without_copies(accuracy):
    """8.2: 168 of 203 right, two of them copies."""
    hint = "Take the two copies away from both numbers."
    slips = [(166 / 203, "The copies are gone from the right ones, but still among the 203.")]
    return numeric(accuracy, 166 / 201, hint, "From .828 to .826.", slips)


def check_black_rows(n_rows):
    """9.1: the black rows after an image of 400 x 200 pixels (width x height) fills 224 x 224."""
    hint = "The longer side, 400, becomes 224; the other shrinks by the same factor."
    slips = [
        (112 / 2, "That is one of the two black bars."),
        (0, "Without black rows the lung would be stretched to twice its height."),
    ]
    return numeric(n_rows, 112, hint, "The shape of the chest stays as it was.", slips)


def check_f1_of_covid(f1):
    """9.2: F1 with COVID as positive, of 81 of 98 found and 91 of 105 others called right."""
    hint = "17 missed and 14 false alarms: F1 = 2 TP / (2 TP + FP + FN), with TP = 81."
    slips = [
        (182 / 213, "That is the F1 of the others: there TP is 91."),
        (81 / 98, "That is the sensitivity: F1 counts the false alarms too."),
    ]
    return numeric(f1, 162 / 193, hint, "The same calls: .854 became .839.", slips)


def check_experiment(letter):
    """9.3: the experiment that blames the negatives and not the scanner."""
    if not answer(letter):
        return None
    hints = {
        "a": "Another seed changes neither: ask what the two collections differ in.",
        "c": "That changes the picture, not who the others are: it asks about the scanner.",
        "d": "Then scanner and others change together, and either may be the reason.",
    }
    found = str(letter).strip().lower()
    hint = hints.get(found, "Give one of the letters, as text: for example 'a'.")
    praise = "One thing changes, and no other scanner comes in: the AUC went from .70 to .29."
    return verdict(found == "b", praise, hint)


def check_loss_of_guessing(loss):
    """10.1: the loss when one right and 512 wrong keys are all equally similar."""
    hint = "Each of the 513 gets the probability 1 / 513; the loss is minus its logarithm."
    two = "That is two answers; here there are 513."
    slips = [(np.log(2), two), (np.log(512), "The right key counts too.")]
    return numeric(loss, np.log(513), hint, "A loss near this has learned nothing.", slips)


def check_half_life(n_steps):
    """10.2: after how many steps half of the key network is new, at a momentum of 0.99."""
    hint = "After n steps the old weights count 0.99 ** n: when is that 0.5?"
    slips = [(50, "Each step takes a hundredth of what is left, not of the whole.")]
    return numeric(n_steps, np.log(0.5) / np.log(0.99), hint, "At 0.999 it would be 693.", slips)


def check_loss_of_shares(loss):
    """11.1: the loss of a batch of which one process has 3 scans and the other 1."""
    hint = "Every scan counts the same: (3 x 0.6 + 1 x 1.0) / 4."
    slip = "That counts the one scan of the second process as much as the three of the first."
    praise = "So each process's loss is weighted by its share."
    return numeric(loss, (3 * 0.6 + 1 * 1.0) / 4, hint, praise, [(0.8, slip)])


def check_cores_of_one_client(n_cores):
    """11.2: cores at 0.1 s a study that keep a client at 10 Gbit/s busy with 4 MiB results."""
    a_second = 10e9 / 8 / (64 * 256 * 256)
    hint = "How many studies a second fit through the link, and how many does one core make?"
    slips = [
        (8 * a_second * 0.1, "10 Gbit are 1.25 GB: eight bits are a byte."),
        (a_second, "That many fit through the link in a second; a core makes 10 in that time."),
    ]
    # 29 as well as 29.8 and 30: how one rounds is not the question
    return numeric(n_cores, a_second * 0.1, hint, "The 30th core has to wait.", slips, 3e-2)
