"""Many runs, side by side in processes; finished ones are skipped, a failed one ends the rest."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

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
    # NumPy's linear algebra reads these when a process starts; two processes that each use every
    # core spin against each other.
    for library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(library, str(threads))
    # Spawned, not forked: torch's thread pool does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        pending = {pool.submit(run, spec, out, False): spec for spec in runs}
        try:
            with tqdm(total=len(runs), desc="Runs", unit="run") as bar:
                for future in as_completed(pending):
                    future.result()
                    bar.set_postfix_str(pending[future].agent)
                    bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
