"""How the documentation site is built (`make docs`): Sphinx over the Markdown pages of this folder.

Nothing is fetched: no other project's inventory, no web font, no script from elsewhere. A warning is an error.
"""

from __future__ import annotations

import alphafuse

project = "alphafuse"
version = release = alphafuse.__version__
copyright = "the alphafuse authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build"]

# Markdown as GitHub shows it: headings are link targets under GitHub's own names
myst_heading_anchors = 4
myst_enable_extensions = ["strikethrough"]

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
