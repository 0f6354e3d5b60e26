"""Command line: ``python -m benchmarks.speed COMMAND``; ``--help`` names the commands."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    written = argparse.ArgumentParser(add_help=False)
    written.add_argument("--quick", action="store_true", help="tiny, just to see that it runs")
    written.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the JSON; default: none"
    )
    shared = argparse.ArgumentParser(add_help=False, parents=[written])
    shared.add_argument("--sessions", type=int, default=1024, help="sessions stepped together")
    shared.add_argument("--engine", default="auto", choices=("auto", "numba", "numpy"))

    command = commands.add_parser("environments", parents=[shared], help="user-steps a second")
    command.add_argument("--repeats", type=int, default=5, help="timings; the median counts")
    commands.add_parser("memory", parents=[shared], help="of sessions, and whether it grows")

    command = commands.add_parser("sequential", help="the sequential response model")
    command.add_argument("--sessions", type=int, default=256, help="sessions in lockstep")
    command.add_argument("--slate", type=int, default=10, help="items in a slate")
    command.add_argument("--events", type=int, default=200, help="logged events of each user")
    command.add_argument("--steps", type=int, default=10, help="steps in a timing")
    command.add_argument("--repeats", type=int, default=5, help="timings")
    command.add_argument("--threads", type=int, default=1, help="of torch")

    command = commands.add_parser(
        "purifiers", parents=[written], help="states a second, and the cost in training"
    )
    command.add_argument("--repeats", type=int, default=5, help="timings; the median counts")
    command.add_argument("--episodes", type=int, default=4000, help="training sessions clocked")

    command = commands.add_parser(
        "training", parents=[written], help="where a training second goes, agent by agent"
    )
    fair = ("KuaiRec-Fair-v0", "KuaiRand-Fair-v0")
    command.add_argument("--env", nargs="+", default=fair[:1], choices=fair)
    command.add_argument(
        "--episodes", type=int, default=1000, help="sessions of full length in steps"
    )

    command = commands.add_parser(
        "heads", parents=[written], help="a policy's action head as the catalogue grows"
    )
    command.add_argument("--repeats", type=int, default=7, help="timings; the median counts")

    command = commands.add_parser("plot", help="draw the growth curves as PNG")
    command.add_argument("folder", type=Path, metavar="DIR", help="where environments.json lies")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    # Before NumPy is loaded, which is why nothing above loads it: figures are of one thread.
    for library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(library, "1")
    from kuaisim_gym.errors import KuaiSimError

    try:
        import_module(f"benchmarks.speed.{options.command}").run(options)
    except KuaiSimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
