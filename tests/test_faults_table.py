"""The table in CONTRIBUTING.md is the one that the tests make."""

import faults
import pytest
from conftest import FAULTS


def test_the_table_lists_what_is_tried(request):
    counted = request.config.stash[FAULTS]
    files = {path.name for path in faults.ROOT.glob("tests/test_*.py")}
    if files - counted["files"]:
        pytest.skip("not all test files were collected")
    listed = faults.read_table(faults.DOCUMENT.read_text(encoding="utf-8"))
    assert listed == counted["lines"], "run python tests/faults.py --write"
    assert {section for section, _ in listed} == set(faults.ORDER)


def test_the_table_counts_cases_and_what_came_of_them():
    report = faults.Report()
    report.lines = {
        ("Security", "a"): {"passed": 1000},
        ("Downloads", "b"): {"passed": 3, "skipped": 2},
        ("Downloads", "a"): {"passed": 1, "failed": 1, "xfailed": 5},
    }
    assert report.table().splitlines()[2:] == [
        "| Downloads | a | 7 | 1 failed, 5 known to fail |",
        "| Downloads | b | 5 | 2 skipped |",
        "| Security | a | 1,000 | as it should be |",
    ]
    text = f"x {faults.BEGIN}\n\n{report.table()}\n{faults.END} y"
    assert faults.read_table(text) == {
        ("Downloads", "a"): 7,
        ("Downloads", "b"): 5,
        ("Security", "a"): 1000,
    }
