from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

import kuaisim_gym
from benchmarks.__main__ import main as other_main
from benchmarks.speed import (
    catalogues,
    dynamic,
    heads,
    loads,
    memory,
    purifiers,
    timing,
    training,
)
from benchmarks.speed.__main__ import main

ABOUT = {"study", "machine", "versions", "commit"}


def quick(out: Path, command: str, *more: str) -> dict:
    sizes = ["--quick", "--sessions", "16", "--out", str(out)]
    assert main([command, *sizes, *more]) == 0
    return json.loads((out / f"{command}.json").read_text())


@pytest.fixture
def in_this_process(monkeypatch) -> list:
    """Functions that a command has sent to fresh processes; they ran in this one."""
    sent = []

    def run(measure, *arguments) -> list:
        sent.append(measure)
        measure, arguments = pickle.loads(pickle.dumps((measure, arguments)))
        return list(map(measure, *arguments))

    for module in (timing, memory, dynamic):
        monkeypatch.setattr(module, "in_fresh_processes", run)
    return sent


def test_environments_are_timed_and_their_growth_is_drawn(tmp_path: Path, capsys) -> None:
    study = quick(tmp_path, "environments", "--repeats", "1")
    tables = {"environments", "sessions", "items", "preferences", "parts"}
    assert study.keys() == {*ABOUT, "repeats", *tables}
    assert study["machine"].keys() == {"cpu", "cores"}
    played = {(row["env"], row["shell"], row["actions"]) for row in study["environments"]}
    for env in ("KuaiRec-Fair-v0", "KuaiRand-Fair-v0"):
        for shell in ("SameStep", "NextStep", "sb3", "single"):
            assert {(env, shell, kind) for kind in ("discrete", "slate", "scorer")} <= played
    assert ("KuaiRand-Retention-v0", "SameStep", "fusion") in played
    assert "numpy" in {row["engine"] for row in study["environments"]}
    for row in [row for name in ("environments", "sessions", "items") for row in study[name]]:
        assert 0 < row["least"] <= row["per_second"] <= row["most"]
        assert row["per_processor_second"] > 0
    assert {row["items"] for row in study["items"]} == {120, 240}
    for row in study["preferences"]:
        assert row["belief / pooled"] == pytest.approx(row["belief_us"] / row["pooled_us"])
        assert row["parts / pooled"] == pytest.approx(row["parts_us"] / row["pooled_us"])
    columns = [name for name in study["parts"][0] if name != "processor_ns"]
    assert len(columns) == 6
    assert all(isinstance(row[column], float) for row in study["parts"] for column in columns)
    assert "| KuaiRec-Fair-v0 | NextStep | slate |" in capsys.readouterr().out

    assert main(["plot", str(tmp_path)]) == 0
    assert Path(capsys.readouterr().out.strip()).read_bytes().startswith(b"\x89PNG")
    assert other_main(["table", str(tmp_path)]) == 2  # a study, which is no result of a run
    assert "There are no results" in capsys.readouterr().err


def test_purifiers_are_timed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(purifiers, "STATES", 16)
    assert main(["purifiers", "--quick", "--repeats", "1", "--out", str(tmp_path)]) == 0
    study = json.loads((tmp_path / "purifiers.json").read_text())
    assert study.keys() == {*ABOUT, "repeats", "denoising", "training"}
    timed = {(row["purifier"], row["batch"]) for row in study["denoising"]}
    assert timed == {(name, n) for name in ("dsrm", "student", "mlp") for n in (1024, 64, 1)}
    for row in study["denoising"]:
        assert row["ms_a_call"] == pytest.approx(1e3 * row["batch"] / row["per_second"])
    (row,) = study["training"]
    added = row["fit_s"] + row["denoising_s_of_20000"]
    assert row["overhead"] == pytest.approx(added / row["all_else_s_of_20000"])


def test_a_training_second_is_divided_without_rest(tmp_path: Path) -> None:
    assert main(["training", "--quick", "--episodes", "64", "--out", str(tmp_path)]) == 0
    study = json.loads((tmp_path / "training.json").read_text())
    assert study.keys() == {*ABOUT, "episodes", "datasets", "training", "parts"}
    assert [one["synthetic"] for one in study["datasets"]] == [True]
    costs = {row["agent"]: row for row in study["training"]}
    assert tuple(costs) == training.AGENTS
    assert len({row["steps"] for row in costs.values()}) == 1
    assert costs["ppo"]["times_ppo"] == 1.0
    for row in costs.values():
        assert row["steps"] >= 64 * training.MAX_LEN
        assert row["s_of_20000"] == pytest.approx(
            row["fit_s"] + 20_000 * row["s"] / row["sessions"]
        )
    assert [row["part"] for row in study["parts"]] == list(training.STAGES)
    for agent, cost in costs.items():
        shares = {row["part"]: row[f"{agent}_share"] for row in study["parts"]}
        assert sum(shares.values()) == pytest.approx(1)
        # All of it was clocked: nothing that belongs to a part is left in the rest.
        purified = agent == "dsrm-hrl"
        assert (shares.pop(training.PURIFIER) > 0) == purified == (cost["fit_s"] > 0)
        assert all(share > 0 for share in shares.values())
    assert torch.Tensor.backward.__name__ == "backward"  # the clock is off again


def test_a_clock_counts_every_second_once(monkeypatch) -> None:
    now = iter([0.0, 1.0, 4.0, 5.0, 7.0, 10.0])
    monkeypatch.setattr(training.time, "process_time", lambda: next(now))
    clock = training.Clock()
    inner = clock.around(lambda: None, "inner")

    def work() -> str:
        inner()
        inner()
        return "done"

    assert clock.around(work, "outer")() == "done"
    assert clock.seconds == {"inner": 3.0 + 2.0, "outer": 10.0 - 5.0}


def test_each_row_is_measured_in_a_process_of_its_own() -> None:
    own = os.path.realpath("/proc/self")
    assert len({own, *timing.in_fresh_processes(os.path.realpath, ["/proc/self"] * 2)}) == 3
    case = memory.Case(memory.ENV, sessions=16, items=memory.TINY)
    (row,) = timing.in_fresh_processes(memory.occupied, [case])
    assert row["sessions"] == 16
    assert row["MB_before"] > 0


def test_memory_is_measured(in_this_process, tmp_path: Path, capsys) -> None:
    study = quick(tmp_path, "memory")
    assert in_this_process == [memory.occupied, memory.grown, memory.of_large_catalogue]
    assert study.keys() == {*ABOUT, "sessions", "growth", "large"}
    views = {(row["actions"], row["observation"]) for row in study["sessions"]}
    assert views == {("discrete", "state"), ("slate", "state"), ("scorer", "state"),
                     ("slate", "dict"), ("slate", "history"), ("fusion", "state")}  # fmt: skip
    assert [row["shell"] for row in study["growth"]] == ["SameStep", "single"]
    assert {row["actions"] for row in study["large"]} == {"discrete", "slate", "scorer"}
    assert all(row["MB_in_all_at_the_peak"] >= row["MB_before"] > 0 for row in study["large"])
    assert "### growth" in capsys.readouterr().out


def test_a_catalogue_that_changes_is_compared_with_a_fixed_one(
    in_this_process, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(dynamic, "SESSIONS", (4, 16))
    assert main(["dynamic", "--quick", "--repeats", "1", "--out", str(tmp_path)]) == 0
    study = json.loads((tmp_path / "dynamic.json").read_text())
    assert study.keys() == {*ABOUT, "repeats", "steps", "days"}
    assert in_this_process == [dynamic.lived]
    views = [(row["sessions"], row["actions"], row["observation"]) for row in study["steps"]]
    assert views == [(n, *view) for n in (4, 16) for view in dynamic.VIEWS]
    for row in study["steps"]:
        assert row["dynamic / fixed"] == pytest.approx(row["dynamic_us"] / row["fixed_us"])
    assert [row["actions"] for row in study["days"]] == list(dynamic.LARGE_ACTIONS)
    for row in study["days"]:
        assert row["steps"] > 30 and 0 < row["of_the_last_day"] < row["items"] / 2
        last = row["MB_after_day_30"]
        assert row["MB_before"] <= last <= row["MB_at_the_peak"]


def test_the_factor_model_is_timed_on_a_log_of_any_size(tmp_path: Path) -> None:
    assert main(["factors", "--quick", "--out", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "factors.json").read_text())["factors"]
    assert [row["world"] for row in table] == ["kuairec", "kuairand", "large"]
    large = table[-1]
    assert (large["users"], large["items"]) == (400, 10_728)
    assert 18_000 < large["rows"] < 22_000
    assert all(row["processor_seconds"] > 0 < row["MB_added"] < row["MB_peak"] for row in table)


def test_the_sequential_model_is_timed(tmp_path: Path, capsys) -> None:
    assert main(["sequential", "--sessions", "2", "--events", "3", "--slate", "2", "--steps", "1",
                 "--repeats", "1", "--out", str(tmp_path)]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert all(f"| {work} |" in printed for work in ("step", "full recompute", "reset"))
    study = json.loads((tmp_path / "sequential.json").read_text())
    assert study["events"] == 3
    assert all(row["processor_ms"] > 0 for row in study["user-steps or sessions"])


def test_mistakes_end_with_a_sentence(tmp_path: Path, capsys) -> None:
    assert main(["plot", str(tmp_path)]) == 2
    assert "environments.json is not there" in capsys.readouterr().err
    (tmp_path / "file").touch()
    tiny = ["--sessions", "2", "--events", "3", "--slate", "2", "--steps", "1", "--repeats", "1"]
    with pytest.raises(SystemExit):
        main(["sequential", *tiny, "--out", str(tmp_path / "file")])
    assert "is a file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["environments", "--engine", "fortran"])


def test_heads_are_timed_and_those_that_would_not_fit_are_left_out(
    in_this_process, tmp_path: Path
) -> None:
    assert main(["heads", "--quick", "--repeats", "1", "--out", str(tmp_path)]) == 0
    assert in_this_process == [heads.measured]
    study = json.loads((tmp_path / "heads.json").read_text())
    assert study.keys() == {*ABOUT, "repeats", "heads"}
    measured = {(row["head"], row["items"]): row for row in study["heads"]}
    assert measured.keys() == {(head, n) for head in heads.HEADS for n in heads.QUICK}
    for row in measured.values():
        assert row["update_ms"] > 0 and row["draw_ms"] > 0 and row["parameters"] > 0
    # Its parameters are of codes, not of items.
    few, more = (measured["semantic", n]["parameters"] for n in heads.QUICK)
    assert more < 1.1 * few
    assert heads.measured(("independent", 1_000_000, 1))["update_ms"] == "needs 41 GB"


def test_ratios_compare_with_the_packages_of_a_wheel(tmp_path: Path, capsys) -> None:
    wheel = tmp_path / "older.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        slow = "import time\nend = time.process_time() + 2\nwhile time.process_time() < end: pass\n"
        packed.writestr("dsrm_agents/__init__.py", slow)
    options = ["--old", str(wheel), "--cases", "import", "--quick", "--out", str(tmp_path)]
    assert main(["ratios", *options]) == 0
    report = json.loads((tmp_path / "ratios.json").read_text())
    figures = report["ratios"]["import"]
    assert figures["old_s"] >= 2.0
    assert figures["ratio"] == figures["new_s"] / figures["old_s"] < 1.0
    assert "new / old" in capsys.readouterr().out


def test_first_loads_are_compared_with_pandas_and_an_older_build(tmp_path: Path) -> None:
    wheel, packages = tmp_path / "older.whl", Path(kuaisim_gym.__file__).parents[1]
    with zipfile.ZipFile(wheel, "w") as packed:
        for file in (packages / "kuaisim_gym").rglob("*.py"):
            packed.write(file, file.relative_to(packages))
    assert main(["loads", "--quick", "--old", str(wheel), "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "loads.json").read_text())["first loads"]
    assert [row["dataset"] for row in rows] == list(loads.SIZES)
    for row in rows:
        assert row["new / pandas"] == row["new_s"] / row["pandas_s"]
        assert row["new / old"] == row["new_s"] / row["old_s"]
        assert min(row["pandas_MB"], row["new_MB"], row["old_MB"]) > 0


def test_loads_from_the_cache_are_compared_with_an_older_build(tmp_path: Path) -> None:
    wheel, packages = tmp_path / "older.whl", Path(kuaisim_gym.__file__).parents[1]
    with zipfile.ZipFile(wheel, "w") as packed:
        for file in (packages / "kuaisim_gym").rglob("*.py"):
            packed.write(file, file.relative_to(packages))
    assert main(["cached", "--quick", "--old", str(wheel), "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "cached.json").read_text())["loads from the cache"]
    assert row["entry"] == "table"
    assert row["memory ratio"] == row["memory_ms"] / row["old memory_ms"]
    assert min(row["MB"], row["disk_ms"], row["old processor_ms"]) > 0


def test_files_of_first_loads_are_those_of_the_datasets(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    for name, size in loads.QUICK.items():
        (tmp_path / name).mkdir()
        loads.write_files(name, size, tmp_path / name)
        dataset = kuaisim_gym.load_dataset(name, tmp_path / name)
        assert dataset.n_users == size.users
        assert not any("duplicate" in note or "repeat" in note for note in dataset.notes)
    log, test = (loads.QUICK["kuairand"].users * n for n in (53, 43))
    tested = dataset.test if dataset.randomised is None else dataset.test.merged(dataset.randomised)
    assert (len(dataset.log), len(tested)) == (log, test)


def test_requests_are_timed_one_by_one(tmp_path: Path) -> None:
    options = ["--quick", "--dataset", "kuairec", "--out", str(tmp_path)]
    assert main(["serving", *options]) == 0
    study = json.loads((tmp_path / "serving.json").read_text())
    assert study.keys() == {*ABOUT, "requests", "one request"}
    agents = ("ppo", "hrl", "belief-hrl", "student-hrl", "dsrm-hrl", "filter+quota")
    timed = [(row["agent"], row["slates_before"]) for row in study["one request"]]
    assert timed == [(agent, slates) for agent in agents for slates in (0, 15)]
    for row in study["one request"]:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert 0 < row["p50_processor_ms"] <= row["p99_processor_ms"]


def test_a_file_in_the_place_of_the_folder_is_refused_at_once(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(timing, "in_fresh_processes", lambda *asked: pytest.fail("it measured"))
    file = tmp_path / "heads.json"
    file.touch()
    with pytest.raises(SystemExit) as ended:
        main(["heads", "--quick", "--out", str(file)])
    assert ended.value.code == 2
    assert f"{file} is a file: name a folder" in capsys.readouterr().err


def test_ratios_are_to_the_familys_smallest_catalogue() -> None:
    times = [("a", 2.0, 8.0), ("a", 3.0, 4.0), ("b", 5.0, ""), ("b", 20.0, "")]
    rows = [
        {"family": family, "played_ms": played, "trained_ms": trained}
        for family, played, trained in times
    ]
    found = [(row["played_ratio"], row["trained_ratio"]) for row in catalogues.with_ratios(rows)]
    assert found == [(1.0, 1.0), (1.5, 0.5), (1.0, ""), (4.0, "")]


def test_families_play_and_train_in_worlds_made_directly(in_this_process, tmp_path) -> None:
    families = ["random", "hierarchical, all items", "hierarchical, shortlist"]
    options = ["--quick", "--repeats", "1", "--out", str(tmp_path), "--families", *families]
    assert main(["catalogues", *options]) == 0
    study = json.loads((tmp_path / "catalogues.json").read_text())
    assert in_this_process == [catalogues.measured]
    assert [(row["family"], row["items"]) for row in study["catalogues"]] == [
        (family, items) for family in families for items in catalogues.QUICK
    ]
    for row in study["catalogues"]:
        assert row["played_ms"] > 0 and row["MB_at_the_peak"] > 0
        assert (row["trained_ms"] == "") == (row["family"] == "random")
