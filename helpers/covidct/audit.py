"""Is a collection of 2-D images fit for learning? Copies, leaks, shortcuts, and a cleaner split.

Everywhere: `table` has one row an image with the columns image (its name), label (1 = COVID), part
("train", "validation" or "test") and patient; "" means not known. `images` are grey uint8 (H, W)
arrays in the order of the rows, of any size, or one array (N, H, W).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from helpers.ct.cohort import PARTS, SplitError
from helpers.scores.metrics import Interval, auc, auc_interval, wilson
from helpers.storage.files import write_whole

LEFT_OUT = "left out"
MAX_DISTANCE, MIN_THUMBNAIL = 48, 0.94


class AuditError(ValueError):
    """The table and the images do not fit together, or a column is missing; says which."""


def shared(table, column) -> pd.DataFrame:
    """The values of a column (patient, paper), but "", whose images stand in several parts.

    Returns value, parts ("train + test") and n_images.
    """
    _check(table, [column, "part"])
    rows = []
    for value, group in table[table[column].fillna("") != ""].groupby(column):
        parts = [part for part in PARTS if (group.part == part).any()]
        if len(parts) > 1:
            rows.append((value, " + ".join(parts), len(group)))
    return pd.DataFrame(rows, columns=["value", "parts", "n_images"])


def crop_border(image) -> np.ndarray:
    """Cut away the uniform border, and the border inside it, until nothing more comes off.

    image: (H, W) uint8. An outer row or column goes if its values differ by 40 at most
    (JPEG blurs a border). Returns a view; an image without contrast comes back whole.
    """
    image = whole = np.asarray(image)
    while True:
        rows, columns = (np.flatnonzero(np.ptp(image, axis=k) > 40) for k in (1, 0))
        if not len(rows) or not len(columns):
            return whole
        before, image = image, image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if image.shape == before.shape:
            return image


def square(image, size=256) -> np.ndarray:
    """The image without its uniform border, stretched to (size, size) uint8, to compare copies."""
    image = Image.fromarray(np.ascontiguousarray(crop_border(image)))
    return np.asarray(image.resize((size, size), Image.BILINEAR, reducing_gap=2.0))


def difference_hash(image):
    """256 bits of an image (bool): is a pixel of its 16 x 17 thumbnail brighter than its left one?

    image: (H, W) uint8, best from `square`. Scale, brightness and JPEG hardly change the bits.
    Source: N. Krawetz, "Kind of Like That" (2013).
    """
    thumbnail = np.asarray(Image.fromarray(image).resize((17, 16), Image.BOX))
    return (thumbnail[:, 1:] > thumbnail[:, :-1]).ravel()


def near_duplicates(images, table=None, min_correlation=0.9) -> pd.DataFrame:
    """Pairs of images that are copies, or as alike as copies: neighbouring slices of one scan.

    Candidates are pairs whose difference hashes differ in at most 48 of 256 bits or whose 32 x 32
    thumbnails correlate with 0.94 or more; a candidate counts if the 256 x 256 images, borders
    cropped, correlate (Pearson) with min_correlation or more. In COVID-CT no two patients' images
    lie between 0.87 and 0.94. Returns image_a, image_b (names, or numbers without a table),
    distance (bits) and correlation, the most alike first; with a table also same_class, same_part,
    same_patient. Mirrored, turned or far more cropped copies are not found. AuditError.
    """
    names = np.arange(len(images))
    if table is not None:
        _check(table, ["image", "label", "part", "patient"], images)
        names = table.image.to_numpy()
    squares = np.array([square(image) for image in images], np.uint8).reshape(-1, 256, 256)
    signs = np.array([difference_hash(one) for one in squares], np.float32).reshape(-1, 256) * 2 - 1
    distances = np.rint((256 - signs @ signs.T) / 2).astype(int)
    thumbnails = _standard(np.array([_small(one, 32, 32) for one in squares]).reshape(-1, 1024))
    alike = (distances <= MAX_DISTANCE) | (thumbnails @ thumbnails.T >= MIN_THUMBNAIL)
    a, b = np.nonzero(np.triu(alike, k=1))
    pairs = pd.DataFrame({"image_a": names[a], "image_b": names[b], "distance": distances[a, b]})
    both = (_standard(squares[[i, j]].reshape(2, -1)) for i, j in zip(a, b, strict=True))
    pairs["correlation"] = np.array([one @ other for one, other in both], float)
    for column in ("label", "part", "patient") if table is not None else ():
        values, name = table[column].to_numpy(), column.replace("label", "class")
        pairs[f"same_{name}"] = values[a] == values[b]
    pairs = pairs[pairs.correlation >= min_correlation]
    return pairs.sort_values("correlation", ascending=False, kind="stable", ignore_index=True)


def format_rule(table) -> tuple[pd.DataFrame, Interval]:
    """How far mode and extension alone go: the majority class of each group of train, on test.

    table: with columns mode ("RGBA") and extension (".png"). A group that train does not hold, or
    holds with as many of both classes, gets the majority class of train. Returns the rule, a line
    a group, and the accuracy on test with Wilson's interval. AuditError.
    """
    _check(table, ["mode", "extension", "label", "part"])
    train, test = (table[table.part == part] for part in ("train", "test"))
    if train.empty or test.empty:
        raise AuditError("no train or no test images; give the whole collection")
    by = ["mode", "extension"]
    rule = train.groupby(by).label.agg(train_images="size", train_covid="sum")
    tested = test.groupby(by).label.agg(test_images="size", correct="sum")
    rule = rule.join(tested, how="outer").fillna(0).astype(int)
    # the second term is below 1/2 and decides ties only
    margin = 2 * rule.train_covid - rule.train_images + train.label.mean() - 0.5
    rule.insert(2, "answer", (margin > 0).astype(int))
    rule.loc[rule.answer == 0, "correct"] = rule.test_images - rule.correct
    return rule.reset_index(), wilson(int(rule.correct.sum()), len(test))


def brightness_auc(images, table, part="test") -> tuple[Interval, str]:
    """AUC of the mean grey value in one part, with its interval over patients.

    Also returns whether COVID is "brighter" or "darker", which train decides. AuditError.
    """
    _check(table, ["label", "part", "patient"], images)
    brightness = np.array([np.mean(image) for image in images])
    labels = table.label.to_numpy()
    rows, train = ((table.part == name).to_numpy() for name in (part, "train"))
    if len(set(labels[train])) < 2 or len(set(labels[rows])) < 2:
        raise AuditError(f'"train" and "{part}" must both hold images of both classes')
    sign = 1 if auc(labels[train], brightness[train]) >= 0.5 else -1
    patients = table.patient.to_numpy()[rows]
    interval = auc_interval(labels[rows], sign * brightness[rows], patients)
    return interval, "brighter" if sign > 0 else "darker"


def cleaned_split(table, pairs, seed=0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mend a split: no copy, patient or paper in two parts, and as few images moved as possible.

    pairs: from `near_duplicates`. Both images of a pair across classes are left out: nobody knows
    which label is right. Images linked by a patient, a paper (if the table has that column) or a
    pair stay together; such a group, where it straddles, goes to the part with the smallest sum
    of images moved and of images by which the parts then miss their official sizes, class by
    class. seed: decides ties. Returns the table with a column clean_part ("" = left out), and a
    log: image, from, to, reason. AuditError.
    """
    _check(table, ["image", "label", "part", "patient"])
    row_of = pd.Series(np.arange(len(table)), table.image.to_numpy())
    if not row_of.index.is_unique or {*pairs.image_a, *pairs.image_b} - {*table.image}:
        raise AuditError("each image needs a name of its own, and pairs may name no others")
    label, official = table.label.to_numpy(int), pd.Index(PARTS).get_indexer(table.part)
    ends = np.array([row_of[pairs.image_a], row_of[pairs.image_b]], int)
    out = np.isin(np.arange(len(table)), ends[:, label[ends[0]] != label[ends[1]]])
    links = {"copies": ends[:, ~out[ends].any(axis=0)]}
    links |= {name: _chain(table[name], ~out) for name in ("patient", "paper") if name in table}
    a, b = np.concatenate(list(links.values()), axis=1)
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(len(out), len(out)))
    group = connected_components(graph, directed=False)[1]
    crossing = {name: set(group[a[official[a] != official[b]]]) for name, (a, b) in links.items()}

    missing, clean = np.zeros((len(PARTS), 2), int), official.copy()
    reason = np.full(len(out), "copy in the other class", object)
    np.add.at(missing, (official[out], label[out]), 1)
    rng = np.random.default_rng(seed)
    groups = [(np.flatnonzero(group == k), k) for k in sorted(set().union(*crossing.values()))]
    for rows, k in sorted(groups, key=lambda pair: -len(pair[0])):
        np.add.at(missing, (official[rows], label[rows]), 1)
        n_images, costs = np.bincount(label[rows], minlength=2), {}
        for part in rng.permutation(len(PARTS)):
            costs[part] = abs(missing[part] - n_images).sum() - abs(missing[part]).sum()
            costs[part] += (official[rows] != part).sum()
        clean[rows] = best = min(costs, key=costs.get)
        missing[best] -= n_images
        names = " and ".join(name for name in links if k in crossing[name])
        reason[rows] = f"same {names} in two parts"
    parts = np.where(out, "", np.array(PARTS, object)[clean])
    log = {"image": table.image, "from": table.part, "to": np.where(out, LEFT_OUT, parts)}
    changed = pd.DataFrame(log | {"reason": reason})[out | (clean != official)]
    return table.assign(clean_part=parts), changed.reset_index(drop=True)


def save_split(table, path) -> Path:
    """Write image, label and part (clean_part where the table has it) as CSV; returns the path."""
    part = table["clean_part" if "clean_part" in table else "part"]
    lines = table[["image", "label"]].assign(part=part.replace("", LEFT_OUT))
    return write_whole(path, lambda file: lines.to_csv(file, index=False, lineterminator="\n"))


def load_split(path, table=None) -> pd.DataFrame:
    """Read what `save_split` wrote: image, label and part ("" = left out).

    table: where given, the split must name exactly its images. SplitError.
    """
    try:
        raw = Path(path).read_bytes()
        lines = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise SplitError(f"{path}: cannot be read as a split ({error})".split("\n")[0]) from None
    fault = None
    if list(lines) != ["image", "label", "part"]:
        fault = "its columns are not image, label, part"
    elif not (raw.endswith(b"\n") and lines.label.isin(["0", "1"]).all()):
        fault = "it is cut off or a label is neither 0 nor 1"
    elif not lines.part.isin([*PARTS, LEFT_OUT]).all():
        fault = f"a part is none of {', '.join(PARTS)} or {LEFT_OUT}"
    elif (lines.image == "").any() or lines.image.duplicated().any():
        fault = "an image has no name or is there twice"
    elif table is not None and set(lines.image) != set(table.image):
        fault = "it does not name exactly the images of this collection"
    if fault:
        raise SplitError(f"{path}: {fault}; delete it and make the split anew")
    return lines.assign(label=lines.label.astype(int), part=lines.part.replace(LEFT_OUT, ""))


def _small(image, width, height):
    return np.asarray(Image.fromarray(image).resize((width, height), Image.BOX))


def _standard(rows):
    rows = rows - rows.mean(axis=1, keepdims=True, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _chain(column, usable):
    values = column.fillna("").to_numpy(str)
    rows = np.argsort(values, kind="stable")
    rows = rows[usable[rows] & (values[rows] != "")]
    return np.array([rows[:-1], rows[1:]])[:, values[rows[:-1]] == values[rows[1:]]]


def _check(table, columns, images=None):
    missing = [column for column in columns if column not in table]
    if missing:
        raise AuditError(f"the table has no column {', '.join(missing)}")
    if "part" in columns and not table.part.isin(PARTS).all():
        raise AuditError(f"a part is none of {', '.join(PARTS)}; leave such rows out")
    if images is not None and len(images) != len(table):
        raise AuditError(f"{len(images)} images but {len(table)} rows; give one image a row")
