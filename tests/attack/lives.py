"""Work that is killed while it writes, and done again.

A try holds if nobody sees half of anything after the kill, and if the same work then ends with the
same bytes as if it had not been killed, with nothing beside them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import kuaisim_gym
from dsrm_agents import load_purifier
from kuaisim_gym.data import write_csv
from kuaisim_gym.errors import DatasetNotFoundError
from tests.attack.counts import Counts
from tests.attack.forks import in_child
from tests.attack.writers import (
    Write,
    Writer,
    cache_of,
    checkpoint,
    control,
    fitting,
    home,
    large_files,
    large_world,
    minari,
    model,
    repeated,
    world,
)

USERS = 100  # whose episodes are exported


def see_csv(folder: Path) -> None:
    """All of the files, or none that is taken for data."""
    try:
        seen = kuaisim_gym.load_dataset("kuairec", folder / "csv")
    except DatasetNotFoundError:
        return
    assert len(seen.user_features.codes) == len(large_world().user_features.codes)
    assert len(seen.log) == len(large_world().log)


def see_minari(folder: Path) -> None:
    """Whole datasets alone."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    import minari as library

    for name in library.list_local_datasets():
        log = large_world().train_log
        steps = np.isin(log.users, large_world().train_users[:USERS]).sum()
        assert library.load_dataset(name).total_steps == steps


def see_purifier(folder: Path) -> None:
    """The purifier, if there is a file."""
    if (folder / "dsrm.safetensors").exists():
        load_purifier(folder / "dsrm.safetensors")


def see_nothing(folder: Path) -> None:
    """What only the repetition reads."""


LIVES: dict[str, tuple[Writer, Write]] = {
    "write_csv": (
        Writer(lambda folder: write_csv(large_world(), folder / "csv"), (large_world,), once=True),
        see_csv,
    ),
    "Minari": (
        Writer(partial(minari, dataset=large_world, users=USERS), (large_world,), once=True),
        see_minari,
    ),
    "cache": (Writer(partial(cache_of, source=large_files), (large_files,)), see_nothing),
    "fit": (Writer(partial(fitting, updates=500), (world,)), see_purifier),
    "training": (Writer(checkpoint, (model,)), see_nothing),
}


@cache
def seconds(name: str) -> float:
    """How long a piece of work takes where nobody disturbs it."""
    writer, _ = LIVES[name]
    control(writer)
    with TemporaryDirectory(dir=home()) as parent:
        writer.prepare(Path(parent) / "work")
        return in_child(lambda: writer.write(Path(parent) / "work")).seconds


def killed(n: int, seed: int, names: Sequence[str] = tuple(LIVES)) -> Counts:
    """Kills n pieces of work at random moments.

    Args:
        n: Number of kills, each piece in turn.
        seed: Of the moments, which are spread over the time that the piece takes.
        names: The pieces of work.
    """
    rng, counts = np.random.default_rng(seed), Counts()
    for number in range(n):
        name = names[number % len(names)]
        moment = float(rng.uniform(0, seconds(name)))
        with TemporaryDirectory(dir=home()) as parent:
            fault = _fault(*LIVES[name], Path(parent) / "work", moment)
        counts.note(fault and f"{name}, killed after {moment:.3f} s: {fault}")
    return counts


def _fault(writer: Writer, see: Write, folder: Path, moment: float) -> str | None:
    """What is wrong with work that was killed at a moment and done again, if anything is."""
    writer.prepare(folder)
    in_child(lambda: writer.write(folder), kill_after=moment)
    seen = in_child(lambda: see(folder))
    return f"half is seen: {seen.text[-1000:]}" if seen.status else repeated(writer, folder)
