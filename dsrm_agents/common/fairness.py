"""Fairness rewards: Fair(L_t) and its weight (eq. 4)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.common.catalogue import check_fixed
from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import gini
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.groups import Groups, popularity_groups

FAIRNESS = ("ad", "gini")

FloatArray = NDArray[np.float32]


class Fairness:
    """Fair(L_t), a number for every step.

    * ``"ad"``: less the L1 distance of the slate's group shares to the target, the imbalance that
      abandonment acts on; of equal popularity groups ``-|2p - 1|``, p the slate's popular share.
    * ``"gini"``: the drop of the Gini coefficient of exposure over items in the step. Taken of
      a slate or a session alone the coefficient is a constant, because all items of a session
      are distinct; here a session adds to what the platform showed before, the train log's
      exposures scaled to the mass of one full session. Steps are differences of that potential,
      so that they sum to what the whole session did, in units of steps.

    Args:
        measure: One of ``FAIRNESS``.
        catalogue: The items.
        groups: Their groups; the popular items and the rest if ``None``.

    Raises:
        ConfigError: The measure is none, or not one of catalogues that change.
    """

    def __init__(self, measure: str, catalogue: Catalogue, groups: Groups | None = None) -> None:
        self.measure = check_choice("fairness", measure, FAIRNESS)
        if measure == "gini":
            check_fixed(catalogue.changes, "fairness='gini'")
        self.groups = popularity_groups(catalogue.popular) if groups is None else groups
        self.exposures = catalogue.exposures

    def check_target(self, target: float | None) -> None:
        """Checks that Fair can be held at a target.

        Raises:
            ConfigError: It lies outside the range of the measure.
        """
        lowest = -2.0 * (1.0 - float(self.groups.target.min()))
        if target is not None and self.measure == "ad" and not lowest <= target <= 0.0:
            raise ConfigError(
                f"Fair of 'ad' lies in [{lowest:g}, 0], got fairness_target={target}. An AD of at "
                "most x is the target -x."
            )

    def __call__(
        self,
        slates: NDArray[np.integer],
        before: NDArray[np.integer],
        labels: NDArray[np.integer] | None = None,
    ) -> FloatArray:
        """Fair of one step.

        Args:
            slates: (N, K) items shown.
            before: (N, room) items that the sessions had shown, -1 padded.
            labels: (N, K) labels of the slates' items, where those of the groups may be another
                day's.

        Returns:
            (N,) float32.
        """
        if self.measure == "gini":
            return self._gini_gain(slates, before)
        labels = self.groups.labels[slates] if labels is None else labels
        return np.asarray(-self.groups.imbalance(labels), dtype=np.float32)

    def _gini_gain(self, slates: NDArray[np.integer], before: NDArray[np.integer]) -> FloatArray:
        room = before.shape[1]
        platform = self.exposures * (room / max(int(self.exposures.sum()), 1))
        mass = np.tile(platform, (len(slates), 1))
        rows, columns = np.nonzero(before >= 0)
        np.add.at(mass, (rows, before[rows, columns]), 1.0)
        earlier = gini(mass)
        np.add.at(mass, (np.arange(len(slates))[:, None], slates), 1.0)
        return np.asarray((earlier - gini(mass)) * (room // slates.shape[1]), dtype=np.float32)


class FairnessWeight:
    """lambda of eq. 4: a constant, or the Lagrange multiplier of ``E[Fair] >= target``.

    With a target it takes steps of dual ascent, growing while fairness falls short of it and
    shrinking, not below 0, while fairness exceeds it.

    Args:
        start: lambda, or where the multiplier starts.
        target: Of the mean Fair; ``None`` for a constant.
        step: Of the ascent, in lambda a unit of Fair a rollout.

    Raises:
        ConfigError: A number is negative or not finite.
    """

    def __init__(self, start: float, target: float | None, step: float) -> None:
        for name, value in (("fairness_coef", start), ("multiplier_step", step)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be a finite number of at least 0, got {value}.")
        if target is not None and not math.isfinite(target):
            raise ConfigError(f"fairness_target must be a finite number or None, got {target}.")
        self.value = start
        self.target = target
        self.step = step

    def update(self, fairness: float) -> None:
        """Takes one step after a rollout, from its mean Fair."""
        if self.target is not None:
            self.value = max(0.0, self.value + self.step * (self.target - fairness))
