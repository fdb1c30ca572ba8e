"""What a scan is before anybody looks at its lungs: its HU, contrast medium, size and padding.

Everything is read off blocks of about 3 mm, whose means have little noise, by steps that can be
drawn: `regions` gives the parts of the picture, `measure` the numbers found in them, `sheet` a line
for each study of a cohort, and `findings` says in words what is out of its range.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage, signal

from helpers.ct.studies import Study, UnreadableStudy

BLOCK = 3.0  # mm
BELOW_AIR = -1100  # HU: darker is padding, what a scanner writes where it has seen nothing
TISSUE, LUNG, METAL = -300, -400, 700  # HU: tissue is above the first, lung below the second
EVEN = 70  # HU between a block and its eight neighbours at most, where there is no edge
SMALLEST_LUNG = 0.1  # litres
PEAKS = {"air": (-1100, -850), "fat": (-180, -30), "soft": (0, 110)}  # HU, where each is sought
# Column: lowest and highest value that calls for no question, and what lower and higher ones may
# mean. Measured in eight real scans of five sources: air -1002 to -986, fat -117 to -87, soft 36 to
# 55 (71 with much contrast medium), vessels 44 to 50 (phantoms: to 68), with contrast medium 147
# and 508; the whole chests among them are 296 to 315 mm high and hold 2.6 to 5.9 litres of lung,
# which in their end slices has a fiftieth of its widest area at most. The ranges are these, widened
# for other scanners' calibration and for other bodies.
SHIFT = "a wrong intercept or slope, or another calibration"
CUT, SPACING = "part of the chest is missing", "the spacing in the header is wrong"
RANGES = {
    "air": (-1020, -970, SHIFT, f"the table lies in front of the chest: front is back; or {SHIFT}"),
    "fat": (-125, -75, SHIFT, SHIFT),
    "soft": (25, 75, SHIFT, f"contrast medium, or {SHIFT}"),
    "vessels": (20, 90, SHIFT, "contrast medium"),
    "height": (200, 500, CUT, f"more than a chest, or {SPACING}"),
    "width": (250, 550, "a cropped image", SPACING),
    "spacing_z": (0.4, 10, SPACING, "so few slices that small lesions fall between them"),
    "spacing_x": (0.3, 3, SPACING, "pixels so large that small lesions blur"),
    "padding": (0, 0.3, "", "much of the image holds nothing"),
    "lung": (1.5, 9, "part of the lungs is missing, collapsed or white", SPACING),
    "lung_base": (0, 0.1, "", "the scan begins above the lungs' base"),
    "lung_top": (0, 0.1, "", "the scan ends below the lungs' top"),
}
UNITS = dict.fromkeys(("air", "fat", "soft", "vessels"), " HU") | {"lung": " litres"}
UNITS |= dict.fromkeys(("height", "width", "spacing_z", "spacing_x"), " mm")


def blocks(study: Study) -> tuple[np.ndarray, tuple[float, float, float]]:
    """The means of blocks of about 3 mm within the slices, and the blocks' size (z, y, x) in mm.

    Returns float32 (D, h, w), HU; what does not fill a block at the back and the left is dropped.
    """
    hu, (z, y, x) = study.hu, study.spacing
    down, right = (
        min(max(1, round(BLOCK / step)), n) for step, n in zip((y, x), hu.shape[1:], strict=True)
    )
    h, w = hu.shape[1] // down, hu.shape[2] // right
    total = np.zeros((len(hu), h, w), np.int32)
    for row in range(down):
        for column in range(right):
            total += hu[:, row : h * down : down, column : w * right : right]
    return np.float32(total) / (down * right), (z, y * down, x * right)


def find_padding(hu) -> float:
    """The value that stands where the scanner has seen nothing; NaN if there is none.

    It is a volume's lowest, if that fills the slices' corners, or is below any air and not rare.
    hu: (D, H, W).
    """
    lowest, corners = hu.min(), hu[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    is_rare = (hu == lowest).mean() < 0.001
    is_padding = (corners == lowest).mean() > 0.99 or (lowest < BELOW_AIR and not is_rare)
    return float(lowest) if is_padding else np.nan


def regions(study: Study) -> dict[str, np.ndarray]:
    """The blocks of a study, and where what is measured lies: arrays (D, h, w), all but hu boolean.

    hu: the blocks' means. padding: outside the scanner's view. front: the air in front of the
    chest. body: with all that it encloses. lung: air within it that is no gas. even: body without
    the edges between tissues. middle: heart and great vessels, which are even tissue with lung at
    the right and the left, in the front three fifths of the lungs (the spine lies behind), in
    slices with half the widest lung or more.
    """
    hu, size = blocks(study)
    near = np.ones((1, 3, 3), bool)
    seen = hu > np.nanmax([BELOW_AIR, find_padding(study.hu)])
    gas = 60 + np.percentile(hu[seen], 0.5) if seen.any() else 0  # the darkest, and its noise
    parts, n_parts = ndimage.label(ndimage.binary_opening(hu > TISSUE, near))  # leaves the table
    largest = 1 + np.bincount(parts.ravel(), minlength=n_parts + 2)[1:].argmax()
    body = _fill(parts == largest, hu > gas)
    lung = ndimage.binary_opening(body & (hu < LUNG) & (hu > gas), near)
    parts, n_parts = ndimage.label(lung)
    is_lung = np.bincount(parts.ravel()) * np.prod(size) / 1e6 >= SMALLEST_LUNG
    is_lung[0] = False
    lung = is_lung[parts]
    even = ndimage.maximum_filter(hu, (1, 3, 3)) - ndimage.minimum_filter(hu, (1, 3, 3)) < EVEN
    right = np.logical_or.accumulate(lung, axis=2)
    left = np.logical_or.accumulate(lung[:, :, ::-1], axis=2)[:, :, ::-1]
    rows, area = lung.any(axis=2), lung.sum(axis=(1, 2))
    first, behind = rows.argmax(axis=1), rows.shape[1] - rows[:, ::-1].argmax(axis=1)
    reach = np.where(area > area.max() / 2, first + 0.6 * (behind - first), 0)
    is_front = np.arange(hu.shape[1]) < reach[:, None]
    middle = right & left & is_front[:, :, None] & even & (hu > 0) & (hu < METAL)
    below_skin = np.logical_or.accumulate(ndimage.binary_dilation(body, near), axis=1)
    front = body.any(axis=1)[:, None] & ~below_skin & seen
    return dict(
        hu=hu, padding=~seen, front=front, body=body, lung=lung, even=even & body, middle=middle
    )


def _fill(body, is_filled):
    """The body (D, h, w) with what it encloses in each slice.

    Where the image cuts through the body, its edge closes it, unless there is air at the edge.
    """
    whole = np.empty_like(body)
    for k, (slice_, filled) in enumerate(zip(body, is_filled, strict=True)):
        framed = np.pad(filled, 1, mode="edge")
        framed[1:-1, 1:-1] = slice_
        whole[k] = ndimage.binary_fill_holes(framed)[1:-1, 1:-1]
    return whole


def peak(values, low, high) -> float:
    """The HU between low and high at which the histogram of `values` has its highest peak.

    NaN where it has none, or one that less than a hundredth of the values lie near (10 HU).
    """
    margin = 50  # on both sides, so that a slope which only enters the range is no peak
    edges = np.arange(low - margin, high + margin + 2) - 0.5
    counts = ndimage.gaussian_filter1d(np.histogram(values, edges)[0].astype(float), 5)
    peaks, _ = signal.find_peaks(counts, prominence=max(0.1 * counts.max(), 1e-9))
    peaks = peaks[(peaks >= margin) & (peaks <= margin + high - low)]
    peaks = peaks[counts[peaks] * 10 >= 0.01 * len(values)]
    return float(low - margin + peaks[counts[peaks].argmax()]) if len(peaks) else np.nan


def measure(study: Study) -> dict[str, float]:
    """A study's numbers: HU, mm, litres and shares; NaN where there is nothing to measure.

    n_slices; spacing_z, spacing_x, height and width, mm; air, fat and soft (muscle, organs and
    blood): the peaks of the histogram, HU; vessels: the HU that a quarter of the heart and great
    vessels exceeds; padding: the share of voxels that hold nothing, and pad_value, HU; lung: litres
    of lung with air in it; lung_base, lung_top: its area in the first and last slice, as a share of
    the largest. UnreadableStudy if the voxels cannot be read.
    """
    found, hu = regions(study), study.hu
    pad_value = find_padding(hu)
    blocks_hu, area = found["hu"], found["lung"].sum(axis=(1, 2))
    middle = blocks_hu[found["middle"]]
    (z, y, x), (n_slices, n_rows, n_columns) = study.spacing, hu.shape
    h, w = blocks_hu.shape[1:]
    litres = z * y * x * (n_rows // h) * (n_columns // w) / 1e6  # in a block
    share = area / area.max() if area.any() else np.full(n_slices, np.nan)
    return {
        "n_slices": n_slices,
        "spacing_z": z,
        "spacing_x": x,
        "height": n_slices * z,
        "width": n_columns * x,
        "air": peak(blocks_hu[found["front"]], *PEAKS["air"]),
        "fat": peak(blocks_hu[found["even"]], *PEAKS["fat"]),
        "soft": peak(blocks_hu[found["even"]], *PEAKS["soft"]),
        "vessels": float(np.percentile(middle, 75)) if len(middle) >= 100 else np.nan,
        "padding": float((hu == pad_value).mean()),
        "pad_value": pad_value,
        "lung": float(area.sum() * litres),
        "lung_base": float(share[0]),
        "lung_top": float(share[-1]),
    }


def sheet(table, root) -> pd.DataFrame:
    """What `measure` finds in each study of a table of `cohort.find_studies`, in its order.

    Columns: study, category, file, what `measure` gives, `content` (the same for the same voxels
    under another name) and `problem`: "", or the line that says why a study cannot be read.
    """
    lines = []
    for row in table[["study", "category", "file"]].to_dict("records"):
        try:
            study = Study(Path(root).expanduser() / row["file"])
            content = hashlib.blake2b(repr(study.hu.shape).encode(), digest_size=8)
            content.update(study.hu)
            row |= measure(study) | {"content": content.hexdigest(), "problem": ""}
        except UnreadableStudy as error:
            row |= {"content": "", "problem": str(error)}
        lines.append(row)
    columns = ["study", "category", "file", "n_slices", *RANGES, "pad_value", "content", "problem"]
    return pd.DataFrame(lines, columns=columns)


def findings(sheet) -> pd.DataFrame:
    """What to ask about each study of a `sheet`: columns study, check, value and finding, in words.

    check: "problem", "content" for a copy of an earlier study, or the column that is out of RANGES
    or without a value.
    """
    found, firsts = [], {}
    for row in sheet.to_dict("records"):
        study = row["study"]
        if row["problem"]:
            found.append((study, "problem", np.nan, row["problem"]))
            continue
        first = firsts.setdefault(row["content"], study)
        if first != study:
            found.append((study, "content", np.nan, f"holds the same voxels as {first}"))
        for check, (low, high, if_low, if_high) in RANGES.items():
            value, unit, name = row[check], UNITS.get(check, ""), check.replace("_", " ")
            usual = f"usual is {low:g} to {high:g}{unit}"
            if np.isnan(value) and check in PEAKS:
                found.append((study, check, value, f"{name}: none found, {usual}"))
            elif value < low or value > high:
                number = f"{value:.0f}" if unit == " HU" else f"{value:.3g}"
                why = if_low if value < low else if_high
                found.append((study, check, value, f"{name} {number}{unit}, {usual}: {why}"))
    return pd.DataFrame(found, columns=["study", "check", "value", "finding"])
