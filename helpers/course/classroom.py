"""One folder for a room without a connection: notebooks, data and packages, for a USB stick."""

from __future__ import annotations

import os
import shutil
import subprocess  # nosec B404
import sys
from pathlib import Path

from packaging.requirements import Requirement

from helpers.course import runner, runs, sources
from helpers.storage.files import temporary_beside

LINUX = ["manylinux2014_x86_64", *(f"manylinux_2_{n}_x86_64" for n in range(17, 40))]
PLATFORMS = {  # sys_platform, platform_system, os_name, platform_machine; pip's names for wheels
    "windows": ("win32", "Windows", "nt", "AMD64", ["win_amd64"]),
    "macos": ("darwin", "Darwin", "posix", "arm64", ["macosx_14_0_arm64"]),
    "linux": ("linux", "Linux", "posix", "x86_64", LINUX),
}
MARKERS = ("sys_platform", "platform_system", "os_name", "platform_machine")
INSTALL = """    python -m venv .venv             (on macOS and Linux: python3 -m venv .venv)
    .venv\\Scripts\\activate           (on macOS and Linux: source .venv/bin/activate)
    pip install --no-index --find-links wheels -r requirements.txt
"""
START = """# Start

You need Python {python}, and this folder on your own disk. In a terminal, in this folder:

{install}    jupyter lab

Open the folder notebooks, and in it the notebook that you are told, or else 01. Run its cells from
the top, one after the other, with Shift and Enter.
For teaching, not for clinical use: every scan in here is a simulated one.
"""


def make_classroom(folder, profile="quick", wheels=True, platform="", python="", data_dir="data"):
    """Make `folder` anew: learner/, to be handed out, and instructor/, not to be; returns it.

    profile: of the phantoms, which are made in data_dir if they are not there. wheels: fetch what
    requirements.lock names, for this machine or for a platform of PLATFORMS and a Python ("3.12").
    SystemExit where pip cannot; whatever goes wrong, an older folder stays as it was.
    """
    target, python = Path(folder).absolute(), python or "{}.{}".format(*sys.version_info)
    cohorts = make_data(profile, data_dir)
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    authors = (".*", "*.py", "site", "slides")  # of docs/, what nobody in a room needs
    for_all = shutil.ignore_patterns(*authors)
    for_learners = shutil.ignore_patterns(*authors, "instructors", "running.md")
    with temporary_beside(target) as new, temporary_beside(target) as old:
        learner, instructor = new / "learner", new / "instructor"
        runner.copies(learner / "notebooks", solved=False)
        runner.copies(instructor / "notebooks", solved=True)
        shutil.copytree(runner.ROOT / "docs", instructor / "docs", ignore=for_all)
        shutil.copytree(runner.ROOT / "docs", learner / "docs", ignore=for_learners)
        shutil.copytree(runner.ROOT / "helpers", learner / "helpers", ignore=ignore)
        if (runner.ROOT / "slides").is_dir():
            shutil.copytree(runner.ROOT / "slides", instructor / "slides")
        for cohort in cohorts:
            shutil.copytree(cohort, learner / "data" / cohort.name, ignore=ignore)
        for name in ("requirements.txt", "LICENSE"):
            shutil.copy(runner.ROOT / name, learner)
        shutil.copy(runner.ROOT / "LICENSE", instructor)
        text = {"python": "3.10 to 3.13 with all of requirements.txt installed", "install": ""}
        if wheels:
            fetch_wheels(learner / "wheels", platform, python)
            text = {"python": python, "install": INSTALL}
        (learner / "START.md").write_text(START.format(**text), encoding="utf-8")
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
    return target


def make_data(profile, data_dir) -> list[Path]:
    """Folders of a profile's phantoms, with what is computed from them once."""
    found = []
    for name in ("phantom", "phantom-elsewhere"):
        data = runs.prepare(name, profile, data_dir)
        runs.inputs(data)  # the frozen encoder's features
        found.append(data.root)
    found.append(sources.get_studies("phantom-export", profile, data_dir)[1])
    return [*found, sources.get_images("phantom", data_dir, profile)[0]]


def fetch_wheels(folder, platform, python) -> None:
    """Fetch what requirements.lock names for a platform ("" for this one) and Python, as wheels."""
    options = ["--no-deps", "--only-binary=:all:", f"--python-version={python}"]
    options += [f"--platform={name}" for name in PLATFORMS[platform][-1]] if platform else []
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *options]
    lines = (runner.ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if subprocess.run([*command, *wanted(lines, platform, python)]).returncode:  # nosec B603
        raise SystemExit("pip could not fetch the wheels; WHEELS=no leaves them out")


def wanted(lines, platform, python) -> list[str]:
    """What of requirements.lock a machine needs, as name==version.

    pip by itself would ask this machine what another one needs.
    """
    asked = {"python_version": python, "python_full_version": f"{python}.0"}
    asked |= dict(zip(MARKERS, PLATFORMS.get(platform, ()), strict=False))
    found = [Requirement(line) for line in lines if line.strip() and line[0] not in "# "]
    return [f"{r.name}{r.specifier}" for r in found if not r.marker or r.marker.evaluate(asked)]
