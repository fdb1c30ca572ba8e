"""The rooms of `helpers` (CONTRIBUTING.md): what may import what, lazy imports counted."""

import ast
import re

import pytest
import rooms

each_room = pytest.mark.parametrize("room", rooms.MAY_IMPORT)


def test_there_are_these_rooms_with_at_most_nine_modules():
    found = {path.name for path in rooms.HELPERS.iterdir() if path.is_dir()} - {"__pycache__"}
    assert found == set(rooms.MAY_IMPORT)
    assert [path.name for path in rooms.HELPERS.glob("*.py")] == ["__init__.py"]
    assert all(0 < len(rooms.modules(room)) <= 9 for room in found)


@each_room
def test_imports_go_down_only(room):
    for path in rooms.modules(room):
        assert not rooms.breaches(room, path.read_text(encoding="utf-8")), path.name


def test_no_room_stands_on_one_above_it():
    order = list(rooms.MAY_IMPORT)
    for room, others in rooms.MAY_IMPORT.items():
        assert all(order.index(name.split(".")[0]) > order.index(room) for name in others)


@each_room
def test_a_room_opens_with_one_sentence_and_hides_nothing(room):
    tree = ast.parse((rooms.HELPERS / room / "__init__.py").read_text(encoding="utf-8"))
    assert len(tree.body) == 1, "no re-exports: a thing is imported from where it lives"
    sentence = ast.get_docstring(tree)
    assert sentence.endswith(".") and "\n" not in sentence


def test_a_breach_is_seen_wherever_it_stands():
    lazy = "def f():\n    from helpers.course import runs\n"
    assert rooms.breaches("learn", lazy) == {"course.runs"}
    assert rooms.breaches("learn", "import helpers.scores.metrics") == {"scores.metrics"}
    assert rooms.breaches("covidct", "from helpers.ct.studies import Study") == {"ct.studies"}
    assert not rooms.breaches("covidct", "from helpers.ct.cohort import PARTS\nimport numpy")
    assert not rooms.breaches("learn", "from helpers.learn import ranks\nfrom torch import nn")


def test_contributing_shows_the_rooms_as_they_are():
    text = (rooms.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert rooms.PLACE.findall(text) == [rooms.picture()], "run tests/rooms.py --write"
    named = set(re.findall(r"`(\w+)`", text))
    for room in rooms.MAY_IMPORT:
        for path in rooms.modules(room):
            assert path.stem in named, f"{room}/{path.stem} is not explained"
