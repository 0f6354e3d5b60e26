"""SB3 policies that score all items and show the best unexposed items."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn
from torch.nn import functional

from dsrm_agents.common.catalogue import check_item_spaces, state_and_unavailable
from dsrm_agents.common.networks import mlp, start_near_zero
from kuaisim_gym.precision import check_single_precision
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
        query, level = self.query(state), self.level(state)
        return torch.addmm(self.offsets, query, self.vectors.T).add_(level)

    def of(self, state: Tensor, items: Tensor) -> Tensor:
        """(n, d) states to the (n, K) numbers of some items, (n, K) int64 positions."""
        query, level = self.query(state), self.level(state)
        vectors = functional.embedding(items, self.vectors)
        offsets = functional.embedding(items, self.offsets[:, None]).squeeze(2)
        return torch.as_tensor(offsets + torch.einsum("nkm,nm->nk", vectors, query) + level)


class ItemNetworks(nn.Module):
    """Several item networks of one shape side by side: each layer of all is one product.

    Tensors have an axis of c networks in front. Items' vectors are columns, because products with
    rows take three times as long. The last layer is by far the largest: its gradient is in closed
    form (:meth:`backward`), where autograd would fill arrays of all items for each network.

    Args:
        networks: They give the weights at the start.
    """

    def __init__(self, networks: Sequence[ItemNetwork]) -> None:
        super().__init__()
        self.vectors = nn.Parameter(_stacked([network.vectors.T for network in networks]))
        self.offsets = nn.Parameter(_stacked([network.offsets[None] for network in networks]))
        self.query = StackedMLP([network.query for network in networks])
        self.level = StackedMLP([network.level for network in networks])

    def read(self, state: Tensor, chosen: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """(n, d) states to what the last layer needs: (c, n, m) queries and (c, n, 1) levels."""
        return self.query(state, chosen), self.level(state, chosen)

    def all(self, query: Tensor, level: Tensor, chosen: slice = slice(None)) -> Tensor:
        """(c, n, n_items) numbers, without gradients, of what :meth:`read` gave."""
        with torch.no_grad():
            numbers = torch.baddbmm(self.offsets[chosen], query, self.vectors[chosen])
            return numbers.add_(level)

    def forward(self, state: Tensor, chosen: slice = slice(None)) -> Tensor:
        """(n, d) states to (c, n, n_items) numbers, without gradients."""
        with torch.no_grad():
            return self.all(*self.read(state, chosen), chosen)

    def backward(
        self, query: Tensor, level: Tensor, of_all: Tensor, of_some: Tensor, items: Tensor
    ) -> None:
        """Sets the gradients of the items' weights, and adds to those of the others.

        Args:
            query: (c, n, m), of all networks.
            level: (c, n, 1).
            of_all: (n, n_items) gradient by all numbers of the first network.
            of_some: (c - 1, n, K) gradients by some numbers of the others.
            items: (n, K) int64, which those are.
        """
        with torch.no_grad():
            vectors, offsets = torch.zeros_like(self.vectors), torch.zeros_like(self.offsets)
            torch.mm(query[0].T, of_all, out=vectors[0])
            torch.sum(of_all, dim=0, keepdim=True, out=offsets[0])
            terms = query[1:].mT[..., None] * of_some[:, None]  # (c - 1, m, n, K)
            vectors[1:].index_add_(2, items.flatten(), terms.flatten(2))
            offsets[1:].index_add_(2, items.flatten(), of_some.flatten(1)[:, None])
            self.vectors.grad, self.offsets.grad = vectors, offsets
            of_query, of_level = torch.empty_like(query), torch.empty_like(level)
            torch.mm(of_all, self.vectors[0].T, out=of_query[0])
            torch.sum(of_all, dim=1, keepdim=True, out=of_level[0])
            chosen = self.vectors[1:, :, items]
            of_query[1:] = torch.einsum("cnk,cmnk->cnm", of_some, chosen)
            of_level[1:] = of_some.sum(dim=2, keepdim=True)
        torch.autograd.backward([query, level], [of_query, of_level])


class StackedMLP(nn.Module):
    """Multi-layer perceptrons of one shape, with ReLU between their layers.

    Args:
        networks: As :func:`~dsrm_agents.common.networks.mlp` makes them.
    """

    def __init__(self, networks: Sequence[nn.Sequential]) -> None:
        super().__init__()
        layers = [
            [layer for layer in network if isinstance(layer, nn.Linear)] for network in networks
        ]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for alike in zip(*layers, strict=True):
            self.weights.append(_stacked([layer.weight.T for layer in alike]))
            self.biases.append(_stacked([layer.bias[None] for layer in alike]))

    def forward(self, x: Tensor, chosen: slice = slice(None)) -> Tensor:
        """(n, inputs) to (c, n, outputs)."""
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = functional.relu(x) if depth else x.expand(len(weight[chosen]), *x.shape)
            x = torch.baddbmm(bias[chosen], x, weight[chosen])
        return x


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.detach() for tensor in tensors])


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
        check_single_precision(name)
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
