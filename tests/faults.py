"""What was done to break the course, how often, and what came of it, in one table.

    python tests/faults.py            tries it all (9 minutes) and prints the table
    python tests/faults.py --write    puts it into CONTRIBUTING.md as well
    python tests/faults.py --audit    runs bandit and pip-audit instead

A test belongs to the table by its marker `faults(section, what, cases=1)`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- made by tests/faults.py -->", "<!-- end -->"
BANDIT = [sys.executable, "-m", "bandit", "--quiet", "--recursive", "helpers"]
PIP_AUDIT = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off"]
PIP_AUDIT += ["--skip-editable"]
ORDER = ["Bad studies", "Downloads", "Archives", "Interruptions", "Checkpoints and results"]
ORDER += ["Memory", "Random changes", "Security"]
HEAD = "| | what was tried | cases | result |\n|---|---|---|---|\n"


class Report:
    """A plugin of pytest that counts the cases of each line, and what came of them."""

    def __init__(self):
        self.lines, self.line_of, self.outcomes = {}, {}, {}

    def pytest_collection_finish(self, session):
        for item in session.items:
            mark = item.get_closest_marker("faults")
            self.line_of[item.nodeid] = mark.args, mark.kwargs.get("cases", 1)

    def pytest_runtest_logreport(self, report):
        outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
        if report.when == "call" or outcome != "passed":
            self.outcomes[report.nodeid] = outcome
        if report.when == "teardown":
            line, cases = self.line_of[report.nodeid]
            counted = self.lines.setdefault(line, {})
            outcome = self.outcomes[report.nodeid]
            counted[outcome] = counted.get(outcome, 0) + cases

    def table(self):
        """The table, in Markdown."""
        return HEAD + "".join(
            f"| {section} | {what} | {sum(counted.values()):,} | {in_words(counted)} |\n"
            for (section, what), counted in sorted(self.lines.items(), key=place)
        )


def place(line):
    """Where a line stands in the table."""
    (section, what), _ = line
    return ORDER.index(section), what


def in_words(counted):
    """What came of the cases of one line."""
    words = {"failed": "failed", "xfailed": "known to fail", "skipped": "skipped"}
    parts = [f"{counted[name]:,} {word}" for name, word in words.items() if counted.get(name)]
    return ", ".join(parts) or "as it should be"


def read_table(text):
    """{(section, what): cases} of the table in CONTRIBUTING.md."""
    lines = text.split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(section, what): int(cases.replace(",", "")) for section, what, cases, _ in cells}


def audit():
    """Run both scanners; the exit status, 0 where nothing was found."""
    status = subprocess.run(BANDIT, cwd=ROOT, check=False).returncode
    print("bandit:", "finds nothing in helpers/" if status == 0 else "see above")
    done = subprocess.run(PIP_AUDIT, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        sys.exit(f"pip-audit: could not run\n{done.stderr[-2000:]}")
    asked = [package for package in packages if "skip_reason" not in package]
    found = [(p["name"], p["version"], v["id"]) for p in asked for v in p["vulns"]]
    for name, version, problem in found:
        print(f"pip-audit: {name} {version} has {problem}")
    print(f"pip-audit: asked about {len(asked)} of {len(packages)} packages, {len(found)} known")
    if len(asked) < len(packages) / 2:
        print("pip-audit: its service does not answer for most packages here; run it elsewhere")
        return status or 3
    return status or int(bool(found))


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into CONTRIBUTING.md")
    parser.add_argument("--audit", action="store_true", help="run bandit and pip-audit instead")
    options = parser.parse_args(words)
    if options.audit:
        return audit()
    report = Report()
    status = pytest.main(["-q", "-m", "faults", "-p", "no:cacheprovider"], plugins=[report])
    print(f"\n{report.table()}")
    if options.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        new = f"{before}{BEGIN}\n\n{report.table()}\n{END}{after}"
        DOCUMENT.write_text(new, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
