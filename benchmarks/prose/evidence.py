"""Evidence that pages speak of: runs of today's worlds, and studies beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, nan

from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError, DataFormatError

from ..origin import is_older
from ..reports.standings import is_synthetic
from ..reports.tables import by_world
from ..studies.results import METRICS, Result, World

# Worlds that are counted: their names and which they are.
WORLDS: dict[str, Callable[[World], bool]] = {
    "all": lambda world: True,
    "synthetic": is_synthetic,
    "real": lambda world: not is_synthetic(world),
}


@dataclass(frozen=True)
class Evidence:
    """Results that pages speak of.

    Attributes:
        runs: Results of runs, of any worlds.
        read: Function from the name of a study to its results; empty where there are none. Raises
            ``ValueError`` with what it expected where no study has the name.
    """

    runs: list[Result]
    read: Callable[[str], list[Result]] = field(default=lambda study: [])

    @cached_property
    def worlds(self) -> dict[World, dict[str, list[Result]]]:
        """Runs by world and agent: today's worlds of whole sessions, under the paper's rule.

        Raises:
            DataFormatError: A run lacks a metric, or has one that is no number.
        """
        worlds = {
            world: agents
            for world, agents in by_world(self.runs).items()
            if world.task is SessionBatch
            and not world.is_older
            and not world.seed
            and "-Fair-" in world.env
        }
        for world, agents in worlds.items():
            for run in (run for runs in agents.values() for run in runs):
                wrong = [name for name in METRICS if not isfinite(run["metrics"].get(name, nan))]
                if wrong:
                    subject = f"{run['agent']}, seed {run['seed']}, in {world.title}"
                    raise DataFormatError(
                        f"The result of {subject} has no number for {', '.join(wrong)}: make it "
                        "again."
                    )
        return worlds

    def agents(self, dataset: str, max_len: int) -> dict[str, list[Result]]:
        """Runs by agent in one world; empty where it has none.

        Raises:
            ConfigError: Several worlds have this name and length.
        """
        worlds = [
            world for world in self.worlds if (world.dataset, world.max_len) == (dataset, max_len)
        ]
        if len(worlds) > 1:
            raise ConfigError(
                f"Pages speak of one world of {dataset}, T = {max_len}, but the results are of "
                f"{', '.join(world.title for world in worlds)}: leave some of them out."
            )
        return self.worlds[worlds[0]] if worlds else {}

    def studies(self, study: str) -> list[Result]:
        """Results of a study, without those of older worlds."""
        return [result for result in self.read(study) if not is_older(_block(result))]


def _block(result: Result) -> Result:
    """The ``dataset`` block; of studies without one, a block that is of today."""
    block = result.get("dataset")
    return block if isinstance(block, dict) else {"name": "", "synthetic": False}
