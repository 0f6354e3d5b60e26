"""Runs that were stopped while they trained, and what TensorBoard is told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.__main__ import main
from benchmarks.agents import AGENTS
from benchmarks.agents import agent as rows
from benchmarks.runs import training
from benchmarks.runs.record import TrainingRecord
from benchmarks.runs.run import run
from benchmarks.runs.settings import Run
from benchmarks.studies import study


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def kill(monkeypatch):
    """Ends what trains after so many steps, or no more."""
    on_step = TrainingRecord._on_step

    def after(steps: int | None) -> None:
        def dying(record: TrainingRecord) -> bool:
            if record.n_calls == steps:
                raise Killed
            return on_step(record)

        monkeypatch.setattr(TrainingRecord, "_on_step", dying)

    return after


def result_of(path: Path) -> dict:
    """A result but for what may differ: how long it took."""
    result = json.loads(path.read_text())
    for part in ("train", "eval"):
        del result[part]["seconds"]
    del result["train"]["processor_seconds"]
    return result


@pytest.mark.parametrize(
    ("agent", "episodes", "ends"),
    [("a2c", 400, (40, 30)), ("ppo+dsrm", 400, (75,)), ("hrl", 150, (40,))],
)
def test_an_interrupted_run_ends_with_the_same_result(
    agent: str, episodes: int, ends, tmp_path: Path, kill, monkeypatch, quick_fit
) -> None:
    monkeypatch.setattr(
        rows,
        "fit_purifier",
        lambda name, dataset, progress, **options: quick_fit(name, dataset, **options),
    )
    spec = Run(agent, episodes=episodes, sessions=50)
    whole = result_of(run(spec, tmp_path / "whole", progress=False))
    assert len(whole["train"]["curve"]) >= 50
    out = tmp_path / "parts"
    for end in ends:
        kill(end)
        with pytest.raises(Killed):
            run(spec, out, progress=False)
        (left,) = out.iterdir()
        assert left.name == f"{agent}_KuaiRec-Fair-v0_kuairec-synthetic_T30_seed11.checkpoint"
    kill(None)
    path = run(spec, out, progress=False)
    assert result_of(path) == whole
    assert list(out.iterdir()) == [path]  # the checkpoint is gone


@pytest.mark.parametrize("agent", ["mofir", "dnair", "sac4ir", "bcq"])
def test_without_a_checkpoint_a_run_starts_over_to_the_same_result(
    agent: str, tmp_path: Path, kill
) -> None:
    spec = Run(agent, max_len=8, episodes=200, sessions=20)
    whole = result_of(run(spec, tmp_path / "whole", progress=False))
    out = tmp_path / "parts"
    kill(10)
    with pytest.raises(Killed):
        run(spec, out, progress=False)
    assert not out.exists() or not list(out.iterdir())
    kill(None)
    assert result_of(run(spec, out, progress=False)) == whole


def test_a_killed_process_leaves_what_another_goes_on_from(tmp_path: Path) -> None:
    arguments = ["run", "--agent", "a2c", "--episodes", "2000", "--sessions", "50", "--out"]
    whole, out = tmp_path / "whole", tmp_path / "parts"
    assert main([*arguments, str(whole)]) == 0
    command = [sys.executable, "-m", "benchmarks", *arguments, str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(out.glob("*.checkpoint")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not list(out.glob("*.json"))
    assert main([*arguments, str(out)]) == 0
    (expected,), (found,) = whole.glob("*.json"), out.glob("*.json")
    assert result_of(found) == result_of(expected)


def test_another_run_s_checkpoint_is_refused(tmp_path: Path, kill, capsys, monkeypatch) -> None:
    kill(60)
    arguments = ["run", "--agent", "a2c", "--sessions", "50", "--out", str(tmp_path)]
    with pytest.raises(Killed):
        main([*arguments, "--episodes", "400"])
    kill(None)
    assert main([*arguments, "--episodes", "401"]) == 2
    error = capsys.readouterr().err
    assert "progress of another run: wanted {'episodes': 401" in error
    assert "Remove it or choose another folder" in error
    with monkeypatch.context() as other:
        other.setattr(training, "versions", lambda: {"torch": "1.0"})
        assert main([*arguments, "--episodes", "400"]) == 2
        assert "'torch': '1.0'" in capsys.readouterr().err
    changed = replace(AGENTS["a2c"], settings=AGENTS["a2c"].at(gamma=0.5))
    with monkeypatch.context() as other:
        other.setitem(AGENTS, "a2c", changed)
        assert main([*arguments, "--episodes", "400"]) == 2
        assert "gamma is 0.5 here and was 0.95" in capsys.readouterr().err
    (checkpoint,) = tmp_path.iterdir()
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert main([*arguments, "--episodes", "400"]) == 2
    assert "Remove it to start over" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_all_code_that_trained_is_named(tmp_path: Path, kill, monkeypatch) -> None:
    spec = Run("a2c", episodes=400, sessions=50)
    for code in ("one", "two"):
        for module in (training, study):  # of checkpoints, and of results
            monkeypatch.setattr(module, "commit", lambda code=code: code)
        kill({"one": 40, "two": 60}[code])
        with pytest.raises(Killed):
            run(spec, tmp_path, progress=False)
    kill(None)
    assert json.loads(run(spec, tmp_path, progress=False).read_text())["commit"] == "one, two"


def test_a_checkpoint_beside_a_finished_result_is_tidied(tmp_path: Path) -> None:
    path = run(Run("a2c", episodes=20, sessions=50), tmp_path, progress=False)
    path.with_suffix(".checkpoint").touch()
    run(Run("a2c", episodes=20, sessions=50), tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == [path]


def test_off_policy_agents_start_over(tmp_path: Path, kill) -> None:
    spec = Run("td3", episodes=20, sessions=50)
    kill(5)
    with pytest.raises(Killed):
        run(spec, tmp_path, progress=False)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_the_record_goes_on_where_it_was() -> None:
    class Model:
        class logger:
            record = staticmethod(lambda *_: None)

    def feed(record: TrainingRecord, sessions: list[float]) -> list[bool]:
        record.model = Model()
        going = []
        for number in sessions:
            record.num_timesteps += 10
            record.locals = {"infos": [{}, {"session": {"len": number}}]}
            going.append(record._on_step())
        return going

    lengths = np.random.default_rng(0).uniform(1, 30, 150).tolist()
    whole, first, second = (TrainingRecord(150, progress=False) for _ in range(3))
    assert feed(whole, lengths) == [True] * 149 + [False]
    assert [point["len"] for point in whole.curve] == pytest.approx(
        np.reshape(lengths, (50, 3)).mean(axis=1)
    )
    feed(first, lengths[:100])
    state = json.loads(json.dumps(first.state()))
    state["seconds"] = {"wall": 1000.0, "processor": 500.0}
    second.restore(state)
    second.num_timesteps = 1000
    assert second.seconds.wall >= 1000
    assert second.seconds.processor >= 500
    assert feed(second, lengths[100:]) == [True] * 49 + [False]
    assert second.curve == whole.curve
    assert second.finished == whole.finished == 150


@pytest.mark.parametrize("agent", ["a2c", "hrl"])
def test_tensorboard_is_told_what_is_learned(agent: str, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = ["--agent", agent, "--episodes", "130", "--sessions", "20", "--out", str(out)]
    assert main(["run", *arguments, "--tensorboard", str(log)]) == 0
    (result,) = out.glob("*.json")
    (folder,) = log.iterdir()
    assert folder.name == result.stem
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    learned = "train/worker_policy_loss" if agent == "hrl" else "train/policy_loss"
    assert {learned, "session/len", "session/r_each"} <= set(tags)
    curve = json.loads(result.read_text())["train"]["curve"]
    shown = [event.value for event in events.Scalars("session/len")]
    assert shown
    assert all(min(abs(value - point["len"]) for point in curve) < 1e-5 for value in shown)


def test_a_suite_takes_the_option_too(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    assert main(["suite", "--agents", "a2c", "popularity", "--seeds", "1", "--sessions", "20",
                 "--episodes", "64", "--jobs", "1", "--out", str(out),
                 "--tensorboard", str(log)]) == 0  # fmt: skip
    assert len(list(out.iterdir())) == 2
    (folder,) = log.iterdir()  # nothing is trained for the other
    assert folder.name.startswith("a2c_")
    assert list(folder.glob("events.out.tfevents.*"))


def test_a_log_needs_tensorboard(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("benchmarks.runs.record.find_spec", lambda name: None)
    arguments = ["--agent", "a2c", "--episodes", "20", "--sessions", "20", "--out", str(tmp_path)]
    assert main(["run", *arguments, "--tensorboard", str(tmp_path / "log")]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
