"""The ``train`` command: a run trains an agent on the train simulator and judges it on the test's.

kuaisim train ppo KuaiRec-Fair-v0
kuaisim play results/ppo_KuaiRec-Fair-v0_kuairec-synthetic_T30_seed11.json
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dsrm_agents import TrainingCheckpoint, make_vec_env, resume
from dsrm_agents.common.evaluation import evaluate
from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.config import SessionConfig
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.envs.options import usual_slate_size
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions, bootstrap_ci95
from kuaisim_gym.registration import registered

from ..agents import AGENTS, Agent, find_agent
from ..commands import OF_RUN, add_dataset, add_dataset_seed, count
from ..origin import Origin, check_played, env_for, find_origin
from ..reports.tables import markdown
from ..studies.results import Result, commit, task_of, versions, without_nan
from ..studies.study import Study, run_study
from .kept import agent_file, keep
from .training import Seconds, TrainingRecord, agent_logger

CHECKPOINTS = 30  # of a run whose sessions all have full length; most runs write about 20
# Session slots of a run are seeded within its seed's range: two seeds share no session, and all
# agents of one seed meet the same users.
SEED_RANGE = 1_000_000
SLOTS = 1000  # evaluation sessions played in parallel
OUT = Path("results")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Settings of a run.

    Attributes:
        agent: As :func:`~benchmarks.agents.find_agent` takes it.
        env: A registered environment id, or ``module:id`` of another environment.
        dataset: As :func:`~benchmarks.origin.find_origin` takes it; ``None`` for the synthetic
            world of the environment's source.
        dataset_seed: Seed of the synthetic world.
        max_len: T, the longest session.
        seed: Seed of the training; evaluation sessions are seeded from another part of its range.
        episodes: Training sessions.
        sessions: Evaluation episodes: sessions, or users who make several sessions.
        slate_size: Items in a slate; ``None`` for the environment's number.
    """

    agent: str
    env: str = "KuaiRec-Fair-v0"
    dataset: str | None = None
    max_len: int = 30
    seed: int = 11
    episodes: int = 20_000
    sessions: int = 1000
    dataset_seed: int = 0
    slate_size: int | None = None

    def __post_init__(self) -> None:
        find_agent(self.agent)
        check_played(self.origin, self.env)
        for name, least in (("episodes", 1), ("sessions", 1), ("seed", 0), ("max_len", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.sessions > SLOTS and self.sessions % SLOTS:
            raise ConfigError(
                f"sessions must be at most {SLOTS} or a multiple of it, got {self.sessions}."
            )

    def load(self) -> Dataset:
        """The data, one object for all runs in this process."""
        return self.origin.load()

    @property
    def origin(self) -> Origin:
        """Source, files and seed of the data."""
        return find_origin(self.dataset, self.env, self.dataset_seed)

    def header(self) -> Result:
        """The first keys of results."""
        return {
            "agent": find_agent(self.agent).name,
            "env": self.env.removeprefix("kuaisim_gym:"),  # which registers its own in any case
            "max_len": self.max_len,
            "seed": self.seed,
            "dataset": self.origin.block(),
        }

    @property
    def world(self) -> str:
        """Environment, dataset and session length, as in file names."""
        width = "" if self._is_usually_wide else f"_K{self.slate_size}"
        return f"{self.env.rpartition(':')[2]}_{self.origin.label}_T{self.max_len}{width}"

    @property
    def _is_usually_wide(self) -> bool:
        """Tells slates of the size that they have where nobody chooses one."""
        if self.slate_size != SessionConfig.slate_size:
            return self.slate_size is None
        defaults = {**task_of(self.env).defaults, **registered(self.env)}
        usual = defaults.get("slate_size", usual_slate_size(self.load().n_items))
        return bool(self.slate_size == usual)

    @property
    def session_options(self) -> dict[str, int]:
        """Options of the environment that the settings choose."""
        width = {} if self.slate_size is None else {"slate_size": self.slate_size}
        return {"max_len": self.max_len, **width}


def weights_of(env: str) -> dict[str, str]:
    """Option of the actions of agents that do not say what theirs are.

    They are scorers where the environment's own are shares, which came after them: agents and
    results keep their names' meaning.
    """
    own = registered(env).get("action_type", task_of(env).usual_actions)
    return {"action_type": "scorer"} if own == "shares" else {}


@dataclass(frozen=True)
class RunStudy(Study):
    """A run and its result file.

    Training writes a checkpoint next to the result file. An interrupted run continues from it and
    ends with the result of an uninterrupted run, except for the seconds. Off-policy agents write
    no checkpoint and start again.

    Attributes:
        spec: Settings of the run.
        progress: Whether to show progress bars.
        tensorboard: Folder for TensorBoard logs, where the run makes a subfolder named like its
            result; ``None`` for no log.
        keep: Whether to keep the agent beside the result, for the commands ``evaluate`` and
            ``play``.
    """

    spec: Run
    progress: bool = True
    tensorboard: Path | None = None
    keep: bool = False

    markdown = staticmethod(markdown)

    @property
    def name(self) -> str:
        return f"{find_agent(self.spec.agent).name}_{self.spec.world}_seed{self.spec.seed}"

    def header(self) -> Result:
        return self.spec.header()

    def is_complete(self, path: Path, result: Result) -> bool:
        spec, agent = self.spec, find_agent(self.spec.agent)
        digest, sessions = result["dataset"]["fingerprint"], result["eval"]["sessions"]
        expected = {"dataset": spec.load().fingerprint, "sessions": spec.sessions}
        actual = {"dataset": digest, "sessions": sessions}
        if agent.rule is None:
            expected["episodes"], actual["episodes"] = spec.episodes, result["train"]["episodes"]
            # Training ends with the step in which the last session does, and others may end with.
            if 0 <= actual["episodes"] - spec.episodes <= agent.hyperparams["n_envs"]:
                actual["episodes"] = spec.episodes
        if expected != actual:
            raise ConfigError(
                f"{path} holds the result of another run: wanted {expected}, found {actual}. "
                "Remove it or choose another folder."
            )
        return not self.keep or agent_file(path).exists()

    def make(self, path: Path) -> Result:
        spec, agent = self.spec, find_agent(self.spec.agent)
        dataset, fitted, model = spec.load(), None, None
        train: dict[str, Any] = {"episodes": 0, "steps": 0, **Seconds().block(), "curve": []}
        if agent.rule is None:
            started = Seconds.clocks()
            fitted = agent.prepare(dataset, spec.seed, self.progress)
            fitting = Seconds.clocks() - started
            log = None if self.tensorboard is None else self.tensorboard / self.name
            checkpoint = path.with_suffix(".checkpoint")
            model, train = train_agent(
                spec, dataset, fitted, self.progress, checkpoint=checkpoint, log=log
            )
            for name, seconds in fitting.block().items():
                train[name] += seconds  # once, however often the run was interrupted
            if agent.report is not None:
                train[agent.report] = fitted.report
        played = play(agent, spec, dataset, model, fitted)
        if self.keep:
            keep(path, asdict(spec), model, fitted)
        return {
            "slate_size": played.sessions.slates.shape[2],
            "train": train,
            **judged(played, spec),
            "commits": train.pop("commits", []),
        }


def run(
    spec: Run,
    out: Path,
    progress: bool = True,
    tensorboard: Path | None = None,
    keep: bool = False,
) -> Path:
    """Makes one run, if its result is missing, and returns the result file.

    Raises:
        ConfigError: ``out`` is a file, or holds the result or the checkpoint of a run with other
            settings; or TensorBoard is not installed.
        CheckpointError: The checkpoint is damaged, or of another kind of model.
    """
    return run_study(RunStudy(spec, progress, tensorboard, keep), out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_agent_arguments(parser)
    add_session_arguments(parser)
    add_run_arguments(parser)


def add_agent_arguments(parser: argparse.ArgumentParser, kept: bool = False) -> None:
    """Adds agent and environment, by place or by name.

    Args:
        parser: Parser of the command.
        kept: Whether the agent may be one that a run has kept or that was released.
    """
    agents = f"{', '.join(AGENTS)}; or your own, as mypackage.my:AGENT"
    envs = f"{', '.join(ENVIRONMENTS)}; or your own, as mypackage.my:ID"
    metavar = "AGENT"
    if kept:
        agents, metavar = f"result file of a run; or one of {agents}", "RUN"
        envs += "; default: the run's"
        parser.epilog = (
            "The files of a run name the code that plays it, which is imported: give runs of those "
            "whom you trust. A named agent that must be trained is taken from a release, or from "
            "what was fetched or trained before, or else it is trained, which takes minutes."
        )
    for name, place, text in (("agent", metavar, agents), ("env", "ENV", envs)):
        add, default = parser.add_argument, argparse.SUPPRESS
        add(name, nargs="?", metavar=place, default=default, help=text)
        add(f"--{name}", metavar=place, default=default, help=f"the same, in place of {place}")


def add_session_arguments(parser: argparse.ArgumentParser, kept: bool = False) -> None:
    """Adds the options of the sessions of one run.

    Args:
        parser: Parser of the command.
        kept: Whether they change those of a run: what is not given is ``None`` then.
    """
    add, default = parser.add_argument, OF_RUN if kept else "default: the environment's"
    add("--max-len", type=int, metavar="T", help=f"longest session; {default}")
    seed, text = (None, f"of the sessions; {OF_RUN}") if kept else (Run.seed, "of the run")
    add("--seed", type=int, default=seed, metavar="N", help=text)
    add_world_arguments(parser, kept)


def add_world_arguments(parser: argparse.ArgumentParser, kept: bool = False) -> None:
    """Adds the options of the world that all commands with an agent share.

    Args:
        parser: Parser of the command.
        kept: Whether they change those of a run.
    """
    add_dataset(parser, kept)
    add_dataset_seed(parser, kept)
    add, default = parser.add_argument, OF_RUN if kept else "default: usually 10"
    add("--slate-size", type=count, metavar="K", help=f"items in a slate; {default}")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of training that runs, suites and searches share."""
    add = parser.add_argument
    add("--sessions", type=int, default=Run.sessions, metavar="N", help="test sessions a seed")
    add("--episodes", type=int, default=Run.episodes, metavar="N", help="training sessions")
    add("--threads", type=count, default=1, metavar="N", help="torch threads per process")
    add("--out", type=Path, default=OUT, metavar="DIR", help="folder of the result files")
    add("--tensorboard", type=Path, metavar="DIR", help="folder of its logs; default: no log")


def main(options: argparse.Namespace) -> None:
    """Makes the run and prints the name of its file."""
    torch.set_num_threads(options.threads)
    print(run(spec_of(options), options.out, tensorboard=options.tensorboard, keep=True))


def spec_of(options: argparse.Namespace, **changes: Any) -> Run:
    """The run that the options describe, or one that differs in some settings.

    Raises:
        ConfigError: They name no agent, or one or the other is unknown.
    """
    names = [field.name for field in fields(Run)]
    given = {name: value for name, value in vars(options).items() if name in names}
    settings: dict[str, Any] = {"agent": None, "env": None, "max_len": None} | given | changes
    if settings["agent"] is None:
        raise ConfigError(f"An agent is needed, such as `{next(iter(AGENTS))}`; got none.")
    settings["env"] = settings["env"] or env_for(settings["dataset"], Run.env)
    if settings["max_len"] is None:
        env = settings["env"]
        defaults = {**task_of(env).defaults, **registered(env)}
        settings["max_len"] = defaults.get("max_len", SessionConfig.max_len)
    return Run(**settings)


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
    options: dict[str, Any] = {
        "dataset": dataset,
        **weights_of(spec.env),
        **spec.session_options,
        **agent.options_for(fitted),
    }
    env = make_vec_env(spec.env, n_envs, "train", users=users, **options)
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


def first_test_seed(spec: Run) -> int:
    """Seed of the first slot of a run's test sessions; those of the others follow it."""
    return spec.seed * SEED_RANGE + SEED_RANGE // 2


class Played(NamedTuple):
    """Finished evaluation sessions."""

    sessions: Sessions
    batch: SessionBatch
    block: dict[str, Any]  # ``eval`` in a result

    @property
    def metrics(self) -> dict[str, float]:
        """The ``metrics`` block of a result, without intervals."""
        return self.batch.summarise(self.sessions)


def play(
    agent: Agent,
    spec: Run,
    dataset: Dataset,
    model: BaseAlgorithm | None,
    fitted: Any,
    *,
    overrides: Mapping[str, Any] | None = None,
    split: str = "test",
    users: NDArray[np.int32] | None = None,
) -> Played:
    """Plays the evaluation sessions of a seed, which are the same for all agents.

    Args:
        agent: The agent, which may differ from the run's.
        spec: Settings of the run.
        dataset: The data.
        model: The trained model; ``None`` for an agent with a rule.
        fitted: Fitted object that the environment is wrapped with, as for :func:`train_agent`.
        overrides: Hyper-parameters that replace the agent's.
        split: ``"train"`` or ``"test"``.
        users: Positions of the split's users to play with, all if ``None``.
    """
    slots = min(spec.sessions, SLOTS)
    options: dict[str, Any] = {
        "dataset": dataset,
        **weights_of(spec.env),
        **spec.session_options,
        **agent.options_for(fitted),
    }
    env = make_vec_env(spec.env, slots, split, first_test_seed(spec), users=users, **options)
    policy: Any = model if agent.rule is None else agent.rule(env.batch)
    wrapped = agent.wrap(env, fitted, agent.hyperparams | dict(overrides or {}), False)
    started = time.perf_counter()
    with torch.no_grad():
        sessions = evaluate(policy, wrapped, spec.sessions)
    block = {"sessions": spec.sessions, "seconds": time.perf_counter() - started}
    return Played(sessions, env.batch, block)


def judged(played: Played, spec: Run) -> Result:
    """The blocks of a result that say how an agent played, with 95 % intervals over sessions."""
    sessions, batch = played.sessions, played.batch
    rng, together = np.random.default_rng(spec.seed), len(sessions) // spec.sessions
    intervals = bootstrap_ci95(sessions, batch.summarise, rng, together=together)
    half_widths = {f"{name}_ci95": half_width for name, half_width in intervals.items()}
    return {
        "eval": played.block,
        "metrics": played.metrics | half_widths,
        "exposure": without_nan(batch.audit(sessions).summarise()),
        "users": without_nan(batch.summarise_users(sessions)),
    }
