"""Features of slices computed once, and trainings that begin with them."""

import os
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import joblib
import numpy as np
import pytest
import torch

from helpers.learn import features as features_module
from helpers.learn.augmentation import SequenceAugmentation, augment
from helpers.learn.devices import Scans
from helpers.learn.features import cross_validate, encode_scans, folds, train_fold
from helpers.learn.networks import BiLSTMClassifier, SliceEncoder, adjacent_slices
from helpers.learn.prediction import predict
from helpers.storage.processes import kill

pytestmark = pytest.mark.usefixtures("one_thread")


def small(seed, fold):
    torch.manual_seed(seed)
    return BiLSTMClassifier(8, 8, hidden=4)


@pytest.fixture(scope="module")
def cohort():
    """Features, labels and patients of 24 scans, two of each patient."""
    rng = np.random.default_rng(0)
    labels, patients = np.arange(24) // 2 % 2, np.arange(24) // 2
    features = rng.normal(size=(24, 6, 8)).astype(np.float16)
    features[labels == 1, 2:4] += 1
    return features, labels, patients


@pytest.fixture(scope="module")
def volumes():
    return np.random.default_rng(0).integers(0, 256, (5, 9, 32, 32), dtype=np.uint8)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SliceEncoder(8).eval()


@pytest.mark.parametrize("n_slices", [9, 1])
def test_features_of_every_slice_by_a_loop(volumes, encoder, n_slices):
    volumes = volumes[:, :n_slices]
    found = encode_scans(encoder, volumes, device="cpu", precision="fp32")
    assert found.shape == (5, n_slices, 128) and found.dtype == np.float16
    for scan in (0, 4):
        for k in {0, n_slices // 3, n_slices - 1}:
            near = [min(max(j, 0), n_slices - 1) for j in (k - 1, k, k + 1)]
            image = torch.tensor(volumes[scan, near] / 255, dtype=torch.float32)[None]
            with torch.inference_mode():
                expected = encoder(image)[0].numpy()
            np.testing.assert_allclose(found[scan, k], expected, atol=2e-3, rtol=2e-3)


def test_the_classifier_on_features_is_the_one_on_volumes(volumes):
    torch.manual_seed(0)
    whole = BiLSTMClassifier(SliceEncoder(8), hidden=4).eval()
    on_features = BiLSTMClassifier(128, hidden=4).eval()
    rest = {k: v for k, v in whole.state_dict().items() if not k.startswith("encoder.")}
    on_features.load_state_dict(rest)
    features = encode_scans(whole.encoder, volumes, device="cpu", precision="fp32")
    rows = np.arange(5)
    with torch.inference_mode():
        expected = whole(Scans(volumes, torch.device("cpu")).take(rows))
        found = on_features(Scans(features, torch.device("cpu")).take(rows))
    torch.testing.assert_close(found[0], expected[0], atol=5e-3, rtol=0)
    torch.testing.assert_close(found[1], expected[1], atol=5e-3, rtol=0)


def test_augmentation_flips_scans_and_drops_whole_features():
    sequences = torch.rand(400, 6, 50) + 1
    change = SequenceAugmentation(drop=0.25)
    changed = change(sequences, torch.Generator().manual_seed(0))
    dropped = (changed == 0).all(dim=1)
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.02)
    assert ((changed == 0).any(dim=1) == dropped).all()
    kept = changed * 0.75
    same, other = (
        torch.where(dropped[:, None], 0, kept - s).abs().amax(dim=(1, 2)) < 1e-5
        for s in (sequences, sequences.flip(1))
    )
    assert (same ^ other).all() and 0.4 < other.float().mean() < 0.6
    still = SequenceAugmentation(flip=False, drop=0.0)(sequences, torch.Generator())
    assert torch.equal(still, sequences)
    assert repr(change) == "SequenceAugmentation(flip=True, drop=0.25)"


def test_the_augmentation_of_volumes_refuses_sequences():
    with pytest.raises(ValueError, match=r"shape \(2, 6, 50\)"):
        augment(torch.rand(2, 6, 50), torch.Generator())


def test_folds_keep_patients_together_and_classes_apart():
    patients = np.repeat(np.arange(40), 2)
    labels = (patients % 4 == 0).astype(int)
    fold_of = folds(labels, patients, n_folds=5)
    assert set(fold_of) == set(range(5))
    for patient in range(40):
        assert len(set(fold_of[patients == patient])) == 1
    for fold in range(5):
        assert labels[fold_of == fold].sum() == 4 and (fold_of == fold).sum() == 16
    assert not np.array_equal(fold_of, folds(labels, patients, 5, seed=1))
    assert np.array_equal(fold_of, folds(labels, patients, 5))


def test_a_fold_is_predicted_by_a_network_that_did_not_see_it(tmp_path):
    """The labels of the held-out fold change nothing, those of another do."""
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    features = rng.normal(size=(20, 6, 8)).astype(np.float16)
    features[labels == 1, 2:4] += 1
    fold_of = np.arange(20) // 4
    options = {"epochs": 3, "batch_size": 8, "device": "cpu", "learning_rate": 1e-2}

    def run(name, labels):
        return train_fold(small, features, labels, fold_of, 2, tmp_path / name, 0, **options)[1]

    found = run("one", labels)
    assert found.shape == (4,) and (found > 0).all() and (found < 1).all()
    held_out, others = labels.copy(), labels.copy()
    held_out[8:12] = 1 - held_out[8:12]
    others[:4] = 1 - others[:4]
    assert np.array_equal(run("two", held_out), found)
    assert not np.array_equal(run("three", others), found)


def test_cross_validation_by_a_loop_over_its_folds(cohort, tmp_path):
    features, labels, patients = cohort
    outside = features[:6, :4] + np.float16(0.5)
    options = {"epochs": 2, "batch_size": 8, "device": "cpu", "learning_rate": 1e-2}
    data = (small, features, labels, patients)
    found, elsewhere = cross_validate(*data, tmp_path / "cv", 4, (0, 3), outside, **options)
    assert found.shape == (2, 24) and elsewhere.shape == (6,)
    assert not np.array_equal(found[0], found[1])
    answers = []
    for k, seed in enumerate((0, 3)):
        fold_of = folds(labels, patients, 4, seed)
        for fold in range(4):
            run = tmp_path / f"{seed}-{fold}"
            model, probability = train_fold(
                small, features, labels, fold_of, fold, run, seed, **options
            )
            assert np.array_equal(found[k, fold_of == fold], probability)
            answers.append(predict(model, outside, np.arange(6), device="cpu")[0])
    np.testing.assert_allclose(elsewhere, np.mean(answers, axis=0), atol=1e-7)


@pytest.mark.skipif(joblib.cpu_count() < 2, reason="needs two cores")
def test_a_killed_process_of_a_cross_validation_in_one_line(cohort, tmp_path):
    here, (features, *others) = os.getpid(), cohort
    options = {"epochs": 1, "batch_size": 8, "device": "cpu"}

    def make(seed, fold):  # as in a notebook: nothing that another process could import
        if fold == 3 and os.getpid() != here:
            kill(os.getpid())
        return small(seed, fold)

    with pytest.raises(RuntimeError, match="^a process was killed, most likely"):
        cross_validate(make, features, *others, tmp_path, 4, (0,), **options)
    found, _ = cross_validate(small, features, *others, tmp_path, 4, (0,), **options)
    assert np.isfinite(found).all()


def test_a_finished_cross_validation_is_loaded_and_a_broken_one_goes_on(
    cohort, tmp_path, monkeypatch
):
    options = {"epochs": 2, "batch_size": 8, "device": "cpu"}
    whole, nothing = cross_validate(small, *cohort, tmp_path / "one", 3, (0,), **options)
    assert nothing is None
    real, calls = features_module.train_fold, []

    def interrupted(*arguments, **keywords):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments, **keywords)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(features_module, "train_fold", interrupted)
        cross_validate(small, *cohort, tmp_path / "two", 3, (0,), **options)
    done = (tmp_path / "two" / "seed0-fold0" / "last.pt").stat().st_mtime_ns
    again, _ = cross_validate(small, *cohort, tmp_path / "two", 3, (0,), **options)
    assert np.array_equal(again, whole)
    assert (tmp_path / "two" / "seed0-fold0" / "last.pt").stat().st_mtime_ns == done
    assert not [*tmp_path.rglob("best.pt")], "15 of them would double what is kept"


def test_more_folds_than_patients_of_a_class_in_one_line():
    with pytest.raises(ValueError, match="2 patients with label 1 for 3 folds") as error:
        folds([0, 0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 5, 6, 6], 3)
    assert "\n" not in str(error.value)


class Counting(SliceEncoder):
    """Counts the images that it is asked for."""

    n_images = 0

    def forward(self, images):
        self.n_images += len(images)
        return super().forward(images)


def test_features_are_kept_and_only_what_is_new_is_computed(volumes, tmp_path):
    torch.manual_seed(0)
    encoder, options = Counting(8).eval(), {"device": "cpu", "precision": "fp32"}
    first = encode_scans(encoder, volumes, tmp_path, **options)
    assert encoder.n_images == 5 * 9 and len([*tmp_path.glob("features-*/*.npy")]) == 5
    assert np.array_equal(encode_scans(encoder, volumes[::-1], tmp_path, **options), first[::-1])
    assert encoder.n_images == 5 * 9
    changed = volumes.copy()
    changed[2, 4, 5, 6] ^= 255
    second = encode_scans(encoder, changed, tmp_path, **options)
    assert encoder.n_images == 6 * 9
    same = np.array([np.array_equal(a, b) for a, b in zip(first, second, strict=True)])
    assert same.tolist() == [True, True, False, True, True]
    with torch.no_grad():
        encoder.layers[0].weight[0] += 1
    assert not np.array_equal(encode_scans(encoder, volumes, tmp_path, **options), first)
    assert encoder.n_images == 11 * 9 and len([*tmp_path.glob("features-*")]) == 2
    encode_scans(encoder, volumes[:1], tmp_path, device="cpu", precision="bf16")
    assert len([*tmp_path.glob("features-*-bf16")]) == 1, "other numbers, another folder"
    fewer = encode_scans(encoder, volumes[:, :5], tmp_path, **options)
    assert fewer.shape == (5, 5, 128), "scans with fewer slices are other scans"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:50]),
        lambda path: path.write_bytes(b""),
        lambda path: np.save(path, np.zeros((3, 128), np.float16)),
        lambda path: np.save(path, np.full((9, 128), np.nan, np.float16)),
        lambda path: path.unlink(),
    ],
    ids=["half", "empty", "of another scan", "not finite", "gone"],
)
def test_damaged_features_are_made_anew(volumes, encoder, tmp_path, damage):
    options = {"device": "cpu", "precision": "fp32"}
    first = encode_scans(encoder, volumes, tmp_path, **options)
    damage(sorted(tmp_path.glob("features-*/*.npy"))[0])
    assert np.array_equal(encode_scans(encoder, volumes, tmp_path, **options), first)
    for path in tmp_path.glob("features-*/*.npy"):
        assert np.isfinite(np.load(path)).all()


class Killed(Exception):
    pass


class DyingEncoder(SliceEncoder):
    def forward(self, images):
        raise Killed


def test_an_interrupted_call_goes_on(encoder, tmp_path):
    many = np.random.default_rng(1).integers(0, 256, (20, 9, 16, 16), dtype=np.uint8)
    options = {"device": "cpu", "precision": "fp32"}
    encode_scans(encoder, many[:14], tmp_path, **options)
    encoder.__class__ = DyingEncoder
    with pytest.raises(Killed):
        encode_scans(encoder, many, tmp_path, **options)
    encoder.__class__ = SliceEncoder
    assert encode_scans(encoder, many, tmp_path, **options).shape == (20, 9, 128)


def test_any_executor_gives_the_same_features(volumes, encoder, tmp_path):
    many = np.concatenate([volumes] * 30)  # more groups than are under way at a time
    expected = encode_scans(encoder, many, device="cpu", precision="fp32")
    with ThreadPoolExecutor(2) as pool:
        found = encode_scans(encoder, many, tmp_path, pool, device="cpu", precision="fp32")
    np.testing.assert_allclose(found, expected, atol=2e-3, rtol=2e-3)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = encode_scans(encoder, volumes, "", pool, device="cpu", precision="fp32")
    np.testing.assert_allclose(found, expected[:5], atol=2e-3, rtol=2e-3)


def test_a_view_is_one_random_change_of_every_scan(volumes, encoder, tmp_path):
    options = {"device": "cpu", "precision": "fp32"}
    plain, one, two = (
        encode_scans(encoder, volumes, tmp_path, view=k, **options) for k in range(3)
    )
    assert len([*tmp_path.glob("features-*")]) == 3
    for a, b in ((plain, one), (plain, two), (one, two)):
        assert all(np.abs(x.astype(float) - y).max() > 0.05 for x, y in zip(a, b, strict=True))
    assert np.array_equal(encode_scans(encoder, volumes[3:4], view=1, **options)[0], one[3])
    seed = zlib.crc32(volumes[3].tobytes()) + 1
    scan = torch.from_numpy(volumes[3:4]).float() / 255
    changed = augment(scan, torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        expected = encoder(adjacent_slices(changed)[0])
    np.testing.assert_allclose(one[3], expected, atol=2e-3, rtol=2e-3)


def test_views_are_trained_on_and_never_those_of_the_held_out_fold(cohort, tmp_path):
    features, labels, patients = cohort
    fold_of = folds(labels, patients, 4)
    options = {"epochs": 2, "batch_size": 8, "device": "cpu", "learning_rate": 1e-2}

    def run(name, view):
        data = (small, features, labels, fold_of, 1, tmp_path / name, 0, [view])
        return train_fold(*data, **options)[1]

    view = features + np.float16(0.1)
    found = run("one", view)
    hidden, seen = view.copy(), view.copy()
    hidden[fold_of == 1] = 9
    seen[fold_of == 2] = 9
    assert found.shape == (sum(fold_of == 1),)
    assert np.array_equal(run("two", hidden), found)
    assert not np.array_equal(run("three", seen), found)


def test_features_that_are_not_finite_in_one_line(volumes, encoder, tmp_path):
    with torch.no_grad():
        encoder.layers[0].weight[0] = np.nan
    with pytest.raises(ValueError, match="not finite") as error:
        encode_scans(encoder, volumes, tmp_path, device="cpu", precision="fp32")
    assert "\n" not in str(error.value) and not [*tmp_path.rglob("*.npy")]


def test_scans_gives_features_as_they_are():
    features = np.array([[[0.5, 300.0]], [[-1.0, 2.0]]], np.float16)
    taken = Scans(features, torch.device("cpu")).take(np.array([1, 0]))
    assert taken.dtype == torch.float32
    assert taken.tolist() == [[[-1.0, 2.0]], [[0.5, 300.0]]]


def test_an_encoder_that_nobody_knows():
    with pytest.raises(ValueError, match="'imagenet'"):
        BiLSTMClassifier("vgg")
