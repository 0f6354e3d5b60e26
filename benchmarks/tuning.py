"""The ``tune`` command: searches an agent's hyper-parameters on the train simulator, with Optuna.

A fifth of the train users is held out. A trial trains on the others and is worth the mean length
of the sessions that it then plays, without exploring, with the users held out. A purifier is fitted
once, on the logs of all train users. The first trial has the agent's present settings, so that the
best is never worse than they are.

Trials are kept in Optuna's journal beside the result file. What is drawn depends on the seed and on
the finished trials alone: a study that was killed goes on as if it had not been.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from tqdm.auto import tqdm

from benchmarks.agents import find_agent
from benchmarks.commands import count
from benchmarks.formatting import markdown_table
from benchmarks.results import Result, data_block, read_result, task_of
from benchmarks.run import Run, add_run_arguments, evaluation_env, play, spec_of, train_agent
from benchmarks.study import Study, check_same, run_study, save
from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data import Dataset
from kuaisim_gym.errors import ConfigError

STUDY = "tune"
ENVS = tuple(env for env in ENVIRONMENTS if task_of(env) == "session")
HELD_OUT_SHARE = 0.2  # of the train users
SHOWN = 10  # trials in the table
VERSIONS = ("numpy", "torch", "gymnasium", "stable-baselines3", "optuna")


@dataclass(frozen=True)
class TuneStudy(Study):
    """A search of an agent's hyper-parameters; its result grows with every trial.

    Attributes:
        spec: The agent and its world; ``episodes`` and ``sessions`` are those of one trial, the
            seed is that of the held-out users, of training and of the search.
        trials: Finished trials in all, those of earlier searches included.
        progress: Whether to show a progress bar.
    """

    packages = VERSIONS

    spec: Run
    trials: int
    progress: bool = True

    def __post_init__(self) -> None:
        if not find_agent(self.spec.agent).space:
            raise ConfigError(
                f"agent must be one of those with settings to search, got {self.spec.agent!r}: "
                "mark some as log_uniform, uniform or one_of."
            )
        check_choice("env", self.spec.env, ENVS)
        check_whole("trials", self.trials, 1)

    @property
    def name(self) -> str:
        return f"{STUDY}_{find_agent(self.spec.agent).name}_{self.spec.world}"

    def header(self) -> Result:
        spec, agent = self.spec, find_agent(self.spec.agent)
        space, present = agent.space, agent.hyperparams
        return {
            "study": STUDY,
            "agent": agent.name,
            "env": spec.env,
            "max_len": spec.max_len,
            "dataset": data_block(spec.load()),
            "settings": {"episodes": spec.episodes, "sessions": spec.sessions, "seed": spec.seed},
            "space": {name: _describe(distribution) for name, distribution in space.items()},
            "fixed": {name: value for name, value in present.items() if name not in space},
        }

    def is_complete(self, path: Path, result: Result) -> bool:
        return super().is_complete(path, result) and len(result["trials"]) >= self.trials

    def make(self, path: Path) -> Result:
        spec, dataset = self.spec, self.spec.load()
        study = _open(path.with_suffix(".journal"), self.header())
        written = len(read_result(path)["trials"]) if path.exists() else 0
        if len(_finished(study)) < written:
            raise ConfigError(
                f"{path} holds {written} trials, of which its journal {path.stem}.journal lacks "
                f"some: put the journal back, ask for at most {written} trials, or choose another "
                "folder."
            )
        fitted = find_agent(spec.agent).prepare(dataset, spec.seed, self.progress)
        users = split_users(dataset, spec.seed)
        with tqdm(total=self.trials, desc="Trials", unit="trial", disable=not self.progress) as bar:
            while len(finished := _finished(study)) < self.trials:
                if finished:
                    save(self, path, _trials(finished))
                bar.update(len(finished) - bar.n)
                trial = _ask(study, spec)
                study.tell(trial, session_length(spec, dataset, fitted, users, _params(trial)))
            bar.update(len(finished) - bar.n)
        return _trials(finished)

    @staticmethod
    def markdown(results: list[Result]) -> str:
        """Each search's trials, best first, and its best settings."""
        return "\n\n".join(_table(result) for result in results)


def tune(spec: Run, trials: int, out: Path, progress: bool = True) -> Path:
    """Searches until the study has so many trials, and returns the result file.

    Raises:
        ConfigError: The agent has no space, all sessions of the environment have one length,
            ``out`` is a file, or it holds a study of other data or settings.
    """
    return run_study(TuneStudy(spec, trials, progress), out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("agent", metavar="AGENT", help="see run")
    parser.add_argument("--max-len", type=int, help="default: 30")
    parser.add_argument(
        "--trials", type=count, default=20, help="earlier ones included; default: 20"
    )
    parser.add_argument("--seed", type=int, default=0)
    add_run_arguments(parser)


def main(options: argparse.Namespace) -> None:
    """Searches, and prints the trials and the name of the result file."""
    torch.set_num_threads(options.threads)
    path = tune(spec_of(options), options.trials, options.out)
    print(TuneStudy.markdown([read_result(path)]), path, sep="\n\n")


def split_users(dataset: Dataset, seed: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Positions of the train users to train on, and of those held out: int32, no user in both."""
    users = np.random.default_rng(seed).permutation(dataset.train_users)
    held_out = max(1, round(HELD_OUT_SHARE * len(users)))
    return users[held_out:], users[:held_out]


def session_length(
    spec: Run,
    dataset: Dataset,
    fitted: Any,
    users: tuple[NDArray[np.int32], NDArray[np.int32]],
    params: Mapping[str, Any],
) -> float:
    """The worth of hyper-parameters.

    Args:
        spec: See :class:`TuneStudy`.
        dataset: The data.
        fitted: What the agent is wrapped with, see :meth:`~benchmarks.agents.Agent.prepare`.
        users: Positions of the users to train on, and of those to play with afterwards.
        params: Hyper-parameters that stand before the agent's own.

    Returns:
        The mean length of the sessions played, in steps.
    """
    training, held_out = users
    learner = find_agent(spec.agent)
    agent, _ = train_agent(spec, dataset, fitted, False, users=training, overrides=params)
    world = (spec.env, dataset, spec.max_len, spec.seed, spec.sessions, learner.env_options)
    env = evaluation_env(*world, split="train", users=held_out)
    wrapped = learner.wrap(env, fitted, learner.hyperparams | dict(params), False)
    sessions, _ = play(agent, wrapped, spec.sessions)
    return float(sessions.length.mean())


def _table(result: Result) -> str:
    names = tuple(result["space"])
    best = sorted(result["trials"], key=lambda trial: -trial["value"])[:SHOWN]
    rows = []
    for trial in best:
        params = (f"{trial['params'][name]:.4g}" for name in names)
        length, seconds = f"{trial['value']:.3f}", f"{trial['seconds']:.0f}"
        rows.append([str(trial["number"]), *params, length, seconds])
    settings = result["fixed"] | result["best"]["params"]
    return "\n".join([
        markdown_table(["trial", *names, "Len", "s"], rows, "r"),
        "",
        f"{len(best)} of {len(result['trials'])} trials; trial 0 has the settings that "
        "the agent had. Len: of held-out train users, on the train simulator.",
        "",
        "```json",
        json.dumps({result["agent"]: settings}, indent=2),
        "```",
    ])  # fmt: skip


def _describe(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {', '.join(map(str, distribution.choices))}"
    assert isinstance(distribution, FloatDistribution)
    kind = "log-uniform" if distribution.log else "uniform"
    return f"{distribution.low:g} to {distribution.high:g}, {kind}"


def _open(journal: Path, header: Result) -> optuna.Study:
    """The study of a journal; its unfinished trials count as failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(
        study_name=journal.stem, storage=storage, direction="maximize", load_if_exists=True
    )
    existing = study.user_attrs.get("header")
    if existing is None:
        study.set_user_attr("header", header)
    else:
        check_same(journal, header, existing)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


def _ask(study: optuna.Study, spec: Run) -> optuna.Trial:
    """Begins the next trial, the first with the present settings."""
    agent, finished = find_agent(spec.agent), len(_finished(study))
    space = agent.space
    if not finished and not study.get_trials(states=(TrialState.WAITING,)):
        present = {name: agent.hyperparams[name] for name in space}
        # A setting may lie outside the space, as no entropy bonus does: it is played as it is, and
        # the sampler learns of the nearest inside.
        nearest = {name: _nearest(space[name], value) for name, value in present.items()}
        study.enqueue_trial(nearest, user_attrs={"params": present})
    # A generator a trial: a study that goes on does not know where an older one was.
    seed = int(np.random.SeedSequence([spec.seed, finished]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    return study.ask(space)


def _nearest(distribution: BaseDistribution, value: float) -> float:
    if isinstance(distribution, CategoricalDistribution):
        choices: Any = distribution.choices  # numbers, as everything in the spaces is
        return float(min(choices, key=lambda choice: abs(choice - value)))
    assert isinstance(distribution, FloatDistribution)
    return min(max(value, distribution.low), distribution.high)


def _params(trial: optuna.Trial | FrozenTrial) -> dict[str, Any]:
    """Settings that a trial was played with: drawn ones, or the present ones."""
    params: dict[str, Any] = trial.user_attrs.get("params", trial.params)
    return params


def _trials(finished: list[FrozenTrial]) -> Result:
    trials: list[dict[str, Any]] = []
    for number, trial in enumerate(finished):  # not Optuna's number, which counts the killed ones
        assert trial.duration is not None
        seconds = trial.duration.total_seconds()
        trials.append({
            "number": number, "params": _params(trial), "value": trial.value, "seconds": seconds,
        })  # fmt: skip
    best = max(trials, key=lambda trial: trial["value"])  # the first of equals
    return {"trials": trials, "best": {"params": best["params"], "value": best["value"]}}
