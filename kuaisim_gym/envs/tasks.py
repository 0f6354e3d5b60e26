"""KuaiSim's other two tasks, as batches over the same dynamics: single requests, and returns."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.data.feedback import BehaviourLog
from kuaisim_gym.engine.types import BoolArray, StepResult
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.metrics import Sessions, each_session
from kuaisim_gym.randomness import RETURN_STREAM
from kuaisim_gym.rendering import SessionView
from kuaisim_gym.simulator.returns import ReturnModel
from kuaisim_gym.snapshots import Snapshot, under, within


class RequestBatch(SessionBatch):
    """N users who make a fixed number of requests, whatever they are shown.

    The list is what counts: its reward weighs all behaviours but hate alike, and look-alikes in
    one list take from each other. See :class:`SessionBatch` for the arguments.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "max_len": 20,
        "abandonment": "none",
        "step_cost": "request",
        "correlation": 0.2,
        "reward_weights": {name: 1.0 for name in BehaviourLog.behaviours if name != "is_hate"},
    }

    def finished(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """See :class:`SessionBatch`; with the largest reward of a list."""
        records = self.records(rows)
        metrics = each_session(records, self.catalogue.popular)
        return {**metrics, "list_reward_max": records.rewards.max(axis=1)}


class RetentionBatch(SessionBatch):
    """N users over several sessions, rewarded by how soon they come back.

    A session is ``max_len`` requests. When it ends the user stays away for some days, drawn from a
    :class:`~kuaisim_gym.simulator.returns.ReturnModel`, and comes back: same user, same history,
    fresh exposures. The reward is ``-days / max_days`` at the end of a session and 0 before. An
    episode is truncated after ``n_visits`` sessions: the user would go on.

    Args:
        n_sessions: N.
        name: Dataset name.
        n_visits: Sessions in an episode.
        **options: See :class:`SessionBatch`.

    Raises:
        ConfigError: An unknown option or value.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "max_len": 5,
        "abandonment": "none",
        "step_cost": "request",
    }
    extra_context: ClassVar[tuple[str, ...]] = ("visit", "days_away")
    extra_options: ClassVar[tuple[str, ...]] = ("n_visits",)

    def __init__(
        self, n_sessions: int, name: str = "kuairand", *, n_visits: int = 6, **options: Any
    ) -> None:
        self.n_visits = check_whole("n_visits", n_visits, 1)
        super().__init__(n_sessions, name, **options)
        self.returns = return_model(self.dataset)
        self._visit: NDArray[np.int64] = np.zeros(self.n_sessions, dtype=np.int64)
        self._visits = self._room()

    @property
    def longest(self) -> int:
        """See :class:`SessionBatch`."""
        return self.n_visits * super().longest

    def reset(self, slots: BoolArray | None = None) -> None:
        """Begins a new episode, with a new user, in some slots, all if ``None``."""
        super().reset(slots)
        rows = np.arange(self.n_sessions) if slots is None else np.flatnonzero(slots)
        self._visit[rows] = 0
        self.encoder.extra[rows] = 0.0

    def step(self, actions: NDArray[np.generic], slots: BoolArray | None = None) -> StepResult:
        """See :class:`SessionBatch`; the reward is the one of this task."""
        result = super().step(actions, slots)
        reward, over = np.zeros(self.n_sessions), np.zeros(self.n_sessions, dtype=bool)
        rows = np.flatnonzero(result.done)
        if rows.size:
            reward[rows] = -self._leave(rows) / self.returns.max_days
            over[rows] = self._visit[rows] == self.n_visits
            back = result.done & ~over
            # Same users: what is known of them, in the encoder, stays known.
            self.core.reset(back, self.core.state.users[back])
        nobody = np.zeros_like(over)
        return result._replace(reward=reward, terminated=nobody, truncated=over)

    def snapshot(self) -> Snapshot:
        """See :class:`SessionBatch`; with the episodes' finished sessions."""
        past = {name: array.copy() for name, array in self._past().items()}
        return super().snapshot() | under("past", past)

    def restore(self, snapshot: Snapshot) -> None:
        """See :class:`SessionBatch`."""
        super().restore(snapshot)
        past = within("past", snapshot)
        for name, array in self._past().items():
            array[...] = past[name]

    def _past(self) -> Snapshot:
        return {"visit": self._visit} | {
            field.name: getattr(self._visits, field.name) for field in fields(Sessions)
        }

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "n_visits": self.n_visits}

    def finished(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """See :class:`SessionBatch`: an episode's requests together, and its returns."""
        sessions = self.records(rows)
        each = each_session(sessions, self.catalogue.popular)
        length = each["len"].reshape(len(rows), self.n_visits)
        requests = length.sum(axis=1)
        total, penalised, popular = (
            (each[name].reshape(length.shape) * length).sum(axis=1)
            for name in ("r_each", "q", "popular_share")
        )
        assert sessions.return_day is not None
        days = sessions.return_day.reshape(length.shape)
        return {
            "len": requests,
            "r_each": total / requests,
            "r_cum": total,
            "q": penalised / requests,
            "popular_share": popular / requests,
            "return_time": days.mean(axis=1),
            "retention": (days == 1).mean(axis=1),
        }

    def records(self, rows: NDArray[np.int64]) -> Sessions:
        """The finished sessions of the episodes in some slots, one after another."""
        places = rows[:, None] * self.n_visits + np.arange(self.n_visits)
        return self._visits.take(places[np.arange(self.n_visits) < self._visit[rows, None]])

    def view(self, slot: int) -> SessionView:
        """See :class:`SessionBatch`; between two sessions, the one that has just ended."""
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
        place = rows * self.n_visits + self._visit[rows]
        for field in fields(Sessions):
            getattr(self._visits, field.name)[place] = getattr(session, field.name)
        self._visit[rows] += 1
        self.encoder.extra[rows, 0] = self._visit[rows] / self.n_visits
        self.encoder.extra[rows, 1] = days / self.returns.max_days
        return days

    def _room(self) -> Sessions:
        """Room for all sessions of all episodes."""
        session = replace(
            self._running(np.arange(self.n_sessions)),
            return_day=np.zeros(self.n_sessions, dtype=np.int64),
        )
        return session.take(np.repeat(np.arange(self.n_sessions), self.n_visits))


@lru_cache(maxsize=4)
def return_model(dataset: Dataset) -> ReturnModel:
    """The return model of a dataset's users, shared by its environments."""
    return ReturnModel.of(dataset.training)


TASKS = {"session": SessionBatch, "request": RequestBatch, "retention": RetentionBatch}


def make_batch(
    n_sessions: int, name: str = "kuairec", task: str = "session", **options: Any
) -> SessionBatch:
    """The batch of a task: ``"session"``, ``"request"`` or ``"retention"``.

    Raises:
        ConfigError: Unknown task, option or value.
    """
    return TASKS[check_choice("task", task, TASKS)](n_sessions, name, **options)
