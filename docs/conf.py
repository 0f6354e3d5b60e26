"""Settings of the documentation site: ``make docs`` builds it.

Pages are the Markdown files of this folder, which also read well as they stand; :mod:`fill` says
what is put into them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import fill
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from kuaisim_gym import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

_BAR = re.compile(r"\|(?=[^`]*(?:``[^`]*``[^`]*)*$)")  # outside of literals

project = "kuaisim-gym"
author = project_copyright = "The kuaisim-gym developers"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
html_math_renderer = "mathml"  # which browsers show by themselves, without a script from elsewhere
html_theme = "furo"
html_title = f"kuaisim-gym {release}"
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

autodoc_inherit_docstrings = False  # those of other libraries are not in our form
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autosummary_generate = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Links of pages are checked. References of docstrings may be to names of other libraries, whose
# pages this build does not read, and to names of ours that are not public.
nitpick_ignore_regex = [("py:.*", ".*")]
suppress_warnings = ["ref.python"]  # a name of two classes, such as n_items, in types of arrays


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers what this file adds."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math, None))
    app.connect("source-read", _fill)
    app.connect("autodoc-process-docstring", _adapt)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _fill(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = fill.filled(source[0], page)


def _visit_math(translator: HTML5Translator, node: nodes.Element) -> None:
    formula = re.sub(r"\\tag\{(\d+)\}", r"\\qquad \\text{(\1)}", node.astext())
    translator.body.append(tex2mathml(formula, as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def _adapt(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Fits docstrings to Sphinx: bars are no substitutions, and Markdown has pages of its own."""
    if any(line.startswith("## ") for line in lines):
        lines[1:] = ["", "Its page is under *Environments*."]
    lines[:] = [line if line.startswith("    ") else _BAR.sub(r"\\|", line) for line in lines]
