"""Studies behind the figures, each in a synthetic world of one environment."""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import ClassVar

from kuaisim_gym.data import Dataset

from ..origin import Origin
from ..runs.settings import Run
from ..studies.results import Result
from ..studies.study import Study

ENV, MAX_LEN, AGENT = "KuaiRec-Fair-v0", 30, "ppo"
SESSIONS = 1000  # evaluation sessions
RAW, PURIFIED = "raw", "dsrm"  # states that an agent may observe


@dataclass(frozen=True)
class FigureStudy(Study):
    """A study whose fields are its settings, in the synthetic world of some seed.

    Attributes:
        kind: Name of this kind of study.
        policy: Name of the policy that is played; ``None`` if there are several or none.
    """

    kind: ClassVar[str]
    policy: ClassVar[str | None] = None

    @property
    @abstractmethod
    def label(self) -> str:
        """The settings in the file name."""

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
        dataset = Origin("kuairec", None, self.world_seed).block()
        world = {"study": self.kind, "env": ENV, "max_len": MAX_LEN, "dataset": dataset}
        return {**world, **policy, **asdict(self)}

    def encode(self, result: Result) -> str:
        """One line per key: thousands of coordinates need no line each."""
        lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"


def run_of(seed: int, sessions: int, episodes: int = Run.episodes, agent: str = AGENT) -> Run:
    """Settings of a run, whose evaluation sessions all policies of the figures play."""
    return Run(agent, ENV, None, MAX_LEN, seed, episodes, sessions)


def world(name: str = "kuairec", seed: int = 0) -> Dataset:
    """A synthetic world, by default that of ``ENV``."""
    return Origin(name, None, seed).load()


def title(figure: str, text: str) -> str:
    """Title of a figure, which must not pass a synthetic world off as the real one."""
    return f"{figure}, SYNTHETIC world of {ENV}: {text}"
