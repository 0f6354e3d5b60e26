"""The ``cost`` command: the price of balance, for policies of growing knowledge.

Every policy plays the same sessions with the best items of any group, with half of every slate from
each, and within the band that costs no penalty. What balance costs is the difference to the free
slates of a user whom imbalance does not annoy. Slates with a quota or within the band are never
penalised, so that the rule makes no difference to them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.formatting import markdown_table, mean_and_ci95, section
from benchmarks.results import Result, in_order, read_results, world_of
from benchmarks.run import SEED_RANGE, SLOTS, Run
from benchmarks.study import run_studies
from benchmarks.world_study import WorldStudy, add_world_arguments, measurement, worlds_of
from dsrm_agents import make_vec_env
from dsrm_agents.baselines.reference import SCORES, make_reference
from dsrm_agents.common.evaluation import evaluate
from kuaisim_gym.config import POPULARITIES, check_choice, check_whole
from kuaisim_gym.data import Dataset
from kuaisim_gym.metrics import Sessions

STUDY = "cost"
# By what they know: nothing, counts, the log's item effects, true item means, the train simulator,
# the causes, the answers that the test simulator expects.
POLICIES = (
    "random", "popularity", "quality", "expected-quality", "train-oracle", "truth",
    "expected-oracle",
)  # fmt: skip
FREE = "any, no rule"
# Suffix of the reference row, and options of the environment, by the title of the slates.
SLATES: dict[str, tuple[str, dict[str, Any]]] = {
    FREE: ("", {"abandonment": "none"}),
    "any": ("", {}),
    "quota": ("+quota", {}),
    "band": ("+band", {}),
}
KEYS = frozenset(
    {"study", "popularity", "env", "seed", "sessions", "dataset", "policies", "max_len", "rows"}
)

SUMMARY_NOTE = (
    "Change of a session's mean reward when half of every slate comes from each group, against the "
    "best items of any group and users whom imbalance does not annoy; ± is a 95 % interval over "
    "sessions, paired by user. Items are popular by exposures or by counted positives, by which "
    "the ranking by popularity goes as well."
)


@dataclass(frozen=True)
class CostStudy(WorldStudy):
    """The cost of balance in one world.

    Attributes:
        popularity: The count by which items are popular, for their groups and for the ranking by
            popularity; one of :data:`~kuaisim_gym.config.POPULARITIES`.
        policies: Scores of :data:`~dsrm_agents.baselines.reference.SCORES`.
    """

    study = STUDY

    popularity: str = "exposures"
    policies: tuple[str, ...] = POLICIES

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("popularity", self.popularity, POPULARITIES)
        for policy in self.policies:
            check_choice("policies", policy, SCORES)
        check_whole("sessions", self.spec.sessions, 2)  # an interval needs two

    @property
    def subject(self) -> str:
        return self.popularity

    def header(self) -> Result:
        return super().header() | {
            "popularity": self.popularity,
            "policies": list(self.policies),
            "sessions": self.spec.sessions,
        }

    def make(self, path: Path) -> Result:
        dataset, rows = replace(self.spec.load(), popularity=self.popularity), []
        for policy in self.policies:
            played = {slates: self._play(dataset, policy, slates) for slates in SLATES}
            free = played[FREE][0]
            for slates, (sessions, metrics) in played.items():
                row: dict[str, Any] = {"policy": policy, "slates": slates}
                rows.append(row | metrics | compare(sessions, free))
        return {"rows": rows}

    def _play(
        self, dataset: Dataset, policy: str, slates: str
    ) -> tuple[Sessions, dict[str, float]]:
        """Sessions of a policy, and their metrics."""
        spec, (suffix, rule) = self.spec, SLATES[slates]
        slots, first_seed = min(spec.sessions, SLOTS), spec.seed * SEED_RANGE + SEED_RANGE // 2
        options: dict[str, Any] = {**spec.session_options, "action_type": "slate", **rule}
        env = make_vec_env(spec.env, slots, "test", first_seed, dataset=dataset, **options)
        sessions = evaluate(make_reference(policy + suffix, env.batch), env, spec.sessions)
        metrics = env.batch.summarise(sessions)
        shown = {name: metrics[name] for name in ("len", "r_each", "q", "ad", "longtail_share")}
        return sessions, shown

    @staticmethod
    def markdown(results: Sequence[Result]) -> str:
        """The quota's cost in all worlds, and a table for each."""
        glance = section("What a quota costs", summary(results), SUMMARY_NOTE)
        return "\n\n".join([glance, *map(_table, in_order(results))])


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


def summary(results: Iterable[Result]) -> str:
    """A table of the change of R that half of every slate from each group makes, by world.

    Changes are shares of the free slates' R_each; an interval is that of the difference.
    """
    results = in_order(results)
    known = {policy for result in results for policy in result["policies"]}
    policies = [policy for policy in SCORES if policy in known]
    rows = []
    for result in results:
        free, changes = _free_rewards(result), {}
        for row in result["rows"]:
            if row["slates"] == "quota":
                share, half = (100 * row[x] / free[row["policy"]] for x in ("d_r", "d_r_ci95"))
                changes[row["policy"]] = f"{share:+.1f} ± {half:.1f} %"
        title = f"{world_of(result).short_title}, by {result['popularity']}"
        rows.append([title, *(changes.get(policy, "") for policy in policies)])
    return markdown_table(["world, groups by", *policies], rows)


def _free_rewards(result: Result) -> dict[str, float]:
    """R_each of each policy's free slates."""
    return {row["policy"]: row["r_each"] for row in result["rows"] if row["slates"] == FREE}


def _table(result: Result) -> str:
    rows, free = [], _free_rewards(result)
    for row in result["rows"]:
        cells = [row["policy"], row["slates"], f"{row['len']:.2f}"]
        cells += [f"{row[name]:.3f}" for name in ("r_each", "q")]
        cells += [f"{1 - row['longtail_share']:.2f}", f"{row['ad']:.3f}"]
        if row["slates"] == FREE:
            cells += ["", "", ""]
        else:
            cells += [
                f"{row['d_r']:+.4f} ± {row['d_r_ci95']:.4f}",
                f"{100 * row['d_r'] / free[row['policy']]:+.1f} %",
                f"{row['d_len']:+.2f} ± {row['d_len_ci95']:.2f}",
            ]
        rows.append(cells)
    header = ["policy", "slates", "Len", "R_each", "q", "popular share", "AD", "d R", "of R",
              "d Len"]  # fmt: skip
    note = (
        f"{result['sessions']:,} sessions of the same users and random numbers. d: less the free "
        "slates of users whom imbalance does not annoy (no rule), session by session, R the mean "
        "reward of a session; ± is a 95 % interval over sessions. A penalised session is shorter: "
        "it shows fewer and therefore better items, so that its R is not to be compared."
    )
    title = f"Cost of balance: {world_of(result).title}, groups by {result['popularity']}"
    return section(title, markdown_table(header, rows, "llr"), note)


def read_studies(folder: Path) -> list[Result]:
    """Results of this study in a folder.

    Raises:
        DataFormatError: There are none, or a measurement has two files.
    """
    return read_results(folder, STUDY, KEYS, lambda row: measurement(row, "popularity"), "world")


def studies_of(world: Run, policies: Sequence[str]) -> list[CostStudy]:
    """Studies of a world, one for each count by which its items can be popular.

    Args:
        world: The world.
        policies: Names of scores; empty for all that the data allow.

    Raises:
        ConfigError: A policy does not exist.
    """
    dataset = world.load()
    has_truth = dataset.truth is not None
    usual = [name for name in POLICIES if has_truth or not SCORES[name].synthetic_only]
    counts = POPULARITIES if dataset.popularity == "exposures" else (dataset.popularity,)
    return [CostStudy(world, count, tuple(policies or usual)) for count in counts]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add_world_arguments(parser)
    add(
        "--policies", nargs="+", default=[],
        help=f"default: those of {', '.join(POLICIES)} that the data allow",
    )  # fmt: skip
    add("--seed", type=int, default=Run.seed, help=f"of the sessions; default: {Run.seed}")


def main(options: argparse.Namespace) -> None:
    """Measures the cost in the worlds and prints the tables of the folder.

    Raises:
        ConfigError: The world or an option does not exist, or a result has other settings.
        DataFormatError: The folder holds no results.
    """
    if options.table is None:
        worlds = worlds_of(options, [options.seed])
        studies = [study for world in worlds for study in studies_of(world, options.policies)]
        run_studies(studies, options.out, options.jobs)
    print(CostStudy.markdown(read_studies(options.table or options.out)))
