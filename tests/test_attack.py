"""The attack finds what is lost, says so, and goes on where it was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attack import __main__ as attack
from tests.attack.counts import Counts


def test_a_few_tries_of_each_kind_hold(tmp_path: Path) -> None:
    """Calls and cache entries have such tests of their own, beside what they attack."""
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.attack", "tables", "full", "read-only", "lives"]
    ended = subprocess.run(
        [*command, "--n", "1", "--out", str(out)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "| lives | 1 | 1 | 0 |" in ended.stdout
    assert [part["lost"] for part in json.loads(out.read_text()).values()] == [[]] * 4


def test_parts_are_made_once_and_losses_are_told(tmp_path: Path, monkeypatch, capsys) -> None:
    made: list[tuple[int, int]] = []

    def run(self: attack.Attack, tries: int, seed: int) -> Counts:
        made.append((tries, seed))
        if len(made) == 2:
            raise KeyboardInterrupt
        return Counts(tries, tries - 1, [f"one of {tries}, seed {seed}"])

    monkeypatch.setattr(attack.Attack, "run", run)
    monkeypatch.setitem(attack.ATTACKS, "calls", attack.Attack("", 3, 0, 0, 0))
    words = ["calls", "--n", "8", "--out", str(tmp_path / "found.json")]
    with pytest.raises(KeyboardInterrupt):
        attack.main(words)
    capsys.readouterr()
    assert attack.main(words) == 1
    assert made == [(3, 0), (3, 1), (3, 1), (2, 2)]
    told = capsys.readouterr().out
    assert "| calls | 8 | 5 | 3 |" in told
    assert "calls: one of 3, seed 1\n" in told and "calls: one of 2, seed 2\n" in told


def test_a_name_that_is_none_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        attack.main(["call"])
    assert "unknown attacks ['call']" in capsys.readouterr().err
