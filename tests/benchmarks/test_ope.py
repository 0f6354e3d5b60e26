"""The ope study: its command, its tables, and what the page says of the committed results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ope import policies, report, study
from benchmarks.ope.plot import draw
from benchmarks.runs.settings import Run
from benchmarks.studies.results import read_result
from benchmarks.studies.study import run_studies
from kuaisim_gym.errors import ConfigError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "ope"


@pytest.fixture
def made(small, monkeypatch, tmp_path):
    """Results of all parts in a small world, in seconds."""
    for module in (study, policies):
        monkeypatch.setattr(module, "TOGETHER", 400)
    for name, value in (("LOG_SIZES", (100, 400)), ("TRUE_SESSIONS", 400), ("SHARES", (0.5, 0.6)),
                        ("COVERAGE_SESSIONS", 200), ("RESAMPLES", 20)):  # fmt: skip
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(Run, "load", lambda run: small)
    base = Run("random", max_len=6, sessions=400, slate_size=3)
    parts = [
        study.OpeStudy(base, "pairs"),
        study.OpeStudy(base, "coverage", 1, repetitions=3),
        study.OpeStudy(base, "dial"),
    ]
    return [read_result(path) for path in run_studies(parts, tmp_path)], base


def test_all_parts_are_made_and_shown(made) -> None:
    results, base = made
    text = report.markdown(results)
    for title in (
        "Near and far policies",
        "Coverage of 95 % intervals",
        "A dial set by logs alone",
    ):
        assert f"### {title}: " in text
    pairs, coverage, dial = results
    assert [row["policy"] for row in pairs["rows"]][2] == "uniform"
    assert "could have shown" in pairs["refused"][0]["says"]
    assert {row["intervals"] for row in coverage["rows"]} >= set(study.COUNTED)
    assert len(dial["rows"]) == 2
    panels = [axes for axes in draw(results).axes if axes.has_data()]
    assert len(panels) == 4
    with pytest.raises(ConfigError, match="part"):
        study.OpeStudy(base, "guess")
    assert study.OpeStudy(replace(base, seed=4), "dial").name.endswith("seed4")


def test_counts_of_coverage_by_hand() -> None:
    counts = study._Counts(np.array([2.0, 0.5, 1.0, 0.5, 0.0]))
    for low, high in ((1.0, 3.0), (2.5, 3.5)):
        counts._add("mine", {"len": study.Interval((low + high) / 2, low, high)})
    assert counts.rows() == [
        {"intervals": "mine", "metric": "len", "truth": 2.0, "coverage": 0.5, "width": 1.5,
         "bias": 0.5}
    ]  # fmt: skip


def test_an_interval_misses_a_truth_that_errs_itself() -> None:
    assert report._interval([10.0, 9.7, 10.3], [10.4, 0.1], "len") == "10.00 ± 0.30*"
    assert report._interval([10.0, 9.7, 10.3], [10.4, 0.3], "len") == "10.00 ± 0.30"
    rows = [
        {"near": False, "truth": {"len": [true, 0.1]},
         "logs": {"9": {"estimates": {"mine": {"len": [guess, 0, 0]}}}}}
        for true, guess in ((1.0, 5.0), (2.0, 7.0), (3.0, 6.0))
    ]  # fmt: skip
    assert report.tau({"rows": rows}, "9", "mine", "len") == pytest.approx(1 / 3)
    assert report.error(rows[0], "9", "mine", "len") == 4.0


def test_the_bars_hold_in_the_committed_results() -> None:
    """At least one recommended estimator a metric covers, and orders six agents."""
    results = report.read_studies(RESULTS)
    covered = [result for result in results if result["part"] == "coverage"]
    assert len(covered) == 3 and all(result["repetitions"] == 500 for result in covered)
    nearest = max(covered, key=lambda result: result["worth"])
    for metric in report.TITLES:
        rates = [row["coverage"] for row in nearest["rows"] if row["metric"] == metric]
        assert any(0.93 <= rate <= 0.97 for rate in rates), metric
    for result in results:
        if result["part"] == "pairs":
            found = [
                report.tau(result, "20000", "marginalised doubly robust", metric)
                for metric in report.TITLES
            ]
            assert min(found) >= 0.8, result["slate_size"]
