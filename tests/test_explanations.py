"""Heat maps of networks whose answer is known, and what they are scored by."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from torch import nn

from helpers.course import model_card, runs
from helpers.ct.studies import read_mask, read_study
from helpers.learn import features, networks, prediction
from helpers.scores import baselines, metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model():
    torch.manual_seed(0)
    encoder = networks.SliceEncoder(8)
    return networks.BiLSTMClassifier(encoder, 8, hidden=4).eval()


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32), dtype=np.uint8)


def logit(model, scan):
    with torch.no_grad():
        return float(model(torch.as_tensor(scan)[None])[0])


def test_the_input_gradient_is_the_slope_at_a_voxel(model, volume):
    gradient, _ = prediction.gradient_maps(model, volume, model.encoder.layers, "cpu")
    assert gradient.shape == volume.shape and gradient.min() >= 0
    for k in np.argsort(-gradient, axis=None)[:3]:
        above, below = (volume.astype(np.float32) / 255 for _ in range(2))
        above.flat[k] += 0.01
        below.flat[k] -= 0.01
        by_difference = abs(logit(model, above) - logit(model, below)) / 0.02
        assert gradient.flat[k] == pytest.approx(by_difference, rel=0.05)


class OneChannel(nn.Module):
    """Features that are the mean of the picture's own brightness, over maps of half its size."""

    features = 1

    def __init__(self):
        super().__init__()
        self.maps = nn.AvgPool2d(2)

    def forward(self, images):
        return self.maps(images[:, 1:2]).mean(dim=(2, 3))


class Summed(nn.Module):
    """The logit is the sum of weighted features: everything about it is known."""

    def __init__(self, weights):
        super().__init__()
        self.encoder, self.weights = OneChannel(), torch.tensor(weights)

    def forward(self, volumes):
        seen = volumes
        if volumes.ndim == 4:
            seen = networks.encode_slice_by_slice(self.encoder, volumes)
        return (seen[:, :, 0] * self.weights).sum(dim=1), None


def test_grad_cam_of_a_network_whose_maps_are_the_picture(volume):
    weights = [1.0, 0.0, -2.0, 0.5, 0.0, 3.0]
    model = Summed(weights)
    gradient, cam = prediction.gradient_maps(model, volume, model.encoder.maps, "cpu")
    halved = volume.reshape(6, 16, 2, 16, 2).mean(axis=(2, 4)) / 255
    for k, weight in enumerate(weights):
        np.testing.assert_allclose(gradient[k], abs(weight) / 32**2, rtol=1e-5)
        # every map's gradient is weight / 256 everywhere; negative weights leave nothing
        expected = max(weight, 0) / 256 * halved[k]
        smoothed = torch.nn.functional.interpolate(
            torch.tensor(expected)[None, None], size=(32, 32), mode="bilinear"
        )[0, 0].numpy()
        np.testing.assert_allclose(cam[k], smoothed, rtol=1e-4, atol=1e-9)


def test_occlusion_by_brute_force(model, volume):
    heat = prediction.occlusion_map(model, volume, n_blocks=(3, 2, 2), fill=90, device="cpu")
    whole = logit(model, volume.astype(np.float32) / 255)
    for z in range(0, 6, 2):
        for y in (0, 16):
            for x in (0, 16):
                hidden = volume.copy()
                hidden[z : z + 2, y : y + 16, x : x + 16] = 90
                fall = whole - logit(model, hidden.astype(np.float32) / 255)
                block = heat[z : z + 2, y : y + 16, x : x + 16]
                np.testing.assert_allclose(block, fall, atol=2e-5)
    assert heat.std() > 0


def test_occlusion_of_sizes_that_do_not_divide(model, volume):
    heat = prediction.occlusion_map(model, volume[:5, :31, :30], n_blocks=(2, 4, 7), device="cpu")
    assert heat.shape == (5, 31, 30) and (heat != 0).all()


def test_hidden_slices_by_a_loop():
    torch.manual_seed(1)
    model = networks.BiLSTMClassifier(5, 4, hidden=3).eval()
    rng = np.random.default_rng(0)
    sequence, instead = rng.normal(size=(2, 7, 5)).astype(np.float16)
    found = prediction.hide_slices(model, sequence, instead, "cpu")
    whole = logit(model, sequence.astype(np.float32))
    for k in range(7):
        hidden = sequence.astype(np.float32)
        hidden[k] = instead[k]
        assert found[k] == pytest.approx(whole - logit(model, hidden), abs=1e-5)


def test_pointing_against_other_libraries_and_known_truths():
    rng = np.random.default_rng(0)
    lesion = np.zeros((6, 8, 8))
    lesion[2:5, 2:5, 2:5] = rng.uniform(0.6, 1, (3, 3, 3))
    heat = lesion + rng.uniform(0, 0.9, lesion.shape)
    found = metrics.pointing(heat, lesion)
    sums = [rankdata(part.sum(axis=(1, 2))) for part in (heat, lesion)]
    assert found["rank"] == pytest.approx(np.corrcoef(*sums)[0, 1])
    assert found["auc"] == pytest.approx(roc_auc_score((lesion > 0.5).ravel(), heat.ravel()))
    assert metrics.pointing(lesion, lesion) == pytest.approx({"rank": 1, "hit": 1, "auc": 1})
    away = metrics.pointing(1 - lesion, lesion)
    assert (away["hit"], away["auc"]) == (0, 0) and away["rank"] == pytest.approx(-1)
    slices = metrics.pointing(lesion.sum(axis=(1, 2)), lesion)
    assert slices["rank"] == pytest.approx(1) and np.isnan([slices["hit"], slices["auc"]]).all()


def test_order_question_holds_the_same_slices_twice():
    rng = np.random.default_rng(0)
    sequences = rng.normal(size=(3, 8, 2))
    areas = np.array([[0, 5, 3, 0, 9, 1, 7, 2], [0, 0, 0, 1, 2, 0, 0, 0], np.arange(8) + 1.0])
    found, labels, whose = features.order_question(sequences, areas, n_slices=4)
    assert labels.tolist() == [1, 1, 0, 0] and whose.tolist() == [0, 2, 0, 2]
    for k in (0, 1):
        np.testing.assert_array_equal(found[k], found[k + 2][::-1])
        row = whose[k]
        place = {
            tuple(slice_): area for slice_, area in zip(sequences[row], areas[row], strict=True)
        }
        along = [place[tuple(slice_)] for slice_ in found[k]]
        assert along == sorted(along) and along[0] > 0 and along[-1] == areas[row].max()
        assert len(set(along)) == 4


def test_needle_question_mixes_within_its_groups_and_tells_by_the_one_slice():
    healthy, ill = np.zeros((8, 6, 2)), np.zeros((6, 6, 2))
    healthy[..., 0] = np.arange(8)[:, None]
    ill[..., 0] = 100 + np.arange(6)[:, None]
    healthy[..., 1] = ill[..., 1] = np.arange(6)  # the height
    areas = np.random.default_rng(0).random((6, 6))
    found, labels, groups = features.needle_question(healthy, ill, areas)
    assert found.shape == (16, 6, 2) and labels.sum() == 8
    members = [set() for _ in range(4)]
    for sequence, label, group in zip(found, labels, groups, strict=True):
        np.testing.assert_array_equal(sequence[:, 1], np.arange(6))
        names, counts = np.unique(sequence[:, 0], return_counts=True)
        (strange,) = names[counts == 1]
        assert counts.tolist() in ([5, 1], [1, 5]) and (strange >= 100) == label
        if label:
            place = int(np.flatnonzero(sequence[:, 0] == strange)[0])
            assert place == areas[int(strange) - 100].argmax()
        members[group] |= set(names)
    assert sum(map(len, members)) == len(set.union(*members))
    again = features.needle_question(healthy, ill, areas)
    assert all(map(np.array_equal, again, (found, labels, groups)))
    np.testing.assert_array_equal(healthy[0], [[0, k] for k in range(6)])


def test_the_kept_study_carries_what_notebook_07_says_of_it():
    """The committed table of `make experiments`, at full size."""
    study = runs.study()
    shown = study.set_index(["part", "question", "what"])

    def interval(*key):
        return shown.loc[key][["value", "low", "high"]].to_numpy(float).reshape(-1)[:3]

    for what in ("Bi-LSTM", "one direction"):
        assert interval("controls", "order", what)[1] > 0.9
    for what in ("mean pool", "max pool", "attention, no LSTM", "shuffled slices"):
        _, low, high = interval("controls", "order", what)
        assert low < 0.5 < high
    needle = {what: interval("controls", "needle", what) for what in ("max pool", "mean pool")}
    assert needle["mean pool"][2] < needle["max pool"][0]
    for what in ("attention on the LSTM", "slices hidden"):
        trained = interval("explanations", "rank, trained", f"frozen: {what}")
        for twin in ("random weights", "shuffled"):
            name = (f"rank, {twin}", f"frozen: {what}")
            assert trained[0] > interval("explanations", *name)[0]
    assert (study.low <= study.value).all() and (study.value <= study.high).all()
    curve = study[(study.part == "learning curve") & (study.what == "frozen encoder")]
    assert curve["size"].is_monotonic_increasing and len(curve) == 5


def test_scan_traits_of_a_scan_whose_traits_are_known():
    table = pd.DataFrame({"spacing_z": [8.0, 5], "spacing_x": [0.7, 0.8], "n_slices": [40, 60]})
    volumes = np.full((2, 3, 24, 24), 190, np.uint8)
    volumes[:, :, ::23, ::23] = 0
    volumes[0, :, :2, :2] = 0
    volumes[1, :, :, 3:-3:2] += 6
    found = baselines.scan_traits(table, volumes)
    assert found.columns.tolist() == ["spacing_z", "spacing_x", "n_slices", "noise", "padding"]
    assert found.padding.tolist() == [7 / 16, 4 / 16]
    assert found.noise[0] == 0 and 4 < found.noise[1] < 6
    assert baselines.scan_traits(table[:1], volumes[:1] * 0).noise[0] == 0


def test_the_model_card_says_what_is_known_and_what_is_not(tmp_path):
    home = {"validation": [1.0, 0.8, 1.0], "another hospital": [0.4, 0.3, 0.6]}
    found = {"data": "phantom: 120 scans", "task": "ct0-ct23", "profile": "quick", "folds": 5}
    found |= {"seeds": 3, "inside": [0.99, 0.95, 1.0], "outside": [0.92, 0.86, 0.96]}
    found |= {"elsewhere": "there", "without_lungs": [0.48, 0.38, 0.58], "ranks": {"x": 1}}
    found |= {"explained_on": "a phantom", "dataset": "phantom", "training": "12 epochs"}
    found |= {"shortcut": {"as they are": home}}

    def card(**changed):
        path = runs.save_results("07", found | changed, tmp_path)
        return model_card.write_card(path).read_text("utf-8")

    text = card()
    for words in ("0.99 [0.95, 1.00]", "0.92 [0.86, 0.96] (there)", "0.48 [0.38, 0.58]"):
        assert words in text
    assert "| Trained how | 12 epochs |" in text
    assert "not for clinical use" in text and "A phantom is no patient" in text
    assert "0.40 [0.30, 0.60] elsewhere" in text and "look for a shortcut" not in text
    assert "Was the explanation checked? | yes, on a phantom: against" in text
    text = card(
        dataset="mosmed",
        data="phantoms of mine",
        outside=None,
        ranks={},
        without_lungs=[0.7, 0.6, 0.8],
    )
    assert "| AUC in another hospital | not tested |" in text and "A phantom is no" not in text
    assert text.count("**open: no**") == 3 and "look for a shortcut" in text
    for line in text.split("## Checklist")[1].split("##")[0].strip().split("\n"):
        assert line.count("|") == 3
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"data": "x"}))
    with pytest.raises(ValueError, match="no inside in it; run notebook 07"):
        model_card.write_card(path)
    assert not (tmp_path / "model_card.md").exists()


def as_course_data(root, mask, affine, size):
    """A study with this mask (D, H, W as stored), as `runs.lesion` needs it."""
    nib.save(nib.Nifti1Image(mask, affine), root / "mask.nii.gz")
    nib.save(nib.Nifti1Image((mask - 800).astype(np.int16), affine), root / "study.nii.gz")
    study = read_study(root / "study.nii.gz")
    names = ("spacing_z", "spacing_y", "spacing_x")
    lines = [dict(zip(names, study.spacing, strict=True)) | {"mask": "mask.nii.gz"}] * 2
    table = pd.DataFrame(lines).assign(file="study.nii.gz")
    table.loc[1, "mask"] = ""
    return SimpleNamespace(root=root, table=table, profile=SimpleNamespace(size=size))


def test_a_lesion_keeps_its_volume_and_its_place(tmp_path):
    mask = np.zeros((40, 30, 12), np.int16)  # stored (x, y, z): 40 columns, 30 rows, 12 slices
    mask[20:28, 6:12, 4:8] = 1
    data = as_course_data(tmp_path, mask, np.diag([2.0, 2, 8, 1]), (6, 20, 20))
    found = runs.lesion(data, 0)
    assert found.shape == (6, 20, 20) and found.min() >= 0 and found.max() <= 1 + 1e-6
    # padded to 40 x 40, then each new voxel is the mean of 2 x 2 x 2 old ones
    whole = read_mask(tmp_path / "mask.nii.gz")
    square = np.pad(whole, ((0, 0), (5, 5), (0, 0))).astype(float)
    expected = square.reshape(6, 2, 20, 2, 20, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert runs.lesion(data, 1) is None


def test_the_lesions_of_real_masks(real_data, tmp_path):
    for path in sorted((real_data / "mosmed" / "masks").glob("*.nii.gz"))[:2]:
        image = nib.load(path)
        mask = (np.asarray(image.dataobj) > 0).astype(np.int16)
        data = as_course_data(tmp_path, mask, image.affine, (32, 96, 96))
        assert runs.lesion(data, 0).mean() == pytest.approx(mask.mean(), rel=0.02)
