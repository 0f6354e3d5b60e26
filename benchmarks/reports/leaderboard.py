"""The ``leaderboard`` command: where an agent of yours would stand among the committed rows.

kuaisim leaderboard mypackage.my:AGENT
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from kuaisim_gym.errors import ConfigError

from .. import paper
from ..commands import add_jobs, place
from ..runs.run import RunStudy
from ..runs.settings import Run
from ..runs.worlds import all_worlds
from ..studies.backends import backend_of
from ..studies.results import Result, read_result, read_results, world_of
from ..studies.study import run_studies
from .standings import Board, boards_of, comparisons, leaderboard, leaderboard_of

COMMITTED = Path("benchmarks/results")
ABOUT = "ABOUT.md"  # beside the result files of an entry
SMOKE_SEEDS, SMOKE_EPISODES, SMOKE_SESSIONS = paper.SEEDS[:2], 64, 20
SLACK = 1000  # training sessions that may end in the step in which the last one does


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add(
        "agent", nargs="?", metavar="AGENT",
        help="yours, as mypackage.my:AGENT, or one of the benchmark; default: only print the "
        "leaderboard",
    )  # fmt: skip
    add(
        "--real", type=place, metavar="DIR",
        help="folder with kuairec_real and kuairand_real, whose worlds are played, too; default: "
        "synthetic worlds alone",
    )  # fmt: skip
    add(
        "--committed", type=place, default=COMMITTED, metavar="DIR",
        help="folder of the rows to stand among",
    )  # fmt: skip
    add("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    add_jobs(parser)
    add(
        "--out", type=place, default=Path("results/leaderboard"), metavar="DIR",
        help="folder of the agent's result files",
    )  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """Makes the missing runs of the agent, and prints its row and its place.

    Raises:
        ConfigError: The agent is unknown, or the committed rows are not there or of other worlds.
        DataFormatError: The folder holds none, or files that are no results.
        DatasetNotFoundError: The folder of real data lacks some.
    """
    if not options.committed.is_dir():
        raise ConfigError(
            f"{options.committed}, the rows to stand among, is not there: call the command in a "
            "clone, or name the folder with --committed."
        )
    committed = read_results(options.committed)
    if options.agent is None:
        print(leaderboard(committed))
        return
    runs = list(runs_of(options.agent, options.real, options.smoke))
    check_worlds(runs, committed)
    studies = [RunStudy(run, progress=False) for run in runs]
    paths = run_studies(studies, options.out, backend_of(options))
    print(standing([read_result(path) for path in paths], committed))


def runs_of(agent: str, real: Path | None, smoke: bool = False) -> Iterator[Run]:
    """The runs that enter an agent: all worlds of the benchmark, its lengths, seeds and sizes.

    Args:
        agent: As :func:`~benchmarks.agents.find_agent` takes it.
        real: Folder of the real data; ``None`` for the synthetic worlds alone.
        smoke: Whether sizes are tiny, with two seeds and the shorter sessions alone.
    """
    seeds = SMOKE_SEEDS if smoke else paper.SEEDS
    sizes = {"episodes": SMOKE_EPISODES, "sessions": SMOKE_SESSIONS} if smoke else {}
    for world, seed in product(all_worlds(real), seeds):
        if not (smoke and world.max_len == max(paper.MAX_LENS)):
            yield replace(world, agent=agent, seed=seed, **sizes)


def check_worlds(runs: list[Run], committed: list[Result]) -> None:
    """Checks that some committed row is of each world, before hours of work.

    Raises:
        ConfigError: One is not: the code makes other worlds than the rows'.
    """
    known = {(run["dataset"]["fingerprint"], run["max_len"]) for run in committed}
    for run in runs:
        if (run.load().fingerprint, run.max_len) not in known:
            raise ConfigError(
                f"No committed row is of {run.world}: the rows are of other data or of another "
                "version of the world. Name the results of this code's commit with --committed."
            )


def standing(entry: list[Result], committed: list[Result]) -> str:
    """Markdown of an agent's rows, its places, its comparisons, and what it lacks to be entered.

    Args:
        entry: Its results, in the same seeds for all worlds.
        committed: Rows to stand among; those of the same agent and other seeds are left out.

    Raises:
        ConfigError: The committed rows lack one of its worlds, or two of its seeds.
    """
    name, worlds = entry[0]["agent"], {world_of(run) for run in entry}
    seeds = {run["seed"] for run in entry}
    rivals = [run for run in committed if run["agent"] != name and run["seed"] in seeds]
    boards = boards_of([run for run in [*rivals, *entry] if world_of(run) in worlds])
    if not boards or len(boards[0].worlds) < len(worlds) or name not in boards[0].runs:
        raise ConfigError(
            f"The committed rows do not hold {name}'s worlds and seeds, with both ends of the "
            "score: name the results of a clone with --committed."
        )
    rows = [
        f"{leaderboard_of(board, [name]).markdown()}\n\n{_verdict(board, name)}" for board in boards
    ]
    pairs = [(name, rival) for rival in boards[0].ranks if rival != name]
    missing = "\n".join(f"* {fault}" for fault in faults(entry))
    faulty = ["Not to be entered as it is:", missing] if missing else []
    return "\n\n".join([*rows, comparisons(boards[0], pairs).markdown(), *faulty])


def _verdict(board: Board, name: str) -> str:
    """A sentence on the place of an agent."""
    ranks = board.ranks
    if name not in ranks:
        return f"{name} is told a simulator's answers and has no place."
    names, rank = list(ranks), ranks[name]
    behind = f", behind {names[rank - 2]}" if rank > 1 else ""
    ahead = f", ahead of {names[rank]}" if rank < len(names) else ""
    return f"{name} would stand in place {rank} of {len(names)}{behind}{ahead}."


def faults_of(folder: Path) -> list[str]:
    """Reasons against a folder as an entry: :func:`faults` of its results, and its own.

    Raises:
        DataFormatError: It holds no results, or files that are none.
    """
    entry = read_results(folder)
    sentences = faults(entry)
    if {run["agent"] for run in entry} != {folder.name}:
        sentences.append(f"{folder} must have the name of its agent.")
    if not (folder / ABOUT).is_file():
        sentences.append(f"{folder} lacks {ABOUT}, which says what the agent is.")
    return sentences


def faults(entry: list[Result]) -> list[str]:
    """Reasons against results as an entry, a sentence each; empty for an entry.

    An entry is one agent's: a run of each seed in all synthetic worlds, and in each world of real
    data that it has played at all, with the sizes of the committed rows, by committed code.
    """
    names = sorted({run["agent"] for run in entry})
    sentences = [] if len(names) == 1 else [f"One agent is entered at a time, found {names}."]
    today = [run for run in entry if not world_of(run).is_older and not world_of(run).seed]
    runs = {(*_cell(run), run["seed"]) for run in today}
    cells = {(run.env, run.dataset, run.max_len) for run in all_worlds(None)}
    for cell, seed in product(sorted(cells.union(map(_cell, entry))), paper.SEEDS):
        if (*cell, seed) not in runs:
            env, dataset, max_len = cell
            sentences.append(f"There is no run in {env}, {dataset}, T = {max_len}, seed {seed}.")
    for run in entry:
        where = f"{run['env']}, {run['dataset']['name']}, T = {run['max_len']}, seed {run['seed']}"
        if run["eval"]["sessions"] != Run.sessions:
            sessions = run["eval"]["sessions"]
            sentences.append(f"{where}: {Run.sessions} test sessions are needed, got {sessions}.")
        if run["train"]["episodes"] > Run.episodes + SLACK:
            episodes = run["train"]["episodes"]
            sentences.append(f"{where}: at most {Run.episodes} training sessions, got {episodes}.")
        if "-dirty" in run["commit"]:
            sentences.append(f"{where}: made by changed code; use a commit as it is.")
    return sentences


def _cell(run: Result) -> tuple[str, str, int]:
    return run["env"], run["dataset"]["name"], run["max_len"]
