"""Agents that runs keep: they play again, session by session, what the run judged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.agents import AGENTS
from benchmarks.runs.evaluate import evaluated
from benchmarks.runs.kept import agent_file, fitted_file, keep, read_kept
from benchmarks.runs.play import replays
from benchmarks.runs.players import Player, load_player
from benchmarks.runs.run import run
from benchmarks.runs.settings import Run
from benchmarks.runs.training import untrained
from kuaisim_gym.errors import CheckpointError, ConfigError

SIZES = ("--max-len", "6", "--episodes", "12", "--sessions", "20", "--seed", "3")


def trained(out: Path, agent: str, *more: str) -> Path:
    assert main(["train", agent, *SIZES, *more, "--out", str(out)]) == 0
    (path,) = out.glob("*.json")
    return path


@pytest.mark.parametrize(
    "agent", ["random", "ppo", "td3", "mofir", "hrl", "hrl+rce", "dsrm-hrl", "hsrl", "dnair"]
)
def test_a_kept_agent_plays_the_very_sessions_of_its_run(agent, worlds, tmp_path, capsys) -> None:
    path = trained(tmp_path, agent)
    result = json.loads(path.read_text())
    assert agent_file(path).is_file()
    assert fitted_file(path).is_file() == (agent in ("hrl+rce", "dsrm-hrl"))
    again = evaluated(load_player(path))
    for block in ("metrics", "exposure", "users"):
        assert again[block] == result[block]
    other = evaluated(load_player(path, seed=4))
    assert other["metrics"] != result["metrics"]  # of other users
    capsys.readouterr()
    assert main(["evaluate", str(path), "--format", "csv"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(cells["len"]) == result["metrics"]["len"]
    assert float(cells["len_ci95"]) == result["metrics"]["len_ci95"]


def test_training_makes_the_agent_that_is_missing(worlds, tmp_path: Path) -> None:
    spec = Run("ppo", max_len=6, episodes=12, sessions=20)
    path = run(spec, tmp_path, progress=False)
    assert not agent_file(path).exists()
    with pytest.raises(CheckpointError, match=r"only `kuaisim train` keeps agents"):
        load_player(path)
    metrics = json.loads(path.read_text())["metrics"]
    assert run(spec, tmp_path, progress=False, keep=True) == path
    assert json.loads(path.read_text())["metrics"] == metrics
    written = agent_file(path).stat().st_mtime_ns
    run(spec, tmp_path, progress=False, keep=True)
    assert agent_file(path).stat().st_mtime_ns == written
    assert not [*tmp_path.glob("*.before*")]


def test_a_result_that_training_again_does_not_give_is_kept(worlds, tmp_path, caplog) -> None:
    spec = Run("random", max_len=6, sessions=20)
    path = run(spec, tmp_path, progress=False)
    result = json.loads(path.read_text())
    for number, length in ((1, 1.5), (2, 2.5)):
        of_other_code = result | {"metrics": result["metrics"] | {"len": length}}
        path.write_text(json.dumps(of_other_code))
        agent_file(path).unlink(missing_ok=True)
        run(spec, tmp_path, progress=False, keep=True)
        assert json.loads(path.read_text())["metrics"] == result["metrics"]
        assert agent_file(path).exists()
        before = path.with_suffix(f".json.before{number}")
        assert json.loads(before.read_text()) == of_other_code
        assert before.name in caplog.text
    assert len([*tmp_path.glob("*.before*")]) == 2


def test_an_agent_beside_an_earlier_result_is_of_that_result(worlds, tmp_path, monkeypatch) -> None:
    spec = Run("random", max_len=6, sessions=20)
    path = run(spec, tmp_path, progress=False)
    with monkeypatch.context() as interrupted:
        interrupted.setattr("benchmarks.runs.run.judged", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(spec, tmp_path, progress=False, keep=True)
    assert path.exists() and not agent_file(path).exists()


def test_a_damaged_agent_or_another_one_is_refused(worlds, small, tmp_path: Path) -> None:
    path = trained(tmp_path, "ppo")
    model = untrained(Run("hrl", max_len=6), small, None)
    with pytest.raises(CheckpointError, match="The weights are not of this HierarchicalPPO"):
        read_kept(path).restore(model)
    content = bytearray(agent_file(path).read_bytes())
    content[len(content) // 2] ^= 255
    agent_file(path).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as an agent"):
        load_player(path)


def test_the_result_of_another_agent_beside_a_kept_one_is_refused(worlds, tmp_path: Path) -> None:
    path = trained(tmp_path, "ppo")
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"agent": "a2c"}))
    with pytest.raises(CheckpointError, match=r"is of a2c, but .*\.agent beside it of ppo"):
        load_player(path)


def test_settings_of_another_version_are_refused(worlds, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    keep(path, {"agent": "ppo", "unknown": 1}, None, None)
    with pytest.raises(CheckpointError, match=r"run\.agent is not of this version: .*unknown"):
        load_player(path)


@pytest.mark.parametrize("command", ["evaluate", "play"])
def test_help_says_whom_to_trust(command: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "give runs of those whom you trust" in " ".join(capsys.readouterr().out.split())


DISCRETE = """
import numpy as np
class Next:
    name, env_options = "next", {"action_type": "discrete"}
    def __init__(self, batch):
        self.batch = batch
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return self.batch.core.state.steps * 7 % 240, None
"""


@pytest.mark.parametrize(
    ("agent", "env"),
    [
        ("quality+quota", "KuaiRec-Fair-v0"),
        ("mylab.following:Next", "KuaiRec-Fair-v0"),
        ("random", "KuaiRand-Retention-v0"),  # several sessions of a user
        ("benchmarks.examples.own_agent:HalfAndHalf", "KuaiRand-Fair-v0"),
    ],
)
def test_what_is_shown_was_played(agent, env, worlds, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "following.py").write_text(DISCRETE)
    monkeypatch.syspath_prepend(str(tmp_path))
    trained(tmp_path / "out", agent, "--env", env)
    (path,) = (tmp_path / "out").glob("*.json")
    player = load_player(path, sessions=3)
    sessions = player.play().sessions
    texts = [list(each) for each in replays(player)]
    assert len(texts) == 3
    steps = sessions.length.reshape(3, -1)
    assert [len(each) for each in texts] == steps.sum(axis=1).tolist()
    rewards = [
        float(re.search(r"mean reward (-?\d\.\d\d)", each[-1])[1])  # of the last session
        for each in texts
    ]
    mean = (sessions.rewards.sum(axis=1) / sessions.length).reshape(3, -1)[:, -1]
    np.testing.assert_allclose(rewards, mean, atol=0.006)
    capsys.readouterr()
    assert main(["play", str(path)]) == 0
    assert capsys.readouterr().out.strip() == texts[0][-1]


def test_pictures_move(worlds, tmp_path: Path, capsys) -> None:
    file = tmp_path / "new" / "play.gif"
    command = ["play", "random", "--max-len", "4", "--sessions", "2", "--out"]
    assert main([*command, str(file), "--fps", "2"]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    with Image.open(file) as pictures:
        shown = pictures.n_frames
        pictures.seek(1)  # behind the end, which comes first and stays
        assert pictures.info["duration"] == 500
    assert main(["play", "random", "--max-len", "4", "--sessions", "2"]) == 0
    assert shown == sum(map(int, re.findall(r"over after (\d+) steps", capsys.readouterr().out)))
    assert main([*command, str(tmp_path / "x.mp4")]) == 2
    assert "ends in .gif" in capsys.readouterr().err


def test_an_agent_that_must_not_learn_first_is_refused(worlds, capsys) -> None:
    for command in ("evaluate", "play"):
        assert main([command, "ppo", "--no-train"]) == 2
        assert "training it is forbidden. Name a release that has it" in capsys.readouterr().err
        assert main([command]) == 2
        assert "Name an agent, such as `random`, or the result file" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="At most 1000 sessions are shown"):
        next(replays(load_like("random", 2000)))


def load_like(agent: str, sessions: int):
    spec = Run(agent, sessions=sessions)
    return Player(spec, AGENTS[agent], spec.load(), None, None)
