"""2-D images made ready, networks trained on them, scores: on a tiny twin, and on COVID-CT."""

from __future__ import annotations

import math
import re
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from helpers.course import images, sources
from helpers.covidct import audit, covid_ct
from helpers.learn import networks, prediction, training
from helpers.learn.augmentation import PUBLISHED
from helpers.phantom import covidct_twin

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return folder, images.prepare("phantom", "tiny", folder / "data")


def test_images_are_letterboxed_in_the_tables_order(made):
    folder, data = made
    root, caption = sources.get_images("phantom", folder / "data", "tiny")
    table = covid_ct.read_collection(root)
    assert data.images.shape == (len(table), 1, 32, 32) and data.images.dtype == np.uint8
    assert data.caption == caption
    pd.testing.assert_frame_equal(data.table.drop(columns="clean_part"), table)
    for k, image in enumerate(covid_ct.read_images(root, table)):
        np.testing.assert_array_equal(data.images[k, 0], covid_ct.letterbox(image, (32, 32)))


def test_both_splits_and_what_may_be_pretrained_on(made):
    folder, data = made
    root, _ = sources.get_images("phantom", folder / "data", "tiny")
    decoded = covid_ct.read_images(root, data.table)
    pairs = audit.near_duplicates(decoded, data.table)
    clean, _ = audit.cleaned_split(data.table, pairs, 0)
    assert list(data.table.clean_part) == list(clean.clean_part)
    for split, column in (("official", "part"), ("clean", "clean_part")):
        for part in PARTS:
            assert (data.table[column].iloc[data.rows(part, split)] == part).all()
    n_official, n_clean = (
        sum(len(data.rows(part, split)) for part in PARTS) for split in ("official", "clean")
    )
    assert n_official == len(data.table) and n_clean == n_official - 4
    allowed = set(data.rows_for_pretraining())
    assert allowed
    for split in ("official", "clean"):
        for part in ("validation", "test"):
            assert not allowed & set(data.rows(part, split))


def test_decoded_once_and_anew_for_another_size(made, monkeypatch):
    folder, data = made
    calls, original = [], covid_ct.read_images
    monkeypatch.setattr(covid_ct, "read_images", lambda *given: calls.append(1) or original(*given))
    again = images.prepare("phantom", "tiny", folder / "data")
    np.testing.assert_array_equal(again.images, data.images)
    assert not calls
    larger = images.prepare("phantom", "tiny", folder / "data", size=48)
    assert larger.images.shape[-2:] == (48, 48) and len(calls) == 1
    assert larger.run_name != data.run_name


def test_a_changed_collection_is_decoded_anew(made, tmp_path):
    import shutil

    folder, data = made
    root, _ = sources.get_images("phantom", folder / "data", "tiny")
    mine = tmp_path / "mine"
    shutil.copytree(root, mine)
    first = images.prepare(str(mine), "tiny", tmp_path / "work")
    np.testing.assert_array_equal(first.images, data.images)
    before = sorted(mine.rglob("*"))
    split = mine / "Data-split/COVID/valCT_COVID.txt"
    names = split.read_text().splitlines()
    split.write_text("\n".join(names[:-1]) + "\n")
    second = images.prepare(str(mine), "tiny", tmp_path / "work")
    assert len(second.images) == len(first.images) - 1
    assert second.run_name != first.run_name
    assert sorted(mine.rglob("*")) == before, "something was written into the learner's folder"


def test_an_unknown_profile_is_refused(tmp_path):
    with pytest.raises(ValueError, match="PROFILE"):
        images.prepare("phantom", "huge", tmp_path)


def test_a_size_the_networks_cannot_take_is_refused(tmp_path):
    with pytest.raises(ValueError, match="SIZE is 16.*32"):
        images.prepare("phantom", "tiny", tmp_path, size=16)


@pytest.mark.parametrize(
    "wrong",
    [("large", "course", "official"), ("small", "ours", "clean"), ("small", "course", "test")],
)
def test_unknown_names_are_refused_before_anything_is_written(made, tmp_path, wrong):
    with pytest.raises(ValueError, match="choose one of"):
        images.train(made[1], *wrong, 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_slices_of_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (20 + k, 30), dtype=np.uint8) for k in range(3)]
    for k in (2, 0, 1):
        Image.fromarray(pictures[k]).convert("RGB" if k else "L").save(tmp_path / f"{k}.png")
    for name in ("notes.txt", "._0.png", "desktop.ini"):
        (tmp_path / name).write_text("no image")
    found = images.read_slices(tmp_path, 40)
    assert found.shape == (3, 40, 40) and found.dtype == np.uint8
    for k in range(3):
        np.testing.assert_array_equal(found[k], covid_ct.letterbox(pictures[k], (40, 40)))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", "cut"])
def test_a_slice_that_is_no_image_is_named_in_one_line(tmp_path, content):
    Image.new("L", (50, 50)).save(tmp_path / "a.png")
    if content == "cut":
        content = (tmp_path / "a.png").read_bytes()[:60]
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(covid_ct.CovidCTError, match=r"b\.png: cannot be read.*delete it") as caught:
        images.read_slices(tmp_path, 32)
    assert "\n" not in str(caught.value)


def test_a_folder_without_slices_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(covid_ct.CovidCTError, match="no folder with PNG or JPEG images"):
            images.read_slices(folder, 32)


@pytest.mark.parametrize("others", ["non-COVID", "NonCOVID"])
def test_another_collection_is_read_with_its_labels(tmp_path, others):
    rng, pictures = np.random.default_rng(0), {}
    for name, n in (("COVID", 2), (others, 3)):
        (tmp_path / name).mkdir()
        for k in range(n):
            pictures[name, k] = rng.integers(0, 256, (20, 30), dtype=np.uint8)
            Image.fromarray(pictures[name, k]).save(tmp_path / name / f"{k}.png")
    found, labels = images.read_elsewhere(tmp_path, 40)
    assert found.shape == (5, 1, 40, 40) and found.dtype == np.uint8
    assert labels.tolist() == [1, 1, 0, 0, 0]
    for square, picture in zip(found[:, 0], pictures.values(), strict=True):
        np.testing.assert_array_equal(square, covid_ct.letterbox(picture, (40, 40)))


def test_jpeg_is_read_as_well(tmp_path):
    for name in ("COVID", "non-COVID"):
        (tmp_path / name).mkdir()
        Image.new("L", (50, 50), 100).save(tmp_path / name / "a.JPG", "JPEG")
    assert np.abs(images.read_elsewhere(tmp_path, 32)[0].astype(int) - 100).max() < 3


@pytest.mark.parametrize("there", [(), ("COVID",), ("non-COVID",), ("NonCOVID", "non-COVID")])
def test_a_missing_class_folder_is_one_line(tmp_path, there):
    for name in there:
        (tmp_path / name).mkdir()
        Image.new("L", (50, 50)).save(tmp_path / name / "a.png")
    with pytest.raises(covid_ct.CovidCTError, match="COVID and non-COVID") as caught:
        images.read_elsewhere(tmp_path, 32)
    assert "\n" not in str(caught.value)


def test_an_empty_class_folder_is_one_line(tmp_path):
    for name in ("COVID", "non-COVID"):
        (tmp_path / name).mkdir()
    Image.new("L", (50, 50)).save(tmp_path / "COVID" / "a.png")
    with pytest.raises(covid_ct.CovidCTError, match="non-COVID: no folder with PNG") as caught:
        images.read_elsewhere(tmp_path, 32)
    assert "\n" not in str(caught.value)


def test_frozen_features_are_the_encoders_and_are_kept(made, tmp_path, monkeypatch):
    pictures = made[1].images[:3]
    found = images.frozen_features(pictures, tmp_path)
    encoder = networks.Lite0Encoder().eval()
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(pictures).float() / 255).numpy()
    assert found.shape == (3, 2560) and found.dtype == np.float32
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99  # bf16
    assert len([*tmp_path.glob("*/*.npy")]) == 3
    monkeypatch.setattr(networks.Lite0Encoder, "forward", None)  # nobody asks it again
    np.testing.assert_array_equal(images.frozen_features(pictures, tmp_path), found)
    assert images.frozen_features(pictures[:0]).shape == (0, 2560)


def test_a_probe_learns_from_the_training_part_alone(made, monkeypatch):
    """Of features that give the label away, but turned round outside the training part."""
    _, data = made
    side = np.where(np.isin(np.arange(len(data.labels)), data.rows("train", "clean")), 1, -1)
    seen = np.random.default_rng(0).normal(size=(len(side), 8)).astype(np.float32)
    seen[:, 0] += 4 * side * (2 * data.labels - 1)
    monkeypatch.setattr(images, "frozen_features", lambda pictures, folder="": seen)
    probability, model = images.probe(data, "clean")
    train, test = data.rows("train", "clean"), data.rows("test", "clean")
    assert roc_auc_score(data.labels[train], probability[train]) > 0.95
    assert roc_auc_score(data.labels[test], probability[test]) < 0.1
    np.testing.assert_array_equal(model.predict_proba(seen)[:, 1], probability)


def test_only_the_last_block_and_convolution_of_lite0_are_trained(made, tmp_path):
    _, data = made
    before = images.new_model("lite0", data.profile, 0).state_dict()
    model, history = images.train(data, "lite0", "fine-tuning", "official", 0, tmp_path)
    assert len(history) == data.profile.finetuning_epochs == 1
    after = model.cpu().state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    blocks = {int(name.split(".")[2]) for name in changed if name.startswith("encoder.maps.")}
    n_blocks = len(model.encoder.maps)
    assert blocks == {n_blocks - 2, n_blocks - 1} and "head.weight" in changed


def test_other_pictures_are_answered_for(made):
    _, data = made
    model = images.new_model("small", data.profile, 0)
    torch.nn.init.normal_(model.head.weight, std=3.0)
    whole = images.probabilities(data, model)
    np.testing.assert_allclose(
        images.probabilities(data, model, data.images[5:9]), whole[5:9], atol=1e-6
    )
    assert images.probabilities(data, model, data.images[:0]).shape == (0,)


def test_recipes():
    published, ours = images.RECIPES["published"], images.RECIPES["course"]
    assert published["augment"] is PUBLISHED is ours["augment"]
    assert (published["learning_rate"], published["batch_size"]) == (1e-4, 10)
    assert published["weight_decay"] == 0 and published["clip"] == math.inf
    assert PUBLISHED.scale == (0.5, 1.0) and PUBLISHED.flip


def test_adamw_without_decay_is_the_published_adam():
    torch.manual_seed(0)
    one, other = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    other.load_state_dict(one.state_dict())
    inputs = torch.randn(8, 3)
    adamw = torch.optim.AdamW(training.parameter_groups(one, 0.0), lr=1e-2)
    adam = torch.optim.Adam(other.parameters(), lr=1e-2)
    for network, optimizer in ((one, adamw), (other, adam)):
        for _ in range(5):
            optimizer.zero_grad()
            network(inputs).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(one.weight, other.weight)


def test_training_is_kept_per_recipe_split_start_and_seed(made, tmp_path):
    _, data = made
    model, history = images.train(data, "small", "course", "clean", 1, tmp_path)
    assert len(history) == data.profile.epochs[0]
    (run,) = tmp_path.iterdir()
    assert run.name == f"small-random-course-clean-{data.run_name}-seed1"
    kept = images.probabilities(data, model)
    again, _ = images.train(data, "small", "course", "clean", 1, tmp_path)
    np.testing.assert_array_equal(images.probabilities(data, again), kept)
    for number in (9, 10):  # other weights to begin with are another run
        weights = images.new_model("small", data.profile, number).encoder.state_dict()
        images.train(data, "small", "published", "official", 1, tmp_path, weights, start="moco")
    names = [run.name for run in tmp_path.iterdir()]
    assert len(names) == 3 and sum(name.startswith("small-moco-") for name in names) == 2


def test_without_imagenet_weights_the_run_is_not_named_after_them(
    made, tmp_path, monkeypatch, capsys
):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    arguments = (made[1], "densenet169", "published", "official", 0, tmp_path)
    model, _ = images.train(*arguments, start="imagenet", max_epochs_this_call=1)
    assert "no ImageNet weights (no network)" in capsys.readouterr().out
    assert not model.encoder.pretrained
    assert [run.name.split("-")[1] for run in tmp_path.iterdir()] == ["random"]


@pytest.mark.parametrize(("recipe", "kept"), [("course", "last.pt"), ("published", "best.pt")])
def test_the_recipe_says_which_epoch_is_kept(made, tmp_path, recipe, kept):
    _, data = made
    model, _ = images.train(data, "small", recipe, "official", 2, tmp_path)
    state = torch.load(next(tmp_path.glob(f"*/{kept}")), weights_only=True)["model"]
    torch.testing.assert_close(dict(model.cpu().state_dict()), dict(state))


def test_training_begins_with_the_given_encoder(made, tmp_path):
    _, data = made
    weights = images.new_model("small", data.profile, 9).encoder.state_dict()
    model, _ = images.train(
        data, "small", "course", "official", 0, tmp_path, weights, "x", learning_rate=0.0
    )
    for name, value in model.encoder.state_dict().items():
        torch.testing.assert_close(value.cpu(), weights[name])


def test_the_seed_decides_the_initial_weights_alone(made):
    _, data = made
    torch.manual_seed(1)
    first = images.new_model("small", data.profile, 3)
    torch.manual_seed(2)
    second, third = (images.new_model("small", data.profile, seed) for seed in (3, 4))
    torch.testing.assert_close(first.state_dict(), second.state_dict())
    assert not torch.equal(first.head.weight, third.head.weight)


def test_the_answer_is_the_same_for_the_mirror_image(made):
    _, data = made
    model = images.new_model("small", data.profile, 0)
    torch.nn.init.normal_(model.head.weight, std=3.0)
    answers = images.probabilities(data, model)
    mirrored = replace(data, images=np.ascontiguousarray(data.images[..., ::-1]))
    np.testing.assert_allclose(images.probabilities(mirrored, model), answers, atol=1e-6)
    plain = prediction.predict(model, data.images, np.arange(len(data.images)))[0]
    assert np.abs(plain - answers).max() > 1e-4
    assert answers.shape == (len(data.images),) and (answers >= 0).all() and (answers <= 1).all()


@pytest.mark.parametrize("split", ["official", "clean"])
def test_scores_read_the_test_part_with_validations_threshold(made, split):
    _, data = made
    rng = np.random.default_rng(0)
    probability = np.clip(0.1 * data.labels + 0.9 * rng.random(len(data.labels)), 0, 1)
    found = images.scores(data, probability, split)
    rows = data.rows("test", split)
    truth, called = data.labels[rows], probability[rows] >= found["threshold"]
    assert found["auc"].value == pytest.approx(roc_auc_score(truth, probability[rows]))
    assert found["f1"].value == pytest.approx(f1_score(truth, called))
    assert found["sensitivity"].value == pytest.approx(called[truth == 1].mean())
    assert found["specificity"].value == pytest.approx((~called[truth == 0]).mean())
    for name in ("auc", "f1", "accuracy", "sensitivity", "specificity"):
        value, low, high = found[name]
        assert low <= value <= high
    assert found["auc"].low < found["auc"].high
    changed = probability.copy()
    changed[rows] = 1 - changed[rows]
    assert images.scores(data, changed, split)["threshold"] == found["threshold"]
    changed[data.rows("validation", split)] = rng.random(len(data.rows("validation", split)))
    assert images.scores(data, changed, split)["threshold"] != found["threshold"]


def test_real_images(real_data, tmp_path):
    data = images.prepare(str(real_data / "covid_ct"), "tiny", tmp_path, size=64)
    assert data.images.shape == (746, 1, 64, 64)
    sizes = [len(data.rows(part)) for part in PARTS]
    clean = [len(data.rows(part, "clean")) for part in PARTS]
    assert sizes == [425, 118, 203] and clean == [422, 126, 194]
    assert not set(data.rows_for_pretraining()) & set(data.rows("test", "clean"))
    _, history = images.train(data, "small", "course", "clean", 0, tmp_path / "runs")
    assert history.train_loss.between(0.1, 2).all()


def test_a_folder_that_was_moved_keeps_what_was_made_from_it(tmp_path):
    root = covidct_twin.make_twin(tmp_path / "here" / "twin", 30, 36, matrix=64)
    before = images.prepare(str(root), "tiny", tmp_path / "data")
    (tmp_path / "there").mkdir()
    after = images.prepare(str(root.rename(tmp_path / "there" / "twin")), "tiny", tmp_path / "data")
    assert after.run_name == before.run_name
    assert len(list((tmp_path / "data").glob("images-*"))) == 1
    np.testing.assert_array_equal(after.images, before.images)


def test_a_corrected_patient_and_a_changed_pixel_make_all_of_it_anew(tmp_path):
    root = covidct_twin.make_twin(tmp_path / "twin", 30, 36, matrix=64)
    before = images.prepare(str(root), "tiny", tmp_path / "data")
    names = before.table[before.table.label == 0]
    one, other = (names.patient[names.part == part].iloc[0] for part in ("train", "test"))
    metadata = root / "NonCOVID-CT-MetaInfo.csv"
    as_written = [patient.removeprefix("noncovid-") for patient in (one, other)]
    text = metadata.read_text()
    metadata.write_text(re.sub(rf"{re.escape(as_written[1])}$", as_written[0], text, flags=re.M))
    after = images.prepare(str(root), "tiny", tmp_path / "data")
    assert after.run_name != before.run_name
    kept = after.table[after.table.clean_part != ""]
    assert kept.groupby("patient").clean_part.nunique().max() == 1
    assert after.table.patient.nunique() == before.table.patient.nunique() - 1

    path = root / "Images-processed/CT_NonCOVID.zip"
    with zipfile.ZipFile(path) as archive:
        members = {info: archive.read(info) for info in archive.infolist()}
    first = next(info for info in members if members[info])
    members[first] = next(m for i, m in members.items() if m and i != first)
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in members.items():
            archive.writestr(info.filename, content)
    changed = images.prepare(str(root), "tiny", tmp_path / "data")
    assert changed.run_name != after.run_name
    assert not np.array_equal(changed.images, after.images)
