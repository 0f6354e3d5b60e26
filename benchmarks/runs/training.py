"""Training of an agent, which goes on from a checkpoint where there is one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dsrm_agents import TrainingCheckpoint, make_vec_env, resume
from kuaisim_gym.data import Dataset
from kuaisim_gym.errors import ConfigError

from ..agents import find_agent
from ..studies.results import commit, versions
from .record import TrainingRecord, agent_logger
from .settings import SEED_RANGE, Run, env_options

CHECKPOINTS = 30  # of a run whose sessions all have full length; most runs write about 20
_LOG = logging.getLogger(__name__)


def train_agent(
    spec: Run,
    dataset: Dataset,
    fitted: Any,
    progress: bool,
    *,
    users: NDArray[np.int32] | None = None,
    overrides: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    log: Path | None = None,
    prepare: Callable[[BaseAlgorithm], object] | None = None,
    watch: BaseCallback | None = None,
) -> tuple[BaseAlgorithm, dict[str, Any]]:
    """Trains the model of an agent.

    Args:
        spec: Settings of the run; its agent must be trainable.
        dataset: The data.
        fitted: Fitted object for the agent's ``wrap``; a purifier may be replaced by any other one,
            or by ``None`` for the raw state.
        progress: Whether to show a progress bar.
        users: Positions of the train users to train on, all if ``None``.
        overrides: Hyper-parameters that replace the agent's.
        checkpoint: File from which training continues if it exists; only for on-policy agents.
        log: Folder for TensorBoard files; ``None`` for no log.
        prepare: Called with the model before it learns.
        watch: Another callback, which may end the training.

    Returns:
        The trained model and the ``train`` block of the result, with ``"commits"``, the code of
        earlier processes, if it continues from a checkpoint.

    Raises:
        ConfigError: The checkpoint is of a run with other settings, or TensorBoard is missing.
        CheckpointError: The checkpoint is damaged, or of another kind of model.
    """
    agent, record = find_agent(spec.agent), TrainingRecord(spec.episodes, progress)
    model = untrained(spec, dataset, fitted, users=users, overrides=overrides)
    if prepare is not None:
        prepare(model)
    env: Any = model.env
    env.seed(spec.seed * SEED_RANGE)  # replaces the seed that SB3 has just set
    rounds = -(-spec.episodes // env.num_envs)  # in a round every slot ends a session
    total = rounds * env.num_envs * env.get_attr("batch")[0].longest
    callbacks: list[BaseCallback] = [record] if watch is None else [record, watch]
    commits: list[str] = []
    if checkpoint is not None and isinstance(model, OnPolicyAlgorithm):
        settings = {"episodes": spec.episodes, "versions": versions()}
        if checkpoint.exists():
            commits = _restore(checkpoint, model, record, settings)
        code = list(dict.fromkeys([*commits, commit()]))

        def progress_state() -> dict[str, Any]:
            return {"settings": settings, "commits": code, "record": record.state()}

        interval = max(1, total // CHECKPOINTS)
        callbacks.append(TrainingCheckpoint(checkpoint, interval, progress_state))
    with closing(agent_logger(log)) as logger:
        model.set_logger(logger)
        steps = total - model.num_timesteps
        model.learn(steps, callbacks, reset_num_timesteps=model.num_timesteps == 0)
        logger.dump(model.num_timesteps)  # values recorded since the last rollout
    return model, {
        # An offline agent plays no sessions; it replays as many logged steps as they would have.
        "episodes": spec.episodes if agent.offline else record.finished,
        "steps": int(model.num_timesteps),
        **record.seconds.block(),
        "curve": record.curve,
    } | ({"commits": commits} if commits else {})


def untrained(
    spec: Run,
    dataset: Dataset,
    fitted: Any,
    *,
    users: NDArray[np.int32] | None = None,
    overrides: Mapping[str, Any] | None = None,
    training: bool = True,
) -> BaseAlgorithm:
    """The model of an agent on its training environment, before it learns.

    Args:
        spec: Settings of the run; its agent must be trainable.
        dataset: The data.
        fitted: As for :func:`train_agent`.
        users: As for :func:`train_agent`.
        overrides: As for :func:`train_agent`.
        training: Whether the environment is wrapped for training, or as for test sessions.
    """
    agent = find_agent(spec.agent)
    assert agent.build is not None
    hyperparams = agent.hyperparams | dict(overrides or {})
    n_envs = hyperparams.pop("n_envs")
    wrapper_options = {name: hyperparams.pop(name) for name in agent.wrapper_options}
    options = env_options(spec, agent, fitted)
    env = make_vec_env(spec.env, n_envs, "train", users=users, dataset=dataset, **options)
    wrapped = agent.wrap(env, fitted, wrapper_options, training)
    return agent.build(wrapped, hyperparams, spec.seed)


def _restore(
    checkpoint: Path, model: BaseAlgorithm, record: TrainingRecord, settings: dict[str, Any]
) -> list[str]:
    """Loads a checkpoint of the same run; returns the commits of the code that ran before it."""
    progress = resume(checkpoint, model)
    if progress["settings"] != settings:
        raise ConfigError(
            f"{checkpoint} holds the progress of another run: wanted {settings}, found "
            f"{progress['settings']}. Remove it or choose another folder."
        )
    record.restore(progress["record"])
    _LOG.info("Continuing from %s, after %d sessions.", checkpoint, record.finished)
    return list(progress["commits"])
