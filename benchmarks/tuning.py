"""Searches an agent's hyper-parameters, on the train simulator alone, with Optuna.

A fifth of the train users is held out. A trial trains on the others and is worth the mean length
of the sessions that it then plays, without exploring, with the users held out. A purifier is fitted
once, on the logs of all train users. The first trial has the agent's present settings, so that the
best is never worse than they are.

Trials are kept in Optuna's journal beside the result file. What is drawn depends on the seed and on
the finished trials alone: a study that was killed goes on as if it had not been.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from tqdm.auto import tqdm

from benchmarks.agents import find_agent
from benchmarks.results import (
    Result,
    already_there,
    check_same,
    commit,
    data_block,
    read_result,
    task_of,
    versions,
)
from benchmarks.run import Run, evaluation_env, play, train_agent
from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.cache import write_atomically
from kuaisim_gym.envs.assembly import shared_dataset
from kuaisim_gym.errors import ConfigError

STUDY = "tune"
ENVS = tuple(env for env in ENVIRONMENTS if task_of(env) == "session")
HELD_OUT_SHARE = 0.2  # of the train users
SHOWN = 10  # trials in the table
VERSIONS = ("numpy", "torch", "gymnasium", "stable-baselines3", "optuna")


def tune(spec: Run, trials: int, out: Path, progress: bool = True) -> Path:
    """Searches until the study has so many trials; those that are there already count.

    Args:
        spec: The agent and its world; ``episodes`` and ``sessions`` are those of one trial, the
            seed is that of the held-out users, of training and of the search.
        trials: Finished trials in all.
        out: Folder of the result file and of the journal.
        progress: Whether to show a progress bar.

    Returns:
        The result file, which every trial brings up to date.

    Raises:
        ConfigError: The agent has no space, all sessions of the environment have one length,
            ``out`` is a file, or it holds a study of other data or settings.
    """
    agent = find_agent(spec.agent)
    if not agent.space:
        raise ConfigError(
            f"agent must be one of those with settings to search, got {spec.agent!r}: mark some as "
            "log_uniform, uniform or one_of."
        )
    check_choice("env", spec.env, ENVS)
    check_whole("trials", trials, 1)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"The results' folder {out} is a file.")
    dataset = shared_dataset(ENVIRONMENTS[spec.env]["name"], spec.dataset, 0)
    header = _header(spec, dataset)
    path = study_path(out, header)
    known = len(read_result(path)["trials"]) if already_there(path, header) else 0
    if known >= trials:
        return path
    study = _open(path.with_suffix(".journal"), header)
    if len(_finished(study)) < known:
        raise ConfigError(
            f"{path} holds {known} trials, of which its journal {path.stem}.journal lacks some: "
            f"put the journal back, ask for at most {known} trials, or choose another folder."
        )
    fitted = agent.prepare(dataset, spec.seed, progress)
    users = split_users(dataset, spec.seed)
    with tqdm(total=trials, desc="Trials", unit="trial", disable=not progress) as bar:
        while True:
            finished = _finished(study)
            if finished:
                _write(path, header, finished)
            bar.update(len(finished) - bar.n)
            if len(finished) >= trials:
                return path
            trial = _ask(study, spec)
            study.tell(trial, session_length(spec, dataset, fitted, users, _params(trial)))


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
    """What hyper-parameters are worth.

    Args:
        spec: See :func:`tune`.
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


def study_path(out: Path, header: Result) -> Path:
    """Where a study's result lies: one file an agent, environment, kind of data and length."""
    world = "synthetic" if header["dataset"]["synthetic"] else "real"
    name = f"{STUDY}_{header['agent']}_{header['env']}_{world}_T{header['max_len']}"
    return out / f"{name}.json"


def markdown(result: Result) -> str:
    """A study's trials, best first, and the best settings as hyper-parameters."""
    names = tuple(result["space"])
    best = sorted(result["trials"], key=lambda trial: -trial["value"])[:SHOWN]
    rows = [("trial", *names, "Len", "s"), ("--:",) * (len(names) + 3)]
    for trial in best:
        values = (f"{trial['params'][name]:.4g}" for name in names)
        rows.append((str(trial["number"]), *values, f"{trial['value']:.3f}",
                     f"{trial['seconds']:.0f}"))  # fmt: skip
    settings = result["fixed"] | result["best"]["params"]
    return "\n".join([
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"{len(best)} of {len(result['trials'])} trials; trial 0 has the settings that "
        "the agent had. Len: of held-out train users, on the train simulator.",
        "",
        "```json",
        json.dumps({result["agent"]: settings}, indent=2),
        "```",
    ])  # fmt: skip


def _header(spec: Run, dataset: Dataset) -> Result:
    """The part of the result that is known beforehand and tells the study from all others."""
    agent = find_agent(spec.agent)
    return {
        "study": STUDY,
        "agent": agent.name,
        "env": spec.env,
        "max_len": spec.max_len,
        "dataset": data_block(dataset),
        "settings": {"episodes": spec.episodes, "sessions": spec.sessions, "seed": spec.seed},
        "space": {name: _describe(distribution) for name, distribution in agent.space.items()},
        "fixed": {
            name: value for name, value in agent.hyperparams.items() if name not in agent.space
        },
    }


def _describe(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {', '.join(map(str, distribution.choices))}"
    assert isinstance(distribution, FloatDistribution)
    kind = "log-uniform" if distribution.log else "uniform"
    return f"{distribution.low:g} to {distribution.high:g}, {kind}"


def _open(journal: Path, header: Result) -> optuna.Study:
    """The study that a journal keeps; what it left unfinished counts as failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(
        study_name=journal.stem, storage=storage, direction="maximize", load_if_exists=True
    )
    there = study.user_attrs.get("header")
    if there is None:
        study.set_user_attr("header", header)
    else:
        check_same(journal, header, there)
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
        # the sampler is told the nearest that it knows.
        known = {name: _nearest(space[name], value) for name, value in present.items()}
        study.enqueue_trial(known, user_attrs={"params": present})
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
    """What a trial was played with: what was drawn, or the present settings."""
    params: dict[str, Any] = trial.user_attrs.get("params", trial.params)
    return params


def _write(path: Path, header: Result, finished: list[FrozenTrial]) -> None:
    trials: list[dict[str, Any]] = []
    for number, trial in enumerate(finished):  # not Optuna's number, which counts the killed ones
        assert trial.duration is not None
        seconds = trial.duration.total_seconds()
        one = {"number": number, "params": _params(trial), "value": trial.value, "seconds": seconds}
        trials.append(one)
    best = max(trials, key=lambda trial: trial["value"])  # the first of equals
    result = header | {
        "trials": trials,
        "best": {"params": best["params"], "value": best["value"]},
        "versions": versions(VERSIONS),
        "commit": commit(),
    }
    write_atomically(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
