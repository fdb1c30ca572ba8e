"""Every notebook in order, quick, on the phantom: what comes out, and where it is written."""

from __future__ import annotations

import filecmp
import json

import nbformat
import numpy as np
import pytest
from notebook_tools import FILES, check_11, results

from helpers.course import runner, runs


def test_quick_course_runs_and_summarises(quick_runs, capsys):
    for file in FILES:
        assert results(quick_runs, file.stem[:2])["summary"]
        executed = nbformat.read(quick_runs / "notebooks" / file.name, 4)
        for cell in executed.cells:
            for output in cell.get("outputs", []):
                assert output.get("name") != "stderr", output.get("text")


def test_quick_01_describes_the_cohort(quick_runs):
    found = results(quick_runs, "01")
    assert found["categories"] == {"CT-0": 60, "CT-2": 44, "CT-3": 16}
    assert found["n_damaged"] == 0 and sum(found["parts"].values()) == 120
    assert found["leaked_by_slice_split"] > 0.95


def test_quick_02_is_right(quick_runs):
    found = results(quick_runs, "02")
    assert found["largest_difference"] <= 1
    assert 0.5 < found["black_after_cast"] < 0.95
    assert found["shape"][1:] == [512, 512]


def test_quick_03_makes_the_gifs(quick_runs):
    found = results(quick_runs, "03")
    assert len(found["gifs"]) == 4 and max(found["gifs"].values()) < 2.5e6
    for name, shape in found["gif_shapes"].items():
        assert shape[1:3] == ([512, 512] if name.endswith("raw") else [256, 256])
        assert shape[0] == 64 or name.endswith("raw")
    assert found["bytes_of_all_frames"] < 3e6 * 43 / 40


def test_quick_04_builds_an_lstm_and_finds_out_what_it_is_good_for(quick_runs):
    found = results(quick_runs, "04")
    assert 0.4 < found["first_loss"] < 1.0 and found["last_loss"] < 0.1
    assert found["apart"] < 1e-5, "the LSTM by hand is not torch's"
    worth = found["worth"]
    assert worth["rising? Bi-LSTM"][0] > 0.9
    low, high = worth["rising? mean"][1:]
    assert low < 0.5 < high, "a mean cannot know an order"
    assert min(worth[f"ill? {kind}"][0] for kind in ("Bi-LSTM", "mean")) > 0.8


def test_quick_05_learns_three_ways(quick_runs):
    found = results(quick_runs, "05")
    history = found["history"]
    assert found["losses_by_hand"] == pytest.approx(found["losses_by_fit"], rel=1e-5)
    assert max(found["weights_apart"].values()) < 1e-5
    assert min(line["validation_loss"] for line in history) < 0.5
    assert max(line["validation_auc"] for line in history) > 0.9
    ways = found["histories"]
    assert list(ways) == ["from scratch", "frozen", "fine-tuned"]
    for name in ("frozen", "fine-tuned"):
        assert max(ways[name]["validation_auc"]) > 0.9
    trained = found["trained"]
    assert trained["from scratch"] < trained["frozen"] < trained["fine-tuned"]
    # an epoch on features is much faster than one on scans, on any machine
    assert np.median(ways["frozen"]["seconds"]) < np.median(ways["from scratch"]["seconds"]) / 3


def test_quick_06_frozen_eyes_are_good_here_and_elsewhere(quick_runs):
    found = results(quick_runs, "06")
    scores, elsewhere = found["scores"], found["elsewhere"]
    value, low, high = scores["Bi-LSTM, frozen"]["auc"]
    print(f"frozen: AUC {value:.3f} [{low:.3f}, {high:.3f}], elsewhere {elsewhere}")
    assert found["n_read"] == 102 and found["n_test"] == 30
    assert value > 0.95 and low > 0.9 and high <= 1
    assert elsewhere["Bi-LSTM, frozen, elsewhere"][0] > 0.85
    assert elsewhere["Bi-LSTM, frozen, elsewhere"][0] > elsewhere["HU histogram, elsewhere"][0]
    assert len(elsewhere) == 6


def test_quick_06_beats_the_baselines(quick_runs):
    scores = results(quick_runs, "06")["scores"]
    value, low, high = scores["Bi-LSTM, scratch"]["auc"]
    print(f"from scratch: test AUC {value:.3f} [{low:.3f}, {high:.3f}]")
    assert value > 0.85 and low > 0.65 and high <= 1
    assert value >= scores["HU histogram"]["auc"][0]
    assert scores["HU histogram"]["auc"][0] < 0.9


def test_quick_06_says_what_its_cells_show(quick_runs):
    found = results(quick_runs, "06")
    by_hand, ready, by_scan = (found["intervals"][n] for n in ("by hand", "ready", "by scan"))
    assert by_hand == pytest.approx(ready, abs=0.02)
    assert by_scan[2] - by_scan[1] < 0.85 * (by_hand[2] - by_hand[1])
    assert found["lowest_ppv"]["0.01"] < 0.5 < found["lowest_ppv"]["0.5"]
    home, other = found["mended"]["home"], found["mended"]["other"]
    for line in (home, other):
        assert line["AUC after"] == pytest.approx(line["AUC before"])
    assert abs(home["Brier after"] - home["Brier before"]) < 0.015
    assert other["T"] > 1.2 and other["Brier after"] < other["Brier before"]
    assert other["Brier after"] > 3 * home["Brier after"]


def test_quick_07_tells_an_lstm_from_a_pool_by_the_right_question(quick_runs):
    controls = results(quick_runs, "07")["controls"]
    assert controls["order, Bi-LSTM"][0] > 0.9 and controls["order, Bi-LSTM"][1] > 0.5
    low, high = controls["order, mean"][1:]
    assert low < 0.5 < high, "a mean cannot know an order"
    assert controls["needle, max"][0] > controls["needle, mean"][0] + 0.1


def test_quick_07_scores_explanations_beside_twins_that_know_nothing(quick_runs):
    found = results(quick_runs, "07")
    ranks = {name: line["own lesion"] for name, line in found["ranks"].items()}
    for kind in ("attention", "slices hidden"):
        trained = ranks[f"frozen, trained: {kind}"]
        assert trained > 0.5
        for twin in ("untrained", "labels shuffled"):
            assert trained > ranks[f"frozen, {twin}: {kind}"] + 0.05, (kind, twin)
    assert min(found["untrained"]) < 0 < 0.2 < max(found["untrained"]), "luck"
    assert max(found["untrained"]) < ranks["frozen, trained: attention"]
    voxels = found["voxels"]
    for kind in ("input gradient", "occlusion"):
        trained, untrained = (voxels[f"{kind}, {name}"] for name in ("trained", "untrained"))
        assert trained["own lesion"] > untrained["own lesion"]
    own, others = found["ranks"]["frozen, trained: attention"].values()
    assert own - others < 0.3, "most of it is anatomy"


def test_quick_07_falls_for_the_shortcut_and_is_repaired(quick_runs):
    found = results(quick_runs, "07")
    shortcut, away = found["shortcut"], "another hospital"
    print({name: line[away] for name, line in shortcut.items()})
    assert shortcut["as they are"]["validation"][0] > 0.95
    assert shortcut["as they are"][away][0] < 0.7
    assert found["shortcut_without_lungs"][1] > 0.5
    assert shortcut["harmonise"][away][0] > 0.85
    for repair in ("balance", "augment"):  # which do not take away what was looked at
        assert shortcut[repair][away][0] < shortcut["harmonise"][away][0]
    assert found["leak"]["slice"][0] > 0.75
    low, high = found["leak"]["patient"][1:]
    assert low < 0.5 < high, "a coin cannot be learned"


def test_quick_07_writes_a_card_with_its_own_numbers(quick_runs):
    found = results(quick_runs, "07")
    (card,) = (quick_runs / "07_what_did_it_learn").glob("*.md")
    text = card.read_text("utf-8")
    for name in ("inside", "outside", "without_lungs"):
        value, low, high = found[name]
        assert f"{value:.2f} [{low:.2f}, {high:.2f}]" in text
    assert found["inside"][0] > 0.95 and found["without_lungs"][1] < 0.5


def test_quick_08_finds_what_was_planted(quick_runs):
    found = results(quick_runs, "08")
    root = quick_runs.parent / "data" / "covid-ct-phantom-quick"
    truth = json.loads((root / "twin_truth.json").read_text())
    pairs = {
        frozenset((pair["image_a"], pair["image_b"])) for pair in found["pairs_across_classes"]
    }
    assert pairs == {frozenset(pair) for pair in truth["near_duplicates"]}
    assert found["papers_in_two_parts"] == len(truth["papers_in_two_parts"]) == 2
    assert found["patients_in_two_parts"] == 0
    assert found["format_rule"][0] > 0.65 > found["brightness"][0]
    assert found["accepted"] == ["turned.png"] and found["nothing_lost"]
    assert found["merged"] == found["n_images"] + 1 == 261


def test_quick_09_learns_on_both_splits(quick_runs):
    found = results(quick_runs, "09")
    small = [found["scores"][f"small CNN, {split}"]["auc"] for split in ("official", "clean")]
    print("small CNN test AUC", small)
    assert all(value > 0.7 and low > 0.55 and high <= 1 for value, low, high in small)
    assert "DenseNet169, official" in found["scores"] and found["apart"] < 1e-4
    covid, others = (
        found["direction"][f"{who} positive"] for who in ("COVID is", "the others are")
    )
    assert covid["accuracy"] == others["accuracy"] and covid["recall"] != others["recall"]


def test_quick_10_recognises_and_fine_tunes(quick_runs):
    found = results(quick_runs, "10")
    assert max(found["apart"].values()) < 1e-4
    history = found["history"]
    # of one batch of 64 an epoch, so one value says little; chance is 1 / 64
    assert np.mean([row["top1_accuracy"] for row in history[-10:]]) > 2 / 64
    assert history[-1]["train_loss"] < 5
    parts = results(quick_runs, "09"), found
    base = [part["scores"] for part in parts]
    assert base[1]["random start, official"] == base[0]["small CNN, official"]
    value, low, high = found["gain"]
    assert low <= value <= high and low < high
    assert found["scores"]["MoCo, official"]["auc"][0] > 0.65
    assert found["n_unlabelled"]["3-D cohort, training"] == 4 * 72


def test_quick_11_loses_workers_and_nothing_else(quick_runs):
    found = results(quick_runs, "11")
    check_11(found)
    assert found["engine"] == "Dask" and found["n_studies"] == 120 and len(found["one"]) == 8
    assert 1 <= found["handed_out_again"] <= 24
    assert 0 <= found["finished_twice"] <= found["handed_out_again"]


def test_quick_12_finds_the_planted_faults_and_no_others(quick_runs):
    found = results(quick_runs, "12")
    assert (found["n_studies"], found["n_patients"], found["n_kept"]) == (33, 32, 26)
    checks = [line["check"] for line in found["findings"]]
    planted = {"problem": 1, "content": 1, "air": 1, "lung_base": 1, "vessels": 4}
    assert {check: checks.count(check) for check in checks} == planted
    traits = {name: apart for name, *_, apart in found["traits"]}
    assert [name for name, apart in traits.items() if apart] == ["lung"]
    for written in (*quick_runs.parent.glob("data/**/*.csv"), *quick_runs.glob("12*/*.json")):
        assert "Phantom^" not in written.read_text(), "a patient's name"
    print(found["auc"])
    assert found["auc"]["trained here"][0] > 0.75 and found["auc"]["course"][0] > 0.7


def test_the_phantoms_model_looks_at_real_studies(quick_runs, real_data):
    """It answers; what it answers means nothing, since the phantom is all it has seen."""
    data = runs.prepare("phantom", "quick", quick_runs.parent / "data")
    model, _ = runs.train(data, "frozen", runs_dir=quick_runs)
    external = runs.predict_files(real_data / "volumes", model, data.profile.size)
    assert len(external) == 8
    assert all(0 <= line["probability"] <= 1 for line in external)


@pytest.mark.faults(
    "Security",
    "notebooks that write elsewhere than to DATA_DIR and RUNS_DIR",
    cases=len(FILES),
)
def test_no_notebook_writes_outside_its_folders(quick_course):
    assert sorted(path.name for path in quick_course.folder.iterdir()) == ["data", "runs"]
    assert sorted(path.name for path in quick_course.code.iterdir()) == ["docs", "helpers"]
    compared = filecmp.dircmp(
        runner.ROOT / "helpers", quick_course.code / "helpers", ["__pycache__"]
    )
    assert not compared.right_only
    visible = [path.name for path in quick_course.home.iterdir() if path.name[0] != "."]
    assert not visible, "in the home folder"
    left = [path.name for path in quick_course.temporary.iterdir()]
    assert all(name.startswith(("torch", "dask-")) for name in left), (
        "more than the libraries leave"
    )
