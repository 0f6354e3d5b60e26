"""Tasks: whole sessions, and KuaiSim's single requests and returns with the same dynamics.

A new task is a subclass of :class:`SessionBatch` here, or in a module of a user, and a row of
:mod:`kuaisim_gym.registration`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.data.feedback import BehaviourLog
from kuaisim_gym.engine.types import BoolArray, DoubleArray, SessionState, StepResult
from kuaisim_gym.envs.assembly import TASKS, SessionBatch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions, summarise_requests, summarise_retention
from kuaisim_gym.metrics.summaries import session_metrics
from kuaisim_gym.randomness import RETURN_STREAM
from kuaisim_gym.registration import ENVIRONMENTS, registered
from kuaisim_gym.rendering import SessionView
from kuaisim_gym.simulator.returns import ReturnModel
from kuaisim_gym.snapshots import Snapshot, under, within

_COUNTS = ("len", "penalties", "popular", "days", "next_day")


class RequestBatch(SessionBatch, task="request"):
    """N users who make a fixed number of requests.

    The list is what counts: its reward weighs all behaviours but hate alike, and look-alikes in
    one list take from each other. The arguments are those of :class:`SessionBatch`.
    """

    usual_dataset = "kuairand"
    defaults: ClassVar[dict[str, Any]] = {
        "max_len": 20,
        "abandonment": "none",
        "step_cost": "request",
        "correlation": 0.2,
        "reward_weights": {name: 1.0 for name in BehaviourLog.behaviours if name != "is_hate"},
    }
    columns: ClassVar[dict[str, str]] = {
        "list_reward": "list reward", "list_reward_max": "max list reward", "r_ndcg": "R-NDCG",
        "r_mrr": "R-MRR", "coverage": "coverage", "ild": "ILD", "slate_ad": "slate AD",
        "longtail_share": "long tail",
    }  # fmt: skip
    headline = ("r_each", "list reward")

    def session(self, measures: DoubleArray | None = None) -> dict[str, NDArray[Any]]:
        """Metrics of the sessions so far, and the largest reward of a list."""
        return super().session(measures) | {"list_reward_max": self.core.state.rewards.max(axis=1)}

    def summarise(self, sessions: Sessions) -> dict[str, float]:
        """The metrics of whole sessions, and those of their lists."""
        popular, vectors = self.catalogue.popular, self.catalogue.standardised
        return super().summarise(sessions) | summarise_requests(sessions, popular, vectors)


class RetentionBatch(SessionBatch, task="retention"):
    """N users over several sessions, rewarded by how soon they come back.

    A session is ``max_len`` requests. When it ends the user stays away for some days, drawn from a
    :class:`~kuaisim_gym.simulator.returns.ReturnModel`, and comes back: same user, same history,
    fresh exposures. The reward is ``-days / max_days`` at the end of a session and 0 before. An
    episode is truncated after ``n_visits`` sessions: the user would go on.

    Args:
        n_sessions: N.
        name: Dataset name.
        n_visits: Sessions in an episode.
        **options: As for :class:`SessionBatch`.

    Raises:
        ConfigError: An unknown option or value.
    """

    usual_dataset = "kuairand"
    usual_actions = "fusion"
    defaults: ClassVar[dict[str, Any]] = {
        "max_len": 5,
        "abandonment": "none",
        "step_cost": "request",
    }
    extra_options = ("n_visits",)
    extra_context = ("visit", "days_away")
    slate_rewards = False
    columns: ClassVar[dict[str, str]] = {
        "return_time": "return time", "retention": "retention", "r_each": "R_each",
        "slate_ad": "slate AD", "longtail_share": "long tail", "coverage": "coverage",
    }  # fmt: skip
    headline = ("return_time", "return time (days)")

    def __init__(
        self,
        n_sessions: int,
        name: str | None = None,
        *,
        n_visits: int = 6,
        **options: Any,
    ) -> None:
        self.n_visits = check_whole("n_visits", n_visits, 1)
        if options.get("reward", "response") != "response":
            raise ConfigError(
                "This task pays for returns, and knows no other reward: leave reward out, or take "
                "an id of another task. abandonment may be a rule of one's own here, too."
            )
        super().__init__(n_sessions, name, **options)
        self.returns = return_model(self.dataset)
        self._visit: NDArray[np.int64] = np.zeros(self.n_sessions, dtype=np.int64)
        self._visits = self._room()
        # Of all sessions of an episode that are past.
        self._sums: dict[str, NDArray[Any]] = {
            name: np.zeros(self.n_sessions, dtype=np.int64) for name in _COUNTS
        }
        self._sums["r_cum"] = np.zeros(self.n_sessions)

    @property
    def longest(self) -> int:
        return self.n_visits * super().longest

    @property
    def reward_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 0.0, (), np.float64)

    @classmethod
    def limited(cls, options: dict[str, Any], steps: int) -> dict[str, Any]:
        raise ConfigError("max_episode_steps does not cut visits; set n_visits instead.")

    def reset(self, slots: BoolArray | None = None) -> None:
        """Begins a new episode, with a new user, in some slots, all if ``None``."""
        super().reset(slots)
        rows = np.arange(self.n_sessions) if slots is None else np.flatnonzero(slots)
        self._visit[rows] = 0
        for sums in self._sums.values():
            sums[rows] = 0
        self.encoder.set_context(rows, visit=0.0, days_away=0.0)

    def step(self, actions: Any, slots: BoolArray | None = None) -> StepResult:
        result = super().step(actions, slots)
        reward, over = np.zeros(self.n_sessions), np.zeros(self.n_sessions, dtype=bool)
        rows = np.flatnonzero(result.done)
        if rows.size:
            reward[rows] = -self._leave(rows) / self.returns.max_days
            over[rows] = self._visit[rows] == self.n_visits
            back = result.done & ~over
            # The users stay the same, so the encoder keeps what it knows of them.
            self.core.reset(back, self.core.state.users[back])
            self._follow_platform()
        return result._replace(reward=reward, terminated=np.zeros_like(over), truncated=over)

    def snapshot(self) -> Snapshot:
        past = {name: array.copy() for name, array in self._past().items()}
        return super().snapshot() | under("past", past)

    def restore(self, snapshot: Snapshot) -> None:
        super().restore(snapshot)
        past = within("past", snapshot)
        for name, array in self._past().items():
            array[...] = past[name]

    def _past(self) -> Snapshot:
        return {
            "visit": self._visit,
            **self._visits.columns,
            **{f"sum_{name}": sums for name, sums in self._sums.items()},
        }

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "n_visits": self.n_visits}

    def session(self, measures: DoubleArray | None = None) -> dict[str, NDArray[Any]]:
        """Metrics of the episodes so far: all requests together, and the returns."""
        state, past = self.core.state, self._sums
        running = state.active  # at the end of an episode all sessions are past
        steps, total, penalties, popular = (
            past[name] + np.where(running, of_session, 0)
            for name, of_session in _of_sessions(state).items()
        )
        visits = np.maximum(self._visit, 1)
        return {
            **session_metrics(steps, total, penalties, popular, self.config.slate_size),
            "return_time": past["days"] / visits,
            "retention": past["next_day"] / visits,
        }

    def summarise(self, sessions: Sessions) -> dict[str, float]:
        """The metrics of whole sessions, and those of the returns."""
        return super().summarise(sessions) | summarise_retention(sessions)

    def records(self, rows: NDArray[np.int64]) -> Sessions:
        """The finished sessions of the episodes in some slots, one after another."""
        visits = np.arange(self.n_visits)
        return self._visits.take(
            (rows[:, None] * self.n_visits + visits)[visits < self._visit[rows, None]]
        )

    def view(self, slot: int) -> SessionView:
        """The session in one slot; between two sessions, the one that has just ended."""
        visit = int(self._visit[slot])
        if visit == 0 or self.core.state.steps[slot]:
            return super().view(slot)
        past = self._visits.take(np.array([slot * self.n_visits + visit - 1]))
        return self._view(slot, past, over=True)

    def _leave(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ends a session in some slots; the (n,) int64 days until the users come back."""
        state = self.core.state
        satisfaction = state.reward_sum[rows] / state.steps[rows]
        draws = self.core.uniform(rows, RETURN_STREAM, step=state.steps[rows])
        days = self.returns.draw(state.users[rows], satisfaction, draws)
        session = replace(self._running(rows), return_day=days)
        row = rows * self.n_visits + self._visit[rows]
        for name, column in self._visits.columns.items():
            column[row] = getattr(session, name)
        self._visit[rows] += 1
        for name, of_session in _of_sessions(state).items():
            self._sums[name][rows] += of_session[rows]
        self._sums["days"][rows] += days
        self._sums["next_day"][rows] += days == 1
        self.encoder.set_context(
            rows, visit=self._visit[rows] / self.n_visits, days_away=days / self.returns.max_days
        )
        return days

    def _room(self) -> Sessions:
        """Room for all sessions of all episodes."""
        session = replace(
            self._running(np.arange(self.n_sessions)),
            return_day=np.zeros(self.n_sessions, dtype=np.int64),
        )
        return session.take(np.repeat(np.arange(self.n_sessions), self.n_visits))


def _of_sessions(state: SessionState) -> dict[str, NDArray[Any]]:
    """Arrays that are summed over the sessions of an episode."""
    return {
        "len": state.steps,
        "r_cum": state.reward_sum,
        "penalties": state.penalties,
        "popular": state.popular,
    }


@lru_cache(maxsize=4)
def return_model(dataset: Dataset) -> ReturnModel:
    """The return model of a dataset's users, shared by its environments."""
    return ReturnModel.of(dataset.training)


def resolve(
    name: str | None = None, task: str | None = None, env_id: str | None = None, **options: Any
) -> tuple[type[SessionBatch], dict[str, Any]]:
    """Finds the class of a task and the options of its sessions.

    Args:
        name: Dataset name; ``None`` for the task's usual one.
        task: A key of :data:`TASKS`; ``None`` for ``"session"``.
        env_id: Registered id, or ``"module:id"``, which fixes dataset and task and has defaults of
            options.
        **options: As for the class.

    Raises:
        ConfigError: Unknown id or task, or an id together with an option that it fixes.
    """
    if env_id is not None:
        row = registered(env_id)
        for option, value in (("name", name), ("task", task)):
            if value is not None:
                raise ConfigError(
                    f"{env_id} fixes its dataset and task, got {option}={value!r}: leave it out, "
                    f"choose another id of {list(ENVIRONMENTS)}, or register one of your own with "
                    "kuaisim_gym.register()."
                )
        return resolve(**{**row, **options})
    return TASKS[check_choice("task", task or "session", TASKS)], {"name": name, **options}


def make_batch(
    n_sessions: int, name: str | None = None, task: str | None = None, **options: Any
) -> SessionBatch:
    """Makes N sessions of a task, by the arguments of :func:`resolve`.

    Raises:
        ConfigError: Unknown task, option or value.
    """
    batch_class, options = resolve(name, task, **options)
    return batch_class(n_sessions, **options)
