"""Checks of the exercises: each answers at once, with a hint for the usual slips.

A check prints one line and returns True or False; an answer left as `...` returns None.
"""

from __future__ import annotations

import math

import numpy as np


def check_published_task(task):
    """1.1: the mapping of CT-0 against CT-1 to CT-4."""
    if not answer(task):
        return None
    expected = {"CT-0": 0, "CT-1": 1, "CT-2": 1, "CT-3": 1, "CT-4": 1}
    if not isinstance(task, dict):
        return verdict(False, "", "Give a dictionary from category to label.")
    if task == {category: 1 - label for category, label in expected.items()}:
        return verdict(False, "", "The classes are swapped: label 1 is COVID, everywhere.")
    missing = [category for category in expected if category not in task]
    hint = f"{missing[0]} has no label." if missing else "CT-0 is 0, every other category is 1."
    return verdict(task == expected, "This is the task of most published tables.", hint)


def check_shared_patients(function):
    """1.2: the number of patients that two tables share."""
    import pandas as pd

    a = pd.DataFrame({"patient": ["p1", "p1", "p2"], "study": ["s1", "s2", "s3"]})
    b = pd.DataFrame({"patient": ["p1", "p1", "p3"], "study": ["s4", "s5", "s6"]})
    found = function(a, b)
    if not answer(found):
        return None
    hint = "Compare the column `patient`, and count every patient once."
    if close(found, 2):
        hint = "p1 was counted twice: count patients, not studies (a set helps)."
    if close(found, 0):
        hint = "Studies differ although the patient is the same: compare `patient`, not `study`."
    return verdict(close(found, 1), "A split is sound when this is 0 for every pair.", hint)


def check_lung_window(low, high):
    """2.1: level -600 and width 1500 as low and high."""
    if not answer(low, high):
        return None
    hint = "low = level - width / 2, high = level + width / 2."
    if close(high, 1500) or close(high, 900):
        hint = "The width is the whole span: half of it lies on each side of the level."
    if close(low, 150):
        hint = "low and high are swapped."
    right = close(low, -1350) and close(high, 150)
    return verdict(right, "Air is black, muscle is white, and the lung gets the greys.", hint)


def check_slice_distance(distance):
    """2.2: the distance of slices after 41 slices of 8 mm became 64."""
    if not answer(distance):
        return None
    hint = "The height stays 41 x 8 mm; 64 slices share it."
    if close(distance, 8):
        hint = "8 mm is the distance before; 64 slices now share the same height."
    if close(distance, 8 * 64 / 41, 1e-2):
        hint = "More slices over the same height lie closer together, not further apart."
    return verdict(close(distance, 41 * 8 / 64, 1e-2), "A stretch adds slices, not detail.", hint)


def check_lesion_hu(value, hu, mask):
    """3.1: the mean HU inside the lesion; hu, mask: (D, H, W)."""
    if mask is None:
        print("This study comes without a lesion mask: try the phantom.")
        return None
    if not answer(value):
        return None
    hint = "Index the HU with the mask, which picks the voxels where it is true, and take the mean."
    if close(value, hu[~mask].mean()):
        hint = "That is the mean outside of the lesion."
    if close(value, (hu * mask).mean()):
        hint = "hu * mask keeps a 0 for every voxel outside, and the mean counts them."
    praise = "Clear lung is near -800 HU: every step up is less air."
    return verdict(close(value, hu[mask].mean()), praise, hint)


def check_linked(function):
    """3.2: the slice at the same fraction of the height."""
    if not answer(function):
        return None
    cases = [(0, 40, 40), (39, 40, 20), (20, 41, 33), (0, 10, 40), (5, 10, 40), (32, 33, 54)]
    try:
        found = [function(*case) for case in cases]
    except Exception as error:
        return verdict(False, "", f"It stopped with {type(error).__name__}: {error}")
    if not answer(*found):
        return None
    hint = "Slice k's middle is at (k + 0.5) / n_a of the height; times n_b, and cut to an int."
    if any(
        close(slice_, k) for slice_, (k, n_a, n_b) in zip(found, cases, strict=True) if k >= n_b
    ):
        hint = "A study of 20 slices has no slice 39: use the fraction of the height."
    elif any(isinstance(slice_, float) and slice_ % 1 for slice_ in found):
        hint = "A slice is a whole number: int(...) cuts off the rest."
    right = all(
        close(slice_, int((k + 0.5) / n_a * n_b))
        for slice_, (k, n_a, n_b) in zip(found, cases, strict=True)
    )
    return verdict(right, "20 slices and 40 slices reach the apex together.", hint)


def check_lstm_parameters(count):
    """4.1: the parameters of a bidirectional LSTM with 96 features and 64 hidden units."""
    if not answer(count):
        return None
    one = 4 * (64 * 96 + 64 * 64 + 2 * 64)
    hint = "A direction has four gates; each has h x f and h x h weights and two biases of h."
    if close(count, one):
        hint = "That is one direction; a bidirectional LSTM reads the slices both ways."
    if close(count, 2 * (one - 4 * 64)):
        hint = "PyTorch keeps two bias vectors a gate, not one."
    if close(count, 2 * one / 4):
        hint = "That is one gate in each direction; an LSTM has four."
    return verdict(close(count, 2 * one, 1e-9), "Few, beside a wide linear layer.", hint)


def check_pooling(function):
    """4.2: attention pooling with equal scores is the mean."""
    features = np.arange(12.0).reshape(4, 3)
    scores = np.array([0.0, 1.0, -1.0, 2.0])
    found = function(features, scores)
    if not answer(found):
        return None
    weights = np.exp(scores) / np.exp(scores).sum()
    found = np.asarray(found, float)
    hint = "Turn the scores into weights with a softmax, then sum weight x features over slices."
    if found.shape != (3,):
        hint = f"The result has the shape {found.shape}: sum over the slices, keep the features."
    elif np.allclose(found, (scores[:, None] * features).sum(0)):
        hint = "The scores were used as they are: a softmax makes weights that sum to 1."
    elif np.allclose(found, features.mean(0)):
        hint = "That is the mean: the scores have to change it."
    right = found.shape == (3,) and np.allclose(found, weights @ features)
    return verdict(right, "With equal scores it is the mean.", hint)


def check_positive_weight(weight):
    """5.1: the weight of the positive class with 60 healthy and 20 ill training studies."""
    if not answer(weight):
        return None
    hint = "The 20 ill studies together should weigh as much as the 60 healthy ones."
    if close(weight, 1 / 3):
        hint = "The other way round: the rarer class is the one to be weighted up."
    if close(weight, 0.75) or close(weight, 0.25):
        hint = "That is a share of the whole; what is wanted is one class against the other."
    return verdict(close(weight, 3), "The loss then sees both classes alike.", hint)


def check_learning_rate(steps):
    """5.2: the step at which a warm-up over 10 of 100 steps reaches its peak."""
    if not answer(steps):
        return None
    hint = "Look at the end of the straight piece of the curve."
    if close(steps, 100):
        hint = "At step 100 the cosine has come down to nothing."
    return verdict(close(steps, 10), "From there on the cosine brings it down.", hint)


def check_always_covid(accuracy, balanced_accuracy):
    """6.1: accuracy and balanced accuracy of "always COVID" on 76 healthy and 255 ill."""
    if not answer(accuracy, balanced_accuracy):
        return None
    hint = "It is right on the 255 of 331; its sensitivity is 1 and its specificity 0."
    if close(accuracy, 76 / 331, 5e-3):
        hint = "That is the share of the healthy; the answer was COVID."
    if close(accuracy, 255 / 331, 5e-3) and close(balanced_accuracy, 255 / 331, 5e-3):
        hint = "Balanced accuracy is the mean of sensitivity and specificity."
    right = close(accuracy, 255 / 331, 5e-3) and close(balanced_accuracy, 0.5, 5e-3)
    return verdict(right, "Accuracy alone would have called it a good classifier.", hint)


def check_seed_interval(low, high):
    """6.2: Wilson interval of 16 of 20."""
    if not answer(low, high):
        return None
    hint = "Use wilson(16, 20)."
    if close(low, 0.625, 5e-3) or close(high, 0.975, 5e-3):
        hint = "That is the plain interval p +- 1.96 sqrt(p (1 - p) / n), too narrow for 20 scans."
    right = close(low, 0.5840, 6e-3) and close(high, 0.9193, 6e-3)
    return verdict(right, "20 scans cannot tell 0.60 from 0.90.", hint)


def check_preprint_doi(function):
    """8.1: the DOI that the name of an image from a preprint means."""
    if not answer(function):
        return None
    names = {
        "2020.03.22.20034041-p17-80-1.png": "10.1101/2020.03.22.20034041",
        "2020.02.10.20021584-p6-52%0.png": "10.1101/2020.02.10.20021584",
        "2020.01.24.919183-p27-132.png": "10.1101/2020.01.24.919183",
        "kjr-21-e24-p5-29.png": "",
        "71%0.jpg": "",
    }
    try:
        found = {name: function(name) for name in names}
    except Exception as error:
        return verdict(False, "", f"It stopped with {type(error).__name__}: {error}")
    if not answer(*found.values()):
        return None
    wrong = next((name for name in names if found[name] != names[name]), None)
    hint = f"{wrong} gives {found.get(wrong)!r} instead of {names.get(wrong)!r}."
    return verdict(wrong is None, "A contribution from one of these papers is no new paper.", hint)


def check_accuracy_without_copies(accuracy):
    """8.2: 168 of 203 right, two of them copies."""
    if not answer(accuracy):
        return None
    hint = "Take the two copies away from both numbers."
    if close(accuracy, 166 / 203, 1e-3):
        hint = "The copies are gone from the right ones, but still among the 203."
    return verdict(close(accuracy, 166 / 201, 1e-4), "From .828 to .826.", hint)


def check_black_rows(n_rows):
    """9.1: the black rows after an image of 400 x 200 pixels (width x height) fills 224 x 224."""
    if not answer(n_rows):
        return None
    hint = "The longer side, 400, becomes 224; the other shrinks by the same factor."
    if close(n_rows, 112 / 2):
        hint = "That is one of the two black bars."
    if close(n_rows, 0):
        hint = "Without black rows the lung would be stretched to twice its height."
    return verdict(close(n_rows, 112), "The shape of the chest stays as it was.", hint)


def check_f1_of_covid(f1):
    """9.2: F1 with COVID as positive, of 81 of 98 found and 91 of 105 others called right."""
    if not answer(f1):
        return None
    hint = "17 missed and 14 false alarms: F1 = 2 TP / (2 TP + FP + FN), with TP = 81."
    if close(f1, 182 / 213, 2e-3):
        hint = "That is the F1 of the others: there TP is 91."
    if close(f1, 81 / 98, 2e-3):
        hint = "That is the sensitivity: F1 counts the false alarms too."
    return verdict(close(f1, 162 / 193), "The same calls: .854 became .839.", hint)


def check_loss_of_guessing(loss):
    """10.1: the loss when one right and 512 wrong keys are all equally similar."""
    if not answer(loss):
        return None
    hint = "Each of the 513 gets the probability 1 / 513; the loss is minus its logarithm."
    if close(loss, np.log(2)):
        hint = "That is two answers; here there are 513."
    if close(loss, np.log(512), 1e-4):
        hint = "The right key counts too."
    praise = "Whoever stays near this loss has learned nothing."
    return verdict(close(loss, np.log(513), 1e-4), praise, hint)


def check_half_life(n_steps):
    """10.2: after how many steps half of the key network is new, at a momentum of 0.99."""
    if not answer(n_steps):
        return None
    hint = "After n steps the old weights count 0.99 ** n: when is that 0.5?"
    if close(n_steps, 50, 1e-2):
        hint = "Each step takes a hundredth of what is left, not of the whole."
    return verdict(close(n_steps, 69, 1e-2), "At 0.999 it would be 693.", hint)


def check_loss_of_shares(loss):
    """11.1: the loss of a batch of which one process has 3 scans and the other 1."""
    if not answer(loss):
        return None
    hint = "Every scan counts the same: (3 x 0.6 + 1 x 1.0) / 4."
    if close(loss, 0.8):
        hint = "That counts the one scan of the second process as much as the three of the first."
    return verdict(close(loss, 0.7), "So each process's loss is weighted by its share.", hint)


def check_cores_of_one_client(n_cores):
    """11.2: cores at 0.1 s a study that keep a client at 10 Gbit/s busy with 4 MiB results."""
    if not answer(n_cores):
        return None
    per_second = 10e9 / 8 / (64 * 256 * 256)
    hint = "How many studies a second fit through the link, and how many does one core make?"
    if close(n_cores, 8 * per_second * 0.1, 2e-2):
        hint = "10 Gbit are 1.25 GB: eight bits are a byte."
    if close(n_cores, per_second, 2e-2):
        hint = "That is the studies a second that fit through; a core makes 10 in that time."
    # 29 as well as 29.8 and 30: how one rounds is not the question
    return verdict(close(n_cores, per_second * 0.1, 3e-2), "The 30th core has to wait.", hint)


def answer(*values):
    """Whether the learner has filled everything in; says so when not."""
    if any(value is ... for value in values):
        print("Not filled in yet: replace the ... above and run the cell again.")
        return False
    return True


def verdict(right, praise, hint):
    """Print the outcome of a check; returns `right` as a bool."""
    print(f"Right. {praise}" if right else f"Not yet. {hint}")
    return bool(right)


def close(value, expected, tolerance=1e-3):
    """Whether a number is the expected one; False for what is no number."""
    try:
        return math.isclose(float(value), expected, rel_tol=tolerance, abs_tol=tolerance)
    except (TypeError, ValueError):
        return False
