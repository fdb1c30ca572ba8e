"""Reading the committed notebooks."""

import ast
import json
import shutil

import nbformat
import pandas as pd
import pytest

from helpers.course import runner

FILES = runner.notebook_files()
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
IN_BROWSER = (
    "03",
    "05",
    "06",
    "07",
)  # where widgets and figures that change are: opened in JupyterLab
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


def cells(file, kind=None, tag=None):
    """The notebook's cells of one kind and tag."""
    return [
        cell
        for cell in nbformat.read(file, 4).cells
        if (kind is None or cell.cell_type == kind) and (tag is None or tag in runner.tags(cell))
    ]


def exercises(file):
    """(exercise cell, its solution's code) in order."""
    return [(stub, code) for stub, _, code in runner.exercises(nbformat.read(file, 4))]


def assert_solved(executed):
    """Every exercise of an executed copy with solutions says "Right.", and nothing else."""
    stubs = [cell for cell in executed.cells if "exercise" in runner.tags(cell)]
    said = ["".join(output.get("text", "") for output in stub.outputs) for stub in stubs]
    assert said and all(text.startswith("Right.") and text.count("\n") == 1 for text in said), said


def minutes_of_a_human(file):
    """An estimate: 150 words a minute, 1 for each cell of code, 2, 8 and 10 for each exercise."""
    words = sum(len(cell.source.split()) for cell in cells(file, "markdown"))
    minutes = words / 150 + len(cells(file, "code"))
    for tag, more in (("predict", 2), ("make", 8), ("transfer", 10)):
        minutes += more * len(cells(file, "code", tag))
    return 5 * round(minutes / 5)


def definitions(source):
    """Name -> syntax tree of the functions and classes of a source, without docstrings."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner):
                    inner.body = inner.body[1:]
            found[node.name] = ast.dump(node)
    return found


def results(runs, number):
    """What a notebook left in results.json below `runs`."""
    (path,) = runs.glob(f"{number}_*/results.json")
    return json.loads(path.read_text())


def check_11(found):
    """What holds in every profile, with Dask and without."""
    assert found["same_cache"] and found["n_starts"] == 2
    apart = found["gradient_apart"]
    assert apart["weighted"] < 1e-5 < 1e-2 < min(apart["plain"], apart["own BatchNorm"])
    one, two = (pd.DataFrame(found[name]) for name in ("one", "two"))
    assert one.epoch.tolist() == two.epoch.tolist() and one.train_loss.nunique() == len(one)
    # training amplifies rounding; what works on its share alone differs from the first epoch on
    assert two.train_loss[0] == pytest.approx(one.train_loss[0], rel=1e-5)
    assert found["largest_difference"] < 1e-3
    assert 0 < found["core_seconds_per_study"] < 5
    paper = found["estimate"]
    assert paper["100,000"]["files, TB"] == pytest.approx(1.2)
    assert paper["10,000,000"]["cache, TB"] == pytest.approx(41.94, abs=0.01)
