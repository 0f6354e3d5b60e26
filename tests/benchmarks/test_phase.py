"""Worlds in which a state matters: cells, the rows of users who are played, and the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.estimates import phase, states
from benchmarks.estimates.phase import (
    KNOBS,
    PLANES,
    PhaseStudy,
    draw,
    markdown,
    plan,
    read_studies,
    with_events,
)
from benchmarks.studies.results import read_result
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import ConfigError


@pytest.fixture
def tiny(monkeypatch) -> None:
    sizes = {"n_users": 300, "n_test_users": 60, "n_items": 240, "n_categories": 6,
             "events_per_user": 30}  # fmt: skip
    monkeypatch.setattr(
        phase,
        "synthetic_kuairec",
        lambda seed, config: synthetic_kuairec(seed, replace(config, **sizes)),
    )
    monkeypatch.setattr(states, "CHOICE_SESSIONS", 20)
    for name in KNOBS:
        monkeypatch.setitem(KNOBS, name, KNOBS[name]._replace(values=KNOBS[name].values[:2]))
    phase._load.cache_clear()
    yield
    phase._load.cache_clear()


def test_test_users_keep_their_first_rows(small) -> None:
    for events in (0, 3, 10_000):
        cut = with_events(small, events)
        for user in (small.test_users[0], small.test_users[-1], small.train_users[0]):
            before, after = (
                data.log.items[data.log.users == user].tolist() for data in (small, cut)
            )
            is_test = user in small.test_users
            assert after == (before[:events] if is_test else before)
    assert with_events(small, 0).fingerprint != small.fingerprint
    assert np.array_equal(with_events(small, 0).test.items, small.test.items)


def test_all_knobs_make_worlds() -> None:
    for plane, (along, across) in PLANES.items():
        for cell in {(x, y) for x in KNOBS[along].values for y in KNOBS[across].values}:
            values = dict(zip((along, across), cell, strict=True))
            values.pop("events", None)
            SyntheticConfig(**values)  # leaves variance for noise
        names = plan([plane], ["raw", "belief"], 10, 1, 1)
        assert len(names) == len(KNOBS[along].values) * len(KNOBS[across].values)
        assert len({one.name for one in names}) == len(names)


def test_the_command_draws_both_planes(tiny, tmp_path: Path, capsys) -> None:
    command = ["phase", "--estimates", "raw", "belief-log", "belief-session", "belief",
               "--sessions", "20", "--jobs", "1", "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "phase_personal.png", "phase_events.png"
    }  # fmt: skip
    results = read_studies(tmp_path)
    assert len(results) == 8
    assert markdown(results) in printed
    for result in results:
        rows = {row["estimate"]: row for row in result["rows"]}
        assert rows["raw"]["gain"] == rows["raw"]["gain_ci95"] == 0
        assert rows["belief"]["gain"] == pytest.approx(rows["belief"]["len"] - rows["raw"]["len"])
        if result["plane"] == "events" and result["cell"][0] == 0:
            # Without a log, the session is all there is.
            assert rows["belief"]["len"] == rows["belief-session"]["len"]
    figure = draw("events", [result for result in results if result["plane"] == "events"])
    assert "SYNTHETIC" in figure.get_suptitle()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    (gone, *_) = times
    before = read_result(gone)
    gone.unlink()
    assert main(command) == 0
    assert read_result(gone)["rows"] == before["rows"]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path != gone)
    capsys.readouterr()
    assert main([*command, "--sessions", "21"]) == 2
    assert "other data or settings" in capsys.readouterr().err


def test_what_is_no_cell_is_refused() -> None:
    with pytest.raises(ConfigError, match="plane must be one of"):
        PhaseStudy("quality", (0.1, 0.2), ("raw",))
    with pytest.raises(ConfigError, match="purifier must be one of"):
        PhaseStudy("personal", (0.1, 0.2), ("best",))
    with pytest.raises(ConfigError, match="sessions must be"):
        PhaseStudy("personal", (0.1, 0.2), ("raw",), sessions=1)
