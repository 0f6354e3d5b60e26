"""Options of a session: the rules that users follow, whichever environment they are in."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import ConfigError, unknown_option

ABANDONMENT_RULES = ("imbalance", "popularity", "none")
SPLITS = ("train", "test")
RESPONSE_MODELS = ("factor", "sequential")
CALIBRATIONS = ("balanced", "calibrated")
POPULARITIES = ("exposures", "positives")  # counts by which items are popular
STEP_COSTS = ("dissatisfaction", "request")
ENGINES = ("auto", "numba", "numpy")


def check_choice(name: str, value: str, options: Iterable[str]) -> str:
    """Returns ``value`` if it is one of ``options``; values of any type can be checked.

    Raises:
        ConfigError: It is not; the message names the nearest option.
    """
    if not (isinstance(value, Hashable) and value in tuple(options)):  # arrays are not
        raise unknown_option(name, value, options)
    return value


def check_whole(name: str, value: object, least: int) -> int:
    """Returns ``value`` as an int if it is a whole number of at least ``least``.

    Raises:
        ConfigError: It is not.
    """
    if is_whole(value) and value >= least:
        return int(value)
    raise ConfigError(f"{name} must be an integer of at least {least}, got {value!r}.")


def is_whole(value: object) -> TypeGuard[int]:
    """Tells an integer, Python's or NumPy's, from anything else; a bool or a duration is none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64))


def is_number(value: object) -> TypeGuard[float]:
    """Tells a finite number, Python's or NumPy's, from anything else; a bool is none."""
    if not (is_whole(value) or isinstance(value, (float, np.floating))):
        return False
    if isinstance(value, int):  # which can be larger than any float
        return abs(value) <= sys.float_info.max
    return math.isfinite(value)


def check_within(name: str, value: object, interval: str) -> float:
    """Returns a number if it lies in an interval.

    Args:
        name: Its name, for the error.
        value: The number; infinity is one.
        interval: Such as ``"(0, 1]"``, of which a round bracket leaves the end out.

    Raises:
        ConfigError: It is no number, or lies outside.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    if is_number(value) or (isinstance(value, float) and value == math.inf):
        number = float(value)
        above = low <= number if interval[0] == "[" else low < number
        if above and (number <= high if interval[-1] == "]" else number < high):
            return number
    raise ConfigError(f"{name} must be a number in {interval}, got {value!r}.")


def check_fields(name: str, value: object, kind: type[Any]) -> dict[str, Any]:
    """Returns a mapping of fields of a dataclass as a dict.

    Args:
        name: Name of the option that holds it, for errors.
        value: The mapping.
        kind: The dataclass.

    Raises:
        ConfigError: It is no mapping, or the dataclass has no such field.
    """
    names = [field.name for field in fields(kind)]
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a mapping of some of {names}, got {value!r}.")
    for key in value:
        if key not in names:
            raise unknown_option(f"A field of {name}", key, names)
    return dict(value)


def plain_number(value: float) -> float:
    """A number as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def check_flag(name: str, value: object) -> bool:
    """Returns ``value`` as a bool if it is True or False, Python's or NumPy's.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ConfigError(f"{name} must be True or False, got {value!r}.")


@dataclass(frozen=True)
class SessionConfig:
    """The rules of one session.

    Attributes:
        max_len: Initial temper T, in steps: the longest session a user can have.
        slate_size: Items K in a slate.
        window: Exposures over which the popular share is taken; ``None`` means ``slate_size``, or
            10 (a short session's all) where a slate is a single item, whose share is 0 or 1.
        ad_bound: Imbalance ``|2s - 1|`` at or above which a step is penalised, in [0, 1].
        abandonment: ``"imbalance"`` penalises both directions and reproduces the published
            arithmetic; ``"popularity"`` penalises popular-heavy windows only, the paper's
            sentence taken literally (section 5.1.1); ``"none"`` never penalises.
        allow_repeats: Whether an item may be answered again in the same session.
        stochastic_response: Bernoulli responses if true, their probabilities otherwise.
        reward_weights: Weight of each behaviour in a response, by name, negative ones allowed; a
            response is the weighted sum of the answers over the sum of the positive weights, and at
            least 0. ``None`` counts the first behaviour alone: the watched share, or the click.
        step_cost: Temper that a step costs without penalties: ``"dissatisfaction"``, 2 - reward;
            or ``"request"``, one for any reward.
        correlation: Similarity penalty (KuaiSim's rho): ``correlation`` times an item's mean cosine
            similarity to the rest of its slate is subtracted from its probabilities.
        max_steps: Step cap below the natural end, reported as ``truncated``; ``None`` for none.
    """

    max_len: int = 30
    slate_size: int = 10
    window: int | None = None
    ad_bound: float = 0.3
    abandonment: str = "imbalance"
    allow_repeats: bool = False
    stochastic_response: bool = True
    reward_weights: Mapping[str, float] | None = None
    step_cost: str = "dissatisfaction"
    correlation: float = 0.0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for name, value, lowest in (
            ("max_len", self.max_len, 2),
            ("slate_size", self.slate_size, 1),
            ("window", self.exposure_window, 1),
            ("max_steps", self.step_limit, 1),
        ):
            check_whole(name, value, lowest)
        if self.exposure_window > self.longest * self.slate_size:
            raise ConfigError(
                f"window must be at most the {self.longest * self.slate_size} exposures of the "
                f"longest session, got {self.window}: it would never fill."
            )
        for name in ("ad_bound", "correlation"):
            value = getattr(self, name)
            if not (is_number(value) and 0.0 <= value <= 1.0):
                raise ConfigError(f"{name} must be a number in [0, 1], got {value!r}.")
        check_choice("abandonment", self.abandonment, ABANDONMENT_RULES)
        check_choice("step_cost", self.step_cost, STEP_COSTS)
        for name in ("allow_repeats", "stochastic_response"):
            check_flag(name, getattr(self, name))
        for option in fields(self):  # options of equal value are equal, whatever their type
            value = getattr(self, option.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, option.name, value.item())

    def behaviour_weights(self, behaviours: tuple[str, ...]) -> NDArray[np.float32]:
        """(B,) float32 weights of some behaviours in a response; the positive ones sum to one.

        Raises:
            ConfigError: A name is not among them, or a weight is no number, or none is positive.
        """
        chosen = self.reward_weights
        if chosen is None:
            chosen = {behaviours[0]: 1.0}
        if not isinstance(chosen, Mapping):
            raise ConfigError(f"reward_weights must map names to numbers, got {chosen!r}.")
        weights = np.zeros(len(behaviours), dtype=np.float32)
        for name, weight in chosen.items():
            check_choice("reward_weights: a behaviour", name, behaviours)
            if not is_number(weight):
                raise ConfigError(
                    f"reward_weights[{name!r}] must be a finite number, got {weight!r}."
                )
            weights[behaviours.index(name)] = weight
        total = float(weights[weights > 0].sum())
        if not (np.isfinite(weights).all() and total > 0):
            raise ConfigError(f"reward_weights must be finite, one positive, got {chosen!r}.")
        return weights / np.float32(total)

    @property
    def exposure_window(self) -> int:
        """Number of latest exposures over which the popular share is taken."""
        if self.window is not None:
            return self.window
        return self.slate_size if self.slate_size > 1 else min(10, self.longest)

    @property
    def step_limit(self) -> int:
        """Largest number of steps in a session: every step costs at least one temper."""
        return self.max_len if self.max_steps is None else self.max_steps

    @property
    def longest(self) -> int:
        """Number of steps that per-session arrays must hold."""
        return min(self.max_len, self.step_limit)
