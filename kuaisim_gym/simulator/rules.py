"""Rules of one's own: rewards and abandonment, as functions of the arrays of a step.

The dynamics stay the session core's. A rule is asked once a step, for all sessions together: an
abandonment rule what the step costs its users beside their dissatisfaction, a reward rule what the
agent earns.
"""

from __future__ import annotations

import copy
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.engine.types import BoolArray, DoubleArray, FloatArray, SessionState, StepResult
from kuaisim_gym.errors import ConfigError, unknown_option
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.groups import Groups, GroupSpec, TargetSpec, find_groups
from kuaisim_gym.snapshots import Snapshot, under, within

REWARDS = ("response", "vector")  # by name
_HOOKS = ("begin", "reset", "bounds", "settings")

Memory = dict[str, NDArray[Any]]


class SessionStep(NamedTuple):
    """One step, as rules see it: read-only arrays of a row for each session that made it.

    Attributes:
        users: (n,) int32 positions of the users.
        slates: (n, K) int64 positions of the items shown.
        responses: (n, K) float32 in [0, 1], in slate order.
        feedback: (n, K, B) float32 in [0, 1], the answers, a column for each behaviour.
        answered: (n, K) bool, items that were answered; the others were shown before.
        groups: (n, K) integers, positions of the items' groups in ``RuleWorld.groups``.
        categories: (n, K) int32, the items' first category or tag; -1 for none.
        steps: (n,) int64 steps of the session so far, this one included.
        temper: (n,) float64, patience left, in steps: for an abandonment rule before its own cost.
        share: (n,) float64, of the exposure window, see
            :class:`~kuaisim_gym.engine.types.SessionState`.
        utility: (n,) float64 in [0, 1], the mean response.
        fairness: (n,) float64 in [0, 1], see :meth:`~kuaisim_gym.simulator.groups.Groups.fairness`.
        penalised: (n,) bool, whether the rule of abandonment cost temper; for an abandonment rule
            false.
        memory: Arrays of n rows, as :meth:`Rule.begin` named them, the only ones to write to.
    """

    users: NDArray[np.int32]
    slates: NDArray[np.int64]
    responses: FloatArray
    feedback: FloatArray
    answered: BoolArray
    groups: NDArray[np.signedinteger]
    categories: NDArray[np.int32]
    steps: NDArray[np.int64]
    temper: DoubleArray
    share: DoubleArray
    utility: DoubleArray
    fairness: DoubleArray
    penalised: BoolArray
    memory: Memory


@dataclass(frozen=True, eq=False)
class RuleWorld:
    """The sessions that a rule is for.

    Attributes:
        n_sessions: N.
        slate_size: K.
        max_len: Temper of a new session, in steps.
        behaviours: B names, in the order of ``SessionStep.feedback``.
        groups: Groups of items, between which exposures are balanced.
        categories: (n_items,) int32, the first category or tag of each item; -1 for none.
        catalogue: The items.
        dataset: Source of their columns.
    """

    n_sessions: int
    slate_size: int
    max_len: int
    behaviours: tuple[str, ...]
    groups: Groups
    categories: NDArray[np.int32]
    catalogue: Catalogue
    dataset: Dataset

    def find_groups(self, groups: GroupSpec, target: TargetSpec = "uniform") -> Groups:
        """Groups of the items, of a column such as ``"author_id"``, and their shares.

        Args:
            groups: As for :func:`~kuaisim_gym.simulator.groups.find_groups`.
            target: As for the same function.

        Raises:
            ConfigError: There is no such column, or no such target.
        """
        return find_groups(groups, target, self.dataset, self.catalogue)


class Rule(ABC):
    """A reward or a rule of abandonment: a function of a step, with memory if it needs one.

    A row of what it returns must follow from the same row of what it is given: then a session is
    the same alone and among others. What it remembers stands in arrays that :meth:`begin` names:
    they are put back where a session begins, and copied, stored and restored with the sessions. An
    environment takes a copy of the rule, whose attributes should stay as they are from then on.
    Rules of one class with equal settings are equal.
    """

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        """Least and largest reward: numbers, or D numbers each of a reward that is a vector."""
        return -math.inf, math.inf

    def begin(self, world: RuleWorld) -> Memory:
        """Prepares for some sessions; a class attribute or table of the world may be kept here.

        Args:
            world: The sessions.

        Returns:
            Arrays of N rows by name, as they are at the start of a session; none by default.
        """
        return {}

    def reset(self, memory: Memory, users: NDArray[np.int32]) -> None:  # noqa: B027 (a hook)
        """Changes the memory of sessions that begin, if their users make a difference.

        Args:
            memory: Arrays of n rows by name, as :meth:`begin` gave them; to be changed in place.
            users: (n,) int32 positions of the users who arrive.
        """

    @abstractmethod
    def __call__(self, step: SessionStep) -> ArrayLike:
        """Judges a step.

        Returns:
            Of a reward rule: (n,) or (n, D) rewards within :attr:`bounds`. Of an abandonment rule:
            (n,) numbers of at least 0, the temper that the step costs beside dissatisfaction, in
            which infinity makes a user leave; or (n,) booleans, true of those who leave.
        """

    def settings(self) -> dict[str, Any]:
        """Parameters, by which snapshots are told apart: by default, the attributes as given."""
        return {
            name: _plain(value) for name, value in vars(self).items() if not name.startswith("_")
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rule):
            return NotImplemented
        classes = ((type(rule).__module__, type(rule).__qualname__) for rule in (self, other))
        return next(classes) == next(classes) and self.settings() == other.settings()

    def __hash__(self) -> int:
        return hash(type(self).__qualname__)


OwnRule = Rule | Callable[[SessionStep], ArrayLike]


class UtilityAndFairness(Rule):
    """Vector reward: the mean response, and the fairness of the step."""

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        return (0.0, 0.0), (1.0, 1.0)

    def __call__(self, step: SessionStep) -> ArrayLike:
        return np.stack([step.utility, step.fairness], axis=1)


class RunningRule:
    """A rule in N sessions: its memory, and checks of what it returns.

    Args:
        option: ``"reward"`` or ``"abandonment"``.
        rule: The rule; a copy of it runs.
        world: The sessions.

    Attributes:
        settings: Name and parameters of the rule.
        low: Least value: () or (D,) float64.
        high: Largest value, likewise.

    Raises:
        ConfigError: It is no rule, or its bounds or its memory are not what they should be.
    """

    def __init__(self, option: str, rule: OwnRule, world: RuleWorld) -> None:
        self._name = f"The {option} rule {_name(rule)}"
        self._costs = option == "abandonment"
        _check_rule(self._name, rule)
        self._rule = rule = copy.deepcopy(rule)
        bounds: tuple[ArrayLike, ArrayLike] = (0.0 if self._costs else -math.inf, math.inf)
        self.settings: dict[str, Any] = {"rule": _name(rule)}
        self.memory: Memory = {}
        if isinstance(rule, Rule):
            self.settings |= rule.settings()
            bounds = bounds if self._costs else rule.bounds
            self.memory = _checked_memory(self._name, rule.begin(world), world.n_sessions)
        self.low, self.high = _checked_bounds(self._name, bounds)
        self._start = {name: array.copy() for name, array in self.memory.items()}

    def reset(self, rows: NDArray[np.int64], users: NDArray[np.int32]) -> None:
        """Begins sessions of (n,) users in (n,) slots."""
        if not self.memory:
            return
        fresh = {name: array[rows] for name, array in self._start.items()}
        if isinstance(self._rule, Rule):
            self._rule.reset(fresh, users)
        self._remember(fresh, rows)

    def judge(self, step: SessionStep, rows: NDArray[np.int64]) -> DoubleArray:
        """Asks the rule about a step of some sessions, without its memory in it.

        Returns:
            (n,) or (n, D) float64, within the bounds; infinite where a user leaves.

        Raises:
            ConfigError: The rule returned something else.
        """
        everyone = len(rows) == len(next(iter(self.memory.values()), rows))
        memory = {name: a if everyone else a[rows] for name, a in self.memory.items()}
        answer = self._rule(step._replace(memory=memory))
        try:
            values = np.asarray(answer)
        except ValueError:  # lists of unequal lengths
            values = np.array(answer, dtype=object)
        self._remember(memory, rows)
        shape = (len(rows), *self.low.shape)
        if values.dtype.kind not in "biuf" or values.shape != shape:
            raise ConfigError(
                f"{self._name} must return numbers of shape {shape}, a row for each session of the "
                f"step, got {values.dtype} of shape {values.shape}: reduce the axis of the slate, "
                "such as by .mean(axis=1), and return an array."
            )
        if self._costs and values.dtype.kind == "b":
            return np.where(values, np.inf, 0.0)
        judged = np.array(values, dtype=np.float64)  # a copy, whatever the rule goes on with
        self._check(judged, rows, step.steps)
        return judged

    def _check(
        self, values: DoubleArray, rows: NDArray[np.int64], steps: NDArray[np.int64]
    ) -> None:
        valid = (values >= self.low) & (values <= self.high)  # false of NaN
        if not self._costs:
            valid &= np.isfinite(values)
        if valid.all():
            return
        index = tuple(np.argwhere(~valid)[0])
        value = values[index]
        if self._costs:
            expected = "numbers of at least 0, infinity for users who leave"
        elif np.isfinite(self.low).any() or np.isfinite(self.high).any():
            expected = f"numbers in [{_text(self.low)}, {_text(self.high)}]"
        else:
            expected = "finite numbers"
        if not math.isfinite(value):
            remedy = "look for a division by zero"
        elif self._costs:
            remedy = "a rule takes temper and gives none"
        else:
            remedy = "clip it, or declare other bounds"
        raise ConfigError(
            f"{self._name} must return {expected}, got {value} in session {rows[index[0]]} at step "
            f"{steps[index[0]]}: {remedy}."
        )

    def _remember(self, memory: Memory, rows: NDArray[np.int64]) -> None:
        for name, array in self.memory.items():
            changed = memory[name]
            if changed is array:
                continue
            shape = (len(rows), *array.shape[1:])
            if np.shape(changed) != shape:
                raise ConfigError(
                    f"{self._name} must leave memory[{name!r}] of shape {shape}, got "
                    f"{np.shape(changed)}: change it in place, memory[{name!r}][:] = ..."
                )
            array[rows] = changed

    def snapshot(self) -> Snapshot:
        """Copies of the memory, by name."""
        return {name: array.copy() for name, array in self.memory.items()}

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot."""
        for name, array in self.memory.items():
            array[...] = snapshot[name]


class OwnRules:
    """Rules of one's own in N sessions.

    Args:
        world: The sessions.
        reward: Rule of the reward; ``None`` for the mean response.
        abandonment: Rule of abandonment; ``None`` for one of the built-in ones.

    Attributes:
        reward: The first rule as it runs, or ``None``.
        abandonment: The second one, likewise.

    Raises:
        ConfigError: As for :class:`RunningRule`.
    """

    def __init__(
        self, world: RuleWorld, reward: OwnRule | None = None, abandonment: OwnRule | None = None
    ) -> None:
        self.reward = None if reward is None else RunningRule("reward", reward, world)
        self.abandonment = (
            None if abandonment is None else RunningRule("abandonment", abandonment, world)
        )
        self._world = world
        rules = {"reward": self.reward, "abandonment": self.abandonment}
        self._running = {option: rule for option, rule in rules.items() if rule is not None}

    @property
    def settings(self) -> dict[str, Any]:
        """Names and parameters of the rules, by option."""
        return {option: rule.settings for option, rule in self._running.items()}

    def step(self, state: SessionState, result: StepResult, rows: NDArray[np.int64]) -> SessionStep:
        """The latest step of (n,) slots, as rules see it."""
        chosen = slice(None) if len(rows) == len(state.users) else rows
        groups, slates = self._world.groups, result.slates[chosen]
        share = state.share[chosen].copy()
        arrays = (
            state.users[chosen],
            slates,
            result.responses[chosen],
            result.feedback[chosen],
            result.answered[chosen],
            groups.labels[slates],
            self._world.categories[slates],
            state.steps[chosen].copy(),
            state.temper[chosen].copy(),
            share,
            result.reward[chosen],
            groups.fairness(share),
            result.penalised[chosen],
        )
        for array in arrays:
            array.setflags(write=False)
        return SessionStep(*arrays, memory={})

    def reset(self, rows: NDArray[np.int64], users: NDArray[np.int32]) -> None:
        """Begins sessions of (n,) users in (n,) slots."""
        for rule in self._running.values():
            rule.reset(rows, users)

    def snapshot(self) -> Snapshot:
        """Copies of what the rules remember, by name."""
        snapshot: Snapshot = {}
        for option, rule in self._running.items():
            snapshot |= under(option, rule.snapshot())
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot."""
        for option, rule in self._running.items():
            rule.restore(within(option, snapshot))


def find_reward(reward: str | OwnRule) -> OwnRule | None:
    """Returns the rule of a reward: by its name, or as it is; ``None`` for the mean response.

    Raises:
        ConfigError: Unknown name.
    """
    if not isinstance(reward, str):
        return reward
    if reward not in REWARDS:
        raise unknown_option("reward", reward, REWARDS)
    return UtilityAndFairness() if reward == "vector" else None


def _name(rule: object) -> str:
    """Name of a function, or of the class of a rule."""
    return str(getattr(rule, "__qualname__", type(rule).__qualname__))


def _check_rule(name: str, rule: object) -> None:
    if isinstance(rule, type) or not callable(rule):
        remedy = "make an object of the class" if callable(rule) else "see docs/own_rules.md"
        raise ConfigError(
            f"{name} must be a function of a step or an object of a subclass of kuaisim_gym.Rule, "
            f"got {rule!r}: {remedy}."
        )
    hooks = [hook for hook in _HOOKS if hasattr(rule, hook)]
    if hooks and not isinstance(rule, Rule):
        raise ConfigError(
            f"{name} has {hooks[0]}(), which is called of subclasses of kuaisim_gym.Rule alone: "
            "make it one."
        )


def _checked_memory(name: str, memory: object, n_sessions: int) -> Memory:
    if not isinstance(memory, dict):
        raise ConfigError(
            f"{name} must return a dictionary of arrays from begin(), got {type(memory).__name__}: "
            "return {} for no memory."
        )
    for key, array in memory.items():
        fits = isinstance(array, np.ndarray) and array.shape[:1] == (n_sessions,)
        if not fits or array.dtype.kind not in "biuf":
            kind = f"{getattr(array, 'dtype', type(array).__name__)} of shape {np.shape(array)}"
            raise ConfigError(
                f"{name} must remember {key!r} as an array of numbers with {n_sessions} rows, one "
                f"a session, got {kind}: make it of shape (world.n_sessions, ...)."
            )
    return {str(key): array.copy() for key, array in memory.items()}


def _checked_bounds(
    name: str, bounds: tuple[ArrayLike, ArrayLike]
) -> tuple[DoubleArray, DoubleArray]:
    try:
        low, high = np.broadcast_arrays(*(np.asarray(bound, dtype=np.float64) for bound in bounds))
    except (TypeError, ValueError):
        low = high = np.zeros(())
    if low.ndim > 1 or not low.size or not (low < high).all():
        raise ConfigError(
            f"{name} must have bounds (low, high), two numbers or two rows of D numbers with low "
            f"below high, got {bounds!r}."
        )
    return low.copy(), high.copy()


def _plain(value: object) -> Any:
    """A parameter in a form that JSON knows and that tells values apart."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), zlib.crc32(value.tobytes())]
    if isinstance(value, (list, tuple)):
        return [_plain(element) for element in value]
    if isinstance(value, dict):
        return {str(name): _plain(element) for name, element in value.items()}
    return _name(value)


def _text(bound: DoubleArray) -> str:
    return f"{bound:g}" if bound.ndim == 0 else str(bound.tolist())
