"""The quality sheet: known truths of phantoms, planted faults, an independent count, real scans."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from scipy import ndimage

from helpers.ct import quality
from helpers.ct.cohort import find_studies
from helpers.ct.studies import read_study
from helpers.figures import plots
from helpers.phantom import simulate

COLOUR = "#009E73"  # of the lungs' outline
# What is true of the real scans: whether contrast medium was given (None: no heart in the picture),
# whether the chest is whole
REAL = {
    "covidctmd_P001": (False, True),
    "covidctmd_normal001": (False, True),
    "cptac": (True, True),
    "lungfcp": (False, False),
    "ricord": (False, True),
    "example_ct_int32": (None, False),
    "example_ct_sm": (None, False),
    "pulmonary_ct": (True, False),
}


def phantom(seed=3, category="CT-0", matrix=192, scanner="A", **options):
    """A phantom as a study: what `measure` reads of one, and its truth."""
    made = simulate.make_study(seed, category, matrix, scanner=scanner, **options)
    return SimpleNamespace(hu=made.hu, spacing=made.spacing, truth=made)


def changed(study, hu, spacing=None):
    return SimpleNamespace(hu=hu.astype(np.int16), spacing=spacing or study.spacing)


def save(path, study):
    path.parent.mkdir(parents=True, exist_ok=True)
    simulate.save_nifti(path, study.hu, study.spacing, "phantom")


@pytest.fixture(scope="module")
def study():
    return phantom()


@pytest.fixture(scope="module")
def measured(study):
    return quality.measure(study)


@pytest.fixture(scope="module")
def enhanced():
    """The same patient after contrast medium: the heart, the vessels and the lungs' vessels."""
    with pytest.MonkeyPatch.context() as patch:
        from helpers.phantom import shapes

        bright = [
            (shape, hu + 130 if role in ("heart", "mediastinum") and 41 < hu < 46 else hu, role)
            for shape, hu, role in shapes.SHAPES
        ]
        patch.setattr(shapes, "SHAPES", bright)
        return phantom()


@pytest.fixture(scope="module")
def sheet(tmp_path_factory, study, enhanced):
    """The sheet of a cohort in which one scan is sound and every other has a fault of its own."""
    root = tmp_path_factory.mktemp("cohort")
    rows = np.hypot(*np.indices(study.hu.shape[1:]) - 95.5) > 75
    faults = {
        "sound": study,
        "copy": study,
        "shifted": changed(study, study.hu + 100),
        "no_intercept": changed(study, study.hu + 1024),
        "contrast": enhanced,
        "no_base": changed(study, study.hu[21:]),
        "no_top": changed(study, study.hu[:-12]),
        "padded": changed(study, np.where(rows, -2000, study.hu)),
        "mm": changed(study, study.hu + 1, (14.0, *study.spacing[1:])),
    }
    for name, fault in faults.items():
        save(root / "studies" / "CT-0" / f"study_{name}.nii.gz", fault)
    (root / "studies" / "CT-0" / "study_web_page.nii.gz").write_text("<html>")
    with pytest.warns(UserWarning, match="copies"):
        table = find_studies(root)
    return quality.sheet(table, root).set_index(table.study.str[6:], drop=False)


def asked(sheet, name):
    found = quality.findings(sheet)
    found = found[found.study == f"study_{name}"]
    return dict(zip(found.check, found.finding, strict=True))


def test_a_phantom_is_measured_as_it_was_made(study, measured):
    offset = simulate.SITES["home"].scanners["A"].offset
    assert measured["air"] == pytest.approx(-1000 + offset, abs=6)
    assert measured["fat"] == pytest.approx(-100 + offset, abs=6)
    assert measured["soft"] == pytest.approx(55 + offset, abs=8)  # muscle; the liver has 58
    assert measured["vessels"] == pytest.approx(42 + offset, abs=12)
    depth, height, width = study.hu.shape
    assert measured["n_slices"] == depth
    assert measured["height"] == depth * study.spacing[0]
    assert measured["width"] == pytest.approx(width * study.spacing[2])
    assert (measured["spacing_z"], measured["spacing_x"]) == (study.spacing[0], study.spacing[2])
    assert measured["padding"] == 0 and np.isnan(measured["pad_value"])
    litres = study.truth.lung.sum() * np.prod(study.spacing) / 1e6
    assert 0.75 * litres < measured["lung"] < litres  # without vessels, edges and what is dense
    assert measured["lung_base"] < 0.05 and measured["lung_top"] == 0


@pytest.mark.parametrize("scanner", ["B", "F"])
def test_every_scanner_is_told_by_its_offset_and_padding(scanner):
    site = "home" if scanner in simulate.SITES["home"].scanners else "elsewhere"
    machine = simulate.SITES[site].scanners[scanner]
    study = phantom(5, "CT-2", 128, scanner, site=site)
    found = quality.measure(study)
    assert found["air"] == pytest.approx(-1000 + machine.offset, abs=6)
    assert found["fat"] == pytest.approx(-100 + machine.offset, abs=6)
    corner = 0 if machine.padding is None else 1 - np.pi / 4
    assert found["padding"] == pytest.approx(corner, abs=0.06)
    assert 20 < found["vessels"] < 90
    assert (found["pad_value"] == machine.padding) == (machine.padding is not None)


def test_the_regions_lie_in_the_truth(study):
    found = quality.regions(study)
    truth = study.truth.lung.astype(bool)
    assert found["hu"].shape == truth.shape  # a pixel is a block already
    assert (found["lung"] & truth).sum() > 0.97 * found["lung"].sum()
    assert (found["middle"] & truth).sum() < 0.01 * found["middle"].sum()
    assert np.mean(found["hu"][found["middle"]] > 130) < 0.01, "the spine is no vessel"
    area = truth.sum(axis=(1, 2))
    assert not found["middle"][area < 0.4 * area.max()].any(), "neither neck nor liver"
    assert not (found["front"] & found["body"]).any()
    assert found["body"][:, 96, 96].all()
    assert not found["padding"].any()


def test_blocks_are_means_computed_another_way():
    rng = np.random.default_rng(0)
    hu = rng.integers(-1000, 400, (9, 41, 38)).astype(np.int16)
    study = SimpleNamespace(hu=hu, spacing=(5.0, 0.75, 1.4))
    means, size = quality.blocks(study)
    assert means.shape == (9, 10, 19) and size == (5.0, 3.0, 2.8)
    wanted = hu[:, :40, :38].reshape(9, 10, 4, 19, 2).mean(axis=(2, 4))
    assert np.allclose(means, wanted, atol=1e-4)


def test_peaks_are_those_of_a_mixture_and_none_without_one():
    rng = np.random.default_rng(0)
    mixture = np.concatenate([rng.normal(m, 8, 20_000) for m in (-990, -104, 47)])
    for low, high, wanted in ((-1100, -850, -990), (-180, -30, -104), (0, 110, 47)):
        assert quality.peak(mixture, low, high) == pytest.approx(wanted, abs=3)
    assert np.isnan(quality.peak(mixture, -600, -400))
    assert np.isnan(quality.peak(rng.uniform(-900, 400, 500_000), -180, -30))
    assert np.isnan(quality.peak(np.array([]), 0, 110))
    few = np.concatenate([mixture, rng.normal(-500, 5, 300)])
    assert np.isnan(quality.peak(few, -600, -400)), "300 of 60,300 are too few"
    assert np.isnan(quality.peak(rng.normal(140, 15, 50_000), 0, 110)), "a slope is no peak"


def test_contrast_medium_is_told_by_the_vessels(measured, enhanced):
    bright = quality.measure(enhanced)
    assert bright["vessels"] - measured["vessels"] == pytest.approx(130, abs=20)
    assert bright["vessels"] > quality.RANGES["vessels"][1] > measured["vessels"]
    assert bright["fat"] == pytest.approx(measured["fat"], abs=3)


def test_a_sound_study_raises_no_question(sheet):
    assert asked(sheet, "copy") == {}
    assert sheet.problem["sound"] == ""


@pytest.mark.parametrize(
    "name, checks, words",
    [
        ("sound", {"content"}, "holds the same voxels as study_copy"),
        ("shifted", {"air", "fat"}, "intercept"),
        ("contrast", {"vessels"}, "contrast medium"),
        ("no_base", {"lung_base"}, "begins above the lungs' base"),
        ("no_top", {"lung_top"}, "ends below the lungs' top"),
        ("padded", {"padding"}, "holds nothing"),
        ("mm", {"height", "spacing_z"}, "spacing in the header is wrong"),
        ("no_intercept", {"problem"}, "without their offset"),
        ("web_page", {"problem"}, "study_web_page.nii.gz"),
    ],
)
def test_a_planted_fault_is_found_by_its_check(sheet, name, checks, words):
    found = asked(sheet, name)
    assert checks <= {*found}, found
    assert any(words in text for text in found.values()), found
    alien = {
        "shifted": {"soft", "vessels"},
        "no_base": {"lung", "height"},
        "no_top": {"lung"},
        "mm": {"lung"},
    }
    assert {*found} <= checks | alien.get(name, set()), found


def test_the_sheet_keeps_every_study_in_its_place(sheet):
    assert [*sheet.study] == sorted(sheet.study) and len(sheet) == 10
    broken = sheet[sheet.problem != ""]
    assert {*broken.index} == {"no_intercept", "web_page"}
    assert broken[[*quality.RANGES]].isna().all(axis=None) and (broken.content == "").all()
    contents = sheet.content[sheet.content != ""]
    assert contents["sound"] == contents["copy"] and contents.nunique() == 7
    assert sheet.loc["shifted", "air"] - sheet.loc["sound", "air"] == pytest.approx(100, abs=3)
    assert sheet.loc["padded", "pad_value"] == -2000


def test_every_check_asks_outside_its_range_and_nowhere_else():
    usual = {check: (low + high) / 2 for check, (low, high, *_) in quality.RANGES.items()}
    line = {"study": "a", "problem": "", "content": "1"}
    for check, (low, high, *_) in quality.RANGES.items():
        for value, is_asked in ((low, 0), (high, 0), (low - 0.01, 1), (high + 0.01, 1)):
            found = quality.findings(pd.DataFrame([line | usual | {check: value}]))
            assert [*found.check] == [check] * is_asked, (check, value)
        found = quality.findings(pd.DataFrame([line | usual | {check: np.nan}]))
        assert len(found) == (check in quality.PEAKS), check


def test_an_empty_cohort_and_an_odd_volume_are_measured_too():
    nothing = quality.sheet(pd.DataFrame(columns=["study", "category", "file"]), ".")
    assert len(nothing) == 0 and len(quality.findings(nothing)) == 0
    rng = np.random.default_rng(0)
    noise = SimpleNamespace(hu=rng.integers(-1000, 300, (8, 9, 7)), spacing=(5.0, 3.0, 3.0))
    flat = SimpleNamespace(hu=np.zeros((8, 9, 7), np.int16), spacing=(5.0, 3.0, 3.0))
    for odd in (noise, flat):
        found = quality.measure(changed(odd, odd.hu))
        assert found["lung"] == 0 and np.isnan(found["vessels"])


@pytest.mark.filterwarnings("error")
def test_the_pictures_show_what_the_sheet_holds(sheet, study, measured):
    figure = plots.quality_sheet(sheet.reset_index(drop=True), "synthetic")
    assert len(figure.axes) == 9 == len(plots.CHECKS)
    for axis, check in zip(figure.axes, plots.CHECKS, strict=True):
        points = np.concatenate([dots.get_offsets()[:, 0] for dots in axis.collections])
        assert np.allclose(sorted(points), sorted(sheet[check].dropna()))
        low, high = quality.RANGES[check][:2]
        band = axis.patches[0].get_extents().transformed(axis.transData.inverted())
        assert (band.x0, band.x1) == pytest.approx((low, high))
        found = quality.findings(sheet)
        n_outside = ((found.check == check) & found.value.notna()).sum()
        n_without = sheet[check].isna().sum()
        says = f"{n_outside} outside" if n_outside else "all usual"
        assert axis.get_title().endswith(f"{says}, {n_without} without")
    air, vessels = figure.axes[0], figure.axes[3]
    assert air.get_title() == "air, HU: 1 outside, 2 without"
    assert [text.get_text() for text in air.texts] == ["study_shifted"]
    assert "study_contrast" in plots.alternative_text(figure)
    assert {"study_contrast"} <= {text.get_text() for text in vessels.texts}

    figure = plots.quality_of_one(study, measured, "synthetic")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[0] == f"air \N{MINUS SIGN}{-measured['air']:.0f}" and len(texts) == 4
    lines = [line.get_xdata()[0] for line in figure.axes[0].lines]
    assert lines == [measured[name] for name in ("air", "fat", "soft", "vessels")]
    assert all(len(axis.collections) >= 2 for axis in figure.axes[1:]), "outlines are missing"
    coronal = figure.axes[2].images[0]
    assert coronal.get_extent() == [0, measured["width"], 0, measured["height"]]
    assert f"vessels, HU {measured['vessels']:.4g}" in plots.alternative_text(figure)


@pytest.mark.parametrize("finer", [1, 2])
def test_outlines_lie_on_the_picture(study, measured, finer):
    """The lung's outline encloses dark pixels in all three planes, upright ones too."""
    z, y, x = study.spacing
    hu = study.hu.repeat(finer, axis=1).repeat(finer, axis=2)
    study = SimpleNamespace(hu=hu, spacing=(z, y / finer, x / finer))
    figure, n_outlined = plots.quality_of_one(study, measured), 0
    for axis in figure.axes[1:]:
        (image,) = axis.images
        left, right, bottom, top = image.get_extent()
        picture = np.asarray(image.get_array())
        rows = np.linspace(0, max(bottom, top), len(picture))  # row 0 is at 0 mm in every plane
        columns = np.linspace(left, right, picture.shape[1])
        points = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
        lungs = [c for c in axis.collections if to_hex(c.get_edgecolor()[0]).upper() == COLOUR]
        for lung in lungs:
            (path,) = lung.get_paths()
            inside = picture.ravel()[path.contains_points(points)]
            assert len(inside) > 50 and np.mean(inside < -500) > 0.9
            n_outlined += 1
    assert n_outlined >= 2, "no lung lies in the sagittal plane between both"


def test_real_scans_are_judged_as_they_are(real_data):
    found = {}
    for path in sorted((real_data / "volumes").glob("*.nii.gz")):
        (name,) = [name for name in REAL if name in path.name]
        found[name] = quality.measure(read_study(path))
    assert found.keys() == REAL.keys()
    for name, (has_contrast, is_whole) in REAL.items():
        line = found[name]
        for check in ("air", "fat", "soft"):
            low, high = quality.RANGES[check][:2]
            assert low <= line[check] <= high, (name, check, line[check])
        if has_contrast is None:
            assert np.isnan(line["vessels"])
        else:
            assert (line["vessels"] > quality.RANGES["vessels"][1]) == has_contrast, name
        checks = ("height", "width", "lung", "lung_base", "lung_top")
        inside = [quality.RANGES[c][0] <= line[c] <= quality.RANGES[c][1] for c in checks]
        assert all(inside) == is_whole, (name, line)
    assert found["ricord"]["pad_value"] == -3024
    assert found["ricord"]["padding"] == pytest.approx(0.21, abs=0.01)
    assert found["cptac"]["padding"] == 0


@pytest.mark.filterwarnings("ignore:.*no affine")
def test_a_real_scan_that_lies_face_down_shows_its_table_in_front(real_data):
    names = ("orient_PIR", "no_affine")  # the same scan; without its header front and back change
    table = pd.DataFrame({"study": names, "category": "CT-0"})
    table["file"] = [f"odd_volumes/{name}.nii.gz" for name in names]
    found = quality.findings(quality.sheet(table, real_data))
    assert [*found[found.check == "air"].study] == ["no_affine"]
    assert "front is back" in found[found.check == "air"].finding.iloc[0]


def test_real_fat_and_vessels_are_those_of_voxels_picked_otherwise(real_data):
    """Fat far from all edges, and even discs of 15 mm in the middle third."""
    for name in ("covidctmd_normal001", "cptac"):
        (path,) = (real_data / "volumes").glob(f"*{name}*")
        study = read_study(path)
        found = quality.measure(study)
        hu = study.hu[len(study.hu) // 2 - 4 : len(study.hu) // 2 + 8].astype(np.float32)
        smooth = ndimage.uniform_filter(hu, (0, 5, 5))
        inside = ndimage.binary_erosion((smooth > -160) & (smooth < -50), np.ones((1, 7, 7)))
        counts, edges = np.histogram(smooth[inside], np.arange(-160, -49, 5))
        assert found["fat"] == pytest.approx(edges[counts.argmax()] + 2.5, abs=6)
        third = hu[:, 150:300, 180:340]
        smooth = ndimage.uniform_filter(third, (0, 25, 25))
        spread = np.sqrt(ndimage.uniform_filter(third**2, (0, 25, 25)) - smooth**2)
        discs = smooth[(spread < 60) & (smooth > 20)]
        assert found["vessels"] == pytest.approx(np.percentile(discs, 75), abs=12)
