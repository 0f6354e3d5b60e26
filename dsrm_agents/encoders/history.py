"""Encoders of histories of items and the answers to them into one vector a user.

Plain tensors in, a plain tensor out: this module is independent of environments and agents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError

LONGEST_WAVE = 1000.0  # events; the slowest rate at which positions turn


class MeanSummary(nn.Module):
    """Mean over the events of a non-linear feature; their order does not count.

    Without the non-linearity, the sum would not tell which answer belongs to which item.

    Args:
        inputs: Width d of a token.
        width: Width of the summary.
    """

    def __init__(self, inputs: int, width: int, *_: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """(n, H, d) tokens, (n, H) bool whether they are events, to (n, width)."""
        features = functional.gelu(self.enter(tokens)) * real[:, :, None]
        return torch.as_tensor(features.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1))


class RecurrentSummary(nn.Module):
    """Hidden state of a gated recurrent unit after the last event; as :class:`MeanSummary`."""

    def __init__(self, inputs: int, width: int, *_: int) -> None:
        super().__init__()
        self.cell = nn.GRU(inputs, width, batch_first=True)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """(n, H, d) tokens, (n, H) bool whether they are events, to (n, width)."""
        # Events first: the state after the last one has then met no padding, and what the cell
        # makes of the padding behind it is not read.
        states, _ = self.cell(_reordered(tokens, ~real))
        last = (real.sum(dim=1) - 1).clamp(min=0)
        return torch.as_tensor(states[torch.arange(len(states), device=states.device), last])


class AttentionLayer(nn.Module):
    """One transformer layer that normalises before attention and feed-forward (Xiong et al., 2020).

    Args:
        width: Width of inputs and outputs.
        heads: Attention heads; they divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.merge = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, visible: Tensor, queries: int) -> Tensor:
        """Last positions after attention to all visible positions.

        Args:
            x: (n, H, width).
            visible: (n, 1, 1, H) bool, true at least once in a row.
            queries: Q, how many positions to compute, from the end.

        Returns:
            (n, Q, width).
        """
        normal = self.norm(x)
        keys, values = self.key_value(normal).chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(
            self._split(self.query(normal[:, -queries:])),
            self._split(keys),
            self._split(values),
            visible,
        )
        x = x[:, -queries:] + self.merge(attended.transpose(1, 2).flatten(2))
        return torch.as_tensor(x + self.feed(x))

    def _split(self, x: Tensor) -> Tensor:
        """(n, Q, width) to (n, heads, Q, width / heads)."""
        return torch.as_tensor(x.unflatten(-1, (self.heads, -1)).transpose(1, 2))


class AttentionSummary(nn.Module):
    """Output of a transformer at the last event.

    Positions are counted from the last event, so that they do not depend on the padding; they are
    sinusoidal, so that a history may have any length.

    Args:
        inputs: Width d of a token.
        width: Width of the summary.
        layers: Number of transformer layers.
        heads: Attention heads of each.
    """

    rates: Tensor

    def __init__(self, inputs: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ConfigError(f"width must be a multiple of twice the {heads} heads, got {width}.")
        self.enter = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(AttentionLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        exponents = torch.arange(width // 2) / (width // 2)
        self.register_buffer("rates", LONGEST_WAVE**-exponents, persistent=False)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """(n, H, d) tokens, (n, H) bool whether they are events, to (n, width)."""
        tokens = _reordered(tokens, real)  # events last, so that a position tells the age
        length = tokens.shape[1]
        ages = torch.arange(length - 1, -1, -1, device=tokens.device)
        # At least one, even without an event: not every kernel defines the softmax of nothing.
        visible = ages < real.sum(dim=1, keepdim=True).clamp(min=1)
        angles = ages[:, None] * self.rates
        x = self.enter(tokens) + torch.cat([angles.sin(), angles.cos()], dim=1)
        for number, layer in enumerate(self.layers, start=1):
            # Nothing but the last event is read in the end: the last layer computes it alone.
            queries = 1 if number == len(self.layers) else length
            x = layer(x, visible[:, None, None], queries)
        return torch.as_tensor(self.norm(x[:, -1]))


SUMMARIES: dict[str, Callable[[int, int, int, int], nn.Module]] = {
    "mean": MeanSummary,
    "gru": RecurrentSummary,
    "attention": AttentionSummary,
}
KINDS = tuple(SUMMARIES)


class HistoryEncoder(nn.Module):
    """Summarises histories of items and the answers to them.

    An event is the sum of its item's embedding and a projection of its responses, normalised.
    Padding has no effect, wherever it lies and whatever it holds, and neither has the room H of a
    history; a history without events has the summary zero.

    Args:
        n_all_items: Number of items, those of the log alone included.
        n_behaviours: B, answers to an item.
        kind: ``"mean"`` forgets the order of the events; ``"gru"`` is the last hidden state of a
            gated recurrent unit; ``"attention"`` is the output of a transformer at the last event.
        embedding_dim: Width of a learned item embedding, unless ``item_embedding`` has its own.
        width: Width of the summary.
        item_embedding: (n_all_items, d) to start from; ``None`` starts at random. One factor scales
            it to a root mean square row length of 1, so that items and answers weigh alike.
        freeze_items: Whether to leave ``item_embedding`` as it is.
        layers: Layers of ``"attention"``.
        heads: Heads of each of them.

    Raises:
        ConfigError: Unknown kind, impossible size, or an ``item_embedding`` that is missing though
            frozen, of another shape, or not finite.
    """

    def __init__(
        self,
        n_all_items: int,
        n_behaviours: int,
        kind: str = "gru",
        embedding_dim: int = 32,
        width: int = 64,
        item_embedding: NDArray[np.floating[Any]] | None = None,
        freeze_items: bool = False,
        layers: int = 1,
        heads: int = 4,
    ) -> None:
        super().__init__()
        sizes = {"embedding_dim": embedding_dim, "width": width, "layers": layers, "heads": heads}
        for name, size in sizes.items():
            if size < 1:
                raise ConfigError(f"{name} must be at least 1, got {size}.")
        self.width = width
        self.items = _item_table(n_all_items, embedding_dim, item_embedding, freeze_items)
        dim = self.items.embedding_dim
        self.respond = nn.Linear(n_behaviours, dim, bias=False)
        nn.init.normal_(self.respond.weight, std=dim**-0.5)  # an answer is as long as an item
        self.norm = nn.LayerNorm(dim)
        summary = SUMMARIES[check_choice("kind", kind, KINDS)]
        self.summary = summary(dim, width, layers, heads)

    def forward(self, items: Tensor, responses: Tensor) -> Tensor:
        """Summarises n histories.

        Args:
            items: (n, H) int64 positions, oldest first, -1 where there is no event.
            responses: (n, H, B) float32; not read where there is no event.

        Returns:
            (n, width) float32.
        """
        real = items >= 0
        answers = self.respond(responses.masked_fill(~real[:, :, None], 0.0))
        tokens = self.norm(self.items(items + 1) + answers)  # row 0 is the padding
        summary = self.summary(tokens, real)
        return torch.as_tensor(summary.masked_fill(~real.any(dim=1, keepdim=True), 0.0))


def _item_table(
    n_all_items: int, dim: int, embedding: NDArray[np.floating[Any]] | None, frozen: bool
) -> nn.Embedding:
    """(n_all_items + 1, d) rows: that of padding, which stays zero, then those of the items."""
    if embedding is None:
        if frozen:
            raise ConfigError("freeze_items needs an item_embedding: random rows would stay so.")
        rows = torch.randn(n_all_items, dim)
    else:
        rows = torch.as_tensor(np.array(embedding, dtype=np.float32))
        if rows.ndim != 2 or len(rows) != n_all_items or not rows.shape[1]:
            raise ConfigError(
                f"item_embedding must have a row for each of the {n_all_items} items of the "
                f"observation space, got shape {tuple(rows.shape)}: use the dataset's own."
            )
        if not rows.isfinite().all():
            raise ConfigError("item_embedding must be finite: it holds NaN or infinity.")
    length = math.sqrt(float(rows.square().sum(dim=1).mean()))
    rows = functional.pad(rows / (length or 1.0), (0, 0, 1, 0))
    table: nn.Embedding = nn.Embedding.from_pretrained(rows, freeze=frozen, padding_idx=0)
    return table


def _reordered(tokens: Tensor, key: Tensor) -> Tensor:
    """(n, H, d) tokens by an (n, H) bool key, false first, otherwise in the order they have."""
    order = key.byte().argsort(dim=1, stable=True)
    return tokens.take_along_dim(order[:, :, None], dim=1)
