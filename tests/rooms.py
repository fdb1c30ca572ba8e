"""The rooms of `helpers` and their arrows, read from the code.

python tests/rooms.py --write   puts their picture into CONTRIBUTING.md
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HELPERS = ROOT / "helpers"
# room -> what it may import beside itself; in this order they stand on one another
MAY_IMPORT = {
    "course": {"storage", "scores", "ct", "learn", "phantom", "covidct", "figures"},
    "figures": {"ct", "scores", "storage"},
    "covidct": {"storage", "scores", "ct.cohort"},
    "phantom": {"storage"},
    "learn": {"storage"},
    "ct": {"storage"},
    "scores": set(),
    "storage": set(),
}
PLACE = re.compile(r"(?<=<!-- made by tests/rooms.py -->\n).*?(?=<!-- end of the rooms -->)", re.S)


def modules(room) -> list[Path]:
    """The files of a room, without its `__init__`."""
    return sorted(path for path in (HELPERS / room).glob("*.py") if path.stem != "__init__")


def imports(source) -> set[str]:
    """The modules of helpers that a source text imports anywhere, as "room.module"."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("helpers.") for name in names if name.startswith("helpers.")}
    return {".".join(name.split(".")[:2]) for name in found}


def breaches(room, source) -> set[str]:
    """What a source text in this room imports and may not."""
    allowed = MAY_IMPORT[room] | {room}
    return {name for name in imports(source) if not {name, name.split(".")[0]} & allowed}


def picture() -> str:
    """The rooms, their modules and the arrows that the code has, as a Mermaid graph."""
    lines = ["```mermaid", "graph TD"]
    for room in MAY_IMPORT:
        names = " · ".join(path.stem for path in modules(room))
        lines.append(f'  {room}["<b>{room}</b><br/>{names}"]')
    for room in MAY_IMPORT:
        used = {n for path in modules(room) for n in imports(path.read_text(encoding="utf-8"))}
        to = {name.split(".")[0] for name in used} - {room}
        lines += [f"  {room} --> {other}" for other in MAY_IMPORT if other in to]
    return "\n".join([*lines, "```"]) + "\n"


def main():
    path = ROOT / "CONTRIBUTING.md"
    text = path.read_text(encoding="utf-8")
    if "--write" in sys.argv:
        path.write_text(PLACE.sub(lambda _: picture(), text), encoding="utf-8")
    print(picture())


if __name__ == "__main__":
    main()
