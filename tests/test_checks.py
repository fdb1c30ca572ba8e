"""Every exercise: its solution passes, usual slips get their hint, a stub does no harm."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from nibabel.affines import apply_affine
from notebook_tools import FILES, cells, exercises
from scipy import ndimage
from sklearn.metrics import roc_curve
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.models.densenet import _DenseBlock

from helpers.course import answers, checks
from helpers.covidct import covid_ct
from helpers.ct import preprocessing, studies
from helpers.figures import rendering
from helpers.learn import augmentation, moco, networks
from helpers.scores import metrics

HU = np.random.default_rng(0).integers(-900, 60, (4, 5, 6))
MASK = HU > -200
CHOOSING = pd.DataFrame({"label": [0, 0, 1, 0, 0, 1, 1], "probability": np.arange(1, 8) / 10})


def all_exercises():
    return [
        pytest.param(stub.source, solution, id=f"{file.stem[:2]}-{n}")
        for file in FILES
        for n, (stub, solution) in enumerate(exercises(file), start=1)
    ]


def run_with(code, check_line):
    space = {"checks": checks, "np": np, "metrics": metrics, "choosing": CHOOSING}
    space |= {"ill": SimpleNamespace(hu=HU), "mask": MASK}
    exec(code, space)
    return eval(check_line, space)


@pytest.mark.parametrize(("stub", "solution"), all_exercises())
def test_solution_passes_and_stub_does_not(stub, solution, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.jsonl"))
    check_line = stub.strip().split("\n")[-1]
    assert run_with(solution, check_line) is True
    assert capsys.readouterr().out.startswith("Right.")
    untouched = stub.strip().rsplit("\n", 1)[0]
    assert run_with(untouched, check_line) is None
    assert "Not filled in" in capsys.readouterr().out
    (line,) = (tmp_path / "progress.jsonl").read_text().splitlines()
    assert f"check_{json.loads(line)['check']}(" in check_line and json.loads(line)["right"] is True


class Recorder:
    """Stands in for `answers.built` and keeps what a check asks of it."""

    def __init__(self, monkeypatch):
        self.asked = None
        monkeypatch.setattr(checks, "built", self)

    def __call__(self, function, right, cases, mistakes, hints, praise):
        self.asked = {"right": right, "cases": cases, "mistakes": mistakes, "hints": hints}
        return answers.built(function, right, cases, mistakes, hints, praise)


def checks_of(tag):
    """The names of the checks of all exercises of one kind."""
    found = [stub for file in FILES for stub in cells(file, "code", tag)]
    return [stub.source.split("checks.")[-1].split("(")[0] for stub in found]


@pytest.mark.parametrize("name", checks_of("make"))
def test_what_is_built_passes_and_each_mistake_has_its_hint(name, monkeypatch, capsys):
    check, recorder = getattr(checks, name), Recorder(monkeypatch)
    check(lambda *arguments: None)
    asked = recorder.asked
    assert len(asked["hints"]) == 3 and asked["mistakes"] and len(asked["cases"]) >= 2
    capsys.readouterr()
    assert check(asked["right"]) is True
    assert capsys.readouterr().out.startswith("Right. ")
    for wrong, hint in asked["mistakes"]:
        assert check(wrong) is False
        assert capsys.readouterr().out == f"Not yet. {hint}\n"
    answers._hints_given.clear()
    for n in (1, 2, 3, 3):
        assert check(lambda *arguments: "no such thing") is False
        assert capsys.readouterr().out == f"Not yet. Hint {n} of 3: {asked['hints'][n - 1]}\n"


@pytest.mark.parametrize("name", checks_of("predict"))
def test_every_guess_is_answered_with_a_reason(name, capsys):
    check, said = getattr(checks, name), {}
    outcomes = []
    for letter in "abcdefgh":
        outcomes.append(check(letter))
        said[letter] = capsys.readouterr().out
    n = sum("Give one of the letters" not in text for text in said.values())
    assert n >= 2 and outcomes.count(True) == 1 and len({*said.values()}) == n + 1
    assert check(...) is None and check(7) is False


def test_every_check_belongs_to_an_exercise():
    used = {
        stub.source.split("checks.")[-1].split("(")[0] for f in FILES for stub, _ in exercises(f)
    }
    assert used == {name for name in vars(checks) if name.startswith("check_")}


def test_a_check_says_which_exercise_it_belongs_to():
    for file in FILES:
        for n, (stub, _) in enumerate(exercises(file), start=1):
            check = getattr(checks, stub.source.split("checks.")[-1].split("(")[0])
            assert check.__doc__.startswith(f"{int(file.stem[:2])}.{n}: "), check.__name__


def has_liver_at_left(hu):
    """What the notebook asks: the liver's HU in the lowest slice, at the left of the patient."""
    right, left = np.array_split((hu[0] > 0) & (hu[0] < 120), 2, axis=1)
    return left.sum() > right.sum()


def has_soft_tissue_at_left(hu):
    right, left = np.array_split(hu > 0, 2, axis=2)
    return left.sum() > right.sum()


def accumulated(model, mean_loss, scans, labels, share, part=np.divide, forget=False):
    """The gradient of a batch in shares; part: what the mean of n scans of all counts."""
    for rows in torch.arange(len(scans)).split(share):
        if forget:
            model.zero_grad()
        loss = mean_loss(model(scans[rows]), labels[rows])
        (float(part(len(rows), len(scans))) * loss).backward()


def half_or_third(n, n_all):
    """Every share the same, as if none were smaller."""
    return 1 / {6: 2, 5: 3}[n_all]


def shortcut_above(table, bound):
    """The first column whose rule, learnt on train, is right on more of test than a fixed bound."""
    train, test = table[table.part == "train"], table[table.part == "test"]
    for column in ("scanner", "hospital", "software"):
        rule = (train.groupby(column).label.mean() > 0.5).astype(int)
        if (test[column].map(rule) == test.label).mean() > bound:
            return column
    return None


PUBLISHED = {"CT-0": 0, "CT-1": 1, "CT-2": 1, "CT-3": 1, "CT-4": 1}
SCORES = np.array([0.0, 1.0, -1.0, 2.0])


def inverse_counts(labels, scanners):
    """One over the number of scans of the same class and scanner."""
    table = pd.crosstab(labels, scanners)
    found = [1 / table.loc[pair] for pair in zip(labels, scanners, strict=True)]
    return np.array(found) / np.mean(found)


def by_class_alone(labels):
    found = 1 / np.bincount(labels)[labels]
    return found / found.mean()


@pytest.mark.parametrize(
    ("check", "arguments", "hint"),
    [
        (
            "published_task",
            ({"CT-0": 1, **dict.fromkeys(["CT-1", "CT-2", "CT-3", "CT-4"], 0)},),
            "swapped",
        ),
        ("published_task", ({"CT-0": 0, "CT-1": 1},), "CT-2"),
        ("published_task", ("CT-0",), "dictionary"),
        ("two_windows", ((40, 400), (40, 400)), "the shell (1000 HU) is white"),
        ("two_windows", ((400, 1800), (400, 1800)), "greys apart"),
        ("two_windows", ((-600, 1500), (400, 1800)), "greys apart"),
        ("two_windows", ((40, 400), (500, 800)), "muscle (50 HU) is black"),
        ("two_windows", ((40, -400), (400, 1800)), "above 0"),
        ("two_windows", (40, (400, 1800)), "two numbers"),
        ("two_windows", ((40, 400), (-500, 400, 1300)), "two numbers"),
        ("is_swapped", (lambda hu: False,), "says False of all"),
        ("is_swapped", (lambda hu: not has_liver_at_left(hu),), "other way round"),
        ("is_swapped", (lambda hu: has_soft_tissue_at_left(hu),), "lowest slices"),
        ("is_swapped", (lambda hu: hu[99],), "IndexError"),
        ("shortcut", (lambda table: None,), "`scanner` gives most"),
        ("shortcut", (lambda table: "image",), "score on test"),
        ("shortcut", (lambda table: shortcut_above(table, 0.7),), "beats the commoner class"),
        ("shortcut", (lambda table: "hospital",), "`scanner` gives most"),
        ("shortcut", (lambda table: table.nobody,), "AttributeError"),
        ("direction", (lambda y, p, t: (1 - y, p, t),), "AUC was"),
        ("direction", (lambda y, p, t: (y, p, t),), "COVID has to be 1"),
        ("direction", (lambda y, p, t: (y, 1 - p, t),), "COVID has to be 1"),
        ("direction", (lambda y, p, t: (1 - y, -p, -t),), "0 to 1"),
        ("direction", (lambda y, p, t: (1 - y, 1 - p, t),), "threshold turns"),
        ("direction", (lambda y, p, t: (1 - y, 1 - p),), "Return labels"),
        ("direction", (lambda y, p, t: 1 - p,), "Return labels"),
        ("direction", (lambda y, p, t: (1 - y, [0.5], t),), "Return labels"),
        ("direction", (lambda y, p, t: p[t],), "IndexError"),
        ("views", ({},), "too much alike"),
        ("views", ({"scale": (0.95, 1.0)},), "too much alike"),
        ("views", (vars(augmentation.CONTRAST),), "`brightness`"),
        ("views", ({"scale": (0.03, 0.2), "contrast": 0.2},), "`scale`"),
        ("views", ({"scale": (0.5, 1.0), "blur": 12.0},), "`blur`"),
        ("views", ({"zoom": 2},), "TypeError"),
        ("views", (0.5,), "TypeError"),
        ("plan", (3, 0.25, 45), "8 bits"),
        ("plan", (100, 2.5, 45), "The cores would take 1.11 hours of 48: half"),
        ("plan", (2, 2.5, 45), "a second of one core"),
        ("plan", (3, 10, 45), "The link would take 9.32 hours of 48: half"),
        ("plan", (3, 2.5, 1), "The radiologists would take 3.33e+04"),
        ("plan", (3, 2.5, 100), "half of that"),
        ("plan", (3, 0, 45), "above 0"),
        ("plan", (np.int64(9), np.float32(2.5), 45), "The cores would take 12.3 hours"),
        ("plan", ("3", 2.5, 45), "above 0"),
        ("needle", (lambda f: f.max(),), "one number for each feature"),
        ("needle", (lambda f: f[41],), "an order"),
        ("needle", (lambda f: np.median(f, axis=0),), "nearly the same"),
        ("needle", (lambda f: 20 * f.mean(axis=0),), "drown"),
        ("needle", (lambda f: f.sum(axis=0),), "add up"),
        ("needle", (lambda f: f[99, 99],), "IndexError"),
        ("accumulated", (lambda model, loss, x, y, n: loss(model(x), y).backward(),), "room for 3"),
        ("accumulated", (lambda *case: accumulated(*case, part=lambda n, of: 1),), "too long"),
        ("accumulated", (lambda *case: accumulated(*case, part=lambda n, of: n),), "no zero_grad"),
        ("accumulated", (lambda *case: accumulated(*case, forget=True),), "no zero_grad"),
        ("accumulated", (lambda *case: accumulated(*case, part=half_or_third),), "smaller last"),
        ("accumulated", (lambda model, loss, x, y, n: loss(model(x[:n]), y[:n]),), "Of 6 scans 3"),
        (
            "accumulated",
            (lambda model, loss, x, y, n: [model(x[:3]), model(x[3:])],),
            "no gradient",
        ),
        ("accumulated", (lambda model, loss, x, y, n: x[99],), "IndexError"),
        ("threshold_for_95", (lambda labels, scores: scores[99],), "IndexError"),
        ("cheapest_threshold", (0.6, *CHOOSING.to_numpy().T), "both errors cost 1"),
        ("cheapest_threshold", (0.05, *CHOOSING.to_numpy().T), "calls everybody"),
        ("cheapest_threshold", (0.9, *CHOOSING.to_numpy().T), "It costs 30, but 2 is possible"),
        ("cheapest_threshold", (None, *CHOOSING.to_numpy().T), "one number"),
        ("cheapest_threshold", ("half", *CHOOSING.to_numpy().T), "one number"),
        ("hide_each", (lambda score, sequence, instead: instead[99],), "IndexError"),
        ("balancing_weights", (lambda labels, scanners: np.ones(len(labels)),), "On scanner"),
        ("balancing_weights", (lambda labels, scanners: np.ones(3),), "one finite weight"),
        ("balancing_weights", (lambda labels, scanners: labels / labels.mean(),), "above 0"),
        (
            "balancing_weights",
            (lambda labels, scanners: 7 * inverse_counts(labels, scanners),),
            "divide by it",
        ),
        ("balancing_weights", (lambda labels, scanners: by_class_alone(labels),), "On scanner"),
    ],
)
def test_usual_slips_get_their_hint(check, arguments, hint, capsys):
    assert getattr(checks, f"check_{check}")(*arguments) is False
    said = capsys.readouterr().out
    assert said.startswith("Not yet.") and hint in said


class LastColumn(nn.Module):
    def forward(self, sequence):
        return sequence[..., -1:]


def average_by_network(features, scores):
    """What the network's own attention pooling makes of these scores."""
    pooling = networks.AttentionPooling(4)
    pooling.score = LastColumn()
    sequence = torch.from_numpy(np.column_stack([features, scores]))
    return pooling(sequence[None])[0][0, :3].numpy()


def step_of_torch(x, h, c, weights):
    """One step of torch's LSTMCell with these weights."""
    W, U, b = (torch.from_numpy(value) for value in weights)
    cell = nn.LSTMCell(len(x), len(h)).double()
    cell.load_state_dict({"weight_ih": W, "weight_hh": U, "bias_ih": b, "bias_hh": 0 * b})
    with torch.no_grad():
        new = cell(torch.from_numpy(x), (torch.from_numpy(h), torch.from_numpy(c)))
    return tuple(value.numpy() for value in new)


def sharp_softmax(features):
    """Attention whose scores are the features, times so much that the largest one wins."""
    weights = torch.from_numpy(30 * features).softmax(0).numpy()
    return (weights * features).sum(axis=0)


def taught(number, name):
    """A function as the notebook's `teach` cell builds it."""
    (file,) = (file for file in FILES if file.name.startswith(number))
    space = {"np": np, "math": math, "pd": pd}
    for cell in cells(file, "code", "teach"):
        if f"def {name}(" in cell.source:
            exec(cell.source, space)
    return space[name]


def distance_of_nibabel(affine, a, b):
    return np.linalg.norm(np.diff(apply_affine(affine, [a, b]), axis=0))


def refused_by_read_study(values):
    """Whether it would be refused as a study of 8 slices."""
    try:
        studies._check_scale(np.tile(values, (8, 2, 1)), "a study")
    except studies.UnreadableStudy:
        return True
    return False


def taught_window(hu, level, width):
    return np.rint(taught("02", "window")(hu, level=level, width=width) * 255)


def lesion_of_each_side(hu, mask):
    sides = 1 + np.arange(hu.shape[2]) // (hu.shape[2] // 2)
    return tuple(ndimage.mean(hu, mask * sides, [1, 2]))


def linked_by_height(k, n_a, n_b):
    """The slice of b whose bottom and top in height enclose the middle of slice k of a."""
    edges = np.linspace(0, 1, n_b + 1)
    return int(np.searchsorted(edges, (2 * k + 1) / (2 * n_a), side="right")) - 1


def loss_of_pytorch(logits, labels, weight):
    logits, labels = torch.from_numpy(logits), torch.from_numpy(labels).double()
    weight = torch.tensor(weight)
    return binary_cross_entropy_with_logits(logits, labels, pos_weight=weight).item()


def clipped_by_pytorch(gradients, longest):
    layers = [nn.Parameter(torch.zeros(gradient.shape).double()) for gradient in gradients]
    for layer, gradient in zip(layers, gradients, strict=True):
        layer.grad = torch.from_numpy(gradient)
    nn.utils.clip_grad_norm_(layers, longest)
    return [layer.grad.numpy() for layer in layers]


def threshold_on_the_curve(labels, scores):
    """From scikit-learn's ROC curve."""
    alarms, found, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    place = np.flatnonzero(found >= 0.95)[0]
    return thresholds[place], alarms[place]


def differences_of_counted_patients(labels, a, b, patients, draws):
    """By how often each patient was drawn."""
    found = []
    for drawn in draws:
        rows = np.repeat(np.arange(len(labels)), [list(drawn).count(name) for name in patients])
        found.append(metrics.auc(labels[rows], a[rows]) - metrics.auc(labels[rows], b[rows]))
    return found


def letter_of_the_predictive_value():
    """By drawing a million people, one in a hundred of them ill."""
    rng = np.random.default_rng(0)
    ill = rng.random(1_000_000) < 0.01
    called = rng.random(len(ill)) < np.where(ill, 0.9, 0.1)
    stays, one_in_twelve = abs(called[ill].mean() - 0.9) < 0.02, round(1 / ill[called].mean()) == 12
    return ("b" if stays and one_in_twelve else "",)


def hidden_by_the_course(score, sequence, instead):
    """All sequences with one slice replaced, made at once."""
    mask = np.eye(len(sequence), dtype=bool)[:, :, None]
    return score(sequence) - np.array([score(s) for s in np.where(mask, instead, sequence)])


def rescaled(weights, scanners):
    """A scanner may weigh more than another, as long as both its classes do."""
    weights = weights * np.where(scanners == np.unique(scanners)[0], 3, 1)
    return weights / weights.mean()


def cheapest_by_the_curve():
    alarms, found, thresholds = roc_curve(CHOOSING.label, CHOOSING.probability)
    cost = 10 * 3 * (1 - found) + 4 * alarms
    return thresholds[cost.argmin()], *CHOOSING.to_numpy().T


def letterboxed_by_the_course(picture):
    return covid_ct.letterbox(picture, (max(picture.shape),) * 2)


def dense_block_of_torchvision(maps, layers):
    """Its forward pass, with layers that take the list of all maps so far."""
    block = _DenseBlock(len(layers), 1, 1, 1, 0)
    for name, layer in zip(block, layers, strict=True):
        block[name].forward = lambda so_far, layer=layer: torch.from_numpy(
            layer(torch.cat(so_far, 1)[0].numpy())
        )[None]
    return block(torch.from_numpy(maps)[None])[0].numpy()


def as_scikit_learn_turns_it(labels, probability, threshold):
    """Column 0 of predict_proba is the other class's; nothing may lie on the threshold."""
    both = np.column_stack([1 - probability, probability])
    assert (probability != threshold).all()
    return (labels == 0).astype(int), both[:, 0], 1 - threshold


def cosine_of_random_features():
    """The letter whose range holds it, for drawn chests and a network nobody trained."""
    torch.manual_seed(0)
    rows, columns = np.mgrid[-1:1:64j, -1:1:64j]
    pictures = []
    for wide in np.linspace(0.6, 0.95, 8):
        lung = ((abs(columns) - 0.45 * wide) / 0.3) ** 2 + (rows / 0.5) ** 2 < 1
        body = (columns / wide) ** 2 + (rows / 0.8) ** 2 < 1
        pictures.append(np.where(lung, 40, 150 * body))
    found = moco.features(networks.SmallCNN(16), np.array(pictures, np.uint8)[:, None])
    assert (found @ found.T)[np.triu_indices(8, 1)].mean() > 0.9
    return ("c",)


def loss_of_moco(query, key, queue, temperature):
    """MoCo's own, with a network that hands on what it gets."""
    encoder = nn.Identity()
    encoder.features = len(query)
    model = moco.MoCo(encoder, len(query), len(queue), temperature=temperature)
    model.encoder_q, model.encoder_k = nn.Identity(), nn.Identity()
    model.queue = torch.from_numpy(queue).float()
    one, other = (torch.from_numpy(view[None]).float() for view in (query, key))
    return cross_entropy(model(one, other), RIGHT).item()


def vote_of_scikit_learn(train, labels, features, n):
    model = KNeighborsClassifier(n).fit(train, labels)  # of length 1: nearest is most similar
    return model.predict_proba(features)[:, list(model.classes_).index(1)]


def experiment_that_changes_the_others_alone():
    """Of what each experiment changes between the two judgements that it compares."""
    changes = {"a": {"seed"}, "b": {"others"}, "c": {"picture"}, "d": {"others", "scanner"}}
    return ([letter for letter, what in changes.items() if what == {"others"}][0],)


def plan_by_sizes():
    """Enough for 40 hours of machines and 600 of labelling, from a study as an array."""
    n_bytes = np.empty((400, 512, 512), np.int16).nbytes / 2
    return 4e5 / (40 * 3600), 4e5 * n_bytes * 8 / 1e9 / (40 * 3600), 4e5 * 5 / 60 / 600


RIGHT = torch.zeros(1, dtype=torch.long)
FOLLOWS = {
    "1.1": ("published_task", lambda: ({f"CT-{k}": int(k > 0) for k in range(5)},)),
    "1.2": ("shared_patients", lambda: (lambda a, b: a.merge(b, on="patient").patient.nunique(),)),
    "2.1": ("distance_mm", lambda: (distance_of_nibabel,)),
    "2.2": ("cannot_be_hu", lambda: (refused_by_read_study,)),
    "2.3": ("grey_levels", lambda: (taught_window,)),
    "3.2": ("lesion_by_side", lambda: (lesion_of_each_side,)),
    "3.3": ("linked", lambda: (linked_by_height,)),
    "3.4": ("is_swapped", lambda: (has_liver_at_left,)),
    "4.1": ("lstm_step", lambda: (step_of_torch,)),
    "4.3": ("pooling", lambda: (average_by_network,)),
    "4.4": ("needle", lambda: (sharp_softmax,)),
    "5.1": ("weighted_loss", lambda: (loss_of_pytorch,)),
    "5.2": ("clipped", lambda: (clipped_by_pytorch,)),
    "5.4": ("accumulated", lambda: (accumulated,)),
    "6.1": ("threshold_for_95", lambda: (threshold_on_the_curve,)),
    "6.2": ("differences", lambda: (differences_of_counted_patients,)),
    "6.3": ("prevalence", letter_of_the_predictive_value),
    "6.4": ("cheapest_threshold", cheapest_by_the_curve),
    "6.4, between two scores": (
        "cheapest_threshold",
        lambda: (0.25, *CHOOSING.to_numpy().T),
    ),
    "7.2": ("hide_each", lambda: (hidden_by_the_course,)),
    "7.5": ("balancing_weights", lambda: (inverse_counts,)),
    "7.5, the ill weigh twice as much nowhere": (
        "balancing_weights",
        lambda: (lambda labels, scanners: rescaled(inverse_counts(labels, scanners), scanners),),
    ),
    "8.1": ("preprint_doi", lambda: (covid_ct.normalise_doi,)),
    "9.1": ("square", lambda: (letterboxed_by_the_course,)),
    "9.2": ("dense_block", lambda: (dense_block_of_torchvision,)),
    "9.3": ("direction", lambda: (as_scikit_learn_turns_it,)),
    "9.4": ("experiment", experiment_that_changes_the_others_alone),
    "10.1": ("views", lambda: (vars(augmentation.PUBLISHED) | {"gamma": 1.1},)),
    "10.2": ("cosine", cosine_of_random_features),
    "10.3": ("info_nce", lambda: (loss_of_moco,)),
    "10.4": ("vote", lambda: (vote_of_scikit_learn,)),
    "11.5": ("plan", plan_by_sizes),
}


@pytest.mark.parametrize("exercise", FOLLOWS)
def test_the_expected_answer_follows_from_the_notebook(exercise, capsys):
    """From its own code, or computed in another way; rounded, it is right as well."""
    check, arguments = FOLLOWS[exercise]
    check, arguments = getattr(checks, f"check_{check}"), arguments()
    assert check(*arguments) is True
    rounded = [round(float(a), 2) if np.isscalar(a) and np.isreal(a) else a for a in arguments]
    assert check(*rounded) is True
    assert capsys.readouterr().out.count("Right.") == 2


def test_a_small_nodule_in_a_thick_slice_has_the_hu_of_ground_glass(capsys):
    """2.5, by the mean over the column through its middle."""
    depth = np.abs(np.arange(-4, 4, 0.1) + 0.05)
    assert -700 < np.where(depth < 2, 40, -850).mean() < -300
    assert checks.check_small_nodule("c") is True


def test_a_metastasis_and_bone_are_white_in_the_lung_window():
    """3.1, by the viewers' windows."""
    greys = {
        name: preprocessing.window(np.array([200, 700]), level=level, width=width)
        for name, (level, width) in rendering.PRESETS.items()
    }
    assert greys["lung"].tolist() == [1, 1] and greys["bone"][1] - greys["bone"][0] > 0.2


def test_no_window_answers_both_questions(capsys):
    for level in range(-400, 1200, 50):
        for width in range(50, 3000, 50):
            assert checks.check_two_windows((level, width), (level, width)) is False
