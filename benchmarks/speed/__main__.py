"""Time and memory of environments, response models, purifiers and training."""

from __future__ import annotations

import os

COMMANDS = {
    "environments": (".speed.environments", "time steps of environments"),
    "memory": (".speed.memory", "measure the memory of sessions and its growth"),
    "dynamic": (".speed.dynamic", "compare a catalogue that changes with a fixed one"),
    "sequential": (".speed.sequential", "time the sequential response model"),
    "factors": (".speed.factors", "time the factor model of preferences"),
    "purifiers": (".speed.purifiers", "time purifiers, alone and in training"),
    "training": (".speed.training", "time the stages of training, for several agents"),
    "serving": (".speed.serving", "time recommendations, request by request"),
    "scale": (".speed.scale", "measure what a service of a million users needs"),
    "heads": (".speed.heads", "time action heads on catalogues of several sizes"),
    "catalogues": (".speed.catalogues", "time agents on catalogues of up to a million items"),
    "large": (".speed.large", "measure a log of KuaiRand-27K's shape, up to a tenth of its size"),
    "ratios": (".speed.ratios", "compare times with an older build's, in turns"),
    "loads": (".speed.loads", "compare first loads with pandas and an older build"),
    "cached": (".speed.cached", "compare loads from the cache with an older build"),
    "backends": (".speed.backends", "compare suites on Ray with those of a local pool"),
    "vectors": (".speed.vectors", "compare sessions in other processes with those of one"),
    "pages": (".speed.pages", "renew tables of pages that show measured figures"),
    "plot": (".speed.plot", "draw the growth curves as PNG"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    # NumPy reads these when it is loaded, so it is not imported above: timings use one thread.
    for library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(library, "1")
    from ..commands import Command, run_command

    commands = {name: Command(*row) for name, row in COMMANDS.items()}
    return run_command(f"python -m {__package__}", __doc__, commands, arguments)


if __name__ == "__main__":
    status = main()
    from kuaisim_gym.console import end_process

    end_process(status)
