"""What the checks of the exercises share: is it filled in, is it close, and the verdict."""

from __future__ import annotations

import math


def answer(*values):
    """Whether the learner has filled everything in; says so when not."""
    if any(value is ... for value in values):
        print("Not filled in yet: replace the ... above and run the cell again.")
        return False
    return True


def verdict(right, praise, hint):
    """Print the outcome of a check; returns `right` as a bool."""
    print(f"Right. {praise}" if right else f"Not yet. {hint}")
    return bool(right)


def close(value, expected, tolerance=1e-3):
    """Whether a number is the expected one; False for what is no number."""
    try:
        return math.isclose(float(value), expected, rel_tol=tolerance, abs_tol=tolerance)
    except (TypeError, ValueError):
        return False
