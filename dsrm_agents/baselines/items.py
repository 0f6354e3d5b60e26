"""SB3 policies that score all items and show the best unexposed items."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn
from torch.nn import functional

from dsrm_agents.common.catalogue import check_item_spaces, state_and_unavailable
from dsrm_agents.common.networks import mlp, start_near_zero
from kuaisim_gym.simulator.catalogue import Catalogue


class ItemNetwork(nn.Module):
    """A number for every item: a network of the state, and a vector and an offset an item.

    It is the usual network with an output an item, whose last layer starts at the catalogue's
    vectors, so that similar items start out alike. A term of the output is common to all items (the
    dueling network of Wang et al., ICML 2016): without it, whenever values fall, items that no
    slate has tried since keep their old values and look best. All outputs start near zero.

    Args:
        catalogue: The items.
        state_dim: d, numbers in a state.
        hidden: Width of the two hidden layers.
    """

    def __init__(self, catalogue: Catalogue, state_dim: int, hidden: int) -> None:
        super().__init__()
        vectors = catalogue.known
        self.vectors = nn.Parameter(torch.as_tensor(vectors / math.sqrt(vectors.shape[1])))
        self.offsets = nn.Parameter(torch.zeros(len(vectors)))
        self.query = mlp(state_dim, [hidden, hidden], vectors.shape[1])
        self.level = mlp(state_dim, [hidden], 1)
        start_near_zero(self.query[-1])
        start_near_zero(self.level[-1])

    def forward(self, state: Tensor) -> Tensor:
        """(n, d) states to (n, n_items)."""
        apart = torch.addmm(self.offsets, self.query(state), self.vectors.T)
        return torch.as_tensor(apart + self.level(state))

    def of(self, state: Tensor, items: Tensor) -> Tensor:
        """(n, d) states to the (n, K) numbers of some items, (n, K) int64 positions."""
        vectors = functional.embedding(items, self.vectors)
        offsets = functional.embedding(items, self.offsets[:, None]).squeeze(2)
        apart = offsets + torch.einsum("nkm,nm->nk", vectors, self.query(state))
        return torch.as_tensor(apart + self.level(state))


class SlatePolicy(BasePolicy):
    """Shows the K unexposed items of the highest score; a subclass says what the score is.

    Args:
        observation_space: That of ``observation_type="dict"``.
        action_space: That of ``action_type="slate"``.
        catalogue: The items, as the environment's ``catalogue`` attribute gives them.
        **kwargs: Passed on to the base class.

    Raises:
        ConfigError: The spaces are others.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        catalogue: Catalogue,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        self.state_dim, self.slate_size = check_item_spaces(name, observation_space, action_space)
        self.catalogue = catalogue
        super().__init__(observation_space, action_space, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "catalogue": self.catalogue}

    @abstractmethod
    def scores(self, state: Tensor, exposed: Tensor, deterministic: bool) -> Tensor:
        """Scores of all items.

        Args:
            state: (n, d) float32.
            exposed: (n, m) int64 positions of items that may not be shown, -1 padded.
            deterministic: Whether to take the best instead of drawing.

        Returns:
            (n, n_items) float32; those of exposed items do not count.
        """

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        state, exposed = state_and_unavailable(observation, self.catalogue.n_items)
        scores = unexposed(self.scores(state, exposed, deterministic), exposed)
        return scores.topk(self.slate_size, dim=1).indices


def unexposed(scores: Tensor, exposed: Tensor) -> Tensor:
    """(n, n_items) scores, minus infinity where an item was shown.

    Args:
        scores: (n, n_items) float32.
        exposed: (n, room) int64 item positions, -1 padded.
    """
    n_items = scores.shape[1]
    shown = torch.zeros(len(scores), n_items + 1, dtype=torch.bool, device=scores.device)
    shown.scatter_(1, torch.where(exposed < 0, n_items, exposed), True)
    return scores.masked_fill(shown[:, :-1], -torch.inf)
