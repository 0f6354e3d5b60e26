"""Many runs, side by side in processes; finished ones are skipped, a failed one ends the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from benchmarks.processes import side_by_side
from benchmarks.run import Run, run


def expand(
    base: Run, agents: Iterable[str], max_lens: Iterable[int], seeds: Iterable[int]
) -> list[Run]:
    """Every combination, as runs that differ from ``base`` in agent, length and seed."""
    lengths, numbers = tuple(max_lens), tuple(seeds)
    return [
        replace(base, agent=agent, max_len=max_len, seed=seed)
        for agent in agents
        for max_len in lengths
        for seed in numbers
    ]


def run_all(runs: list[Run], out: Path, jobs: int, threads: int) -> None:
    """Runs them all in the order given, and shows one progress bar.

    Args:
        runs: What to run.
        out: Folder of the result files.
        jobs: Processes at a time.
        threads: Threads of torch and of NumPy's linear algebra in each.
    """
    with tqdm(total=len(runs), desc="Runs", unit="run") as bar:
        for done in side_by_side(run, runs, out, False, jobs=jobs, threads=threads):
            bar.set_postfix_str(done.agent)
            bar.update()
