"""Time and memory of environments, response models, purifiers and training."""

from __future__ import annotations

import os
import sys

COMMANDS = {
    "environments": ("benchmarks.speed.environments", "time steps of environments"),
    "memory": ("benchmarks.speed.memory", "measure the memory of sessions and its growth"),
    "sequential": ("benchmarks.speed.sequential", "time the sequential response model"),
    "factors": ("benchmarks.speed.factors", "time the factor model of preferences"),
    "purifiers": ("benchmarks.speed.purifiers", "time purifiers, alone and in training"),
    "training": ("benchmarks.speed.training", "time the stages of training, for several agents"),
    "serving": ("benchmarks.speed.serving", "time recommendations, request by request"),
    "heads": ("benchmarks.speed.heads", "time action heads on catalogues of several sizes"),
    "ratios": ("benchmarks.speed.ratios", "compare times with an older build's, in turns"),
    "loads": ("benchmarks.speed.loads", "compare first loads with pandas and an older build"),
    "plot": ("benchmarks.speed.plot", "draw the growth curves as PNG"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    # NumPy reads these when it is loaded, so it is not imported above: timings use one thread.
    for library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(library, "1")
    from benchmarks.commands import run_command

    return run_command("python -m benchmarks.speed", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
