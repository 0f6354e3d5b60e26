"""The ``run`` command: train an agent on the train simulator, evaluate it on the test simulator."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.agents import AGENTS, find_agent
from benchmarks.commands import add_dataset, count
from benchmarks.results import Result, commit, data_block, task_of, versions
from benchmarks.study import Study, run_study
from benchmarks.tables import markdown
from benchmarks.training import Seconds, TrainingRecord, agent_logger
from dsrm_agents import KuaiVecEnv, TrainingCheckpoint, make_vec_env, resume
from dsrm_agents.common.evaluation import evaluate
from kuaisim_gym import ENVIRONMENTS, metrics
from kuaisim_gym.config import SessionConfig
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import shared_dataset
from kuaisim_gym.envs.shared import Agent
from kuaisim_gym.envs.tasks import TASKS
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions
from kuaisim_gym.simulator.catalogue import Catalogue

CHECKPOINTS = 30  # of a run whose sessions are as long as can be; about 20 of most
# A run's session slots are seeded from a range of its own: two seeds share no session, and all
# agents of one seed meet the same users.
SEED_RANGE = 1_000_000
SLOTS = 1000  # evaluation sessions played side by side

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Settings of a run.

    Attributes:
        agent: Name of an agent of the benchmark, or ``module:attribute`` of another.
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
        find_agent(self.agent)
        for name, least in (("episodes", 1), ("sessions", 1), ("seed", 0), ("max_len", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.sessions > SLOTS and self.sessions % SLOTS:
            raise ConfigError(
                f"sessions must be at most {SLOTS} or a multiple of it, got {self.sessions}."
            )

    def load(self) -> Dataset:
        """The data, one object for all runs in this process."""
        return shared_dataset(ENVIRONMENTS[self.env]["name"], self.dataset, 0)

    @property
    def world(self) -> str:
        """Environment, kind of data and length, for names of files."""
        return f"{self.env}_{'real' if self.dataset else 'synthetic'}_T{self.max_len}"


@dataclass(frozen=True)
class RunStudy(Study):
    """A run and its result file.

    While an agent trains, a checkpoint lies beside the result to be. A run goes on from it, and
    ends with the result of a run that was never interrupted, training seconds apart. Off-policy
    agents have none and start over.

    Attributes:
        spec: Settings of the run.
        progress: Whether to show progress bars.
        tensorboard: Folder in which training is logged for TensorBoard, in a folder of the
            result's name; ``None`` for no log.
    """

    spec: Run
    progress: bool = True
    tensorboard: Path | None = None

    markdown = staticmethod(markdown)

    @property
    def name(self) -> str:
        return f"{find_agent(self.spec.agent).name}_{self.spec.world}_seed{self.spec.seed}"

    def header(self) -> Result:
        return {
            "agent": find_agent(self.spec.agent).name,
            "env": self.spec.env,
            "max_len": self.spec.max_len,
            "seed": self.spec.seed,
            "dataset": data_block(self.spec.load()),
        }

    def is_complete(self, path: Path, result: Result) -> bool:
        spec = self.spec
        expected: dict[str, Any] = {
            "dataset": spec.load().fingerprint,
            "sessions": spec.sessions,
        }
        actual = {
            "dataset": result["dataset"]["fingerprint"],
            "sessions": result["eval"]["sessions"],
        }
        agent = find_agent(spec.agent)
        if agent.rule is None:
            # Training ends with the step in which the last session does; a few may end with it.
            surplus = result["train"]["episodes"] - spec.episodes
            within = 0 <= surplus <= agent.hyperparams["n_envs"]
            expected["episodes"] = spec.episodes
            actual["episodes"] = spec.episodes if within else result["train"]["episodes"]
        if expected != actual:
            raise ConfigError(
                f"{path} holds the result of another run: wanted {expected}, found {actual}. "
                "Remove it or choose another folder."
            )
        return True

    def make(self, path: Path) -> Result:
        spec, checkpoint = self.spec, path.with_suffix(".checkpoint")
        log = None if self.tensorboard is None else self.tensorboard / self.name
        sessions, catalogue, train, evaluation = _play(
            spec, spec.load(), self.progress, checkpoint, log
        )
        commits = train.pop("commits", [])
        measure = partial(summarise, task_of(spec.env), catalogue=catalogue)
        values = measure(sessions)
        rng, together = np.random.default_rng(spec.seed), len(sessions) // spec.sessions
        intervals = metrics.bootstrap_ci95(sessions, measure, rng, together=together)
        return {
            "slate_size": sessions.slates.shape[2],
            "train": train,
            "eval": evaluation,
            "metrics": values | {f"{name}_ci95": half for name, half in intervals.items()},
            "commits": commits,
        }


def run(spec: Run, out: Path, progress: bool = True, tensorboard: Path | None = None) -> Path:
    """Makes one run, if its result is missing, and returns the result file.

    Raises:
        ConfigError: ``out`` is a file, or holds the result or the checkpoint of a run with other
            settings; or TensorBoard is not installed.
        CheckpointError: The checkpoint is damaged, or of an agent made otherwise.
    """
    return run_study(RunStudy(spec, progress, tensorboard), out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--agent", required=True, help=f"{', '.join(AGENTS)}, or mypackage.my:AGENT of your own"
    )
    parser.add_argument("--max-len", type=int, help="default: 30, or the task's own")
    parser.add_argument("--seed", type=int, default=Run.seed)
    add_run_arguments(parser)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that runs, suites and searches share."""
    parser.add_argument("--env", choices=tuple(ENVIRONMENTS), help=f"default: {Run.env}")
    add_dataset(parser)
    parser.add_argument("--episodes", type=int, default=Run.episodes, help="training sessions")
    parser.add_argument("--sessions", type=int, default=Run.sessions, help="evaluation sessions")
    parser.add_argument("--threads", type=count, default=1, help="torch threads a process")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result files")
    parser.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="log training for TensorBoard there"
    )


def main(options: argparse.Namespace) -> None:
    """Makes the run and prints the name of its file."""
    torch.set_num_threads(options.threads)
    print(run(spec_of(options), options.out, tensorboard=options.tensorboard))


def spec_of(options: argparse.Namespace, **changes: Any) -> Run:
    """The run that the options describe, or one that differs in some settings."""
    names = ("agent", "env", "dataset", "max_len", "seed", "episodes", "sessions")
    settings: dict[str, Any] = {name: getattr(options, name, None) for name in names} | changes
    settings["env"] = settings["env"] or Run.env
    if settings["max_len"] is None:
        settings["max_len"] = usual_max_len(settings["env"])
    return Run(**settings)


def usual_max_len(env: str) -> int:
    """The session length of an environment whose user names none."""
    usual: int = TASKS[task_of(env)].defaults.get("max_len", SessionConfig.max_len)
    return usual


def summarise(task: str, sessions: Sessions, catalogue: Catalogue) -> dict[str, float]:
    """What sessions are measured by: the metrics of all tasks, and those of their own."""
    values = metrics.summarise(sessions, catalogue.popular)
    if task == "request":
        vectors = catalogue.item_embedding
        values |= metrics.summarise_requests(sessions, catalogue.popular, vectors)
    elif task == "retention":
        values |= metrics.summarise_retention(sessions)
    return values


def _play(
    spec: Run, dataset: Dataset, progress: bool, checkpoint: Path, log: Path | None
) -> tuple[Sessions, Catalogue, dict[str, Any], dict[str, Any]]:
    """Test sessions, the catalogue, and the ``train`` and ``eval`` blocks of the result."""
    agent, fitted, model = find_agent(spec.agent), None, None
    train: dict[str, Any] = {"episodes": 0, "steps": 0, **Seconds().block(), "curve": []}
    if agent.rule is None:
        began = Seconds.now()
        fitted = agent.prepare(dataset, spec.seed, progress)
        fitting = Seconds.now() - began
        model, train = train_agent(spec, dataset, fitted, progress, checkpoint=checkpoint, log=log)
        for name, seconds in fitting.block().items():
            train[name] += seconds  # once, however often the run was interrupted
        if agent.report is not None:
            train[agent.report] = fitted.report
    world = (spec.env, dataset, spec.max_len, spec.seed, spec.sessions)
    env = evaluation_env(*world, agent.env_options)
    policy: Any = model if agent.rule is None else agent.rule(env.batch)
    wrapped = agent.wrap(env, fitted, agent.hyperparams, False)
    sessions, evaluation = play(policy, wrapped, spec.sessions)
    return sessions, env.catalogue, train, evaluation


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
    """Trains an agent behind what was fitted for it, or on the raw state.

    Args:
        spec: Settings of the run; its agent is one that is trained.
        dataset: The data.
        fitted: What the agent is wrapped with: see :meth:`~benchmarks.agents.Agent.prepare`; for an
            agent whose states can be purified any purifier, or ``None``.
        progress: Whether to show a progress bar.
        users: Positions of the train users to train on, all if ``None``.
        overrides: Hyper-parameters that stand before the agent's own.
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
    learner = find_agent(spec.agent)
    assert learner.build is not None
    options = learner.hyperparams | dict(overrides or {})
    record = TrainingRecord(spec.episodes, progress)
    n_envs = options.pop("n_envs")
    wrapper_options = {name: options.pop(name) for name in learner.wrapper_options}
    world: dict[str, Any] = {"dataset": dataset, "max_len": spec.max_len, **learner.env_options}
    env = make_vec_env(spec.env, n_envs, "train", users=users, **world)
    wrapped = learner.wrap(env, fitted, wrapper_options, True)
    agent = learner.build(wrapped, options, spec.seed)
    if prepare is not None:
        prepare(agent)
    wrapped.seed(spec.seed * SEED_RANGE)  # after SB3 has seeded it with the agent's own seed
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
        **record.seconds.block(),
        "curve": record.curve,
    } | ({"commits": commits} if commits else {})


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
