"""The ``cost`` command: the price of balance, for policies of growing knowledge.

Every policy plays the same sessions with the best items of any group, with half of every slate from
each, and within the band that costs no penalty. What balance costs is the difference to the free
slates of a user whom imbalance does not annoy. Slates with a quota or within the band are never
penalised, so that the rule makes no difference to them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dsrm_agents.baselines.bands import COMPOSITIONS
from dsrm_agents.baselines.reference import SCORES, make_reference
from kuaisim_gym.config import POPULARITIES, check_choice, check_whole
from kuaisim_gym.data import Dataset
from kuaisim_gym.metrics import Sessions

from .agents.agent import SLATE_ACTIONS, Agent
from .estimates.states import ESTIMATES, RAW, make_ready
from .formatting import markdown_table, mean_and_ci95_by_user, section
from .reports.plots import save_small
from .runs.judging import Played, play
from .runs.settings import Run
from .runs.world_study import WorldStudy, add_world_arguments, measurement, worlds_of
from .studies.backends import results_of
from .studies.results import Result, in_order, read_results, world_of

STUDY = "cost"
# By what they know: nothing, counts, the items' qualities, these and the raw state or the belief,
# true item means, the train simulator, the causes, the answers that the test simulator expects.
POLICIES = (
    "random", "popularity", "quality", RAW, "filter", "expected-quality", "train-oracle", "truth",
    "expected-oracle",
)  # fmt: skip
# Names of the estimates in the figure.
DRAWN = {
    "popularity": "counts", "quality": "quality", RAW: "raw state", "filter": "belief",
    "expected-quality": "true item\nmeans", "expected-oracle": "expected\nanswers",
}  # fmt: skip
FREE = "any, no rule"
# Suffix of the reference row, and options of the environment, by the title of the slates.
SLATES: dict[str, tuple[str, dict[str, str]]] = {
    FREE: ("", {"abandonment": "none"}),
    "any": ("", {}),
    "quota": ("+quota", {}),
    "band": ("+band", {}),
}
METRICS = ("len", "r_each", "q", "ad", "longtail_share")
KEYS = frozenset(
    {"study", "popularity", "env", "seed", "sessions", "dataset", "policies", "max_len", "rows"}
)

SUMMARY_NOTE = (
    "Change of a session's mean reward when half of every slate comes from each group, against the "
    "best items of any group and users whom imbalance does not annoy; ± is a 95 % interval over "
    "users, paired by session. Items are popular by exposures or by counted positives, by which "
    "the ranking by popularity goes as well."
)


@dataclass(frozen=True)
class CostStudy(WorldStudy):
    """The cost of balance in one world.

    Attributes:
        popularity: The count by which items are popular, for their groups and for the ranking by
            popularity; one of :data:`~kuaisim_gym.config.POPULARITIES`.
        policies: Scores of :data:`~dsrm_agents.baselines.reference.SCORES`, or of
            :data:`~benchmarks.estimates.states.ESTIMATES`.
    """

    study = STUDY

    popularity: str = "exposures"
    policies: tuple[str, ...] = POLICIES

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("popularity", self.popularity, POPULARITIES)
        for policy in self.policies:
            check_choice("policies", policy, (*SCORES, *ESTIMATES))
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
            player = self._player(dataset, policy)
            played = {slates: player(slates) for slates in SLATES}
            free = played[FREE].sessions
            for slates, one in played.items():
                row: dict[str, Any] = {"policy": policy, "slates": slates}
                metrics = {name: one.metrics[name] for name in METRICS}
                rows.append(row | metrics | compare(one.sessions, free))
        return {"rows": rows}

    def _player(self, dataset: Dataset, policy: str) -> Callable[[str], Played]:
        """A function from the title of the slates to a policy's sessions."""
        ready = None if policy in SCORES else make_ready(policy, self.spec, dataset)

        def play_with(slates: str) -> Played:
            suffix, rule = SLATES[slates]
            if ready is None:
                row = partial(make_reference, policy + suffix)
                agent, purifier = Agent(policy, rule=row, env_options=SLATE_ACTIONS), None
            else:
                agent, purifier = ready.agent(COMPOSITIONS[suffix]), ready.purifier
            agent = replace(agent, env_options={**agent.env_options, **rule})
            return play(agent, self.spec, dataset, None, purifier)

        return play_with

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
        half-widths of their 95 % intervals, see
        :func:`~benchmarks.formatting.mean_and_ci95_by_user`.
    """
    differences: dict[str, NDArray[np.float64]] = {
        "d_len": np.subtract(sessions.length, free.length, dtype=np.float64),
        "d_r": _reward(sessions) - _reward(free),
    }
    values = {}
    for name, difference in differences.items():
        pair = mean_and_ci95_by_user(difference, sessions.users)
        values[name], values[f"{name}_ci95"] = pair
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
    policies = [
        policy for policy in dict.fromkeys((*POLICIES, *SCORES, *sorted(known))) if policy in known
    ]
    rows = []
    for result in results:
        changes = {
            policy: f"{share:+.1f} ± {half:.1f} %"
            for policy, (share, half) in quota_changes(result).items()
        }
        title = f"{world_of(result).short_title}, by {result['popularity']}"
        rows.append([title, *(changes.get(policy, "") for policy in policies)])
    return markdown_table(["world, groups by", *policies], rows)


def synthetic(results: Iterable[Result]) -> str:
    """The same table of synthetic worlds alone."""
    return summary(result for result in results if result["dataset"]["synthetic"])


def quota_changes(result: Result) -> dict[str, tuple[float, float]]:
    """Changes of R_each that half of every slate from each group makes, by policy.

    Returns:
        Change and half-width of its 95 % interval, both in per cent of the free slates' R_each.
    """
    free = _free_rewards(result)
    return {
        row["policy"]: (
            100 * row["d_r"] / free[row["policy"]],
            100 * row["d_r_ci95"] / free[row["policy"]],
        )
        for row in result["rows"]
        if row["slates"] == "quota"
    }


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
        "reward of a session; ± is a 95 % interval. A penalised session is shorter: it shows fewer "
        "and therefore better items, so that its R is not to be compared."
    )
    title = f"Cost of balance: {world_of(result).title}, groups by {result['popularity']}"
    return section(title, markdown_table(header, rows, "llr"), note)


def read_studies(folder: Path) -> list[Result]:
    """Results of this study in a folder.

    Raises:
        DataFormatError: There are none, or a measurement has two files.
    """
    return read_results(folder, STUDY, KEYS, lambda row: measurement(row, "popularity"), "world")


def draw(results: Iterable[Result]) -> Figure:
    """Rewards of free slates and of half of each group, by what policies know of users and items.

    Args:
        results: Of any worlds; each has a panel. Bars are the 95 % intervals of the differences.
    """
    results = in_order(results)
    figure = Figure(figsize=(6.4, 2.6 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), 1, squeeze=False)[:, 0]
    for axes, result in zip(panels, results, strict=True):
        rows = {(row["policy"], row["slates"]): row for row in result["rows"]}
        names = [name for name in DRAWN if (name, FREE) in rows]
        quotas, frees = ([rows[name, slates] for name in names] for slates in ("quota", FREE))
        free = np.array([row["r_each"] for row in frees])
        drop = np.array([row["d_r"] for row in quotas])
        places = np.arange(len(names))
        axes.bar(places - 0.2, free, 0.4, label="best of any group, nobody minds")
        halves = [row["d_r_ci95"] for row in quotas]
        axes.bar(places + 0.2, free + drop, 0.4, yerr=halves, capsize=2, label="half of each group")
        for place, reward, change in zip(places, free, drop, strict=True):
            text = f"{100 * change / reward:+.1f} %"
            axes.annotate(text, (place + 0.2, reward), ha="center", va="bottom", fontsize="x-small")
        axes.set_xticks(places, [DRAWN[name] for name in names], fontsize="x-small")
        axes.set(ylabel="R", ylim=(0, 1.15 * max(free, default=1.0)))
        title = f"{world_of(result).short_title}, groups by {result['popularity']}"
        axes.set_title(title, fontsize="small")
    panels[0].legend(fontsize="x-small", loc="upper left")
    return figure


def studies_of(world: Run, policies: Sequence[str]) -> list[CostStudy]:
    """Studies of a world, one for each count by which its items can be popular.

    Args:
        world: The world.
        policies: Names of scores or state estimates; empty for all that the data allow.

    Raises:
        ConfigError: A policy does not exist.
    """
    dataset = world.load()
    usual = [name for name in POLICIES if name not in SCORES or SCORES[name].suits(dataset)]
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
    add("--seed", type=int, default=Run.seed, help="of the sessions")


def main(options: argparse.Namespace) -> None:
    """Measures the cost in the worlds, prints the tables of the folder and draws their figure.

    Raises:
        ConfigError: The world or an option does not exist, or a result has other settings.
        DataFormatError: The folder holds no results.
    """

    def plan() -> Iterator[CostStudy]:
        for world in worlds_of(options, [options.seed]):
            yield from studies_of(world, options.policies)

    results = results_of(options, plan, read_studies, CostStudy.markdown)
    if options.table is None:
        print(save_small(draw(results), options.out / "cost.png"))
