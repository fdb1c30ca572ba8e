"""Every exercise: its solution passes, usual slips get their hint, a stub does no harm."""

from types import SimpleNamespace

import numpy as np
import pytest
from notebook_tools import FILES, exercises

from helpers.course import checks
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


def test_every_check_belongs_to_an_exercise():
    used = {
        stub.source.split("checks.")[-1].split("(")[0] for f in FILES for stub, _ in exercises(f)
    }
    assert used == {name for name in dir(checks) if name.startswith("check_")}


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
        ("lesion_hu", (HU[~MASK].mean(), HU, MASK), "outside of the lesion"),
        ("lesion_hu", ((HU * MASK).mean(), HU, MASK), "counts them"),
        ("lesion_hu", (HU.mean(), HU, MASK), "Index the HU"),
        ("linked", (lambda k, n_a, n_b: k,), "no slice 39"),
        ("preprint_doi", (lambda name: "",), "10.1101/2020.03.22.20034041"),
        ("preprint_doi", (lambda name: f"10.1101/{name.split('-')[0]}",), "kjr-21-e24-p5-29.png"),
        ("preprint_doi", (lambda name: name[99],), "IndexError"),
        ("accuracy_without_copies", (166 / 203,), "still among"),
        ("accuracy_without_copies", (168 / 203,), "both numbers"),
        ("black_rows", (56,), "two black bars"),
        ("black_rows", (0,), "stretched"),
        ("black_rows", (100,), "400"),
        ("f1_of_covid", (0.8545,), "of the others"),
        ("f1_of_covid", (81 / 98,), "sensitivity"),
        ("f1_of_covid", (172 / 203,), "TP = 81"),
        ("f1_of_covid", (160 / 191,), "TP = 81"),
        ("loss_of_guessing", (0.693147,), "two answers"),
        ("loss_of_guessing", (np.log(512),), "counts too"),
        ("loss_of_guessing", (1 / 513,), "logarithm"),
        ("half_life", (50,), "what is left"),
        ("half_life", (100,), "0.99 **"),
        ("cores_of_one_client", (238.4,), "eight bits"),
        ("cores_of_one_client", (298,), "a core makes 10"),
        ("cores_of_one_client", (3,), "through the link"),
        ("cores_of_one_client", (31,), "through the link"),
        ("loss_of_shares", (0.8,), "as much as"),
        ("loss_of_shares", (1.6,), "counts the same"),
        ("linked", (lambda k, n_a, n_b: (k + 0.5) / n_a * n_b,), "whole number"),
        ("linked", (lambda k, n_a, n_b: k * n_b // n_a,), "k + 0.5"),
        ("linked", (lambda k, n_a, n_b: n_b[k],), "TypeError"),
        ("slice_distance", (8,), "before"),
        ("slice_distance", (12.49,), "closer"),
        ("lstm_parameters", (41472,), "one direction"),
        ("lstm_parameters", (2 * 4 * (64 * 96 + 64 * 64 + 64),), "two bias"),
        ("lstm_parameters", (2 * 10368,), "one gate"),
        ("pooling", (lambda f, s: f.mean(0),), "the mean"),
        ("pooling", (lambda f, s: s @ f,), "softmax"),
        ("pooling", (lambda f, s: f.sum(1),), "shape"),
        ("positive_weight", (1 / 3,), "other way"),
        ("positive_weight", (0.75,), "share"),
        ("learning_rate", (100,), "cosine"),
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


@pytest.mark.parametrize("f1", [162 / 193, 0.839, 0.84])
def test_f1_of_covid_takes_exact_and_rounded_answers(f1, capsys):
    assert checks.check_f1_of_covid(f1) is True
    assert ".839" in capsys.readouterr().out


@pytest.mark.parametrize("n_cores", [29, 29.8, 10e9 / 8 / (64 * 256 * 256) * 0.1, 30])
def test_cores_of_one_client_takes_exact_and_rounded_answers(n_cores, capsys):
    assert checks.check_cores_of_one_client(n_cores) is True
    assert "30th core has to wait" in capsys.readouterr().out


def test_lesion_hu_without_a_mask_says_so(capsys):
    assert checks.check_lesion_hu(..., HU, None) is None
    assert "without a lesion mask" in capsys.readouterr().out
