"""Builds the course's web site into site/: `make site`.

What is committed is copied to runs/site, changed where a page of the site differs from the same
page on GitHub, and made into HTML by Sphinx, whose settings and own pages lie in docs/site.
Nothing is executed, but for a phantom that is drawn for the page on which one can scroll it.
"""

from __future__ import annotations

import ast
import html
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from string import Template

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from helpers.course.runner import notebook_files, repository_url  # noqa: E402

# the parts of the contents and their pages, in order; what is not there is left out
CONTENTS = {
    "The course": ["scroll.md", "notebooks/*.ipynb"],
    "To run and look up": [
        "docs/running.md",
        "docs/troubleshooting.md",
        "docs/data.md",
        "docs/glossary.md",
        "api/index.md",
    ],
    "What was measured": [
        "docs/results.md",
        "docs/transfer.md",
        "docs/statistics.md",
        "docs/speed.md",
        "docs/gpu.md",
    ],
    "To teach and take part": [
        "docs/instructors/index.md",
        "docs/instructors/*.md",
        "docs/cluster.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ],
}
MODULES = [
    *("ct.studies", "ct.dicom", "ct.cohort", "ct.preprocessing", "ct.quality"),
    *("learn.networks", "learn.training", "learn.prediction"),
    *("scores.metrics", "figures.viewers", "course.runs"),
]
CODE = r"(?s:```.*?```)|`[^`\n]*`"
# where no word is linked: code, formulas, folds, references, links and their like, tags, headings
NOT_PROSE = CODE + (
    r"|(?s:\$\$.*?\$\$|<(details|a|span)\b.*?</\1>|\*\*References\*\*.*?(?=\n\n|\Z))|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)"
    r"|<[^>]+>|^#.*"
)
ROW = re.compile(r"^\| (?P<word>[^|]+) \| (?P<meaning>[^|]+) \| (?P<number>\d+) \|$", re.M)
BADGE = re.compile(r"\[!\[([^\]]*)\]\([^)]*\)\]\(([^)]*)\)")
N_SLICES = 40


def anchor(row) -> str:
    """Where a row of the glossary stands on its page; a word with two meanings has two rows."""
    return re.sub(r"\W+", "-", row["word"].lower()).strip("-") + "-" + row["number"]


def word_pattern(word) -> str:
    """How a word looks in a text: "fold, cross-validation" is two words, "fold" also "folds"."""
    forms = re.split(", | to ", re.sub(r" \(.*\)", "", word))
    forms = [form for form in forms if form[0].isalpha()]
    forms += [form[:-1] + "ies" for form in forms if form.endswith("y")]
    forms += [form[:-2] + "es" for form in forms if form.endswith("is")]
    forms = [r"\s+".join(map(re.escape, form.split())) for form in forms]
    flag = "-i" if re.search("[A-Z]", word) else "i"
    return rf"\b(?{flag}:{'|'.join(forms)})(?:s|es)?\b"


def link_words(texts, rows, page="../docs/glossary.html") -> list[str]:
    """Link the first use of each word in prose to the glossary, with its meaning as a tooltip."""
    texts = list(texts)
    for row in sorted(rows, key=lambda row: -len(row["word"])):
        meaning = html.escape(re.sub("[*`]", "", row["meaning"]))
        start = f'<a class="word" href="{page}#{anchor(row)}" title="{meaning}">'
        pattern = re.compile(rf"{NOT_PROSE}|(?P<word>{word_pattern(row['word'])})", re.M)
        found = ((i, m) for i, t in enumerate(texts) for m in pattern.finditer(t) if m["word"])
        for i, match in found:
            before, after = texts[i][: match.start()], texts[i][match.end() :]
            texts[i] = f"{before}{start}{match[0]}</a>{after}"
            break
    return texts


def whole_intervals(text) -> str:
    """No line is broken within "[0.86, 1.00]"."""
    return re.sub(r"(\[[−-]?[\d.]+,) (?=[−-]?[\d.]+\])", "\\1\u00a0", text)


def glossary_page(text, names) -> str:
    """The glossary with an anchor at every word and a link to each notebook of `names`."""

    def change(row):
        name = next((name for name in names if int(name[:2]) == int(row["number"])), None)
        number = f"[{row['number']}](../notebooks/{name})" if name else row["number"]
        return f'| <span id="{anchor(row)}">{row["word"]}</span> | {row["meaning"]} | {number} |'

    return ROW.sub(change, text)


def resolve_links(text, page, pages, repository) -> str:
    """Lead links to files that are no pages of the site to the repository; badges become words.

    page: where the text lies, relative to the repository, as all in `pages` do.
    """

    def change(match):
        link, part = (match["link"] or "").partition("#")[::2]
        path = os.path.normpath(os.path.join(os.path.dirname(page), link))
        if not link or ":" in link or path in pages:
            return match[0]
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"]({repository}/{kind}/main/{path}{'#' * bool(part)}{part})"

    text = BADGE.sub(r"[\1](\2)", text).replace("```mermaid", "```text")
    text = re.sub(rf"{CODE}|\]\((?P<link>[^)\s]+)\)", change, text)
    return re.sub(r"^\|.*", lambda row: whole_intervals(row[0]), text, flags=re.M)


def notebook_page(notebook, name, rows, pages, repository):
    """A notebook as the site shows it: alternative texts, folded cells, links, a download."""
    for cell in notebook.cells:
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
        for output in cell.get("outputs", []):
            for about in output.get("metadata", {}).values():
                if "alt" in about:
                    cell.metadata["mystnb"] = {"image": {"alt": about["alt"]}}
            if table := output.get("data", {}).get("text/html"):
                output.data["text/html"] = whole_intervals(table)
    first, *others = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    own = [row for row in rows if int(row["number"]) == int(name[:2])]
    linked = link_words([cell.source for cell in others], own)
    for cell, text in zip([first, *others], [first.source, *linked], strict=True):
        cell.source = resolve_links(text, f"notebooks/{name}", pages, repository)
    download = f'<a class="button" href="{name}" download>Download the notebook</a>'
    first.source = re.sub(r"\[Open in \w+\]\([^)]*\)", r"\g<0>{.button}", first.source)
    first.source = re.sub(r"^\[Open in .*", rf"\g<0> {download}", first.source, flags=re.M)
    return notebook


def pausable(text) -> str:
    """Give every GIF a still beside it; static/motion.js changes between the two."""
    still = (
        '<picture class="motion">'
        '<source srcset="{}.jpg" media="(prefers-reduced-motion: reduce), (max-width: 600px)">{}'
        "</picture>"
    )
    gif = r'<img src="(.*?)\.gif".*?/>'
    return re.sub(gif, lambda match: still.format(match[1], match[0]), text)


def readme_parts(text) -> dict[str, str]:
    """What the front page takes from the README, by name."""
    head, *sections = re.split(r"^## ", text, flags=re.M)
    sections = dict(section.split("\n", 1) for section in sections)
    title, promise = head.removeprefix("# ").split("\n", 1)
    promise, gifs, note = re.split(r"((?:^\|.*\n)+)", promise, maxsplit=1, flags=re.M)
    commands = re.search(r".*?```bash\n.*?```", sections["Two commands"], re.S)[0]
    _, table, about = re.split(r"((?:^\|.*\n)+)", sections["Notebooks"], maxsplit=1, flags=re.M)
    columns = [row.split("|")[2:5] for row in table.splitlines()]
    rows = [f"|{'|'.join(row)}|" for row in columns]
    return {
        "title": title,
        "promise": promise,
        "gifs": pausable(gifs),
        "note": note,
        "commands": commands,
        # a link without words shows the title of its page
        "map": re.sub(r"\[.*?\]\(", "[](", "\n".join(rows)) + "\n" + about,
        "results": sections["Results"],
        "data": re.search(r"(?:^(?:- |  ).*\n)+", sections["Data and licences"], re.M)[0],
    }


def draw_stills(folder) -> None:
    """The middle frame of every GIF, beside it."""
    from PIL import Image

    for file in folder.glob("*.gif"):
        with Image.open(file) as gif:
            gif.seek(gif.n_frames // 2)
            gif.convert("L").save(file.with_suffix(".jpg"), quality=85)


def draw_studies(folder) -> None:
    """One simulated patient, healthy and ill: all axial slices in two windows, one JPEG each."""
    import numpy as np

    from helpers.figures import rendering
    from helpers.phantom.simulate import make_study

    folder.mkdir(parents=True)
    for who, category in {"healthy": "CT-0", "ill": "CT-2"}.items():
        hu = make_study(4, category, 256, N_SLICES).hu
        for window in ("lung", "mediastinum"):
            level, width = rendering.PRESETS[window]
            slices = [
                rendering.render(hu, index=k, level=level, width=width) for k in range(len(hu))
            ]
            (folder / f"{who}_{window}.jpg").write_bytes(rendering.encode(np.vstack(slices)))


def contents(source) -> str:
    """The table of contents, of the pages that lie in `source`."""
    lines = []
    for title, patterns in CONTENTS.items():
        found = [file for pattern in patterns for file in sorted(source.glob(pattern))]
        names = dict.fromkeys(file.relative_to(source).as_posix() for file in found)
        lines += ["```{toctree}", ":hidden:", f":caption: {title}", "", *names, "```", ""]
    return "\n".join(lines)


def prepare(source, notebooks, modules=MODULES, with_studies=True) -> None:
    """Put all that Sphinx reads into a new folder."""
    shutil.copytree(ROOT / "docs/site", source)
    extra = source / "extra"  # goes to the site as it is
    shutil.copytree(ROOT / "gifs", extra / "gifs")
    draw_stills(extra / "gifs")
    (extra / "notebooks").mkdir()
    if with_studies:
        draw_studies(extra / "studies")

    repository = repository_url()
    own = {file.name: file for file in (ROOT / "docs/site").glob("*.md")}
    files = own | {f"notebooks/{file.name}": file for file in notebooks}
    others = ("docs/*.md", "docs/*.png", "docs/instructors/*.*", "CONTRIBUTING.md", "CHANGELOG.md")
    for pattern in others:
        files |= {file.relative_to(ROOT).as_posix(): file for file in ROOT.glob(pattern)}
    read = partial(Path.read_text, encoding="utf-8")
    rows = [row.groupdict() for row in ROW.finditer(read(ROOT / "docs/glossary.md"))]
    texts = {}
    for name, file in files.items():
        if file.suffix == ".ipynb":
            shutil.copy(file, extra / "notebooks")
            page = notebook_page(nbformat.read(file, 4), file.name, rows, files, repository)
            texts[name] = nbformat.writes(page)
        elif file.suffix == ".md":
            text = read(file)
            if name == "docs/glossary.md":
                text = glossary_page(text, [file.name for file in notebooks])
            texts[name] = resolve_links(text, name, files, repository)
        else:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, source / name)

    readme = resolve_links(read(ROOT / "README.md"), "README.md", files, repository)
    parts = readme_parts(readme)
    lines = ["# What the notebooks import", ""]
    for module in modules:
        code = read(ROOT / "helpers" / f"{module.replace('.', '/')}.py")
        about = ast.get_docstring(ast.parse(code)).splitlines()[0]
        lines.append(f"- [{module}]({module}.md): {about}")
        members = "   :members:\n   :member-order: bysource\n"
        directive = f"```{{eval-rst}}\n.. automodule:: helpers.{module}\n{members}```\n"
        up = "---\norphan: true\n---\n[All modules](index.md)\n"
        texts[f"api/{module}.md"] = f"{up}\n# {module}\n\n{directive}"
    texts["api/index.md"] = "\n".join(lines)
    for name, text in texts.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    front = Template(texts["index.md"]).substitute(parts, contents=contents(source))
    (source / "index.md").write_text(front, encoding="utf-8")


def build(work, site, **options) -> int:
    """Make the site in the folder `work` and put it into `site` if nothing is wrong with it.

    options: those of `prepare`. Returns Sphinx's exit status; its warnings are errors here.
    """
    from sphinx.cmd.build import build_main

    shutil.rmtree(work, ignore_errors=True)
    prepare(work / "source", **options)
    strict = ["-q", "-W", "--keep-going", "-d", str(work / "doctrees")]
    status = build_main([*strict, str(work / "source"), str(work / "html")])
    if not status:
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(work / "html", site)
    return status


if __name__ == "__main__":
    status = build(ROOT / "runs/site", ROOT / "site", notebooks=notebook_files())
    print("the site has faults, see above" if status else "site/index.html is the front page")
    sys.exit(status)
