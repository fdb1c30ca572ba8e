"""Checks of the exercises, in the order of the notebooks.

Each answers at once, as `answers` describes: a guess with the reason why it is right or wrong, a
function that is tried on hidden cases, or a property that the answer has to have.
"""

from __future__ import annotations

from numbers import Real

import numpy as np
import pandas as pd

from helpers.course.answers import answer, answers_of, built, choice, numeric, same, verdict
from helpers.ct.cohort import TASKS
from helpers.scores.metrics import wilson


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


def check_always_covid(accuracy, balanced_accuracy):
    """6.1: accuracy and balanced accuracy of "always COVID" on 76 healthy and 255 ill."""
    hint = "It is right on 255 of 331; its sensitivity is 1 and its specificity 0."
    slips = [
        ((76 / 331, ...), "That is the share of the healthy; the answer was COVID."),
        ((255 / 331,) * 2, "Balanced accuracy is the mean of sensitivity and specificity."),
    ]
    praise = "Accuracy alone would have called it a good classifier."
    return numeric((accuracy, balanced_accuracy), (255 / 331, 0.5), hint, praise, slips)


def check_seed_interval(low, high):
    """6.2: Wilson interval of 16 of 20."""
    plain = "That is the plain interval p +- 1.96 sqrt(p (1 - p) / n), too narrow for 20 scans."
    slips = [((0.6247, ...), plain), ((..., 0.9753), plain)]
    praise = "20 scans cannot tell 0.60 from 0.90."
    return numeric((low, high), wilson(16, 20)[1:], "Use wilson(16, 20).", praise, slips)


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


def check_lost_worker(letter):
    """11.1: what a killed worker of Dask costs."""
    because = {
        "a": "What is finished stays, and with Dask the call even goes on by itself.",
        "b": "What was finished is with the client, which has written it to the disk.",
        "c": "A task counts as done when its result has arrived; only what had not is done again.",
        "d": "A killed process passes nothing on: what it had begun is lost.",
    }
    return choice(letter, "c", because)


def check_plain_mean(letter):
    """11.2: the plain mean of the gradients of three scans and of one."""
    because = {
        "a": "Only with equal shares: here one scan gets half of the weight, and three the rest.",
        "b": "Both gradients are means already, so the length is not what is wrong.",
        "c": "The ill scan weighs 1/2 and each healthy one 1/6: three to one.",
        "d": "The healthy scans count too, all three together as much as the ill one.",
    }
    return choice(letter, "c", because)


def check_rank_loss(function):
    """11.3: a rank's loss, so that the plain mean over the ranks is that of the batch."""
    return built(
        function,
        right=lambda losses, n_batch, n_ranks: losses.sum() / n_batch * n_ranks,
        cases=[(np.array([0.6, 0.9, 0.3]), 4, 2), (np.array([1.0]), 4, 2), (np.ones(2), 8, 3)],
        mistakes=[
            (
                lambda losses, n_batch, n_ranks: losses.mean(),
                "That is the mean of its own share: one scan would count as much as three.",
            ),
            (
                lambda losses, n_batch, n_ranks: losses.sum() / n_batch,
                "The ranks' numbers add up to the batch's mean, but then their mean is taken: "
                "every step would be n_ranks times too short.",
            ),
            (
                lambda losses, n_batch, n_ranks: losses.sum(),
                "The sum grows with the batch: the loss is a mean over its n_batch scans.",
            ),
        ],
        hints=(
            "Look at the weighted mean: 3/4 and 1/4. What must be there before it is halved?",
            "Every scan counts 1 / n_batch. Then undo what the plain mean over the ranks does.",
            "losses.sum() / n_batch, times the number by which the plain mean divides.",
        ),
        praise="The plain mean over the ranks is now the mean over the scans.",
    )


def check_batch_statistics(function):
    """11.4: mean and variance of a batch from those of its shares."""

    def right(counts, means, variances):
        n = counts.sum()
        mean = (counts * means).sum() / n
        return mean, (counts * (variances + (means - mean) ** 2)).sum() / n

    def without_spread(counts, means, variances):
        return tuple((counts * each).sum() / counts.sum() for each in (means, variances))

    cases = [((3, 1), (0, 2), (1, 0)), ((32, 96, 64), (-1, 0.5, 4), (2, 0.3, 1))]
    return built(
        function,
        right,
        cases=[tuple(np.array(each, float) for each in case) for case in cases],
        mistakes=[
            (
                without_spread,
                "The mean is right. The variance is that within the shares alone: shares whose "
                "means lie apart spread more than each by itself.",
            ),
            (
                lambda counts, means, variances: (means.mean(), variances.mean()),
                "Every value counts the same, and so a share by its count.",
            ),
            (
                lambda counts, means, variances: right(np.ones(len(counts)), means, variances),
                "The spread is thought of, but every share counts the same: weight by counts.",
            ),
        ],
        hints=(
            "Begin with the mean: it is weighted as the gradients were. Then the variance.",
            "The distances count from the common mean: a share's own variance, and on top of it "
            "how far its mean lies from the common one, squared.",
            "(counts * (variances + ...)).sum() / counts.sum(), with that squared distance.",
        ),
        praise="A few numbers a feature, and every rank normalises as one process would.",
    )


def check_plan(cores, gbit, radiologists):
    """11.5: machines and people for 400,000 CTs of thin slices, in time and not idle."""
    if not answer(cores, gbit, radiologists):
        return None
    if not all(isinstance(x, Real) and x > 0 for x in (cores, gbit, radiologists)):
        return verdict(False, "", "Give three numbers above 0.")
    n, n_bytes = 400_000, 400 * 512 * 512 * 2 / 2
    hours = {
        "link": (n * 8 * n_bytes / (gbit * 1e9) / 3600, 48, "a study has 105 MB of 8 bits each."),
        "cores": (n * 1 / cores / 3600, 48, "a study takes a second of one core."),
        "radiologists": (n * 5 / 60 / radiologists, 800, "a study takes 5 minutes of one of them."),
    }
    for who, (needed, allowed, why) in hours.items():
        said = f"The {who} would take {needed:,.3g} hours of {allowed}: "
        if needed > allowed:
            return verdict(False, "", said + why)
        if needed < allowed / 2:
            return verdict(False, "", said + "half of that would do as well.")
    praise = "A few cores, a common link, and some forty people for a hundred days: the labels."
    return verdict(True, praise, "")
