"""Interference through popularity, which a test cannot see.

Popularity follows what both arms show: an arm that ranks by it shows what the other one has found,
and the test compares arms on a platform that neither of them would make. So each arm has a platform
to itself, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents import make_vec_env
from kuaisim_gym.config import check_whole
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import gini
from kuaisim_gym.simulator.lifecycle import Lifecycle

from ..days.platforms import SPARE_DAYS, platform_of, play_days
from ..runs.judging import first_test_seed
from ..runs.world_study import WorldStudy
from ..studies.results import Result
from .calibration import check_arms
from .report import INTERFERENCE
from .sessions import METRICS, Outcomes, SplitPolicy, find_arm, outcomes_of, treated_users


@dataclass(frozen=True)
class InterferenceStudy(WorldStudy):
    """A test on one platform, and two whole platforms, with the same items on the same days.

    Attributes:
        arms: Names of control and treatment.
        days: The last day.
        first: The first of the days that count: popularity is the log's at first.
        per_day: Sessions a day, all played at once.
        salt: Of the users' assignment.
    """

    study = INTERFERENCE

    arms: tuple[str, str] = ("popularity+quota", "filter+quota")
    days: int = 20
    first: int = 6
    per_day: int = 64
    salt: str = "ab"

    def __post_init__(self) -> None:
        super().__post_init__()
        control, treatment = (find_arm(name) for name in self.arms)
        if control.env_options != treatment.env_options:
            raise ConfigError(
                "Arms of one platform need the same environment, got the options "
                f"{control.env_options} and {treatment.env_options}: change one of the agents."
            )
        check_whole("first", self.first, 1)
        check_whole("days", self.days, self.first)
        check_whole("per_day", self.per_day, 1)

    @property
    def subject(self) -> str:
        return "_".join(find_arm(name).name for name in self.arms)

    def header(self) -> Result:
        names = ("days", "first", "per_day", "salt")
        settings = {name: getattr(self, name) for name in names}
        return super().header() | {"arms": list(self.arms), **settings}

    def make(self, path: Path) -> Result:
        together = self._played(self.arms)
        sessions, treated, _ = together
        check_arms(sessions.users, treated, "--per-day or --days")
        alone = [self._played((arm,)) for arm in self.arms]
        test = {name: sessions.compared(metric, treated).last for name, metric in METRICS.items()}
        return {
            "sessions": len(sessions.users),
            "alone": [
                {name: played.value(metric) for name, metric in METRICS.items()}
                for played, _, _ in alone
            ],
            "together": [
                {name: arm.value(metric) for name, metric in METRICS.items()}
                for arm in (sessions.take(np.flatnonzero(rows)) for rows in (~treated, treated))
            ],
            "test": {name: [*last] for name, last in test.items()},
            "concentration": [platform for *_, platform in (*alone, together)],
        }

    def _played(self, arms: tuple[str, ...]) -> tuple[Outcomes, NDArray[np.bool_], float]:
        """Sessions of the days that count, which are of treated users, and the Gini at the end."""
        agents = [find_arm(name) for name in arms]
        end = self.days + SPARE_DAYS
        life = Lifecycle(days=(1, end), sessions_per_day=self.per_day, seed=self.spec.seed)
        options: dict[str, Any] = {**self.spec.session_options, **agents[0].env_options}
        env = make_vec_env(
            self.spec.env, self.per_day, "test", first_test_seed(self.spec),
            dataset=self.spec.load(), catalogue=life, **options,
        )  # fmt: skip
        users = treated_users(env.batch, self.salt, self.spec.seed)
        rules = [agent.rule(env.batch) for agent in agents if agent.rule is not None]
        policy = rules[0] if len(rules) == 1 else SplitPolicy(env.batch, rules, users)
        played = play_days(policy, env, self.days)
        rows = np.flatnonzero(played.began >= self.first)
        outcomes = outcomes_of(played.sessions.take(rows), env.batch)
        platform = platform_of(env)
        concentration = float(gini(platform.shares[platform.available]))
        return outcomes, users[outcomes.users], concentration
