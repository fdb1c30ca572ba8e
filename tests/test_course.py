"""What every notebook begins and ends with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from helpers.course import runs, sources
from helpers.ct.cohort import CohortError
from helpers.learn import features, networks, training
from helpers.scores.metrics import Interval


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny phantom cohort, prepared."""
    folder = tmp_path_factory.mktemp("course")
    return folder, runs.prepare("phantom", "tiny", folder / "data")


def test_prepare_gives_parts_labels_and_rows(made):
    folder, data = made
    assert data.volumes.shape == (16, 16, 48, 48)
    parts = {part: set(data.rows(part)) for part in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 16 == len(set.union(*parts.values()))
    for line in data.table.itertuples():
        assert data.labels[line.row] == (line.category != "CT-0")
        assert line.row in parts[line.part]
    again = runs.prepare("phantom", "tiny", folder / "data")
    assert again.table.equals(data.table)
    assert "phantom" in data.caption.lower()


def test_the_phantom_of_another_hospital_is_a_data_set_of_its_own(made, tmp_path):
    data = runs.prepare("phantom-elsewhere", "tiny", tmp_path)
    assert data.root == tmp_path / "phantom-elsewhere-tiny"
    assert data.caption == "Synthetic phantom of another hospital, not a patient."
    assert data.run_name.startswith("phantom-elsewhere-tiny-") and "tiny-tiny" not in data.run_name
    home, away = (pd.read_csv(d.root / "phantom_truth.csv") for d in (made[1], data))
    assert set(home.scanner) <= set("ABCD") and set(away.scanner) <= set("EFG")
    assert home.category.tolist() == away.category.tolist()
    assert not set(home.seed) & set(away.seed), "a patient of both"


def test_another_seed_is_another_split_of_the_same_cohort(made):
    folder, data = made
    other = runs.prepare("phantom", "tiny", folder / "data", seed=1)
    np.testing.assert_array_equal(other.volumes, data.volumes)
    assert not other.table.part.equals(data.table.part)
    assert other.run_name != data.run_name


def test_a_folder_is_a_data_set_and_stays_untouched(made, tmp_path):
    folder, data = made
    before = sorted(path for path in data.root.rglob("*"))
    mine = runs.prepare(str(data.root), "tiny", tmp_path / "work")
    np.testing.assert_array_equal(mine.volumes, data.volumes)
    assert sorted(path for path in data.root.rglob("*")) == before
    assert (tmp_path / "work").exists()


def test_wrong_names_are_refused_in_words(tmp_path):
    with pytest.raises(CohortError, match="no studies there; .* mosmed, kaggle, a folder"):
        runs.prepare(str(tmp_path), "tiny", tmp_path)
    with pytest.raises(ValueError, match="PROFILE"):
        runs.prepare("phantom", "huge", tmp_path)


@pytest.fixture(scope="module")
def elsewhere(made):
    return runs.prepare("phantom-elsewhere", "tiny", made[0] / "data")


def test_frozen_features_are_kept_beside_the_cache(made, monkeypatch):
    _, data = made
    found = runs.inputs(data, "frozen")
    assert found.shape == (16, 16, 2560) and found.dtype == np.float16
    cache = Path(data.volumes.filename).parent
    assert len([*cache.glob("features-*/*.npy")]) == 16
    monkeypatch.setattr(features, "encode_slices", lambda *_, **__: 1 / 0)
    assert np.array_equal(runs.inputs(data, "frozen"), found)
    assert runs.inputs(data, "bilstm") is data.volumes
    turned = replace(data, table=data.table[::-1])
    assert np.array_equal(runs.inputs(turned, "frozen"), found[::-1])
    assert np.array_equal(runs.inputs(turned, "cnn3d"), data.volumes[::-1])


def test_every_scan_is_predicted_by_networks_that_have_not_seen_its_patient(
    made, elsewhere, tmp_path
):
    _, data = made
    table, outside = runs.cross_validate(data, "frozen", tmp_path, elsewhere, n_views=1)
    assert table.study.tolist() == data.table.study.tolist()
    assert np.array_equal(table.probability, table["seed 0"]) and len(outside) == 16
    for column in (table.probability, outside.probability):
        assert column.between(0, 1).all() and column.std() > 0
    kept = pd.read_csv(next(tmp_path.glob("frozen-*-folds-1views/predictions.csv")))
    np.testing.assert_allclose(kept.probability, table.probability)
    again, nothing = runs.cross_validate(data, "frozen", tmp_path, n_views=1)
    assert again.equals(table) and nothing is None


def test_fine_tuning_begins_with_what_was_learned_behind_the_frozen_encoder(made, tmp_path):
    _, data = made
    frozen, _ = runs.train(data, "frozen", runs_dir=tmp_path)
    begun, fit = {}, training.fit

    def look(model, *arguments, **options):
        if model.encoder is None:
            return fit(model, *arguments, **options)
        begun.update({name: value.clone() for name, value in model.state_dict().items()})
        return pd.DataFrame()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "fit", look)
        model, _ = runs.train(data, "finetuned", runs_dir=tmp_path)
    for name, value in frozen.state_dict().items():
        assert torch.equal(begun[name], value), name
    published = networks.Lite0Encoder().state_dict()
    assert all(torch.equal(begun[f"encoder.{name}"], w) for name, w in published.items())
    kept = [p.requires_grad for p in model.encoder.parameters()]
    assert kept.index(True) > 10 and all(kept[kept.index(True) :])
    _, history = runs.train(data, "finetuned", runs_dir=tmp_path)
    assert len(history) == 1 and np.isfinite(history.train_loss).all()


def test_a_trained_model_is_loaded_and_predicts_the_same(made, tmp_path):
    _, data = made
    first = runs.predictions(data, "cnn3d", runs_dir=tmp_path)
    best = next(tmp_path.glob("cnn3d-*/best.pt"))
    time = best.stat().st_mtime_ns
    second = runs.predictions(data, "cnn3d", runs_dir=tmp_path)
    assert best.stat().st_mtime_ns == time, "trained again"
    assert first.equals(second)
    written = pd.read_csv(best.parent / "predictions.csv")
    np.testing.assert_allclose(written.probability, first.probability)
    assert first.probability.between(0, 1).all()


def test_results_are_plain_json(tmp_path):
    results = {
        "array": np.arange(2),
        "number": np.float32(0.5),
        "interval": Interval(0.8, 0.6, 0.9),
        "table": pd.DataFrame({"a": [1]}),
        "summary": {"AUC": str(Interval(0.8, 0.6, 0.9))},
    }
    path = runs.save_results("01_x", results, tmp_path)
    assert path == tmp_path / "01_x" / "results.json"
    read = json.loads(path.read_text())
    assert read["array"] == [0, 1] and read["number"] == 0.5 and read["table"] == [{"a": 1}]
    assert read["interval"] == [0.8, 0.6, 0.9] and read["summary"]["AUC"] == "0.80 [0.60, 0.90]"
    assert list(path.parent.iterdir()) == [path]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    data = runs.prepare("phantom", "tiny", "~/data")
    runs.save_results("01_x", {}, "~/runs")
    sources.get_images("phantom", "~/data", "tiny")
    assert data.root == tmp_path / "home/data/phantom-tiny"
    mine = runs.prepare("~/data/phantom-tiny", "tiny", "~/mine")
    np.testing.assert_array_equal(mine.volumes, data.volumes)
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["data", "mine", "runs"]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_study_that_was_replaced_is_not_taken_for_the_one_trained_on(made, tmp_path):
    shutil.copytree(made[1].root, tmp_path / "mine", ignore=shutil.ignore_patterns("cache"))
    data = runs.prepare(str(tmp_path / "mine"), "tiny", tmp_path / "data")
    runs.train(data, "cnn3d", runs_dir=tmp_path / "runs", epochs=1)
    path = data.root / data.table[data.table.part == "train"].file.iloc[0]
    image = nib.load(path)
    upside_down = np.asarray(image.dataobj)[..., ::-1].copy()
    nib.save(nib.Nifti1Image(upside_down, image.affine, image.header), path)
    changed = runs.prepare(str(tmp_path / "mine"), "tiny", tmp_path / "data")
    assert not np.array_equal(changed.volumes, data.volumes)
    with pytest.raises(ValueError, match="made with data=.*start again") as refused:
        runs.predictions(changed, "cnn3d", runs_dir=tmp_path / "runs")
    assert "\n" not in str(refused.value)
