"""State estimates, each in front of the same ranking policy.

:class:`~dsrm_agents.baselines.similarity.SimilarityPolicy` has one number, its weight of
similarity: 1 for estimates of the belief, chosen on train users for states that are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsrm_agents import fit_purifier
from dsrm_agents.baselines.bands import Composition, Quota
from dsrm_agents.baselines.similarity import SimilarityPolicy
from dsrm_agents.dsrm.purifier import Purifier, recipe_of
from kuaisim_gym.data import Dataset
from kuaisim_gym.simulator.factors import HELD_OUT

from ..agents.agent import SLATE_ACTIONS, Agent
from ..runs.judging import Played, play
from ..runs.settings import Run

RAW, BELIEF = "raw", "belief"  # what differences refer to
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
CHOICE_SESSIONS = 1000  # of train users, to choose a weight


@dataclass(frozen=True)
class Estimate:
    """An estimate of the user's state.

    Attributes:
        options: Options of the environment whose observations hold it, or what it is made of.
        purifier: Name of the purifier that makes it; ``None`` for the observation as it is.
        weights: Weights of similarity to choose from.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    purifier: str | None = None
    weights: tuple[float, ...] = (1.0,)


ESTIMATES = {
    RAW: Estimate(weights=WEIGHTS),
    # One scale cannot make these as sure of themselves as a belief: their weights are chosen, too.
    **{name: Estimate(purifier=name, weights=WEIGHTS) for name in ("centre", "linear")},
    **{name: Estimate(purifier=name) for name in ("ridge", "mlp", "dsrm")},
    "belief-log": Estimate({"preference": "belief", "evidence": "log"}),
    "belief-session": Estimate({"preference": "belief", "evidence": "session"}),
    BELIEF: Estimate({"preference": "belief"}),
}


def find_estimate(name: str) -> Estimate:
    """The estimate of that name.

    Args:
        name: A key of :data:`ESTIMATES`, or the name of a purifier in the belief's units, as for
            :func:`~dsrm_agents.dsrm.purifier.recipe_of`.

    Raises:
        ConfigError: There is neither.
    """
    estimate = ESTIMATES.get(name, Estimate(purifier=name))
    if estimate.purifier is not None:
        recipe_of(estimate.purifier)
    return estimate


class Ready(NamedTuple):
    """An estimate that is ready to play.

    Attributes:
        options: Options of the environment.
        purifier: The fitted purifier, if any.
        weight: The weight of similarity.
        lengths: Mean session length of train users by weight; empty where there was no choice.
    """

    options: dict[str, str]
    purifier: Purifier | None
    weight: float
    lengths: dict[float, float]

    def agent(self, composition: type[Composition] = Quota) -> Agent:
        """The policy, as an agent of the benchmark.

        Args:
            composition: Numbers of items of each group in a slate.
        """
        return _agent(self.options, self.weight, composition)


def make_ready(name: str, spec: Run, dataset: Dataset) -> Ready:
    """Fits an estimate and chooses its weight, both without any test user.

    Args:
        name: As for :func:`find_estimate`.
        spec: Environment, length and seed of the sessions; the seed is that of the fit.
        dataset: The data.
    """
    estimate = find_estimate(name)
    options: dict[str, str] = {**SLATE_ACTIONS, **estimate.options}
    purifier = None
    if estimate.purifier is not None:
        purifier = _fit(estimate.purifier, dataset, spec.seed)
    lengths: dict[float, float] = {}
    if len(estimate.weights) > 1:
        choice = replace(spec, sessions=CHOICE_SESSIONS)
        for weight in estimate.weights:
            agent, users = _agent(options, weight), choosing_users(dataset)
            played = play(agent, choice, dataset, None, purifier, split="train", users=users)
            lengths[weight] = played.metrics["len"]
    weight = max(lengths, key=lengths.__getitem__) if lengths else estimate.weights[0]
    return Ready(options, purifier, weight, lengths)


def choosing_users(dataset: Dataset) -> NDArray[np.int32]:
    """(n,) int32 train users whose sessions choose a weight: every tenth of them."""
    train = dataset.train_users
    return train[HELD_OUT // 2 :: HELD_OUT] if len(train) >= 2 * HELD_OUT else train


def play_estimate(name: str, spec: Run, dataset: Dataset) -> tuple[Played, Ready]:
    """Plays the test sessions of a seed, which are the same for all estimates and agents."""
    ready = make_ready(name, spec, dataset)
    return play(ready.agent(), spec, dataset, None, ready.purifier), ready


@lru_cache(maxsize=16)
def _fit(name: str, dataset: Dataset, seed: int) -> Purifier:
    """A fitted purifier, the same for sessions of all lengths."""
    return fit_purifier(name, dataset, seed=seed)


def _agent(
    options: Mapping[str, str], weight: float, composition: type[Composition] = Quota
) -> Agent:
    rule = partial(SimilarityPolicy, weight=weight, composition=composition)
    return Agent("similarity", rule=rule, env_options=dict(options))
