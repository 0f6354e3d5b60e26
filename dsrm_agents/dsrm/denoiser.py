"""The denoising network: an MLP whose layers are shifted by step and condition."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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


def shifted_silu(x: Tensor, weight: Tensor, of_step: Tensor, of_condition: Tensor) -> Tensor:
    """``silu(x weight + of_step + of_condition)``; addmm adds the step's shift at no cost."""
    return silu(torch.addmm(of_step, x, weight).add_(of_condition), inplace=True)


def residual_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor,
    of_step: Sequence[Tensor],
    of_condition: Sequence[Tensor],
) -> Tensor:
    """The network's arithmetic.

    Args:
        x: (B, d) noised states.
        weights: L + 2 matrices that layers multiply by from the right: (d, h), L times (h, h),
            and (h, d).
        bias: (d,), of the last layer.
        of_step: L + 1 shifts, (B, h), or (h,) for one step of all states.
        of_condition: L + 1 shifts, (B, h).

    Returns:
        (B, d).
    """
    first, *others = zip(weights[:-1], of_step, of_condition, strict=True)
    activation = shifted_silu(x, *first)
    for layer in others:
        activation = shifted_silu(activation, *layer).add_(activation)
    return torch.addmm(bias, activation, weights[-1])


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

    def forward(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """(B, d) noised states, (B,) or (1,) int64 steps and (B, c) conditions to (B, d)."""
        of_step = self.time(sinusoidal(step, self.rates)).chunk(self.depth, dim=1)
        of_condition = self.condition(condition).chunk(self.depth, dim=1)
        return residual_mlp(x, self._weights(), self.leave.bias, of_step, of_condition)

    def at(self, condition: Tensor, steps: int) -> Callable[[Tensor, int], Tensor]:
        """The network for (B, c) conditions, its shifts and weights looked up once for all steps.

        On a single state the look-ups would take as long as the arithmetic.
        """
        weights, bias = self._weights(), self.leave.bias
        of_condition = self.condition(condition).chunk(self.depth, dim=1)
        step = torch.arange(steps + 1, device=condition.device)
        of_step = self.time(sinusoidal(step, self.rates)).chunk(self.depth, dim=1)
        of_step = list(zip(*of_step, strict=True))
        return lambda x, k: residual_mlp(x, weights, bias, of_step[k], of_condition)

    def _weights(self) -> list[Tensor]:
        return [layer.weight.t() for layer in (self.enter, *self.layers, self.leave)]
