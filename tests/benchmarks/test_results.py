"""Result files: what is no result of a run is refused before anything is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies.results import read_result, read_results
from kuaisim_gym.errors import DataFormatError
from tests.benchmarks.handmade import result


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = result("hrl", 11, 20.0)
    assert read_result(written(tmp_path / "a.json", run)) == run


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("dataset", {}), ("dataset", "kuairec"), ("dataset.synthetic", "yes"),
        ("dataset.answers", "foo"), ("metrics", None), ("metrics.len", "12"),
        ("metrics.len", None), ("metrics.q", True), ("eval", {}), ("train", {}), ("seed", [1]),
        ("seed", 1.5), ("agent", 5), ("max_len", "x"), ("train.steps", "many"),
    ],
)  # fmt: skip
def test_a_damaged_result_is_refused_by_name(path: str, value: Any, tmp_path: Path) -> None:
    run: Any = json.loads(json.dumps(result("hrl", 11, 20.0)))
    *keys, last = path.split(".")
    block = run
    for key in keys:
        block = block[key]
    block[last] = value
    file = written(tmp_path / "a.json", run)
    with pytest.raises(DataFormatError, match=f"a.json is no result of a run.*{path}.*make it"):
        read_result(file)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", result("hrl", 11, float("nan")))
    with pytest.raises(DataFormatError, match="holds NaN"):
        read_result(file)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataFormatError, match="is not a JSON file: .* Remove it, or make it"):
        read_result(tmp_path / "a.json")


def test_folders_without_results_and_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataFormatError, match=r"no results under .*; make some with `kuaisim train"
    ):
        read_results(tmp_path)
    with pytest.raises(DataFormatError, match="No folder .*elsewhere"):
        read_results(tmp_path / "elsewhere")
