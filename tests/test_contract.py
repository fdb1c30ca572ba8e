"""The contract of a notebook (CONTRIBUTING.md), and what the README promises."""

import ast
import json
import re

import nbformat
import pytest
from notebook_tools import FILES, cells, definitions, exercises, minutes_of_a_human

from helpers.course import runner

ROOT = runner.ROOT
MODULES = sorted((ROOT / "helpers").rglob("*.py"))
PARAMETERS = {"PROFILE", "DATA_DIR", "RUNS_DIR", "SEED"}
every_notebook = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def setup_cell(file):
    return cells(file, "code")[0].source


def test_there_are_notebooks_in_order():
    assert [file.name[:2] for file in FILES][:2] == ["01", "02"]
    assert len(FILES) >= 5


@every_notebook
def test_opening_and_closing(file):
    text = [cell.source for cell in cells(file, "markdown")]
    first = text[0]
    assert re.match(r"# \d+ · ", first)
    slug = runner.repository_url().removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{file.name}"
    source = f"https://github.com/{slug}/blob/main/notebooks/{file.name}"
    kaggle = f"https://kaggle.com/kernels/welcome?src={source}"
    (badges,) = [line for line in first.split("\n") if line.startswith("[![")]
    for name, target in {"Colab": colab, "Kaggle": kaggle}.items():
        assert re.search(rf"\[!\[Open in {name}\]\(https://\S+\.svg\)\]", badges)
        assert f"]({target})" in badges
    objectives = re.findall(r"^\d\. ", first.split("**In this notebook**")[1], re.M)
    assert 3 <= len(objectives) <= 5
    assert "What you need" in first and "for teaching, not for clinical use" in first
    assert re.search(r"\| machine.s time \| .*\d+ s", first), "no measured time"
    last = text[-1]
    for heading in ("## What normal looks like", "## Recap", "**References**", "**Next**"):
        assert heading in last, heading


@every_notebook
def test_setup_cell_is_the_same_everywhere(file):
    assert setup_cell(file) == setup_cell(FILES[0])
    assert f'REPOSITORY = "{runner.repository_url()}"' in setup_cell(file)
    for cell in cells(file, "code"):
        assert "pip install" not in cell.source


@every_notebook
def test_parameters(file):
    (cell,) = cells(file, "code", "parameters")
    names = {node.targets[0].id for node in ast.parse(cell.source).body}
    assert names >= PARAMETERS
    values = dict(re.findall(r"^(\w+) = (.+)$", cell.source, re.M))
    assert {"DATASET", "MIRROR"} <= names or "IMAGES" in names
    assert values.get("DATASET", '"phantom"') == values.get("IMAGES", '"phantom"') == '"phantom"'
    assert values["PROFILE"] == '"quick"'


@every_notebook
def test_committed_outputs(file):
    assert file.stat().st_size < 1 << 20
    notebook = nbformat.read(file, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1)), "not run in order from a fresh kernel"
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.get("text")
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
    outputs = json.dumps([cell.outputs for cell in code])
    assert not re.search(r"/(home|root|Users|tmp|work|usr|content)/", outputs), "an absolute path"
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)


@every_notebook
def test_lines_are_short_enough_to_read(file):
    for cell in cells(file, "code"):
        for line in cell.source.split("\n"):
            assert len(line) <= 100 and ("teach" in runner.tags(cell) or len(line) <= 92), line


@every_notebook
def test_links_lead_somewhere(file):
    for cell in cells(file, "markdown"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", cell.source):
            assert (file.parent / target).exists(), target


@every_notebook
def test_results_are_saved_under_the_notebooks_name(file):
    assert any(
        "runs.save_results(" in cell.source and f'"{file.stem}"' in cell.source
        for cell in cells(file, "code")
    )


def taught():
    return [
        pytest.param(name, tree, id=f"{file.stem[:2]}-{name}")
        for file in FILES
        for cell in cells(file, "code", "teach")
        for name, tree in definitions(cell.source).items()
    ]


@pytest.mark.parametrize(("name", "tree"), taught())
def test_what_is_taught_is_what_helpers_holds(name, tree):
    modules = (definitions(module.read_text(encoding="utf-8")) for module in MODULES)
    held = [found[name] for found in modules if name in found]
    assert len(held) == 1, f"{name} is taught and stands in {len(held)} modules of helpers"
    assert tree == held[0], f"{name} differs between its notebook and helpers"


def test_functions_of_helpers_are_only_defined_in_teaching_cells():
    held = set()
    for module in MODULES:
        held |= set(definitions(module.read_text(encoding="utf-8")))
    for file in FILES:
        for cell in cells(file, "code"):
            if "teach" not in runner.tags(cell):
                assert not set(definitions(cell.source)) & held, (file.name, cell.source[:80])


@every_notebook
def test_exercises_are_a_ladder_and_end_with_a_check(file):
    kinds = []
    for stub, _ in exercises(file):
        assert "..." in stub.source and "import " not in stub.source  # a solution takes its place
        assert stub.source.strip().split("\n")[-1].startswith("checks.check_")
        (kind,) = set(runner.tags(stub)) - {"exercise"}
        kinds.append(kind)
    assert kinds.count("predict") >= 1 and kinds.count("make") >= 2, kinds
    assert kinds.count("transfer") >= 1, kinds
    assert set(kinds) == {"predict", "make", "transfer"}


@every_notebook
def test_quick_questions_have_one_right_answer(file):
    quizzes = cells(file, "markdown", "quiz")
    assert 2 <= len(quizzes) <= 3
    for quiz in quizzes:
        assert quiz.source.startswith("**Quick question** ")
        fold = r"<details><summary>(\w)\) .+?</summary>\n\n(Yes|No)[:,.] .+?\n\n</details>"
        options = re.findall(fold, quiz.source, re.S)
        assert len(options) == quiz.source.count("<details>") >= 3
        assert [letter for letter, _ in options] == list("abcde")[: len(options)]
        assert [verdict for _, verdict in options].count("Yes") == 1


@every_notebook
def test_cells_are_short(file):
    """Whoever reads a cell sees all of it; the folded setup cell is read by nobody."""
    for cell in cells(file, "code")[1:]:
        if "teach" not in runner.tags(cell):
            assert len(cell.source.split("\n")) <= 25, cell.source[:80]


@every_notebook
def test_setup_and_parameters_are_folded(file):
    setup, parameters = cells(file, "code")[:2]
    for cell, title in ((setup, "Setup"), (parameters, "Parameters")):
        assert cell.metadata.jupyter.source_hidden and cell.metadata.cellView == "form"
        assert cell.source.startswith(f"# @title {title}")


@every_notebook
def test_every_figure_has_a_text_for_those_who_cannot_see_it(file):
    for cell in cells(file, "code"):
        for output in cell.outputs:
            kinds = [kind for kind in output.get("data", {}) if kind.startswith("image/")]
            for kind in kinds[:1]:
                texts = [output.metadata.get(kind, {}).get("alt", "") for kind in kinds]
                text = max(texts, key=len)
                assert len(text.split()) >= 4, (cell.source[-80:], text)


@every_notebook
def test_a_humans_minutes_are_estimated_as_everywhere(file):
    (minutes,) = re.findall(r"^\| your time \| about (\d+) minutes", cells(file)[0].source, re.M)
    assert int(minutes) == minutes_of_a_human(file)


def test_copies_for_a_class(tmp_path):
    """Without any solution for who learns, with all filled in for who teaches."""
    for solved in (False, True):
        written = runner.copies(tmp_path / str(solved), solved)
        assert [path.name for path in written] == [file.name for file in FILES]
        for file, copy in zip(FILES, written, strict=True):
            assert not cells(copy, tag="solution")
            assert not any(cell.outputs for cell in cells(copy, "code"))
            stubs = cells(copy, "code", "exercise")
            for stub, (original, code) in zip(stubs, exercises(file), strict=True):
                check = original.source.strip().split("\n")[-1]
                expected = f"{code}\n{check}" if solved else original.source
                assert stub.source == expected


def test_readme_links_every_notebook_and_gif():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    slug = runner.repository_url().removeprefix("https://github.com/")
    for file in FILES:
        assert f"notebooks/{file.name}" in readme
        assert f"github/{slug}/blob/main/notebooks/{file.name}" in readme
    assert "make course" in readme and "make test" in readme
    assert "not for clinical use" in readme
    assert "Morozov2020" in (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/instructors/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r'(?:src="|\]\()(?!https?:|mailto:)([\w./-]+)', text):
        assert (page.parent / target).exists(), target


def test_the_changelog_begins_with_the_version():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)[
        1
    ]
    newest = re.search(r"^## (\S+) \(", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[1]
    assert newest == version
    assert version not in (ROOT / "CITATION.cff").read_text("utf-8"), "it stands in one place"


def test_the_address_can_be_changed_in_one_go(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    for name in ("pyproject.toml", "README.md", "CITATION.cff"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    for file in FILES:
        (tmp_path / "notebooks" / file.name).write_text(file.read_text("utf-8"), "utf-8")
    old = runner.repository_url()
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path / "notebooks")
    runner.set_repository_url("https://github.com/someone/a-fork")
    assert runner.repository_url() == "https://github.com/someone/a-fork"
    short = old.removeprefix("https://github.com/")
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            assert short not in path.read_text(encoding="utf-8"), path.name
    with pytest.raises(SystemExit, match="OWNER/NAME"):
        runner.set_repository_url("not an address")
