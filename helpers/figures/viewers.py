"""Scroll through CT studies in a notebook: `explore`, `compare`, and `montage` for print.

And drag a `Threshold` over the scores of a classifier.

Core ipywidgets only (7.7 and 8), frames as JPEG bytes in a `widgets.Image`. Where nobody can
press a button (papermill, nbconvert, GitHub's view of a notebook) a still picture stands instead.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from IPython import get_ipython
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from helpers.ct import preprocessing, studies
from helpers.figures import plots, rendering
from helpers.figures.rendering import PLANES, PRESETS, encode, render

ORIGIN = {"axial": "above the lowest", "coronal": "from the front", "sagittal": "from the right"}


@dataclass
class Scan:
    """One study, ready to be drawn: HU (D, H, W), spacing in mm, and what is laid over it.

    mask: (D, H, W), true in a lesion. heat: (D, H, W), 0 to 1. attention: (D,).
    """

    hu: np.ndarray
    spacing: tuple[float, float, float]
    name: str = ""
    caption: str = ""
    mask: np.ndarray | None = None
    heat: np.ndarray | None = None
    attention: np.ndarray | None = None

    @cached_property
    def lungs(self):
        """The box around the lungs."""
        return rendering.lung_box(self.hu, self.spacing)

    @cached_property
    def lesion(self):
        """Voxels of lesion in each slice, (D,), or None."""
        return None if self.mask is None else self.mask.sum(axis=(1, 2))


def load_scan(study, mask=None, heat=None, spacing=None, name=None) -> Scan:
    """Bring a study and its overlays into one shape.

    study: a Study, the path of one, or an array (D, H, W) in HU; a uint8 array is taken for what
    `preprocess` made in its usual window. mask: a path or an array (D, H, W). heat: one value a
    slice, (d,), or a volume (d, h, w); another size is resampled to the study's. spacing: mm,
    (z, y, x), for an array. Raises UnreadableStudy, and ValueError for shapes that do not fit.
    """
    caption = ""
    if not isinstance(study, np.ndarray):
        study = study if isinstance(study, studies.Study) else studies.read_study(study)
        name = study.path.name.removesuffix(".gz").removesuffix(".nii") if name is None else name
        caption = "synthetic phantom" if "synthetic" in study.description else ""
        hu, spacing = study.hu, study.spacing
    elif study.ndim != 3 or study.dtype.kind not in "iuf" or study.size == 0:
        raise ValueError(f"a volume is (D, H, W) numbers, not {study.shape} of {study.dtype}")
    elif study.dtype == np.uint8:
        low, high = preprocessing.WINDOW
        hu = np.rint(low + study * ((high - low) / 255)).astype(np.int16)
    else:
        hu = np.nan_to_num(study, nan=-1000) if study.dtype.kind == "f" else study
    scan = Scan(hu, tuple((1.0, 1.0, 1.0) if spacing is None else spacing), name or "", caption)
    if mask is not None:
        if isinstance(mask, str | Path):
            mask = studies.read_mask(mask, None if isinstance(study, np.ndarray) else study)
        mask = np.asarray(mask) > 0
        if mask.shape != hu.shape:
            raise ValueError(f"the mask has the shape {mask.shape}, the study {hu.shape}")
        scan.mask = mask
    if heat is not None:
        heat = np.asarray(heat, np.float32)
        if heat.ndim == 1 and len(heat):
            scan.attention = preprocessing.resampling_matrix(len(heat), len(hu)) @ heat
        elif heat.ndim == 3 and heat.size:
            scan.heat = _fit(heat, hu, scan.spacing)
            scan.heat = np.clip(scan.heat / max(float(scan.heat.max()), 1e-12), 0, 1)
            scan.attention = scan.heat.mean(axis=(1, 2))
        else:
            raise ValueError(f"heat is (D,) or (D, H, W), not {heat.shape}")
    return scan


def explore(
    study, mask=None, heat=None, spacing=None, preset="lung", plane="axial", name=None, size=512
) -> Viewer:
    """Look at one study: scroll, play, change plane and window, zoom, read HU at a point.

    study: a Study, a path or an array (D, H, W). mask: lesions, a path or an array. heat: what a
    network looked at, (D,) or (D, H, W). spacing: mm, (z, y, x), for an array. preset: a key of
    PRESETS. plane: one of PLANES. size: pixels of the picture's longer side.
    The result shows itself as the last line of a cell; see `load_scan` for the errors.
    """
    return Viewer([load_scan(study, mask, heat, spacing, name)], preset, plane, size)


def compare(a, b, masks=(None, None), names=(None, None), preset="lung", plane="axial", size=430):
    """Look at two studies side by side, with the same window and at the same height.

    a, b, masks: as in `explore`. names: written above each. Scrolling is linked by the fraction
    of the height, so that 20 slices and 40 slices reach the apex together.
    """
    scans = [
        load_scan(study, mask, name=name)
        for study, mask, name in zip((a, b), masks, names, strict=True)
    ]
    return Viewer(scans, preset, plane, size)


def montage(
    study, n=20, columns=5, mask=None, plane="axial", preset="lung", spacing=None, size=176
) -> Image.Image:
    """A contact sheet: n slices evenly from the feet to the head, as one picture for print.

    study, mask, spacing: as in `explore`. size: pixels of a slice's longer side. Each slice says
    its number and its position in mm.
    """
    _check_names(preset, plane)
    scan = load_scan(study, mask, spacing=spacing)
    through = rendering.plane_axes(plane)[0]
    n_slices, gap = scan.hu.shape[through], 3
    n = max(1, min(n, n_slices))
    level, width = PRESETS[preset]
    tiles = []
    for index in ((np.arange(n) + 0.5) * n_slices / n).astype(int):
        text = f"{index + 1} · {index * scan.spacing[through]:.0f} mm"
        shown = scan.hu, plane, index, scan.spacing, level, width, scan.mask
        tiles.append(render(*shown, size=size, text=text))
    columns, (height, breadth) = min(n, columns), tiles[0].shape[:2]
    shape = columns * (breadth + gap) - gap, -(-n // columns) * (height + gap) + 24
    sheet = Image.new("RGB", shape, (rendering.BACKGROUND,) * 3)
    for k, tile in enumerate(tiles):
        row, column = divmod(k, columns)
        sheet.paste(Image.fromarray(tile), (column * (breadth + gap), row * (height + gap)))
    low, high = level - width // 2, level + width // 2
    words = [scan.caption, scan.name, f"{plane}, {low} to {high} HU".replace("-", "−")]
    text = " · ".join(filter(None, words))
    sheet = Image.fromarray(rendering.annotate(np.asarray(sheet), text=text))
    # what a notebook shows: the JPEG alone, with a text for who cannot see it
    words = {"alt": f"A contact sheet of {n} slices: {text}"}
    sheet._repr_png_, sheet._repr_jpeg_ = None, lambda: (encode(np.asarray(sheet)), words)
    return sheet


class Viewer:
    """One or more scans behind one set of controls; shows itself as the last line of a cell.

    The attributes say what is shown: plane, place (fractions of the depth, height and width, from
    the feet, front and right), level, width (HU), opacity, zoom, cross. `picture` draws it.
    """

    def __init__(self, scans, preset="lung", plane="axial", size=512):
        _check_names(preset, plane)
        self.scans, self.plane, self.size = scans, plane, size
        self.level, self.width = PRESETS[preset]
        self.place = [0.45, 0.5, 0.3]
        if scans[0].lesion is not None and scans[0].lesion.any():
            self.move(0, int(scans[0].lesion.argmax()))
        self.opacity, self.zoom, self.cross = 0.4, False, False

    def point(self, scan) -> tuple[int, int, int]:
        """The chosen voxel (z, y, x) of a scan; the cross never leaves what the zoom shows."""
        chosen = []
        for axis, n in enumerate(scan.hu.shape):
            first, last = self.reach(scan, axis)
            chosen.append(min(max(int(self.place[axis] * n), first), last))
        return tuple(chosen)

    def reach(self, scan, axis: int) -> tuple[int, int]:
        """The first and last voxel that can be chosen along an axis of (D, H, W)."""
        if self.zoom and self.cross and axis != rendering.plane_axes(self.plane)[0]:
            start, stop = scan.lungs[axis]
            return start, stop - 1
        return 0, scan.hu.shape[axis] - 1

    def move(self, axis: int, index: int) -> None:
        """Choose voxel `index` of the first scan along an axis of (D, H, W)."""
        self.place[axis] = (index + 0.5) / self.scans[0].hu.shape[axis]

    def picture(self, plane=None) -> np.ndarray:
        """What is shown, each scan in a square: uint8, (rows, columns, 3)."""
        return rendering.beside(self._slices(plane or self.plane, self.size), square=self.size)

    def _slices(self, plane, size):
        """The rendered slice of each scan, in true proportion."""
        through, pictures = rendering.plane_axes(plane)[0], []
        for scan in self.scans:
            point = self.point(scan)
            pictures.append(
                render(
                    *(scan.hu, plane, point[through], scan.spacing, self.level, self.width),
                    *(scan.mask, scan.heat, self.opacity, scan.lungs if self.zoom else None),
                    point=point if self.cross else None,
                    size=size,
                    text=scan.caption,
                    title=scan.name if len(self.scans) > 1 else "",
                )
            )
        return pictures

    def strip(self) -> np.ndarray | None:
        """A bar a slice of the first scan, with attention and lesion; None without either."""
        scan = self.scans[0]
        if scan.attention is None and scan.lesion is None:
            return None
        return rendering.strip(scan.attention, scan.lesion, self.point(scan)[0], (self.size, 40))

    def readout(self) -> str:
        """Slice, position in mm, window and, with the cross on, the HU under it."""
        through, places, values = rendering.plane_axes(self.plane)[0], [], []
        for scan in self.scans:
            point = self.point(scan)
            index, n, distance = point[through], scan.hu.shape[through], scan.spacing[through]
            where = f"{index * distance:.0f} mm {ORIGIN[self.plane]}"
            places.append(f"slice {index + 1} of {n}, {where}")
            values.append(f"{scan.hu[point]:.0f} HU")
        low, high = self.level - self.width / 2, self.level + self.width / 2
        lines = [" | ".join(places), f"window {low:.0f} … {high:.0f} HU"]
        if self.cross:
            lines.append("at the cross " + " | ".join(values))
        return " · ".join(lines).replace("-", "−")

    def still(self) -> Image.Image:
        """A picture for where nothing can be pressed: one study in three planes, or the pair."""
        shown = self._slices(self.plane, 400)
        if len(self.scans) == 1:
            for plane in PLANES:
                shown += self._slices(plane, 300) if plane != self.plane else []
        shown = rendering.beside(shown)
        foot = np.full((26, shown.shape[1], 3), rendering.BACKGROUND, np.uint8)
        foot = rendering.annotate(foot, text=self.readout())
        return Image.fromarray(np.vstack([shown, foot]))

    @cached_property
    def widget(self):
        """The controls and the picture, an ipywidgets box that keeps its Controls as `controls`."""
        controls = Controls(self)
        controls.box.controls = controls
        return controls.box

    def _ipython_display_(self):
        if _is_headless():
            still = rendering.encode(np.asarray(self.still()))
            words = {"image/jpeg": {"alt": f"A still of the viewer. {self.readout()}"}}
            display({"image/jpeg": still, "text/plain": self.readout()}, metadata=words, raw=True)
        else:
            display(self.widget)


def _check_names(preset, plane):
    if preset not in PRESETS or plane not in PLANES:
        raise ValueError(f"choose one of {', '.join(PRESETS)}, and one of {', '.join(PLANES)}")


def _is_headless() -> bool:
    """Whether nobody sits in front: papermill and nbconvert say that no input can be asked for."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is None or not kernel.get_parent().get("content", {}).get("allow_stdin", True)


def _fit(heat, hu, spacing):
    """Resample heat to a study's shape; like `preprocess`, over a field of view made square."""
    if heat.shape == hu.shape:
        return heat
    square = preprocessing.pad_to_square(np.zeros(hu.shape, bool), spacing, fill=0).shape
    fitted = preprocessing.resample(heat, square)
    top, left = (square[1] - hu.shape[1]) // 2, (square[2] - hu.shape[2]) // 2
    return fitted[:, top : top + hu.shape[1], left : left + hu.shape[2]]


ALONG = ("feet to head", "front to back", "right to left")  # the axes of (D, H, W)
SETTINGS = ("plane", "level", "width", "opacity", "zoom", "cross")  # of a Viewer, by its controls


class Controls:
    """Buttons and sliders that change a Viewer, and the picture that follows them.

    They act through the kernel, one way: a link in the browser would send old values back.
    """

    def __init__(self, viewer):
        self.viewer, self.is_busy = viewer, False
        shown = {"layout": {"max_width": "100%", "height": "auto", "object_fit": "contain"}}
        self.picture = widgets.Image(format="jpeg", **shown)
        self.strip = widgets.Image(format="png", **shown)
        self.readout = widgets.HTML()
        self.slice = widgets.IntSlider(readout=False, layout={"flex": "1 1 auto"})
        self.play = widgets.Play(interval=100, layout={"flex": "0 0 auto"})
        repeat = "repeat" if self.play.has_trait("repeat") else "_repeat"  # since 8, and before
        self.play.set_trait(repeat, True)
        self.plane = widgets.ToggleButtons(options=list(PLANES), value=viewer.plane)
        self.preset = widgets.ToggleButtons(options=list(PRESETS), value=None)
        for buttons in (self.plane, self.preset):
            buttons.style.button_width = "auto"
        slider = {"layout": {"width": "98%"}, "style": {"description_width": "92px"}}
        self.level = widgets.IntSlider(0, -1000, 1000, 10, description="level, HU", **slider)
        self.width = widgets.IntSlider(50, 50, 3000, 10, description="width, HU", **slider)
        self.axes = [widgets.IntSlider(description=way, readout=False, **slider) for way in ALONG]
        self.opacity = widgets.FloatSlider(
            viewer.opacity, min=0, max=1, step=0.05, description="overlay", **slider
        )
        button = {"layout": {"width": "auto"}}
        self.zoom = widgets.ToggleButton(description="zoom on the lungs", icon="search", **button)
        self.cross = widgets.ToggleButton(description="HU at a point", icon="crosshairs", **button)
        self.box = self._arrange()
        settings = [getattr(self, name) for name in SETTINGS]
        for control in (self.slice, self.play, *self.axes, self.preset, *settings):
            control.observe(self._on_change, "value")
        self._refit()
        self._draw()

    def _arrange(self):
        """Picture and scrolling at the left, the rest at the right or, on narrow pages, below."""
        viewer = self.viewer
        left = [self.picture]
        if viewer.strip() is not None:
            left.append(self.strip)
        left += [widgets.HBox([self.play, self.slice], layout={"width": "100%"}), self.readout]
        buttons = widgets.HBox([self.zoom, self.cross], layout={"flex_flow": "row wrap"})
        right = [self.plane, self.preset, self.level, self.width, buttons, *self.axes]
        if any(scan.mask is not None or scan.heat is not None for scan in viewer.scans):
            right.append(self.opacity)
        breadth = len(viewer.scans) * (viewer.size + rendering.GAP)
        wide = {"flex": f"0 1 {breadth}px", "min_width": "0"}
        narrow = {"flex": "1 1 230px", "max_width": "420px", "padding": "0 0 0 8px"}
        columns = [widgets.VBox(left, layout=wide), widgets.VBox(right, layout=narrow)]
        row = {"display": "flex", "flex_flow": "row wrap", "align_items": "flex-start"}
        return widgets.Box(columns, layout=row)

    def _on_change(self, change):
        """A slider moved, a button was pressed, or a film goes on."""
        viewer, control, value = self.viewer, change["owner"], change["new"]
        if self.is_busy or value is None:
            return
        if control in (self.slice, self.play):
            viewer.move(rendering.plane_axes(viewer.plane)[0], value)
        elif control in self.axes:
            viewer.move(self.axes.index(control), value)
        elif control is self.preset:
            viewer.level, viewer.width = PRESETS[value]
        else:
            for name in SETTINGS:
                setattr(viewer, name, getattr(self, name).value)
        self._refit()
        self._draw()

    def _refit(self):
        """Bring the controls to what the viewer shows, without drawing on the way."""
        viewer, self.is_busy = self.viewer, True
        through, scan = rendering.plane_axes(viewer.plane)[0], viewer.scans[0]
        for axis, control in (*enumerate(self.axes), (through, self.slice), (through, self.play)):
            value, (first, last) = viewer.point(scan)[axis], viewer.reach(scan, axis)
            # one by one, so that the browser never meets a value beyond the range it knows:
            # it would cut it off and send that back
            control.max = max(control.max, last)
            control.min = min(control.min, first)
            control.value = value
            control.min, control.max = first, last
        self.level.value, self.width.value = window = viewer.level, viewer.width
        self.preset.value = next((name for name in PRESETS if PRESETS[name] == window), None)
        for axis, control in enumerate(self.axes):
            control.layout.display = "" if viewer.cross and axis != through else "none"
        self.strip.layout.visibility = "visible" if viewer.plane == "axial" else "hidden"
        self.is_busy = False

    def _draw(self):
        """Draw the picture and what goes with it."""
        self.picture.value = rendering.encode(self.viewer.picture())
        lines = [*self.viewer.readout().split(" · "), "drag, or click the slider and press ← →"]
        text = "<br>".join(html.escape(line) for line in lines)
        self.readout.value = f'<div style="line-height:1.5">{text}</div>'
        if self.viewer.plane == "axial" and (bars := self.viewer.strip()) is not None:
            self.strip.value = rendering.encode(bars, "png")


class Threshold:
    """A threshold to be dragged, with what it does to the calls; the last line of a cell shows it.

    labels, scores: (N,), 1 is ill. value: where the threshold stands. `figure` draws it. ValueError
    for labels and scores that no ROC curve can be drawn of.
    """

    def __init__(self, labels, scores, value=0.5, caption=""):
        self.labels, self.scores = np.asarray(labels), np.asarray(scores, float)
        self.value, self.caption = value, caption
        self.figure()

    def figure(self):
        """`plots.threshold` of the value that it has now."""
        return plots.threshold(self.labels, self.scores, self.value, self.caption)

    @cached_property
    def widget(self):
        """The slider, and below it the calls in words and in the picture."""
        ends = [*self.scores, self.value]
        low, high = float(min(ends)), float(max(ends))
        wide = {"width": "98%", "max_width": "900px"}
        span = {"min": low, "max": high, "step": (high - low) / 100}
        slider = widgets.FloatSlider(self.value, description="threshold", **span, layout=wide)
        picture, words = widgets.Image(format="png", layout=wide), widgets.HTML()

        def draw(change=None):
            self.value = slider.value
            canvas = FigureCanvasAgg(self.figure())
            canvas.draw()
            picture.value = rendering.encode(np.asarray(canvas.buffer_rgba())[..., :3], "png")
            words.value = canvas.figure.get_label()

        slider.observe(draw, "value")
        draw()
        return widgets.VBox([slider, words, picture])

    def _ipython_display_(self):
        display(self.figure() if _is_headless() else self.widget)
