"""Sessions as tests see them, and the policy that shows each user the slates of the user's arm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.baselines.reference import REFERENCES, make_reference
from dsrm_agents.experiments import Comparison, assign, compare
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError, DataFormatError
from kuaisim_gym.metrics import Sessions, each_session

from ..agents import find_agent
from ..agents.agent import SLATE_ACTIONS, Agent

FloatArray = NDArray[np.float64]


class Metric(NamedTuple):
    """A ratio of sums over sessions, of which more is better.

    Attributes:
        title: Name in tables.
        numerator: A column of :class:`Outcomes`.
        denominator: Likewise.
    """

    title: str
    numerator: str
    denominator: str


METRICS = {
    "len": Metric("Len", "steps", "sessions"),
    "r_each": Metric("R_each", "reward", "steps"),
    "r_cum": Metric("R_cum", "reward", "sessions"),
    "longtail_share": Metric("long tail", "longtail", "exposures"),
}


class Outcomes(NamedTuple):
    """S sessions, as a test sees them.

    Attributes:
        users: (S,) int64, whose they are.
        columns: (S,) float64 sums over each session: its steps, reward, exposures, those of popular
            and of long-tail items, and ones.
    """

    users: NDArray[np.int64]
    columns: dict[str, FloatArray]

    def take(self, rows: NDArray[np.int64], users: NDArray[np.int64] | None = None) -> Outcomes:
        """Some of the sessions, under other users if there are any."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Outcomes(self.users[rows] if users is None else users, columns)

    def value(self, metric: Metric) -> float:
        """A metric of all sessions."""
        numerator, denominator = self.of(metric)
        return float(numerator.sum() / denominator.sum())

    def of(self, metric: Metric) -> tuple[FloatArray, FloatArray]:
        """Both columns of a metric."""
        return self.columns[metric.numerator], self.columns[metric.denominator]

    def compared(self, metric: Metric, treated: NDArray[np.bool_]) -> Comparison:
        """The test of a metric after each session, in this order.

        Args:
            metric: The metric.
            treated: (S,) bool, sessions of the treatment arm.
        """
        return compare(self.users, treated, *self.of(metric))


def outcomes_of(sessions: Sessions, batch: SessionBatch) -> Outcomes:
    """Outcomes of finished sessions of a batch, in their order."""
    measures = each_session(sessions, batch.catalogue)
    steps = sessions.length.astype(np.float64)
    exposures = steps * sessions.slates.shape[2]
    popular = measures["popular_share"] * exposures
    return Outcomes(
        sessions.users.astype(np.int64),
        {
            "sessions": np.ones(len(sessions)),
            "steps": steps,
            "reward": measures["r_cum"],
            "exposures": exposures,
            "popular": popular,
            "longtail": exposures - popular,
        },
    )


def mixed(control: Outcomes, treatment: Outcomes, treated: NDArray[np.bool_]) -> Outcomes:
    """The sessions of a test: each as its user's arm has played it.

    Args:
        control: S sessions of one policy.
        treatment: The same sessions, that is users, of the other.
        treated: (S,) bool, sessions of users of the treatment arm.

    Raises:
        DataFormatError: They are of other users.
    """
    if not np.array_equal(control.users, treatment.users):
        raise DataFormatError(
            "Both arms must have played the same users, session by session: give them sessions of "
            "one seed."
        )
    columns = {
        name: np.where(treated, treatment.columns[name], column)
        for name, column in control.columns.items()
    }
    return Outcomes(control.users, columns)


def find_arm(name: str) -> Agent:
    """The agent of an arm: a row of the references, or another agent that needs no training.

    Raises:
        ConfigError: There is none, or it needs training or wrappers of its own.
    """
    if name in REFERENCES:
        return Agent(name, rule=partial(make_reference, name), env_options=SLATE_ACTIONS)
    agent = find_agent(name)
    if agent.rule is None:
        raise ConfigError(
            f"An arm must be an agent that needs no training, got {name!r}: name a row such as "
            "filter+quota, or a class of yours with `predict`."
        )
    return agent


def treated_users(batch: SessionBatch, salt: str, seed: int) -> NDArray[np.bool_]:
    """(U,) bool: users of the treatment arm, by the ids that the data know them by.

    Args:
        batch: Sessions of these users.
        salt: Of the tests.
        seed: Of the test: others assign the users anew.
    """
    return assign(batch.dataset.user_ids, f"{salt}-{seed}")


class SplitPolicy:
    """Shows each user of one platform the slates of the user's arm.

    Args:
        batch: The sessions.
        arms: Rules of control and treatment, of these sessions.
        treated: (U,) bool, users of the treatment arm.
    """

    def __init__(
        self, batch: SessionBatch, arms: Sequence[Any], treated: NDArray[np.bool_]
    ) -> None:
        self.batch, self.arms, self.treated = batch, arms, treated

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], None]:
        """Slates of each session by its arm; both arms see all sessions.

        Args:
            observation: As the environment gives it.
            state: Not used.
            episode_start: As for the arms.
            deterministic: As for the arms.

        Returns:
            (N, K) item positions, and no hidden state.
        """
        control, treatment = (
            arm.predict(observation, None, episode_start, deterministic=deterministic)[0]
            for arm in self.arms
        )
        is_treated = self.treated[self.batch.core.state.users]
        return np.where(is_treated[:, None], treatment, control), None
