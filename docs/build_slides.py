"""Makes a talk of each notebook, from its figures, into slides/: `make slides`.

A slide shows one figure: above it the question that the notebook asks, below it what the notebook
says that one sees. The quick questions are slides with the answer hidden; the speaker's notes are
those of docs/instructors/notes.md, and the text around the figure. Nothing is executed. nbconvert
makes the HTML; reveal.js (MIT licence), as sphinx-revealjs brings it, lies inside every talk, so
that a talk is one file that needs no connection.
"""

from __future__ import annotations

import base64
import html
import io
import re
import sys
from importlib import resources
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell, new_notebook
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from helpers.course.runner import notebook_files, tags  # noqa: E402
from helpers.storage.files import WriteError, write_whole  # noqa: E402

WARNING = "**For teaching, not for clinical use.**"
PARTS = {
    "title": r"\A# (.+)",
    "list of objectives": r"^(\*\*In this notebook\*\* you\n(?:.+\n)+)",
    "Recap": r"^## Recap\n(?s:(.+?))^\*\*References\*\*",
}
# what is not spoken: code, what is folded, formulas, exercises, tables
NOT_SAID = r"(?s:```.*?```|<details>.*?</details>|\$\$.*?\$\$|^\*\*Exercise .*)|^\|.*$"
# a sentence ends here; "et al. 2021" goes on
END = re.compile(r"(?:(?<=[.?!])|(?<=[.?!]\*)|(?<=[.?!]\*\*))\s+(?=[*`(\"]*[A-Z])")
OPTION = re.compile(r"<details><summary>(.*?)</summary>\s*(.*?)\s*</details>", re.S)
# letters: of a question and an answer that need a second sentence, and of two lines and a half
SHORT_QUESTION, SHORT_ANSWER, ROOM = 45, 90, 200


class SlidesError(RuntimeError):
    """A notebook of which no talk can be made; the message names it and says why."""


def spoken(text) -> str:
    """A markdown text without what is not spoken; links become words."""
    text = re.sub(NOT_SAID, "", text, flags=re.M)
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text).strip()


def sentences(text) -> list[str]:
    """The sentences of a markdown text, those of a list's items too; none with a formula."""
    parts = re.split(r"\n\s*\n|^\s*(?:[-*]|\d+\.)\s", spoken(text), flags=re.M)
    found = [sentence for part in parts for sentence in END.split(" ".join(part.split()))]
    found = [s if s.count("**") % 2 == 0 else s.replace("**", "") for s in found]
    return [sentence.rstrip(";") for sentence in found if sentence and "$" not in sentence]


def question(text, opens_section) -> str:
    """What a text asks before its figure, or else what it says.

    That is the last question, one in bold before others; or a sentence in bold; or how the section
    begins; or, further down in a section, what leads to the figure.
    """
    found = sentences(text)
    asked = [i for i, sentence in enumerate(found) if sentence.rstrip("*").endswith("?")]
    asked = [i for i in asked if found[i].endswith("**")] or asked
    bold = [s for s in found if s.startswith("**") and s.endswith("**")]
    if asked:
        last = asked[-1]
        first = max(last - (len(found[last]) < SHORT_QUESTION), 0)
        chosen, best = found[first : last + 1], found[last]
    elif bold:
        chosen, best = bold[-1:], bold[-1]
    else:
        chosen = found[:2] if opens_section else found[-2:]
        best = "".join(found[:1] if opens_section else found[-1:])
    both = " ".join(chosen)
    return both if len(both) < ROOM else best


def answer(text) -> str:
    """What a text says of the figure before it: its first sentence, and after a short one two."""
    found = [sentence for sentence in sentences(text) if not sentence.endswith(":")]
    if not found or found[0].startswith(("And ", "Now ")):  # on to the next figure
        return ""
    both = " ".join(found[:2])
    return both if len(found[0]) < SHORT_ANSWER and len(both) < ROOM else found[0]


def picture(output, name) -> str:
    """An output's figure as HTML, with its alternative text; "" for an output that has none."""
    kind = next((kind for kind in output.get("data", {}) if kind.startswith("image/")), None)
    if not kind:
        return ""
    data, words = output.data[kind], output.metadata.get(kind, {}).get("alt")
    if not words:
        raise SlidesError(f"{name}: a figure has no alternative text")
    shape = "drawing"
    if kind == "image/svg+xml":
        data = base64.b64encode(data.encode()).decode()
    else:
        width, height = Image.open(io.BytesIO(base64.b64decode(data))).size
        shape = "wide" if width > 1.9 * height else "tall"
    address = f"data:{kind};base64,{''.join(data.split())}"
    return f'<figure class="{shape}"><img alt="{html.escape(words)}" src="{address}"></figure>'


def quiz(text, name) -> dict[str, str]:
    """A quick question with its options; the right one is hidden, all reasons are in the notes."""
    asked = text.partition("<details>")[0].replace("**Quick question**", "")
    options = OPTION.findall(text)
    right = [f"**{option[:2]}** {reason}" for option, reason in options if reason.startswith("Yes")]
    if len(right) != 1:
        raise SlidesError(f"{name}: a quick question has {len(right)} right answers instead of one")
    shown = "\n\n".join(option for option, _ in options)
    reasons = "\n\n".join(f"{option[:2]} {reason}" for option, reason in options)
    return {
        "slide": f"## Quick question\n\n{spoken(asked)}\n\n{shown}",
        "notes": spoken(reasons),
        "fragment": spoken(right[0]),
    }


def slides(notebook, name, notes="") -> list[dict[str, str]]:
    """The slides of a notebook, each as markdown: `slide`, `notes`, `fragment` (hidden at first).

    notes: the instructor's, for the first slide. SlidesError for a notebook in which a part of
    PARTS is missing, a figure without alternative text, a quick question without a right answer.
    """
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    found = {part: re.search(like, "\n\n".join(texts), re.M) for part, like in PARTS.items()}
    for part in (part for part, match in found.items() if not match):
        raise SlidesError(f"{name}: has no {part}")
    title, objectives, recap = (match[1] for match in found.values())
    made = [{"slide": f"# {title}\n\n{spoken(objectives)}\n\n{WARNING}", "notes": notes}]

    heading = before = ""
    is_new = opens_section = True  # new: a text that stands before no figure yet
    waiting = None  # the slide whose figure was not spoken of yet
    for cell in notebook.cells:
        if "quiz" in tags(cell):
            made.append(quiz(cell.source, name))
        elif cell.cell_type == "markdown" and "solution" not in tags(cell):
            above, *sections = re.split(r"^(?=##)", spoken(cell.source), flags=re.M)
            if waiting:
                waiting["fragment"] = answer(above)
                waiting["notes"] += f"\n\n{above}"
            if sections:
                heading, _, before = sections[-1].partition("\n")
            else:
                before = f"{before}\n\n{above}" if is_new else above
            opens_section, is_new = bool(sections) or (is_new and opens_section), True
        if cell.cell_type == "markdown":
            waiting = None
        for figure in filter(None, (picture(output, name) for output in cell.get("outputs", []))):
            text = f"## {heading.lstrip('# ')}\n\n{question(before, opens_section)}\n\n{figure}"
            made.append({"slide": text, "notes": before})
            is_new = False
            # a drawing explains itself, and the text after it goes on
            waiting = None if 'class="drawing"' in figure else made[-1]

    if not re.search(r"^\d\. ", recap, re.M):
        lines = sentences(recap)
        recap = "\n".join(f"- {line}" for line in lines) if len(lines) > 1 else recap
    return [*made, {"slide": f"## Recap\n\n{spoken(recap)}\n\n{WARNING}"}]


def reveal_parts() -> dict[str, str]:
    """What a talk takes from reveal.js: two scripts as data addresses, and the style."""
    reveal = resources.files("sphinx_revealjs") / "_static/revealjs"
    names = ("dist/reveal.js", "plugin/notes/notes.js")
    scripts = [base64.b64encode((reveal / name).read_bytes()).decode() for name in names]
    style = (reveal / "dist/reveal.css").read_text("utf-8")
    own = (ROOT / "docs/slides/talk.css").read_text("utf-8")
    return {"css": style + own, "scripts": [f"data:text/javascript;base64,{s}" for s in scripts]}


def talk(made) -> str:
    """One HTML file of slides."""
    from nbconvert import SlidesExporter

    cells = [
        new_markdown_cell(text, metadata={"slideshow": {"slide_type": kind}})
        for slide in made
        for kind, text in slide.items()
        if text
    ]
    title = made[0]["slide"].partition("\n")[0].removeprefix("# ")
    template = str(ROOT / "docs/slides/talk.html.j2")
    exporter = SlidesExporter(template_file=template, exclude_anchor_links=True)
    notebook = new_notebook(cells=cells, metadata={"title": title})
    return exporter.from_notebook_node(notebook, resources={"talk": reveal_parts()})[0]


def build(files, folder) -> list[Path]:
    """Write a talk for each notebook into `folder`; all are made before the first is written."""
    text = (ROOT / "docs/instructors/notes.md").read_text(encoding="utf-8")
    notes = dict(re.findall(r"^## (\d\d) .*\n(?s:(.+?))(?=^## |\Z)", text, re.M))
    talks = {}
    for file in files:
        try:
            notebook = nbformat.read(file, 4)
        except Exception as error:
            reason = " ".join(str(error).split())[:100]
            raise SlidesError(f"{file.name}: is not a notebook ({reason})") from None
        made = slides(notebook, file.name, spoken(notes.get(file.name[:2], "")))
        talks[folder / f"{file.stem}.html"] = talk(made).encode()
    return [
        write_whole(path, lambda file, data=data: file.write(data)) for path, data in talks.items()
    ]


if __name__ == "__main__":
    try:
        talks = build(notebook_files(), ROOT / "slides")
    except (SlidesError, WriteError) as error:
        sys.exit(f"no slides: {error}")
    print(f"{len(talks)} talks in slides/; open one in a browser, press S for the speaker's notes")
