"""Features of slices computed once, and trainings that begin with them."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from helpers.learn.augmentation import SequenceAugmentation, augment
from helpers.learn.devices import Scans
from helpers.learn.features import encode_scans, folds, predict_fold
from helpers.learn.networks import BiLSTMClassifier, SliceEncoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def volumes():
    return np.random.default_rng(0).integers(0, 256, (5, 9, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("pixels", [None, 48])
def test_features_of_every_slice_by_a_loop(volumes, pixels):
    torch.manual_seed(0)
    encoder = SliceEncoder(8, 12).eval()
    found = encode_scans(encoder, volumes, pixels=pixels, chunk=4, device="cpu")
    assert found.shape == (5, 9, 12) and found.dtype == np.float16
    for scan in (0, 4):
        for k in (0, 3, 8):
            near = [volumes[scan, min(max(j, 0), 8)] / 255 for j in (k - 1, k, k + 1)]
            image = torch.tensor(np.array(near), dtype=torch.float32)[None]
            if pixels:
                image = interpolate(image, size=(pixels, pixels), mode="bilinear")
            with torch.inference_mode():
                expected = encoder(image)[0].numpy()
            np.testing.assert_allclose(found[scan, k], expected, atol=2e-3, rtol=2e-3)


def test_the_classifier_on_features_is_the_one_on_volumes(volumes):
    torch.manual_seed(0)
    whole = BiLSTMClassifier(SliceEncoder(8, 12), hidden=4).eval()
    on_features = BiLSTMClassifier(12, hidden=4).eval()
    rest = {k: v for k, v in whole.state_dict().items() if not k.startswith("encoder.")}
    on_features.load_state_dict(rest)
    features = encode_scans(whole.encoder, volumes, device="cpu")
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
        make = lambda: BiLSTMClassifier(8, hidden=4)  # noqa: E731
        return predict_fold(make, features, labels, fold_of, 2, tmp_path / name, 0, **options)

    table = run("one", labels)
    assert table.row.tolist() == [8, 9, 10, 11] and table.probability.between(0, 1).all()
    held_out, others = labels.copy(), labels.copy()
    held_out[8:12] = 1 - held_out[8:12]
    others[:4] = 1 - others[:4]
    assert np.array_equal(run("two", held_out).probability, table.probability)
    assert not np.array_equal(run("three", others).probability, table.probability)


def test_scans_gives_features_as_they_are():
    features = np.array([[[0.5, 300.0]], [[-1.0, 2.0]]], np.float16)
    taken = Scans(features, torch.device("cpu")).take(np.array([1, 0]))
    assert taken.dtype == torch.float32
    assert taken.tolist() == [[[-1.0, 2.0]], [[0.5, 300.0]]]


def test_an_encoder_that_nobody_knows():
    with pytest.raises(ValueError, match="'imagenet'"):
        BiLSTMClassifier("vgg")
