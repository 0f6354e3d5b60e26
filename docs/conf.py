"""Settings of the documentation site: ``make docs`` builds it.

Pages are the Markdown files of this folder, which also read well as they stand. Where a page shows
what the code says of itself, it holds a comment in its place, which :func:`fill` replaces:
``<!-- docstring kuaisim_gym:KuaiEnv; Rewards; Info -->`` stands for these sections of a docstring,
all of them if none is named.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kuaisim_gym import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "kuaisim-gym"
author = "The kuaisim-gym developers"
project_copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = f"kuaisim-gym {release}"
html_show_sphinx = False
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
root_doc = "index"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4

autosummary_generate = True
autodoc_typehints = "description"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpicky = True
# Types of other libraries, whose pages this build does not read, and names that are not public.
nitpick_ignore_regex = [(r"py:.*", r".*")]

# Files outside of this folder that are pages of the site: links to them stay links.
PAGES = {
    "../benchmarks/results/README.md": "all_results.md",
    "../benchmarks/fresh_worlds/README.md": "fresh_worlds.md",
    "../findings/README.md": "findings.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
}
_DOCSTRING = re.compile(r"<!-- docstring ([\w.]+):(\w+)((?:; [\w ]+)*) -->")
_ROLE = re.compile(r":(\w+):`([^`]+)`")


def docstring(module: str, name: str, sections: list[str]) -> str:
    """Sections of a Markdown docstring, with roles in MyST's spelling."""
    text = import_module(module).__dict__.get(name) or getattr(import_module(module), name)
    lines = (text.__doc__ or "").splitlines()
    body = "\n".join([lines[0], *(line.removeprefix("    ") for line in lines[1:])])
    introduction, *parts = re.split(r"^## ", body, flags=re.MULTILINE)
    by_title = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts}
    if not sections:
        sections = list(by_title)
        start = [introduction.strip()]
    else:
        start = []
    chosen = [f"## {title}\n\n{by_title[title]}" for title in sections]
    return _ROLE.sub(r"`\2`", "\n\n".join(start + chosen).replace("``", "`"))


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Replaces comments by docstrings, and links to files by links to their pages."""
    text = _DOCSTRING.sub(
        lambda match: docstring(match[1], match[2], match[3].split("; ")[1:]), source[0]
    )
    depth = page.count("/")
    for file, target in PAGES.items():
        text = text.replace(f"]({'../' * depth}{file}", f"]({'../' * depth}{target}")
    source[0] = text


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers what this file adds."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
