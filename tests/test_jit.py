"""Digests of the sources that compiled code is made of, and what happens to kept code."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("numba")

import numba
from numba.core import caching

from kuaisim_gym.engine import jit as module
from kuaisim_gym.engine.jit import digest, jit

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


def one_more(number: int) -> int:
    return number + 1


def two_more(number: int) -> int:
    return number + 2


@pytest.fixture
def kept(tmp_path: Path, monkeypatch) -> Path:
    """The folder of compiled code; nobody has been warned of it."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(module, "_unkept", set())
    return tmp_path


def test_code_is_kept(kept: Path) -> None:
    assert jit(one_more)(1) == 2
    again = jit(one_more)
    assert again(1) == 2
    assert again.stats.cache_hits  # type: ignore[attr-defined]


def test_without_a_folder_code_is_compiled_and_one_warning_says_so(kept, monkeypatch, caplog):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert (jit(one_more)(1), jit(two_more)(1)) == (2, 3)
    (warning,) = caplog.messages
    assert "no locator available" in warning
    assert "NUMBA_CACHE_DIR" in warning


def test_on_a_full_disk_code_is_compiled_and_one_warning_says_so(kept, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(caching.os, "replace", full)
    assert (jit(one_more)(1), jit(two_more)(1)) == (2, 3)
    (warning,) = caplog.messages
    assert os.strerror(errno.ENOSPC) in warning
    assert not [file for file in kept.rglob("*") if file.is_file()]


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda content: content[:-40], lambda _: b"garbage" * 9, _flipped]
)
def test_damaged_code_is_compiled_anew(
    kept: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    assert jit(one_more)(1) == 2
    (file,) = kept.rglob(f"*.{kind}")
    file.write_bytes(damage(file.read_bytes()))
    again, later = jit(one_more), jit(one_more)
    assert again(1) == 2
    assert not again.stats.cache_hits  # type: ignore[attr-defined]
    assert later(1) == 2
    assert later.stats.cache_hits  # type: ignore[attr-defined]


def test_code_of_another_function_is_not_run(kept: Path) -> None:
    assert (jit(one_more)(1), jit(two_more)(1)) == (2, 3)
    (mine,), (other,) = kept.rglob("*one_more*.nbc"), kept.rglob("*two_more*.nbc")
    mine.write_bytes(other.read_bytes())
    assert jit(one_more)(1) == 2
