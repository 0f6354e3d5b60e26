"""Logged sessions with propensities: what was shown, what it earned, and how likely it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.ope.checks import (
    check_items,
    check_reach,
    check_silent,
    real_numbers,
    whole_numbers,
)
from kuaisim_gym.config import check_whole
from kuaisim_gym.envs.offline import Episode
from kuaisim_gym.errors import DataFormatError

FloatArray = NDArray[np.float64]


class Context(NamedTuple):
    """Grounds of N decisions.

    Attributes:
        users: (N,) int32 positions of the users.
        shown: (N, h) int64 items that the sessions have shown before, -1 for none.
        observation: As the environment gives it, one row a decision; ``None`` where a policy is
            known not to read it.
    """

    users: NDArray[np.int32]
    shown: NDArray[np.int64]
    observation: Any = None

    def repeats(self, slates: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N, K) bool: items that the session, or an earlier place of their slate, has shown."""
        before = np.concatenate([self.shown, slates], axis=1)
        first = (slates[:, :, None] == before[:, None, :]).argmax(axis=2)
        return np.asarray(first < self.shown.shape[1] + np.arange(slates.shape[1]))


class StochasticPolicy(Protocol):
    """A policy that draws slates, and knows how likely each is."""

    def act(
        self, context: Context, slate_size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """Draws slates.

        Returns:
            (N, K) item positions, and their (N, K) float64 log-probabilities, in nats, each item's
            given the slate's earlier ones: a slate's is the sum.
        """

    def log_prob(self, context: Context, slates: NDArray[np.int64]) -> FloatArray:
        """(N, K) float64 log-probabilities of (N, K) items; minus infinity for what it never shows.

        Each is given the slate's earlier items, as of :meth:`act`.
        """


@dataclass(frozen=True, eq=False)
class LoggedSessions:
    """n finished sessions of at most T steps, and the probabilities by which they were drawn.

    Nested lists become arrays.

    Attributes:
        users: (n,) int32 positions of the users; -1 where the log does not say.
        length: (n,) int64 steps, at least 1. A session's last step is the one at which its user
            left, or at which it was cut.
        slates: (n, T, K) int32 item positions in the order of choice, -1 from ``length`` on.
        rewards: (n, T) float64, zero from ``length`` on.
        log_probs: (n, T, K) float64, in nats, of each item given context and the slate's earlier
            items, under the policy that acted; zero from ``length`` on.
        responses: (n, T, K) float32 in [0, 1], the items' answers, zero from ``length`` on;
            ``None`` where rewards are all that is known.
        patience: (n, T) float64 of at least 0, of the user before each step, as far as the
            platform knows its rule; zero from ``length`` on; ``None`` where it does not.
        observations: (n, T, ...) before each step, or a dictionary of such arrays; ``None`` where
            they were not kept.
        n_items: Size of the catalogue; ``None`` where the log does not say.

    Raises:
        DataFormatError: The arrays do not belong together, a number is not finite or out of its
            range, there is no session, one has no step, or an item that was shown has probability
            0 or more than 1.
    """

    users: NDArray[np.int32]
    length: NDArray[np.int64]
    slates: NDArray[np.int32]
    rewards: FloatArray
    log_probs: FloatArray
    responses: NDArray[np.float32] | None = None
    patience: FloatArray | None = None
    observations: Any = None
    n_items: int | None = None

    def __post_init__(self) -> None:
        self._convert()
        shape = self.slates.shape
        if len(shape) != 3 or not all(shape):
            raise DataFormatError(
                "slates must have the shape (sessions, steps, items), at least one of each, got "
                f"{shape}."
            )
        shapes = {
            "users": shape[:1], "length": shape[:1], "rewards": shape[:2], "log_probs": shape,
            "responses": shape, "patience": shape[:2],
        }  # fmt: skip
        for name, expected in shapes.items():
            array = getattr(self, name)
            if array is not None and array.shape != expected:
                raise DataFormatError(
                    f"{name} must have shape {expected} beside slates of shape {shape} (sessions, "
                    f"steps, items), got {array.shape}."
                )
        self._check_values()

    def _convert(self) -> None:
        """Makes arrays of their types of what was given."""
        arrays: dict[str, Any] = {"users": whole_numbers("users", self.users, np.int32)}
        arrays["length"] = whole_numbers("length", self.length, np.int64)
        arrays["slates"] = whole_numbers("slates", self.slates, np.int32)
        for name in ("rewards", "log_probs", "responses", "patience"):
            value, dtype = getattr(self, name), np.float32 if name == "responses" else np.float64
            arrays[name] = None if value is None else real_numbers(name, value, dtype)
        for name, array in arrays.items():
            object.__setattr__(self, name, array)

    def _check_values(self) -> None:
        steps, shown, alive = self.slates.shape[1], self.slates >= 0, self.alive
        if self.length.min() < 1 or self.length.max() > steps:
            raise DataFormatError(f"Logged sessions must have 1 to {steps} steps each.")
        if self.users.min() < -1:
            raise DataFormatError(f"users must be positions, or -1, got {self.users.min()}.")
        if not (shown == alive[:, :, None]).all() or self.slates.min() < -1:
            raise DataFormatError(
                "Slates must hold items up to the session's length, and -1 behind."
            )
        if not (self.log_probs <= 1e-9).all():
            raise DataFormatError(
                "The log-probability of an item that was shown must be finite and at most 0: the "
                "policy that acted is another one than the log says."
            )
        for name in ("rewards", "log_probs", "responses", "patience"):
            if getattr(self, name) is not None:
                check_silent(name, getattr(self, name), alive)
        if self.patience is not None and self.patience.min() < 0.0:
            raise DataFormatError(
                f"patience must be at least 0, got {self.patience.min()}: give patience=None where "
                "it is not known."
            )
        answers = self.responses
        if answers is not None and not (answers.min() >= 0.0 and answers.max() <= 1.0 + 1e-6):
            raise DataFormatError(
                f"responses must lie in [0, 1], got {answers.min()} to {answers.max()}: scale "
                "them, or give responses=None and rewards alone."
            )
        if self.n_items is not None:
            check_reach("log", check_whole("n_items", self.n_items, 1), int(self.slates.max()))

    def __len__(self) -> int:
        return len(self.length)

    @property
    def alive(self) -> NDArray[np.bool_]:
        """(n, T) bool: steps that were made."""
        return np.asarray(np.arange(self.slates.shape[1]) < self.length[:, None])

    @property
    def done(self) -> NDArray[np.bool_]:
        """(n, T) bool: the last step of each session."""
        return np.asarray(np.arange(self.slates.shape[1]) == self.length[:, None] - 1)

    @property
    def slate_log_probs(self) -> FloatArray:
        """(n, T) float64, in nats, of whole slates."""
        return np.asarray(self.log_probs.sum(axis=2))

    def take(self, rows: NDArray[np.int64]) -> LoggedSessions:
        """Some of the sessions, repeats allowed."""

        def chosen(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: array[rows] for name, array in value.items()}
            return value if value is None or isinstance(value, int) else value[rows]

        return LoggedSessions(*(chosen(getattr(self, field.name)) for field in fields(self)))

    def decisions(self) -> Iterator[tuple[int, NDArray[np.int64], Context]]:
        """The contexts of all decisions, step by step: the step, the sessions, their context."""
        for step in range(int(self.length.max())):
            rows = np.flatnonzero(self.length > step)
            shown = self.slates[rows, :step].reshape(len(rows), -1).astype(np.int64)
            observed = self.observations
            if isinstance(observed, dict):
                observed = {name: array[rows, step] for name, array in observed.items()}
            elif observed is not None:
                observed = observed[rows, step]
            yield step, rows, Context(self.users[rows], shown, observed)

    def log_probs_of(self, policy: StochasticPolicy) -> FloatArray:
        """(n, T, K) log-probabilities of the logged items under another policy, zero behind.

        Raises:
            ConfigError: The policy is one of another number of items.
        """
        n_items = getattr(policy, "n_items", None)
        check_items(log=self.n_items, policy=n_items)
        if n_items is not None:
            check_reach("policy", n_items, int(self.slates.max()))
        log_probs = np.zeros(self.slates.shape)
        for step, rows, context in self.decisions():
            slates = self.slates[rows, step].astype(np.int64)
            log_probs[rows, step] = policy.log_prob(context, slates)
        return log_probs

    @classmethod
    def of_episodes(
        cls, episodes: Sequence[Episode], users: NDArray[np.int32] | None = None
    ) -> LoggedSessions:
        """The sessions that :func:`kuaisim_gym.collect_episodes` recorded of a stochastic agent.

        Args:
            episodes: Of slates or single items.
            users: (n,) positions of the users, which episodes do not name; -1 by default.

        Raises:
            DataFormatError: An episode has no probabilities, or there is none.
        """
        if not episodes or any(episode.log_probs is None for episode in episodes):
            raise DataFormatError(
                "Off-policy evaluation needs episodes with log_probs: collect them with "
                "deterministic=False from an agent that tells them, such as an Actor."
            )
        n, longest = len(episodes), max(map(len, episodes))
        width = np.asarray(episodes[0].log_probs).shape[1]
        slates = np.full((n, longest, width), -1, dtype=np.int32)
        rewards, log_probs = np.zeros((n, longest)), np.zeros(slates.shape)
        for row, episode in enumerate(episodes):
            steps = len(episode)
            slates[row, :steps] = np.asarray(episode.actions).reshape(steps, width)
            rewards[row, :steps], log_probs[row, :steps] = episode.rewards, episode.log_probs
        length = np.array([len(episode) for episode in episodes])
        if users is None:
            users = np.full(n, -1, dtype=np.int32)
        observed = _padded([episode.observations for episode in episodes], longest)
        return cls(users, length, slates, rewards, log_probs, observations=observed)


def _padded(observations: list[Any], longest: int) -> Any:
    """(n, T, ...) observations before each step, from (steps + 1, ...) ones of each session."""
    if isinstance(observations[0], dict):
        names = observations[0]
        return {
            name: _padded([session[name] for session in observations], longest) for name in names
        }
    padded = np.zeros(
        (len(observations), longest, *observations[0].shape[1:]), observations[0].dtype
    )
    for row, observed in zip(padded, observations, strict=True):
        row[: len(observed) - 1] = observed[:-1]
    return padded
