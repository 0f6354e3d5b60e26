"""The leaderboard command: an agent's runs, its place, and what keeps it from being entered."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from benchmarks import paper
from benchmarks.__main__ import main
from benchmarks.origin import data_block
from benchmarks.reports import leaderboard
from benchmarks.reports.leaderboard import faults, faults_of, standing
from benchmarks.reports.standings import HIGHEST, LOWEST
from benchmarks.runs import worlds
from benchmarks.studies.results import METRICS, Result
from kuaisim_gym.data import SOURCES
from kuaisim_gym.errors import ConfigError

OWN = "benchmarks.examples.own_agent:HalfAndHalf"
ENTRIES = Path(__file__).parents[2] / leaderboard.COMMITTED / "entries"
SEEDS = (11, 15, 19)


def block(name: str) -> Result:
    return {"name": name, "source": name, "synthetic": True, "fingerprint": name * 2,
            "answers": "synthetic", "seed": 0, "version": SOURCES[name].version}  # fmt: skip


def result(agent: str, seed: int, length: float, dataset: Result, max_len: int = 30) -> Result:
    env = {"kuairec": "KuaiRec-Fair-v0", "kuairand": "KuaiRand-Fair-v0"}[dataset["name"]]
    metrics = dict.fromkeys(METRICS, 0.5) | {"len": length}
    return {
        "agent": agent, "env": env, "max_len": max_len, "seed": seed, "slate_size": 10,
        "dataset": dataset, "eval": {"sessions": 1000}, "versions": {}, "commit": "c",
        "train": {"episodes": 5003, "steps": 0, "seconds": 0.0, "curve": []},
        "metrics": metrics | {f"{name}_ci95": 0.1 for name in METRICS},
    }  # fmt: skip


def entry(agent: str = "mine", length: float = 15.0) -> list[Result]:
    """All runs of an agent in synthetic worlds."""
    cells = product(("kuairec", "kuairand"), paper.MAX_LENS, SEEDS)
    return [result(agent, seed, length, block(name), max_len) for name, max_len, seed in cells]


def committed() -> list[Result]:
    lengths = {LOWEST: 10.0, HIGHEST: 20.0, "ppo": 12.0, "hrl": 18.0}
    return [run for agent, length in lengths.items() for run in entry(agent, length)]


def write(folder: Path, results: list[Result]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(results):
        (folder / f"{number}.json").write_text(json.dumps(one))


def test_the_command_plays_an_agent_and_says_where_it_stands(
    world, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(worlds, "WORLDS", (worlds.BenchmarkWorld("kuairec", max_lens=(5,)),))
    rows, out = tmp_path / "rows", tmp_path / "out"
    ends = {LOWEST: 1.5, HIGHEST: 4.5, "ppo": 1.6}
    write(rows, [
        result(agent, seed, length, data_block(world), 5)
        for agent, length in ends.items() for seed in SEEDS
    ])  # fmt: skip
    command = ["leaderboard", OWN, "--smoke", "--jobs", "1", "--committed", str(rows)]
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    files = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    label = "KuaiRec-Fair-v0_kuairec-synthetic_T5"
    assert set(files) == {f"half-and-half_{label}_seed{seed}.json" for seed in (11, 15)}
    made = [json.loads((out / name).read_text()) for name in sorted(files)]
    score = sum((run["metrics"]["len"] - 1.5) / 3.0 for run in made) / 2
    assert f"| 1 | half-and-half | {score:.3f} [" in printed
    assert "half-and-half would stand in place 1 of 3, ahead of ppo." in printed
    assert "half-and-half less ppo" in printed
    assert HIGHEST not in "".join(line for line in printed.splitlines() if "less" in line)
    assert "Not to be entered as it is:" in printed
    assert "T = 5, seed 11: 1000 test sessions are needed, got 20." in printed
    # Again: nothing is made anew, and the table is the same.
    assert main([*command, "--out", str(out)]) == 0
    assert capsys.readouterr().out == printed
    assert files == {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}


def test_rows_of_other_worlds_are_refused_before_the_work(
    world, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(worlds, "WORLDS", (worlds.BenchmarkWorld("kuairec", max_lens=(5,)),))
    write(tmp_path / "rows", committed())
    places = ["--committed", str(tmp_path / "rows"), "--out", str(tmp_path / "out")]
    assert main(["leaderboard", OWN, *places]) == 2
    assert "No committed row is of KuaiRec-Fair-v0_kuairec-synthetic_T5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["leaderboard", OWN, "--committed", str(tmp_path / "none")]) == 2
    assert "the rows to stand among, is not there" in capsys.readouterr().err


def test_without_an_agent_the_board_is_printed(tmp_path: Path, capsys) -> None:
    write(tmp_path, committed())
    assert main(["leaderboard", "--committed", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = [line.split(" [")[0] for line in printed.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        f"|  | {HIGHEST} | 1.000",
        "| 1 | hrl | 0.800",
        "| 2 | ppo | 0.200",
        f"| 3 | {LOWEST} | 0.000",
    ]


def test_places_of_entries() -> None:
    for length, sentence in (
        (19.0, "place 1 of 4, ahead of hrl."),
        (15.0, "place 2 of 4, behind hrl, ahead of ppo."),
        (9.0, f"place 4 of 4, behind {LOWEST}."),
    ):
        text = standing(entry(length=length), committed())
        assert f"mine would stand in {sentence}" in text
        assert "Not to be entered" not in text
    # A row that is played again takes the place of the committed one.
    assert "hrl would stand in place 2 of 3" in standing(entry("hrl", 11.0), committed())
    assert "has no place" in standing(entry(HIGHEST, 20.0), committed())


def test_worlds_without_a_scale_are_refused() -> None:
    short = [run for run in committed() if (run["agent"], run["max_len"]) != (HIGHEST, 50)]
    with pytest.raises(ConfigError, match="do not hold mine's worlds and seeds"):
        standing(entry(), short)
    with pytest.raises(ConfigError, match="do not hold mine's worlds and seeds"):
        standing([run for run in entry() if run["seed"] == 11], committed())


def test_what_keeps_results_from_being_entered() -> None:
    assert faults(entry()) == []
    wrong: dict[str, Result] = {
        "1000 test sessions are needed, got 100": {"eval": {"sessions": 100}},
        "at most 20000 training sessions, got 30000": {"train": {"episodes": 30_000}},
        "made by changed code": {"commit": "c-dirty"},
        "There is no run in KuaiRec-Fair-v0, kuairec, T = 30, seed 11.": {"seed": 12},
        "no run in KuaiRec-Fair-v0, kuairec, T = 30, seed 11": {
            "dataset": {**block("kuairec"), "version": 2}
        },
        "kuairec, T = 30, seed 11.": {"dataset": {**block("kuairec"), "seed": 3}},
        "One agent is entered at a time, found ['mine', 'other'].": {"agent": "other"},
    }
    for sentence, change in wrong.items():
        first, *rest = entry()
        found = faults([first | change, *rest])
        assert len(found) == 1 and sentence in found[0], found
    # A world of real data counts where it was played at all.
    like = {"name": "kuairec-like", "source": "kuairec-like", "synthetic": False,
            "answers": "real", "fingerprint": "l"}  # fmt: skip
    real = result("mine", 11, 12.0, block("kuairec")) | {
        "dataset": like, "env": "Recommendation-Fair-v0",
    }  # fmt: skip
    found = faults([*entry(), real])
    assert [sentence[-8:] for sentence in found] == ["seed 15.", "seed 19."]


def test_a_folder_is_an_entry(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write(folder, entry())
    assert faults_of(folder) == [f"{folder} lacks ABOUT.md, which says what the agent is."]
    (folder / "ABOUT.md").write_text("Mine.")
    assert faults_of(folder) == []
    other = folder.rename(tmp_path / "other")
    assert faults_of(other) == [f"{other} must have the name of its agent."]


def test_committed_entries_can_be_entered() -> None:
    for folder in filter(Path.is_dir, ENTRIES.glob("*")):
        assert faults_of(folder) == []
