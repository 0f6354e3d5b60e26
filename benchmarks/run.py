"""One run: train an agent on the train simulator, evaluate it on the test simulator."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from tqdm.auto import tqdm

from benchmarks.registry import AGENTS, LEARNERS, hyperparams, task_of
from benchmarks.results import (
    Result,
    commit,
    read_result,
    result_path,
    versions,
    write_result,
)
from dsrm_agents import KuaiVecEnv, Purifier, make_vec_env
from dsrm_agents.baselines.reference import REFERENCES, make_reference
from dsrm_agents.common.evaluation import evaluate
from kuaisim_gym import ENVIRONMENTS, metrics
from kuaisim_gym.config import check_choice
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import shared_dataset
from kuaisim_gym.envs.shared import Agent
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions
from kuaisim_gym.simulator.catalogue import Catalogue

CURVE_POINTS = 50
# A run's session slots are seeded from a range of its own: two seeds share no session, and all
# agents of one seed meet the same users.
SEED_RANGE = 1_000_000
SLOTS = 1000  # evaluation sessions played side by side


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


class TrainingRecord(BaseCallback):
    """Counts finished sessions, keeps the learning curve, and stops at the last session.

    Args:
        episodes: Sessions to finish.
        progress: Whether to show a progress bar.
    """

    def __init__(self, episodes: int, progress: bool) -> None:
        super().__init__()
        self.episodes = episodes
        self.finished: list[dict[str, float]] = []
        self.curve: list[dict[str, float]] = []
        self._bar = tqdm(total=episodes, desc="Training", unit="session", disable=not progress)

    def _on_step(self) -> bool:
        ended = [info["session"] for info in self.locals["infos"] if "session" in info]
        self.finished += ended
        self._bar.update(len(ended))
        every = max(1, self.episodes // CURVE_POINTS)
        while len(self.finished) >= (len(self.curve) + 1) * every:
            start = len(self.curve) * every
            self.curve.append(self._point(start, start + every))
        return len(self.finished) < self.episodes

    def _on_training_end(self) -> None:
        self._bar.close()

    def _point(self, start: int, end: int) -> dict[str, float]:
        block = self.finished[start:end]
        means = {name: float(np.mean([one[name] for one in block])) for name in block[0]}
        return {"episodes": end, "steps": self.num_timesteps, **means}


def run(spec: Run, out: Path, progress: bool = True) -> Path:
    """Trains, evaluates and writes the result; does nothing if the same run's is there already.

    Args:
        spec: What to run.
        out: Folder of the result file.
        progress: Whether to show progress bars.

    Returns:
        The result file.

    Raises:
        ConfigError: ``out`` is a file, or holds the result of a run with other settings.
    """
    dataset = shared_dataset(ENVIRONMENTS[spec.env]["name"], spec.dataset, 0)
    header: Result = {
        "agent": spec.agent,
        "env": spec.env,
        "max_len": spec.max_len,
        "seed": spec.seed,
        "dataset": {
            "name": dataset.name,
            "synthetic": dataset.synthetic,
            "fingerprint": dataset.fingerprint,
        },
    }
    path = result_path(out, header)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"The results' folder {out} is a file.")
    if path.exists():
        _check_same_run(path, spec, dataset)
        return path
    sessions, catalogue, train, evaluation = _play(spec, dataset, progress)
    measure = partial(summarise, task_of(spec.env), catalogue=catalogue)
    values = measure(sessions)
    rng, together = np.random.default_rng(spec.seed), len(sessions) // spec.sessions
    intervals = metrics.bootstrap_ci95(sessions, measure, rng, together=together)
    result = header | {
        "slate_size": sessions.slates.shape[2],
        "train": train,
        "eval": evaluation,
        "metrics": values | {f"{name}_ci95": half for name, half in intervals.items()},
        "versions": versions(),
        "commit": commit(),
    }
    return write_result(out, result)


def summarise(task: str, sessions: Sessions, catalogue: Catalogue) -> dict[str, float]:
    """What sessions are measured by: the metrics of all tasks, and those of their own."""
    values = metrics.summarise(sessions, catalogue.popular)
    if task == "request":
        vectors = catalogue.item_embedding
        values |= metrics.summarise_requests(sessions, catalogue.popular, vectors)
    elif task == "retention":
        values |= metrics.summarise_retention(sessions)
    return values


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
    spec: Run, dataset: Dataset, progress: bool
) -> tuple[Sessions, Catalogue, dict[str, Any], dict[str, Any]]:
    """Test sessions, the catalogue, and the ``train`` and ``eval`` blocks of the result."""
    world = (spec.env, dataset, spec.max_len, spec.seed, spec.sessions)
    if spec.agent in REFERENCES:
        env = evaluation_env(*world, {"action_type": "slate"})
        agent: Any = make_reference(spec.agent, env.batch)
        worn: VecEnv = env
        train: dict[str, Any] = {"episodes": 0, "steps": 0, "seconds": 0.0, "curve": []}
    else:
        learner = LEARNERS[spec.agent]
        started = time.perf_counter()
        purifier = learner.purifier(dataset, spec.seed, progress)
        agent, train = train_agent(spec, dataset, purifier, progress)
        train["seconds"] = time.perf_counter() - started  # the purifier's fit included
        env = evaluation_env(*world, learner.options)
        worn = learner.wear(env, purifier)
    sessions, evaluation = play(agent, worn, spec.sessions)
    return sessions, env.catalogue, train, evaluation


def train_agent(
    spec: Run,
    dataset: Dataset,
    purifier: Purifier | None,
    progress: bool,
    users: NDArray[np.int32] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[BaseAlgorithm, dict[str, Any]]:
    """Trains a learner behind a purifier, or on the raw state.

    Args:
        spec: What to run; its agent is a learner.
        dataset: The data.
        purifier: A fitted one, whatever the registry says of the agent, or ``None``.
        progress: Whether to show a progress bar.
        users: Positions of the train users to train on, all if ``None``.
        overrides: Hyper-parameters that stand before those of ``hyperparams.yml``.

    Returns:
        The trained agent and the ``train`` block of the result.
    """
    learner, options = LEARNERS[spec.agent], hyperparams(spec.agent) | dict(overrides or {})
    started = time.perf_counter()
    n_envs = options.pop("n_envs")
    rewarded = {} if learner.quota is None else {"fairness_coef": options.pop("fairness_coef")}
    given: dict[str, Any] = {"dataset": dataset, "max_len": spec.max_len, **learner.options}
    env = make_vec_env(spec.env, n_envs, "train", users=users, **given)
    agent = learner.build(learner.wear(env, purifier, **rewarded), options, spec.seed)
    env.seed(spec.seed * SEED_RANGE)  # after SB3 has seeded it with the agent's own seed
    agent.set_logger(Logger(folder=None, output_formats=[]))
    record = TrainingRecord(spec.episodes, progress)
    rounds = -(-spec.episodes // n_envs)  # in each of which every slot ends a session
    agent.learn(total_timesteps=rounds * n_envs * env.batch.longest, callback=record)
    return agent, {
        "episodes": len(record.finished),
        "steps": int(agent.num_timesteps),
        "seconds": time.perf_counter() - started,
        "curve": record.curve,
    }


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
