"""Reading the committed notebooks."""

import ast
import re
import shutil

import nbformat

from helpers.course import runner

FILES = runner.notebook_files()
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
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
    stubs = cells(file, "code", "exercise")
    solutions = cells(file, "markdown", "solution")
    assert len(stubs) == len(solutions), file.name
    codes = [re.search(r"```python\n(.+?)```", s.source, re.S)[1] for s in solutions]
    return list(zip(stubs, codes, strict=True))


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
