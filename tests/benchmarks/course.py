"""Where the course's time goes: importing helpers, and the slowest cells of each notebook.

python -m tests.benchmarks.course [FOLDER]

Reads the executed notebooks that `make course` leaves in runs/notebooks (papermill notes each
cell's seconds). Import: what data, networks and training take beyond torch and NumPy, and then
scores and figures, which bring SciPy and matplotlib.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = "import numpy, torch"
MODULES = "from helpers.course import runs; from helpers.learn import networks, training"
FIGURES = "from helpers.figures import plots"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="runs/notebooks", help="executed notebooks")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for what, modules in {"data, networks, training": MODULES, "scores, figures": FIGURES}.items():
        seconds = [import_seconds(modules) for _ in range(options.repeats)]
        print(f"importing helpers for {what}: {statistics.median(seconds):.2f} s beyond torch")
        for name, spent in heaviest_imports(modules):
            print(f"  {name:30}{spent:6.2f} s")
    notebooks = sorted(Path(options.folder).glob("[01]*.ipynb"))
    if not notebooks:
        print(f"\nno executed notebooks in {options.folder}: run `make course` first")
    for file in notebooks:
        cells = cell_seconds(json.loads(file.read_text()))
        print(f"\n{file.stem}: {sum(spent for spent, _ in cells):.1f} s")
        for spent, line in sorted(cells, reverse=True)[:3]:
            print(f"  {spent:6.1f} s  {line}")


def import_seconds(statement):
    """Seconds of `statement` in a new process in which torch and NumPy are imported already."""
    code = f"import time\n{LIBRARIES}\nstarted = time.perf_counter()\n{statement}\n"
    code += "print(time.perf_counter() - started)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def heaviest_imports(statement, n=5):
    """The modules directly below helpers' that take longest: (name, seconds)."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"{LIBRARIES}\n{statement}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split("|") for line in done.stderr.splitlines() if line.count("|") == 2]
    found = []
    for k, (_, cumulative, name) in enumerate(lines[1:], start=1):
        depth = len(name) - len(name.lstrip())
        parent = next((n.strip() for _, _, n in lines[k:] if len(n) - len(n.lstrip()) < depth), "")
        if parent.startswith("helpers") and not name.strip().startswith("helpers"):
            found.append((name.strip(), int(cumulative) / 1e6))
    return sorted(found, key=lambda pair: -pair[1])[:n]


def cell_seconds(notebook):
    """(seconds, first line of code) of every executed cell."""
    cells = []
    for cell in notebook["cells"]:
        duration = cell["metadata"].get("papermill", {}).get("duration")
        if cell["cell_type"] == "code" and duration:
            source = "".join(cell["source"]).strip().splitlines()
            cells.append((duration, source[0] if source else ""))
    return cells


if __name__ == "__main__":
    main()
