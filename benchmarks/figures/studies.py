"""Studies: what a figure is drawn from, one JSON file each, made once and in any order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from tqdm.auto import tqdm

from benchmarks.processes import side_by_side
from benchmarks.results import Result, already_there, commit, data_block, read_result, versions
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.cache import write_atomically
from kuaisim_gym.envs.assembly import shared_dataset

ENV = "KuaiRec-Fair-v0"
MAX_LEN = 30
SESSIONS = 1000  # played to evaluate
SEEDS = (11, 15, 19)
RAW, PURIFIED = "raw", "dsrm"  # states that an agent may be given


class Study(Protocol):
    """One piece of work, small enough to be sent to another process."""

    kind: ClassVar[str]

    @property
    def world_seed(self) -> int:
        """Of the synthetic world that it is made in."""
        ...

    @property
    def name(self) -> str:
        """What tells it from the other studies of its kind, fit for a file's name."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, as the file has it."""
        ...

    def make(self, dataset: Dataset) -> dict[str, Any]:
        """What was found, as the file has it."""
        ...


def world(name: str = "kuairec", seed: int = 0) -> Dataset:
    """A synthetic world, by default that of ``ENV``: one object for all in this process."""
    return shared_dataset(name, None, seed)


def title(figure: str, text: str) -> str:
    """A figure's title: no synthetic world may be taken for the real one."""
    return f"{figure}, SYNTHETIC world of {ENV}: {text}"


def finish_all(studies: Sequence[Study], out: Path, jobs: int) -> list[Result]:
    """Makes the studies whose files are missing.

    Args:
        studies: What to make.
        out: Folder of the files.
        jobs: Processes side by side; with one, this process works itself.

    Returns:
        All of them, in the order given.

    Raises:
        ConfigError: A file holds the study of other settings.
    """
    for seed in sorted({study.world_seed for study in studies}):
        world(seed=seed)  # built once, before processes need it
    with tqdm(total=len(studies), desc="Studies", unit="study") as bar:
        if jobs == 1:
            torch.set_num_threads(1)
            for study in studies:
                finish(study, out)
                bar.update()
        else:
            for _ in side_by_side(finish, studies, out, jobs=jobs):
                bar.update()
    return [read_result(_path(study, out)) for study in studies]


def finish(study: Study, out: Path) -> None:
    """Makes a study and writes its file, whole or not at all; keeps one that is there.

    Raises:
        ConfigError: The file that is there holds the study of other settings.
    """
    dataset, path = world(seed=study.world_seed), _path(study, out)
    header: Result = {
        "study": study.kind,
        "env": ENV,
        "max_len": MAX_LEN,
        "dataset": data_block(dataset),
        **study.settings,
    }
    if already_there(path, header):
        return
    result = header | study.make(dataset) | {"versions": versions(), "commit": commit()}
    # A line for each key: thousands of coordinates need no line each.
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items()]
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _path(study: Study, out: Path) -> Path:
    return out / f"{study.kind}_{study.name}.json"
