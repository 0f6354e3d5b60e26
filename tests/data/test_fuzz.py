"""Damaged files load as a plain reading says, or are refused; nothing in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from kuaisim_gym.data.source import find_source
from tests.attack.tables import KUAIRAND, KUAIREC, attempt, check_kuairand, check_kuairec

CASES = 250  # of each dataset
CHUNK = 25


@pytest.mark.parametrize("start", range(0, CASES, CHUNK))
@pytest.mark.parametrize("name", ["kuairec", "kuairand"])
def test_damaged_files_load_rightly_or_are_refused(
    tmp_path: Path, name: str, start: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR")
    loaded = 0
    for case in range(start, start + CHUNK):
        folder = tmp_path / str(case)
        folder.mkdir()
        try:
            loaded += attempt(name, case, folder)
        except AssertionError as error:
            raise AssertionError(f"case {case}") from error
    assert loaded >= CHUNK // 10  # not everything is refused


@pytest.mark.parametrize("name", ["kuairec", "kuairand"])
def test_whole_files_load(tmp_path: Path, name: str) -> None:
    tables = KUAIREC if name == "kuairec" else KUAIRAND
    for table, text in tables.items():
        (tmp_path / f"{table}.csv").write_text(text, encoding="utf-8")
    source, check = find_source(name), check_kuairec if name == "kuairec" else check_kuairand
    check(tmp_path, source.read(source.find(tmp_path)))
