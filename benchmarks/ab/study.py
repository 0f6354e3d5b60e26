"""The ``ab`` command: A/B tests in simulation, their errors and power, and what they cannot see.

Where the catalogue is fixed sessions do not touch each other, and a study is one test between two
arms, with a thousand tests of an arm against itself and the power of tests between the two. Where
it changes both arms share one platform, and a study compares the test with platforms of one arm
alone.

    kuaisim ab --arms quality+quota filter+quota --env KuaiRec-Fair-v0 --metric len --out results
    kuaisim ab --arms popularity+quota filter+quota --env KuaiRec-Dynamic-v0 --out results
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.experiments import (
    Comparison,
    SequentialTest,
    imbalance_p_value,
    share_guardrail,
    users_needed,
    worst_guardrail,
)
from kuaisim_gym.config import check_choice, check_whole, check_within
from kuaisim_gym.registration import registered

from ..commands import add_dataset, add_dataset_seed, add_jobs, add_out_or_table, count
from ..origin import env_for
from ..paper import SEEDS
from ..runs.judging import play
from ..runs.settings import SLOTS, Run
from ..runs.world_study import WorldStudy
from ..studies.backends import results_of
from ..studies.results import Result
from ..studies.study import Study
from .calibration import ALPHA, BOUND, check_arms, false_positives, power_table, spread_of
from .interference import InterferenceStudy
from .plot import plot_all
from .report import STUDY, markdown, read_studies, write_pages
from .sessions import METRICS, Outcomes, find_arm, mixed, outcomes_of, treated_users

ARMS = ("quality+quota", "filter+quota")
POINTS = 100  # of the path that a result keeps
PILOTS = 3  # earlier tests of each arm: one measures a variance to a twentieth
LEAST_SESSIONS = 20  # of which an arm has fewer than two in one of 25,000 tests
_PILOT_SEEDS = 500  # from a test's seed to those of the earlier ones


@dataclass(frozen=True)
class AbStudy(WorldStudy):
    """One test between two arms, and the errors and the power of such tests.

    Earlier tests of each arm against itself, on sessions of another seed, plan the test: what
    matters is a share of the control arm's metrics, and variances give the number of users.

    Attributes:
        arms: Names of control and treatment, as :func:`~benchmarks.ab.sessions.find_arm` takes
            them.
        metric: A key of :data:`~benchmarks.ab.sessions.METRICS`.
        relevant: The smallest difference that matters, as a share of the metric.
        ad_margin: The largest rise of AD that is put up with.
        worst_margin: The largest fall of the worst tenth of users, as a share of the metric.
        tests: Tests without a difference, and tests of each sample size.
        salt: Of the users' assignment.
    """

    study = STUDY

    arms: tuple[str, str] = ARMS
    metric: str = "len"
    relevant: float = 0.01
    ad_margin: float = 0.05
    worst_margin: float = 0.05
    tests: int = 1000
    salt: str = STUDY

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.arms:
            find_arm(name)
        check_choice("metric", self.metric, METRICS)
        for name in ("relevant", "ad_margin", "worst_margin"):
            check_within(name, getattr(self, name), "(0, 1]")
        check_whole("tests", self.tests, 0)
        check_whole("--sessions", self.spec.sessions, LEAST_SESSIONS)

    @property
    def subject(self) -> str:
        return f"{'_'.join(find_arm(name).name for name in self.arms)}_{self.metric}"

    def header(self) -> Result:
        names = ("metric", "relevant", "ad_margin", "worst_margin", "tests", "salt")
        return super().header() | {
            "arms": list(self.arms),
            "sessions": self.spec.sessions,
            **{name: getattr(self, name) for name in names},
        }

    def make(self, path: Path) -> Result:
        later = [
            replace(self.spec, seed=self.spec.seed + _PILOT_SEEDS * (number + 1))
            for number in range(PILOTS)
        ]
        (control, users_treated), (treatment, _) = (
            self._played(name, self.spec) for name in self.arms
        )
        metric, treated = METRICS[self.metric], users_treated[control.users]
        check_arms(control.users, treated)
        pilots = [[self._played(name, spec)[0] for spec in later] for name in self.arms]
        first = pilots[0][0]
        effects = {key: self.relevant * first.value(ratio) for key, ratio in METRICS.items()}
        spreads = [[spread_of(pilot, metric, self.salt) for pilot in runs] for runs in pilots]
        spread = float(np.mean(spreads))
        test = SequentialTest.planned(effects[self.metric], alpha=ALPHA)
        sessions = mixed(control, treatment, treated)
        result = {
            "planned": {
                "effect": effects[self.metric],
                "spreads": spreads,
                "users": users_needed(effects[self.metric], spread),
            },
            **tested(sessions, treated, self.metric, test),
            "guardrails": self._guardrails(sessions, treated, first.value(metric)),
        }
        if self.tests:
            settings = self.tests, self.salt, self.spec.seed
            result["false_positives"] = false_positives(control, effects, *settings)
            result["power"] = power_table((control, treatment), metric, spread, test, *settings)
        return result

    def _played(self, name: str, spec: Run) -> tuple[Outcomes, NDArray[np.bool_]]:
        """Sessions of a policy, a session of each slot first, and the users who are treated."""
        played = play(find_arm(name), spec, spec.load(), None, None)
        slots = min(spec.sessions, SLOTS)
        arrival = np.arange(spec.sessions).reshape(slots, -1).T.ravel()
        outcomes = outcomes_of(played.sessions, played.batch).take(arrival)
        return outcomes, treated_users(played.batch, self.salt, self.spec.seed)

    def _guardrails(
        self, sessions: Outcomes, treated: NDArray[np.bool_], value: float
    ) -> dict[str, Any]:
        columns, users = sessions.columns, sessions.users
        balance = share_guardrail(
            users, treated, columns["popular"], columns["exposures"], self.ad_margin, ALPHA
        )
        margin = self.worst_margin * value
        worst = worst_guardrail(
            users, treated, *sessions.of(METRICS[self.metric]), margin, alpha=ALPHA
        )
        return {
            name: rail._asdict() | _ends(rail.low, rail.high)
            for name, rail in (("ad", balance), ("worst", worst))
        }


def tested(
    sessions: Outcomes, treated: NDArray[np.bool_], metric: str, test: SequentialTest
) -> Result:
    """The blocks of a result about one test: its end, its path, and further metrics.

    Args:
        sessions: S sessions in the order of their arrival.
        treated: (S,) bool, sessions of treated users.
        metric: The metric that decides.
        test: The sequential test.
    """
    running = sessions.compared(METRICS[metric], treated)
    low, high = test.interval(running)
    control_users, treated_count = (int(number) for number in running.users[-1])
    decided = test.decided(running)
    return {
        "test": {
            "users": [control_users, treated_count],
            "imbalance_p": imbalance_p_value(treated_count, control_users + treated_count),
            "control": float(running.control[-1]),
            "treatment": float(running.treatment[-1]),
            "fixed": [*running.last.interval(ALPHA)],
            "fixed_p": running.last.p_value,
            "always_valid": _ends(low[-1], high[-1]),
            "always_valid_p": float(test.p_values(running)[-1]),
            "decided": None if decided is None else decided + 1,
            "decided_users": None if decided is None else int(running.users[decided].sum()),
        },
        "path": _thinned(running, low, high, test.looks(running)),
        "others": {
            name: {"effect": last.effect, "interval": [*last.interval(ALPHA)]}
            for name, last in (
                (name, sessions.compared(ratio, treated).last)
                for name, ratio in METRICS.items()
                if name != metric
            )
        },
    }


def _ends(low: float, high: float) -> dict[str, float | None]:
    """Ends of an interval as JSON holds them; ``None`` for infinite ones."""
    ends = {"low": float(low), "high": float(high)}
    return {name: end if math.isfinite(end) else None for name, end in ends.items()}


def _thinned(
    running: Comparison,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    looks: NDArray[np.bool_],
) -> dict[str, list[float]]:
    """Some of the looks at a test, evenly many sessions apart."""
    rows = np.flatnonzero(looks)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, POINTS).astype(int))] if len(rows) else rows
    error = BOUND * np.sqrt(running.variance[rows])
    return {
        "sessions": (rows + 1).tolist(),
        "effect": running.effect[rows].tolist(),
        "low": low[rows].tolist(),
        "high": high[rows].tolist(),
        "fixed_low": (running.effect[rows] - error).tolist(),
        "fixed_high": (running.effect[rows] + error).tolist(),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    text = "control and treatment: agents without training"
    add("--arms", nargs=2, default=list(ARMS), metavar=("CONTROL", "TREATMENT"), help=text)
    add("--env", help=f"of whole sessions; default: {Run.env}, or that of --dataset")
    add_dataset(parser)
    add_dataset_seed(parser)
    add("--max-len", type=count, default=Run.max_len, metavar="T", help="longest session")
    text = f"metric that decides, of {', '.join(METRICS)}"
    add("--metric", type=str.lower, choices=list(METRICS), default=AbStudy.metric, help=text)
    text = "sessions of a test; of a changing catalogue: see --days"
    add("--sessions", type=count, default=4000, metavar="N", help=text)
    add("--seeds", type=int, nargs="+", default=[SEEDS[0]], help="of the sessions")
    for name, text in (
        ("relevant", "smallest difference that matters, as a share of the metric"),
        ("ad_margin", "largest rise of AD that is put up with"),
        ("worst_margin", "largest fall of the worst tenth of users, as a share of the metric"),
    ):
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=float, default=getattr(AbStudy, name), metavar="X", help=text)
    text = "tests without a difference, and tests of each sample size; 0 for none"
    add("--tests", type=int, default=AbStudy.tests, metavar="N", help=text)
    add("--salt", default=AbStudy.salt, metavar="TEXT", help="of the users' assignment to arms")
    for name, text in (
        ("days", "last day of a platform whose catalogue changes"),
        ("first", "first of its days that count"),
        ("per_day", "sessions a day"),
    ):
        flag, default = f"--{name.replace('_', '-')}", getattr(InterferenceStudy, name)
        add(flag, type=count, default=default, metavar="N", help=text)
    add_jobs(parser)
    add_out_or_table(parser)


def main(options: argparse.Namespace) -> None:
    """Makes the missing studies, prints the tables, and writes a page and a figure for each test.

    Raises:
        ConfigError: A setting is out of range, or a result has other settings.
        DataFormatError: The folder holds no results of this study.
    """

    def plan() -> Iterable[Study]:
        env = options.env or env_for(options.dataset, Run.env)
        changes = registered(env).get("catalogue", "fixed") != "fixed"
        kind: Any = InterferenceStudy if changes else AbStudy
        names = (
            ("days", "first", "per_day", "salt")
            if changes
            else ("metric", "relevant", "ad_margin", "worst_margin", "tests", "salt")
        )
        settings = {name: getattr(options, name) for name in names}
        for seed in options.seeds:
            spec = Run(
                "random", env, options.dataset, options.max_len, seed,
                dataset_seed=options.dataset_seed,
                **({} if changes else {"sessions": options.sessions}),
            )  # fmt: skip
            yield kind(spec, tuple(options.arms), **settings)

    results = results_of(options, plan, read_studies, markdown)
    if options.out is not None:
        print(*plot_all(results, options.out), *write_pages(results, options.out), sep="\n")
