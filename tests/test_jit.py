"""Digests of the sources that compiled code is made of."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytest.importorskip("numba")

from kuaisim_gym.engine.jit import digest

SOURCES = {
    "__init__": "",
    "kernel": "from made import limits\nfrom made.numbers import (\n    ONE,\n    TWO,\n)\n",
    "limits": "import made.deep\nLEAST = 1\n",
    "numbers": "ONE, TWO = 1, 2\n",
    "deep": "DEPTH = 3\n",
    "stranger": "NOTHING = 0\n",
}


def test_a_digest_follows_imports_of_every_form(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "made"
    package.mkdir()
    for name, text in SOURCES.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("made.kernel")
    importlib.import_module("made.stranger")

    def after(name: str) -> str:
        """The digest once a module has another line."""
        source = package / f"{name}.py"
        source.write_text(SOURCES[name] + "# changed\n")
        digest.cache_clear()
        found = digest("made.kernel")
        source.write_text(SOURCES[name])
        return found

    digest.cache_clear()
    before = digest("made.kernel")
    assert after("stranger") == before
    changed = [after(name) for name in ("kernel", "limits", "numbers", "deep")]
    assert len({before, *changed}) == 5
    digest.cache_clear()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kuaisim_gym.engine.fused", "kuaisim_gym/engine/types.py"),
        ("kuaisim_gym.engine.fused", "kuaisim_gym/engine/ranking.py"),
        ("kuaisim_gym.engine.compiled", "kuaisim_gym/randomness.py"),
        ("dsrm_agents.hrl.compiled", "dsrm_agents/common/bounds.py"),
        ("dsrm_agents.hrl.compiled", "dsrm_agents/hrl/compiled.py"),
    ],
)
def test_compiled_modules_depend_on_what_they_are_made_of(module, source, monkeypatch) -> None:
    importlib.import_module(module)
    digest.cache_clear()
    before, read = digest(module), Path.read_bytes

    def changed(path: Path) -> bytes:
        return read(path) + (b"# changed\n" if path.as_posix().endswith(source) else b"")

    monkeypatch.setattr(Path, "read_bytes", changed)
    digest.cache_clear()
    assert digest(module) != before
    digest.cache_clear()
