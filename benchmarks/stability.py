"""How steadily agents learn: over seeds and over time, from the curves in result files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.plots import draw_curves, name_agents
from benchmarks.results import Result, World, read_results, task_of
from benchmarks.statistics import mean_and_ci95
from benchmarks.tables import by_world
from kuaisim_gym.errors import ConfigError, DataFormatError

AGENTS = (
    "dsrm-hrl", "hrl", "flat", "flat+quota", "ppo", "ppo+quota", "hsrl", "hsrl-no-residual",
    "hsrl-no-token-credit", "hsrl+quota", "hsrl+dsrm",
)  # fmt: skip
TAIL = 5  # the last of so many parts of a curve is where training has settled
REACHED = 0.95  # of the settled session length
SPREADS = {
    "test_len": "Len over seeds",
    "test_ad": "AD over seeds",
    "curve_len": "Len over time",
    "curve_imbalance": "imbalance over time",
}
_DIGITS = {"test_len": 3, "test_ad": 4, "curve_len": 3, "curve_imbalance": 4}

Point = dict[str, float]  # of a curve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the run results")
    parser.add_argument(
        "--agents", nargs="+", metavar="AGENT",
        help=f"default: those of {', '.join(AGENTS)} that are there",
    )  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """Prints a table of each world, draws its curves, and prints the names of their files.

    Raises:
        ConfigError: An agent that was asked for has no results.
        DataFormatError: The folder holds no results of whole sessions, or something else.
    """
    worlds = select(read_results(options.folder), options.agents)
    print(markdown(worlds))
    for world, agents in worlds.items():
        print(_save(world, agents, options.folder))


def select(
    results: list[Result], wanted: Sequence[str] | None = None
) -> dict[World, dict[str, list[Result]]]:
    """Results of whole sessions by world and agent.

    Args:
        results: As read from a folder.
        wanted: Agents, in their order; ``None`` for those of :data:`AGENTS` that are there. Who
            plays no training sessions has no curve, and is left out.

    Raises:
        ConfigError: An agent that is wanted has no results.
        DataFormatError: There are no results to show.
    """
    results = [one for one in results if one["train"]["curve"]]
    found = {
        world: {name: agents[name] for name in wanted or AGENTS if name in agents}
        for world, agents in sorted(by_world(results).items())
        if task_of(world[0]) == "session"
    }
    there = {name for agents in found.values() for name in agents}
    if missing := [name for name in wanted or () if name not in there]:
        raise ConfigError(
            f"There are no results of {', '.join(missing)}, but of "
            f"{', '.join(sorted(there)) or 'none that was asked for'}. Make them with `suite`."
        )
    if not there:
        raise DataFormatError(
            f"There are no results of {', '.join(AGENTS)} in whole-session environments; make "
            "some with `suite`, or name others with --agents."
        )
    return {world: agents for world, agents in found.items() if agents}


def imbalance(point: Point) -> float:
    """|2p - 1| with p the popular share of a block of training sessions.

    Curves have no AD, which looks at every step apart: this is AD where a session's steps are
    alike, and less where they differ.
    """
    return abs(2.0 * point["popular_share"] - 1.0)


def spreads(runs: list[Result]) -> dict[str, float]:
    """How much an agent's results and curves vary.

    Args:
        runs: One result a seed.

    Returns:
        Standard deviations over seeds of the test sessions' Len and AD (``test_len``,
        ``test_ad``), and over the last part of a curve, mean over seeds, of Len and imbalance
        (``curve_len``, ``curve_imbalance``); NaN for a single value.
    """
    curves = [run["train"]["curve"] for run in runs]
    return {
        "test_len": _deviation([run["metrics"]["len"] for run in runs]),
        "test_ad": _deviation([run["metrics"]["ad"] for run in runs]),
        "curve_len": float(np.mean([_unrest(curve, _length) for curve in curves])),
        "curve_imbalance": float(np.mean([_unrest(curve, imbalance) for curve in curves])),
    }


def settled_length(curve: list[Point]) -> float:
    """Mean length of the training sessions of a curve's last fifth, in steps."""
    return float(np.mean([_length(point) for point in _tail(curve)]))


def sessions_to_settle(curve: list[Point]) -> int:
    """Training sessions after which a curve first has 95 % of its settled session length."""
    enough = REACHED * settled_length(curve)
    return int(next(point["episodes"] for point in curve if _length(point) >= enough))


def markdown(worlds: dict[World, dict[str, list[Result]]]) -> str:
    """A table of each world; see :func:`select`."""
    return "\n".join(_table(world, agents) for world, agents in worlds.items())


def _table(world: World, agents: dict[str, list[Result]]) -> str:
    names = ["agent", "seeds", *(f"s.d. of {text}" for text in SPREADS.values()),
             "Len in training", "sessions to 95 % of it"]  # fmt: skip
    rows = [names, ["---", *["--:"] * (len(names) - 1)]]
    for agent, runs in agents.items():
        found = spreads(runs)
        curves = [run["train"]["curve"] for run in runs]
        settled = [sessions_to_settle(curve) for curve in curves]
        mean, half = mean_and_ci95([settled_length(curve) for curve in curves])
        length = " ± ".join(_number(value, 2) for value in (mean, half) if not np.isnan(value))
        rows.append([
            agent, str(len(runs)), *(_number(found[name], _DIGITS[name]) for name in SPREADS),
            length,
            f"{np.mean(settled):,.0f} ({min(settled):,} to {max(settled):,})",
        ])  # fmt: skip
    return "\n".join([
        f"### {_title(world)}",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "Over seeds: of the test sessions. Over time: of the last fifth of the training curve, "
        "mean over seeds; imbalance is |2p - 1| with p the popular share of a block of training "
        "sessions. Len in training: of the last fifth, mean and 95 % interval over seeds; after so "
        "many sessions the curve first has 95 % of it, mean and range over seeds.",
        "",
    ])  # fmt: skip


def _save(world: World, agents: dict[str, list[Result]], out: Path) -> Path:
    env, synthetic, fingerprint, max_len = world
    kind = "synthetic" if synthetic else "real"
    path = out / f"stability_{env}_{kind}-{fingerprint[:8]}_T{max_len}.png"
    draw(world, agents).savefig(path, dpi=110)
    return path


def draw(world: World, agents: dict[str, list[Result]]) -> Figure:
    """Learning curves of session length and balance: mean and range over seeds."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    panels: list[tuple[Callable[[Point], float], str]] = [
        (_length, "session length (steps), training"),
        (imbalance, "imbalance |2p - 1|, training (0 is balanced)"),
    ]
    for axes, (measure, label) in zip(figure.subplots(1, 2), panels, strict=True):
        draw_curves(axes, agents, measure)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    name_agents(figure)
    figure.suptitle(f"{_title(world)}; bands: range over seeds", fontsize="medium")
    return figure


def _title(world: World) -> str:
    env, synthetic, fingerprint, max_len = world
    return f"{env}, {'SYNTHETIC world' if synthetic else 'real rows'} {fingerprint}, T {max_len}"


def _length(point: Point) -> float:
    return point["len"]


def _tail(curve: list[Point]) -> list[Point]:
    """The last fifth of a curve, of one point at least."""
    return curve[-max(1, len(curve) // TAIL) :]


def _unrest(curve: list[Point], measure: Callable[[Point], float]) -> float:
    return _deviation([measure(point) for point in _tail(curve)])


def _deviation(values: list[float]) -> float:
    """The sample's standard deviation; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _number(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"
