"""The denoising network: an MLP whose layers are shifted by step and condition."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

TIME_DIM = 32  # width of the sinusoidal step embedding


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


def residual_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor,
    of_step: Sequence[Tensor],
    of_condition: Sequence[Tensor],
) -> Tensor:
    """The network's arithmetic: ``silu(x weight + of_step + of_condition)`` in every layer.

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
    # addmm adds the step's shift at no cost.
    x = silu(torch.addmm(of_step[0], x, weights[0]).add_(of_condition[0]), inplace=True)
    for weight, step, condition in zip(weights[1:-1], of_step[1:], of_condition[1:], strict=True):
        x = silu(torch.addmm(step, x, weight).add_(condition), inplace=True).add_(x)
    return torch.addmm(bias, x, weights[-1])


class MLPDenoiser(nn.Module):
    """A residual MLP, the :class:`~dsrm_agents.dsrm.diffusion.Denoiser` of DSRM.

    Step and condition reach every layer as shifts of its input to the nonlinearity, in place of
    a bias.

    Args:
        dim: d, of states.
        width: c, of conditions.
        hidden: Width h of the layers.
        layers: Number L of residual layers.
    """

    rates: Tensor

    def __init__(self, dim: int, width: int, *, hidden: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.depth = layers + 1
        half = TIME_DIM // 2
        rates = torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
        self.register_buffer("rates", rates, persistent=False)
        self.condition = nn.Linear(width, hidden * self.depth)
        self.time = nn.Linear(TIME_DIM, hidden * self.depth)
        self.enter = nn.Linear(dim, hidden, bias=False)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(layers))
        self.leave = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """(B, d) noised states, (B,) or (1,) int64 steps and (B, c) conditions to (B, d)."""
        of_step = self.time(sinusoidal(step, self.rates)).chunk(self.depth, dim=1)
        of_condition = self.condition(condition).chunk(self.depth, dim=1)
        return residual_mlp(x, self._weights(), self.leave.bias, of_step, of_condition)

    def at(self, condition: Tensor, steps: Sequence[int]) -> Callable[[Tensor, int], Tensor]:
        """The network for (B, c) conditions, its shifts and weights looked up once for some steps.

        On a single state the look-ups would take as long as the arithmetic.
        """
        weights, bias = self._weights(), self.leave.bias
        of_condition = self.condition(condition).chunk(self.depth, dim=1)
        step = torch.tensor(steps, device=condition.device)
        shifts = self.time(sinusoidal(step, self.rates)).unflatten(1, (self.depth, -1))
        of_step = {k: shift.unbind() for k, shift in zip(steps, shifts.unbind(), strict=True)}
        return lambda x, k: residual_mlp(x, weights, bias, of_step[k], of_condition)

    def _weights(self) -> list[Tensor]:
        return [layer.weight.t() for layer in (self.enter, *self.layers, self.leave)]
