from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import COMMANDS, main
from benchmarks.agents import AGENTS, agents_for
from benchmarks.formatting import interval, markdown_table, mean_and_ci95, mean_and_ci95_by_user
from benchmarks.results import KEYS, METRICS
from benchmarks.run import SEED_RANGE, SLOTS, Run, train_agent
from dsrm_agents.common.stateless import batch_of


def run(out: Path, agent: str, *more: str) -> dict:
    arguments = ["--agent", agent, "--episodes", "20", "--sessions", "50", "--out", str(out), *more]
    assert main(["run", *arguments]) == 0
    files = [file for file in out.glob("*.json") if file.name.startswith(f"{agent}_")]
    assert len(files) == 1
    return json.loads(files[0].read_text())


@pytest.fixture
def brief_fits(monkeypatch, quick_fit) -> None:
    """What agents fit before they train takes a few updates."""
    from benchmarks.agents import agent, hrl
    from dsrm_agents.baselines import dorl

    fit_encoder, fit_world_model = hrl.fit_encoder, dorl.fit_world_model
    monkeypatch.setattr(
        agent,
        "fit_purifier",
        lambda name, dataset, progress, **options: quick_fit(name, dataset, **options),
    )
    monkeypatch.setattr(hrl, "fit_encoder", partial(fit_encoder, updates=5))
    monkeypatch.setattr(dorl, "fit_world_model", partial(fit_world_model, members=1))


@pytest.mark.parametrize("agent", AGENTS)
def test_a_run_writes_the_promised_keys_and_obeys_the_law(
    agent: str, tmp_path: Path, brief_fits
) -> None:
    result = run(tmp_path, agent)
    assert result.keys() == KEYS | {"exposure", "users"}
    block = result["dataset"]
    assert block.keys() == {
        "name", "source", "synthetic", "fingerprint", "answers", "seed", "version",
    }  # fmt: skip
    assert (block["name"], block["answers"], block["seed"]) == ("kuairec", "synthetic", 0)
    assert result["dataset"]["synthetic"] is True
    own = {"encoder"} if agent in ("hrl+rce", "hrl+tce", "hrl+bod") else set()
    taken = {"seconds", "processor_seconds"}
    assert result["train"].keys() == {"episodes", "steps", "curve"} | taken | own
    assert result["eval"]["sessions"] == 50
    assert result["metrics"].keys() == {*METRICS, *(f"{name}_ci95" for name in METRICS)}
    trained = AGENTS[agent].rule is None
    assert (result["train"]["episodes"] >= 20) == trained
    played = trained and not AGENTS[agent].offline
    assert bool(result["train"]["curve"]) == played
    length, reward, q = (result["metrics"][name] for name in ("len", "r_each", "q"))
    # No session has more than 30 steps, where steady rewards of 1 would give 29.5 on average.
    tolerance = 0.5 if reward == 1.0 else 0.4
    assert length == pytest.approx((30 - 1) / (2 - reward + q) + 0.5, abs=tolerance)


def test_the_same_command_runs_on_real_rows(real_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks", "run", "--agent", "a2c", "--env", "KuaiRec-Fair-v0",
            "--dataset", str(real_folder), "--max-len", "12", "--seed", "3", "--episodes", "16",
            "--sessions", "20", "--out", str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    result = json.loads(Path(done.stdout.strip()).read_text())
    assert result["dataset"]["answers"] == "modelled"  # 3 % of the answers are rows
    assert (result["max_len"], result["seed"], result["slate_size"]) == (12, 3, 10)
    assert "Training" in done.stderr  # the progress bar


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = run(tmp_path, "quality+quota")
    assert run(tmp_path, "quality+quota") == first


def test_another_run_s_result_is_not_taken_for_this_one(tmp_path: Path, capsys) -> None:
    run(tmp_path, "a2c")
    again = ["run", "--agent", "a2c", "--out", str(tmp_path)]
    assert main([*again, "--episodes", "2000", "--sessions", "50"]) == 2
    assert "result of another run" in capsys.readouterr().err
    assert main([*again, "--episodes", "20", "--sessions", "60"]) == 2


def test_one_run_in_two_folders_is_refused(tmp_path: Path, capsys) -> None:
    run(tmp_path / "one", "quality+quota")
    run(tmp_path / "two", "quality+quota")
    assert main(["table", str(tmp_path)]) == 2
    assert "the same agent, world and seed" in capsys.readouterr().err


def test_studies_are_left_out_of_tables(tmp_path: Path, capsys) -> None:
    run(tmp_path, "quality+quota")
    (tmp_path / "study.json").write_text('{"study": "purify"}')
    assert main(["table", str(tmp_path)]) == 0
    assert "quality+quota" in capsys.readouterr().out


def test_seeds_share_no_session(tmp_path: Path) -> None:
    for seed in (11, 15):
        run(tmp_path / str(seed), "random", "--seed", str(seed))
    one, two = (
        json.loads(next((tmp_path / str(seed)).glob("*.json")).read_text()) for seed in (11, 15)
    )
    assert one["metrics"]["len"] != two["metrics"]["len"]
    ranges = [
        range(seed * SEED_RANGE + half, seed * SEED_RANGE + half + SLOTS)
        for seed in (11, 15)
        for half in (0, SEED_RANGE // 2)
    ]
    assert len(set().union(*ranges)) == 4 * SLOTS


def test_neighbouring_seeds_train_on_other_sessions(small) -> None:
    """SB3 itself seeds slot i with seed + i, so that 63 of 64 slots would meet the same users."""
    streams = []
    for seed in (1, 2):
        spec = Run("a2c", max_len=5, seed=seed, episodes=64, sessions=1)
        agent, _ = train_agent(spec, small, None, progress=False)
        streams.append(set(batch_of(agent.env, "Test").core.state.seeds.tolist()))
    assert len(streams[0]) == len(streams[1]) == AGENTS["a2c"].hyperparams["n_envs"]
    assert not streams[0] & streams[1]


def test_a_suite_runs_side_by_side_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    command = ["suite", "--agents", "popularity", "quality+quota", "--seeds", "1", "2",
               "--sessions", "20", "--episodes", "1", "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.json")}
    assert len(files) == 4
    next(iter(files)).unlink()
    assert main(command) == 0
    again = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.json")}
    assert again.keys() == files.keys()
    assert sum(files[file] == again[file] for file in files) == 3


def test_table_and_plots(tmp_path: Path, capsys) -> None:
    for agent in ("a2c", "expected-oracle+quota"):
        for seed in ("11", "15"):
            assert main(["run", "--agent", agent, "--episodes", "20", "--sessions", "50",
                         "--seed", seed, "--out", str(tmp_path)]) == 0  # fmt: skip
    capsys.readouterr()
    assert main(["table", str(tmp_path), "--format", "markdown"]) == 0
    table = capsys.readouterr().out
    assert "SYNTHETIC" in table
    assert "| a2c | 2 |" in table
    assert "13.43 ± 0.24" in table  # the published A2C row
    assert "| 1.000 |" in table  # the ceiling over itself
    assert "Longest sessions of a learned agent: a2c" in table
    assert main(["plot", str(tmp_path)]) == 0
    figures = [Path(line) for line in capsys.readouterr().out.split()]
    assert len(figures) == 2
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)


def test_kuairand_runs_beside_its_own_published_rows(tmp_path: Path, capsys) -> None:
    result = run(tmp_path, "a2c", "--env", "KuaiRand-Fair-v0")
    assert result["dataset"]["name"] == "kuairand"
    assert main(["table", str(tmp_path), "--format", "markdown"]) == 0
    table = capsys.readouterr().out
    assert "### KuaiRand-Fair-v0, kuairand (SYNTHETIC world" in table
    assert "13.67 ± 0.12" in table  # the published A2C row


@pytest.mark.parametrize(
    ("env", "own", "absent"),
    [
        ("KuaiRand-Request-v0", ("list reward", "R-NDCG", "R-MRR", "ILD"), "Len / ceiling"),
        ("KuaiRand-Retention-v0", ("return time", "retention"), "Longest sessions"),
    ],
)
def test_other_tasks_have_metrics_of_their_own(env, own, absent, tmp_path: Path, capsys) -> None:
    result = run(tmp_path, "a2c", "--env", env)
    assert result["train"]["episodes"] >= 20
    assert main(["table", str(tmp_path), "--format", "markdown"]) == 0
    header = next(line for line in capsys.readouterr().out.splitlines() if "| agent" in line)
    assert all(f"| {name} |" in header for name in own)
    assert absent not in header
    values = {**result["metrics"], "max_len": result["max_len"]}
    if "Request" in env:
        assert values["max_len"] == values["len"] == 20
        assert values["list_reward"] == pytest.approx(values["r_each"])
        assert 0 < values["r_mrr"] <= 1
    else:
        assert (values["max_len"], values["len"]) == (5, 5.0)
        assert 1 <= values["return_time"] <= 10
    assert main(["plot", str(tmp_path)]) == 0
    assert run(tmp_path, "a2c", "--env", env) == result  # found, and not run again


def test_intervals_over_seeds() -> None:
    # Mean 2, standard deviation 1, three values: 4.303 / sqrt(3).
    mean, half = mean_and_ci95([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(2.484, abs=0.001)


def test_sessions_of_one_user_are_no_further_evidence() -> None:
    values = np.array([1.0, 2.0, 3.0])
    once = mean_and_ci95_by_user(values, np.array([5, 3, 9]))
    assert once == pytest.approx(mean_and_ci95(values.tolist()))
    # Each session four times: the same users, the same interval.
    repeated = mean_and_ci95_by_user(np.repeat(values, 4), np.repeat([5, 3, 9], 4))
    assert repeated == pytest.approx(once)
    # Sums of two users about the mean of 2.5: -1.5 and 1.5; sqrt(2 * 4.5) / 4, times 12.71.
    mean, half = mean_and_ci95_by_user(np.array([1.0, 2.5, 3.0, 3.5]), np.array([0, 0, 1, 1]))
    assert (mean, half) == pytest.approx((2.5, 9.530), abs=1e-3)
    assert np.isnan(mean_and_ci95_by_user(values, np.zeros(3, int))[1])


def test_intervals_and_tables_as_they_are_printed() -> None:
    assert interval([1.0, 2.0, 3.0], 1, "+") == "+2.0 ± 2.5"
    assert interval([2.0]) == "2.000"
    assert interval([]) == ""
    table = "| a | b | c |\n|---|--:|--:|\n| x | 1 |  |"
    assert markdown_table(["a", "b", "c"], [["x", "1", ""]]) == table
    assert markdown_table("ab", [], "rl") == "| a | b |\n|--:|---|"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "show this help message" in capsys.readouterr().out


def test_user_errors_end_with_a_sentence_and_status_2(tmp_path: Path, capsys) -> None:
    assert main(["table", str(tmp_path)]) == 2
    assert "There are no results" in capsys.readouterr().err
    (tmp_path / "x.json").write_text("{}")
    assert main(["table", str(tmp_path)]) == 2
    assert "names neither agent nor study" in capsys.readouterr().err
    missing = ["--dataset", str(tmp_path / "no"), "--agent", "random", "--out", str(tmp_path)]
    assert main(["run", *missing]) == 2
    assert "not there" in capsys.readouterr().err
    in_the_way = tmp_path / "x.json"
    assert main(["run", "--agent", "random", "--out", str(in_the_way)]) == 2
    for bad in (["--seed", "-1"], ["--sessions", "1500"], ["--episodes", "0"]):
        assert main(["run", "--agent", "random", "--out", str(tmp_path), *bad]) == 2
        assert "must be at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["suite", "--jobs", "0", "--out", str(tmp_path)])
    assert main(["run", "--agent", "dsrm", "--out", str(tmp_path)]) == 2
    assert "agent must be one of" in capsys.readouterr().err


def test_agents_that_the_data_have_nothing_for_are_left_out(world, real) -> None:
    assert set(AGENTS) - set(agents_for(world)) == {"truth+quota"}
    assert set(AGENTS) - set(agents_for(real)) == {"truth+quota", "dorl"}  # it has no categories


def test_two_seeds_of_mofir_share_no_preferences(small) -> None:
    drawn = []
    for seed in (11, 15):
        spec = Run("mofir", max_len=5, seed=seed, episodes=40, sessions=1)
        agent, _ = train_agent(spec, small, None, progress=False)
        drawn.append(set(agent.replay_buffer.observations[0, :, -2].tolist()))
    assert len(drawn[0]) == len(drawn[1]) == AGENTS["mofir"].hyperparams["n_envs"]
    assert not drawn[0] & drawn[1]
