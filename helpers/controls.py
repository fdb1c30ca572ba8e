"""The widgets around a Viewer's picture, for ipywidgets 7.7 and 8 alike."""

from __future__ import annotations

import html

import ipywidgets as widgets

from helpers import rendering
from helpers.rendering import PLANES, PRESETS

DOWN = {"axial": "front to back", "coronal": "head to feet", "sagittal": "head to feet"}
ACROSS = {"axial": "right to left", "coronal": "right to left", "sagittal": "front to back"}


class Controls:
    """Buttons and sliders that change a Viewer, and the picture that follows them."""

    def __init__(self, viewer):
        self.viewer, self.is_busy = viewer, True
        self.picture = widgets.Image(format="jpeg", layout=_picture_layout())
        self.strip = widgets.Image(format="png", layout=_picture_layout())
        self.readout = widgets.HTML()
        self.slice = widgets.IntSlider(readout=False, layout=widgets.Layout(flex="1 1 auto"))
        self.play = widgets.Play(interval=100, layout=widgets.Layout(flex="0 0 auto"))
        repeat = "repeat" if self.play.has_trait("repeat") else "_repeat"  # since 8, and before
        self.play.set_trait(repeat, True)
        self.plane = widgets.ToggleButtons(options=list(PLANES), value=viewer.plane)
        self.preset = widgets.ToggleButtons(options=list(PRESETS), value=None)
        for buttons in (self.plane, self.preset):
            buttons.style.button_width = "auto"
        self.level = _slider(widgets.IntSlider, "level, HU", min=-1000, max=1000, step=10)
        self.width = _slider(widgets.IntSlider, "width, HU", min=50, max=3000, step=10)
        self.across = _slider(widgets.IntSlider, readout=False)
        self.down = _slider(widgets.IntSlider, readout=False)
        self.opacity = _slider(
            widgets.FloatSlider, "overlay", value=viewer.opacity, min=0, max=1, step=0.05
        )
        button = {"layout": widgets.Layout(width="auto")}
        self.zoom = widgets.ToggleButton(description="zoom on the lungs", icon="search", **button)
        self.cross = widgets.ToggleButton(description="HU at a point", icon="crosshairs", **button)
        self.box = self._arrange()
        # through the kernel, one way: a link in the browser would send old values back
        self.play.observe(self._on_play, "value")
        for control in (self.slice, self.across, self.down, self.level, self.width, self.opacity):
            control.observe(self._on_slider, "value")
        for control in (self.plane, self.preset, self.zoom, self.cross):
            control.observe(self._on_button, "value")
        self._refit()
        self._draw()
        self.is_busy = False

    def _arrange(self):
        """Picture and scrolling at the left, the rest at the right or, on narrow pages, below."""
        overlays = any(scan.mask is not None or scan.heat is not None for scan in self.viewer.scans)
        n = len(self.viewer.scans)
        scroll = widgets.HBox([self.play, self.slice], layout=widgets.Layout(width="100%"))
        left = [self.picture, *([self.strip] if self.viewer.strip() is not None else [])]
        right = [
            self.plane,
            self.preset,
            self.level,
            self.width,
            widgets.HBox([self.zoom, self.cross], layout=widgets.Layout(flex_flow="row wrap")),
            self.across,
            self.down,
            *([self.opacity] if overlays else []),
        ]
        breadth = n * self.viewer.size + rendering.GAP * (n - 1)
        columns = [
            widgets.VBox(
                [*left, scroll, self.readout],
                layout=widgets.Layout(flex=f"0 1 {breadth + 4}px", min_width="0"),
            ),
            widgets.VBox(
                right,
                layout=widgets.Layout(flex="1 1 230px", max_width="420px", padding="0 0 0 8px"),
            ),
        ]
        return widgets.Box(
            columns,
            layout=widgets.Layout(display="flex", flex_flow="row wrap", align_items="flex-start"),
        )

    def _on_play(self, change):
        """The next frame of a film."""
        if not self.is_busy:
            self.slice.value = change["new"]

    def _on_slider(self, change):
        """One of the sliders moved."""
        if self.is_busy:
            return
        viewer, control = self.viewer, change["owner"]
        through, down, across = rendering.plane_axes(viewer.plane)
        if control is self.slice:
            viewer.move(through, change["new"])
        elif control is self.across:
            viewer.move(across, change["new"])
        elif control is self.down:
            viewer.move(down, change["new"] if down else _upside_down(viewer, change["new"]))
        elif control is self.opacity:
            viewer.opacity = change["new"]
        else:
            viewer.level, viewer.width = self.level.value, self.width.value
            self._refit()
        self._draw()
        if control is self.slice:  # a film goes on from here; after the picture, which is urgent
            self.is_busy = True
            self.play.value = change["new"]
            self.is_busy = False

    def _on_button(self, change):
        """One of the buttons was pressed."""
        if self.is_busy or change["new"] is None:
            return
        viewer = self.viewer
        viewer.plane, viewer.zoom, viewer.cross = (
            self.plane.value,
            self.zoom.value,
            self.cross.value,
        )
        if change["owner"] is self.preset:
            viewer.level, viewer.width = PRESETS[self.preset.value]
        self._refit()
        self._draw()

    def _refit(self):
        """Bring the controls to what the viewer shows, without drawing on the way."""
        viewer, self.is_busy = self.viewer, True
        through, down, across = rendering.plane_axes(viewer.plane)
        for control, axis in (
            (self.slice, through),
            (self.play, through),
            (self.down, down),
            (self.across, across),
        ):
            first, last = viewer.reach(viewer.scans[0], axis)
            value = viewer.point(viewer.scans[0])[axis]
            if control is self.down and axis == 0:
                first, value, last = (_upside_down(viewer, z) for z in (last, value, first))
            # one by one, so that the browser never meets a value beyond the range it knows:
            # it would cut it off and send that back
            control.max = max(control.max, last)
            control.min = min(control.min, first)
            control.value = value
            control.min, control.max = first, last
        self.level.value, self.width.value = viewer.level, viewer.width
        window = viewer.level, viewer.width
        self.preset.value = next((name for name in PRESETS if PRESETS[name] == window), None)
        self.across.description, self.down.description = ACROSS[viewer.plane], DOWN[viewer.plane]
        for control in (self.across, self.down):
            control.layout.display = "" if viewer.cross else "none"
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


def build(viewer) -> widgets.Box:
    """The widgets of a viewer; the box keeps its Controls as `controls`."""
    controls = Controls(viewer)
    controls.box.controls = controls
    return controls.box


def _upside_down(viewer, z):
    """Slices counted from the head instead of the feet, or the other way round."""
    return viewer.scans[0].hu.shape[0] - 1 - z


def _picture_layout():
    return widgets.Layout(max_width="100%", height="auto", object_fit="contain")


def _slider(kind, description="", **options):
    layout = widgets.Layout(width="98%")
    style = {"description_width": "92px"}
    return kind(description=description, layout=layout, style=style, **options)
