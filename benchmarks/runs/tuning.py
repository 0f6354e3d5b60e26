"""The ``tune`` command: searches an agent's hyper-parameters on the train simulator, with Optuna.

A fifth of the train users is held out. A trial trains on the other users; its value is the mean
length of the sessions that it then plays with the held-out users, without exploration. A purifier
is fitted once, on the logs of all train users. The first trial has the agent's present settings, so
the best trial is never worse than they are.

Trials are saved in Optuna's journal next to the result file, which one process writes, whoever
makes the trials. Draws depend only on the seed and on the trials before: a killed search of one
trial at a time continues as if it had not been interrupted. With several at a time they depend on
the order in which trials end, too.

With ``--prune`` a trial plays the held-out users half-way, too, and ends there if that is worse
than the median of earlier trials at that point, as Optuna's median pruner has it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from tqdm.auto import tqdm

from kuaisim_gym.config import check_whole
from kuaisim_gym.data import Dataset
from kuaisim_gym.disk import disk_errors
from kuaisim_gym.errors import ConfigError, DataFormatError

from ..agents import find_agent
from ..commands import add_jobs, count
from ..formatting import markdown_table, section
from ..studies.backends import backend_of
from ..studies.results import (
    PACKAGES,
    Result,
    check_session_env,
    in_order,
    read_result,
    read_results,
    world_of,
)
from ..studies.study import Backend, InProcess, Study, check_same, run_study, save
from .judging import play
from .settings import Run, add_agent_arguments, add_run_arguments, add_session_arguments, spec_of
from .training import train_agent

STUDY = "tune"
KEYS = frozenset(
    {"study", "agent", "env", "max_len", "dataset", "settings", "space", "fixed", "trials", "best"}
)
HELD_OUT_SHARE = 0.2  # of the train users
SHOWN = 10  # trials in the table
HALF_WAY = 1  # step of the intermediate values in Optuna's journal
LEAST_TRIALS = 5  # that have come half-way, before one is ended there


@dataclass(frozen=True)
class TuneStudy(Study):
    """A search of an agent's hyper-parameters; its result grows with every trial.

    Attributes:
        spec: The agent, its world, the sessions of one trial, and the seed of the held-out users,
            the trainings and the search.
        trials: Number of finished trials, those of earlier processes included.
        progress: Whether to show a progress bar.
        backend: Starts the workers of the trials.
        prune: Whether trials that are poor half-way end there.
    """

    packages = (*PACKAGES, "optuna")

    spec: Run
    trials: int
    progress: bool = True
    backend: Callable[[], Backend] = InProcess
    prune: bool = False

    def __post_init__(self) -> None:
        if not find_agent(self.spec.agent).space:
            raise ConfigError(
                f"agent must be one of those with settings to search, got {self.spec.agent!r}: "
                "mark some as log_uniform, uniform or one_of."
            )
        check_session_env(self.spec.env)
        check_whole("trials", self.trials, 1)

    @property
    def name(self) -> str:
        return f"{STUDY}_{find_agent(self.spec.agent).name}_{self.spec.world}"

    def header(self) -> Result:
        spec, agent = self.spec, find_agent(self.spec.agent)
        space, settings = agent.searched, agent.settings
        return {
            "study": STUDY,
            "agent": agent.name,
            "env": spec.env,
            "max_len": spec.max_len,
            "dataset": spec.origin.block(),
            "settings": {name: getattr(spec, name) for name in ("episodes", "sessions", "seed")}
            | ({"prune": True} if self.prune else {}),
            "space": {name: setting.text for name, setting in space.items()},
            "fixed": {name: value for name, value in settings.items() if name not in space},
        }

    def is_complete(self, path: Path, result: Result) -> bool:
        return super().is_complete(path, result) and len(result["trials"]) >= self.trials

    def make(self, path: Path) -> Result:
        spec = self.spec
        journal = path.with_suffix(".journal")
        study = _open(journal, self.header())
        written = len(read_result(path)["trials"]) if path.exists() else 0
        if len(_finished(study)) < written:
            raise ConfigError(
                f"{path} holds {written} trials, of which its journal {path.stem}.journal lacks "
                f"some: put the journal back, ask for at most {written} trials, or choose another "
                "folder."
            )
        with (
            self.backend() as workers,
            tqdm(total=self.trials, desc="Trials", unit="trial", disable=not self.progress) as bar,
        ):
            running: dict[Future[Result], optuna.Trial] = {}
            while True:
                finished = _finished(study)
                if finished:
                    save(self, path, _trials(finished))
                bar.update(len(finished) - bar.n)
                missing = self.trials - len(finished)
                while len(running) < min(missing, workers.slots):
                    with disk_errors(journal):
                        trial = _ask(study, spec, len(finished) + len(running))
                    least = _least(finished) if self.prune else None
                    single = TrialStudy(
                        self.name, spec, _params(trial), trial.number, self.progress, least
                    )
                    running[workers.submit(_made, single)] = trial
                if not running:
                    break
                completed, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
                for future in completed:
                    result = future.result()
                    with disk_errors(journal):
                        _tell(study, running.pop(future), result)
        return _trials(finished)

    @staticmethod
    def markdown(results: list[Result]) -> str:
        """The trials of each search, best first, and its best settings."""
        return "\n\n".join(map(_table, in_order(results)))


@dataclass(frozen=True)
class TrialStudy(Study):
    """One trial of a search, which has no result file of its own.

    Attributes:
        search: Name of the search.
        spec: As for :class:`TuneStudy`.
        params: Hyper-parameters.
        number: Optuna's number of the trial.
        progress: Whether to show progress bars.
        least: Held-out length half-way below which the trial ends; ``None`` to train in one go.
    """

    search: str
    spec: Run
    params: Mapping[str, Any]
    number: int
    progress: bool = True
    least: float | None = None

    @property
    def name(self) -> str:
        return f"{self.search}_trial{self.number}"

    def header(self) -> Result:
        return {"study": STUDY, **self.spec.header(), "params": dict(self.params)}

    def make(self, path: Path) -> Result:
        spec, dataset = self.spec, self.spec.load()
        fitted = _fitted(spec.agent, dataset, spec.seed, self.progress)
        users = split_users(dataset, spec.seed)
        if self.least is None:
            return {"length": session_length(spec, dataset, fitted, users, self.params)}
        half_way = HalfWay(
            spec.episodes,
            lambda model: held_out_length(spec, dataset, fitted, users[1], self.params, model),
            self.least,
        )
        length = session_length(spec, dataset, fitted, users, self.params, half_way)
        return {"half": half_way.value, "length": None if half_way.is_poor else length}


class HalfWay(BaseCallback):
    """Judges a model once half of its training sessions are over, and ends those that are poor.

    Args:
        episodes: All training sessions.
        judge: The value of a model as it is.
        least: Value below which training ends.

    Attributes:
        value: The model's value half-way; ``None`` until then, and of an agent that plays no
            sessions.
        is_poor: Whether training was ended.
    """

    def __init__(
        self, episodes: int, judge: Callable[[BaseAlgorithm], float], least: float
    ) -> None:
        super().__init__()
        self._remaining, self._judge, self._least = episodes // 2, judge, least
        self.value: float | None = None
        self.is_poor = False

    def _on_step(self) -> bool:
        if self.value is None:
            self._remaining -= sum("session" in info for info in self.locals["infos"])
            if self._remaining <= 0:
                self.value = self._judge(self.model)
                self.is_poor = self.value < self._least
        return not self.is_poor


def _made(trial: Study) -> Result:
    """The values of a trial, which saves nothing."""
    return trial.make(Path(f"{trial.name}.json"))


@lru_cache(maxsize=1)
def _fitted(agent: str, dataset: Dataset, seed: int, progress: bool) -> Any:
    """The agent's purifier or encoder, one object for all trials in this process."""
    return find_agent(agent).prepare(dataset, seed, progress)


def read_studies(folder: Path) -> list[Result]:
    """Searches in a folder and its subfolders.

    Raises:
        DataFormatError: There are none, or one is damaged.
    """
    results = read_results(folder, STUDY, KEYS, identity=None)
    for result in results:
        values = [
            result["best"].get("value"),
            *(trial.get("value") for trial in result["trials"][:1]),
        ]
        if len(values) < 2 or not all(isinstance(value, int | float) for value in values):
            raise DataFormatError(
                f"The search of {result['agent']} in {folder} has no length of its first and best "
                "trials: search again."
            )
    return results


def summary(results: Sequence[Result]) -> str:
    """Markdown: what each search cost and found, on held-out train users."""
    rows = []
    for result in in_order(results):
        seconds = sum(trial["seconds"] for trial in result["trials"])
        rows.append([
            f"*{result['agent']}*",
            world_of(result).short_title,
            ", ".join(name.replace("_", " ") for name in result["space"]),
            str(len(result["trials"])),
            f"{result['settings']['episodes']:,}",
            f"{result['trials'][0]['value']:.2f}",
            f"{result['best']['value']:.2f}",
            f"{seconds / 60:.0f}",
        ])  # fmt: skip
    header = ["agent", "world", "searched", "trials", "sessions of a trial", "Len before", "best",
              "minutes"]  # fmt: skip
    return markdown_table(header, rows, "lllrrrrr")


def tune(
    spec: Run,
    trials: int,
    out: Path,
    progress: bool = True,
    backend: Callable[[], Backend] = InProcess,
    prune: bool = False,
) -> Path:
    """Searches until the study has the given number of trials, and returns the result file.

    Raises:
        ConfigError: The agent has no search space, sessions of the environment have a fixed length,
            ``out`` is a file, or it holds a study of other data or settings.
    """
    return run_study(TuneStudy(spec, trials, progress, backend, prune), out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_agent_arguments(parser)
    add_session_arguments(parser)
    parser.add_argument("--trials", type=count, default=20, help="trials, earlier ones included")
    parser.add_argument(
        "--prune", action="store_true", help="end trials half-way that are worse than most there"
    )
    add_jobs(parser, 1)
    add_run_arguments(parser)
    parser.set_defaults(seed=0)


def main(options: argparse.Namespace) -> None:
    """Searches, and prints the trials and the name of the result file."""
    path = tune(
        spec_of(options), options.trials, options.out, backend=backend_of(options),
        prune=options.prune,
    )  # fmt: skip
    print(TuneStudy.markdown([read_result(path)]), path, sep="\n\n")


def split_users(dataset: Dataset, seed: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Positions of users to train on and of held-out users, disjoint parts of the train users."""
    users = np.random.default_rng(seed).permutation(dataset.train_users)
    held_out = max(1, round(HELD_OUT_SHARE * len(users)))
    return users[held_out:], users[:held_out]


def session_length(
    spec: Run,
    dataset: Dataset,
    fitted: Any,
    users: tuple[NDArray[np.int32], NDArray[np.int32]],
    params: Mapping[str, Any],
    watch: BaseCallback | None = None,
) -> float:
    """Mean session length in steps, of held-out users after training with hyper-parameters.

    The arguments are those of ``train_agent``, with the positions of both groups of users.
    """
    training, held_out = users
    model, _ = train_agent(
        spec, dataset, fitted, False, users=training, overrides=params, watch=watch
    )
    return held_out_length(spec, dataset, fitted, held_out, params, model)


def held_out_length(
    spec: Run,
    dataset: Dataset,
    fitted: Any,
    users: NDArray[np.int32],
    params: Mapping[str, Any],
    model: BaseAlgorithm,
) -> float:
    """Mean session length in steps, of held-out users with a model as it is."""
    played = play(
        find_agent(spec.agent), spec, dataset, model, fitted, overrides=params, split="train",
        users=users,
    )  # fmt: skip
    return float(played.sessions.length.mean())


def _table(result: Result) -> str:
    names = tuple(result["space"])
    best = sorted(_whole(result["trials"]), key=lambda trial: -trial["value"])[:SHOWN]
    n_pruned = len(result["trials"]) - len(_whole(result["trials"]))
    rows = []
    for trial in best:
        params = (f"{trial['params'][name]:.4g}" for name in names)
        length, seconds = f"{trial['value']:.3f}", f"{trial['seconds']:.0f}"
        rows.append([str(trial["number"]), *params, length, seconds])
    settings = {result["agent"]: result["fixed"] | result["best"]["params"]}
    note = (
        f"{len(best)} of {len(result['trials'])} trials; trial 0 has the settings that "
        "the agent had. Len: of held-out train users, on the train simulator."
    )
    if n_pruned:
        note += f" {n_pruned} trials ended half-way."
    table = markdown_table(["trial", *names, "Len", "s"], rows, "r")
    title = f"{result['agent']}: {world_of(result).title}"
    return section(title, table, note, f"```json\n{json.dumps(settings, indent=2)}\n```")


class _NoLock(JournalFileOpenLock):
    """No lock: one process at a time makes a study. Optuna's would outlive a killed process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        """Does nothing."""


def _open(journal: Path, header: Result) -> optuna.Study:
    """Optuna's study in a journal; its unfinished trials are marked as failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with disk_errors(journal):
        journal.parent.mkdir(parents=True, exist_ok=True)
        _drop_half_line(journal)
        return _taken_up(journal, header)


def _drop_half_line(journal: Path) -> None:
    """Removes what a full disk, or a kill, has left of the last line: others would follow on it."""
    if journal.exists():
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(journal, whole)


def _taken_up(journal: Path, header: Result) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(journal), _NoLock(str(journal))))
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
    """Trials that need not be made again: whole ones, and those that ended half-way."""
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def _least(finished: list[FrozenTrial]) -> float:
    """The median of values half-way; minus infinity while there are too few."""
    values = [trial.intermediate_values.get(HALF_WAY) for trial in finished]
    known = [value for value in values if value is not None]
    return float(np.median(known)) if len(known) >= LEAST_TRIALS else -np.inf


def _tell(study: optuna.Study, trial: optuna.Trial, result: Result) -> None:
    """Saves what came of a trial."""
    if result.get("half") is not None:
        trial.report(result["half"], HALF_WAY)
    if result["length"] is None:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, result["length"])


def _ask(study: optuna.Study, spec: Run, number: int) -> optuna.Trial:
    """Starts the next trial, after so many; the first has the agent's present settings."""
    searched = find_agent(spec.agent).searched
    if not number and not study.get_trials(states=(TrialState.WAITING,)):
        present = {name: setting.value for name, setting in searched.items()}
        # A setting may lie outside the space, such as an entropy bonus of zero: the trial uses it,
        # and the sampler is told the nearest value inside.
        nearest = {name: setting.nearest(setting.value) for name, setting in searched.items()}
        study.enqueue_trial(nearest, user_attrs={"params": present})
    # One generator per trial: a resumed study cannot restore the state of an older generator.
    seed = int(np.random.SeedSequence([spec.seed, number]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    return study.ask({name: setting.distribution for name, setting in searched.items()})


def _params(trial: optuna.Trial | FrozenTrial) -> dict[str, Any]:
    """Settings of a trial: those drawn, or the agent's present settings."""
    return dict(trial.user_attrs.get("params", trial.params))


def _trials(finished: list[FrozenTrial]) -> Result:
    trials: list[dict[str, Any]] = []
    for number, trial in enumerate(finished):  # Optuna's number counts killed trials as well
        assert trial.duration is not None
        row = {"number": number, "params": _params(trial), "value": trial.value}
        pruned = {"pruned": True} if trial.state is TrialState.PRUNED else {}
        trials.append(row | {"seconds": trial.duration.total_seconds()} | pruned)
    best = max(_whole(trials), key=lambda trial: trial["value"])  # the first of equals
    return {"trials": trials, "best": {name: best[name] for name in ("params", "value")}}


def _whole(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials that did not end half-way; the value of another is that of half of the sessions."""
    return [trial for trial in trials if "pruned" not in trial]
