"""Standings over worlds: scores, places, comparisons and the figure, from runs made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.reports import standings
from benchmarks.reports.standings import HIGHEST, LOWEST, board_of, boards_of, comparisons
from benchmarks.studies.results import METRICS, Result
from kuaisim_gym.data import SOURCES

TODAY = {"name": "kuairec", "source": "kuairec", "synthetic": True, "fingerprint": "t" * 16,
         "answers": "synthetic", "seed": 0, "version": SOURCES["kuairec"].version}  # fmt: skip
LIKE = {"name": "kuairec-like", "source": "kuairec-like", "synthetic": False,
        "fingerprint": "l" * 16, "answers": "real"}  # fmt: skip
# Len in the synthetic world and on real answers, seeds 11 and 15.
LENGTHS = {
    LOWEST: ((10.0, 10.0), (0.0, 0.0)),
    HIGHEST: ((19.0, 21.0), (4.0, 4.0)),
    "hrl": ((14.0, 16.0), (3.0, 3.0)),
    "dsrm-hrl": ((15.0, 19.0), (3.2, 3.6)),
    "filter+quota": ((18.0, 18.0), (2.0, 2.0)),
}


def result(agent: str, seed: int, length: float, block: Result = TODAY, **more: object) -> Result:
    metrics = dict.fromkeys(METRICS, 0.5) | {"len": length, "ad": 0.25}
    return {
        "agent": agent, "env": "KuaiRec-Fair-v0", "max_len": 30, "seed": seed, "slate_size": 10,
        "dataset": block, "eval": {"sessions": 1000}, "versions": {}, "commit": "c",
        "train": {"episodes": 5000, "steps": int("hrl" in agent), "seconds": 1.0, "curve": []},
        "metrics": metrics | {f"{name}_ci95": 0.196 for name in METRICS}, **more,
    }  # fmt: skip


def runs() -> list[Result]:
    return [
        result(agent, seed, length, block)
        for agent, worlds in LENGTHS.items()
        for block, lengths in zip((TODAY, LIKE), worlds, strict=True)
        for seed, length in zip((11, 15), lengths, strict=True)
    ]


def test_scores_lie_between_chance_and_knowledge() -> None:
    board = board_of(runs())
    assert board is not None
    assert board.seeds == (11, 15)
    assert [world.dataset for world in board.worlds] == ["kuairec", "kuairec-like"]
    np.testing.assert_allclose(board.scores("hrl"), [[0.4, 0.75], [0.6, 0.75]])
    assert board.scores(LOWEST).mean(axis=0).tolist() == [0.0, 0.0]
    # The ends are means over seeds: its seeds lie around 1.
    np.testing.assert_allclose(board.scores(HIGHEST), [[0.9, 1.0], [1.1, 1.0]])


def test_places_are_of_those_that_are_told_nothing() -> None:
    board = board_of(runs())
    assert board is not None
    # IQM: of .5, .9, .8, .9 the middle two, .85; of .8, .8, .5, .5: .65; .4, .6, .75, .75: .675.
    assert board.ranking == [HIGHEST, "dsrm-hrl", "hrl", "filter+quota", LOWEST]
    assert board.ranks == {"dsrm-hrl": 1, "hrl": 2, "filter+quota": 3, LOWEST: 4}
    text = standings.leaderboard(runs())
    assert "| 2 | hrl | 0.675 [" in text
    assert "] | 0.625 | 0.625 | 0.375 | 0.250 |" in text  # mean, median and gap of hrl
    assert f"|  | {HIGHEST} | 1.000 [" in text
    assert "### 2 worlds" in text
    assert "### 1 synthetic worlds" in text


def test_who_lacks_a_run_and_worlds_without_a_scale_are_left_out() -> None:
    older = {**TODAY, "fingerprint": "o" * 16, "version": 2}
    watch = {**LIKE, "name": "kuairec-watch", "fingerprint": "w" * 16}
    more = [
        result("ppo", 11, 12.0),  # one of four runs
        *(result(name, seed, 9.0, older) for name in LENGTHS for seed in (11, 15)),
        *(result(name, seed, 9.0, watch) for name in LENGTHS for seed in (11, 15)),  # all alike
        *(result(name, 19, 9.0 + len(name)) for name in (LOWEST, HIGHEST)),  # in one world alone
    ]
    board, only = board_of([*runs(), *more]), board_of(runs())
    assert board is not None and only is not None
    assert (board.worlds, board.seeds, set(board.runs)) == (only.worlds, only.seeds, set(LENGTHS))


def test_nothing_is_said_without_two_seeds_or_a_scale() -> None:
    one_seed = [run for run in runs() if run["seed"] == 11]
    no_ceiling = [run for run in runs() if run["agent"] != HIGHEST]
    for few in (one_seed, no_ceiling, []):
        assert (board_of(few), boards_of(few)) == (None, [])
        assert standings.leaderboard(few) == standings.statistics(few) == ""


def test_the_synthetic_worlds_alone_have_a_board_of_their_own() -> None:
    everything, synthetic = boards_of(runs())
    assert (len(everything.worlds), len(synthetic.worlds)) == (2, 1)
    only_synthetic = [run for run in runs() if run["dataset"] is TODAY]
    assert len(boards_of(only_synthetic)) == 1


def test_comparisons_are_paired_and_adjusted() -> None:
    board = board_of(runs())
    assert board is not None
    pairs = [("dsrm-hrl", "hrl"), ("filter+quota", "filter+quota")]
    table = comparisons(board, pairs)
    # Seed 11: (.5 + .8 - .4 - .75) / 2 = .075; seed 15: (.9 + .9 - .6 - .75) / 2 = .225: mean .15,
    # standard error .075, t = 2 with one degree of freedom, and twice that p for two comparisons.
    p = 1 - 2 * math.atan(2) / math.pi
    # kuairec: 14 < 15 < 16 < 19, 3 of 4 pairs; kuairec-like: all
    assert table.rows[0][0] == "dsrm-hrl less hrl"
    assert table.rows[0][1].startswith("+0.150 ± 0.953")  # 12.706 x .075
    assert table.rows[0][2] == "2 of 2"
    assert table.rows[0][3].startswith("0.88 [")
    assert [float(cell) for cell in table.rows[0][4:]] == pytest.approx([p, 2 * p], abs=5e-4)
    assert table.rows[1][1:3] == ["+0.000 ± 0.000", "0 of 2"]
    assert table.rows[1][4:] == ["1.000", "1.000"]


def test_statistics_hold_the_comparisons_that_rows_name_and_nested_intervals() -> None:
    text = standings.statistics(runs())
    pairs = [line.split(" | ")[0] for line in text.splitlines() if " less " in line]
    assert pairs == ["| dsrm-hrl less hrl", "| dsrm-hrl less filter+quota"]
    # kuairec-like, hrl: the seeds agree, and sessions leave .1: 12.706 x .1 / sqrt(2)
    assert "3.00 ± 0.90 (0.00 / 0.10)" in text
    # kuairec, hrl: a variance of 2, .01 of it of sessions
    assert "15.00 ± 12.71 (1.41 / 0.10)" in text


def test_trainings_of_several_sizes_are_said_and_not_compared() -> None:
    assert "Training sessions differ" not in standings.leaderboard(runs())
    assert "| dsrm-hrl less hrl |" in standings.statistics(runs())
    longer = [
        run | {"train": run["train"] | {"episodes": 20_003}}
        if (run["agent"], run["dataset"]["name"]) == ("dsrm-hrl", "kuairec")
        else run
        for run in runs()
    ]
    text = standings.leaderboard(longer)
    assert "Training sessions differ: dsrm-hrl 5,000 or 20,000, hrl 5,000." in text
    text = standings.statistics(longer)
    assert "| dsrm-hrl less hrl |" not in text
    assert "| dsrm-hrl less filter+quota |" in text  # a rule


def test_the_figure_draws_profiles_of_learned_agents_and_the_ladder() -> None:
    board = board_of([*runs(), *(
        result("mine", seed, 12.0, block) for block in (TODAY, LIKE) for seed in (11, 15)
    )])  # fmt: skip
    assert board is not None
    (axes,) = standings.draw_profiles(board).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {LOWEST, "hrl", "dsrm-hrl", "filter+quota", "mine"}  # no other oracle
    heights = dict(zip(lines["hrl"].get_xdata().round(2), lines["hrl"].get_ydata(), strict=True))
    assert [heights[at] for at in (0.35, 0.5, 0.7, 0.8)] == [1.0, 0.75, 0.5, 0.0]


def test_the_report_command_writes_tables_and_figure(tmp_path: Path, capsys) -> None:
    for number, run in enumerate(runs()):
        (tmp_path / f"{number}.json").write_text(json.dumps(run))
    page = tmp_path / "page.md"
    page.write_text("A\n<!-- leaderboard -->\n?\n<!-- /leaderboard -->\nB\n")
    assert main(["report", str(tmp_path), "--pages", str(page)]) == 0
    assert str(tmp_path / "profiles.png") in capsys.readouterr().out
    assert (tmp_path / "profiles.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"## Leaderboard\n\n{standings.leaderboard(runs())}\n" in text
    assert f"## Statistics\n\n{standings.statistics(runs())}\n" in text
    assert standings.leaderboard(runs()) in page.read_text(encoding="utf-8")
