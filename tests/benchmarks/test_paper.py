"""The paper's tables beside ours, the runs behind them, and the law that all of them obey."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import origin, paper
from benchmarks.__main__ import main
from benchmarks.agents import AGENTS, references
from benchmarks.runs import suite, worlds
from benchmarks.studies.results import Result, read_results
from kuaisim_gym import ENVIRONMENTS

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def result(agent: str, seed: int, length: float, **changed) -> Result:
    metrics = {"len": length, "r_each": 0.5, "r_cum": length / 2, "ad": 0.125}
    return {
        "agent": agent,
        "env": "KuaiRec-Fair-v0",
        "max_len": 30,
        "seed": seed,
        "dataset": {"name": "kuairec", "synthetic": True, "fingerprint": "f"},
        "metrics": metrics,
        "train": {"seconds": 900.0, "processor_seconds": 100.0 * seed},
    } | changed


def test_every_method_of_the_paper_is_an_agent_of_ours() -> None:
    assert all(AGENTS[name].build is not None for name in paper.METHODS.values())
    assert len(paper.METHODS) == 13
    assert {method for methods in paper.TABLES.values() for method in methods} == set(paper.METHODS)
    assert set(paper.ENVS.values()) <= set(ENVIRONMENTS)


def test_published_figures_are_those_of_the_paper() -> None:
    rec, rand = paper.published("kuairec", 30), paper.published("kuairand", 50)
    assert set(rec) == set(rand) == set(paper.METHODS)
    assert rec["DSRM-HRL"] == {
        "len": "26.60 ± 0.82",
        "r_each": "0.917 ± 0.010",
        "r_cum": "23.75 ± 1.04",
        "ad": "0.008 ± 0.003",
    }
    assert rand["HRL+BOD"]["len"] == "25.53 ± 1.11"
    assert paper.published("kuairec", 20) == {}


def test_ours_stand_beside_the_published_figures() -> None:
    runs = [result("bcq", 1, 20.0), result("bcq", 3, 22.0)]
    real = {"name": "kuairec", "synthetic": False, "fingerprint": "r"}
    runs += [result("bcq", 5, 99.0, dataset=real)]  # no synthetic world's
    table = paper.markdown(runs, (2,))
    # Two seeds one apart from their mean: t(.975, 1) = 12.706 times 1.
    assert (
        "| kuairec, T = 30 | BCQ | 21.00 ± 12.71 | 20.80 ± 0.62 | 0.500 ± 0.000 | 0.757 ± 0.004 |"
        in table
    )
    assert "| kuairec, T = 30 | MOFIR |  | 13.73 ± 1.41 |" in table
    assert "Table 3" not in table
    assert "| BCQ | 200 |  |  |  |  |" in table  # seconds, of a method without published ones
    assert "| A2C |" not in table.split("Table 4")[1]  # not run
    assert "99" not in table


def test_worlds_of_other_sources_leave_the_tables_as_they_are() -> None:
    runs = [result("bcq", 1, 20.0), result("bcq", 3, 22.0)]
    shorts = {"name": "shorts", "synthetic": True, "fingerprint": "s", "version": 9}
    foreign = result("bcq", 1, 20.0, env="Recommendation-Fair-v0", dataset=shorts)
    later = {"name": "kuairand", "synthetic": True, "fingerprint": "n", "version": 9}
    other = result("bcq", 1, 20.0, env="KuaiRand-Fair-v0", dataset=later)
    assert paper.markdown([*runs, foreign]) == paper.markdown(runs)
    assert "| kuairec, T = 30 | BCQ | 21.00 ± 12.71 |" in paper.markdown([*runs, other])


def test_training_seconds_stand_beside_the_published_ones() -> None:
    assert paper.markdown([result("random", 2, 20.0), result("bcq", 1, 20.0, max_len=20)]) == ""
    table = paper.markdown([result("sac4ir", 2, 20.0)], ())
    assert "| SAC4IR | 200 |  |  |  | 6,755 |" in table
    older = [result("sac4ir", 2, 20.0), result("sac4ir", 3, 20.0, train={"seconds": 500.0})]
    assert "| SAC4IR | 700* |" in paper.markdown(older, ())


def test_what_losses_leave_out_is_said_by_group() -> None:
    report = {"auc": 0.75, "left_out": 0.2, "left_out_popular": 0.1, "left_out_longtail": 0.3}
    runs = [
        result("hrl+tce", 1, 20.0, max_len=max_len, train={"seconds": 1.0, "encoder": report})
        for max_len in (30, 50)  # one encoder, counted once
    ]
    runs.append(result("hrl+tce", 2, 20.0, train={"seconds": 1.0, "encoder": report}))
    table = paper.markdown(runs, ())
    row = "0.750 ± 0.000 | 0.200 ± 0.000 | 0.100 ± 0.000 | 0.300 ± 0.000"
    assert f"| kuairec | hrl+tce | {row} |" in table
    assert "hrl+bod" not in table


@pytest.mark.parametrize(("table", "methods"), [(2, 8), (3, 6)])
def test_a_table_is_a_suite_of_its_runs(
    table: int, methods: int, tmp_path: Path, monkeypatch, capsys
) -> None:
    asked = []
    monkeypatch.setattr(
        suite, "run_studies", lambda studies, *rest: asked.extend(one.spec for one in studies)
    )
    monkeypatch.setattr(suite, "read_results", lambda out: [result("dsrm-hrl", 11, 20.0)])
    assert main(["suite", "--table", str(table), "--jobs", "2", "--out", str(tmp_path)]) == 0
    assert len(set(asked)) == len(asked) == methods * 2 * 2 * 3
    assert {run.seed for run in asked} == {11, 15, 19}
    assert {run.max_len for run in asked} == {30, 50}
    assert {run.env for run in asked} == {"KuaiRec-Fair-v0", "KuaiRand-Fair-v0"}
    assert {run.episodes for run in asked} == {20_000}
    assert {run.sessions for run in asked} == {1000}
    printed = capsys.readouterr().out
    assert f"### Table {table}" in printed
    assert "### Table 4" in printed


def test_the_table_of_worlds_is_a_suite_of_reference_rows_and_some_agents(
    small, small_rand, tmp_path: Path, monkeypatch, capsys
) -> None:
    data = {"kuairec": small, "kuairand": small_rand}
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: data[name])
    asked = []
    monkeypatch.setattr(
        suite, "run_studies", lambda studies, *rest: asked.extend(one.spec for one in studies)
    )
    monkeypatch.setattr(suite, "read_results", lambda out: [])
    command = ["suite", "--table", "worlds", "--seeds", "1", "2", "--out", str(tmp_path)]
    assert main(command) == 0
    agents = {run.agent for run in asked}
    assert agents == {*worlds.LEARNED, *references.ROWS} - {"truth+quota"}
    assert len(set(asked)) == len(asked) == len(agents) * 2 * 2 * 2
    assert {run.env for run in asked} == {"KuaiRec-Fair-v0", "KuaiRand-Fair-v0"}
    assert {run.max_len for run in asked} == {30, 50}
    assert main([*command, "--real", str(tmp_path)]) == 2
    assert f"{tmp_path / 'kuairec_real'} is not there" in capsys.readouterr().err
    assert main(["suite", "--real", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "--real names the worlds of --table worlds" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        ("--agents", "a2c"),
        ("--env", "KuaiRec-v0"),
        ("--max-len", "30"),
        ("--dataset", "somewhere"),
        ("--dataset-seed", "3"),
    ],
)
def test_what_a_table_fixes_cannot_be_chosen(option, tmp_path: Path, capsys) -> None:
    assert main(["suite", "--table", "2", *option, "--out", str(tmp_path)]) == 2
    assert f"--table 2 fixes {option[0]}" in capsys.readouterr().err


def test_every_committed_result_obeys_the_law() -> None:
    """E[Len] = (T - 1) / (2 - R + q) + 0.5, whoever plays."""
    checked = set()
    for one in read_results(RESULTS):
        if "-Fair-" not in one["env"]:
            continue
        metrics = one["metrics"]
        law = (one["max_len"] - 1) / (2 - metrics["r_each"] + metrics["q"]) + 0.5
        # R and q are no constants of a session: slates get worse as the best items are used up.
        # Who knows the answers pays hardly more than 1 a step: temper ends at 0, not half below 1.
        tolerance = 0.5 if one["agent"].startswith("realised-oracle") else 0.25
        assert metrics["len"] == pytest.approx(law, abs=tolerance), (one["agent"], one["seed"])
        checked.add(one["agent"])
    assert checked >= set(paper.METHODS.values())
