"""Tables of the days study: means and 95 % intervals over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kuaisim_gym.errors import DataFormatError

from ..agents import AGENTS
from ..formatting import interval, markdown_table, section
from ..studies.results import Result, World, read_results, run_of, world_of

STUDY = "days"
ORACLE = "expected-oracle+quota"
CHANCE = "random"
STOCKS = ("logged", "met", "newborn")
METRICS = (
    "len", "r_each", "r_cum", "ad", "longtail_share", "new_share", "new_reward", "old_reward",
    "first_exposure", "unseen",
)  # fmt: skip
KEYS = frozenset(
    {"study", "agent", "env", "max_len", "seed", "dataset", "days", "train_days",
     "train_sessions", "sessions", "trials", "frozen", "stocks", "versions", "commit"}
)  # fmt: skip
SIZES = ("days", "train_days", "train_sessions", "sessions", "trials")  # settings of a study
MODES = ("frozen", "continual")
# Titles and decimal places of the columns about the days after training.
_COLUMNS = {
    "len": ("Len", 2), "r_each": ("R_each", 3), "ad": ("AD", 3),
    "longtail_share": ("long tail", 3), "new_share": ("new items", 3),
    "first_exposure": ("first shown", 1), "unseen": ("never shown", 3),
}  # fmt: skip


class Days(NamedTuple):
    """All results of one world.

    Attributes:
        world: The world.
        trials: Rows of each newcomer that the log has when it comes.
        note: Days and numbers of sessions.
        agents: Results by agent, then by seed.
    """

    world: World
    trials: int
    note: str
    agents: dict[str, dict[int, Result]]

    @property
    def title(self) -> str:
        """Heading of tables and figures."""
        return f"{self.world.title}, {self.trials} trials of newcomers"

    @property
    def slug(self) -> str:
        """Name in file names."""
        return f"{self.world.slug}_trials{self.trials}"

    def played(self, agent: str, mode: str) -> dict[int, Result]:
        """Measures of an agent in a mode, by seed; empty if it has none."""
        runs = self.agents[agent].items()
        return {seed: run[mode] for seed, run in runs if mode in run}

    def rows(self) -> list[tuple[str, str, str]]:
        """Labels, agents and modes of the rows of tables."""
        return [
            (agent if mode == MODES[0] else f"{agent}, {mode}", agent, mode)
            for agent in self.agents
            for mode in MODES
            if self.played(agent, mode)
        ]

    def by_seed(
        self, agent: str, mode: str, value: Callable[[Result], float | None]
    ) -> list[float]:
        """One number for each seed that has it."""
        values = [value(played) for played in self.played(agent, mode).values()]
        return [number for number in values if number is not None]

    def lead(self, agent: str, stock: str) -> list[float]:
        """Mean reward on a stock over that of random slates, in units of the oracle's, by seed."""
        chance, oracle = self.agents.get(CHANCE, {}), self.agents.get(ORACLE, {})
        rewards = {
            seed: [runs[seed]["stocks"][stock] for runs in (self.agents[agent], chance, oracle)]
            for seed in self.agents[agent].keys() & chance.keys() & oracle.keys()
        }
        return [(own - least) / (most - least) for own, least, most in rewards.values()]

    def regret(self, agent: str, mode: str) -> list[float]:
        """R_each of the oracle less the agent's, by seed."""
        oracle = self.played(ORACLE, MODES[0]) if ORACLE in self.agents else {}
        return [
            oracle[seed]["metrics"]["r_each"] - played["metrics"]["r_each"]
            for seed, played in self.played(agent, mode).items()
            if seed in oracle
        ]


def read_studies(folder: Path) -> list[Result]:
    """Results of the study in a folder and its subfolders.

    Raises:
        DataFormatError: There are none, or a measurement has two.
    """
    return read_results(folder, STUDY, KEYS, _measurement)


def _measurement(result: Result) -> Hashable:
    return run_of(result), result["trials"]


def worlds(results: list[Result]) -> list[Days]:
    """Results by world, and by what is known of newcomers.

    Raises:
        DataFormatError: They differ in days or sessions.
    """
    grouped: dict[tuple[World, int], list[Result]] = defaultdict(list)
    for result in results:
        grouped[world_of(result), result["trials"]].append(result)
    order = sorted(grouped, key=lambda group: (group[0].rank, group[1]))
    return [_days(world, grouped[world, trials]) for world, trials in order]


def _order(agent: str) -> int:
    """Place of an agent in tables; those of users come last."""
    names = [*AGENTS]
    return names.index(agent) if agent in names else len(names)


def _days(world: World, results: list[Result]) -> Days:
    sizes = {tuple(result[name] for name in SIZES) for result in results}
    if len(sizes) > 1:
        raise DataFormatError(
            f"Results of {world.title} differ in {', '.join(SIZES)}: {sorted(sizes)}. Give a "
            "folder that holds one of them."
        )
    ((days, train_days, train_sessions, sessions, trials),) = sizes
    agents: dict[str, dict[int, Result]] = defaultdict(dict)
    for result in sorted(results, key=lambda result: _order(result["agent"])):
        agents[result["agent"]][result["seed"]] = result
    known = f"the log has {trials} rows each" if trials else "nothing is logged"
    note = (
        f"Trained on days 1 to {train_days} with {train_sessions:,} sessions a day, judged on days "
        f"{train_days + 1} to {days} with {sessions:,} a day; of newcomers {known}"
    )
    return Days(world, trials, note, dict(agents))


def markdown(results: list[Result]) -> str:
    """Tables of all worlds."""
    return "\n\n".join(map(tables, worlds(results))) + "\n"


def tables(days: Days) -> str:
    """Tables of one world: reward after training, leads on new items, and concentration."""
    note = (
        f"± is a 95 % interval over seeds. {days.note}. New items: share of exposures that items "
        "of at most three days had. First shown: days from a newcomer's birth to its first "
        "exposure, empty where none was. Regret: what R_each falls short of that of the row "
        f"{ORACLE}, which knows the expected answers to new items, too."
    )
    stocks = _stocks(days)
    leads = (stocks, _STOCKS_NOTE) if stocks else ()
    return section(days.title, _earned(days), note, *leads, _loop(days), _LOOP_NOTE)


def _metric(name: str) -> Callable[[Result], float | None]:
    """A metric of the days after training."""

    def read(played: Result) -> float | None:
        value: float | None = played["metrics"][name]
        return value

    return read


def _on_day(name: str, day: int) -> Callable[[Result], float]:
    """A measure of one day."""

    def read(played: Result) -> float:
        return float(played["daily"][name][day])

    return read


def _earned(days: Days) -> str:
    header = ["agent", "seeds", *(title for title, _ in _COLUMNS.values()), "regret"]
    rows = []
    for label, agent, mode in days.rows():
        cells = [
            interval(days.by_seed(agent, mode, _metric(name)), digits)
            for name, (_, digits) in _COLUMNS.items()
        ]
        regret = interval(days.regret(agent, mode))
        rows.append([label, str(len(days.played(agent, mode))), *cells, regret])
    return markdown_table(header, rows)


_STOCKS_NOTE = (
    "Lead over random slates in mean reward, where nothing but some items can be shown: items of "
    "the log; as many that came in training, so that the policy has met them; as many born after "
    "it. The oracle's lead is 100: an agent that earns .7 where random slates earn .6 and the "
    "oracle .8 has 50. Kept: the lead on newborn items over that on items met, if that is 10 at "
    "least."
)
_LEAST_LEAD = 10.0  # per cent of the oracle's; less is next to nothing, of which nothing is kept


def _stocks(days: Days) -> str:
    """Table of leads; empty without rows of chance and oracle, which they are measured by."""
    rows = []
    for agent in days.agents:
        leads = {stock: [100 * lead for lead in days.lead(agent, stock)] for stock in STOCKS}
        if agent in (CHANCE, ORACLE) or not leads["met"]:
            continue
        met, newborn = (float(np.mean(leads[stock])) for stock in ("met", "newborn"))
        kept = f"{100 * newborn / met:.0f} %" if met >= _LEAST_LEAD else ""
        rows.append([agent, *(interval(leads[stock], 1) for stock in STOCKS), kept])
    header = ["agent", "logged", "met in training", "newborn", "kept"]
    return markdown_table(header, rows) if rows else ""


_LOOP_NOTE = (
    "Gini coefficient of popularity, the moving average of exposures, over the items that are "
    "there: on the first day the log's, then what the agent itself has made of it; and of the "
    "exposures of the last day alone."
)


def _loop(days: Days) -> str:
    header = ["agent", "popularity, first day", "last day", "change", "exposures, last day"]
    rows = []
    for label, agent, mode in days.rows():
        first, last, exposed = (
            days.by_seed(agent, mode, _on_day(measure, day))
            for measure, day in (("concentration", 0), ("concentration", -1), ("gini", -1))
        )
        change = [after - before for before, after in zip(first, last, strict=True)]
        cells = [interval(first), interval(last), interval(change, sign="+"), interval(exposed)]
        rows.append([label, *cells])
    return markdown_table(header, rows)
