"""The phantom cohort: determinism, anatomy, disease truth, files, resume, planted shortcut."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures.process import BrokenProcessPool

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import center_of_mass, distance_transform_edt, uniform_filter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.phantom import simulate

INTERVALS = {"CT-1": (0, 0.25), "CT-2": (0.25, 0.5), "CT-3": (0.5, 0.75), "CT-4": (0.75, 1)}
SMALL = {"counts": {"CT-0": 2, "CT-2": 1, "CT-3": 1}, "matrix": 64, "n_slices": 8, "seed": 7}


@pytest.fixture(scope="module")
def healthy():
    return [simulate.make_study(seed, "CT-0", matrix=128, scanner="A") for seed in range(3)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return simulate.make_cohort(tmp_path_factory.mktemp("cohort") / "one", workers=1, **SMALL)


def digests(root):
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".xlsx")
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def peak(values, low, high):
    """The most frequent HU (5 HU bins) between low and high."""
    counts, edges = np.histogram(values, np.arange(low, high + 5, 5))
    return edges[counts.argmax()] + 2.5


@pytest.mark.parametrize("site", simulate.SITES)
def test_the_same_seed_gives_the_same_study_and_another_seed_another(site):
    first, again, other = (simulate.make_study(s, "CT-2", 64, 8, site=site) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.hu, again.hu)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert not np.array_equal(first.hu, other.hu)


def test_geometry_is_mosmeddatas_at_full_size():
    study = simulate.make_study(11, "CT-1")
    depth = len(study.hu)
    assert study.hu.shape == (depth, 512, 512) and 33 <= depth <= 53
    assert study.hu.dtype == np.int16
    assert study.spacing[0] == 8 and 0.58 <= study.spacing[1] == study.spacing[2] <= 1.15


def test_hu_of_the_tissues(healthy):
    for study in healthy:
        hu, lung = study.hu, study.lung > 0
        assert study.hu[:, :6, 60:68].mean() == pytest.approx(-1000, abs=15)
        assert -920 < np.median(hu[lung]) < -580
        assert -120 < peak(hu[~lung], -200, -20) < -80
        assert 35 < peak(hu[~lung], 0, 120) < 75
        assert 0.002 < (hu > 250).mean() < 0.05
        assert hu.max() < 1600


def test_directions(healthy):
    for study in healthy:
        hu, lung = study.hu.astype(float), study.lung > 0
        area = lung.sum(axis=(1, 2))
        top = np.flatnonzero(area)[-1]
        assert area[top] < 0.35 * area.max(), "the apex is narrow"
        middle = int(area.argmax())
        rows, columns = np.nonzero(lung[middle])
        row, column = rows.mean(), columns.mean()
        bone_rows = np.nonzero((hu[middle] > 250) & (np.abs(np.arange(128) - column) < 10))[0]
        assert np.median(bone_rows) > row, "the spine is posterior"
        soft = (hu > 0) & (hu < 120)
        below = max(np.flatnonzero(area > 0.02 * area.max())[0], 1)
        centre = int(round(column))
        right, left = soft[:below, :, :centre].sum(), soft[:below, :, centre:].sum()
        assert right > 1.1 * left, "the liver is on the patient's right, columns from 0"
        heart = slice(int(top - 0.62 * (top - below)), int(top - 0.52 * (top - below)))
        inner = soft[heart, : int(row), int(columns.min()) + 6 : int(columns.max()) - 6]
        offset = np.nonzero(inner)[2].mean() + columns.min() + 6 - column
        assert offset > 1, "the heart is mostly on the patient's left"


@pytest.mark.parametrize("site", simulate.SITES)
@pytest.mark.parametrize("category", INTERVALS)
def test_involved_fraction_lies_in_the_class_and_is_the_masks(category, site):
    low, high = INTERVALS[category]
    for seed in (1, 2):
        study = simulate.make_study(seed, category, matrix=96, n_slices=24, site=site)
        mask, lung = study.mask > 0, study.lung > 0
        assert not (mask & ~lung).any()
        assert study.involved_fraction == pytest.approx((mask & lung).sum() / lung.sum(), abs=1e-12)
        assert low < study.involved_fraction < high
        columns = np.arange(96) < np.nonzero(lung)[2].mean()
        assert mask[..., columns].any() and mask[..., ~columns].any(), "both lungs"
        assert study.hu[mask].mean() > study.hu[lung & ~mask].mean() + 100


def chest_depth(lung, spacing):
    """Distance (mm) of every voxel from the outline around both lungs, slice by slice."""
    depth = np.zeros(lung.shape)
    for k in np.flatnonzero(lung.any(axis=(1, 2))):
        hull = lung[k]
        for axis in (0, 1):
            before = np.logical_or.accumulate(lung[k], axis)
            after = np.flip(np.logical_or.accumulate(np.flip(lung[k], axis), axis), axis)
            hull = hull | (before & after)
        depth[k] = distance_transform_edt(np.pad(hull, 1), sampling=spacing[1:])[1:-1, 1:-1]
    return depth


def lesions_against_spared_lung(site):
    """Differences (mm) of depth, row and level, and the share of the lesions that is dense."""
    differences, dense = [], []
    for seed in range(4):
        study = simulate.make_study(seed, "CT-2", matrix=64, n_slices=20, site=site)
        sick = study.mask > 0
        spared = (study.lung > 0) & ~sick
        depth = chest_depth(study.lung > 0, study.spacing)
        row = np.broadcast_to(np.arange(64)[:, None], sick.shape) * study.spacing[1]
        level = np.broadcast_to(np.arange(20)[:, None, None], sick.shape) * study.spacing[0]
        differences.append([v[sick].mean() - v[spared].mean() for v in (depth, row, level)])
        dense.append((study.hu[sick] > -150).mean())
    return np.mean(differences, axis=0), dense


def test_lesions_are_peripheral_posterior_and_basal_and_elsewhere_less_so():
    (deeper, further_back, higher), dense = lesions_against_spared_lung("home")
    assert deeper < -5 and further_back > 15 and higher < -15
    away, dense_away = lesions_against_spared_lung("elsewhere")
    assert away[0] > deeper + 3 and away[1] < further_back - 15 and away[2] > higher + 5
    assert max(dense_away) > 1.5 * max(dense)


def test_a_healthy_study_has_no_lesion(healthy):
    for study in healthy:
        assert study.involved_fraction == 0 and not study.mask.any()


@pytest.mark.parametrize(
    "arguments, named",
    [({"category": "CT-5"}, "CT-5"), ({"category": "CT-0", "scanner": "Z"}, "'Z'"),
     ({"category": "CT-0", "matrix": 8}, "matrix 8"),
     ({"category": "CT-0", "site": "moon"}, "site 'moon'.*home, elsewhere"),
     ({"category": "CT-0", "scanner": "A", "site": "elsewhere"}, "scanner 'A'.*E, F, G")],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named) as error:
        simulate.make_study(1, **arguments)
    assert "\n" not in str(error.value)


def test_scanners_differ_in_padding_and_noise():
    studies = {
        s: simulate.make_study(5, "CT-0", 96, 8, scanner=s) for s in simulate.SITES["home"].scanners
    }
    corners = {s: int(study.hu[0, 0, 0]) for s, study in studies.items()}
    assert corners["B"] == -2000 and corners["C"] == -3024 and corners["A"] > -1025
    noise = {
        s: np.diff(study.hu[:, 4:8, 44:52].astype(float)).std() for s, study in studies.items()
    }
    assert noise["B"] > 1.5 * noise["A"]


def noise_in_tissue(hu):
    """Standard deviation (HU) and correlation of neighbours, where soft tissue is most even."""
    hu = hu.astype(float)
    mean = uniform_filter(hu, (0, 7, 7))
    variance = uniform_filter(hu**2, (0, 7, 7)) - mean**2
    neighbour = uniform_filter(hu * np.roll(hu, 1, 2), (0, 7, 7)) - mean * np.roll(mean, 1, 2)
    soft = (mean > 0) & (mean < 90)
    even = soft & (variance < np.quantile(variance[soft], 0.1))
    return np.sqrt(np.median(variance[even])), np.median(neighbour[even] / variance[even])


def test_elsewhere_lies_outside_home_on_both_sides():
    def measured(site, name):
        """Noise, its grain, the body's share of the image, HU of soft tissue; mean of two."""
        rows = []
        for seed in (5, 6):
            hu = simulate.make_study(seed, "CT-0", 128, 8, name, site).hu
            rows.append(
                [*noise_in_tissue(hu), (hu > -300).mean(), np.median(hu[abs(hu - 45) < 65])]
            )
            if name in "EG":
                assert (hu[:, 0, 0] == {"E": -1024, "G": -2048}[name]).all()
        return np.mean(rows, axis=0)

    home = [measured("home", name) for name in simulate.SITES["home"].scanners]
    e, f, g = (measured("elsewhere", name) for name in "EFG")
    low, high = np.min(home, axis=0), np.max(home, axis=0)
    level, grain, size, offset = range(4)
    assert e[level] > 1.3 * high[level] and max(f[level], g[level]) < 0.7 * low[level]
    assert e[grain] < low[grain] - 0.1 and min(f[grain], g[grain]) > high[grain] + 0.05
    assert e[size] > high[size] + 0.03 and max(f[size], g[size]) < low[size] - 0.02
    assert max(f[offset], g[offset]) < low[offset] - 1


def test_elsewhere_patients_lie_off_centre_and_some_with_their_arms_down():
    wider = []
    for seed in range(6):
        centre, width = {}, {}
        for name, site in (("A", "home"), ("F", "elsewhere"), ("G", "elsewhere")):
            study = simulate.make_study(seed, "CT-0", 96, 8, name, site)
            centre[name] = (np.array(center_of_mass(study.lung))[1:] - 47.5) * study.spacing[1]
            middle = int(study.lung.sum(axis=(1, 2)).argmax())
            row = int(np.median(np.nonzero(study.lung[middle])[0]))
            width[name] = np.ptp(np.flatnonzero(study.hu[middle, row] > -300)) * study.spacing[1]
        wider.append(width["F"] - width["A"] > 60)
        down, left = centre["F"] - centre["A"]
        assert 15 < down < 32 and -24 < left < -12
        down, left = centre["G"] - centre["A"]
        assert -22 < down < -6 and 6 < left < 18
    assert 0 < sum(wider) < 6, "arms"


def test_elsewhere_has_other_slices_and_more_collapsed_lung_at_the_back():
    dependent = {}
    for site in simulate.SITES:
        differences, spacings, depths = [], set(), []
        for seed in range(6):
            study = simulate.make_study(seed, "CT-0", matrix=64, site=site)
            spacings.add(study.spacing[0])
            depths.append(len(study.hu))
            lung = study.lung > 0
            back = np.zeros_like(lung)
            for k in np.flatnonzero(lung.any(axis=(1, 2)))[1 : len(lung) // 3]:
                rows = np.flatnonzero(lung[k].any(axis=1))[-4:]
                back[k, rows] = lung[k, rows]
            differences.append(study.hu[back].mean() - np.median(study.hu[lung]))
        dependent[site] = np.mean(differences)
        if site == "home":
            assert spacings == {8} and min(depths) >= 33 and max(depths) <= 53
        else:
            assert spacings == {5, 10} and min(depths) < 38 and max(depths) > 53
    assert dependent["elsewhere"] > dependent["home"] + 50


def test_home_is_what_it_always_was(cohort):
    """Rounded, since processors differ in the last digits; a changed random draw shows."""
    study = simulate.make_study(3, "CT-2", 64, 12)
    assert study.scanner == "C" and study.spacing[1] == pytest.approx(7.4965557)
    assert study.hu.mean() == pytest.approx(-974.066, abs=0.05)
    assert study.hu.std() == pytest.approx(1137.107, abs=0.05)
    assert study.mask.sum() == pytest.approx(1072, abs=2)
    names = {"version", "counts", "matrix", "seed", "n_slices"}
    assert set(json.loads((cohort / "phantom_settings.json").read_text())) == names


def test_a_cohort_of_an_older_version_is_kept(tmp_path):
    root = simulate.make_cohort(tmp_path / "cohort", workers=1, **SMALL)
    path = root / "phantom_settings.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"scanner_shortcut": False}), encoding="utf-8")
    before = digests(root)
    assert simulate.make_cohort(root, workers=1, **SMALL) == root and digests(root) == before


def test_a_cohort_from_elsewhere(cohort, tmp_path):
    root = simulate.make_cohort(tmp_path / "away", workers=1, **SMALL, site="elsewhere")
    assert json.loads((root / "phantom_settings.json").read_text())["site"] == "elsewhere"
    truth = pd.read_csv(root / "phantom_truth.csv")
    assert set(truth.scanner) <= set("EFG") and truth.category.tolist()[2:] == ["CT-2", "CT-3"]
    for row in truth.itertuples():
        low, high = INTERVALS.get(row.category, (-1, 1e-9))
        assert low < row.involved_fraction < high
    before = digests(root)
    assert simulate.make_cohort(root, workers=1, **SMALL, site="elsewhere") == root
    for folder, site in ((root, "home"), (cohort, "elsewhere")):
        with pytest.raises(ValueError, match="made with another site; choose"):
            simulate.make_cohort(folder, workers=1, **SMALL, site=site)
    with pytest.raises(ValueError, match="site 'moon' is unknown"):
        simulate.make_cohort(tmp_path / "moon", site="moon")
    assert digests(root) == before and not (tmp_path / "moon").exists()


def test_layout_registry_and_headers(cohort):
    registry = pd.read_excel(cohort / "dataset_registry.xlsx")
    assert list(registry.columns) == ["study_id", "category", "study_file", "mask_file"]
    assert registry["study_id"].tolist() == [f"study_{i:04d}" for i in range(1, 5)]
    assert registry["category"].tolist() == ["CT-0", "CT-0", "CT-2", "CT-3"]
    assert registry["mask_file"].isna().tolist() == [True, True, False, False]
    truth = pd.read_csv(cohort / "phantom_truth.csv").set_index("study_id")
    for row in registry.itertuples():
        image = nib.load(cohort / row.study_file.lstrip("/"))
        assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
        assert image.get_data_dtype() == np.int16 and image.shape == (64, 64, 8)
        assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
        np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-4)
        assert bytes(image.header["descrip"]).startswith(b"synthetic")
        study = simulate.make_study(
            int(truth.seed[row.study_id]), row.category, 64, 8, truth.scanner[row.study_id]
        )
        hu = np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1]
        np.testing.assert_array_equal(hu, study.hu)
        assert truth.involved_fraction[row.study_id] == pytest.approx(
            study.involved_fraction, abs=1e-6
        )
        if row.category != "CT-0":
            mask = nib.load(cohort / row.mask_file.lstrip("/"))
            np.testing.assert_array_equal(
                np.asarray(mask.dataobj).transpose(2, 1, 0)[:, ::-1], study.mask
            )


def test_two_workers_make_the_same_files_as_one(cohort, tmp_path):
    other = simulate.make_cohort(tmp_path / "two", workers=2, **SMALL)
    assert digests(other) == digests(cohort)


def test_only_what_is_missing_is_made_again(tmp_path):
    root = simulate.make_cohort(tmp_path / "cohort", workers=1, **SMALL)
    before = digests(root)
    times = {p: p.stat().st_mtime_ns for p in (root / "studies").rglob("*.gz")}
    lost = root / "studies/CT-2/study_0003.nii.gz"
    lost.unlink()
    simulate.make_cohort(root, workers=1, **SMALL)
    assert digests(root) == before
    changed = {p for p, t in times.items() if p.stat().st_mtime_ns != t}
    assert changed == {lost}
    assert not list(root.rglob("*.tmp*"))


def test_other_settings_are_refused(cohort):
    before = digests(cohort)
    with pytest.raises(ValueError, match="another seed") as error:
        simulate.make_cohort(cohort, workers=1, **(SMALL | {"seed": 8}))
    assert str(cohort) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="CT-9"):
        simulate.make_cohort(cohort / "x", counts={"CT-9": 1})
    assert digests(cohort) == before


@pytest.mark.parametrize("site, scanner", [("home", "B"), ("elsewhere", "F")])
def test_no_scanner_follows_the_label(site, scanner):
    plan = simulate._plan({"CT-0": 150, "CT-2": 150}, 1, site)
    share = {
        category: np.mean([j["scanner"] == scanner for j in plan if j["category"] == category])
        for category in ("CT-0", "CT-2")
    }
    assert abs(share["CT-2"] - share["CT-0"]) < 0.15


@pytest.mark.parametrize("site, seed", [("home", 2020), ("elsewhere", 2021)])
def test_neither_a_histogram_nor_the_scanner_solves_the_task(site, seed):
    def features(job):
        study = simulate.make_study(job["seed"], job["category"], 48, 14, job["scanner"], site)
        counts = np.histogram(study.hu, 32, (-1000, 400))[0]
        simple = (
            study.spacing[1],
            noise_in_tissue(study.hu)[0],
            np.clip(study.hu, -1000, 400).mean(),
        )
        return np.log(counts / counts.sum() + 1e-5), simple

    plan = simulate._plan(simulate.DEFAULT_COUNTS, seed, site)
    histograms, simple = (np.array(v) for v in zip(*map(features, plan), strict=True))
    is_sick = np.array([job["category"] != "CT-0" for job in plan])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    score = cross_val_predict(model, histograms, is_sick, cv=folds, method="predict_proba")[:, 1]
    assert roc_auc_score(is_sick, score) < 0.85
    for values in simple.T:
        assert 0.3 < roc_auc_score(is_sick, values) < 0.7


def test_a_complete_cohort_is_not_written_to(tmp_path):
    """It may be shared and read-only; root may write anywhere, so look at the times."""
    root = simulate.make_cohort(tmp_path / "cohort", workers=1, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    assert simulate.make_cohort(root, workers=1, **SMALL) == root
    assert {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]} == before


def test_a_killed_worker_is_one_line(tmp_path, monkeypatch):
    class Killed:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def map(self, *_):
            raise BrokenProcessPool("A process in the process pool was terminated abruptly")

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(simulate, "start_workers", lambda n: Killed())
    with pytest.raises(RuntimeError, match="memory ran out; .*workers=1") as caught:
        simulate.make_cohort(tmp_path / "cohort", workers=2, **SMALL)
    assert len(str(caught.value).splitlines()) == 1
