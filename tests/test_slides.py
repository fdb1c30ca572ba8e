"""The talks that docs/build_slides.py makes of the notebooks."""

import base64
import importlib.util
import os
import re

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_tools import CHROMIUM, FILES, cells

from helpers.course import runner
from helpers.figures import rendering
from helpers.storage.files import WriteError

specification = importlib.util.spec_from_file_location(
    "build_slides", runner.ROOT / "docs" / "build_slides.py"
)
build_slides = importlib.util.module_from_spec(specification)
specification.loader.exec_module(build_slides)

PIXEL = base64.b64encode(rendering.encode(np.zeros((8, 8), np.uint8))).decode()
FIRST = "# 1 · Scans\n\n**In this notebook** you\n1. look;\n2. see.\n\nMore."
LAST = "## Recap\n\nYou looked. You saw.\n\n**References** None."
QUIZ = (
    "**Quick question** Ill?\n\n<details><summary>a) no</summary>\n\nNo: look.\n\n</details>\n"
    "<details><summary>b) so it is</summary>\n\nYes: by the [haze](x.md).\n\n</details>"
)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """The talk of every notebook, read."""
    made = build_slides.build(FILES, tmp_path_factory.mktemp("slides"))
    return {path.stem: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in made}


def figure(alt="A chest."):
    """A code cell with a picture."""
    about = {"image/jpeg": {"alt": alt}} if alt else {}
    output = new_output("display_data", {"image/jpeg": PIXEL}, metadata=about)
    return new_code_cell("plot()", outputs=[output])


def notebook(*inner, first=FIRST, last=LAST):
    return new_notebook(cells=[new_markdown_cell(first), *inner, new_markdown_cell(last)])


def quick_question(text=QUIZ):
    return new_markdown_cell(text, metadata={"tags": ["quiz"]})


def words(element):
    return " ".join(element.get_text().split())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem[:2])
def test_a_talk_shows_each_figure_of_its_notebook_with_its_alternative_text(talks, file):
    outputs = [output for cell in cells(file, "code") for output in cell.outputs]
    figures = [(kind, o) for o in outputs for kind in o.get("data", {}) if kind[:6] == "image/"]
    shown = talks[file.stem].select("section section > figure > img")
    assert [image["alt"] for image in shown] == [o.metadata[kind]["alt"] for kind, o in figures]
    for image, (kind, output) in zip(shown, figures, strict=True):
        assert image["src"].startswith(f"data:{kind};base64,")
        if kind != "image/svg+xml":
            assert image["src"].endswith("".join(output.data[kind].split()))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem[:2])
def test_a_talk_has_a_title_what_is_learned_a_recap_and_a_sensible_length(talks, file):
    first, *others = talks[file.stem].select(".slides > section > section")
    assert 8 <= 1 + len(others) <= 25
    assert f"# {words(first.h1)}" == cells(file, "markdown")[0].source.splitlines()[0]
    assert 3 <= len(first.select(":scope > ol > li")) <= 5
    assert words(others[-1].h2) == "Recap" and len(words(others[-1])) > 100
    for slide in (first, others[-1]):
        assert "For teaching, not for clinical use." in words(slide)
    assert not [slide for slide in others if not slide.h2]
    shown = [slide for slide in others if slide.figure]
    assert len([slide for slide in shown if not slide.select(":scope > p, .fragment")]) <= 1
    for slide in others[:-1]:  # a few words, and neither code nor formulas nor links
        assert not slide.select(":scope > :is(pre, table), a")
        said = " ".join(words(p) for p in slide.select(":scope > p, .fragment"))
        assert len(said) < 700 and "$" not in said


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem[:2])
def test_the_answer_of_a_quick_question_is_hidden_at_first(talks, file):
    slides = [slide for slide in talks[file.stem].select("section section") if slide.h2]
    slides = [slide for slide in slides if words(slide.h2).startswith("Quick question")]
    questions = cells(file, "markdown", "quiz")
    assert len(slides) == len(questions) >= 2
    for slide, cell in zip(slides, questions, strict=True):
        notes, fragment = slide.select_one("aside.notes"), slide.select_one("div.fragment")
        assert words(notes).count(" No") >= 1 and "Yes" in words(notes)
        assert re.match(r"[a-d]\) Yes", words(fragment))
        hidden = words(notes.extract()), words(fragment.extract())
        assert all(hidden) and not re.search(r"\b(Yes|No):", words(slide))
        assert len(re.findall(r"\b[a-d]\) ", words(slide))) == cell.source.count("<summary>")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem[:2])
def test_the_first_slide_has_the_instructors_notes(talks, file):
    entries = (runner.ROOT / "docs/instructors/notes.md").read_text("utf-8").split("\n## ")
    (entry,) = [entry for entry in entries if entry.startswith(file.stem[:2])]
    idea = re.search(r"\*\*Idea\.\*\* (.+)", entry)[1]
    notes = talks[file.stem].select_one("section section aside.notes")
    assert words(notes).startswith(f"Idea. {re.sub('[*`]', '', idea)}"[:60])
    assert words(notes).count("?") >= 3


def test_nothing_is_fetched(talks):
    for name, page in talks.items():
        for element in page.find_all(True):
            for attribute in ("src", "srcset", "href", "data", "poster", "action"):
                address = element.get(attribute, "#")
                assert address.startswith(("#", "data:")), (name, element.name, address[:80])
        styles = " ".join(style.get_text() for style in page.find_all("style"))
        assert not re.search(r"url\((?!['\"]?data:)|@import", styles), name
        scripts = " ".join(script.get_text() for script in page.find_all("script"))
        assert not re.search(r"https?:|import|require", scripts), name


def test_the_words_stand_around_their_figure():
    made = build_slides.slides(
        notebook(
            new_markdown_cell("## Haze\n\nA scan is read twice. **Where is the haze?** Look."),
            figure('A <chest> & its "haze"'),
            new_markdown_cell("At the back. There lies the [weight](x.md) of the lung. More."),
            new_markdown_cell("**Exercise 1.1 (make)** What is not spoken?"),
            figure(),
            quick_question(),
        ),
        "01_a.ipynb",
    )
    first, haze, again, quiz, recap = made
    assert first["slide"].startswith("# 1 · Scans\n\n**In this notebook** you\n1. look;")
    assert haze["slide"].startswith(
        "## Haze\n\nA scan is read twice. **Where is the haze?**\n\n<fig"
    )
    assert haze["fragment"] == "At the back. There lies the weight of the lung."
    assert "A scan is read twice." in haze["notes"] and haze["notes"].endswith("lung. More.")
    assert "not spoken" not in again["slide"] and "fragment" not in again
    assert (
        quiz["fragment"] == "**b)** Yes: by the haze." and "a) no\n\nb) so it is" in quiz["slide"]
    )
    assert "- You looked.\n- You saw." in recap["slide"]
    page = BeautifulSoup(build_slides.talk(made), "html.parser")
    assert page.title.get_text() == "1 · Scans" and len(page.select("section section")) == 5
    assert page.img["alt"] == 'A <chest> & its "haze"'


@pytest.mark.parametrize(
    "text, opens_section, found",
    [
        ("It is so. **Is it?** Or is it not?", True, "It is so. **Is it?**"),
        ("It is so. Is it? Look below.", True, "It is so. Is it?"),
        ("First. Second by Li et al. 2021. Third.", True, "First. Second by Li et al. 2021."),
        ("First. Second. Third.", False, "Second. Third."),
        ("First. **Hear this.** Third.", True, "**Hear this.**"),
        ("**Two. Both bold.** Third.", False, "Both bold. Third."),
        ("It is $x$. See [it](y.md).\n\n| a |\n|---|\n\n```\nWhy?\n```", True, "See it."),
        ("One:\n- **a**: b;\n- c.", False, "**a**: b c."),
        (f"A {'long ' * 50}sentence. A short one.", False, "A short one."),
        ("", True, ""),
    ],
)
def test_the_question_of_a_figure(text, opens_section, found):
    assert build_slides.question(text, opens_section) == found


@pytest.mark.parametrize(
    "text, found",
    [
        ("It is black. The lung is gone. More.", "It is black. The lung is gone."),
        (f"It is {'very ' * 20}black. More.", f"It is {'very ' * 20}black."),
        ("And from the side:", ""),
        ("Three things to read:\n\n- **One**: so.", "**One**: so."),
        ("", ""),
    ],
)
def test_what_is_said_of_a_figure(text, found):
    assert build_slides.answer(text) == found


BAD = {
    "no title": notebook(first=FIRST.replace("# 1", "1")),
    "no list of objectives": notebook(first="# 1 · Scans"),
    "no Recap": notebook(last="The end."),
    "no alternative text": notebook(figure(alt="")),
    "0 right answers": notebook(quick_question(QUIZ.replace("Yes", "Perhaps"))),
    "2 right answers": notebook(quick_question(QUIZ.replace("No:", "Yes:"))),
    "is not a notebook": '{"cells": [',
    "is not a notebook (": "",
}


@pytest.mark.parametrize("fault", BAD)
def test_a_malformed_notebook_is_refused_in_one_line_and_nothing_is_written(fault, tmp_path):
    good, bad, folder = tmp_path / "01_a.ipynb", tmp_path / "02_b.ipynb", tmp_path / "slides"
    nbformat.write(notebook(), good)
    text = BAD[fault] if isinstance(BAD[fault], str) else nbformat.writes(BAD[fault])
    bad.write_text(text, encoding="utf-8")
    with pytest.raises(build_slides.SlidesError) as caught:
        build_slides.build([good, bad], folder)
    message = str(caught.value)
    assert message.startswith("02_b.ipynb: ") and fault in message and "\n" not in message
    assert not folder.exists()


def test_what_cannot_be_written_whole_leaves_the_old_talk(tmp_path, monkeypatch):
    file, folder = tmp_path / "01_a.ipynb", tmp_path / "slides"
    nbformat.write(notebook(), file)
    (talk,) = build_slides.build([file], folder)
    before = talk.read_bytes()
    nbformat.write(notebook(figure()), file)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(WriteError, match="No space left"):
            build_slides.build([file], folder)
    assert talk.read_bytes() == before and list(folder.iterdir()) == [talk]


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_a_talk_opens_from_the_disk_and_fits_the_screen(tmp_path):
    from playwright.sync_api import sync_playwright

    made = build_slides.build(FILES[1::4], tmp_path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url.partition(",")[0]))
        page.on("pageerror", lambda error: errors.append(str(error)))
        for talk in made:
            page.goto(talk.as_uri())
            page.wait_for_function("window.Reveal && Reveal.isReady()")
            n_slides = page.evaluate("Reveal.getTotalSlides()")
            for index in range(n_slides):
                page.evaluate(f"Reveal.slide({index}, 0)")
                slide = page.locator("section.present section.present")
                size = slide.evaluate("s => [s.scrollHeight - s.clientHeight, s.clientHeight]")
                assert size[0] <= 1 and size[1] > 600, (talk.name, index)
                for fragment in slide.locator(".fragment").all():
                    assert not fragment.evaluate(
                        "f => f.checkVisibility({visibilityProperty: true})"
                    )
                    page.keyboard.press("ArrowRight")
                    assert fragment.evaluate("f => f.checkVisibility({visibilityProperty: true})")
                for image in slide.locator("img").all():
                    box = image.bounding_box()
                    assert box["height"] > 250 and box["width"] > 500, (talk.name, index)
        browser.close()
    assert not errors
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert [url for url in asked if url.startswith("file")] == [talk.as_uri() for talk in made]
