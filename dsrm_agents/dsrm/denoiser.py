"""The denoising network: an MLP whose layers are shifted by step and condition."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from kuaisim_gym.errors import ConfigError


def sinusoidal(step: Tensor, rates: Tensor) -> Tensor:
    """Sinusoidal embedding of diffusion steps.

    Args:
        step: (n,) int64.
        rates: (m,) angular frequencies.

    Returns:
        (n, 2 m) float32.
    """
    angles = step[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Weights(NamedTuple):
    """Matrices that states are multiplied by from the right.

    Attributes:
        shifted: L + 1, (d, h) and then (h, h), of the layers that are shifted.
        leave: (h, d).
        bias: (d,), of the last.
    """

    shifted: list[Tensor]
    leave: Tensor
    bias: Tensor


def shifted_silu(x: Tensor, weight: Tensor, of_step: Tensor, of_condition: Tensor) -> Tensor:
    """``silu(x weight + of_step + of_condition)``; addmm adds the step's shift at no cost."""
    return silu(torch.addmm(of_step, x, weight).add_(of_condition), inplace=True)


def residual_mlp(
    x: Tensor, weights: Weights, of_step: Sequence[Tensor], of_condition: Sequence[Tensor]
) -> Tensor:
    """The network's arithmetic.

    Args:
        x: (B, d) noised states.
        weights: Of all layers.
        of_step: L + 1 shifts, (B, h), or (h,) for one step of all states.
        of_condition: L + 1 shifts, (B, h).

    Returns:
        (B, d).
    """
    first, *others = zip(weights.shifted, of_step, of_condition, strict=True)
    hidden = shifted_silu(x, *first)
    for layer in others:
        hidden = shifted_silu(hidden, *layer).add_(hidden)
    return torch.addmm(weights.bias, hidden, weights.leave)


class MLPDenoiser(nn.Module):
    """A residual MLP: see :class:`~dsrm_agents.dsrm.diffusion.Denoiser`.

    Step and condition reach every layer as shifts of its input to the nonlinearity, in place of
    a bias.

    Args:
        dim: d, of states.
        condition_dim: c, of conditions; ``None`` for d.
        hidden: Width h of the layers.
        layers: Number L of residual layers.
        time_dim: Width of the sinusoidal step embedding.

    Raises:
        ConfigError: ``time_dim`` is not even and positive.
    """

    rates: Tensor

    def __init__(
        self,
        dim: int,
        condition_dim: int | None = None,
        *,
        hidden: int = 96,
        layers: int = 2,
        time_dim: int = 32,
    ) -> None:
        super().__init__()
        if time_dim < 2 or time_dim % 2:
            raise ConfigError(f"time_dim must be even and at least 2, got {time_dim}.")
        self.depth = layers + 1
        half = time_dim // 2
        rates = torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
        self.register_buffer("rates", rates, persistent=False)
        width = hidden * self.depth
        self.condition = nn.Linear(dim if condition_dim is None else condition_dim, width)
        self.time = nn.Linear(time_dim, width)
        self.enter = nn.Linear(dim, hidden, bias=False)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(layers))
        self.leave = nn.Linear(hidden, dim)

    def encode(self, condition: Tensor) -> Tensor:
        """(B, c) conditions to their (B, h (L + 1)) shifts; no shift means no condition."""
        return torch.as_tensor(self.condition(condition))

    def embed(self, step: Tensor) -> Tensor:
        """(n,) int64 steps to their (n, h (L + 1)) shifts."""
        return torch.as_tensor(self.time(sinusoidal(step, self.rates)))

    def forward(self, x: Tensor, step: Tensor, encoded: Tensor) -> Tensor:
        """(B, d) noised states, (B,) or (1,) steps and encoded conditions to (B, d)."""
        of_step = self.embed(step).chunk(self.depth, dim=1)
        return residual_mlp(x, self.weights(), of_step, encoded.chunk(self.depth, dim=1))

    def at(self, encoded: Tensor, steps: int) -> Callable[[Tensor, int], Tensor]:
        """The network for (B, h (L + 1)) encoded conditions and steps up to ``steps``.

        Shifts and weights are looked up here, once for all steps of a sample.
        """
        weights, of_condition = self.weights(), encoded.chunk(self.depth, dim=1)
        embedded = self.embed(torch.arange(steps + 1, device=encoded.device))
        rows = embedded.view(-1, self.enter.out_features).unbind()

        def predict(x: Tensor, k: int) -> Tensor:
            return residual_mlp(
                x, weights, rows[k * self.depth : (k + 1) * self.depth], of_condition
            )

        return predict

    def weights(self) -> Weights:
        """Looks the layers' weights up, which is slow next to using them on a single state."""
        shifted = [layer.weight.t() for layer in (self.enter, *self.layers)]
        return Weights(shifted, self.leave.weight.t(), self.leave.bias)
