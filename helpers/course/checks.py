"""Checks of the exercises, in the order of the notebooks.

Each answers at once, as `answers` describes: a guess with the reason why it is right or wrong, a
function that is tried on hidden cases, or a property that the answer has to have.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from helpers.course.answers import answer, answers_of, built, choice, numeric, same, verdict
from helpers.ct.cohort import TASKS
from helpers.learn.augmentation import ImageAugmentation
from helpers.scores.metrics import auc, wilson


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
