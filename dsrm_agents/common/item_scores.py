"""Scores that trained agents give to the items of a catalogue, for judging them as rankings."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.catalogue import Catalogue


@runtime_checkable
class ItemScorer(Protocol):
    """A policy that scores every item, the best first in a slate that nothing else decides."""

    def item_scores(self, obs: PyTorchObs) -> Tensor:
        """(N, n_items) float32 scores of the catalogue, of N observations."""


def scores_items(model: BaseAlgorithm) -> bool:
    """Tells if :func:`item_scores` can score items for a model, trained or not."""
    return isinstance(model.policy, ItemScorer) or _is_scorer(model)


def item_scores(model: BaseAlgorithm, observation: Any) -> NDArray[np.float32]:
    """Scores of all items, without what a slate's other items, quotas or bands would change.

    A policy with ``item_scores`` is asked for them. An agent whose action is a linear scorer gives
    the inner products of its best action with the rows of ``catalogue.known``.

    Args:
        model: A trained model, with its environment.
        observation: Observations of N sessions, as that environment gives them.

    Returns:
        (N, n_items) float32.

    Raises:
        ConfigError: The model scores no items, see :func:`scores_items`.
    """
    if isinstance(model.policy, ItemScorer):
        policy: Any = model.policy
        policy.set_training_mode(False)
        with torch.no_grad():
            obs, _ = policy.obs_to_tensor(observation)
            return np.asarray(policy.item_scores(obs).cpu().numpy())
    if not _is_scorer(model):
        raise ConfigError(
            f"{type(model).__name__} with {type(model.policy).__name__} scores no items: give a "
            "policy with item_scores(obs), or one whose actions are linear scorers."
        )
    weights, _ = model.predict(observation, deterministic=True)
    return np.asarray(weights, dtype=np.float32) @ _catalogue(model).known.T


def _is_scorer(model: BaseAlgorithm) -> bool:
    """Tells if the actions of a model are linear scorers of its items."""
    env, space = model.get_env(), model.action_space
    if env is None or not isinstance(space, spaces.Box):
        return False
    by_behaviour = env.get_attr("batch")[0].action_type == "fusion"
    return space.shape == (_catalogue(model).known.shape[1],) and not by_behaviour


def _catalogue(model: BaseAlgorithm) -> Catalogue:
    """The items of a model's environment."""
    env = model.get_env()
    assert env is not None
    catalogue: Catalogue = env.get_attr("catalogue")[0]
    return catalogue
