from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import COMMANDS, main
from benchmarks.agents import AGENTS, agents_for
from benchmarks.commands import Command, DefaultsHelp, make_parser
from benchmarks.formatting import (
    interval,
    latex_text,
    markdown_table,
    mean_and_ci95,
    mean_and_ci95_by_user,
)
from benchmarks.reports.plots import figures_of
from benchmarks.runs.settings import SEED_RANGE, SLOTS, Run
from benchmarks.runs.training import train_agent
from benchmarks.studies.results import KEYS, METRICS, World
from dsrm_agents.common.stateless import batch_of
from kuaisim_gym.data.__main__ import main as data_main


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
    assert result.keys() == KEYS | {"exposure", "users", "row"}
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


@pytest.mark.parametrize(
    "changed",
    [{"agent": "ppo"}, {"env": "KuaiRand-Fair-v0"}, {"max_len": 99}, {"seed": 777},
     {"row": {"name": "a2c", "settings": {}}}],
)  # fmt: skip
def test_a_result_whose_content_is_another_run_s_is_refused(changed, tmp_path, capsys) -> None:
    made = run(tmp_path, "a2c")
    (file,) = tmp_path.glob("*.json")
    file.write_text(json.dumps(made | changed))
    again = ["run", "--agent", "a2c", "--out", str(tmp_path), "--episodes", "20"]
    assert main([*again, "--sessions", "50"]) == 2
    assert "holds the result of another run: wanted" in capsys.readouterr().err


def test_results_of_older_code_do_not_say_their_settings(tmp_path: Path) -> None:
    made = run(tmp_path, "a2c")
    assert made["row"]["settings"]["learning_rate"] == AGENTS["a2c"].hyperparams["learning_rate"]
    (file,) = tmp_path.glob("*.json")
    file.write_text(json.dumps({name: value for name, value in made.items() if name != "row"}))
    assert "row" not in run(tmp_path, "a2c")


def test_a_page_of_somebody_else_is_kept(tmp_path: Path, capsys) -> None:
    run(tmp_path, "quality+quota")
    (tmp_path / "README.md").write_text("mine")
    assert main(["report", str(tmp_path)]) == 2
    assert "is a page of yours" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"


def test_an_empty_path_is_refused(capsys) -> None:
    for command in (["report", ""], ["train", "random", "--out", ""], ["table", ""]):
        with pytest.raises(SystemExit):
            main(command)
        assert "the path is empty: name a file or folder" in capsys.readouterr().err


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
    assert interval([-0.001, -0.001], 2, "+") == "+0.00 ± 0.00"  # no sign that digits do not bear
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


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command's own options."""
    parser = make_parser("kuaisim", None, COMMANDS, command)
    (commands,) = (each for each in parser._actions if isinstance(each.choices, dict))
    return commands.choices[command]


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"data"}))  # which has further ones
def test_help_shows_every_default(command: str) -> None:
    parser, helper = parser_of(command), DefaultsHelp("kuaisim")
    groups = [group for group in parser._mutually_exclusive_groups if group.required]
    needed = {option for group in groups for option in group._group_actions}
    assert len(parser._actions) > 1
    for option in parser._actions:
        shown, default = helper._expand_help(option) if option.help else "", option.default
        assert shown, option.dest
        if not option.option_strings or option.required or option.nargs == 0 or option in needed:
            continue
        if default == argparse.SUPPRESS:  # stands for a positional argument
            assert shown.startswith("the same, in place of")
        elif default is None or default == []:
            assert "default: " in shown, option.dest  # says what is worked out
        else:
            values = default if isinstance(default, list | tuple) else [default]
            assert f"default: {' '.join(map(str, values))}" in shown


def test_one_command_has_two_names_and_two_ways_to_name_an_agent(tmp_path: Path, capsys) -> None:
    sizes = ["--max-len", "4", "--sessions", "20", "--out", str(tmp_path)]
    assert main(["train", "random", "KuaiRec-v0", *sizes]) == 0
    first = capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    written = path.stat().st_mtime_ns
    for words in (
        ["run", "--agent", "random", "--env", "KuaiRec-v0"],
        ["train", "--env", "KuaiRec-v0", "random"],
    ):
        assert main([*words, *sizes]) == 0
        assert capsys.readouterr().out == first
    assert path.stat().st_mtime_ns == written
    assert main(["train", *sizes]) == 2
    assert "An agent is needed" in capsys.readouterr().err


def test_a_table_is_printed_in_four_formats(tmp_path: Path, capsys) -> None:
    values = dict.fromkeys(METRICS, 0.5) | {f"{name}_ci95": 0.25 for name in METRICS}
    block = {"name": "shop_1 & co", "source": "table", "synthetic": False, "answers": "real",
             "fingerprint": "f" * 16}  # fmt: skip
    for agent, seed, length in (("mine", 1, 7.0), ("random", 1, 3.0), ("random", 2, 5.0)):
        run = {
            "agent": agent, "env": "Recommendation-Fair-v0", "max_len": 30, "slate_size": 10,
            "seed": seed, "dataset": block, "train": {"seconds": 0, "episodes": 0, "steps": 0},
            "eval": {"sessions": 9}, "metrics": {**values, "len": length}, "versions": {},
            "commit": "",
        }  # fmt: skip
        (tmp_path / f"{agent}{seed}.json").write_text(json.dumps(run))
    texts = {}
    for form in ("text", "markdown", "latex", "csv"):
        assert main(["table", str(tmp_path), "--format", form]) == 0
        texts[form] = capsys.readouterr().out
    assert main(["table", str(tmp_path)]) == 0
    assert capsys.readouterr().out == texts["text"]
    # Student's interval of 3 and 5: 12.706 * sqrt(2) / sqrt(2); of one seed: over its sessions.
    title, header, rule, mine, chance, *_ = filter(None, texts["text"].splitlines())
    assert title == "Recommendation-Fair-v0, shop_1 & co (REAL answers, ffffffffffffffff), T 30"
    assert mine.split()[:5] == ["mine", "1", "7.00", "±", "0.25"]
    assert chance.split()[:5] == ["random", "2", "4.00", "±", "12.71"]
    assert header.index("Len") + len("Len") == mine.index("0.25") + len("0.25")  # right-aligned
    assert set(rule) == {"-"}
    assert "| mine | 1 | 7.00 ± 0.25 |" in texts["markdown"]
    assert r"mine & 1 & 7.00 $\pm$ 0.25 &" in texts["latex"]
    assert r"shop\_1 \& co" in texts["latex"]
    assert texts["latex"].count(r"\begin{tabular}") == texts["latex"].count(r"\end{tabular}") == 2
    rows = list(csv.DictReader(io.StringIO(texts["csv"])))
    assert [(row["agent"], row["seeds"], float(row["len"])) for row in rows] == [
        ("mine", "1", 7.0),
        ("random", "2", 4.0),
    ]
    assert float(rows[1]["len_ci95"]) == pytest.approx(12.706, abs=1e-3)
    assert rows[0]["dataset"] == "shop_1 & co"


def test_latex_escapes_what_it_would_take_for_commands() -> None:
    assert latex_text(r"a_b & 5 % \x ± {y}") == (r"a\_b \& 5 \% \textbackslash{}x $\pm$ \{y\}")


def test_a_missing_package_and_an_interruption_are_no_tracebacks(monkeypatch, capsys) -> None:
    monkeypatch.setitem(COMMANDS, "broken", Command("no_such_library.module", "fail"))
    assert main(["broken"]) == 2
    assert "needs no_such_library, which is not installed" in capsys.readouterr().err

    def interrupt(options: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.reports.tables.main", interrupt)
    assert main(["table", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    monkeypatch.setattr("benchmarks.runs.suite.main", interrupt)
    assert main(["suite"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_the_data_s_own_command_is_one_of_them(tmp_path: Path, capsys) -> None:
    assert main(["data", "check", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert data_main(["check", str(tmp_path)]) == 2
    assert capsys.readouterr().err == message
    assert "error: " in message


def test_bars_of_the_plane_are_the_intervals(tmp_path: Path) -> None:
    metrics = {"len": 5.0, "len_ci95": 0.5, "ad": 0.25, "ad_ci95": 0.125}
    world = World("KuaiRec-Fair-v0", "kuairec", "synthetic", 0, False, "f", 30)
    runs = {"a2c": [{"metrics": metrics, "train": {"curve": []}}]}
    _, (name, figure) = figures_of(world, runs)
    assert name == "plane"
    (container,) = figure.axes[0].containers
    horizontal, vertical = (bar.get_segments()[0] for bar in container.lines[2])
    np.testing.assert_allclose(horizontal, [[0.125, 5.0], [0.375, 5.0]])
    np.testing.assert_allclose(vertical, [[0.25, 4.5], [0.25, 5.5]])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("agent", ["ppo", "--agent", "a2c"]),
        ("agent", ["--agent", "a2c", "ppo"]),
        ("agent", ["--agent", "ppo", "--agent", "a2c"]),
        ("env", ["ppo", "KuaiRec-Fair-v0", "--env", "KuaiRand-Fair-v0"]),
        ("env", ["ppo", "--env", "KuaiRand-Fair-v0", "--env", "KuaiRec-Fair-v0"]),
    ],
)
def test_what_is_named_twice_is_refused(name: str, words, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        main(["train", *words, "--out", str(tmp_path)])
    assert error.value.code == 2
    assert f"{name} is named twice, " in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_command_that_is_misspelt_is_told_the_nearest(capsys) -> None:
    assert main(["trian", "ppo"]) == 2
    assert "got 'trian'. Did you mean 'train'?" in capsys.readouterr().err
