"""The benchmarks' arithmetic, tables and verdicts; never how long anything takes."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from helpers.ct.preprocessing import preprocess
from helpers.ct.studies import read_study
from helpers.scores import metrics
from tests.benchmarks import accuracy, course, dicom, growth, preprocessing, training

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the benchmarks measure memory in ways Windows does not have"
)
needs_monai = pytest.mark.skipif(
    importlib.util.find_spec("monai") is None,
    reason="needs monai: pip install -r tests/benchmarks/requirements.txt",
)


def record(model, batch, variant, steps=None, own=1.0, whole=2.0, status="ok", **more):
    found = {"model": model, "batch": batch, "variant": variant, "status": status} | more
    if steps:
        found |= {"steps": steps, "first_step": 9.0, "own_gb": own, "whole_gb": whole}
    return found


RECORDS = [
    record("bilstm", 2, "fp32", [1.0, 2.0, 9.0], own=1.0),
    record("bilstm", 2, "bf16", [1.0], own=0.5),
    record("bilstm", 4, "fp32", [4.0], own=2.0),
    record("cnn3d", 2, "fp32", [8.0, 12.0], own=6.0, whole=15.5),
    record("cnn3d", 2, "bf16", status="out of memory", memory_limit_gb=20.0),
]


def test_ratios_against_plain_and_against_ours():
    found = training.ratios(RECORDS[1], RECORDS)
    assert found == {"time/plain": 0.5, "memory/plain": 0.5, "time/ours": 1.0, "memory/ours": 1.0}
    found = training.ratios(RECORDS[3], RECORDS)
    # medians: 10 s for the opponent, 2 s for ours
    assert found == {"time/plain": 1.0, "memory/plain": 1.0, "time/ours": 5.0, "memory/ours": 6.0}


def test_no_ratio_to_what_was_not_measured():
    assert set(training.ratios(RECORDS[4], RECORDS).values()) == {None}
    alone = training.ratios(RECORDS[3], RECORDS[3:])
    assert alone["time/plain"] == 1.0 and alone["time/ours"] is None
    other_batch = training.ratios(record("cnn3d", 4, "fp32", [8.0]), RECORDS)
    assert other_batch["time/ours"] == 2.0


def test_table_of_steps():
    lines = training.table(RECORDS)
    assert lines[0]["s/step"] == "2.00" and lines[0]["steps"] == "3"
    assert lines[0]["scans/s"] == "1.00"
    assert lines[0]["s/epoch"] == "140"  # 70 steps of 2 scans, 2 s each
    assert lines[2]["s/epoch"] == "140" and lines[2]["scans/s"] == "1.00"
    assert lines[3]["time/ours"] == "5.00" and lines[3]["failed"] == ""
    assert lines[4]["failed"] == "out of memory" and lines[4]["s/step"] == ""


def test_both_kinds_of_table():
    lines = [{"a": "1", "bb": "x"}, {"a": "333", "bb": ""}]
    assert training.as_text(lines) == "a    bb\n1    x\n333"
    assert training.as_text(lines, markdown=True).splitlines() == [
        "| a | bb |",
        "| --- | --- |",
        "| 1 | x |",
        "| 333 |  |",
    ]


def test_what_fits_a_16_gb_card():
    assert training.fits_card(record("bilstm", 2, "fp32", [1.0], whole=14.9)) is True
    assert training.fits_card(record("bilstm", 2, "fp32", [1.0], whole=15.1)) is False
    assert training.fits_card(RECORDS[4]) is False  # 20 GB were not enough
    small = record("cnn3d", 2, "bf16", status="out of memory", memory_limit_gb=6.0)
    assert training.fits_card(small) is None
    assert training.fits_card(record("cnn3d", 2, "bf16", status="not done in 9 s")) is None
    lines = list(training.card_lines(RECORDS, "cpu"))
    assert len(lines) == 3 and "not a card's" in lines[0]
    assert lines[2].endswith("fp32 no (15.5 GB), bf16 no")


def test_the_grid_that_is_run():
    default = training.configurations(None, None, None, "cpu")
    assert len(default) == len(set(default)) and not any("fp16" in v for _, _, v in default)
    assert {b for m, b, _ in default if m == "bilstm"} == {2, 4, 8, 16}
    assert {b for m, b, _ in default if m != "bilstm"} == {2}
    assert len(training.configurations(None, None, None, "cuda")) == 3 * 4 * 3 * 4
    chosen = training.configurations(["cnn3d"], [2], ["fp32", "bf16+compile"], "cpu")
    assert chosen == [("cnn3d", 2, "fp32"), ("cnn3d", 2, "bf16+compile")]


@pytest.mark.parametrize("name", ["bilstm", "cnn3d"])
def test_options_change_the_memory_format_and_keep_the_gradients(name, one_thread):
    rank = 4 if name == "bilstm" else 5
    layout = torch.channels_last if rank == 4 else torch.channels_last_3d
    model = training.build(name, ["channels_last"])
    kernels = [p for p in model.parameters() if p.ndim == rank and p.shape[1] > 1]
    assert kernels and all(p.is_contiguous(memory_format=layout) for p in kernels)
    gradients = []
    for options in ([], ["checkpoint"]):
        model = training.build(name, options)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model(torch.linspace(0, 1, 2 * 16 * 32 * 32).view(2, 16, 32, 32))[0].sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_an_unknown_option_and_missing_memory_are_lines(tmp_path):
    job = {"size": [16, 32, 32], "steps": 1, "warm_up": 1, "seconds": 1, "device": "cpu"}
    job |= {"batch": 2, "model": "bilstm", "variant": "fp32+faster"}
    job["volumes"] = training.random_volumes(tmp_path, 2, job["size"])
    assert "faster" in training.measure(job)["status"]
    assert "fp16" in training.measure(job | {"variant": "fp16"})["status"]


def test_tiny_run_of_the_training_benchmark(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    words = "--size 16 48 48 --batches 2 --steps 2 --variants fp32 --models bilstm cnn3d"
    path = tmp_path / "steps.json"
    training.main([*words.split(), "--device", "cpu", "--json", str(path)])
    printed = capsys.readouterr().out
    records = json.loads(path.read_text())["records"]
    assert [r["status"] for r in records] == ["ok", "ok"]
    assert all(r["own_gb"] > 0 and r["whole_gb"] > r["own_gb"] for r in records)
    assert all(min(r["steps"]) > 0 for r in records)
    assert "Bi-LSTM (ours)" in printed and "fits a 16 GB card" in printed


@needs_monai
def test_monai_network_has_the_course_s_interface(one_thread):
    logits, attention = training.DenseNet121()(torch.rand(2, 32, 32, 32))
    assert logits.shape == (2,) and attention is None


def test_verdict():
    minutes, nan = [0.5, 1.0, 1.5], np.nan
    assert accuracy.verdict(minutes, [0.6, 0.7, 0.9], [nan, 0.5, 0.8]) == "yes"
    behind = accuracy.verdict(minutes, [0.6, 0.7, 0.9], [0.5, 0.8, 0.8])
    assert behind == "no, first not at minute 1.00 (0.700 against 0.800)"
    level = accuracy.verdict(minutes, [0.6, 0.7, 1.0], [0.5, 0.6, 1.0])
    assert level == "no, first not at minute 1.50 (1.000 against 1.000)"
    late = accuracy.verdict(minutes, [nan, 0.7, 0.9], [0.5, 0.6, 0.8])
    assert late.startswith("no, first not at minute 0.50 (no epoch yet")
    assert accuracy.verdict(minutes, [0.6, 0.7, 0.9], [nan] * 3).startswith("no epoch of it")


LABELS = np.arange(40) % 2


def made_up_results():
    """Two models, two seeds: ours separates better from its first epoch on."""
    rng = np.random.default_rng(0)
    runs = []
    for model, shift, seconds in (("bilstm", 3.0, 0.2), ("cnn3d-8", 0.3, 0.4)):
        for seed in (0, 1):
            epochs = []
            for k in range(1, 7):
                scores = LABELS * shift + rng.standard_normal(40)
                epoch = {"minutes": k * seconds, "auc": roc_auc_score(LABELS, scores)}
                epochs.append(epoch | {"scores": scores.tolist()})
            runs.append({"model": model, "seed": seed, "epochs": epochs})
    settings = {"minutes": 1.0, "precision": "fp32", "profile": "quick", "device": "cpu"}
    patients = [f"p{k}" for k in range(40)]
    results = {"settings": settings, "hardware": "a machine", "labels": LABELS.tolist()}
    return results | {"patients": patients, "runs": runs}


def test_the_epoch_that_one_has_at_a_minute():
    epochs = [{"minutes": 0.2, "auc": 0.6}, {"minutes": 0.4, "auc": 0.7}]
    assert accuracy.at_minute(epochs, 0.1) is None
    assert accuracy.at_minute(epochs, 0.2)["auc"] == 0.6
    assert accuracy.at_minute(epochs, 3)["auc"] == 0.7


def test_accuracy_table_and_verdict_from_given_scores():
    results = made_up_results()
    lines = accuracy.table(results)
    assert [line["minutes"] for line in lines] == ["0.25", "0.25", "0.5", "0.5", "1", "1"]
    assert lines[1]["AUC"] == "no epoch yet" and lines[1]["ours minus it"] == ""
    ours, other = (
        np.mean([run["epochs"][k]["auc"] for run in results["runs"] if run["model"] == name])
        for name, k in (("bilstm", 4), ("cnn3d-8", 1))
    )
    assert lines[4]["AUC"].startswith(f"{ours:.2f} [")
    assert lines[5]["AUC"].startswith(f"{other:.2f} [")
    assert lines[5]["ours minus it"].startswith(f"{ours - other:.2f} [")
    assert "\n".join(accuracy.report(results)).endswith("at every minute: yes")
    for run in results["runs"]:
        run["model"] = {"bilstm": "cnn3d-8", "cnn3d-8": "bilstm"}[run["model"]]
    assert "every minute: no, first not at" in "\n".join(accuracy.report(results))


def test_interval_is_paired():
    scores = np.random.default_rng(1).standard_normal((2, 40)) + LABELS
    patients = np.arange(40)
    same = accuracy.interval(LABELS, patients, scores, scores)
    assert same == (0.0, 0.0, 0.0)
    alone = accuracy.interval(LABELS, patients, scores)
    expected = np.mean([roc_auc_score(LABELS, row) for row in scores])
    assert alone.value == pytest.approx(expected) and alone.low < expected < alone.high


def test_figure_says_what_the_data_are():
    drawn = accuracy.figure(made_up_results())
    assert "phantom" in drawn.get_supxlabel() and "not patients" in drawn.get_supxlabel()
    assert len(drawn.axes) == 1


def test_runs_go_on_only_with_the_same_settings(tmp_path):
    results, path = made_up_results(), tmp_path / "accuracy.json"
    accuracy.save(results, path)
    assert len(accuracy.resumed(results | {"runs": []}, path)["runs"]) == 4
    other = results | {"settings": {"minutes": 2.0}}
    with pytest.raises(SystemExit, match="delete it"):
        accuracy.resumed(other, path)


FOUND = {
    "ours": {"one": [0.1, 0.2, 0.1], "all": 0.05, "memory": 2.0},
    "MONAI": {"one": [0.6, 0.8, 0.5], "all": 0.4, "memory": None},
    "unpacking alone, zlib": {"one": [0.2, 0.2, 0.2], "memory": 1.0},
    "unpacking alone, isal": {"one": [0.05, 0.05, 0.08], "memory": 1.0},
}


def test_preprocessing_ratios_are_taken_round_by_round(capsys):
    assert preprocessing.ratio(FOUND, "MONAI") == pytest.approx(5.0)
    assert preprocessing.ratio(FOUND, "ours", "MONAI") == pytest.approx(0.2)
    assert preprocessing.fastest_unpacking(FOUND) == "unpacking alone, isal"
    lines = preprocessing.table(FOUND).splitlines()
    assert lines[2].split() == ["MONAI", "600", "5.0", "400"]
    assert lines[1].split()[-2:] == ["50", "2.0x"]
    preprocessing.verdict(FOUND)
    assert "ours takes 2.00 times as long as unpacking alone, isal: 50%" in capsys.readouterr().out


def test_every_way_of_preprocessing_gives_a_volume_of_the_size(tmp_path):
    import nibabel as nib

    hu = np.random.default_rng(0).integers(-1200, 400, (96, 96, 12)).astype("i2")
    path = tmp_path / "study.nii.gz"
    nib.save(nib.Nifti1Image(hu, np.diag([-1, 1, 8, 1])), path)
    for name in ("ours", "ours, as notebook 02 builds it"):
        assert np.abs(preprocessing.WAYS[name](path) - preprocess(path).astype(int)).max() <= 1
    for name, way in preprocessing.WAYS.items():
        try:
            volume = np.squeeze(np.asarray(way(path)))
        except ImportError:
            continue
        assert sorted(volume.shape) == [64, 256, 256], name
    for name, way in preprocessing.UNPACKING.items():
        if "unpacking" in name:
            try:
                assert way(path).endswith(hu.tobytes(order="F")), name
            except ImportError:
                continue


def test_growth_on_three_small_studies(tmp_path):
    from helpers.phantom import simulate

    simulate.make_cohort(tmp_path / "made", {"CT-0": 2}, 64, workers=1)
    made = sorted((tmp_path / "made").glob("studies/*/*.nii.gz"))
    (tmp_path / "root").mkdir()
    found = growth.build(made, 3, tmp_path / "root")
    assert found["studies"] == 3 and found["seconds"] > 0 and found["main_mb"] > 0
    opened = growth.open_cache(tmp_path / "root")
    assert opened["studies"] == 3
    names = [path.name for path in sorted((tmp_path / "root").glob("studies/CT-0/*"))]
    assert names == [f"study_{k:05}.nii.gz" for k in range(3)]
    again = read_study(tmp_path / "root/studies/CT-0/study_00002.nii.gz").hu
    np.testing.assert_array_equal(again, read_study(made[0]).hu)


def test_seconds_of_cells():
    cell = {"cell_type": "code", "source": ["\n", "x = 1\n"], "metadata": {}}
    timed = cell | {"metadata": {"papermill": {"duration": 1.5}}}
    assert course.cell_seconds({"cells": [cell, timed, timed | {"cell_type": "markdown"}]}) == [
        (1.5, "x = 1")
    ]
    assert 0 <= course.import_seconds("import json") < 60


def test_slowest_cells_of_the_executed_notebooks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(course, "import_seconds", lambda modules: 0.5)
    monkeypatch.setattr(course, "heaviest_imports", lambda modules: [("scipy", 0.25)])
    monkeypatch.setattr(sys, "argv", ["course", str(tmp_path)])
    course.main()
    assert "run `make course` first" in capsys.readouterr().out
    cells = [
        {
            "cell_type": "code",
            "source": [f"x = {seconds}\n"],
            "metadata": {"papermill": {"duration": seconds}},
        }
        for seconds in (1.0, 4.0, 2.0, 3.0)
    ]
    (tmp_path / "01_a.ipynb").write_text(json.dumps({"cells": cells}))
    course.main()
    text = capsys.readouterr().out
    assert "run `make course` first" not in text and "01_a: 10.0 s" in text
    shown = [line.split()[-1] for line in text.splitlines() if "x = " in line]
    assert shown == ["4.0", "3.0", "2.0"]


def test_the_middle_of_lite0_is_the_encoder_up_to_there():
    from helpers.learn.networks import Lite0Encoder
    from tests.benchmarks.pictures import Middle

    encoder, seen = Lite0Encoder().eval(), []
    encoder.maps[13].layers[0].register_forward_hook(lambda *a: seen.append(a[-1]))
    picture = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        encoder(picture)
        found = Middle().eval()(picture)
    assert seen[0].shape[2:] == (14, 14) and found.shape == (1, Middle.features)
    expected = torch.cat([seen[0].mean((2, 3)), seen[0].std((2, 3))], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_recipe_is_judged_on_both_collections_and_clear_lungs_are_negatives():
    from tests.benchmarks.pictures import judge

    rng = np.random.default_rng(0)
    labels, patients = np.arange(80) % 2, np.arange(80)
    data = SimpleNamespace(labels=labels, patients=patients, rows=lambda *_: np.arange(60, 80))
    ours, theirs = labels[:, None] + rng.normal(0, 0.1, (80, 3)), rng.normal(size=(50, 3))
    truth = (theirs.sum(axis=1) < 0).astype(int)  # the other way round
    inside, outside = judge(data, np.arange(60), (ours, theirs, truth), "official")
    assert inside.startswith("1.00") and outside.startswith("0.0")
    ill = np.flatnonzero(labels[:60] == 1)
    clear = rng.normal(0, 0.1, (30, 3))
    assert judge(data, ill, (ours, theirs, truth), "official", clear)[0].startswith("1.00")


def test_the_histograms_line_of_the_two_hospitals():
    from tests.benchmarks import hospitals

    rng = np.random.default_rng(0)
    table = pd.DataFrame({"label": np.arange(40) % 2, "row": np.arange(40)})
    table["patient"] = table.row
    volumes = rng.integers(0, 200, (40, 4, 16, 16), dtype=np.uint8)
    volumes[table.label == 1] += 30
    profile = SimpleNamespace(n_seeds=2, n_folds=4)
    data = SimpleNamespace(table=table, volumes=volumes, profile=profile)
    here, there = hospitals.histogram(data, data)
    assert list(here.filter(like="seed")) == ["seed 0", "seed 1"]
    np.testing.assert_allclose(here.filter(like="seed").mean(axis=1), here.probability)
    written = hospitals.line("histogram", here, there, np.repeat(["E", "F"], 20), 120)
    assert written.startswith("| histogram | 1.00 [") and written.endswith("| 1.00, 1.00 | 2.0 |")
    broken = here.assign(probability=1 - here.probability)
    assert "| 0.00 [" in hospitals.line("x", broken, there, np.repeat(["E", "F"], 20), 0)


def test_a_line_of_the_experiments_compares_on_the_same_patients():
    from tests.benchmarks import experiments

    rng = np.random.default_rng(0)
    labels, patients = np.arange(60) % 2, np.arange(60) // 2
    good, noise = labels + rng.normal(0, 0.3, 60), rng.normal(size=60)
    row = experiments.line("controls", "disease", "noise", labels, noise, patients, good, size=7)
    found = metrics.auc_interval(labels, noise, patients)
    assert (row["value"], row["low"], row["high"]) == tuple(found) and row["size"] == 7
    apart = metrics.auc(labels, noise) - metrics.auc(labels, good)
    assert row["difference"] == pytest.approx(apart)
    assert row["difference_low"] < apart < row["difference_high"] < 0
    same = experiments.line("controls", "disease", "same", labels, good, patients, good)
    assert [same[f"difference{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert "difference" not in experiments.line("c", "d", "w", labels, good, patients)


@pytest.mark.parametrize("change", ["", "max"])
def test_the_networks_of_the_experiments_begin_alike_in_every_fold(change):
    from tests.benchmarks import experiments

    one, other = (experiments.network(change, 8, 3, fold).state_dict() for fold in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dicom_is_read_and_listed_beside_other_readers(capsys):
    dicom.main(["--slices", "12", "--matrix", "64", "--series", "4", "--rounds", "1"])
    said = capsys.readouterr().out
    assert all(way in said for way in ("ours", "SimpleITK", "dcm2niix"))
    assert said.count("4 series of 12 slices") == 2
