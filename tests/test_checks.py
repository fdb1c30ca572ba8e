"""Every exercise: its solution passes, usual slips get their hint, a stub does no harm."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_tools import FILES, cells, exercises
from scipy import ndimage
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import nn
from torch.nn.functional import cross_entropy

from helpers.course import answers, checks
from helpers.covidct import covid_ct
from helpers.learn import moco, networks
from helpers.scores import metrics

HU = np.random.default_rng(0).integers(-900, 60, (4, 5, 6))
MASK = HU > -200


def all_exercises():
    return [
        pytest.param(stub.source, solution, id=f"{file.stem[:2]}-{n}")
        for file in FILES
        for n, (stub, solution) in enumerate(exercises(file), start=1)
    ]


def run_with(code, check_line):
    space = {"checks": checks, "np": np, "wilson": metrics.wilson}
    space |= {"ill": SimpleNamespace(hu=HU), "mask": MASK}
    exec(code, space)
    return eval(check_line, space)


@pytest.mark.parametrize(("stub", "solution"), all_exercises())
def test_solution_passes_and_stub_does_not(stub, solution, capsys):
    check_line = stub.strip().split("\n")[-1]
    assert run_with(solution, check_line) is True
    assert capsys.readouterr().out.startswith("Right.")
    untouched = stub.strip().rsplit("\n", 1)[0]
    assert run_with(untouched, check_line) is None
    assert "Not filled in" in capsys.readouterr().out


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
    if recorder.asked is None:
        pytest.skip("an exercise of another make, with tests of its own")
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


PUBLISHED = {"CT-0": 0, "CT-1": 1, "CT-2": 1, "CT-3": 1, "CT-4": 1}
SCORES = np.array([0.0, 1.0, -1.0, 2.0])


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
        ("shared_patients", (lambda a, b: len(set(a.study) & set(b.study)),), "not `study`"),
        ("shared_patients", (lambda a, b: a.patient.isin(b.patient).sum(),), "twice"),
        ("lung_window", (-600, 1500), "half of it"),
        ("lung_window", (150, -1350), "swapped"),
        ("lung_window", (-1000, 400), "level - width"),
        ("lung_window", ("a", None), "level - width"),
        ("lesion_hu", (HU[~MASK].mean(), HU, MASK), "outside the lesion"),
        ("lesion_hu", ((HU * MASK).mean(), HU, MASK), "counts them"),
        ("lesion_hu", (HU.mean(), HU, MASK), "Index the HU"),
        ("linked", (lambda k, n_a, n_b: k,), "no slice 39"),
        ("preprint_doi", (lambda name: "",), "10.1101/2020.03.22.20034041"),
        ("preprint_doi", (lambda name: f"10.1101/{name.split('-')[0]}",), "kjr-21-e24-p5-29.png"),
        ("preprint_doi", (lambda name: name[99],), "IndexError"),
        ("accuracy_without_copies", (166 / 203,), "still among"),
        ("accuracy_without_copies", (168 / 203,), "both numbers"),
        ("accuracy_without_copies", (0.828,), "both numbers"),
        ("accuracy_without_copies", (0.8,), "both numbers"),
        ("black_rows", (56,), "two black bars"),
        ("black_rows", (0,), "stretched"),
        ("black_rows", (100,), "400"),
        ("f1_of_covid", (0.8545,), "of the others"),
        ("f1_of_covid", (81 / 98,), "sensitivity"),
        ("f1_of_covid", (172 / 203,), "TP = 81"),
        ("f1_of_covid", (160 / 191,), "TP = 81"),
        ("experiment", ("a",), "Another seed"),
        ("experiment", ("C",), "asks about the scanner"),
        ("experiment", ("d",), "change together"),
        ("experiment", (3,), "one of the letters"),
        ("loss_of_guessing", (0.693147,), "two answers"),
        ("loss_of_guessing", (np.log(512),), "counts too"),
        ("loss_of_guessing", (1 / 513,), "logarithm"),
        ("half_life", (50,), "what is left"),
        ("half_life", (100,), "0.99 **"),
        ("plan", (3, 0.25, 45), "8 bits"),
        ("plan", (100, 2.5, 45), "The cores would take 1.11 hours of 48: half"),
        ("plan", (2, 2.5, 45), "a second of one core"),
        ("plan", (3, 10, 45), "The link would take 9.32 hours of 48: half"),
        ("plan", (3, 2.5, 1), "The radiologists would take 3.33e+04"),
        ("plan", (3, 2.5, 100), "half of that"),
        ("plan", (3, 0, 45), "above 0"),
        ("plan", (np.int64(9), np.float32(2.5), 45), "The cores would take 12.3 hours"),
        ("plan", ("3", 2.5, 45), "above 0"),
        ("linked", (lambda k, n_a, n_b: (k + 0.5) / n_a * n_b,), "whole number"),
        ("linked", (lambda k, n_a, n_b: k * n_b // n_a,), "k + 0.5"),
        ("linked", (lambda k, n_a, n_b: n_b[k],), "TypeError"),
        ("shared_patients", (lambda a, b: a.nobody,), "AttributeError"),
        ("pooling", (lambda f, s: f[9],), "IndexError"),
        ("slice_distance", (8,), "before"),
        ("slice_distance", (12.49,), "closer"),
        ("slice_distance", (5,), "64 slices share it"),
        ("slice_distance", (float("nan"),), "64 slices share it"),
        ("slice_distance", ([5.125, 5.125],), "64 slices share it"),
        ("lstm_parameters", (41472,), "one direction"),
        ("lstm_parameters", (2 * 4 * (64 * 96 + 64 * 64 + 64),), "two bias"),
        ("lstm_parameters", (2 * 10368,), "one gate"),
        ("pooling", (lambda f, s: f.mean(0),), "the mean"),
        ("pooling", (lambda f, s: s @ f,), "softmax"),
        ("pooling", (lambda f, s: f.sum(1),), "shape"),
        ("positive_weight", (1 / 3,), "other way"),
        ("positive_weight", (0.75,), "share"),
        ("learning_rate", (100,), "cosine"),
        ("learning_rate", (8,), "straight piece"),
        ("learning_rate", (11,), "straight piece"),
        ("always_covid", (76 / 331, 0.5), "healthy"),
        ("always_covid", (255 / 331, 255 / 331), "mean of"),
        ("seed_interval", (0.625, 0.975), "plain"),
        ("seed_interval", (0, 1), "wilson"),
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


def taught(number, name):
    """A function as the notebook's `teach` cell builds it."""
    (file,) = (file for file in FILES if file.name.startswith(number))
    space = {"np": np, "math": math, "pd": pd}
    for cell in cells(file, "code", "teach"):
        if f"def {name}(" in cell.source:
            exec(cell.source, space)
    return space[name]


def window_ends():
    """The HU at which the notebook's window of level -600 and width 1500 leaves black and white."""
    hu = np.arange(-3000, 3000)
    grey = taught("02", "window")(hu, level=-600, width=1500)
    return hu[grey == 0].max(), hu[grey == 1].min()


def distance_after_the_stretch():
    """Where the 64 new slices lie, in mm, when every old one holds its own position."""
    positions = (np.arange(41) + 0.5) * 8
    new = taught("02", "resampling_matrix")(41, 64) @ positions
    return np.diff(new[5:-5]).mean()


def linked_by_height(k, n_a, n_b):
    """The slice of b whose bottom and top in height enclose the middle of slice k of a."""
    edges = np.linspace(0, 1, n_b + 1)
    return int(np.searchsorted(edges, (2 * k + 1) / (2 * n_a), side="right")) - 1


def steps_of_full_rate():
    factor = taught("05", "learning_rate_factor")
    return [step for step in range(100) if factor(step, 100, 10) == 1]


def always_covid():
    truth, called = np.repeat([0, 1], [76, 255]), np.ones(331)
    return accuracy_score(truth, called), balanced_accuracy_score(truth, called)


def wilson_of_scipy():
    interval = binomtest(16, 20).proportion_ci(method="wilson")
    return interval.low, interval.high


def black_rows():
    """Of a white image of 400 x 200 pixels, letterboxed as the course does it."""
    seen = covid_ct.letterbox(np.full((200, 400), 255, np.uint8), (224, 224))
    return (int((seen == 0).all(axis=1).sum()),)


def f1_of_scikit_learn():
    truth = np.repeat([1, 0], [98, 105])
    return (f1_score(truth, np.repeat([1, 0, 1, 0], [81, 17, 14, 91])),)


def experiment_that_changes_the_others_alone():
    """Of what each experiment changes between the two judgements that it compares."""
    changes = {"a": {"seed"}, "b": {"others"}, "c": {"picture"}, "d": {"others", "scanner"}}
    return ([letter for letter, what in changes.items() if what == {"others"}][0],)


def steps_to_half_new():
    """How often MoCo's slow network follows a fast one until it has come half-way."""
    encoder = nn.Linear(1, 1)
    encoder.features = 1
    model, n_steps = moco.MoCo(encoder, momentum=0.99), 0
    fast, slow = (network[0].weight.data for network in (model.encoder_q, model.encoder_k))
    fast.fill_(1.0)
    slow.fill_(0.0)
    while slow.item() < 0.5:
        model.momentum_update()
        n_steps += 1
    return (n_steps,)


def plan_by_sizes():
    """Enough for 40 hours of machines and 600 of labelling, from a study as an array."""
    n_bytes = np.empty((400, 512, 512), np.int16).nbytes / 2
    return 4e5 / (40 * 3600), 4e5 * n_bytes * 8 / 1e9 / (40 * 3600), 4e5 * 5 / 60 / 600


RIGHT = torch.zeros(1, dtype=torch.long)
FOLLOWS = {
    "1.1": ("published_task", lambda: ({f"CT-{k}": int(k > 0) for k in range(5)},)),
    "1.2": ("shared_patients", lambda: (lambda a, b: a.merge(b, on="patient").patient.nunique(),)),
    "2.1": ("lung_window", window_ends),
    "2.2": ("slice_distance", lambda: (distance_after_the_stretch(),)),
    "3.1": ("lesion_hu", lambda: (ndimage.mean(HU, MASK, 1), HU, MASK)),
    "3.2": ("linked", lambda: (linked_by_height,)),
    "4.1": (
        "lstm_parameters",
        lambda: (networks.count_parameters(nn.LSTM(96, 64, bidirectional=True)),),
    ),
    "4.2": ("pooling", lambda: (average_by_network,)),
    "5.1": ("learning_rate", lambda: (steps_of_full_rate()[0],)),
    "5.1, the other": ("learning_rate", lambda: (steps_of_full_rate()[1],)),
    "5.2": (
        "positive_weight",
        lambda: (taught("05", "positive_weight")(np.repeat([0, 1], [60, 20])),),
    ),
    "6.1": ("always_covid", always_covid),
    "6.2": ("seed_interval", wilson_of_scipy),
    "6.2, as taught": ("seed_interval", lambda: taught("06", "wilson")(16, 20)[1:]),
    "8.1": ("preprint_doi", lambda: (covid_ct.normalise_doi,)),
    "8.2": ("accuracy_without_copies", lambda: (np.repeat([1, 0], [168, 35])[2:].mean(),)),
    "9.1": ("black_rows", black_rows),
    "9.2": ("f1_of_covid", f1_of_scikit_learn),
    "9.3": ("experiment", experiment_that_changes_the_others_alone),
    "10.1": ("loss_of_guessing", lambda: (cross_entropy(torch.zeros(1, 513), RIGHT).item(),)),
    "10.2": ("half_life", steps_to_half_new),
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


def test_two_steps_have_the_full_rate():
    assert steps_of_full_rate() == [9, 10]


@pytest.mark.parametrize(
    ("check", "answers"),
    [
        ("slice_distance", [(5.125,), (5.13,), (5.12,), (5.1,), ("5.1",)]),
        ("always_covid", [(0.77, 0.5), (0.7704, 0.5)]),
        ("seed_interval", [(0.58, 0.92), (0.584, 0.919)]),
        ("accuracy_without_copies", [(0.826,), (0.83,), (0.8259,), (np.float32(166 / 201),)]),
        ("f1_of_covid", [(0.84,), (0.839,), (162 / 193,)]),
        ("loss_of_guessing", [(6.24,), (6.2,), (6.2403,)]),
        ("half_life", [(69,), (68.97,), (np.int64(69),)]),
        ("lstm_parameters", [(82944,), (82944.0,)]),
    ],
)
def test_rounded_answers_are_right(check, answers, capsys):
    for numbers in answers:
        assert getattr(checks, f"check_{check}")(*numbers) is True, numbers


def test_lesion_hu_without_a_mask_says_so(capsys):
    assert checks.check_lesion_hu(..., HU, None) is None
    assert "without a lesion mask" in capsys.readouterr().out
