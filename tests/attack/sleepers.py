"""Studies that sleep, save how far they are, and go on: ``python -m tests.attack.sleepers``.

Their results tell whether every step was done once, in order: each step hashes the one before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commands import add_jobs
from benchmarks.studies.backends import backend_of
from benchmarks.studies.results import Result
from benchmarks.studies.study import Study, run_studies
from kuaisim_gym.console import end_process, run_command_line
from kuaisim_gym.disk import write_atomically

GOES_ON = "goes on after step"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sleeper(Study):
    """A study that sleeps.

    Attributes:
        number: Its number.
        steps: Steps, each with a checkpoint.
        seconds: Duration of a step.
    """

    packages = ("numpy",)

    number: int
    steps: int
    seconds: float

    @property
    def name(self) -> str:
        return f"sleeper{self.number}"

    def header(self) -> Result:
        return {"study": "sleeper", "number": self.number, "steps": self.steps}

    def make(self, path: Path) -> Result:
        checkpoint, first, digest = path.with_suffix(".checkpoint"), 0, ""
        if checkpoint.exists():
            first, digest = json.loads(checkpoint.read_text(encoding="utf-8"))
            _LOG.warning("%s %d", GOES_ON, first)
        for step in range(first, self.steps):
            digest = hashlib.sha256(f"{digest} {self.number} {step}".encode()).hexdigest()
            write_atomically(checkpoint, json.dumps([step + 1, digest]).encode())
            time.sleep(self.seconds)
        write_atomically(path.with_suffix(".agent"), digest.encode())
        return {"digest": digest}


def main(options: argparse.Namespace) -> None:
    """Makes the missing studies."""
    numbers = range(options.studies)
    studies = [Sleeper(number, options.steps, options.seconds) for number in numbers]
    run_studies(studies, options.out, backend_of(options))


def parse() -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack.sleepers", description=__doc__)
    add_jobs(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--studies", type=int, default=6, help="number of studies")
    parser.add_argument("--steps", type=int, default=20, help="steps of each")
    parser.add_argument("--seconds", type=float, default=0.5, help="duration of a step")
    parser.set_defaults(main=main, resumes=True)
    return parser.parse_args()


if __name__ == "__main__":
    # Workers import the class from its module, and not from a main module that they do not have.
    from tests.attack import sleepers

    end_process(run_command_line(sleepers.parse))
