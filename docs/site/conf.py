"""Sphinx's settings for the course's site, which docs/build_site.py makes."""

import re

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

from helpers.course.runner import repository_url

project = "3-D CT classification, a course"
author = "the course's contributors"
html_title = "3-D CT classification"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["extra"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # the notebooks hold no state of widgets, and this would come from elsewhere
nb_code_prompt_show = "Show the cell"
nb_code_prompt_hide = "Hide the cell"
myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 3
default_role = "code"
add_module_names = False

html_theme = "sphinx_book_theme"
html_static_path = ["static"]
html_extra_path = ["extra"]
html_favicon = "static/icon.svg"
html_context = {"default_mode": "auto"}
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = False
html_domain_indices = False
html_show_sphinx = False
html_show_copyright = False
html_math_renderer = "mathml"
html_theme_options = {
    "repository_url": repository_url(),
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": False,  # a link at the top of each notebook gives the original
    "navbar_persistent": [],  # the search stands in the contents already
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "extra_footer": "For teaching, not for clinical use. Apache License 2.0.",
}


def plain_text(app, what, name, thing, options, lines) -> None:
    """Docstrings are plain text: nothing in them is a mark. "name:" becomes bold."""
    text = re.sub(r"([\\*|_])", r"\\\1", "\n".join(lines))
    word = r"[a-z][\w\\]*"
    start = r"(?:\A|(?<=\n\n)|(?<=[.;]\s))"
    text = re.sub(rf"{start}((?:{word},\s)*{word}:)(?=\s)", r"**\1**", text)
    lines[:] = text.split("\n")


def visit_math(writer, node) -> None:
    """Formulas as MathML, which browsers draw by themselves."""
    is_block = node.tagname == "math_block"
    formula = tex2mathml(node.astext(), as_block=is_block)
    scrolled = f'<div class="formula" tabindex="0">{formula}</div>'  # on a narrow screen
    writer.body.append(scrolled if is_block else formula)
    raise SkipNode


def corners(app, name, template, context, doctree) -> None:
    """The empty corner of a table heads nothing: no header that a page read aloud would name."""
    empty = r"<th( class=\"[^\"]*\")?\s*>(<p></p>|&nbsp;)?</th>"
    context["body"] = re.sub(empty, "<td></td>", context.get("body", ""))


def setup(app) -> None:
    app.connect("autodoc-process-docstring", plain_text)
    app.connect("html-page-context", corners)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
