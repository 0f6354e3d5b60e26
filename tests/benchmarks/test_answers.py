"""Tables that answer the paper's questions, from runs made by hand."""

from __future__ import annotations

import pytest

from benchmarks import paper
from benchmarks.agents import agents_for
from benchmarks.formatting import NOT_MADE
from benchmarks.prose import Evidence, value_of
from benchmarks.reports import answers
from benchmarks.runs import worlds
from tests.benchmarks.handmade import LIKE, RUNS, pair, result


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_the_paper_s_method_stands_beside_the_best_other_one() -> None:
    runs = [run for run in RUNS if run["agent"] != "a2c"]
    brief = pair("a2c", 3.0, 4.0, LIKE, episodes=5_000)
    reference = [*pair("expected-oracle+quota", 24.0, 26.0), *brief]
    header, _, synthetic, real = rows(answers.overall(Evidence([*runs, *reference])))
    assert header[5] == "DSRM-HRL / expected-oracle+quota"
    assert synthetic == [
        "kuairec (SYNTHETIC world), T = 30", "21.00 ± 12.71", "TD3 24.25 ± 3.18", "-3.25 ± 9.53",
        "1 of 2, not TD3", "0.840", "0.500 ± 0.000", "26.60 ± 0.82", "SAC4IR 21.97 ± 0.45",
    ]  # fmt: skip
    assert real[2:6] == ["A2C 3.50 ± 6.35", "+1.75 ± 3.18", "0 of 1, not A2C", ""]
    assert real[7:] == ["", ""]
    alone = rows(answers.overall(Evidence(pair("dsrm-hrl", 1.0, 2.0))))[2]
    assert alone[2:5] == [NOT_MADE, NOT_MADE, "0 of 0"]


def test_variants_that_are_not_made_are_named_in_the_paper_s_worlds_alone() -> None:
    _, _, *table = rows(answers.ablation(Evidence(RUNS)))
    assert [row[:2] for row in table] == [
        *(["kuairec (SYNTHETIC world), T = 30", label]
          for label in ("FLAT", "HRL", "HRL+RCE", "HRL+TCE", "HRL+BOD")),
        ["kuairec-like (REAL answers), T = 30", "HRL"],
    ]  # fmt: skip
    assert table[0][2:] == [NOT_MADE, NOT_MADE, NOT_MADE, "", "+2.27"]
    assert table[1][2:] == ["+1.00 ± 0.00", "+0.000 ± 0.000", "+0.000 ± 0.000", "above", "+3.43"]
    assert table[5][5:] == ["level with", ""]


def test_the_longest_and_who_is_level_with_it() -> None:
    runs = [*RUNS, *pair("expected-oracle+quota", 25.0, 25.0, steps=0),
            *pair("filter+quota", 25.0, 25.1, steps=0)]  # fmt: skip
    runs = [run for run in runs if run["agent"] != "a2c"]
    _, _, synthetic, real = rows(answers.winners(Evidence(runs)))
    assert synthetic[1:] == [
        "filter+quota 25.05 ± 0.64",
        "td3, dsrm-hrl, hrl",  # of two seeds; quality+quota and bcq are not
        "td3 24.25 ± 3.18", "1.002", "0.970",
    ]  # fmt: skip
    assert real[1] == "hrl 5.30 ± 2.54"


def test_cells_that_lack_seeds_or_sessions_are_listed() -> None:
    seeds = paper.SEEDS
    whole = [result("td3", seed, 20.0) for seed in seeds]
    few = [result("bcq", seed, 20.0) for seed in seeds[:2]]
    short = [result("hrl", seed, 20.0, LIKE, episodes=5_003) for seed in seeds]
    foreign = [result("flat", 99, 20.0)]
    evidence = Evidence([*whole, *few, *short, *foreign])
    header, _, *table = rows(answers.missing(evidence))
    n_worlds = sum(len(world.max_lens) for world in worlds.WORLDS)
    assert header[1:3] == ["kuairec, T = 30", "kuairec, T = 50"]
    assert len(header) == 1 + n_worlds
    cells = {
        (row[0], world): cell
        for row in table
        for world, cell in zip(header[1:], row[1:], strict=True)
    }
    assert cells["TD3", "kuairec, T = 30"] == ""
    assert cells["BCQ", "kuairec, T = 30"] == "2 of 3 seeds"
    assert cells["HRL", "kuairec-like, T = 30"] == "5,000 sessions"
    assert cells["FLAT", "kuairec, T = 30"] == NOT_MADE
    n_cells = len(paper.METHODS) * n_worlds
    assert len(cells) == n_cells == 143
    assert cells["DORL", "kuairand-pool, T = 20"] == "no categories"
    assert cells["BCQ", "kuairec-like, T = 30"] == "positives alone"
    assert value_of("made all", evidence) == "1 of 133"  # BCQ in 7 and DORL in 3 cannot be
    assert value_of("made synthetic", evidence) == "1 of 52"
    assert value_of("made real", evidence) == "0 of 81"


@pytest.mark.parametrize("world", [world for world in worlds.WORLDS if world.folder is not None])
def test_methods_are_called_unsuited_where_their_data_do_not_suit(world, request) -> None:
    dataset = request.getfixturevalue(f"{world.source.rpartition('-')[2]}_world")
    suited = agents_for(dataset)
    assert {*world.unsuited} == {name for name in paper.METHODS.values() if name not in suited}


def test_a_column_without_gaps_is_left_out(monkeypatch) -> None:
    monkeypatch.setattr(answers, "WORLDS", worlds.WORLDS[:1])
    made = [result(agent, seed, 20.0) for agent in paper.METHODS.values() for seed in paper.SEEDS]
    longer = [run | {"max_len": 50} for run in made]
    assert rows(answers.missing(Evidence(made)))[0] == ["", "kuairec, T = 50"]
    assert answers.missing(Evidence([*made, *longer])) == "All of them are made."
