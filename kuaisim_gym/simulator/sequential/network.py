"""The networks: encoders of users and items, the causal transformer, and the scorer.

Source: KuaiSim (Zhao et al., "KuaiSim: A comprehensive simulator for recommender systems", NeurIPS
2023), its multi-behaviour user response model. Each class names its deviations.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from kuaisim_gym.data.dataset import Features
from kuaisim_gym.simulator.sequential.config import SequentialConfig

_START_SPREAD = 0.03  # of what the rows of an embedding table have in common at first
_START_NOISE = 0.03  # of the rows around it; training would not leave a start without noise


class FieldEncoder(nn.Module):
    """Encodes users or items by id and categorical features, without numbers.

    Deviations from KuaiSim: the rows of a field's table begin small and near one vector, so that
    they turn quickly and rare values stay near the others; fields of several values are averaged
    over those values.

    Args:
        n: Number of users or items.
        features: Of all of them.
        config: Sizes.
    """

    def __init__(self, n: int, features: Features, config: SequentialConfig) -> None:
        super().__init__()
        self.names = sorted(features.codes)
        sizes = [n + 1] + [len(features.values[name]) for name in self.names]
        self.tables = nn.ModuleList(_table(size, config.latent) for size in sizes)
        self.codes = [torch.from_numpy(np.array(features.codes[name])) for name in self.names]
        self.field_norm = nn.LayerNorm(config.latent)
        self.project = nn.Linear(config.latent, config.encoding)
        self.norm = nn.LayerNorm(config.encoding)

    def forward(self, rows: Tensor, masked: Tensor | None = None) -> Tensor:
        """Encodes some users or items.

        Args:
            rows: (m,) int64 positions.
            masked: (m,) bool, rows whose id is masked; ``None`` for none.

        Returns:
            (m, encoding) float32.
        """
        ids = rows + 1  # row 0 stands for an unknown id
        if masked is not None:
            ids = ids.masked_fill(masked, 0)
        fields = [self.tables[0](ids)]
        for codes, table in zip(self.codes, list(self.tables)[1:], strict=True):
            fields.append(_pooled(table(codes[rows]), codes[rows]))
        # The projection is shared by all fields, so the sum over fields may come first.
        total = self.field_norm(torch.stack(fields)).sum(dim=0)
        encoded: Tensor = functional.linear(total, self.project.weight)
        return torch.as_tensor(self.norm(encoded + len(fields) * self.project.bias))

    @torch.no_grad()
    def forget_unseen(self, trained: NDArray[np.bool_]) -> None:
        """Gives ids and values that did not occur in training the vector of an unknown one.

        Args:
            trained: (n,) bool, users or items of the training rows.
        """
        met = torch.from_numpy(trained)
        rows_met = [torch.cat([torch.ones(1, dtype=torch.bool), met])]
        for codes, table in zip(self.codes, list(self.tables)[1:], strict=True):
            rows_met.append(torch.zeros(len(table.weight), dtype=torch.bool))  # type: ignore[arg-type]
            rows_met[-1][codes[met].flatten().long()] = True
        for table, rows in zip(self.tables, rows_met, strict=True):
            weight = table.weight
            assert isinstance(weight, Tensor)
            weight[~rows] = weight[0].clone()


def _table(size: int, width: int) -> nn.Embedding:
    table = nn.Embedding(size, width)
    with torch.no_grad():
        common = torch.randn(width) * _START_SPREAD
        table.weight.copy_(common + torch.randn(size, width) * _START_NOISE)
    return table


def _pooled(vectors: Tensor, codes: Tensor) -> Tensor:
    """Means over a field's values, (m, width, d) to (m, d); missing ones count if all are."""
    if codes.shape[1] == 1:
        return vectors[:, 0]
    counts = (codes > 0) | (codes == 0).all(dim=1, keepdim=True)
    weights = counts / counts.sum(dim=1, keepdim=True)
    return (vectors * weights[:, :, None]).sum(dim=1)


class Layer(nn.Module):
    """Transformer layer in separate steps, so that keys and values can be kept between calls.

    As in KuaiSim, it normalises after each sum. Deviation: no dropout on the attention weights,
    which would rule out the fused kernel.

    Args:
        config: Sizes.
    """

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feedforward = nn.Sequential(
            nn.Linear(width, config.feedforward),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.feedforward, width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def query(self, x: Tensor) -> Tensor:
        """Queries (m, heads, L, d) of (m, L, width) inputs."""
        return self._split(x, 0, 1)[0]

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (m, heads, L, d) each, of (m, L, width) inputs."""
        keys, values = self._split(x, 1, 3)
        return keys, values

    def _split(self, x: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        width = x.shape[-1]
        rows = slice(first * width, last * width)
        projected = functional.linear(x, self.project.weight[rows], self.project.bias[rows])
        vectors = projected.unflatten(-1, (last - first, self.heads, width // self.heads))
        return tuple(tensor.transpose(1, 2) for tensor in vectors.unbind(dim=2))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output of the layer, from its attention.

        Args:
            x: (m, L, width) inputs.
            attended: (m, heads, L, d) attention outputs.

        Returns:
            (m, L, width).
        """
        merged = self.merge(attended.transpose(1, 2).flatten(2))
        x = self.norms[0](x + self.dropout(merged))
        return torch.as_tensor(self.norms[1](x + self.dropout(self.feedforward(x))))


class SequenceNetwork(nn.Module):
    """Maps events to states, and states to log-odds.

    Deviations from KuaiSim, in addition to those of :class:`Layer`:

    * Where an event stands is told by a penalty on attention that grows linearly with its age
      (ALiBi; Press et al., ICLR 2022) rather than by a position embedding, and a band replaces the
      cut-off history. Keys and values of an event then never change while others follow.
    * A learned event stands before the first one; KuaiSim pads empty places on the left.

    Args:
        n_behaviours: B.
        config: Sizes.
    """

    slopes: Tensor

    def __init__(self, n_behaviours: int, config: SequentialConfig) -> None:
        super().__init__()
        self.config = config
        self.n_behaviours = n_behaviours
        self.responses = nn.Linear(n_behaviours, config.encoding)
        self.start = nn.Parameter(torch.randn(config.width) * 0.1)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.scorer = nn.Sequential(
            nn.Linear(config.width + config.encoding, config.scorer),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.LayerNorm(config.scorer),
            nn.Linear(config.scorer, n_behaviours * config.encoding),
        )
        # Normalised with a separate gain for each behaviour: rare ones need other spreads. It
        # starts where log-odds, means over ``encoding`` products, have a spread of about one.
        spread = math.sqrt(config.encoding)
        self.gain = nn.Parameter(torch.full((n_behaviours, config.encoding), spread))
        self.offset = nn.Parameter(torch.zeros(n_behaviours, config.encoding))
        self.bias = nn.Parameter(torch.zeros(n_behaviours))
        exponents = torch.arange(1, config.heads + 1) * (8.0 / config.heads)
        self.register_buffer("slopes", 2.0**-exponents, persistent=False)

    def events(self, items: Tensor, responses: Tensor) -> Tensor:
        """Events (..., width) of encoded items (..., encoding) and responses (..., B)."""
        return torch.cat([items, self.responses(responses)], dim=-1)

    def with_start(self, events: Tensor) -> Tensor:
        """(m, L, width) events after the start: (m, L + 1, width)."""
        return torch.cat([self.start.expand(len(events), 1, -1), events], dim=1)

    def forward(self, events: Tensor, memory: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """States after each event.

        Args:
            events: (m, L, width).
            memory: Takes in each layer's keys and values, (m, heads, L, d).

        Returns:
            (m, L, width).
        """
        x = events
        for layer in self.layers:
            assert isinstance(layer, Layer)
            keys, values = layer.key_value(x)
            if memory is not None:
                memory.append((keys, values))
            x = layer.finish(x, self._banded(layer.query(x), keys, values))
        return x

    def penalty(self, ages: Tensor) -> Tensor:
        """Loss of attention by age: (heads, ...), -inf outside the band.

        Args:
            ages: Integers, how many events ago; negative for events to come.
        """
        outside = (ages < 0) | (ages >= self.config.window)
        slopes = self.slopes.view(-1, *(1,) * ages.ndim)
        return (-slopes * ages).masked_fill(outside, -math.inf)

    def _banded(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention within the band, (m, heads, L, d); blocks keep long sequences linear."""
        length, window = queries.shape[2], self.config.window
        positions = torch.arange(window)
        if length <= 2 * window:
            positions = torch.arange(length)
            mask = self.penalty(positions[:, None] - positions)
            return functional.scaled_dot_product_attention(queries, keys, values, mask[None])
        # A block's queries see the block before it and their own, and nothing farther.
        n_blocks = -(-length // window)
        padding = (0, 0, 0, n_blocks * window - length)
        blocks = [
            functional.pad(tensor, padding).unflatten(2, (n_blocks, window)).transpose(1, 2)
            for tensor in (queries, keys, values)
        ]  # (m, n_blocks, heads, window, d)
        queries, keys, values = (block.flatten(0, 1) for block in blocks)
        before = [functional.pad(block[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)) for block in blocks[1:]]
        keys = torch.cat([before[0].flatten(0, 1), keys], dim=2)
        values = torch.cat([before[1].flatten(0, 1), values], dim=2)
        mask = self.penalty(positions[:, None] + window - torch.arange(2 * window))
        mask = mask.expand(n_blocks, -1, -1, -1).clone()
        mask[0, :, :, :window] = -math.inf
        mask = mask.repeat(len(queries) // n_blocks, 1, 1, 1)
        attended = functional.scaled_dot_product_attention(queries, keys, values, mask)
        attended = attended.unflatten(0, (-1, n_blocks)).transpose(1, 2).flatten(2, 3)
        return torch.as_tensor(attended[:, :, :length])

    def scores(self, states: Tensor, users: Tensor) -> Tensor:
        """Directions of encoded items that users answer.

        Args:
            states: (..., width) after their last event.
            users: (..., encoding) encoded users.

        Returns:
            (..., B, encoding), to be multiplied with encoded items and averaged.
        """
        raw = self.scorer(torch.cat([states, users], dim=-1))
        raw = raw.unflatten(-1, (self.n_behaviours, self.config.encoding))
        normal: Tensor = functional.layer_norm(raw, raw.shape[-1:])
        return torch.as_tensor(normal * self.gain + self.offset)

    def logits(self, scores: Tensor, items: Tensor) -> Tensor:
        """Log-odds of K items for each of m users.

        Args:
            scores: (m, B, encoding), or of the first behaviours alone.
            items: (m, K, encoding) encoded items, or (K, encoding) that all users are asked about.

        Returns:
            (m, K, B).
        """
        if items.ndim == 2:
            product: Tensor = (scores.flatten(0, 1) @ items.T).unflatten(0, scores.shape[:2])
        else:
            product = scores @ items.transpose(1, 2)
        return product.transpose(1, 2) / self.config.encoding + self.bias[: scores.shape[1]]
