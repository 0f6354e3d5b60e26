"""The ``exposure`` command: ten metrics of exposure of a few simple policies, on one plot."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym.errors import DataFormatError
from kuaisim_gym.metrics import CLASSES, EXPOSURE_METRICS, Audit, bootstrap_ci95

from .agents.agent import SLATE_ACTIONS, Agent
from .formatting import NOT_MADE, interval, markdown_table, section
from .paper import SEEDS
from .reports.plots import means_and_halves, save_small
from .runs.judging import play
from .runs.world_study import WorldStudy, add_world_arguments, measurement, worlds_of
from .studies.backends import results_of
from .studies.results import Result, World, in_order, read_results, without_nan, world_of

STUDY = "exposure"
POLICIES = {
    "random": "random",
    "popularity": "popularity",
    "quality": "quality",
    "quality+quota": "quality, 5 + 5",
    "expected-oracle": "expected answers",
    "expected-oracle+quota": "expected answers, 5 + 5",
}
# A number for each of the ten: what tables show beside them is another form of the same.
PANELS = (
    "group_ad", "merit_ratio", "ee_l", "awrf", "envy", "gini", "coverage", "entropy", "novelty",
    "len_worst",
)  # fmt: skip
KEYS = frozenset({"policy", "env", "max_len", "seed", "dataset", "metrics", "users"})
CLASS_NAMES = ("activity", "taste")
# The world of the page on metrics.
EXAMPLE = World("KuaiRec-Fair-v0", "kuairec", "synthetic", 0, False, "", 30)


@dataclass(frozen=True)
class ExposureStudy(WorldStudy):
    """Sessions of a policy without training, and all that is said about their exposure.

    Attributes:
        policy: A key of :data:`POLICIES`.
    """

    study = STUDY

    policy: str = "random"

    @property
    def subject(self) -> str:
        return self.policy

    def header(self) -> Result:
        return super().header() | {"policy": self.policy, "sessions": self.spec.sessions}

    def make(self, path: Path) -> Result:
        rule = Agent(
            self.policy, rule=partial(make_reference, self.policy), env_options=SLATE_ACTIONS
        )
        played = play(rule, self.spec, self.spec.load(), None, None)
        audit = played.batch.audit(played.sessions)
        half = bootstrap_ci95(audit, Audit.summarise, np.random.default_rng(self.spec.seed))
        return {
            "eval": played.block,
            "metrics": without_nan(
                audit.summarise() | {f"{name}_ci95": value for name, value in half.items()}
            ),
            "users": without_nan(played.batch.summarise_users(played.sessions)),
        }

    @staticmethod
    def markdown(results: list[Result]) -> str:
        """Tables of all metrics and of all classes of users, for each world."""
        return "\n\n".join(_tables(world, rows) for world, rows in by_policy(results).items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_world_arguments(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the sessions")


def main(options: argparse.Namespace) -> None:
    """Makes the missing studies, prints the tables, and draws a figure for each world.

    Raises:
        ConfigError: The world or an option does not exist, or a result has other settings.
        DataFormatError: The folder holds no results of this study.
    """

    def plan() -> Iterator[ExposureStudy]:
        for world, policy in product(worlds_of(options, options.seeds), POLICIES):
            yield ExposureStudy(world, policy)

    results = results_of(options, plan, read_studies, ExposureStudy.markdown)
    if options.out is not None:
        print(*draw_all(results, options.out), sep="\n")


def read_studies(folder: Path) -> list[Result]:
    """Results of this study in a folder.

    Raises:
        DataFormatError: There are none, a measurement has two files, or a policy is unknown.
    """
    results = read_results(folder, STUDY, KEYS, lambda row: measurement(row, "policy"), "policy")
    if foreign := {result["policy"] for result in results} - POLICIES.keys():
        raise DataFormatError(
            f"{folder} holds exposures of {', '.join(sorted(foreign))}: expected policies of "
            f"{', '.join(POLICIES)}."
        )
    return results


def by_policy(results: Sequence[Result]) -> dict[World, dict[str, list[Result]]]:
    """Results by world and policy, in the order of :data:`POLICIES`; older worlds come last."""
    worlds: dict[World, dict[str, list[Result]]] = {}
    by_name = sorted(results, key=lambda row: [*POLICIES].index(row["policy"]))
    for result in in_order(by_name):
        worlds.setdefault(world_of(result), {}).setdefault(result["policy"], []).append(result)
    return worlds


def draw_all(results: Sequence[Result], out: Path) -> list[Path]:
    """Draws a figure for each of today's worlds, and returns the PNG files."""
    return [
        save_small(draw(world, rows), out / f"{STUDY}_{world.slug}.png")
        for world, rows in by_policy(results).items()
        if not world.is_older
    ]


def draw(world: World, policies: dict[str, list[Result]]) -> Figure:
    """A small panel for each of the ten metrics, with the value of a fair or even policy."""
    figure = Figure(figsize=(12.5, 5.2), layout="constrained")
    metrics = {metric.name: metric for metric in EXPOSURE_METRICS}
    colours = [f"C{number}" for number in range(len(policies))]
    for axes, name in zip(figure.subplots(2, len(PANELS) // 2).flat, PANELS, strict=True):
        metric = metrics[name]
        means, halves = means_and_halves(
            _numbers(runs, "metrics", name) or [np.nan] for runs in policies.values()
        )
        axes.bar(range(len(policies)), means, yerr=halves, color=colours, capsize=2)
        if metric.goal is not None:
            axes.axhline(metric.goal, color="black", linestyle=":", linewidth=1.5)
        axes.set_title(metric.title, fontsize="medium")
        axes.set_xticks([])
        axes.grid(axis="y", alpha=0.3)
    bars = figure.axes[0].patches
    labels = [POLICIES[policy] for policy in policies]
    figure.legend(bars, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    figure.suptitle(
        f"{world.title}; bars: 95 % intervals over seeds; dotted: all are treated alike",
        fontsize="medium",
    )
    return figure


def example(worlds: Mapping[World, dict[str, list[Result]]]) -> dict[str, list[Result]]:
    """Results by policy in the world of the page's example; empty without any."""
    for world, policies in worlds.items():
        if world._replace(fingerprint="") == EXAMPLE:
            return policies
    return {}


def panels(policies: dict[str, list[Result]]) -> str:
    """The figure's ten numbers of each policy as a table: means over seeds."""
    titles = {metric.name: metric.title for metric in EXPOSURE_METRICS}
    rows = [
        [POLICIES[policy], *(mean(runs, name) for name in PANELS)]
        for policy, runs in policies.items()
    ]
    return markdown_table(["policy", *(titles[name] for name in PANELS)], rows)


def mean(runs: list[Result], name: str) -> str:
    """The mean of a metric over a policy's runs, in three figures; :data:`NOT_MADE` without any."""
    numbers = _numbers(runs, "metrics", name)
    return f"{np.mean(numbers):#.3g}" if numbers else NOT_MADE


def _numbers(runs: list[Result], block: str, name: str) -> list[float]:
    """One number of each run that has it: a class without sessions, for example, has none."""
    return [run[block][name] for run in runs if run[block][name] is not None]


def _tables(world: World, policies: dict[str, list[Result]]) -> str:
    metrics = [
        [policy, *(interval(_numbers(runs, "metrics", m.name)) for m in EXPOSURE_METRICS)]
        for policy, runs in policies.items()
    ]
    names = [f"{name}_{level}" for name, level in product(CLASS_NAMES, CLASSES)]
    users = [
        [
            policy,
            *(
                ", ".join(
                    interval(_numbers(runs, "users", f"{measure}_{name}"), digits)
                    for measure, digits in (("len", 2), ("r_each", 3))
                ).strip(", ")
                for name in names
            ),
        ]
        for policy, runs in policies.items()
    ]
    titles = [name.replace("_", ": ") for name in names]
    return section(
        world.title,
        markdown_table(["policy", *(metric.title for metric in EXPOSURE_METRICS)], metrics),
        "Len and R_each by class of users, thirds of them by rows in the log (activity) and by the "
        "popular share of these rows (taste):",
        markdown_table(["policy", *titles], users),
        "Mean ± 95 % interval over seeds. `docs/metrics.md` defines the metrics.",
    )
