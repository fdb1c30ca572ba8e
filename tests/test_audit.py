"""The audit of a 2-D collection: on made-up images with known answers, and on COVID-CT."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from helpers.covidct import audit
from helpers.ct.cohort import SplitError


def picture(seed, height=120, width=160):
    """A smooth picture of its own for every seed."""
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12), np.uint8))
    return np.asarray(noise.resize((width, height), Image.BICUBIC))


def recompressed(image, quality=50):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def rows(*lines, columns=("image", "label", "part", "patient", "paper")):
    return pd.DataFrame(lines, columns=list(columns))


def pairs_of(*names):
    return pd.DataFrame(names, columns=["image_a", "image_b"])


@pytest.fixture(scope="module")
def covid_ct(real_data):
    """Table, images and pairs of the real collection."""
    module = pytest.importorskip("helpers.covidct.covid_ct")
    table = module.read_collection(real_data / "covid_ct")
    images = module.read_images(real_data / "covid_ct", table)
    return table, images, audit.near_duplicates(images, table)


def test_shared_lists_what_stands_in_two_parts_and_ignores_the_unknown():
    table = rows(
        ("a", 1, "train", "p", "x"),
        ("b", 1, "test", "p", "y"),
        ("c", 1, "test", "q", ""),
        ("d", 1, "train", "r", ""),
        ("e", 1, "train", "r", None),
        ("f", 1, "validation", "p", "y"),
    )
    found = audit.shared(table, "paper")
    assert found.values.tolist() == [["y", "validation + test", 2]]
    found = audit.shared(table, "patient")
    assert found.values.tolist() == [["p", "train + validation + test", 3]]
    with pytest.raises(audit.AuditError, match="no column age"):
        audit.shared(table, "age")


def test_crop_border_takes_nested_borders_and_leaves_a_blank_image():
    inner = picture(0)
    framed = np.pad(np.pad(inner, 7, constant_values=255), ((3, 4), (9, 0)))
    assert np.array_equal(audit.crop_border(framed), audit.crop_border(inner))
    assert audit.crop_border(np.full((30, 40), 90, np.uint8)).shape == (30, 40)
    tall = np.zeros((60, 50), np.uint8)
    tall[20:40, 10:30] = np.indices((20, 20)).sum(0) * 6
    assert audit.crop_border(tall).shape == (20, 20)


def test_difference_hash_compares_each_cell_with_its_left_neighbour():
    ramp = np.tile(np.arange(170, dtype=np.uint8), (100, 1))
    assert audit.difference_hash(ramp).all() and len(audit.difference_hash(ramp)) == 256
    assert not audit.difference_hash(ramp[:, ::-1]).any()
    unrelated = audit.difference_hash(picture(1)) != audit.difference_hash(picture(2))
    assert 80 < unrelated.sum() < 176


@pytest.mark.parametrize(
    "change",
    [
        lambda image: np.asarray(Image.fromarray(image).resize((90, 60))),
        lambda image: recompressed(image),
        lambda image: np.pad(image, ((20, 20), (35, 10)), constant_values=255),
        lambda image: recompressed(np.pad(image, 24)),
        lambda image: (image * 0.6 + 40).astype(np.uint8),
    ],
    ids=["resized", "recompressed", "framed", "framed and recompressed", "paler"],
)
def test_near_duplicates_finds_changed_copies_and_nothing_else(change):
    images = [picture(seed) for seed in range(8)]
    pairs = audit.near_duplicates(images + [change(image) for image in images])
    assert set(zip(pairs.image_a, pairs.image_b, strict=True)) == {(k, k + 8) for k in range(8)}


def test_near_duplicates_agrees_with_brute_force():
    base = [picture(seed) for seed in range(6)]
    blurred = Image.fromarray(base[0]).filter(ImageFilter.GaussianBlur(4))
    mixed = (0.7 * base[1] + 0.3 * base[2]).astype(np.uint8)
    images = [*base, np.asarray(blurred), mixed, np.zeros((50, 50), np.uint8)]
    pairs = audit.near_duplicates(images, min_correlation=0.6)
    found = {(a, b): (d, r) for a, b, d, r in pairs.itertuples(index=False)}
    expected, small = {}, [np.asarray(audit.square(image)) for image in images]
    for a in range(8):
        for b in range(a + 1, 8):
            bits = (
                audit.difference_hash(audit.square(images[a]))
                != audit.difference_hash(audit.square(images[b]))
            ).sum()
            means = [small[k].reshape(32, 8, 32, 8).mean(axis=(1, 3)).ravel() for k in (a, b)]
            correlation = np.corrcoef(small[a].ravel(), small[b].ravel())[0, 1]
            if (bits <= 48 or np.corrcoef(means)[0, 1] >= 0.94) and correlation >= 0.6:
                expected[a, b] = (bits, pytest.approx(correlation, abs=1e-4))
    assert found == expected and (0, 6) in found
    assert pairs.correlation.is_monotonic_decreasing


def test_near_duplicates_says_what_a_pair_shares_and_refuses_what_does_not_fit():
    table = rows(("a", 1, "train", "p", ""), ("b", 0, "train", "q", ""), ("c", 0, "test", "q", ""))
    pairs = audit.near_duplicates([picture(0), picture(0), picture(3)], table)
    line = ["a", "b", 0, pytest.approx(1, abs=1e-5), False, True, False]
    assert pairs.values.tolist() == [line]
    assert audit.near_duplicates([picture(0)]).empty and audit.near_duplicates([]).empty
    with pytest.raises(audit.AuditError, match="2 images but 3 rows"):
        audit.near_duplicates([picture(0)] * 2, table)


def test_format_rule_learns_on_train_and_scores_on_test():
    columns = ("mode", "extension", "label", "part")
    table = rows(
        *[("L", ".png", 1, "train")] * 3,
        *[("L", ".png", 0, "train")],
        *[("L", ".jpg", 0, "train")] * 4,
        *[("RGB", ".png", 0, "train"), ("RGB", ".png", 1, "train")],
        *[("L", ".png", 1, "test"), ("L", ".png", 0, "test"), ("L", ".jpg", 0, "test")],
        *[("RGB", ".png", 0, "test"), ("RGBA", ".png", 1, "test"), ("RGBA", ".png", 0, "test")],
        ("RGBA", ".png", 1, "validation"),
        columns=columns,
    )
    rule, accuracy = audit.format_rule(table)
    answers = {(row.mode, row.extension): row.answer for row in rule.itertuples()}
    # a tie and a group that train lacks get the majority class of train, here 0
    assert answers == {("L", ".png"): 1, ("L", ".jpg"): 0, ("RGB", ".png"): 0, ("RGBA", ".png"): 0}
    assert rule.correct.sum() == 4 and rule.test_images.sum() == 6
    assert accuracy.value == pytest.approx(4 / 6) and accuracy.low < 4 / 6 < accuracy.high
    with pytest.raises(audit.AuditError, match="no test images"):
        audit.format_rule(table[table.part != "test"])


def test_brightness_auc_takes_its_direction_from_train():
    grey = np.array([10, 20, 200, 210, 10, 50, 30, 200])
    images = grey[:, None, None] * np.ones((1, 8, 8), int)
    table = rows(*[(str(k), k % 4 // 2, "train" if k < 4 else "test", k, "") for k in range(8)])
    interval, covid_is = audit.brightness_auc(images, table)
    expected = roc_auc_score(table.label[4:], grey[4:])
    assert covid_is == "brighter" and interval.value == pytest.approx(expected) == 0.75
    assert interval.low <= 0.75 <= interval.high
    flipped = table.assign(label=np.where(table.part == "train", 1 - table.label, table.label))
    interval, covid_is = audit.brightness_auc(images, flipped)
    assert covid_is == "darker" and interval.value == pytest.approx(0.25)
    with pytest.raises(audit.AuditError, match="both classes"):
        audit.brightness_auc(images, table, part="validation")


def test_cleaned_split_leaves_out_moves_and_keeps():
    table = rows(
        ("twin0", 0, "train", "a", ""),
        ("twin1", 1, "test", "b", ""),
        ("copy1", 1, "train", "c", ""),
        ("copy2", 1, "train", "c", ""),
        ("copy3", 1, "test", "d", ""),
        ("paper1", 0, "test", "e", "x"),
        ("paper2", 0, "test", "f", "x"),
        ("paper3", 0, "train", "g", "x"),
        ("other", 0, "validation", "h", ""),
    )
    before = table.copy()
    pairs = pairs_of(("twin0", "twin1"), ("copy1", "copy3"))
    cleaned, log = audit.cleaned_split(table, pairs)
    pd.testing.assert_frame_equal(table, before)
    parts = dict(zip(cleaned.image, cleaned.clean_part, strict=True))
    assert parts["twin0"] == parts["twin1"] == ""
    assert parts["copy1"] == parts["copy2"] == parts["copy3"] == "train"
    assert parts["paper1"] == parts["paper2"] == parts["paper3"] == "test"
    assert parts["other"] == "validation"
    assert log.values.tolist() == [
        ["twin0", "train", "left out", "copy in the other class"],
        ["twin1", "test", "left out", "copy in the other class"],
        ["copy3", "test", "train", "same copies in two parts"],
        ["paper3", "train", "test", "same paper in two parts"],
    ]
    with pytest.raises(audit.AuditError, match="a name of its own"):
        audit.cleaned_split(table, pairs_of(("twin0", "unknown")))


def test_cleaned_split_keeps_the_sizes_near_the_official_ones():
    lines = []
    for paper in ("x", "y"):
        lines += [
            (f"{paper}{k}", 1, "train" if k < 2 else "test", f"{paper}{k}", paper) for k in range(4)
        ]
    cleaned, log = audit.cleaned_split(rows(*lines), pairs_of())
    # each paper can go either way at the same price: one of them goes each way
    assert cleaned.clean_part.value_counts().to_dict() == {"train": 4, "test": 4}
    assert cleaned.groupby("paper").clean_part.nunique().tolist() == [1, 1] and len(log) == 4
    picks = {audit.cleaned_split(rows(*lines), pairs_of(), s)[0].clean_part[0] for s in range(9)}
    assert picks == {"train", "test"}


@pytest.mark.parametrize("seed", range(6))
def test_no_group_straddles_a_cleaned_split(seed):
    rng = np.random.default_rng(seed)
    n = 150
    table = pd.DataFrame({"image": [f"{k}.png" for k in range(n)]})
    table["label"] = rng.integers(0, 2, n)
    table["part"] = rng.choice(["train", "validation", "test"], n, p=[0.6, 0.15, 0.25])
    table["patient"] = [f"{label}-{k}" for label, k in zip(table.label, rng.integers(0, 70, n))]  # noqa: B905
    table["paper"] = np.where(rng.random(n) < 0.3, "", "10.1/" + table.patient.str[-1])
    chosen = rng.choice(n, (10, 2), replace=False)
    pairs = pairs_of(*table.image.to_numpy()[chosen])
    cleaned, log = audit.cleaned_split(table, pairs, seed)
    again, _ = audit.cleaned_split(table, pairs, seed)
    assert cleaned.clean_part.equals(again.clean_part)
    assert cleaned.drop(columns="clean_part").equals(table)
    assert set(cleaned.clean_part) <= {"train", "validation", "test", ""}
    kept = cleaned[cleaned.clean_part != ""]
    for column in ("patient", "paper"):
        named = kept[kept[column] != ""]
        assert named.groupby(column).clean_part.nunique().max() == 1
    by_name, label_of = kept.set_index("image").clean_part, table.set_index("image").label
    dropped = set()
    for a, b in pairs.itertuples(index=False):
        if label_of[a] != label_of[b]:
            dropped |= {a, b}
        elif a in by_name and b in by_name:
            assert by_name[a] == by_name[b]
    assert set(cleaned.image[cleaned.clean_part == ""]) == dropped
    changed = set(cleaned.image[cleaned.clean_part != cleaned.part])
    assert set(log.image) == changed and not log.duplicated("image").any()


def test_a_split_survives_a_round_trip_and_a_damaged_one_is_refused(tmp_path):
    table = rows(
        ("a,b%1.png", 1, "train", "p", ""), ("NA", 0, "test", "q", ""), ("c", 0, "test", "r", "")
    )
    cleaned, _ = audit.cleaned_split(table, pairs_of(("a,b%1.png", "NA")))
    path = audit.save_split(cleaned, tmp_path / "new" / "split.csv")
    read = audit.load_split(path, table)
    assert read.values.tolist() == [["a,b%1.png", 1, ""], ["NA", 0, ""], ["c", 0, "test"]]
    text = path.read_text()
    damaged = {
        text[:-3]: "cut off",
        text.replace("test", "tset"): "a part is none",
        text.replace("NA,0", "NA,2"): "neither 0 nor 1",
        text.replace("NA", "c"): "there twice",
        text.replace("part", "parts"): "columns",
        "": "cannot be read",
        text + "d,1\n": "a part is none",
        text + 'd,1,"test\n': "cannot be read",
        text + "d,1,test\n": "exactly the images",
    }
    for content, reason in damaged.items():
        path.write_text(content)
        with pytest.raises(SplitError, match=reason) as caught:
            audit.load_split(path, table)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(SplitError):
        audit.load_split(path)
    with pytest.raises(SplitError, match="cannot be read"):
        audit.load_split(tmp_path / "none.csv")


def test_the_two_figures_in_both_classes_of_covid_ct_are_found(covid_ct):
    table, _, pairs = covid_ct
    across = pairs[~pairs.same_class]
    assert {frozenset(pair) for pair in across[["image_a", "image_b"]].values} == {
        frozenset({"kjr-21-e24-p5-29.png", "71%0.jpg"}),
        frozenset({"kjr-21-e24-p5-31.png", "71%1.jpg"}),
    }
    assert across.correlation.round(2).tolist() == [0.96, 0.94] and not across.same_part.any()
    # all others are neighbouring slices of one patient
    assert len(pairs) == 20 and pairs.same_patient.sum() == 18
    assert pairs[pairs.same_class].same_part.all()


def test_no_slices_of_one_patient_but_these_pass_for_copies(covid_ct):
    table, images, pairs = covid_ct
    rows = table[table.patient == table.patient.value_counts().index[0]].index
    assert len(rows) == 16
    assert audit.near_duplicates([images[k] for k in rows]).empty


def test_copies_of_real_images_are_found(covid_ct):
    _, images, _ = covid_ct
    chosen = images[::25]
    copies = [recompressed(np.pad(one[::2, ::2], 12, constant_values=255), 70) for one in chosen]
    pairs = audit.near_duplicates(chosen + copies)
    found = pairs[pairs.image_b - pairs.image_a == len(chosen)]
    assert len(found) >= 0.9 * len(chosen)
    assert len(pairs) == len(found)


def test_the_official_split_of_covid_ct(covid_ct):
    table, images, _ = covid_ct
    papers = audit.shared(table, "paper")
    assert papers.values.tolist() == [
        ["10.1101/2020.03.12.20034686", "train + test", 6],
        ["10.1101/2020.03.13.20035212", "train + validation", 12],
        ["10.1101/2020.03.22.20040782", "validation + test", 14],
    ]
    assert audit.shared(table, "patient").empty
    rule, accuracy = audit.format_rule(table)
    assert (rule.correct.sum(), rule.test_images.sum()) == (161, 203)
    assert accuracy.value == pytest.approx(161 / 203) and str(accuracy) == "0.79 [0.73, 0.84]"
    assert rule.answer[rule["mode"] == "RGBA"].tolist() == [1]
    interval, covid_is = audit.brightness_auc(images, table)
    test = (table.part == "test").to_numpy()
    brightness = np.array([image.mean() for image in images])
    assert covid_is == "brighter" and str(interval) == "0.62 [0.47, 0.75]"
    assert interval.value == pytest.approx(roc_auc_score(table.label[test], brightness[test]))


def test_the_cleaned_split_of_covid_ct(covid_ct):
    table, _, pairs = covid_ct
    cleaned, log = audit.cleaned_split(table, pairs)
    sizes = cleaned.groupby(["label", "clean_part"]).size().unstack()
    assert sizes.loc[1, ["train", "validation", "test", ""]].tolist() == [190, 68, 89, 2]
    assert sizes.loc[0, ["train", "validation", "test", ""]].tolist() == [232, 58, 105, 2]
    assert len(log) == 14 and (log["to"] == "left out").sum() == 4
    again = cleaned.assign(part=cleaned.clean_part)[cleaned.clean_part != ""]
    assert audit.shared(again, "paper").empty and audit.shared(again, "patient").empty


def test_pairs_are_those_that_correlate_as_asked():
    rng = np.random.default_rng(0)
    smooth = np.asarray(
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize((256, 256)), float
    )
    noisy = smooth + rng.normal(0, 0.5 * smooth.std(), smooth.shape)
    images = [np.clip(image, 0, 255).astype(np.uint8) for image in (smooth, noisy)]
    found = audit.near_duplicates(images, min_correlation=0)
    squares = [audit.square(image).ravel() for image in images]
    correlation = np.corrcoef(*squares)[0, 1]
    assert found.correlation.iloc[0] == pytest.approx(correlation, abs=1e-5)
    assert 0.8 < correlation < 0.95
    assert len(audit.near_duplicates(images, min_correlation=correlation - 0.01)) == 1
    assert audit.near_duplicates(images, min_correlation=correlation + 0.01).empty
