"""Lines of the table of faults (tests/faults.py) to which tests of several files belong."""

import pytest


def line(section, what):
    """A marker for the tests of one line; a test that tries more than one case says how many."""
    return lambda cases=1: pytest.mark.faults(section, what, cases=cases)


ODD = line("Bad studies", "odd but sound: types, scales, byte orders, orientations, padding, NaN")
BAD = line("Bad studies", "damaged, foreign, impossible or unreadable files")
COHORT = line("Bad studies", "cohorts with such files among sound ones")
CONNECTIONS = line(
    "Downloads", "connections cut or stalled, Range ignored or mishandled, the file changed"
)
REFUSALS = line("Downloads", "403, 404, 410, 429, 500, 503, nobody there, redirects, schemes")
WRONG = line("Downloads", "a web page with 200, wrong size, wrong hash, no room on the disk")
ONCE = line("Downloads", "threads or processes that want the same file at once")
UNSAFE = line("Archives", "members outside, absolute, links, devices, colliding names, huge")
DAMAGED = line("Archives", "archives damaged, cut off, encrypted, missing, lying about sizes")
MIRROR = line("Archives", "a mirror's tar cut off, damaged, hostile or foreign")
TWO = line("Interruptions", "two processes make the same thing at once")
MERGE = line("Interruptions", "a merge into COVID-CT stopped at each of its steps")
FULL = line("Interruptions", "the disk is full")
MISMATCH = line("Checkpoints and results", "a checkpoint that lacks or mismatches something")
