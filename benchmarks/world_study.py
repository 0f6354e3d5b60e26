"""Studies of one dataset, in an environment of whole sessions."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.origin import Origin, check_played, find_origin
from benchmarks.results import Result, check_session_env, world_of
from benchmarks.run import Run
from benchmarks.study import Study
from kuaisim_gym.config import check_whole


@dataclass(frozen=True)
class WorldStudy(Study):
    """A study of one dataset; a subclass adds its settings to the header, the seed last.

    Attributes:
        study: Name of the command.
        env: A registered environment id, or ``module:id``, of whole sessions.
        dataset: As for :class:`~benchmarks.run.Run`.
        dataset_seed: As for the same class.
        seed: Seed of what is drawn.

    Raises:
        ConfigError: The environment, the data or a seed cannot be.
    """

    study: ClassVar[str]

    env: str
    dataset: str | None = None
    dataset_seed: int = 0
    seed: int = Run.seed

    def __post_init__(self) -> None:
        check_session_env(self.env)
        check_whole("seed", self.seed, 0)
        check_played(self.origin, self.env)

    @property
    def origin(self) -> Origin:
        """Source, files and seed of the data."""
        return find_origin(self.dataset, self.env, self.dataset_seed)

    @property
    def name(self) -> str:
        return f"{self.study}_{self.env.rpartition(':')[2]}_{self.origin.label}_seed{self.seed}"

    def header(self) -> Result:
        return {"study": self.study, "env": self.env, "dataset": self.origin.block()}


def measurement(result: Result) -> Hashable:
    """World and seed: equal for results of the same measurement, which is of all lengths."""
    return world_of(result | {"max_len": 0}), result["seed"]
