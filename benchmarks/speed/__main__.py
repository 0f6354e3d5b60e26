"""Time and memory of environments, response models, purifiers and training."""

from __future__ import annotations

import os
import sys

COMMANDS = {
    "environments": ("benchmarks.speed.environments", "user-steps a second"),
    "memory": ("benchmarks.speed.memory", "memory of sessions, and whether it grows"),
    "sequential": ("benchmarks.speed.sequential", "time of the sequential response model"),
    "purifiers": ("benchmarks.speed.purifiers", "states a second, and the cost in training"),
    "training": ("benchmarks.speed.training", "division of a training second, agent by agent"),
    "heads": ("benchmarks.speed.heads", "cost of a policy's action head as the catalogue grows"),
    "plot": ("benchmarks.speed.plot", "draw the growth curves as PNG"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    # Before NumPy is loaded, which is why nothing above loads it: figures are of one thread.
    for library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(library, "1")
    from benchmarks.commands import run_command

    return run_command("python -m benchmarks.speed", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
