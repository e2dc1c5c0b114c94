"""How the documentation site is built (`make docs`): Sphinx over the Markdown pages of this folder.

Nothing is fetched: no other project's inventory, no web font, no script from elsewhere. A warning is an error.
"""

from __future__ import annotations

import click
from docutils import nodes
from sphinx.application import Sphinx

import alphafuse

project = "alphafuse"
version = release = alphafuse.__version__
copyright = "the alphafuse authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build"]

# Markdown as GitHub shows it: headings are link targets under GitHub's own names
myst_heading_anchors = 4
myst_enable_extensions = ["strikethrough"]

smartquotes = False  # two hyphens are an option

# a block that doesn't say what it is is a command line or what one printed
highlight_language = "none"

# docstrings are Google's style, and write `code` with single backticks as Markdown does
default_role = "code"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
# several names that share a line ("clip_ids, labels, groups: ...") stay together only in the parameters' own style
napoleon_use_param = False
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "furo"
html_title = f"alphafuse {version}"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["alphafuse.css"]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", _colour_examples)
    app.connect("doctree-read", _set_dashes)
    app.connect("autodoc-process-signature", _name_no_factory)
    app.connect("sphinx-click-process-description", _keep_lines)
    app.connect("sphinx-click-process-epilog", _keep_lines)


def _colour_examples(app: Sphinx, document: nodes.document) -> None:
    """Examples in docstrings are Python, whatever other blocks are."""
    for block in document.findall(nodes.doctest_block):
        block["language"] = "pycon"


def _set_dashes(app: Sphinx, document: nodes.document) -> None:
    """Lists of parameters have a dash after each name, the one thing that smart quotes would have been good for."""
    for text in list(document.findall(nodes.Text)):
        if text.startswith(" -- "):
            text.parent.replace(text, nodes.Text(f" – {text[4:]}"))


def _name_no_factory(
    app: Sphinx, what: str, name: str, value: object, options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """A dataclass field's default factory prints as <factory>, which is no Python that Sphinx could set."""
    return (signature.replace("<factory>", "..."), returns) if signature else None


def _keep_lines(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """What a command's help keeps in lines (examples, after a \\b) is shown as it is typed."""
    kept: list[str] = []
    for line in lines:
        if line.startswith("| "):
            kept += [] if kept and kept[-1].startswith("   ") else ["", ".. code-block:: none", ""]
            kept.append(f"   {line[2:]}")
        else:
            kept += ["", line] if kept and kept[-1].startswith("   ") else [line]
    lines[:] = kept
