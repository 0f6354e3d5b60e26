"""Faults that a hostile user found: each test fails until its fault is repaired."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.prose import Evidence, value_of
from benchmarks.released import library
from benchmarks.report import renewed
from benchmarks.run import Run, run
from kuaisim_gym.errors import ConfigError
from tests.benchmarks.handmade import RUNS, pair, result

SIZES = {"max_len": 6, "sessions": 20}


@pytest.fixture
def kept(worlds, tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "PACKAGED", tmp_path / "nothing")
    for agent in ("dsrm-hrl", "hrl"):
        run(Run(agent, **SIZES, episodes=12), tmp_path / "kept", progress=False, keep=True)
    return tmp_path / "kept"


def make(kept: Path, out: Path, *agents: str) -> int:
    return main(["release", str(kept), "--agents", *agents, "--out", str(out)])


def test_metrics_that_are_no_numbers_make_no_verdict() -> None:
    runs = [*pair("dsrm-hrl", 20.0, 22.0), *pair("hrl", 1.0, math.nan), *pair("td3", math.nan, 1.0)]
    assert value_of("verdict len dsrm-hrl hrl kuairec 30", Evidence(runs)) != "level with"
    assert value_of("best len kuairec 30", Evidence([*runs, *pair("bcq", 30.0, 30.0)])) == "BCQ"


@pytest.mark.parametrize("word", ["gain", "verdict"])
def test_agents_of_other_training_sizes_are_not_compared(word) -> None:
    runs = [*pair("dsrm-hrl", 20.0, 20.1), *pair("hrl", 18.0, 18.1, episodes=5_000)]
    assert value_of(f"{word} len dsrm-hrl hrl kuairec 30", Evidence(runs)) == "not made"


def test_shares_are_of_the_same_seeds() -> None:
    runs = [result("dsrm-hrl", 11, 10.0), result("dsrm-hrl", 15, 30.0), result("hrl", 15, 30.0)]
    assert value_of("share len dsrm-hrl hrl kuairec 30", Evidence(runs)) in ("1.000", "not made")


@pytest.mark.parametrize(
    "text",
    [
        "x <!--= count runs all-->9<!--/-->",
        "<!-- missing -->\nold\n",
        "<!-- missing -->\nold\n<!-- /mising -->\n",
        "<!-- missing -->\nold\n<!-- /missing -->\n<!-- missing -->\nold\n<!-- /missing -->\n",
        "<!-- missing -->\n<!-- /missing -->\n",
    ],
)
def test_marks_that_are_not_renewed_are_refused(text) -> None:
    try:
        new = renewed(text, Evidence(RUNS), "page.md")
    except ConfigError:
        return
    assert "old" not in new
    assert "9" not in new
    assert new != text


def test_two_worlds_of_one_name_make_no_traceback() -> None:
    with pytest.raises(ConfigError):
        renewed(
            "<!-- missing -->\nx\n<!-- /missing -->",
            Evidence([*RUNS, result("hrl", 11, 20.0) | {"slate_size": 5}]),
            "page.md",
        )


def test_a_page_that_is_not_there_makes_no_traceback(kept, tmp_path) -> None:
    shutil.rmtree(tmp_path / "results", ignore_errors=True)
    run(Run("random", **SIZES), tmp_path / "results", progress=False)
    assert main(["report", str(tmp_path / "results"), "--pages", str(tmp_path / "no.md")]) == 2
