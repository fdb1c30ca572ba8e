"""Tables as people save them: .csv with commas, semicolons or tabs, .xlsx; every cell as text."""

from __future__ import annotations

import csv
import re
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd


class TableError(ValueError):
    """A table that cannot be read; the message names the file, the reason and the remedy."""


def read_table(path: Path, wanted: tuple[str, ...]) -> pd.DataFrame:
    """The rows below the first that has a wanted title, numbered as an editor numbers lines.

    Titles are compared, and returned, as small letters alone. Cells are text without blanks around
    it. TableError if there is none of the wanted titles, and for what is no table.
    """
    try:
        cells = pd.DataFrame(_lines(path) if path.suffix.lower() == ".csv" else _sheet(path))
    except OSError as error:
        reason = f"cannot be opened ({error.strerror})"
        raise TableError(f"{path}: {reason}; check its permissions") from None
    cells = cells.astype("string").fillna("").apply(lambda column: column.str.strip())
    cells.index += 1
    titles = cells.map(_letters)
    is_header = titles.isin([*map(_letters, wanted)]).any(axis=1)
    if not is_header.any():
        raise TableError(f"{path}: has no column {' or '.join(wanted)}; add one")
    header = int(np.argmax(is_header))
    rows = cells.iloc[header + 1 :].set_axis(titles.iloc[header], axis=1)
    return rows.loc[:, ~rows.columns.duplicated()].astype(object)


def _letters(title) -> str:
    return re.sub("[^a-z]", "", title.lower())


def _lines(path) -> list[tuple[str, ...]]:
    """The cells of a .csv file, line by line, with what is most between them in the first."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = file.readlines()
        first = next((line for line in lines if line.strip()), "")
        between = max(",;\t", key=first.count)
        rows = [*csv.reader(lines, delimiter=between)]
    except UnicodeDecodeError:
        reason = "cannot be read as text in UTF-8"
        raise TableError(f"{path}: {reason}; save it anew as CSV UTF-8 or .xlsx") from None
    except csv.Error as error:
        raise TableError(f"{path}: cannot be read as CSV ({error}); save it anew") from None
    return [*zip(*zip_longest(*rows, fillvalue=""), strict=True)]  # all lines of one length


def _sheet(path) -> pd.DataFrame:
    """The cells of a workbook's first sheet."""
    try:
        return pd.read_excel(path, header=None, dtype=str, engine="openpyxl")
    except OSError:
        raise
    except Exception:  # each library below has its own for a file that is no workbook
        text = "cannot be read as an Excel workbook; save it anew as .xlsx, or do without it"
        raise TableError(f"{path}: {text}") from None


def plain_numbers(cells):
    """7 for 7.0 and 007: Excel turns the one into the other."""
    return cells.replace(r"^0*(\d+)(\.0+)?$", r"\1", regex=True)
