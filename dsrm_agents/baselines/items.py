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
        return self._all(self.query(state), self.level(state))

    def of(self, state: Tensor, items: Tensor) -> Tensor:
        """(n, d) states to the (n, K) numbers of some items, (n, K) int64 positions."""
        return self._some(self.query(state), self.level(state), items)

    def all_and_some(self, state: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of all items, without gradients, and those that :meth:`of` returns."""
        query, level = self.query(state), self.level(state)
        with torch.no_grad():
            everything = self._all(query, level)
        return everything, self._some(query, level, items)

    def _all(self, query: Tensor, level: Tensor) -> Tensor:
        return torch.addmm(self.offsets, query, self.vectors.T).add_(level)

    def _some(self, query: Tensor, level: Tensor, items: Tensor) -> Tensor:
        vectors = functional.embedding(items, self.vectors)
        offsets = functional.embedding(items, self.offsets[:, None]).squeeze(2)
        return torch.as_tensor(offsets + torch.einsum("nkm,nm->nk", vectors, query) + level)


class SlatePolicy(BasePolicy):
    """Shows the K unexposed items of the highest score; a subclass says what the score is.

    Args:
        observation_space: That of ``observation_type="dict"``.
        action_space: That of ``action_type="slate"``.
        catalogue: The items, as the environment's ``catalogue`` attribute gives them.
        optimizer_class: Of the networks' optimisers.
        optimizer_kwargs: Of the optimisers, beside the learning rate.
        **kwargs: Passed on to the base class.

    Raises:
        ConfigError: The spaces are others.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        catalogue: Catalogue,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        self.state_dim, self.slate_size = check_item_spaces(name, observation_space, action_space)
        self.catalogue = catalogue
        if optimizer_class is torch.optim.Adam:  # in one pass over the items' vectors, not ten
            optimizer_kwargs = {"fused": True, **(optimizer_kwargs or {})}
        super().__init__(
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )

    def set_training_mode(self, mode: bool) -> None:
        """Does nothing: no layer of these networks differs in training.

        Stable-Baselines3 asks for it three times an update, each a walk over all modules.
        """

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


def unexposed(scores: Tensor, exposed: Tensor, hidden: float = -torch.inf) -> Tensor:
    """(n, n_items) scores, ``hidden`` where an item was shown.

    Args:
        scores: (n, n_items) float32.
        exposed: (n, room) int64 item positions, -1 padded.
        hidden: Of items that were shown.
    """
    rows, slots = (exposed >= 0).nonzero(as_tuple=True)
    return scores.index_put((rows, exposed[rows, slots]), scores.new_tensor(hidden))
