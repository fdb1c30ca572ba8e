"""For whoever teaches: a room's folder, the lock, who has solved what, and the kit's pages."""

import json
import re
from types import SimpleNamespace

import pytest
from notebook_tools import FILES, cells
from packaging.requirements import Requirement

from helpers.course import checks, classroom, runner

LOCK = (runner.ROOT / "requirements.lock").read_text(encoding="utf-8")
KIT = runner.ROOT / "docs/instructors"
PLANS = (KIT / "plans.md").read_text(encoding="utf-8")


def make(folder, data, patch, wheels=False):
    """The room's folder, with one small cohort in place of the phantoms."""
    patch.setattr(classroom, "make_data", lambda profile, data_dir: [data])
    return classroom.make_classroom(folder, "tiny", wheels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The room's folder, made where an older one stood."""
    place = tmp_path_factory.mktemp("course")
    for name in ("phantom-tiny/studies/a.nii.gz", "phantom-tiny/.a.lock", "classroom/old.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    with pytest.MonkeyPatch.context() as patch:
        return make(place / "classroom", place / "phantom-tiny", patch)


def test_the_folder_has_all_that_a_room_needs(folder):
    names = [file.name for file in FILES]
    assert sorted(path.name for path in folder.glob("learner/notebooks/*")) == names
    assert sorted(path.name for path in folder.glob("instructor/notebooks/*")) == names
    found = {path.name for path in (folder / "learner").iterdir()}
    assert found == {
        *("START.md", "LICENSE", "requirements.txt", "notebooks", "helpers", "docs", "data")
    }
    start = (folder / "learner/START.md").read_text("utf-8")
    assert "pip" not in start and "installed" in start and "\n    jupyter lab\n" in start
    offline = classroom.START.format(python="3.12", install=classroom.INSTALL)
    assert "--find-links wheels" in offline and len(offline.splitlines()) < 16
    assert (folder / "instructor/docs/instructors/questions.md").is_file()
    data = [path.name for path in (folder / "learner/data").rglob("*")]
    assert sorted(data) == ["a.nii.gz", "phantom-tiny", "studies"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["classroom", "phantom-tiny"]
    assert sorted(path.name for path in folder.iterdir()) == ["instructor", "learner"]


def test_links_lead_to_files_of_the_folder(folder):
    texts = {page: page.read_text("utf-8") for page in folder.rglob("*.md")}
    for file in folder.rglob("*.ipynb"):
        texts[file] = "\n".join(cell.source for cell in cells(file, "markdown"))
    for page, text in texts.items():
        for target in re.findall(r"\]\((?!https?:|mailto:)([\w./-]+)", text):
            assert (page.parent / target).exists(), (page.relative_to(folder), target)


def test_progress_can_be_counted_where_there_are_no_solutions(folder, progress, monkeypatch):
    whole = runner.progress_table([])
    checks.check_bone_metastasis("b")
    table = runner.progress_table([progress])
    monkeypatch.setattr(runner, "NOTEBOOKS", folder / "learner/notebooks")
    assert len(whole) == 0 and runner.progress_table([progress]).equals(table)
    assert [*table.index] == ["3.1 bone_metastasis"]


def test_whoever_learns_gets_no_answers(folder):
    assert not (folder / "learner/docs/instructors").exists()
    for file in (folder / "learner").rglob("*.ipynb"):
        assert not cells(file, tag="solution")


def test_a_failure_leaves_the_old_folder(folder, monkeypatch):
    before = sorted(folder.parent.rglob("*"))
    monkeypatch.setattr(classroom, "wanted", lambda *arguments: ["no-such-package==0"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SystemExit, match="WHEELS=no"):
        make(folder, folder.parent / "phantom-tiny", monkeypatch, wheels=True)
    assert sorted(folder.parent.rglob("*")) == before


def test_every_phantom_is_made_and_what_is_computed_once(monkeypatch):
    made = []

    def note(name):
        return lambda *given: made.append((name, *given)) or SimpleNamespace(root=given[0])

    monkeypatch.setattr(classroom.runs, "prepare", note("prepare"))
    monkeypatch.setattr(classroom.runs, "inputs", lambda data: made.append(data.root))
    for name in ("get_studies", "get_images"):
        monkeypatch.setattr(classroom.sources, name, lambda *given: given)
    found = classroom.make_data("quick", "data")
    assert made[:2] == [("prepare", "phantom", "quick", "data"), "phantom"]
    assert made[2:] == [("prepare", "phantom-elsewhere", "quick", "data"), "phantom-elsewhere"]
    assert found[:2] == ["phantom", "phantom-elsewhere"] and len(found) == 4


def test_wheels_are_those_of_the_room(monkeypatch):
    asked, done = [], SimpleNamespace(returncode=0)
    monkeypatch.setattr(classroom.subprocess, "run", lambda command: asked.append(command) or done)
    classroom.fetch_wheels("wheels", "windows", "3.12")
    (command,) = asked
    assert {"--platform=win_amd64", "--python-version=3.12"} <= {*command}
    assert any(part.startswith("pywinpty==") for part in command)
    assert not any(part.startswith(("nvidia", "appnope")) for part in command)


@pytest.mark.parametrize("platform", ["windows", "macos", "linux"])
def test_the_lock_has_one_version_of_all_that_is_required(platform):
    lines = (runner.ROOT / "requirements.txt").read_text("utf-8").splitlines()
    required = [Requirement(line) for line in lines if line and line[0] != "#"]
    for python in ("3.10", "3.13"):
        found = classroom.wanted(LOCK.splitlines(), platform, python)
        names = [name.split("==")[0] for name in found]
        assert len(names) == len({*names})
        pinned = dict(name.split("==") for name in found)
        for line in required:
            assert line.specifier.contains(pinned[line.name.lower()]), line
    assert "://" not in LOCK and "make lock" in LOCK.splitlines()[1]


@pytest.fixture
def progress(tmp_path, monkeypatch):
    file = tmp_path / "seat-07.jsonl"
    monkeypatch.setenv("COURSE_PROGRESS", str(file))
    return file


def test_progress_counts_tries(progress, capsys):
    checks.check_small_nodule(...)  # not answered
    assert not progress.exists()
    for answer in ("a", "b", "c", "a"):
        checks.check_small_nodule(answer)
    checks.check_linked(lambda k, n_a, n_b: 1 / 0)
    first = json.loads(progress.read_text().splitlines()[0])
    assert first.keys() == {"check", "right", "at"}
    assert first["check"] == "small_nodule" and first["right"] is False
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", first["at"])
    other = progress.with_name("seat-08.jsonl")
    other.write_text('{"check": "linked", "right": true, "at": ""}\n')
    capsys.readouterr()
    runner.main(["progress", str(progress), str(other)])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["seat-07", "seat-08"],
        ["2.5", "small_nodule", "3"],
        ["3.3", "linked", "(1)", "1"],
    ]


def test_without_the_variable_nothing_is_written(progress, monkeypatch):
    monkeypatch.delenv("COURSE_PROGRESS")
    checks.check_small_nodule("c")
    assert not progress.exists()


def test_a_check_answers_where_its_line_cannot_be_written(progress, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PROGRESS", str(progress / "no/folder"))
    assert checks.check_small_nodule("c") is True
    assert "cannot be written" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", '{"right": true}', '{"check": "?", "right": true}'])
def test_another_file_is_refused_in_one_line(progress, text):
    progress.write_text(text)
    with pytest.raises(SystemExit, match="seat-07.jsonl: not a file of COURSE_PROGRESS"):
        runner.progress_table([progress])


def test_links_of_the_kit_lead_somewhere():
    for page in [*KIT.glob("*.md"), *runner.ROOT.glob("C*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_plans_add_up():
    """Each table goes on where the line before it ended; "all" of a notebook gets its minutes."""
    tables = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PLANS, re.M | re.S)
    ends = []
    for _, body in tables:
        spans = [tuple(map(int, span)) for span in re.findall(r"^\| (\d+)–(\d+) \|", body, re.M)]
        if spans:
            assert spans[0][0] == 0
            for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
                assert start == end
            ends.append(spans[-1][1])
    assert ends == [90, 240, 420, 420]
    wholes = re.findall(r"^\| (\d+)–(\d+) \| (\d\d), all \|", PLANS, re.M)
    assert len(wholes) >= 4
    for start, end, number in wholes:
        first = cells(FILES[int(number) - 1])[0].source
        stated = re.search(r"\| your time \| about (\d+) minutes", first)[1]
        assert int(end) - int(start) >= int(stated), number


def test_the_kits_machine_times_are_the_notebooks():
    rows = re.findall(r"^\| [\d–]+ \| (\d\d)(?:, all)? \|.*?(\d+ to \d+ s).*\|$", PLANS, re.M)
    assert len(rows) >= 6
    for number, seconds in rows:
        first = cells(FILES[int(number) - 1])[0].source
        assert seconds in re.search(r"\| machine's time \| (.+)", first)[1], number


def test_exercises_named_in_the_kit_are_there():
    known = {
        f"{int(file.name[:2])}.{n}"
        for file in FILES
        for n in range(1, 1 + len(cells(file, "code", "exercise")))
    }
    for page in KIT.glob("*.md"):
        named = re.findall(
            r"\b(?:exercises?|and|,) (\d+\.\d)\b(?!\d| h| %)", page.read_text("utf-8")
        )
        assert {*named} <= known, page.name
