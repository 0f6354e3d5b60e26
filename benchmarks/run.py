"""One run: train an agent on the train simulator, evaluate it on the test simulator."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.registry import AGENTS, LEARNERS, hyperparams
from benchmarks.results import (
    Result,
    commit,
    data_block,
    read_result,
    result_path,
    versions,
    write_result,
)
from benchmarks.training import Seconds, TrainingRecord, agent_logger
from dsrm_agents import KuaiVecEnv, TrainingCheckpoint, make_vec_env, resume
from dsrm_agents.baselines.reference import REFERENCES, make_reference
from dsrm_agents.common.evaluation import evaluate
from dsrm_agents.encoders.states import StateEncoder
from kuaisim_gym import ENVIRONMENTS, metrics
from kuaisim_gym.config import check_choice
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import SessionBatch, shared_dataset
from kuaisim_gym.envs.shared import Agent
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions

CHECKPOINTS = 30  # of a run whose sessions are as long as can be; about 20 of most
# A run's session slots are seeded from a range of its own: two seeds share no session, and all
# agents of one seed meet the same users.
SEED_RANGE = 1_000_000
SLOTS = 1000  # evaluation sessions played side by side

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What to run.

    Attributes:
        agent: A name of the registry.
        env: A registered environment id.
        dataset: Folder of real data, or ``None`` for the synthetic world.
        max_len: T.
        seed: Of training; evaluation is seeded apart.
        episodes: Training sessions.
        sessions: Evaluation episodes: sessions, or users who make several.
    """

    agent: str
    env: str = "KuaiRec-Fair-v0"
    dataset: str | None = None
    max_len: int = 30
    seed: int = 11
    episodes: int = 20_000
    sessions: int = 1000

    def __post_init__(self) -> None:
        check_choice("agent", self.agent, AGENTS)
        for name, least in (("episodes", 1), ("sessions", 1), ("seed", 0), ("max_len", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.sessions > SLOTS and self.sessions % SLOTS:
            raise ConfigError(
                f"sessions must be at most {SLOTS} or a multiple of it, got {self.sessions}."
            )


def run(spec: Run, out: Path, progress: bool = True, tensorboard: Path | None = None) -> Path:
    """Trains, evaluates and writes the result; does nothing if the same run's is there already.

    While an agent trains, a checkpoint lies beside the result to be. A run that finds one goes on
    from it, and ends with the result of a run that was never interrupted, training seconds apart.
    Off-policy agents have none and start over.

    Args:
        spec: What to run.
        out: Folder of the result file.
        progress: Whether to show progress bars.
        tensorboard: Folder in which training is logged for TensorBoard, in a folder of the
            result's name; ``None`` for no log.

    Returns:
        The result file.

    Raises:
        ConfigError: ``out`` is a file, or holds the result or the checkpoint of a run with other
            settings; or TensorBoard is not installed.
        CheckpointError: The checkpoint is damaged, or of an agent made otherwise.
    """
    dataset = shared_dataset(ENVIRONMENTS[spec.env]["name"], spec.dataset, 0)
    header: Result = {
        "agent": spec.agent,
        "env": spec.env,
        "max_len": spec.max_len,
        "seed": spec.seed,
        "dataset": data_block(dataset),
    }
    path = result_path(out, header)
    checkpoint = path.with_suffix(".checkpoint")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"The results' folder {out} is a file.")
    if path.exists():
        _check_same_run(path, spec, dataset)
        checkpoint.unlink(missing_ok=True)  # of a run that ended between writing and this
        return path
    log = None if tensorboard is None else tensorboard / path.stem
    sessions, batch, train, evaluation = _play(spec, dataset, progress, checkpoint, log)
    values = batch.summarise(sessions)
    rng, together = np.random.default_rng(spec.seed), len(sessions) // spec.sessions
    intervals = metrics.bootstrap_ci95(sessions, batch.summarise, rng, together=together)
    result = header | {
        "slate_size": sessions.slates.shape[2],
        "train": train,
        "eval": evaluation,
        "metrics": values | {f"{name}_ci95": half for name, half in intervals.items()},
        "versions": versions(),
        "commit": ", ".join(dict.fromkeys([*train.pop("commits", []), commit()])),
    }
    write_result(out, result)
    checkpoint.unlink(missing_ok=True)
    return path


def _check_same_run(path: Path, spec: Run, dataset: Dataset) -> None:
    """Refuses to take another run's result for this one's."""
    result = read_result(path)
    wanted: dict[str, Any] = {"dataset": dataset.fingerprint, "sessions": spec.sessions}
    found = {"dataset": result["dataset"]["fingerprint"], "sessions": result["eval"]["sessions"]}
    if spec.agent in LEARNERS:
        # Training ends with the step in which the last session does; a few more may end with it.
        surplus = result["train"]["episodes"] - spec.episodes
        within = 0 <= surplus <= hyperparams(spec.agent)["n_envs"]
        wanted["episodes"] = spec.episodes
        found["episodes"] = spec.episodes if within else result["train"]["episodes"]
    if wanted != found:
        raise ConfigError(
            f"{path} holds the result of another run: wanted {wanted}, found {found}. "
            "Remove it or choose another folder."
        )


def _play(
    spec: Run, dataset: Dataset, progress: bool, checkpoint: Path, log: Path | None
) -> tuple[Sessions, SessionBatch, dict[str, Any], dict[str, Any]]:
    """Test sessions, their batch, and the ``train`` and ``eval`` blocks of the result."""
    world = (spec.env, dataset, spec.max_len, spec.seed, spec.sessions)
    if spec.agent in REFERENCES:
        env = evaluation_env(*world, {"action_type": "slate"})
        agent: Any = make_reference(spec.agent, env.batch)
        worn: VecEnv = env
        train: dict[str, Any] = {"episodes": 0, "steps": 0, **_taken(Seconds()), "curve": []}
    else:
        learner = LEARNERS[spec.agent]
        began = Seconds.now()
        fitted = learner.fitted(dataset, spec.seed, progress)
        fitting = Seconds.now() - began
        agent, train = train_agent(spec, dataset, fitted, progress, checkpoint=checkpoint, log=log)
        for name, seconds in _taken(fitting).items():
            train[name] += seconds  # once, however often the run was interrupted
        if isinstance(fitted, StateEncoder):
            train["encoder"] = fitted.report
        env = evaluation_env(*world, learner.options)
        worn = learner.play_in(env, fitted, hyperparams(spec.agent))
    sessions, evaluation = play(agent, worn, spec.sessions)
    return sessions, env.batch, train, evaluation


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
) -> tuple[BaseAlgorithm, dict[str, Any]]:
    """Trains a learner behind what was fitted for it, or on the raw state.

    Args:
        spec: What to run; its agent is a learner.
        dataset: The data.
        fitted: What the agent wears: as its :meth:`Learner.fitted` gives it, or for an agent whose
            states can be purified any purifier, or ``None``.
        progress: Whether to show a progress bar.
        users: Positions of the train users to train on, all if ``None``.
        overrides: Hyper-parameters that stand before those of ``hyperparams.yml``.
        checkpoint: File in which progress is kept, and from which it goes on if it is there; for
            on-policy agents alone.
        log: Folder of TensorBoard's files; ``None`` for no log.
        prepare: Called with the agent before it learns.

    Returns:
        The trained agent and the ``train`` block of the result; with a checkpoint also under
        ``"commits"`` the code that ran before.

    Raises:
        ConfigError: The checkpoint is of a run with other settings, or there is no TensorBoard.
        CheckpointError: It is damaged, or of an agent made otherwise.
    """
    learner, options = LEARNERS[spec.agent], hyperparams(spec.agent) | dict(overrides or {})
    record = TrainingRecord(spec.episodes, progress)
    n_envs = options.pop("n_envs")
    worn = {name: options.pop(name) for name in learner.worn}
    given: dict[str, Any] = {"dataset": dataset, "max_len": spec.max_len, **learner.options}
    env = make_vec_env(spec.env, n_envs, "train", users=users, **given)
    outfit = learner.wear(env, fitted, worn, True)
    agent = learner.build(outfit, options, spec.seed)
    if prepare is not None:
        prepare(agent)
    outfit.seed(spec.seed * SEED_RANGE)  # after SB3 has seeded it with the agent's own seed
    rounds = -(-spec.episodes // n_envs)  # in each of which every slot ends a session
    total = rounds * n_envs * env.batch.longest
    callbacks: list[BaseCallback] = [record]
    commits: list[str] = []
    if checkpoint is not None and isinstance(agent, OnPolicyAlgorithm):
        settings = {"episodes": spec.episodes, "versions": versions()}
        if checkpoint.exists():
            commits = _go_on(checkpoint, agent, record, settings)
        now = list(dict.fromkeys([*commits, commit()]))
        callbacks.append(
            TrainingCheckpoint(
                checkpoint,
                max(1, total // CHECKPOINTS),
                lambda: {"settings": settings, "commits": now, "record": record.state()},
            )
        )
    with closing(agent_logger(log)) as logged:
        agent.set_logger(logged)
        left = total - agent.num_timesteps
        agent.learn(left, callbacks, reset_num_timesteps=agent.num_timesteps == 0)
        logged.dump(agent.num_timesteps)  # what was recorded since the last rollout
    return agent, {
        # An offline agent plays none: it replays as many logged decisions as so many have steps.
        "episodes": spec.episodes if learner.offline else record.finished,
        "steps": int(agent.num_timesteps),
        **_taken(record.seconds),
        "curve": record.curve,
    } | ({"commits": commits} if commits else {})


def _taken(seconds: Seconds) -> dict[str, float]:
    """The part of the ``train`` block that says how long it took."""
    return {"seconds": seconds.wall, "processor_seconds": seconds.processor}


def _go_on(
    checkpoint: Path, agent: BaseAlgorithm, record: TrainingRecord, settings: dict[str, Any]
) -> list[str]:
    """Takes up a checkpoint of the same run; the commits of the code that ran before it."""
    kept = resume(checkpoint, agent)
    if kept["settings"] != settings:
        raise ConfigError(
            f"{checkpoint} holds the progress of another run: wanted {settings}, found "
            f"{kept['settings']}. Remove it or choose another folder."
        )
    record.take_up(kept["record"])
    logger.info("Going on from %s, after %d sessions.", checkpoint, record.finished)
    return list(kept["commits"])


def evaluation_env(
    env: str,
    dataset: Dataset,
    max_len: int,
    seed: int,
    sessions: int,
    options: dict[str, str],
    split: str = "test",
    users: NDArray[np.int32] | None = None,
) -> KuaiVecEnv:
    """The evaluation sessions of a seed: the same for all agents, with the options they need."""
    given: dict[str, Any] = {"dataset": dataset, "max_len": max_len, **options}
    slots, first = min(sessions, SLOTS), seed * SEED_RANGE + SEED_RANGE // 2
    return make_vec_env(env, slots, split, first, users=users, **given)


def play(agent: Agent, env: VecEnv, sessions: int) -> tuple[Sessions, dict[str, Any]]:
    """Finished sessions and the ``eval`` block of the result."""
    started = time.perf_counter()
    with torch.no_grad():
        finished = evaluate(agent, env, sessions)
    return finished, {"sessions": sessions, "seconds": time.perf_counter() - started}
