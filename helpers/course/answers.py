"""How a check answers: one line, and hints that say more at every try.

A check prints one line and returns True or False; an answer left as `...` returns None. A usual
mistake has a hint of its own; for others there are three: where to look, the idea, almost the line.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from copy import deepcopy
from datetime import datetime, timezone

import numpy as np
import pandas as pd

_hints_given = Counter()  # by the hints themselves


def choice(letter, right, because):
    """Check a guess that the learner makes before running what shows the answer.

    right: the letter. because: letter -> why it is right or wrong, which is printed.
    """
    if not answer(letter):
        return None
    letter = str(letter).strip().lower()
    if letter not in because:
        return verdict(False, "", f'Give one of the letters, as text: "{min(because)}".')
    return verdict(letter == right, because[letter], because[letter])


def built(function, right, cases, mistakes, hints, praise):
    """Check a function that the learner wrote, on cases that the notebook does not show.

    right: a function that does it. cases: tuples of arguments. mistakes: pairs of a function with
    a usual mistake and the hint for it. hints: three, of which each try shows one more.
    """
    found = answers_of(function, cases)
    if not found:
        return found
    if alike(found, answers_of(right, cases)):
        return verdict(True, praise, "")
    for wrong, hint in mistakes:
        if alike(found, answers_of(wrong, cases)):
            return verdict(False, "", hint)
    return verdict(False, "", hints)


def alike(found, expected):
    """Whether two results are equal, numbers to five digits; shapes, lengths and types included."""
    if isinstance(expected, pd.DataFrame | pd.Series):
        return type(found) is type(expected) and found.equals(expected)
    if isinstance(expected, str | set | dict | type(None)):
        return found == expected
    if isinstance(expected, list | tuple):
        same_length = isinstance(found, list | tuple) and len(found) == len(expected)
        return same_length and all(map(alike, found, expected))
    try:
        found = np.asarray(found, float)
        expected = np.asarray(expected, float)
    except (TypeError, ValueError):
        return False
    return found.shape == expected.shape and np.allclose(found, expected, 1e-5, equal_nan=True)


def answers_of(function, cases):
    """What the learner's function gives for every case; None if unwritten, False if it fails."""
    if not answer(function):
        return None
    try:
        found = [function(*deepcopy(case)) for case in cases]
    except Exception as error:
        return verdict(False, "", f"It stopped with {type(error).__name__}: {error}")
    return found if answer(*found) else None


def answer(*values):
    """Whether the learner has filled everything in; says so when not."""
    if any(value is ... for value in values):
        print("Not filled in yet: replace the ... above and run the cell again.")
        return False
    return True


def verdict(right, praise, hint):
    """Print the outcome of a check; returns `right` as a bool.

    hint: a text, or several, of which every further try shows the next; the last one stays.
    """
    note(bool(right))
    if not right and not isinstance(hint, str):
        _hints_given[hint] += 1
        n = min(_hints_given[hint], len(hint))
        hint = f"Hint {n} of {len(hint)}: {hint[n - 1]}"
    print(f"Right. {praise}" if right else f"Not yet. {hint}")
    return bool(right)


def note(right: bool) -> None:
    """Append a line to the file that COURSE_PROGRESS names, for whoever teaches; else do nothing.

    The line is JSON: the check's name, whether the answer was right, and when; nobody's name.
    """
    file, frame = os.environ.get("COURSE_PROGRESS"), sys._getframe()
    while file and frame and not frame.f_code.co_name.startswith("check_"):
        frame = frame.f_back
    if not file or not frame:
        return
    check, at = frame.f_code.co_name.removeprefix("check_"), datetime.now(timezone.utc)
    line = {"check": check, "right": right, "at": at.isoformat(timespec="seconds")}
    try:
        with open(os.path.expanduser(file), "a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
    except OSError as error:
        print(f"(COURSE_PROGRESS: {file} cannot be written: {error.strerror})")
