"""The web site: what docs/build_site.py changes in a page, and a small site built by Sphinx."""

import importlib.util
import re
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_tools import CHROMIUM, FILES

from helpers.course import runner

specification = importlib.util.spec_from_file_location(
    "build_site", runner.ROOT / "docs" / "build_site.py"
)
build_site = importlib.util.module_from_spec(specification)
specification.loader.exec_module(build_site)

# of what Sphinx's own extensions will have to change for its version 11
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
GLOSSARY = """| word | what it means | notebook |
|---|---|---|
| HU, Hounsfield unit | The *unit* of CT, "HU" < 3000. | 2 |
| study | One scan. | 1 |
| kernel (of a reconstruction) | A filter. | 12 |
"""
ROWS = [row.groupdict() for row in build_site.ROW.finditer(GLOSSARY)]
ADDRESS = "https://github.com/OWNER/NAME"


@pytest.mark.parametrize(
    "word, text, found",
    [
        ("fold, cross-validation", "Cross-validation, not folding", "Cross-validation"),
        ("fold, cross-validation", "in five folds", "folds"),
        ("study", "all Studies", "Studies"),
        ("metastasis", "two metastases", "metastases"),
        ("HU, Hounsfield unit", "huge, and 5 HU", "HU"),
        ("CT-0 to CT-4", "of class CT-0", "CT-0"),
        ("kernel (of a reconstruction)", "a sharp\nkernel", "kernel"),
        (
            "positive predictive value",
            "its positive\npredictive value",
            "positive\npredictive value",
        ),
        ("interval, 95 %", "95 % of the intervals", "intervals"),
        ("rank", "a ranking", None),
    ],
)
def test_a_word_is_found_as_it_is_written_in_a_text(word, text, found):
    match = re.search(build_site.word_pattern(word), text)
    assert (match and match[0]) == found


def test_only_the_first_use_in_prose_is_linked():
    texts = [
        "## A study\n`study` [study](x.md) $study$ <b study>\n\n```python\nstudy\n```",
        "<details><summary>Study?</summary>\n\nA study.\n\n</details>\n\n"
        "**References** A study.\n\nTwo *studies*, one study.",
        "The study again.",
    ]
    first, second, third = build_site.link_words(texts, ROWS, "glossary.html")
    assert (first, third) == (texts[0], texts[2])
    link = '<a class="word" href="glossary.html#study-1" title="One scan.">studies</a>'
    assert second == texts[1].replace("studies", link)


def test_a_link_shows_the_meaning_and_nothing_in_it_is_linked_again():
    (text,) = build_site.link_words(["A study in Hounsfield units, HU."], ROWS)
    assert 'title="The unit of CT, &quot;HU&quot; &lt; 3000.">Hounsfield units</a>, HU.' in text
    assert text.count("<a ") == 2


def test_the_glossary_has_an_anchor_for_every_word_and_a_link_to_every_notebook():
    page = build_site.glossary_page(GLOSSARY, ["01_a.ipynb", "12_b.ipynb"])
    for row in ROWS:
        assert f'<span id="{build_site.anchor(row)}">{row["word"]}</span>' in page
    assert (
        "| [1](../notebooks/01_a.ipynb) |" in page and "| [12](../notebooks/12_b.ipynb) |" in page
    )
    assert "| 2 |" in page  # not on this site


def test_links_lead_to_the_site_or_to_the_repository():
    text = (
        "[a](speed.md#x) [b](../README.md#data) [c](../helpers) [d](#here) [e](https://x.org) "
        "`[f](../LICENSE)`\n\n[![Open in Colab](https://x.org/y.svg)](https://colab/z)\n\n```mermaid\n```"
    )
    page = build_site.resolve_links(text, "docs/gpu.md", {"docs/speed.md"}, ADDRESS)
    assert page == (
        f"[a](speed.md#x) [b]({ADDRESS}/blob/main/README.md#data) [c]({ADDRESS}/tree/main/helpers) "
        "[d](#here) [e](https://x.org) `[f](../LICENSE)`\n\n[Open in Colab](https://colab/z)\n\n"
        "```text\n```"
    )
    intervals = "0.9 [0.8, 1.0]\n| 0.9 [0.8, 1.0] |"  # are whole in a table
    page = build_site.resolve_links(intervals, "docs/gpu.md", {}, ADDRESS)
    assert page == "0.9 [0.8, 1.0]\n| 0.9 [0.8,\u00a01.0] |"


def test_a_notebook_gets_its_texts_links_and_folds():
    picture = new_output("display_data", {"image/png": ""})
    picture.metadata = {"image/png": {"alt": "a chart"}}
    table = new_output("display_data", {"text/html": "<td>0.9 [0.8, 1.0]</td>"})
    hidden = {"jupyter": {"source_hidden": True}, "tags": ["parameters"]}
    badges = "[![Open in Colab](i.svg)](https://c) [![Open in Kaggle](i.svg)](https://k)"
    cells = [
        new_markdown_cell(f"# 1 · A study\n\n{badges}\n\nA study."),
        new_code_cell("SEED = 0", metadata=hidden),
        new_code_cell("study", outputs=[picture, table]),
        new_markdown_cell("A study in HU: [next](02_b.ipynb)"),
    ]
    made = new_notebook(cells=cells)
    page = build_site.notebook_page(made, "01_a.ipynb", ROWS, {"notebooks/02_b.ipynb"}, ADDRESS)
    first, setup, code, text = page.cells
    assert first.source.endswith(
        "[Open in Colab](https://c){.button} [Open in Kaggle](https://k){.button} "
        '<a class="button" href="01_a.ipynb" download>Download the notebook</a>\n\nA study.'
    )
    assert setup.metadata.tags == ["parameters", "hide-input"]
    assert code.metadata.mystnb == {"image": {"alt": "a chart"}} and code.source == "study"
    assert code.outputs[1].data["text/html"] == "<td>0.9 [0.8,\u00a01.0]</td>"
    assert (
        text.source.startswith('A <a class="word"') and "in HU: [next](02_b.ipynb)" in text.source
    )


def test_the_readme_gives_the_front_page_its_parts():
    parts = build_site.readme_parts((runner.ROOT / "README.md").read_text(encoding="utf-8"))
    table = re.findall(r"^\|.*", parts["map"], re.M)
    assert len(table) == 2 + len(FILES) and table[0].startswith("| notebook |")
    for file, line in zip(FILES, table[2:], strict=True):
        assert line.startswith(f"| [](notebooks/{file.name}) |") and "svg" not in line
    assert parts["gifs"].count(".gif") == parts["gifs"].count('.jpg" media=') == 4
    assert "phantom" in parts["note"]
    assert parts["commands"].count("\nmake ") == 2
    assert "not for clinical use" in parts["promise"] and "|" not in parts["promise"]
    assert "| AUC elsewhere |" in parts["results"] and "results.md" in parts["results"]
    assert parts["data"].startswith("- ") and parts["data"].count("](LICENSE)") == 1


def test_every_word_of_the_glossary_is_linked_in_its_notebook():
    glossary = (runner.ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = [row.groupdict() for row in build_site.ROW.finditer(glossary)]
    anchors = {build_site.anchor(row) for row in rows}
    assert len(anchors) == len(rows) > 100
    for file in FILES:
        page = build_site.notebook_page(nbformat.read(file, 4), file.name, rows, {}, ADDRESS)
        text = "".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
        anchors -= set(re.findall(r'<a class="word" href="[^"]*#([^"]*)"', text))
    assert anchors == {"batchnorm-groupnorm-4"}  # which stand there as code alone


def test_the_contents_name_what_is_there(tmp_path):
    for name in ("scroll.md", "notebooks/02_b.ipynb", "notebooks/01_a.ipynb", "CONTRIBUTING.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pages = re.findall(r"^\S+\.\w+$", build_site.contents(tmp_path), re.M)
    assert pages == ["scroll.md", "notebooks/01_a.ipynb", "notebooks/02_b.ipynb", "CONTRIBUTING.md"]


def test_the_page_to_scroll_on_counts_as_many_slices_as_are_drawn():
    page = (runner.ROOT / "docs" / "site" / "scroll.md").read_text(encoding="utf-8")
    assert f'max="{build_site.N_SLICES}"' in page and f"of {build_site.N_SLICES}," in page


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site of one notebook, without the API and the pictures of the studies."""
    folder = tmp_path_factory.mktemp("site")
    status = build_site.build(
        folder / "work", folder / "site", notebooks=[FILES[3]], modules=[], with_studies=False
    )
    assert status == 0  # no warnings either
    return folder / "site"


def test_every_link_within_the_site_leads_somewhere(site):
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    pages = {path: text for path, text in pages.items() if "_static" not in path.parts}
    names = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    dead = []
    for path, text in pages.items():
        for link in re.findall(r'\b(?:href|src|srcset)="([^"]*)"', text):
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme or parts.netloc or "studies" in target.parts:
                continue
            if not target.is_file() or (parts.fragment and parts.fragment not in names[target]):
                dead.append((path.name, link))
    assert len(pages) >= 10 and not dead


def test_the_site_asks_no_other_host_for_anything(site):
    loads = re.compile(r"<(?:script|img|iframe|source|video|audio)\b[^>]*\b(?:src|srcset)=.?//")
    for path in (*site.rglob("*.html"), *site.rglob("*.css")):
        text = path.read_text(encoding="utf-8").replace("https:", "").replace("http:", "")
        links = re.findall(r"<link\b[^>]*>", text)
        assert not loads.search(text), path
        assert not [link for link in links if "//" in link], path
        assert not re.search(r"(?:url\(|@import )[\"']?//", text), path


def test_pictures_and_formulas_of_a_notebook_are_whole(site):
    page = (site / "notebooks" / f"{FILES[3].stem}.html").read_text(encoding="utf-8")
    pictures = re.findall(r"<img\b[^>]*>", page)
    alternatives = [re.search(r'alt="([^"]*)"', picture) for picture in pictures]
    assert len(pictures) > 5 and all(len(found[1]) > 20 for found in alternatives)
    assert 'display="block"' in page and not re.search("<script[^>]*mathjax", page, re.I)
    assert page.count("<details") > 10 and "<details open" not in page
    assert "<th" in page and not re.search(r"<th\b[^>]*>(<p>|</p>|\s|&nbsp;)*</th>", page)
    assert (site / "notebooks" / FILES[3].name).read_bytes() == FILES[3].read_bytes()


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_a_study_is_scrolled_by_keys_and_the_moving_pictures_are_paused(site):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto((site / "scroll.html").as_uri())
        page.keyboard.press("ArrowRight")
        assert page.locator("#study output").inner_text() == "17"
        page.focus("#slice")
        page.keyboard.press("End")
        page.check("text=soft tissue")
        page.check("#study input[value=ill]")
        ill = page.locator("#study img[data-who=ill]")
        assert ill.get_attribute("src") == "studies/ill_mediastinum.jpg"
        assert "slice 40 of 40 of the ill synthetic chest" in ill.get_attribute("alt")
        assert not page.locator("#study img[data-who=healthy]").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

        page.goto((site / "index.html").as_uri())  # where nothing moves at first, on a phone
        for end in (".jpg", ".gif", ".jpg"):
            picture = "document.querySelector('.motion img').currentSrc"
            page.wait_for_function(f"{picture}.endsWith('{end}')")
            page.click("#motion")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
