"""The public surface of the packages, and the pages that describe it."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PACKAGES = ("kuaisim_gym", "dsrm_agents")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_public_names_are_those_of_dir_and_can_be_had(package: str) -> None:
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_names_exactly_the_public_names(package: str) -> None:
    text = (DOCS / f"{package}.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE)
    names = [name for name, _ in rows] + re.findall(r"^`(\w+)` is", text, re.MULTILINE)
    assert sorted(names) == sorted(importlib.import_module(package).__all__)
    assert all(purpose.endswith(".") for _, purpose in rows)


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_lazy_names_too(package: str) -> None:
    """In the imports of the block that only they read."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == module._MODULES
    for name, source in seen.items():
        assert getattr(module, name) is getattr(importlib.import_module(source), name)
