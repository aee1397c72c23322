"""How Sphinx builds these pages: MyST, furo, every broken reference an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from starai import __version__

project = "StarAI"
author = "The StarAI engineers"
copyright = "2026, The StarAI engineers"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "click_tree"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"StarAI {release}"
smartquotes = False  # they would eat the dashes of --options
html_static_path = ["_static"]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

nitpicky = True
# Names outside this project resolve only with other projects' inventories, which need a network.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!starai\.).*"),
    (r"py:.*", r"starai\..*\.(M|Handler|Annotated|_\w+)"),
]
