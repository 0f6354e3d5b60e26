"""The hierarchical policy network: coarse to fine, each level from the last residual (4.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsrm_agents.common.networks import mlp, start_near_zero

CONTEXTS = ("sampled", "expected", "state")


class TokenNetwork(nn.Module):
    """Logits of the tokens of an id in turn, ``c_l = LayerNorm(c_{l-1} - e_l)`` in between.

    e_l is the learned embedding of the token drawn at level l (``context="sampled"``), so that
    later levels depend on it; or the mean over the level's tokens under the learned logits alone
    (``"expected"``), as in the released code, which has no prior and no masks: levels are then
    independent of one another. With ``"state"`` there is no residual and all levels read the state.

    Args:
        widths: Numbers of values along an id.
        state_dim: Numbers in a state.
        items: (n_items, f) float32, which distinguish the items of a bucket.
        context: One of ``CONTEXTS``.
        dim: Width of a context.
        hidden: Width of the state encoder's hidden layer.
    """

    items: Tensor

    def __init__(
        self,
        widths: tuple[int, ...],
        state_dim: int,
        items: Tensor,
        context: str,
        dim: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.context = context
        self.encoder = mlp(state_dim, [hidden], dim, nn.Tanh)
        self.heads = nn.ModuleList(nn.Linear(dim, width) for width in widths[:-1])
        self.embeddings = nn.ModuleList(nn.Embedding(width, dim) for width in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in widths[:-1])
        self.ranker = nn.Linear(dim, items.shape[1])
        for head in (*self.heads, self.ranker):
            start_near_zero(head)  # so that the prior decides at first
        rows = functional.pad(items, (0, 0, 0, 1))  # and the row of no item
        self.register_buffer("items", rows, persistent=False)

    def logits(self, depth: int, context: Tensor, items: Tensor | None) -> Tensor:
        """Logits that a level adds to the prior.

        Args:
            depth: Level.
            context: (..., dim) float32.
            items: (..., B) int64 of the buckets reached, for the last level.

        Returns:
            (..., V) float32.
        """
        if items is None:
            return torch.as_tensor(self.heads[depth](context))
        return torch.einsum("...f,...bf->...b", self.ranker(context), self.items[items])

    def next_context(self, depth: int, context: Tensor, logits: Tensor, token: Tensor) -> Tensor:
        """The context of the next level.

        Args:
            depth: Level that was decided.
            context: (..., dim) float32 that it was decided by.
            logits: (..., V) float32 of it.
            token: (...,) int64 drawn.

        Returns:
            (..., dim) float32.
        """
        if self.context == "state":
            return context
        if self.context == "sampled":
            return self._residual(depth, context, self.embeddings[depth](token))
        return self.expected_context(depth, context, logits)

    def expected_context(self, depth: int, context: Tensor, logits: Tensor) -> Tensor:
        """The context of the next level, whatever will be drawn; shapes as above."""
        embedding: Any = self.embeddings[depth]
        mean = torch.softmax(logits, dim=-1) @ embedding.weight
        return self._residual(depth, context, mean)

    def state_contexts(self, first: Tensor) -> list[Tensor]:
        """Contexts (N, dim) of all levels that follow from the state alone, given the first."""
        contexts = [first]
        for depth, head in enumerate(self.heads):
            context = contexts[-1]
            if self.context != "state":
                context = self.expected_context(depth, context, head(context))
            contexts.append(context)
        return contexts

    def _residual(self, depth: int, context: Tensor, embedding: Tensor) -> Tensor:
        return torch.as_tensor(self.norms[depth](context - embedding))


class MultiLevelCritic(nn.Module):
    """One value network for the contexts of all levels, and the weights of its values (4.3).

    ``V(s) = sum_l softmax(omega)_l V(c_l)``. Deviation from the released code: omega is trained,
    with the value loss, as the paper has it.

    Args:
        levels: Contexts of a state.
        dim: Width of a context.
        hidden: Width of the hidden layer.
    """

    def __init__(self, levels: int, dim: int, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, 1)
        start_near_zero(last)
        self.value = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), last)
        self.omega = nn.Parameter(torch.zeros(levels))

    def forward(self, contexts: list[Tensor]) -> Tensor:
        """(N, dim) contexts of all levels to the (N, 1) value of the state."""
        values = self.at(torch.stack(contexts, dim=1))
        return (values * torch.softmax(self.omega, dim=0)).sum(dim=1, keepdim=True)

    def at(self, contexts: Tensor) -> Tensor:
        """(..., dim) contexts to their (...,) values."""
        return torch.as_tensor(self.value(contexts).squeeze(-1))
