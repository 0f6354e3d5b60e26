"""Two rules beside the paper's: users who are bored by a category, and a price of neglect."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from kuaisim_gym.config import check_whole, is_number
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.groups import Groups, GroupSpec, TargetSpec
from kuaisim_gym.simulator.rules import Memory, Rule, RuleWorld, SessionStep


@dataclass(eq=False)
class CategoryBoredom(Rule):
    """Abandonment of users who see too much of one category.

    A user is bored by a step after which more than ``most`` of the ``last`` items shown share a
    category. Items count by their first category; those without one bore nobody.

    Attributes:
        most: Items of one category that a user bears.
        last: Items that a user remembers.
        cost: Temper that a boring step costs; infinite: the user leaves.

    Raises:
        ConfigError: A number is out of range, or nobody would ever be bored.
    """

    most: int = 8
    last: int = 20
    cost: float = math.inf

    def __post_init__(self) -> None:
        check_whole("most", self.most, 1)
        check_whole("last", self.last, 1)
        if self.most >= self.last:
            raise ConfigError(
                f"most must be below last, or nobody is ever bored, got most={self.most} of "
                f"last={self.last}."
            )
        if not (self.cost == math.inf or (is_number(self.cost) and self.cost > 0)):
            raise ConfigError(f"cost must be a number above 0, or infinity, got {self.cost!r}.")

    def begin(self, world: RuleWorld) -> Memory:
        return {"recent": np.full((world.n_sessions, self.last), -1, dtype=np.int32)}

    def __call__(self, step: SessionStep) -> ArrayLike:
        recent = step.memory["recent"]
        recent[:] = np.concatenate([recent, step.categories], axis=1)[:, -self.last :]
        alike = (recent[:, :, None] == recent[:, None, :]) & (recent >= 0)[:, None, :]
        return np.where(alike.sum(axis=2).max(axis=1) > self.most, self.cost, 0.0)


@dataclass(eq=False)
class ProviderQuota(Rule):
    """Reward less a price, where providers of items get less than their share of a session.

    The price is to be paid for the share of the session's exposures so far that is missing to
    providers who have less than is due to them, which is what others have more: 0 where each has
    its share, and below 1.

    Attributes:
        providers: Groups of items: a column such as ``"author_id"`` or ``"category"``, or what
            :func:`~kuaisim_gym.simulator.groups.find_groups` takes.
        target: Their shares, as for the same function.
        price: Reward that is lost where all exposures are missing.

    Raises:
        ConfigError: The price is negative.
    """

    providers: GroupSpec = "category"
    target: TargetSpec = "catalogue"
    price: float = 1.0

    def __post_init__(self) -> None:
        if not (is_number(self.price) and self.price >= 0):
            raise ConfigError(f"price must be a number of at least 0, got {self.price!r}.")

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        return -self.price, 1.0

    def begin(self, world: RuleWorld) -> Memory:
        self._groups: Groups = world.find_groups(self.providers, self.target)
        return {"shown": np.zeros((world.n_sessions, len(self._groups)), dtype=np.int64)}

    def __call__(self, step: SessionStep) -> ArrayLike:
        shown = step.memory["shown"]
        sessions = np.arange(len(shown))[:, None]
        np.add.at(shown, (sessions, self._groups.labels[step.slates]), 1)
        due = self._groups.target * shown.sum(axis=1, keepdims=True)
        # Summed in order, so that a session's sum does not depend on how many others run.
        missing = np.cumsum(np.maximum(due - shown, 0.0), axis=1)[:, -1] / shown.sum(axis=1)
        return np.asarray(step.utility - self.price * np.minimum(missing, 1.0))
