"""Agents by name, wherever they are: in a release, on this machine, or in a training to come."""

from __future__ import annotations

import argparse
import logging
import os
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from kuaisim_gym.data.cache import cache_dir
from kuaisim_gym.disk import claimed, new_folder, remove
from kuaisim_gym.errors import ConfigError, DataFormatError, DownloadError, unexpected_option

from ..agents import find_agent
from ..runs.players import Player, load_player
from ..runs.run import RunStudy, run
from ..runs.settings import Run, spec_of
from .index import Entry, Folder, LackingError, Release, release_at
from .making import write_release

VARIABLE = "KUAISIM_RELEASE"  # of the environment: the release where none is named
PACKAGED = Path(__file__).parent / "agents"  # the release that comes with this package
EPISODES = Run.episodes  # of agents that are trained for want of a release
# What may be chosen of an agent whose training is over.
SETTINGS = frozenset(field.name for field in fields(Run)) - {"agent", "env", "episodes"}

_LOG = logging.getLogger(__name__)


def load(
    agent: str,
    env: str | None = None,
    *,
    release: str | None = None,
    train: bool = True,
    progress: bool = True,
    **settings: Any,
) -> Player:
    """Gives an agent that is ready to play, by its name.

    An agent that needs training is the one of seed 11 in that world: a released one; else one that
    was fetched or trained on this machine before; else it is trained, which takes minutes, and is
    kept in the folder ``agents`` of the cache. An interrupted training goes on in the next call.
    Where a release that was named cannot be reached, nothing is trained. An agent with a rule needs
    no release.

    Args:
        agent: As :func:`~benchmarks.agents.find_agent` takes it.
        env: A registered environment id, or ``module:id``; ``None`` for the data's own.
        release: Folder or https address of a release; ``None`` for that of the environment variable
            ``KUAISIM_RELEASE``, or for the one that came with this package.
        train: Whether an agent that is nowhere may be trained.
        progress: Whether to show progress bars of the training.
        **settings: Fields of :class:`~benchmarks.runs.settings.Run`: ``dataset``, ``dataset_seed``,
            ``max_len`` and ``slate_size`` of the world; ``seed`` and ``sessions`` to play.

    Raises:
        ConfigError: A setting is none, or of a training; ``release`` is no release; or the agent is
            nowhere and may not be trained.
        CheckpointError: A file is not the one of the release's index, or of another version.
        DownloadError: The same, of a file that is fetched, or it cannot be fetched.
        DataFormatError: The index of the release is damaged.
    """
    for name in sorted(settings.keys() - SETTINGS):
        hint = "What is released has been trained." if name == "episodes" else ""
        raise unexpected_option("A setting", name, SETTINGS, hint)
    spec = spec_of(argparse.Namespace(agent=agent, env=env, dataset=None), **settings)
    row = find_agent(agent)
    if row.rule is not None:
        if release is not None:
            release_at(release)  # what is no release is none for a rule either
        return Player(spec, row, spec.load(), None, None)
    trained = replace(spec, seed=Run.seed, episodes=EPISODES, sessions=Run.sessions)
    path = locate(RunStudy(trained, progress, keep=True), release_named(release), train)
    changes = asdict(spec)
    del changes["episodes"]  # those of the training
    return load_player(path, **changes)


def release_named(place: str | None) -> Release:
    """The release at a place, or else at that of the environment variable, or the package's own.

    Raises:
        ConfigError: There is none.
    """
    if place is None:
        place = os.environ.get(VARIABLE) or None
    return Folder(PACKAGED) if place is None else release_at(place)


def locate(study: RunStudy, release: Release, train: bool) -> Path:
    """The result file of a trained agent, whose other files lie beside it and are checked.

    Raises:
        ConfigError: It is nowhere, and may not be trained.
        CheckpointError: A file is not the one of the index.
        DownloadError: The same, of a file that is fetched, or the release cannot be reached and the
            agent is not on this machine.
        DataFormatError: The index is damaged, or lists other files than such an agent has.
    """
    digest = study.header()["dataset"]["fingerprint"][:8]
    cache = cache_dir() / "agents" / f"{study.name}-{digest}"
    try:
        entry = _found(release, study)
    except (LackingError, DownloadError) as error:
        missing = error
    else:
        return release.obtain(entry, cache)
    reason = str(missing).rstrip(".")
    try:
        path = _from_cache(study, cache)
    except LackingError as error:
        reason = "; ".join(filter(None, (reason, str(error))))
    else:
        if release != Folder(PACKAGED):
            _LOG.warning("%s: taking what was fetched or trained before, %s.", reason, path)
        return path
    if isinstance(missing, DownloadError):
        raise DownloadError(
            f"{reason}: whether it has {study.name} is not known, and nothing is trained in its "
            f"place. Try again later, or name another release, by --release or ${VARIABLE}."
        ) from missing
    if not train:
        raise ConfigError(
            f"{reason}, and training it is forbidden. Name a release that has it, by --release or "
            f"${VARIABLE}, or leave out --no-train."
        )
    _LOG.warning(
        "%s: training %s, %s sessions, which takes minutes and is kept for the next time. "
        "Interrupted, the same command goes on from what it has saved.",
        reason, study.spec.agent, f"{study.spec.episodes:,}",
    )  # fmt: skip
    return _train(study, cache)


def _found(release: Release, study: RunStudy) -> Entry:
    """The entry of a run's agent in a release."""
    agent = find_agent(study.spec.agent)
    return release.find(study.name, study.header(), agent.keeps_fitted)


def _from_cache(study: RunStudy, cache: Path) -> Path:
    """The result file of an agent that this machine has fetched or trained.

    Raises:
        LackingError: There is none, or it is damaged, which the message says.
    """
    if not cache.is_dir():
        raise LackingError
    copy = Folder(cache)
    try:
        entry = _found(copy, study)
    except DataFormatError as error:
        raise LackingError(str(error).rstrip(".")) from error
    if fault := copy.fault(entry):
        raise LackingError(fault)
    return copy.obtain(entry)


def _train(study: RunStudy, cache: Path) -> Path:
    """Trains an agent, or waits for another process that does, and keeps it as a release of one."""
    torch.set_num_threads(1)  # as runs do by default
    training = cache.with_name(f"{cache.name}.training")
    with claimed(training):
        with suppress(LackingError):  # another process may have been first
            return _from_cache(study, cache)
        path = run(study.spec, training, study.progress, keep=True)
        with new_folder(cache) as folder:
            write_release([path], folder)
            remove(cache)  # of another version
        remove(training)
    return _from_cache(study, cache)
