"""The ``ope`` command: off-policy estimates beside the truth that the simulator knows.

Each study is one part of the question in one world: ``pairs`` estimates policies near and far from
logs of several sizes; ``coverage`` counts how often intervals hold the truth; ``dial`` chooses a
long-tail share from logs alone; ``replay`` uses KuaiRand's published random log.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.ope.estimators import (
    Columns,
    Interval,
    bernstein_interval,
    bootstrap_interval,
    delta_interval,
)
from dsrm_agents.ope.evaluation import (
    METRICS,
    evaluate_off_policy,
    kish,
    metric_intervals,
    of_metrics,
    session_metrics,
    support_of,
)
from dsrm_agents.ope.recording import random_log
from dsrm_agents.ope.sessions import ESTIMATORS, Steps, trajectory
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.errors import ConfigError

from ..commands import add_dataset_seed, add_jobs, add_out_or_table, count, place
from ..runs.settings import Run
from ..runs.world_study import WorldStudy
from ..studies.backends import results_of
from ..studies.results import Result
from ..studies.study import Study
from .plot import plot_all
from .policies import TOGETHER, OpeWorld, Ranker
from .report import STUDY, markdown, read_studies

PARTS = ("pairs", "pairs-no-patience", "coverage", "dial", "replay")
LOGGING = Ranker("belief", 1.0, 0.5)
# Six agents that differ in every metric, and two close to the policy that logs.
SIX = (
    Ranker("none"),
    Ranker("popularity", 1.0, 0.35),
    Ranker("belief", 2.0, 0.42),
    Ranker("belief", 0.5, 0.55),
    Ranker("belief", 0.7, 0.62),
    Ranker("quality", 0.7, 0.5),
)
NEAR = (Ranker("belief", 1.0, 0.55), Ranker("belief", 0.8, 0.5))
LOG_SIZES = (1000, 5000, 20_000)
# Of the coverage part: ever further from the log.
COVERED = (*NEAR, Ranker("belief", 1.0, 0.6))
COUNTED = ("per-decision", "stepwise, items", "doubly robust", "marginalised doubly robust")
COVERAGE_SESSIONS, REPETITIONS, RESAMPLES, CLIP = 1000, 500, 200, 10.0
TRUE_SESSIONS = 200_000  # of the coverage part: 200 logs, so that the truth errs far less than one
SHARES = tuple(round(0.3 + 0.05 * step, 2) for step in range(9))
DIAL_LOGGING = Ranker("belief", 0.7, 0.6)
REPLAYED = (
    Ranker("none"), Ranker("popularity", 1.0), Ranker("quality", 1.0), Ranker("belief", 1.0),
    Ranker("belief", 0.5), Ranker("belief", 0.2),
)  # fmt: skip
BOOTSTRAPPED = "doubly robust"


@dataclass(frozen=True)
class OpeStudy(WorldStudy):
    """One part in one world.

    Attributes:
        part: One of :data:`PARTS`; ``spec.sessions`` are those of each true value.
        covered: Position in :data:`COVERED` of the policy of the coverage part.
        repetitions: Logs of that part.
    """

    study = STUDY

    part: str = "pairs"
    covered: int = 0
    repetitions: int = REPETITIONS

    markdown = staticmethod(markdown)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("part", self.part, PARTS)
        check_whole("repetitions", self.repetitions, 2)

    @property
    def subject(self) -> str:
        return f"{self.part}{self.covered}" if self.part == "coverage" else self.part

    def header(self) -> Result:
        header = super().header() | {"part": self.part, "sessions": self.spec.sessions}
        settings = {"policy": COVERED[self.covered].label, "repetitions": self.repetitions}
        return header | (settings if self.part == "coverage" else {})

    def make(self, path: Path) -> Result:
        makers: dict[str, Callable[[OpeWorld], Result]] = {
            "pairs": self._pairs,
            "pairs-no-patience": self._pairs,
            "coverage": self._coverage,
            "dial": self._dial,
            "replay": self._replay,
        }
        return makers[self.part](OpeWorld(self.spec))

    @property
    def _seeds(self) -> tuple[int, int]:
        """First seeds of logs and of true sessions, which share none."""
        return self.spec.seed * 10_000_000, self.spec.seed * 10_000_000 + 5_000_000

    def _pairs(self, world: OpeWorld) -> Result:
        logging = world.policy(LOGGING)
        log_seed, true_seed = self._seeds
        logged = world.log(logging, LOG_SIZES[-1], log_seed)
        if self.part == "pairs-no-patience":
            logged = replace(logged, patience=None)
        rows = []
        for ranker in (*NEAR, *SIX):
            policy = world.policy(ranker)
            all_steps = Steps.of(logged, policy, world.popular, world.covariate)
            truth = world.truth(policy, self.spec.sessions, true_seed)
            sizes = {}
            for size in LOG_SIZES:
                steps = all_steps.take(np.arange(size))
                support = support_of(steps, logged, policy)
                answer = {
                    name: _rounded(of_metrics(estimator(steps)))
                    for name, estimator in ESTIMATORS.items()
                }
                worth = {"sessions": support.sessions, "marginal": support.marginal}
                sizes[str(size)] = {"worth": worth, "estimates": answer}
            rows.append(
                {"policy": ranker.label, "near": ranker in NEAR, "truth": _named(truth),
                 "logs": sizes}
            )  # fmt: skip
        return {"logging": LOGGING.label, "rows": rows, "refused": self._refused(world)}

    def _refused(self, world: OpeWorld) -> list[dict[str, str]]:
        """Words of the tool about a policy that shows what the log could not."""
        blind = world.policy(Ranker("popularity", 1.0, 0.0))
        logged = world.log(blind, LOG_SIZES[0], self._seeds[0])
        answer = evaluate_off_policy(
            logged, world.policy(LOGGING), world.popular, logging=blind, covariate=world.covariate
        )
        return [{"log": "popular items alone", "policy": LOGGING.label, "says": answer.refusal}]

    def _coverage(self, world: OpeWorld) -> Result:
        logging, policy = world.policy(LOGGING), world.policy(COVERED[self.covered])
        log_seed, true_seed = self._seeds
        counts = _Counts(world.truth(policy, TRUE_SESSIONS, true_seed).value)
        rng = np.random.default_rng(self.spec.seed)
        most = TOGETHER // COVERAGE_SESSIONS
        for first in range(0, self.repetitions, most):
            together = min(most, self.repetitions - first)
            seed = log_seed + first * COVERAGE_SESSIONS
            logged = world.log(logging, together * COVERAGE_SESSIONS, seed)
            steps = Steps.of(logged, policy, world.popular, world.covariate)
            for rows in np.split(np.arange(len(steps)), together):
                counts.add(steps.take(rows), rng)
        return {
            "logging": LOGGING.label,
            "log_sessions": COVERAGE_SESSIONS,
            "rows": counts.rows(),
            "worth": float(np.mean(counts.worth)),
        }

    def _dial(self, world: OpeWorld) -> Result:
        log_seed, true_seed = self._seeds
        logging = world.policy(DIAL_LOGGING)
        logged = world.log(logging, LOG_SIZES[-1], log_seed)
        rows = []
        for share in SHARES:
            policy = world.policy(DIAL_LOGGING._replace(share=share))
            answer = evaluate_off_policy(
                logged, policy, world.popular, logging=logging, covariate=world.covariate
            )
            truth = world.truth(policy, self.spec.sessions, true_seed)
            rows.append(
                {"share": share, "estimator": answer.estimator, "refusal": answer.refusal,
                 "estimate": _rounded(answer.metrics), "truth": _named(truth)}
            )  # fmt: skip
        return {"logging": DIAL_LOGGING.label, "log_sessions": len(logged), "rows": rows}

    def _replay(self, world: OpeWorld) -> Result:
        log = random_log(world.dataset)
        logged = log.take(np.flatnonzero(np.isin(log.users, world.users)))
        _, owner, rows_of = np.unique(logged.users, return_inverse=True, return_counts=True)
        rows = []
        for ranker in REPLAYED:
            policy = world.policy(ranker)
            weights = np.exp(logged.log_probs_of(policy) - logged.log_probs)[:, 0, 0]
            # Simulated sessions are as often of one user as of another.
            of_user = weights / rows_of[owner]
            by_user = [
                np.bincount(owner, column) for column in (of_user, of_user * logged.rewards[:, 0])
            ]
            columns = Columns(
                np.stack(by_user, axis=1), lambda means: means[..., 1:] / means[..., :1]
            )
            interval = Interval(*(end[0] for end in delta_interval(columns)))
            played = world.log(policy, self.spec.sessions, self._seeds[1]).rewards[:, 0]
            half = 1.96 * float(played.std(ddof=1)) / np.sqrt(len(played))
            rows.append(
                {"policy": ranker.label, "worth": kish(weights),
                 "replayed": [round(float(end), 5) for end in interval],
                 "simulated": [float(played.mean()), half]}
            )  # fmt: skip
        return {"log_rows": len(logged), "users": len(rows_of), "rows": rows}


class _Counts:
    """Counts of the intervals of one policy that held the truth.

    Args:
        truth: (5,) metrics.
    """

    def __init__(self, truth: NDArray[np.float64]) -> None:
        self.truth = dict(zip(METRICS, truth.tolist(), strict=True))
        self.intervals: dict[str, dict[str, list[Interval]]] = {}
        self.worth: list[float] = []

    def add(self, steps: Steps, rng: np.random.Generator) -> None:
        """Makes all intervals of a log."""
        self.worth.append(kish(np.exp(np.minimum(steps.log_ratio.sum(axis=(1, 2)), 300.0))))
        for name in COUNTED:
            columns = ESTIMATORS[name](steps)
            self._add(name, of_metrics(columns))
            if name == BOOTSTRAPPED:
                drawn = bootstrap_interval(columns.then(session_metrics), rng, RESAMPLES)
                self._add(f"{name}, bootstrap", metric_intervals(drawn))
        sums = bernstein_interval(trajectory(steps, normalised=False, clip=CLIP))
        steps_and_rewards = zip(*(ends[:2] for ends in sums), strict=True)
        ends = dict(zip(("len", "r_cum"), map(Interval._make, steps_and_rewards), strict=True))
        self._add("trajectory, clipped, Bernstein", ends)

    def _add(self, name: str, intervals: dict[str, Interval]) -> None:
        of_metric = self.intervals.setdefault(name, {})
        for metric, interval in intervals.items():
            of_metric.setdefault(metric, []).append(interval)

    def rows(self) -> list[dict[str, Any]]:
        """For each kind of interval and metric: coverage, mean width, and bias of the estimate."""
        rows = []
        for name, of_metric in self.intervals.items():
            for metric, intervals in of_metric.items():
                value, low, high = np.array(intervals).T
                truth = self.truth[metric]
                rows.append(
                    {"intervals": name, "metric": metric, "truth": round(truth, 5),
                     "coverage": float(np.mean((low <= truth) & (truth <= high))),
                     "width": round(float(np.mean(high - low)), 5),
                     "bias": round(float(np.mean(value) - truth), 5)}
                )  # fmt: skip
        return rows


def _named(truth: Interval) -> dict[str, list[float]]:
    """A true value and the half-width of its interval, by metric."""
    halves = (truth.high - truth.low) / 2.0
    values = zip(METRICS, truth.value.tolist(), halves.tolist(), strict=True)
    return {name: [round(value, 5), round(half, 5)] for name, value, half in values}


def _rounded(intervals: dict[str, Interval]) -> dict[str, list[float]]:
    return {
        name: [round(float(end), 5) for end in interval] for name, interval in intervals.items()
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS[:-1]), help="parts of the study")
    add("--max-len", type=count, default=20, help="longest session")
    add("--slate-sizes", type=count, nargs="+", default=[2, 5, 10], metavar="K",
        help="items in a slate of the pairs; the other parts have 5")  # fmt: skip
    add("--sessions", type=count, default=5000, help="simulated sessions of each true value")
    add("--repetitions", type=count, default=REPETITIONS, help="logs of the coverage part")
    add("--seed", type=int, default=Run.seed, help="of sessions and draws")
    add("--real", type=place, metavar="DIR",
        help="folder with kuairand_real, for the part replay; default: none")  # fmt: skip
    add_dataset_seed(parser)
    add_jobs(parser)
    add_out_or_table(parser)


def main(options: argparse.Namespace) -> None:
    """Makes the missing studies, prints the tables and draws the figure.

    Raises:
        ConfigError: A setting is out of range, or a result has other settings.
        DataFormatError: The folder holds no results.
    """
    results = results_of(options, lambda: planned(options), read_studies, markdown)
    if options.table is None:
        print(*plot_all(results, options.out), sep="\n")


def planned(options: argparse.Namespace) -> Iterable[Study]:
    """The studies that the options name.

    Raises:
        ConfigError: The part replay has no folder of real data.
    """
    base = Run(
        "random", max_len=options.max_len, seed=options.seed, sessions=options.sessions,
        dataset_seed=options.dataset_seed, slate_size=5,
    )  # fmt: skip
    for part in options.parts:
        if part == "pairs":
            for size in options.slate_sizes:
                yield OpeStudy(replace(base, slate_size=size), part)
        elif part == "replay":
            if options.real is None:
                raise ConfigError(
                    "The part replay is of a real log: name its folder by --real DIR."
                )
            source = f"kuairand-click={options.real / 'kuairand_real'}"
            single = replace(base, env="Recommendation-Fair-v0", dataset=source, slate_size=1)
            yield OpeStudy(single, part)
        elif part == "coverage":
            for covered in range(len(COVERED)):
                yield OpeStudy(base, part, covered, options.repetitions)
        else:
            yield OpeStudy(base, part)
