"""The ``cost`` command: the price of balance, for policies of growing knowledge.

Every policy plays the same sessions with the best items of any group, with half of every slate from
each, and within the band that costs no penalty. What balance costs is the difference to the free
slates of a user whom imbalance does not annoy. Slates with a quota or within the band are never
penalised, so that the rule makes no difference to them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.commands import add_dataset, add_dataset_seed, add_jobs, add_out_or_table
from benchmarks.formatting import markdown_table, mean_and_ci95, section
from benchmarks.origin import env_for
from benchmarks.results import Result, read_results, world_of
from benchmarks.run import SEED_RANGE, SLOTS, Run
from benchmarks.study import run_studies
from benchmarks.world_study import WorldStudy, measurement
from dsrm_agents import make_vec_env
from dsrm_agents.baselines.reference import make_reference
from dsrm_agents.common.evaluation import evaluate
from kuaisim_gym.config import check_whole
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions

STUDY = "cost"
POLICIES = ("random", "popularity", "quality", "expected-quality", "expected-oracle")
MAX_LENS = (30, 50)
FREE = "any, no rule"
# Suffix of the reference row, and options of the environment, by the title of the slates.
SLATES: dict[str, tuple[str, dict[str, Any]]] = {
    FREE: ("", {"abandonment": "none"}),
    "any": ("", {}),
    "quota": ("+quota", {}),
    "band": ("+band", {}),
}
KEYS = frozenset({"study", "env", "seed", "sessions", "dataset", "policies", "max_lens", "rows"})


@dataclass(frozen=True)
class CostStudy(WorldStudy):
    """The cost of balance in one world.

    Attributes:
        max_lens: Longest sessions.
        policies: Scores of :data:`~dsrm_agents.baselines.reference.SCORES`.
        sessions: Sessions of each policy, the same for all.
    """

    study = STUDY

    max_lens: tuple[int, ...] = MAX_LENS
    policies: tuple[str, ...] = POLICIES
    sessions: int = Run.sessions

    def __post_init__(self) -> None:
        super().__post_init__()
        if check_whole("sessions", self.sessions, 2) > SLOTS and self.sessions % SLOTS:
            raise ConfigError(
                f"sessions must be at most {SLOTS} or a multiple of it, got {self.sessions}."
            )

    def header(self) -> Result:
        return super().header() | {
            "max_lens": list(self.max_lens),
            "policies": list(self.policies),
            "sessions": self.sessions,
            "seed": self.seed,
        }

    def make(self, path: Path) -> Result:
        rows = []
        for max_len, policy in product(self.max_lens, self.policies):
            played = {slates: self._play(policy, slates, max_len) for slates in SLATES}
            free = played[FREE][0]
            for slates, (sessions, metrics) in played.items():
                rows.append(
                    {"max_len": max_len, "policy": policy, "slates": slates, **metrics}
                    | compare(sessions, free)
                )
        return {"rows": rows}

    def _play(self, policy: str, slates: str, max_len: int) -> tuple[Sessions, dict[str, float]]:
        """Sessions of a policy, and their metrics."""
        suffix, rule = SLATES[slates]
        slots, first_seed = min(self.sessions, SLOTS), self.seed * SEED_RANGE + SEED_RANGE // 2
        env = make_vec_env(
            self.env, slots, "test", first_seed, dataset=self.origin.load(), max_len=max_len,
            action_type="slate", **rule,
        )  # fmt: skip
        sessions = evaluate(make_reference(policy + suffix, env.batch), env, self.sessions)
        metrics = env.batch.summarise(sessions)
        shown = {name: metrics[name] for name in ("len", "r_each", "q", "ad", "longtail_share")}
        return sessions, shown

    @staticmethod
    def markdown(results: Sequence[Result]) -> str:
        """A table for each world."""
        return "\n\n".join(_table(result) for result in results)


def compare(sessions: Sessions, free: Sessions) -> dict[str, float]:
    """Differences of Len and R to the free slates, session by session.

    Args:
        sessions: Sessions of a policy.
        free: Those of the same users, by the same random numbers, with free slates.

    Returns:
        ``d_len`` and ``d_r``, mean differences of length and of a session's mean reward, and the
        half-widths of their 95 % intervals over sessions.
    """
    differences: dict[str, NDArray[np.float64]] = {
        "d_len": np.subtract(sessions.length, free.length, dtype=np.float64),
        "d_r": _reward(sessions) - _reward(free),
    }
    values = {}
    for name, difference in differences.items():
        values[name], values[f"{name}_ci95"] = mean_and_ci95(difference.tolist())
    return values


def _reward(sessions: Sessions) -> NDArray[np.float64]:
    """(n,) mean reward of a step of each session."""
    return np.asarray(sessions.rewards.sum(axis=1) / sessions.length, dtype=np.float64)


def _table(result: Result) -> str:
    rows = []
    r_free = {
        (row["max_len"], row["policy"]): row["r_each"]
        for row in result["rows"]
        if row["slates"] == FREE
    }
    for row in result["rows"]:
        share = row["d_r"] / r_free[row["max_len"], row["policy"]]
        cells = [str(row["max_len"]), row["policy"], row["slates"], f"{row['len']:.2f}"]
        cells += [f"{row[name]:.3f}" for name in ("r_each", "q")]
        cells += [f"{1 - row['longtail_share']:.2f}", f"{row['ad']:.3f}"]
        if row["slates"] == FREE:
            cells += ["", "", ""]
        else:
            cells += [
                f"{row['d_r']:+.4f} ± {row['d_r_ci95']:.4f}",
                f"{100 * share:+.1f} %",
                f"{row['d_len']:+.2f} ± {row['d_len_ci95']:.2f}",
            ]
        rows.append(cells)
    header = ["T", "policy", "slates", "Len", "R_each", "q", "popular share", "AD", "d R", "of R",
              "d Len"]  # fmt: skip
    note = (
        f"{result['sessions']:,} sessions of the same users and random numbers. d: less the free "
        "slates of users whom imbalance does not annoy (no rule), session by session, R the mean "
        "reward of a session; ± is a 95 % interval over sessions. A penalised session is shorter: "
        "it shows fewer and therefore better items, so that its R is not to be compared."
    )
    world = world_of(result | {"max_len": 0})  # of all lengths
    title = f"Cost of balance: {world.env}, {world.dataset} ({world.data}, {world.fingerprint})"
    return section(title, markdown_table(header, rows, "rllr"), note)


def read_studies(folder: Path) -> list[Result]:
    """Results of this study in a folder."""
    return read_results(folder, STUDY, KEYS, measurement, "world")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("--env", help=f"of whole sessions; default: {Run.env}, or that of --dataset")
    add_dataset(parser)
    add_dataset_seed(parser)
    add("--max-len", type=int, nargs="+", default=list(MAX_LENS), help="default: 30 50")
    add("--policies", nargs="+", default=list(POLICIES), help=f"default: {' '.join(POLICIES)}")
    add("--sessions", type=int, default=Run.sessions, help="of each policy; default: 1000")
    add("--seed", type=int, default=Run.seed, help=f"of the sessions; default: {Run.seed}")
    add_jobs(parser)
    add_out_or_table(parser)


def main(options: argparse.Namespace) -> None:
    """Measures the cost in one world and prints the tables of the folder.

    Raises:
        ConfigError: The world or an option does not exist, or a result has other settings.
        DataFormatError: The folder holds no results.
    """
    if options.table is None:
        study = CostStudy(
            options.env or env_for(options.dataset, Run.env), options.dataset,
            options.dataset_seed, options.seed, tuple(options.max_len), tuple(options.policies),
            options.sessions,
        )  # fmt: skip
        run_studies([study], options.out)
    print(CostStudy.markdown(read_studies(options.table or options.out)))
