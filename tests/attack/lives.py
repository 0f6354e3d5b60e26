"""Work that is killed while it writes, and done again.

A try holds if nobody sees half of anything after the kill, and if the same work then ends with the
same bytes as if it had not been killed, with nothing beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import kuaisim_gym
from dsrm_agents import load_purifier
from kuaisim_gym.data import write_csv
from kuaisim_gym.errors import DatasetNotFoundError
from tests.attack.counts import Counts
from tests.attack.disks import control, difference
from tests.attack.forks import in_child
from tests.attack.writers import (
    WRITERS,
    cache_of_files,
    checkpoint,
    fitting,
    larger_world,
    minari,
)

Look = Callable[[Path], object]  # fails where half of something is seen


def see_csv(folder: Path) -> None:
    """All of the files or none."""
    try:
        kuaisim_gym.load_dataset("kuairec", folder / "csv")
    except DatasetNotFoundError:
        return
    assert len(list((folder / "csv").iterdir())) == len(control("write_csv, large")[1])


def see_minari(folder: Path) -> None:
    """A dataset with all episodes, or none that is listed."""
    import minari as library

    for name in library.list_local_datasets():
        assert library.load_dataset(name).total_episodes > 0


def see_purifier(folder: Path) -> None:
    """The purifier, if there is a file."""
    if (folder / "dsrm.safetensors").exists():
        load_purifier(folder / "dsrm.safetensors")
