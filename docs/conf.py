"""Settings of the documentation site: Sphinx reads the Markdown of this folder through MyST; `make docs` builds it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "loraport"
author = "The loraport developers"
project_copyright = author
release = re.search(r'__version__ = "(.+)"', (ROOT / "src/loraport/_version.py").read_text(encoding="utf-8"))[1]
version = release

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
myst_disable_syntax = ["myst_line_comment"]  # else a line of prose that begins with "% of the gap" is left out
nitpicky = True
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "loraport"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "tango"
