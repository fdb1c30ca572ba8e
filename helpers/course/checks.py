"""Checks of the exercises, in the order of the notebooks.

Each answers at once, as `answers` describes: a guess with the reason why it is right or wrong, a
function that is tried on hidden cases, or a property that the answer has to have.
"""

from __future__ import annotations

import re
from numbers import Real

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from helpers.course.answers import answer, answers_of, built, choice, verdict
from helpers.ct.cohort import TASKS
from helpers.learn.augmentation import ImageAugmentation
from helpers.phantom import simulate
from helpers.scores.metrics import auc


def check_published_task(task):
    """1.1: the mapping of CT-0 against CT-1 to CT-4."""
    if not answer(task):
        return None
    expected = {name: label for name, label in TASKS["ct0-ct1234"].items() if name != "CT-23"}
    if not isinstance(task, dict):
        return verdict(False, "", "Give a dictionary from category to label.")
    if task == {category: 1 - label for category, label in expected.items()}:
        return verdict(False, "", "The classes are swapped: label 1 is COVID, everywhere.")
    missing = [category for category in expected if category not in task]
    hint = f"{missing[0]} has no label." if missing else "CT-0 is 0, every other category is 1."
    return verdict(task == expected, "This is the task of most published tables.", hint)


def check_shared_patients(function):
    """1.2: the number of patients that two tables share."""
    one = pd.DataFrame({"patient": ["p1", "p1", "p2"], "study": ["s1", "s2", "s3"]})
    two = pd.DataFrame({"patient": ["p1", "p3", "p2"], "study": ["s2", "s5", "s6"]})
    none = pd.DataFrame({"patient": ["p4", "p5"], "study": ["s1", "s2"]})
    mistakes = [
        (lambda a, b: a.patient.isin(b.patient).sum(),
         "Somebody with two studies was counted twice: count patients (a set helps)."),
        (lambda a, b: len(set(a.study) & set(b.study)),
         "A patient may have several studies: compare `patient`, not `study`."),
        (lambda a, b: len(set(a.patient) | set(b.patient)),
         "Those are all the patients of both tables; asked for are those in both."),
        (lambda a, b: bool(set(a.patient) & set(b.patient)),
         "That says whether they share any; asked for is how many."),
        (lambda a, b: set(a.patient) & set(b.patient),
         "Those are the patients themselves; asked for is how many: the set's length."),
    ]  # fmt: skip
    hints = (
        "Look at the column `patient` of both tables.",
        "Make a set of each column, so that every patient counts once, and intersect the two.",
        "return len(set(a.patient) & ...)",
    )

    def right(a, b):
        return len(set(a.patient) & set(b.patient))

    cases = [(one, two), (one, none), (two.tail(2), one)]
    praise = "A split is sound when this is 0 for every pair of parts."
    return built(function, right, cases, mistakes, hints, praise)


def check_repaired(function):
    """1.3: parts, one for each slice, of which every patient has only that of its first slice."""

    def right(patients, parts):
        first = dict(zip(patients[::-1], parts[::-1], strict=True))
        return [first[patient] for patient in patients]

    def without_them(patients, parts):
        pairs = set(zip(patients, parts, strict=True))
        n = [sum(patient == other for other, _ in pairs) for patient in patients]
        return [part for part, n_parts in zip(parts, n, strict=True) if n_parts == 1]

    mistakes = [
        (lambda patients, parts: right(patients[::-1], parts[::-1])[::-1],
         "That is the part of the patient's last slice: a dict keeps what was put in last."),
        (lambda patients, parts: parts, "Nothing has moved: some are still in two parts."),
        (without_them, "Their slices were thrown away: all are to stay, in one part."),
        (lambda patients, parts: [parts[0]] * len(parts), "All are in one part now."),
        (lambda patients, parts: dict(zip(patients[::-1], parts[::-1], strict=True)),
         "A part for each patient: now look it up for every slice, in a list."),
    ]  # fmt: skip
    hints = (
        "Look at one patient in the list: which of its parts do you meet first?",
        "Go through both lists, and note a patient's part only when it is new. Then look it up.",
        "first.setdefault(patient, part) in a loop; then [first[...] for patient in patients]",
    )
    cases = [
        (["p1", "p2", "p1", "p2", "p3"], ["train", "test", "test", "test", "train"]),
        (["p9", "p9", "p4", "p9", "p4"], ["test", "train", "train", "train", "validation"]),
    ]
    praise = "No patient is in two parts, and no slice is lost; count the classes anew."
    return built(function, right, cases, mistakes, hints, praise)


def check_split_by_slice(letter):
    """1.4: the nearest neighbour's accuracy on the toss of a coin, split by slice."""
    because = {
        "a": "So it is split by patient. Here its neighbours are in training, with their label.",
        "b": "Nearly every slice has a neighbour of its own study in training: more than that.",
        "c": "The most similar slice is of the same study, and so has its label, tossed or not.",
    }
    return choice(letter, "c", because)


def check_distance_mm(function):
    """2.1: the distance in mm between two voxels, by the affine."""

    def right(affine, a, b):
        return np.linalg.norm((affine @ [*b, 1] - affine @ [*a, 1])[:3])

    upright = np.array([[0, 0, -0.7, 180], [0, -0.7, 0, 170], [8, 0, 0, -300], [0, 0, 0, 1]])
    tilted = np.array([[0, 0, -0.6, 150], [3, -0.8, 0, 120], [4, 0.6, 0, -90], [0, 0, 0, 1]])
    cases = [(upright, (20, 100, 200), (22, 130, 240)), (tilted, (3, 10, 12), (9, 50, 80))]
    mistakes = [
        (lambda affine, a, b: np.linalg.norm(np.subtract(b, a)),
         "That is in voxels: a step along each axis has a length of its own in mm."),
        (lambda affine, a, b: np.linalg.norm((affine @ [*np.subtract(b, a), 1])[:3]),
         "The corner was added to the difference: its fourth number is 1 - 1 = 0."),
        (lambda affine, a, b: (affine @ [*b, 1] - affine @ [*a, 1])[:3],
         "These are its three legs; the distance is the root of the sum of their squares."),
        (lambda affine, a, b: np.abs(affine @ [*b, 1] - affine @ [*a, 1]).sum(),
         "That walks along the three legs; the distance goes straight."),
        (lambda affine, a, b: np.linalg.norm(np.diag(affine)[:3] * np.subtract(b, a)),
         "The steps do not stand on the diagonal: multiply by the whole matrix."),
    ]  # fmt: skip
    hints = (
        "Look at the cell above: what turns one voxel into mm?",
        "Bring both voxels to mm, and measure the straight line between the two places.",
        "np.linalg.norm((affine @ [*b, 1] - ...)[:3])",
    )
    praise = "So does a viewer measure a lesion, whichever way the patient lay."
    return built(function, right, cases, mistakes, hints, praise)


def check_cannot_be_hu(function):
    """2.2: whether an array cannot be the HU of a chest; one that was cast to 8 bits cannot."""
    rng = np.random.default_rng(0)
    chest = np.repeat([-1000.0, -850, -90, 50, 700], [40, 40, 10, 25, 5]) + rng.normal(0, 9, 120)
    soft, cast = np.clip(chest, -990, 200), np.clip(chest, 0, 255)
    others = [soft, cast, cast.astype(np.uint8), (chest + 1000) / 850 - 1, chest + 1024]
    cases = [(values,) for values in [chest.astype(np.int16), np.append(chest, -3024), *others]]
    mistakes = [
        (lambda values: values.dtype == np.uint8,
         "The cast may have been stored as other numbers since: ask the values, not the type."),
        (lambda values: values.max() <= 255,
         "A chest of which little bone is seen stays below 255 too: what must every chest hold?"),
        (lambda values: values.min() >= 0,
         "Values scaled to -1 ... 1 get through: ask for air, not for a minus sign."),
        (lambda values: values.min() >= -1000,
         "Air is only near -1000: noise and the scanner's offset move it."),
        (lambda values: values.min() < -1024,
         "Some scanners write -2000 or -3024 outside the field of view: these are still HU."),
        (lambda values: values.min() < -200, "The other way round: True if it can not be HU."),
    ]  # fmt: skip
    hints = (
        "Look at the histogram: what does every chest hold that the cast has lost?",
        "Every chest holds air and lung, far below 0. Is there a value as low?",
        "return values.min() > ..., with a bound between 0 and -900",
    )
    praise = "`read_study` asks this of every file, and that enough of it is air."
    return built(function, lambda values: values.min() > -500, cases, mistakes, hints, praise)


def check_grey_levels(function):
    """2.3: a window of level and width, as grey levels 0 to 255."""

    def between(hu, low, high):
        return np.rint(np.clip((hu - low) / (high - low), 0, 1) * 255)

    hu = np.array([[-1024, -900, -590, -500], [-90, 3, 45, 1000]])
    cases = [(hu, -600, 1500), (hu, 40, 400), (hu[0], -500, 1100)]
    mistakes = [
        (lambda hu, level, width: between(hu, level - width, level + width),
         "The width is the whole span: half of it lies on each side of the level."),
        (lambda hu, level, width: between(hu, level, level + width),
         "The level is the middle of the window, not its lower end."),
        (lambda hu, level, width: between(hu, level, width),
         "Level and width are not the two ends: the ends are level - width / 2 and + width / 2."),
        (lambda hu, level, width: np.rint((hu - level + width / 2) / width * 255).astype(int) % 256,
         "Outside the window it begins anew: 256 is 0 again in 8 bits. Clip before you cast."),
        (lambda hu, level, width: between(hu, level - width / 2, level + width / 2) / 255,
         "That is 0 to 1, as `window` gives it: 255 is to be white."),
        (lambda hu, level, width: 255 - between(hu, level - width / 2, level + width / 2),
         "Black and white are swapped: the dense tissue is the bright one."),
        (lambda hu, level, width: np.clip((hu - level + width / 2) / width, 0, 1) * 255 // 1,
         "astype cuts off what stands behind the point: round with np.rint first."),
    ]  # fmt: skip
    hints = (
        "Look at `window` above: it gives 0 to 1.",
        "Shift the low end to 0, divide by the width, clip to 0 ... 1, times 255, round.",
        "np.rint(np.clip((hu - (level - width / 2)) / width, ...) * 255).astype(np.uint8)",
    )
    praise = "The first cast lost the lung for want of this line."

    def right(hu, level, width):
        return between(hu, level - width / 2, level + width / 2)

    return built(function, right, cases, mistakes, hints, praise)


def check_two_windows(soft_tissue, bone):
    """2.4: two windows (level, width) in which certain tissues can be told apart."""
    if not answer(soft_tissue, bone):
        return None
    shown = {
        "soft tissue": (soft_tissue, {"fat": -90, "fluid": 0, "muscle": 50}),
        "bone": (bone, {"muscle": 50, "the spongy inside": 200, "the shell": 1000}),
    }
    for name, (pair, tissues) in shown.items():
        try:
            level, width = map(float, pair)
        except (TypeError, ValueError):
            return verdict(False, "", f"{name}: give (level, width), two numbers.")
        if not width > 0:
            return verdict(False, "", f"{name}: a window's width is above 0.")
        grey = {t: 255 * ((hu - level) / width + 0.5) for t, hu in tissues.items()}
        for tissue, value in grey.items():
            if not 0 < value < 255:
                colour = "black" if value <= 0 else "white"
                return verdict(False, "", f"{name}: {tissue} ({tissues[tissue]} HU) is {colour}.")
        for one, other in zip(list(grey)[:-1], list(grey)[1:], strict=True):
            if (apart := grey[other] - grey[one]) < 20:
                words = f"{one} and {other} are {apart:.0f} of 255 greys apart: too few to see."
                return verdict(False, "", f"{name}: {words}")
    praise = "No single window does both: fluid beside muscle needs a width below 640 HU, and"
    return verdict(True, f"{praise} from fat to the shell it is 1090 HU.", "")


def check_small_nodule(letter):
    """2.5: what a slice of 8 mm shows of a nodule of 4 mm."""
    because = {
        "a": "A voxel holds the mean of all that lies in it, and half of this one is lung.",
        "b": "It is half the slice's thickness: what is left of it is far above clear lung.",
        "c": "Half nodule, half lung: (40 - 850) / 2 is about -400 HU, the HU of ground glass.",
        "d": "In the plane the pixels are as small as before: only its HU change.",
    }
    return choice(letter, "c", because)


def check_bone_metastasis(letter):
    """3.1: why a dense metastasis cannot be seen in the lung window."""
    because = {
        "a": "It is 12 mm wide, some fifteen pixels, and one or two slices hold it.",
        "b": "The window ends at 150 HU: bone of 200 and a metastasis of 700 are both white.",
        "c": "A window changes no neighbour's grey: it maps each HU by itself.",
        "d": "The window is named after the lung; it is applied to every voxel of the slice.",
    }
    return choice(letter, "b", because)


def check_lesion_by_side(function):
    """3.2: the mean HU of the lesion in the patient's right half and in the left one."""

    def halves(hu, mask, axis):
        parts = zip(np.array_split(hu, 2, axis), np.array_split(mask, 2, axis), strict=True)
        return tuple(part[inside].mean() for part, inside in parts)

    rng = np.random.default_rng(0)
    cases = [(rng.integers(-900, 60, shape), rng.random(shape) < 0.3)
             for shape in ((4, 6, 8), (6, 4, 10))]  # fmt: skip
    mistakes = [
        (lambda hu, mask: halves(hu, mask, 2)[::-1],
         "Right and left are swapped: column 0 is the patient's right."),
        (lambda hu, mask: halves(hu, mask, 1), "Those are the front and the back: halve columns."),
        (lambda hu, mask: halves(hu, mask, 0), "Those are the feet's half and the head's half."),
        (lambda hu, mask: halves(hu, ~mask, 2), "That is outside the lesion."),
        (lambda hu, mask: halves(hu * mask, mask | True, 2),
         "hu * mask keeps a 0 for every voxel outside, and the mean counts them."),
        (lambda hu, mask: (hu[mask].mean(),) * 2, "That is the whole lesion, twice."),
    ]  # fmt: skip
    hints = (
        "Which axis runs from the patient's right to the left, and where does it begin?",
        "Halve both arrays along the columns; then index the HU with the mask.",
        "hu[:, :, :half][mask[:, :, :half]].mean() is one of the two.",
    )
    praise = "Now try it: lesion_by_side(ill.hu, mask). The denser side has less air left."
    return built(function, lambda hu, mask: halves(hu, mask, 2), cases, mistakes, hints, praise)


def check_linked(function):
    """3.3: the slice at the same fraction of the height."""
    cases = [(0, 40, 40), (39, 40, 20), (20, 41, 33), (0, 10, 40), (5, 10, 40), (32, 33, 54)]
    mistakes = [
        (lambda k, n_a, n_b: k,
         "A study of 20 slices has no slice 39: use the fraction of the height."),
        (lambda k, n_a, n_b: (k + 0.5) / n_a * n_b,
         "A slice is a whole number: int(...) cuts off the rest."),
        (lambda k, n_a, n_b: k * n_b // n_a,
         "That takes the slice's lower edge: its middle is at k + 0.5."),
        (lambda k, n_a, n_b: int((k + 0.5) / n_b * n_a), "The two studies are swapped."),
    ]  # fmt: skip
    hints = (
        "Run the viewer above: at which fraction of the height is slice k of n_a?",
        "The middle of slice k is at (k + 0.5) / n_a of the height; find it in the other study.",
        "int(... * n_b)",
    )
    praise = "20 slices and 40 slices reach the top of the lung together."

    def right(k, n_a, n_b):
        return int((k + 0.5) / n_a * n_b)

    return built(function, right, cases, mistakes, hints, praise)


def check_is_swapped(function):
    """3.4: whether left and right are swapped, on patients of another hospital."""
    first, *others = (0, 3, 4, 13)
    patients = [simulate.make_study(first, "CT-2", 64, 20, site="elsewhere").hu]
    if not (tried := answers_of(function, [(patients[0],)])):
        return tried
    patients += [simulate.make_study(k, "CT-2", 64, 20, site="elsewhere").hu for k in others]
    mirrored = [hu[:, :, ::-1] for hu in patients]
    found = answers_of(function, [(hu,) for hu in patients + mirrored])
    if not found:
        return found
    found, truth = [bool(np.all(called)) for called in found], [False] * 4 + [True] * 4
    n_right = sum(np.equal(found, truth))
    if len(set(found)) == 1:
        hint = f"It says {found[0]} of all: every second one was mirrored."
    elif n_right == 0:
        hint = "Always the other way round: column 0 is the patient's right, where the liver is."
    else:
        hint = (
            "Not of all eight. Look at the lowest slices: which organ is large on one side alone?",
            "Compare how many voxels have the HU of liver (0 to 120) in the two halves.",
            "low = hu[: len(hu) // 4], and count (low > 0) & (low < 120) in either half.",
        )
    praise = "Four patients and their mirror images, of a hospital that you had not seen."
    return verdict(n_right == 8, praise, hint)


def check_lstm_step(function):
    """4.1: one step of an LSTM by hand, in the order of PyTorch's gates."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def step(order="ifgo", candidate=np.tanh, said=np.tanh, hears=1.0):
        def compute(x, h, c, weights):
            W, U, b = weights
            gates = dict(zip(order, np.split(W @ x + hears * (U @ h) + b, 4), strict=True))
            c = sigmoid(gates["f"]) * c + sigmoid(gates["i"]) * candidate(gates["g"])
            return sigmoid(gates["o"]) * said(c), c

        return compute

    rng = np.random.default_rng(0)
    cases = []
    for n, m in ((3, 5), (4, 2)):
        weights = [rng.normal(size=shape) for shape in ((4 * n, m), (4 * n, n), (4 * n,))]
        cases.append((rng.normal(size=m), rng.normal(size=n), rng.normal(size=n), weights))
    mistakes = [
        (step("figo"), "The order is i, f, g, o: the first quarter is the input gate."),
        (step("ifog"), "The order is i, f, g, o: the candidate comes before the output gate."),
        (step(candidate=sigmoid), "The candidate g is no gate: it goes through tanh."),
        (step(said=lambda c: c), "h is o times tanh(c): the memory is squeezed before it is said."),
        (step(hears=0.0), "The gates hear the last h, too: U @ h is missing."),
    ]
    hints = (
        "Look at the cell that reads by hand: the sum, the four pieces, c, h.",
        "One product for all four: np.split(W @ x + U @ h + b, 4) cuts it into i, f, g, o.",
        "c = sigmoid(f) * c + sigmoid(i) * np.tanh(g), and h = sigmoid(o) * np.tanh(c).",
    )
    praise = "Run it over the slices, and it is an LSTM."
    return built(function, step(), cases, mistakes, hints, praise)


def check_who_moves(letter):
    """4.2: which outputs of the two readers move when the last slice changes."""
    because = {
        "a": "The downward reader begins with that slice and carries it along.",
        "b": "Each reader knows what it has read so far: one has read it last, the other first.",
        "c": "The upward reader meets it at the very end: what it said before cannot change.",
        "d": "The other way round: the upward reader begins at the feet.",
    }
    return choice(letter, "b", because)


def check_pooling(function):
    """4.3: attention pooling that holds for large scores."""

    def right(features, scores):
        weights = np.exp(scores - scores.max())
        return weights / weights.sum() @ features

    def unsafe(features, scores):
        with np.errstate(over="ignore", invalid="ignore"):
            return np.exp(scores) / np.exp(scores).sum() @ features

    features = np.arange(12.0).reshape(4, 3) ** 2
    scores = np.array([0.0, 1.0, -1.0, 2.0])
    cases = [(features, scores), (features[::-1] + 1, 800 + scores)]
    mistakes = [
        (unsafe, "exp of 800 is no number any more: take the largest score away first."),
        (lambda f, s: s @ f, "The scores were used as they are: a softmax makes weights of them."),
        (lambda f, s: f.mean(0), "That is the mean: the scores have to change it."),
        (lambda f, s: right(f, s) / len(s), "The weights sum to 1 already: do not divide again."),
        (lambda f, s: right(np.eye(len(s)), s), "Those are the weights: now average the features."),
        (
            lambda f, s: right(np.eye(len(s)), s)[:, None] * f,
            "Every slice is weighted: now add them up, to one vector (F,).",
        ),
    ]
    hints = (
        "Look at the five slices above: scores to weights, then a weighted sum over the slices.",
        "A softmax of the scores minus their maximum; then weights times features, summed.",
        "weights = np.exp(scores - scores.max()); then weights / weights.sum() @ features.",
    )
    return built(function, right, cases, mistakes, hints, "With equal scores it is the mean.")


def check_needle(function):
    """4.4: a pooling that finds one slice among many, in any order."""
    rng = np.random.default_rng(0)
    healthy = rng.normal(0, 0.01, (64, 8))
    needle = healthy.copy()
    needle[41] = [3, 0, 2, 0, 4, 0, 3, 1]
    longer = np.concatenate([needle, rng.normal(0, 0.01, (100, 8))])
    found = answers_of(function, [(x,) for x in (needle, rng.permutation(needle), longer, healthy)])
    if not found:
        return found
    if any(np.shape(answer) != (8,) for answer in found):
        return verdict(False, "", "Give one number for each feature, (F,): pool over the slices.")
    alone, shuffled, among_more, none = map(np.asarray, found)
    if not np.allclose(alone, shuffled, atol=0.05):
        return verdict(False, "", "Shuffled slices gave another answer: an order came in.")
    if np.abs(alone - none).max() < 0.5:
        return verdict(False, "", "With the needle or without it, your answer is nearly the same.")
    if not np.allclose(alone, among_more, atol=0.1):
        return verdict(
            False, "", "A hundred slices with nothing changed the answer: they drown it, or add up."
        )
    praise = "It finds the needle, and the order of the slices does not matter."
    return verdict(True, praise, "")


def check_weighted_loss(function):
    """5.1: the mean binary cross-entropy of logits, with the ill weighted."""

    def each(logits, labels, weight, of=1):
        right_answer = np.where(labels == 1, logits, -logits)
        return np.where(labels == of, weight, 1) * np.log1p(np.exp(-right_answer))

    def right(logits, labels, weight):
        return each(logits, labels, weight).mean()

    mistakes = [
        (
            lambda *case: each(*case).sum(),
            "That is the sum; a larger batch would take larger steps.",
        ),
        (lambda *case: each(*case), "The losses are right, one a scan: now their mean."),
        (lambda *case: -right(*case), "The sign: the logarithm of a probability is below 0."),
        (lambda *case: each(*case, of=0).mean(), "The weight is that of the ill: labels == 1."),
        (lambda x, y, w: right(x, y, 1), "That is the plain loss: the weight has no effect."),
        (lambda x, y, w: w * right(x, y, 1), "The healthy are weighted too: theirs count once."),
        (
            lambda x, y, w: right(-x, y, w),
            "A high logit means ill: the sigmoid has e to the -logit.",
        ),
        (
            lambda x, y, w: each(x, y, w).sum() / np.where(y == 1, w, 1).sum(),
            "You divide by the sum of the weights; here the mean is over the scans.",
        ),
    ]
    hints = (
        "Turn the logits into probabilities of being ill first, then look at the table above.",
        "The right answer's probability is p for the ill and 1 - p for the healthy; minus its log.",
        "np.where(labels == 1, -weight * np.log(p), -np.log(1 - p)).mean()",
    )
    cases = [([2, -1, 0.5, -3], [1, 0, 0, 1], 1.5), ([0.3, 1, -2], [1, 0, 0], 2)]
    cases = [(np.array(x, float), np.array(y), weight) for x, y, weight in cases]
    return built(function, right, cases, mistakes, hints, "PyTorch's loss does just that.")


def check_clipped(function):
    """5.2: a gradient of several layers, shortened to a length, in the same direction."""

    def length(gradients):
        return np.sqrt(sum((gradient**2).sum() for gradient in gradients))

    def right(gradients, longest):
        return [min(1, longest / length(gradients)) * gradient for gradient in gradients]

    def by_layer(gradients, longest):
        return [right([gradient], longest)[0] for gradient in gradients]

    def always(gradients, longest):
        return [longest / length(gradients) * gradient for gradient in gradients]

    def by_number(gradients, longest):
        return [np.clip(gradient, -longest, longest) for gradient in gradients]

    def squared(gradients, longest):
        return [min(1, longest / length(gradients) ** 2) * gradient for gradient in gradients]

    mistakes = [
        (by_layer, "Each layer got a length of its own, and the whole arrow another direction."),
        (always, "A short gradient was made longer: it is small because there is little to do."),
        (by_number, "Number by number the arrow changes its direction; use one factor for all."),
        (squared, "That is the length squared: the root is missing."),
        (lambda gradients, longest: gradients, "The long gradient is as long as before."),
    ]
    hints = (
        "How long is the whole arrow? All layers' numbers belong to it.",
        "length is the root of the sum of all squares; the factor is longest / length, 1 at most.",
        "return [min(1, longest / length) * gradient for gradient in gradients]",
    )
    layers = [np.array([[3.0, -4.0], [0.5, 1.0]]), np.array([0.4, -12.0])]
    cases = [(layers, 1.0), (layers, 20.0), ([layer / 20 for layer in layers], 1.0)]
    praise = "The direction stays, and no batch takes more than its step."
    return built(function, right, cases, mistakes, hints, praise)


def check_resumed(letter):
    """5.3: what interrupting and resuming a training changes."""
    because = {
        "a": "It would, with the weights alone; but AdamW's memory is in the checkpoint as well.",
        "b": "Random, but drawn from the seed and the epoch, so the second epoch draws the same.",
        "c": "Weights and AdamW's memory come from the file, all else from the seed and the epoch.",
        "d": "The rate follows from the step, which follows from the epochs that are done.",
    }
    return choice(letter, "c", because)


def check_accumulated(function):
    """5.4: a batch in shares, one after the other, leaves the gradient of the whole batch."""
    if not answer(function):
        return None
    model = torch.nn.Sequential(torch.nn.Linear(3, 1, bias=False), torch.nn.Flatten(0))
    weight, seen = torch.nn.init.constant_(model[0].weight, 0.2), []
    mean_loss = binary_cross_entropy_with_logits
    for n, share in ((6, 3), (5, 2)):
        scans, labels = torch.arange(3.0 * n).reshape(n, 3).sin(), torch.arange(n) % 2 * 1.0
        (whole,) = torch.autograd.grad(mean_loss(model(scans), labels), weight)
        model.zero_grad()
        seen.clear()
        with model.register_forward_hook(lambda model, given, logits: seen.append(len(logits))):
            try:
                left = function(model, mean_loss, scans, labels, share)
            except Exception as error:
                return verdict(False, "", f"It stopped with {type(error).__name__}: {error}")
        if not answer(left):
            return None
        if max(seen, default=0) > share:
            hint = f"{max(seen)} scans went through the network at once; there is room for {share}."
        elif sum(seen) != n:
            hint = f"Of {n} scans {sum(seen)} went through the network."
        elif weight.grad is None or not weight.grad.any():
            hint = "There is no gradient in the end: every share needs its .backward()."
        elif torch.allclose(weight.grad, len(seen) * whole):
            hint = (
                "It is too long, once for every share: each counts with its part of the batch only."
            )
        elif not torch.allclose(weight.grad, whole) and n % share:
            hint = "With a smaller last share it is another gradient: every scan counts 1 / 5."
        elif not torch.allclose(weight.grad, whole):
            hint = "Not the whole batch's. Keep what earlier shares added: no zero_grad in between."
        else:
            continue
        return verdict(False, "", hint)
    return verdict(True, "A large batch on a small GPU; it only takes longer.", "")


def check_threshold_for_95(function):
    """6.1: the highest threshold with a sensitivity of 95 %, and the share of false alarms."""

    def right(labels, scores, of=(1,), share=0.95, calls=np.greater_equal, step=-1):
        for threshold in np.unique(scores)[::step]:
            called = calls(scores, threshold)
            if called[np.isin(labels, of)].mean() >= share:
                return threshold, called[labels == 0].mean()

    def by_quantile(labels, scores):
        threshold = np.quantile(scores[labels == 1], 0.05)
        return threshold, (scores >= threshold)[labels == 0].mean()

    mistakes = [
        (by_quantile, "A quantile lies between two scores, and may miss one ill scan too many."),
        (lambda *case: right(*case, of=(0, 1)), "95 % of the ill, not of all: labels == 1."),
        (lambda *case: right(*case, of=(0,)), "That finds 95 % of the healthy: labels == 1."),
        (lambda *case: right(*case, calls=np.greater), "A scan at the threshold is called: >=."),
        (lambda *case: right(*case, step=1), "That is the lowest that is enough, not the highest."),
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


def check_needle_pool(letter):
    """7.1: which pools find one ill slice among healthy ones."""
    because = {
        "a": "To find out whether it is there at all, no order is needed: a maximum does.",
        "b": "It sees them all, but one of many moves it by hardly anything.",
        "c": "A maximum asks whether it is there; a mean drowns it. Run on and see.",
        "d": "In the mean the one slice has the weight of one in many; in a maximum it has all.",
    }
    return choice(letter, "c", because)


def check_hide_each(function):
    """7.2: the fall of a score when each slice is replaced in turn."""

    def right(score, sequence, instead):
        falls = []
        for t in range(len(sequence)):
            hidden = sequence.copy()
            hidden[t] = instead[t]
            falls.append(score(sequence) - score(hidden))
        return np.array(falls)

    def one_after_another(score, sequence, instead):
        whole, falls = score(sequence), []
        for t in range(len(sequence)):
            sequence[t] = instead[t]
            falls.append(whole - score(sequence))
        return np.array(falls)

    mistakes = [
        (one_after_another, "Slices stay hidden: take a fresh copy of the sequence each time."),
        (lambda f, s, i: -right(f, s, i), "A fall is positive: the score before minus after."),
        (lambda f, s, i: right(f, s, np.zeros_like(i)), "Put the row of `instead` there, not 0."),
        (lambda f, s, i: right(f, s, np.broadcast_to(i.mean(0), i.shape)),
         "Row t is replaced by row t of `instead`, not by their mean."),
        (lambda f, s, i: np.array([f(s) - f(np.delete(s, t, 0)) for t in range(len(s))]),
         "Replace the row; a sequence that is shorter is another question."),
    ]  # fmt: skip
    hints = (
        "A loop over the slices: `for t in range(len(sequence))`.",
        "In each turn: copy the sequence, replace row t, and ask `score` again.",
        "hidden[t] = instead[t]; falls.append(score(sequence) - score(hidden))",
    )
    rng = np.random.default_rng(7)
    weights = rng.normal(size=(9, 4))

    def largest(sequence):
        return float((sequence * weights[: len(sequence)]).sum(axis=1).max())

    def product(sequence):
        return float(np.tanh((sequence * weights[: len(sequence)]).sum()) * sequence[0].sum())

    cases = [
        (score, rng.normal(size=(n, 4)), rng.normal(size=(n, 4)))
        for score, n in ((largest, 9), (product, 6))
    ]
    praise = "It asks the network itself, and needs no gradient."
    return built(function, right, cases, mistakes, hints, praise)


def check_untrained_attention(letter):
    """7.3: how well the attention of untrained networks follows the lesions."""
    because = {
        "a": "They know nothing of lesions, but the encoder before them knows anatomy.",
        "b": "Random weights follow the anatomy up or down, as luck has it. Run on and see.",
        "c": "It does, but random weights may prefer the shoulders as well as the lungs.",
        "d": "Some come near; but nothing has told them which end is the ill one.",
    }
    return choice(letter, "b", because)


def check_own_and_others(function):
    """7.4: a mean score with the own lesion, and over all pairs of different patients."""

    def right(heats, lesions, score):
        table = np.array([[score(heat, lesion) for lesion in lesions] for heat in heats])
        own, n = np.trace(table) / len(heats), len(heats)
        return own, (table.sum() - np.trace(table)) / (n * (n - 1))

    def with_own(heats, lesions, score):
        table = np.array([[score(heat, lesion) for lesion in lesions] for heat in heats])
        return right(heats, lesions, score)[0], table.mean()

    def next_only(heats, lesions, score):
        others = [score(heat, lesions[k - 1]) for k, heat in enumerate(heats)]
        return right(heats, lesions, score)[0], np.mean(others)

    mistakes = [
        (with_own, "In the second mean the own lesions are still there: leave k with k out."),
        (next_only, "Each heat meets one other lesion only: take all pairs of two patients."),
        (lambda *case: right(*case)[::-1], "The own lesion comes first, then the others."),
        (lambda *case: right(*case)[0], "Return two numbers: own, and others."),
    ]
    hints = (
        "Two loops: every heat with every lesion.",
        "Put all scores into a square table: the own ones are its diagonal.",
        "others = (table.sum() - np.trace(table)) / (n * (n - 1))",
    )
    rng = np.random.default_rng(74)

    def product(heat, lesion):
        return float((heat * lesion).sum() + heat[0])

    cases = [
        (list(rng.normal(size=(n, 5))), list(rng.normal(size=(n, 5))), product) for n in (2, 4)
    ]
    praise = "Only what own has above others has to do with this patient."
    return built(function, right, cases, mistakes, hints, praise)


def check_balancing_weights(function):
    """7.5: weights under which the scanner says nothing about the class."""
    rng = np.random.default_rng(75)
    cohorts = []
    for names, n in ((["A", "B"], 60), (["x", "y", "z"], 90)):
        labels, scanners = rng.integers(0, 2, n), rng.choice(names, n, p=_uneven(len(names)))
        labels[: 2 * len(names)], scanners[: 2 * len(names)] = [0, 1] * len(names), names * 2
        usual = np.isin(scanners, names[1:]) == (labels == 1)
        keep = usual | (rng.random(n) < 0.3) | (np.arange(n) < 2 * len(names))
        cohorts.append((labels[keep], scanners[keep]))
    found = answers_of(function, cohorts)
    if not found:
        return found
    for (labels, scanners), given in zip(cohorts, found, strict=True):
        weights = np.asarray(given, float)
        if weights.shape != labels.shape or not np.isfinite(weights).all():
            return verdict(False, "", "Return one finite weight for each scan.")
        if (weights <= 0).any():
            return verdict(False, "", "Every scan keeps a weight above 0: none is thrown away.")
        if not np.isclose(weights.mean(), 1):
            return verdict(False, "", f"The mean weight is {weights.mean():.2f}: divide by it.")
        for scanner in np.unique(scanners):
            mine = scanners == scanner
            ill, well = (weights[mine & (labels == label)].sum() for label in (1, 0))
            if not np.isclose(ill, well):
                hint = f"On scanner {scanner} the ill weigh {ill:.1f} and the healthy {well:.1f}."
                return verdict(False, "", f"{hint} Count each group of class and scanner.")
    return verdict(True, "The scanner says nothing any more; the rare scans say it louder.", "")


def _uneven(n):
    """Shares of n scanners, no two alike."""
    return np.arange(1, n + 1) / np.arange(1, n + 1).sum()


def check_preprint_doi(function):
    """8.1: the DOI that the name of an image from a preprint means."""

    def right(name):
        found = re.match(r"20\d\d\.\d\d\.\d\d\.\d+", name)
        return f"10.1101/{found[0]}" if found else ""

    mistakes = [
        (lambda name: f"10.1101/{name.split('-')[0]}",
         "kjr-21-e24-p5-29.png got a DOI too: the name of a preprint begins with a date."),
        (lambda name: right(name).removeprefix("10.1101/"),
         "The number is right; a DOI begins with the publisher's, here 10.1101/."),
        (lambda name: right(name) and f"10.1101/{name.rsplit('.', 1)[0]}",
         "The page and the figure are still there: the DOI ends before the first -."),
        (lambda name: f"10.1101/{name[:19]}" if name[0] == "2" else "",
         "The last number has no fixed length: six digits in some, eight in others."),
        (lambda name: right(name) or None, 'For any other name return "", a text.'),
    ]  # fmt: skip
    hints = (
        "Look at the names: what do those of preprints begin with?",
        "Year, month, day and a number, with points between them; stop at the first -.",
        r're.match(r"20\d\d\.\d\d\.\d\d\.\d+", name): None for any other name',
    )
    names = ("2020.03.22.20034041-p17-80-1.png", "2020.01.24.919183-p27-132.png")
    others = ("2020.02.10.20021584-p6-52%0.png", "kjr-21-e24-p5-29.png", "71%0.jpg")
    praise = "A contribution from one of these papers is no new paper."
    return built(function, right, [(n,) for n in names + others], mistakes, hints, praise)


def check_format_alone(letter):
    """8.2: the accuracy on test of a rule that knows the file's format alone."""
    because = {
        "a": "That would be a coin. The middle panel showed formats that hold one class alone.",
        "b": "Some formats hold one class alone; where both are common, the rule can only guess.",
        "c": "Then every format would hold one class; RGB .png is common in both.",
    }
    return choice(letter, "b", because)


def check_shortcut(function):
    """8.3: the column of metadata that gives the class away on test, or None."""
    planted = {"scanner": 0.5, "": 0.25, "software": 0.3, "hospital": 0.5, None: 0.5}
    tables = [(_metadata(*case, seed),) for seed, case in enumerate(planted.items())]
    found = answers_of(function, tables)
    if not found:
        return found
    for name, column, (table,) in zip(planted, found, tables, strict=True):
        if name and column == name:
            continue
        common = max(table.label.mean(), 1 - table.label.mean())
        where = f"Of a table where {common:.0%} are of one class you say {column!r}"
        if column == "image":
            hint = f"{where}: each value is there once. Learn on train, and score on test."
            return verdict(False, "", hint)
        if name:
            return verdict(False, "", f"{where}; `{name}` gives most of the test images away.")
        if column is not None:
            hint = f"{where}, but no column beats the commoner class by 0.1: None."
            return verdict(False, "", hint)
    praise = "Run it on every table that you are given, before any network."
    return verdict(True, praise, "")


def _metadata(planted, share_of_covid, seed):
    """400 images, half of them train; one column, where named, goes with the label."""
    rng = np.random.default_rng(seed)
    label = (rng.random(400) < share_of_covid).astype(int)
    columns = {"image": [f"{k}.png" for k in rng.permutation(400)]}
    for name in ("scanner", "hospital", "software"):
        like = np.where(rng.random(400) < 0.95, label, 1 - label) * 2 if name == planted else 0
        values = like + rng.integers(0, 2 if name == planted else 4, 400)
        columns[name] = [f"{name} {value}" for value in values]
    return pd.DataFrame(columns | {"label": label, "part": ["train", "test"] * 200})


def check_groups(function):
    """8.4: images that must stay together, as the number of the first image of each one's group."""

    def right(patients, pairs, n_rounds=9):
        first, n = list(range(len(patients))), range(len(patients))
        same = [(a, b) for a in n for b in n if a < b and patients[a] == patients[b] != ""]
        for _ in range(n_rounds):
            for a, b in [*pairs, *same]:
                first[a] = first[b] = min(first[a], first[b])
        return first

    def all_unknown_together(patients, pairs):
        return right([name or "unknown" for name in patients], pairs)

    mistakes = [
        (lambda patients, pairs: right(patients, []),
         "The copies are forgotten: a pair binds two images, and with them two patients."),
        (lambda patients, pairs: right([""] * len(patients), pairs),
         "The patients are forgotten: all images of one stay together."),
        (all_unknown_together, '"" means not known: two of them need not be one patient.'),
        (lambda patients, pairs: right(patients, pairs, n_rounds=1),
         "A chain was cut: what hangs on one image hangs on all of its group. Go on until "
         "nothing changes."),
    ]  # fmt: skip
    hints = (
        "Draw the images as points, and a line for each pair and for each two of one patient.",
        "Begin with each image by itself; along every line both ends get the smaller number.",
        "for a, b in lines: first[a] = first[b] = min(first[a], first[b]), again and again",
    )
    cases = [
        (["p", "q", "", "q", "", "r", "r"], [(4, 5), (3, 6)]),
        (["p", "q", "r", "", "p", "s"], [(2, 5), (1, 2), (4, 5)]),
        (["", "", "p"], []),
    ]
    praise = "These are the connected components of a graph; each goes to one part as a whole."
    return built(function, right, cases, mistakes, hints, praise)


def check_square(function):
    """9.1: a picture in the middle of a black square, nothing cut and nothing stretched."""

    def right(picture):
        missing = max(picture.shape) - np.array(picture.shape)
        return np.pad(picture, [(n // 2, n - n // 2) for n in missing])

    def in_the_corner(picture):
        return np.pad(picture, [(0, max(picture.shape) - n) for n in picture.shape])

    def cropped(picture):
        (top, left), side = (np.array(picture.shape) - min(picture.shape)) // 2, min(picture.shape)
        return picture[top : top + side, left : left + side]

    def stretched(picture):
        side = np.arange(max(picture.shape))
        return picture[np.ix_(*(side * n // len(side) for n in picture.shape))]

    mistakes = [
        (cropped, "That cuts off the sides, and some of the lung: black bars keep all of it."),
        (in_the_corner, "All bars are on one side: half of them belong above, or on the left."),
        (stretched, "The square is filled by a stretch: a chest twice as tall as it was."),
    ]
    hints = (
        "Begin with a black square whose side is the longer one of picture.shape.",
        "The picture goes into rows top to top + rows; half of what is left over lies above it.",
        "square[top : top + rows, left : left + columns] = picture, with top = (side - rows) // 2.",
    )
    cases = [(np.arange(1, 1 + h * w, dtype=np.uint8).reshape(h, w),) for h, w in ((4, 9), (7, 5))]
    praise = "One factor now fits both sides: resized, the chest keeps its shape."
    return built(function, right, cases, mistakes, hints, praise)


def check_dense_block(function):
    """9.2: every layer of a dense block gets the block's input and all that was made before."""

    def right(maps, layers):
        for layer in layers:
            maps = np.concatenate([maps, layer(maps)])
        return maps

    def chain(maps, layers):
        for layer in layers:
            maps = layer(maps)
        return maps

    def side_by_side(maps, layers):
        return np.concatenate([maps, *(layer(maps) for layer in layers)])

    def last_only(maps, layers):
        made = [maps]
        for layer in layers:
            made.append(layer(made[-1]))
        return np.concatenate(made)

    mistakes = [
        (chain, "That is a plain chain: what the earlier layers made is gone at the end."),
        (
            side_by_side,
            "Every layer saw the block's input alone: give it what was made since, too.",
        ),
        (last_only, "All is kept, but each layer saw only the maps of the one before it."),
        (
            lambda maps, layers: right(maps, layers)[len(maps) :],
            "The block's own input is missing.",
        ),
    ]
    hints = (
        "Look at the drawing: how many arrows lead into the last layer?",
        "Keep one stack of maps; each layer reads all of it, and what it makes is put on top.",
        "In a loop over the layers: maps = np.concatenate([maps, layer(maps)]).",
    )
    layers = [lambda maps: maps.sum(axis=0, keepdims=True), lambda maps: maps[-2:] * 2]
    cases = [(np.ones((3, 2, 2)), layers * 2), (np.arange(8.0).reshape(2, 2, 2), layers)]
    praise = "Nothing is made twice: what is there can be read by every later layer."
    return built(function, right, cases, mistakes, hints, praise)


def check_direction(function):
    """9.3: from a code that numbers COVID 0 to this course's direction, with nothing changed."""
    rng, labels = np.random.default_rng(0), np.arange(60) % 2
    probability = np.clip(rng.normal(0.4 + 0.2 * labels, 0.15), 0.01, 0.99)
    found = answers_of(function, [(labels, probability, 0.45)])
    if not found:
        return found
    try:
        covid, ours, threshold = (np.asarray(part, float) for part in found[0])
        before, after = auc(labels, probability), auc(covid.astype(int), ours)
    except (TypeError, ValueError):
        return verdict(False, "", "Return labels, probabilities and threshold, one for each image.")
    n_changed = ((ours >= threshold) == (probability >= 0.45)).sum()
    problems = {
        "In the labels, COVID has to be 1 and the others 0.": (covid == labels).any(),
        "A probability lies in 0 to 1: those of both classes sum to 1.": abs(ours - 0.5).max()
        > 0.5,
        f"The AUC was {before:.2f} and is {after:.2f}: labels and probabilities turn together.": (
            abs(after - before) > 1e-9
        ),
        f"{n_changed} images are called otherwise now: the threshold turns, too.": n_changed,
    }
    problems = [problem for problem, is_there in problems.items() if is_there]
    praise = "The same AUC and the same calls; only recall, precision and F1 change their class."
    return verdict(not problems, praise, [*problems, ""][0])


def check_experiment(letter):
    """9.4: the experiment that blames the others and not the scanner."""
    because = {
        "a": "Another seed changes neither: ask what the two collections differ in.",
        "b": "One thing changes, the others, and no picture of another scanner comes in.",
        "c": "That changes the picture, not who the others are: it asks about the scanner.",
        "d": "Then scanner and others change together, and either may be the reason.",
    }
    return choice(letter, "b", because)


def check_views(settings):
    """10.1: random changes that leave a faint haze in the lung, and make views that differ."""
    if not answer(settings):
        return None
    try:
        kept, matched = _views(settings)
    except Exception as error:
        return verdict(False, "", f"It stopped with {type(error).__name__}: {error}")
    found = f"The haze is left in {kept:.0%} of the views, and pixels alone match {matched:.0%}."
    if kept < 0.95:
        worst = min(settings, key=lambda name: _views({name: settings[name]})[0])
        hint = f"{found} What loses it most, by itself, is `{worst}`: less of that."
    else:
        hint = f"{found} The two views are too much alike: move or cut them more."
    return verdict(kept >= 0.95 and matched <= 0.3, found, hint)


def _views(settings):
    """How many views still show the haze, and how many pairs the pixels alone bring together."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[-1:1:64j, -1:1:64j]
    chests, ill = [], []
    for side in (-1, 1) * 16:
        width, height, a, b = rng.uniform((0.8, 0.6, 0.26, 0.36), (0.98, 0.85, 0.36, 0.5))
        lung = ((abs(x) - 0.45 * width) / a) ** 2 + (y / b) ** 2 < 1
        haze = (x - side * 0.5 * width) ** 2 + (y - rng.uniform(-0.15, 0.3)) ** 2 < 0.16**2
        chests.append(np.where(lung, 0.15, 0.6 * ((x / width) ** 2 + (y / height) ** 2 < 1)))
        ill.append(chests[-1] + 0.1 * (haze & lung))
    ill, chests = (
        torch.tensor(np.array(some)[:, None], dtype=torch.float32) for some in (ill, chests)
    )
    augment, shares = ImageAugmentation(**settings), []
    for seed in range(4):
        pairs = ((ill, seed), (chests, seed), (ill, 100 + seed))
        one, healthy, other = (augment(x, torch.Generator().manual_seed(s)) for x, s in pairs)
        kept = ((one - healthy).abs() > 0.04).flatten(1).sum(1) >= 8
        one, other = (
            view.flatten(1) - view.flatten(1).mean(1, keepdim=True) for view in (one, other)
        )
        nearest = (normalize(one, dim=1) @ normalize(other, dim=1).T).argmax(1)
        shares.append([kept.float().mean(), (nearest == torch.arange(32)).float().mean()])
    return np.mean(shares, axis=0)


def check_cosine(letter):
    """10.2: how alike the features of two slices are before any training."""
    because = {
        "a": "That would hold for vectors drawn at random; these come from pictures much alike.",
        "b": "Slices differ less than that: body, lungs and spine are in all of them.",
        "c": "All are chests, and what they share outweighs by far what tells them apart.",
        "d": "Opposite features would need opposite pictures; and a ReLU leaves no negative ones.",
    }
    return choice(letter, "c", because)


def check_info_nce(function):
    """10.3: the loss of one query, its key and a queue of wrong keys; all of length 1."""

    def right(query, key, queue, temperature):
        logits = np.r_[query @ key, queue @ query] / temperature
        return np.log(np.exp(logits).sum()) - logits[0]

    def wrong_keys_only(query, key, queue, temperature):
        return np.log(np.exp(queue @ query / temperature).sum()) - query @ key / temperature

    def multiplied(query, key, queue, temperature):
        return right(query, key, queue, 1 / temperature)

    mistakes = [
        (lambda *given: right(*given[:3], 1), "Divide the similarities by the temperature."),
        (multiplied, "That multiplies by the temperature; a small one has to widen differences."),
        (wrong_keys_only, "The right key is one of the possible answers: it counts below, too."),
        (lambda *given: -right(*given), "The sign: a loss falls as the right key gains."),
        (lambda *given: np.exp(-right(*given)), "That is the probability: minus its logarithm."),
    ]
    hints = (
        "All lengths are 1: a similarity is a dot product, with the key and with each wrong one.",
        "Divide all by the temperature, take a softmax, and of the right key's share -log.",
        "logits = np.r_[query @ key, queue @ query] / temperature; log(sum(exp(logits))) - ...",
    )
    keys = np.random.default_rng(0).normal(size=(9, 4))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    cases = [(keys[0], keys[1], keys[2:], 0.2), (keys[3], keys[3], keys[:3], 0.5)]
    praise = "With n keys that are all alike it is log(n): a loss near that has learned nothing."
    return built(function, right, cases, mistakes, hints, praise)


def check_vote(function):
    """10.4: the share of COVID among the n training images that are most similar."""

    def right(train, labels, features, n):
        return labels[np.argsort(-features @ train.T, axis=1)[:, :n]].mean(axis=1)

    def by_training_image(train, labels, features, n):
        return labels[np.argsort(-train @ features.T, axis=1)[:, :n] % len(labels)].mean(axis=1)

    mistakes = [
        (lambda t, y, f, n: right(-t, y, f, n), "Those are the least similar: sort from the top."),
        (
            lambda *given: (right(*given) > 0.5) * 1.0,
            "Give the share: a vote of 3 to 2 is no 5 to 0.",
        ),
        (lambda *given: right(*given) * given[3], "That is how many; divide by n for the share."),
        (lambda t, y, f, n: right(t, y, f, 1), "That is the nearest one alone: n of them vote."),
        (by_training_image, "A row for each image asked about: features @ train_features.T."),
    ]
    hints = (
        "Rows have length 1: all similarities at once are one product of two matrices.",
        "For each row the places of its n largest similarities, then the labels there.",
        "near = np.argsort(-features @ train_features.T, axis=1)[:, :n]; then labels[near] ...",
    )
    rng, cases = np.random.default_rng(1), []
    for n in (3, 4):
        rows = rng.normal(size=(14, 5))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        cases.append((rows[:10], rng.integers(0, 2, 10), rows[10:], n))
    praise = "Nothing was fitted: the features alone decide who votes."
    return built(function, right, cases, mistakes, hints, praise)


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


def check_order_of_names(letter):
    """12.1: what the slices of an export look like in the order of their file names."""
    because = {
        "a": "That would be the order turned round; these names were dealt out at random.",
        "b": "Names are labels and nothing else. Where a slice lies stands in its header.",
        "c": "It may happen, and then it is luck: nothing demands it of an archive.",
    }
    return choice(letter, "b", because)


def check_in_order(function):
    """12.2: the slices of a series from one end to the other, along their normal."""
    rng = np.random.default_rng(122)

    def right(positions, orientation):
        return np.argsort(positions @ np.cross(orientation[:3], orientation[3:]))

    def by_height(positions, orientation):
        return np.argsort(positions[:, 2])

    cases = []
    for orientation in ([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]):
        normal = np.cross(orientation[:3], orientation[3:])
        along = rng.permutation(7)[:, None] * 5.0 * normal
        cases.append((along + [-150.0, -140.0, 30.0], np.array(orientation, float)))
    mistakes = [
        (by_height, "Right for axial slices. A coronal series has one height: use the normal."),
        (lambda *case: right(*case)[::-1], "From the other end: smallest along the normal first."),
        (lambda *case: np.sort(case[0] @ np.cross(case[1][:3], case[1][3:])),
         "Those are the sorted distances; asked for is which slice comes when: np.argsort."),
        (lambda *case: np.argsort(np.linalg.norm(case[0], axis=1)),
         "The distance from the origin has no sign: project on the normal."),
    ]  # fmt: skip
    hints = (
        "Which direction leads from one slice to the next? Across both directions of the image.",
        "np.cross of the row's and the column's direction is the normal; positions @ normal is "
        "how far each slice lies along it.",
        "return np.argsort(positions @ np.cross(orientation[:3], ...))",
    )
    praise = "Any series, however it lies, from its header alone."
    return built(function, right, cases, mistakes, hints, praise)


def check_missing(function):
    """12.3: how many slices are missing in a series."""

    def steps(heights):
        between = np.diff(np.sort(heights))
        return np.rint(between / np.median(between))

    def right(heights):
        return int((steps(heights) - 1).sum())

    def unsorted(heights):
        between = np.diff(heights)
        return int((np.rint(between / np.median(between)) - 1).sum())

    whole = np.arange(20) * 2.5 - 100
    mixed = np.random.default_rng(123).permutation(np.delete(whole, [3, 11, 12, 13]))
    cases = [(whole,), (np.delete(whole, 7),), (mixed,)]
    mistakes = [
        (lambda heights: int((steps(heights) > 1).sum()),
         "A gap may hold several slices: how many steps is it wide?"),
        (lambda heights: int(steps(heights).sum()),
         "Nothing is missing where two slices are one step apart: subtract that step."),
        (lambda heights: right(heights) + len(heights),
         "That is how many there should be; asked for is how many are missing."),
        (unsorted, "The heights may come in any order: sort them first."),
    ]  # fmt: skip
    hints = (
        "Sort the heights and look at the steps between them. Which step is the usual one?",
        "The usual step is the median. A gap of k steps lacks k - 1 slices.",
        "return int((np.rint(steps / np.median(steps)) - 1).sum())",
    )
    praise = "Two numbers of every header, and a hole in a scan cannot hide."
    return built(function, right, cases, mistakes, hints, praise)


def check_pseudonyms(function):
    """12.4: a number in place of each patient's id."""

    def right(ids):
        known = {}
        return [known.setdefault(one, f"P{len(known) + 1}") for one in ids]

    cases = [(["7731", "0815", "7731", "4711"],), (["b", "a", "b", "b"],), ([],)]
    mistakes = [
        (lambda ids: [f"P{k}" for k, _ in enumerate(ids, start=1)],
         "A patient with two scans has two numbers now, and a split would tear them apart."),
        (lambda ids: [f"P{one}" for one in ids],
         "The id is still there. A pseudonym tells patients apart and nothing more."),
        (lambda ids: [f"P{sorted(set(ids)).index(one) + 1}" for one in ids],
         "Their order still tells something of the ids: number them as they come."),
        (lambda ids: [f"P{[*dict.fromkeys(ids)].index(one)}" for one in ids],
         "Begin with P1."),
    ]  # fmt: skip
    hints = (
        "Keep in a dictionary who has been seen, and which number each of them got.",
        "known.setdefault(one, new) writes only where nothing stands, and returns what stands.",
        'known.setdefault(one, f"P{len(known) + 1}") for each id, in order',
    )
    praise = "Nobody can be found from P2; the list that could is not to be kept beside the data."
    return built(function, right, cases, mistakes, hints, praise)


def check_usable(function):
    """12.5: which scans of a sheet belong into an external test."""

    def new(sheet, seen):
        return sheet[(sheet.problem == "") & ~sheet.content.isin(seen)]

    def right(sheet, seen):
        return new(sheet, seen).drop_duplicates("content").study.tolist()

    def lines(*rows):
        return pd.DataFrame(rows, columns=["study", "content", "problem"])

    first = lines(("a", "1", ""), ("b", "2", ""), ("c", "1", ""), ("d", "", "missing slices: 1"),
                  ("e", "9", ""), ("f", "", "is damaged"))  # fmt: skip
    second = lines(("x", "", "is damaged"), ("y", "5", ""), ("z", "5", ""))
    mistakes = [
        (lambda sheet, seen: new(sheet, seen).study.tolist(),
         "A copy under another name would count twice: keep the first of each content."),
        (lambda sheet, seen: right(sheet, ()),
         "A scan that the network was trained on is in your test: leave out what is in seen."),
        (lambda sheet, seen: right(sheet.assign(problem=""), seen),
         "A study that cannot be read cannot be tested: look at problem."),
        (lambda sheet, seen: new(sheet, seen).drop_duplicates("content", keep=False).study.tolist(),
         "Of two copies one may stay: keep the first."),
    ]  # fmt: skip
    hints = (
        "Three conditions: it can be read, the network has not seen it, and it is no copy.",
        'sheet.problem == "", ~sheet.content.isin(seen), and drop_duplicates("content").',
        'good.drop_duplicates("content").study.tolist()',
    )
    praise = "What is left is new to the network, and counts once."
    cases = [(first, {"9"}), (second, set()), (first, {"1", "2", "9"})]
    return built(function, right, cases, mistakes, hints, praise)
