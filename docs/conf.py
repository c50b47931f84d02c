"""Settings of the documentation: `sphinx-build -W -b html docs docs/_build`, then open docs/_build/index.html."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

project = "VAE Lab"
author = "The VAE Lab developers"
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "pages", "docstrings"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "VAE Lab"
html_favicon = html_logo = "static/logo.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sphinx = False
html_show_search_summary = False  # it is fetched, and a browser fetches nothing for a page that is opened from a disk

myst_enable_extensions = ["dollarmath", "attrs_inline"]  # equations as on a code host: $...$ and ```math; widths
myst_fence_as_directive = ["math"]
html_math_renderer = "svg"  # of pages.py

myst_heading_anchors = 4  # links such as page.md#a-heading, as on a code host
suppress_warnings = ["myst.header"]  # a page may start below a heading, such as an included table

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of torch and Lightning are not written for this site
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
smartquotes = False  # text has options such as --logdir, quotes of the shell, and transposes such as L L'
highlight_language = "text"  # indented lines of docstrings are equations
pygments_style, pygments_dark_style = "default", "github-dark"
