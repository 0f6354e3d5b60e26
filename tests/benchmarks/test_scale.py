"""Needs of a service: what is measured, the arithmetic, and the pages that show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.speed import pages, scale
from benchmarks.speed.play import TINY, world
from kuaisim_gym.simulator.build import load_preferences

ROOT = Path(__file__).parents[2]


def test_the_arithmetic_by_hand(monkeypatch) -> None:
    monkeypatch.setattr(scale, "AGENTS", {"rule": None})
    requests = [
        {"agent": "rule", "requests_together": n, "requests_a_core_second": rate}
        for n, rate in ((1, 500.0), (64, 5000.0))
    ]
    users = [{"MB_a_million_users": size} for size in (800.0, 200.0, 9000.0)]  # the last: on disk
    rows = scale.arithmetic(requests, users)
    rate = 1e6 * 20 / 86_400 * 3
    assert [row["number"] for row in rows] == pytest.approx(
        [rate, rate / 500 / 0.6, rate / 5000 / 0.6, 1.0]
    )


def test_bytes_of_a_user_are_those_of_the_arrays() -> None:
    dataset = world("kuairand", TINY)
    belief, _, of_id, log = scale.occupied(dataset)
    d = load_preferences(dataset).dim
    assert belief["bytes"] == 8 * (d + d * d + d)
    assert belief["MB_a_million_users"] == belief["bytes"]
    assert (of_id["bytes"], log["bytes"]) == (8.0, 100 * (4 + 4 + 1))


def test_requests_are_answered_together_and_popularity_is_renewed(monkeypatch) -> None:
    monkeypatch.setattr(scale, "BATCHES", (1, 4))
    one, four = scale.answered("filter+quota", world("kuairand", TINY), repeats=1)
    for row, n in ((one, 1), (four, 4)):
        assert row["requests_together"] == n
        assert row["ms_a_request"] * row["requests_a_core_second"] == pytest.approx(1e3)
    assert scale.renewal(500, 1_000, repeats=1)["processor_ms"] > 0.0


@pytest.mark.parametrize("page", ["speed", "distributed", "serving_at_scale"])
def test_pages_show_the_committed_figures(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert any(f"<!-- {name} -->" in text for name in pages.TABLES)
    assert pages.renewed(text, ROOT / "benchmarks" / "results" / "speed") == text
