"""Players: agents that are ready to play, such as one that a run has kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from kuaisim_gym.data import Dataset
from kuaisim_gym.errors import CheckpointError

from ..agents import Agent, find_agent
from ..studies.results import read_result
from .judging import Played, play
from .kept import agent_file, fitted_file, read_kept
from .settings import Run
from .training import untrained


class Player(NamedTuple):
    """An agent that is ready to play.

    Attributes:
        spec: Settings of the sessions.
        agent: The row of the agent.
        dataset: The data.
        model: The trained model; ``None`` for an agent with a rule.
        fitted: A purifier or encoder that the environment is wrapped with, if any.
    """

    spec: Run
    agent: Agent
    dataset: Dataset
    model: BaseAlgorithm | None
    fitted: Any

    def play(self, split: str = "test") -> Played:
        """Plays the sessions of a split."""
        torch.set_num_threads(1)  # as runs do by default: other orders of sums round otherwise
        model, fitted = self.model, self.fitted
        return play(self.agent, self.spec, self.dataset, model, fitted, split=split)


def load_player(result: Path, **changes: Any) -> Player:
    """The agent that a run has kept.

    Args:
        result: The run's result file.
        **changes: Settings that differ from the run's.

    Raises:
        ConfigError: A setting is none.
        CheckpointError: The run has not kept its agent, its files are damaged, or the world is
            another than the weights are for.
        DataFormatError: The result file is none.
    """
    content = read_kept(result)
    try:
        spec = Run(**content.settings | changes)
    except TypeError as error:
        raise CheckpointError(
            f"{agent_file(result)} is not of this version: {error}. Train the agent again."
        ) from error
    agent, dataset = find_agent(spec.agent), spec.load()
    if result.is_file() and (made := read_result(result).get("agent")) != agent.name:
        raise CheckpointError(
            f"{result} is of {made}, but {agent_file(result)} beside it of {agent.name}: put its "
            "own back, or train the agent again in a new folder."
        )
    fitted = _restored(agent, fitted_file(result))
    if agent.rule is not None:
        return Player(spec, agent, dataset, None, None)
    model = untrained(spec, dataset, fitted, training=False)
    content.restore(model)
    return Player(spec, agent, dataset, model, fitted)


def _restored(agent: Agent, file: Path) -> Any:
    """The fitted object of an agent that has one.

    Raises:
        CheckpointError: Its file is missing, or there is one of an agent without.
    """
    if not agent.keeps_fitted and file.exists():
        raise CheckpointError(
            f"{file} is there, but {agent.name} plays with nothing that is fitted before its "
            "training: the files are of different agents. Train it again in a new folder."
        )
    if agent.restore is None or not agent.keeps_fitted:
        return None
    if not file.is_file():
        raise CheckpointError(
            f"{file} is not there, but {agent.name} plays with the purifier or encoder in it. Put "
            "it back, or train the agent again in a new folder."
        )
    return agent.restore(file)
