"""Pictures of a CT volume as plain arrays: windows, planes, overlays, marks, contact sheets.

Everything here is a function from arrays to an array of pixels; the widgets of `viewers` only
show what these return. A picture is shown as radiologists look at it: the patient's right at the
left, the front at the top of an axial slice, the head at the top of the other two planes.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from helpers.ct import preprocessing

PRESETS = {
    "lung": (-600, 1500),
    "mediastinum": (40, 400),
    "bone": (400, 1800),
    "course": (-300, 1400),
}
PLANES = ("axial", "coronal", "sagittal")
# what stands at the left, right, top and bottom edge: right, left, anterior, posterior, head, feet
SIDES = {"axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}
MASK_COLOUR = (230, 159, 0)
CROSS_COLOUR = (86, 180, 233)
BACKGROUND = 16
GAP = 8


def cut(volume, plane, index):
    """One slice of a volume (D, H, W), turned the way it is shown: (rows, columns).

    axial: (H, W), front up. coronal: (D, W), head up. sagittal: (D, H), head up, front left.
    """
    if plane == "axial":
        return volume[index]
    return volume[::-1, index] if plane == "coronal" else volume[::-1, :, index]


def plane_axes(plane: str) -> tuple[int, int, int]:
    """The axes of a volume (D, H, W) that run through, down and across a plane's picture."""
    return {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}[plane]


def render(
    volume,
    plane="axial",
    index=None,
    spacing=(1.0, 1.0, 1.0),
    level=-600,
    width=1500,
    mask=None,
    heat=None,
    opacity=0.4,
    box=None,
    point=None,
    size=None,
    marks=True,
    text="",
    title="",
) -> np.ndarray:
    """One slice of a volume as a picture: uint8, (rows, columns, 3). Changes nothing.

    volume: HU, (D, H, W). index: of the slice, None is the middle one. spacing: mm, (z, y, x).
    level, width: the window, HU. mask: (D, H, W), true in a lesion, laid over in orange. heat:
    (D, H, W), 0 to 1, laid over in the colours of `inferno`, where 1 has the full `opacity`.
    box: ((z0, z1), (y0, y1), (x0, x1)), the part to show. point: (z, y, x), marked with a
    cross where it lies in the box. size: pixels of the longer side, in true proportions; None
    gives a pixel a voxel. marks: write the patient's sides at the edges. text, title: written
    at the bottom and top.
    """
    through, down, across = plane_axes(plane)
    index = volume.shape[through] // 2 if index is None else index
    box = list(box or [(0, n) for n in volume.shape])
    box[through] = (0, volume.shape[through])
    part = tuple(slice(*ends) for ends in box)
    shown = cut(volume[part], plane, index)
    lengths = shown.shape[0] * spacing[down], shown.shape[1] * spacing[across]
    scale = (size or 0) / max(lengths)
    target = [max(1, round(length * scale)) for length in lengths] if size else shown.shape
    low = level - width / 2
    grey = np.rint(preprocessing.window(shown, low, low + width) * 255).astype(np.uint8)
    image = Image.fromarray(_resize(grey, target)).convert("RGB")
    if heat is not None:
        warm = np.asarray(cut(heat[part], plane, index), np.float32)
        warm = np.rint(255 * np.clip(_resize(warm, target), 0, 1)).astype(np.uint8)
        colours = Image.fromarray(warm)
        colours.putpalette(_colours())
        weight = Image.fromarray(warm).point([round(opacity * value) for value in range(256)])
        image = Image.composite(colours.convert("RGB"), image, weight)
    if mask is not None:
        ill = (np.asarray(cut(mask[part], plane, index)) > 0).astype(np.uint8)
        ill = _resize(ill, target, Image.Resampling.NEAREST) * np.uint8(round(255 * opacity))
        image.paste(MASK_COLOUR, None, Image.fromarray(ill))
    picture = np.array(image)
    if point is not None and all(a <= p < b for p, (a, b) in zip(point, box, strict=True)):
        row, column = point[down] - box[down][0], point[across] - box[across][0]
        if plane != "axial":  # the head is up
            row = shown.shape[0] - 1 - row
        _cross(picture, *((np.array((row, column)) + 0.5) * target / shown.shape).astype(int))
    return annotate(picture, SIDES[plane] if marks else "", text, title)


def annotate(picture, sides="", text="", title="") -> np.ndarray:
    """Write the sides (left, right, top, bottom) and small texts into a picture, in a copy."""
    if not (sides or text or title):
        return picture
    image = Image.fromarray(picture)
    draw, (breadth, height) = ImageDraw.Draw(image), image.size
    letters = min(18, max(11, min(image.size) // 28))
    middle = (
        (8, height / 2),
        (breadth - 8, height / 2),
        (breadth / 2, 6),
        (breadth / 2, height - 6),
    )
    how = {"fill": (255, 255, 255), "stroke_width": 1, "stroke_fill": (0, 0, 0)}
    for letter, place, anchor in zip(sides, middle, ("lm", "rm", "mt", "mb"), strict=False):
        draw.text(place, letter, anchor=anchor, font=_font(letters), **how)
    small = max(10, letters * 4 // 5)
    draw.text((8, height - 6), text, anchor="ls", font=_font(small), **how)
    draw.text((8, 6), title, anchor="lt", font=_font(letters), **how)
    return np.asarray(image)


def lung_box(hu, spacing=(1.0, 1.0, 1.0), margin=10.0):
    """The box around both lungs, ((z0, z1), (y0, y1), (x0, x1)); the whole volume without lungs.

    hu: (D, H, W). margin: mm to leave around. Lung is what lies below -350 HU (aerated or ground
    glass) inside the body and makes up at least an eighth of the largest such piece, looked for
    in every fourth pixel.
    """
    step = max(1, hu.shape[2] // 128)
    body = hu[:, ::step, ::step] > -350
    inside = np.stack([ndimage.binary_fill_holes(_largest(plane)) for plane in body])
    pieces, _ = ndimage.label(ndimage.binary_opening(inside & ~body, np.ones((1, 3, 3))))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    lung = ((sizes > 0) & (sizes * 8 >= sizes.max()))[pieces]
    if lung.mean() < 0.01:
        return tuple((0, side) for side in hu.shape)
    steps, [places] = (1, step, step), ndimage.find_objects(lung.astype(int))
    reach = np.ceil(margin / np.asarray(spacing)).astype(int).tolist()
    return tuple(
        (max(0, at.start * step - gap), min(side, at.stop * step + gap))
        for at, step, gap, side in zip(places, steps, reach, hu.shape, strict=True)
    )


def strip(attention=None, lesion=None, index=0, size=(512, 44)) -> np.ndarray:
    """A bar for each slice from the feet (left) to the head: uint8, (height, width, 3).

    attention: (D,), the bar's height, in blue. lesion: (D,), slices with a lesion are shaded
    orange. index: the slice that is shown now is framed.
    """
    n = len(attention) if attention is not None else len(lesion)
    breadth, height = size
    picture = np.full((height, breadth, 3), 245, np.uint8)
    edges = np.rint(np.arange(n + 1) * breadth / n).astype(int)
    top = max(float(np.max(attention)), 1e-12) if attention is not None else 1
    for k, (left, right) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        right = max(right, left + 1)
        if lesion is not None and lesion[k] > 0:
            picture[:, left:right] = (248, 214, 140)
        if attention is not None:
            bar = round(max(float(attention[k]), 0) / top * (height - 4))
            picture[height - bar :, left : max(right - 1, left + 1)] = (0, 114, 178)
        if k == index:
            picture[:2, left:right] = picture[-2:, left:right] = 0
            picture[:, left : left + 1] = picture[:, right - 1 : right] = 0
    return picture


def beside(pictures, gap=GAP, square=0) -> np.ndarray:
    """Pictures side by side, centred on a dark ground: uint8, (height, width, 3).

    square: pixels of a dark square that each is put into, where it is the smaller one.
    """
    height = max(square, *(len(picture) for picture in pictures))
    breadths = [max(square, picture.shape[1]) for picture in pictures]
    size = sum(breadths) + gap * (len(pictures) - 1), height
    sheet, left = Image.new("RGB", size, (BACKGROUND,) * 3), 0
    for picture, breadth in zip(pictures, breadths, strict=True):
        at = left + (breadth - picture.shape[1]) // 2, (height - len(picture)) // 2
        sheet.paste(Image.fromarray(picture), at)
        left += breadth + gap
    return np.asarray(sheet)


def encode(picture, kind="jpeg") -> bytes:
    """A picture as the bytes of a JPEG, or of a PNG."""
    buffer = io.BytesIO()
    options = {"quality": 80, "subsampling": 0} if kind == "jpeg" else {"compress_level": 6}
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def _resize(plane, target, how=Image.Resampling.BILINEAR):
    if plane.shape == tuple(target):
        return plane
    return np.asarray(Image.fromarray(plane).resize((target[1], target[0]), how))


def _cross(picture, row, column, gap=7):
    for near, far in ((0, max(column - gap, 0)), (column + gap, None)):
        picture[row, near:far] = CROSS_COLOUR
    for near, far in ((0, max(row - gap, 0)), (row + gap, None)):
        picture[near:far, column] = CROSS_COLOUR


def _largest(plane):
    """The largest connected piece of a slice, so that the table does not count as body."""
    pieces, _ = ndimage.label(plane)
    sizes = np.bincount(pieces.ravel(), weights=plane.ravel())
    return (pieces == sizes.argmax()) & plane


@lru_cache
def _colours():
    colours = mpl.colormaps["inferno"](np.arange(256))[:, :3]
    return np.rint(colours * 255).astype(int).ravel().tolist()


@lru_cache
def _font(size):
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # with minus and umlauts
    return ImageFont.truetype(path, size)
