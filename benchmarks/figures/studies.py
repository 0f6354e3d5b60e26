"""Studies that the figures are drawn from, each in a synthetic world of one environment."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.results import Result, data_block, read_result
from benchmarks.study import Study, run_studies
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import shared_dataset

ENV = "KuaiRec-Fair-v0"
MAX_LEN = 30
SESSIONS = 1000  # played to evaluate
SEEDS = (11, 15, 19)
RAW, PURIFIED = "raw", "dsrm"  # states that an agent may be given


@dataclass(frozen=True)
class FigureStudy(Study):
    """A study whose fields are its settings, in the synthetic world of some seed.

    Attributes:
        kind: Name of this kind of study.
        policy: The policy that is played, if it is always the same.
    """

    kind: ClassVar[str]
    policy: ClassVar[str | None] = None

    @property
    @abstractmethod
    def label(self) -> str:
        """The settings, fit for a file's name."""

    @property
    @abstractmethod
    def world_seed(self) -> int:
        """Seed of the synthetic world."""

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.label}"

    def load(self) -> Dataset:
        """The world, one object for all studies in this process."""
        return world(seed=self.world_seed)

    def header(self) -> Result:
        policy = {} if self.policy is None else {"policy": self.policy}
        return {
            "study": self.kind,
            "env": ENV,
            "max_len": MAX_LEN,
            "dataset": data_block(self.load()),
            **policy,
            **asdict(self),
        }

    def encode(self, result: Result) -> str:
        """A line for each key: thousands of coordinates need no line each."""
        lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"


def world(name: str = "kuairec", seed: int = 0) -> Dataset:
    """A synthetic world, by default that of ``ENV``."""
    return shared_dataset(name, None, seed)


def results_of(studies: Sequence[Study], out: Path, jobs: int) -> list[dict[str, Any]]:
    """Makes the studies that are missing, and reads the results of all, in their order."""
    return [read_result(path) for path in run_studies(studies, out, jobs)]


def title(figure: str, text: str) -> str:
    """A figure's title: no synthetic world may be taken for the real one."""
    return f"{figure}, SYNTHETIC world of {ENV}: {text}"
