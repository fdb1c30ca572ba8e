"""The drawings in docs/diagrams: as draw.py draws them, whole, readable, and all there."""

import ast
import importlib.util
import itertools
import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.path import Path
from notebook_tools import FILES, cells

from helpers.course import runner
from helpers.figures import plots

FOLDER = runner.ROOT / "docs" / "diagrams"
specification = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
draw = importlib.util.module_from_spec(specification)
specification.loader.exec_module(draw)
each_diagram = pytest.mark.parametrize("name", draw.DIAGRAMS)


def test_what_the_notebooks_show_is_drawn_and_nothing_else():
    source = "\n".join(cell.source for file in FILES for cell in cells(file, "code"))
    shown = set(re.findall(r"plots\.diagram\(\"(\w+)\"\)", source))
    assert shown == set(draw.DIAGRAMS) == {path.stem for path in FOLDER.glob("*.svg")}


@each_diagram
def test_a_drawing_is_small_sound_and_described(name, monkeypatch):
    text = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert text.startswith("<svg") and root.get("role") == "img" and len(text) < 60_000
    tags = [element.tag.split("}")[1] for element in root.iter() if isinstance(element.tag, str)]
    assert tags.count("title") == tags.count("desc") == 1 and root[0].text
    assert "image" not in tags and "script" not in tags
    assert not re.search(r"href=\"(?!#)", text)
    given = {}
    monkeypatch.setattr(plots, "display", lambda data, **options: given.update(options))
    plots.diagram(name)
    words = given["metadata"]["image/svg+xml"]["alt"]
    function = ast.parse((FOLDER / "draw.py").read_text(encoding="utf-8"))
    (node,) = (n for n in function.body if getattr(n, "name", "") == name)
    assert words == " ".join(ast.get_docstring(node).split()) and len(words.split()) > 8


@each_diagram
def test_it_is_what_draw_draws(name):
    text = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    (version,) = re.findall(r"<!-- matplotlib (\S+) -->", text)
    if version != mpl.__version__:
        pytest.skip(f"drawn with matplotlib {version}, here is {mpl.__version__}")
    assert draw.svg(name) == text


@pytest.fixture(scope="module", params=draw.DIAGRAMS)
def axis(request):
    """The axis of a diagram, as drawn, so that what is on it knows its place."""
    with mpl.rc_context({"font.size": 11}):
        figure = draw.draw(request.param)
        figure.canvas.draw()
    return figure.axes[0]


def test_no_words_overlap_or_leave_the_card(axis):
    card = axis.patches[0].get_window_extent()
    extents = [(text.get_text(), text.get_window_extent()) for text in axis.texts]
    assert all(text.get_fontsize() >= 11 for text in axis.texts if text.get_text())
    for words, box in extents:
        assert card.x0 < box.x0 and box.x1 < card.x1, words
        assert card.y0 < box.y0 and box.y1 < card.y1, words
    for (one, a), (two, b) in itertools.combinations(extents, 2):
        assert not a.overlaps(b), (one, two)


def test_no_line_crosses_words_and_they_fit_their_boxes(axis):
    patches = list(axis.patches)
    lines = [line for line in axis.lines if len(line.get_xdata()) > 1]
    for text in filter(lambda text: text.get_text(), axis.texts):
        place = text.get_window_extent()
        corners = [(place.x0, place.y0), (place.x1, place.y1)]
        below = [k for k, patch in enumerate(patches) if all(map(patch.contains_point, corners))]
        for mark in [*patches[below[-1] :], *lines]:  # what lies below the words' box is hidden
            path = mark.get_transform().transform_path(mark.get_path())
            pieces = map(Path, path.to_polygons(closed_only=False))
            crossed = any(piece.intersects_bbox(place, filled=False) for piece in pieces)
            assert not crossed, (text.get_text(), mark)


def test_a_missing_drawing_is_one_line_and_no_error(capsys):
    plots.diagram("no_such_drawing")
    assert capsys.readouterr().out.startswith("No drawing here: no_such_drawing.svg lies in")


def test_the_executed_notebooks_show_the_drawings_of_today():
    for file in FILES:
        for cell in cells(file, "code"):
            if shown := re.fullmatch(r'plots\.diagram\("(\w+)"\)', cell.source.strip()):
                text = (FOLDER / f"{shown[1]}.svg").read_text(encoding="utf-8")
                assert cell.outputs[0].data["image/svg+xml"] == text, f"make notebooks: {shown[1]}"
