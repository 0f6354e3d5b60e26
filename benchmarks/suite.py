"""Many runs, side by side in processes; finished ones are skipped, a failed one ends the rest.

Those that were interrupted go on; see :func:`~benchmarks.run.run`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from benchmarks.agents import find_agent
from benchmarks.processes import side_by_side
from benchmarks.run import Run, run
from kuaisim_gym.errors import ConfigError


def expand(
    base: Run, agents: Iterable[str], max_lens: Iterable[int], seeds: Iterable[int]
) -> list[Run]:
    """Every combination, as runs that differ from ``base`` in agent, length and seed.

    Raises:
        ConfigError: An agent is unknown, or two have one name.
    """
    agents, lengths, numbers = tuple(agents), tuple(max_lens), tuple(seeds)
    names = [find_agent(agent).name for agent in agents]
    if len(set(names)) < len(names):
        raise ConfigError(f"Agents must have different names, got {names}: rename or drop one.")
    return [
        replace(base, agent=agent, max_len=max_len, seed=seed)
        for agent in agents
        for max_len in lengths
        for seed in numbers
    ]


def run_all(
    runs: list[Run], out: Path, jobs: int, threads: int, tensorboard: Path | None = None
) -> None:
    """Runs them all in the order given, and shows one progress bar.

    Args:
        runs: What to run.
        out: Folder of the result files.
        jobs: Processes at a time.
        threads: Threads of torch and of NumPy's linear algebra in each.
        tensorboard: Folder of TensorBoard's logs, see :func:`~benchmarks.run.run`.
    """
    with tqdm(total=len(runs), desc="Runs", unit="run") as bar:
        shared = (out, False, tensorboard)
        for done in side_by_side(run, runs, *shared, jobs=jobs, threads=threads):
            bar.set_postfix_str(done.agent)
            bar.update()
