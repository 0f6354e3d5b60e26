"""The denoising network: an MLP whose layers are shifted by step and condition."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal(step: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of diffusion steps.

    Args:
        step: (B,) int64.
        dim: Even.

    Returns:
        (B, dim) float32.
    """
    rates = torch.exp(-math.log(10_000.0) * torch.arange(dim // 2, device=step.device) / (dim // 2))
    angles = step[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class MLPDenoiser(nn.Module):
    """Noised state, step and condition to a prediction of the state's size.

    Args:
        dim: d, of states and conditions.
        hidden: Width of the layers.
        layers: Number of residual layers.
        time_dim: Width of the step embedding.
    """

    def __init__(self, dim: int, hidden: int = 128, layers: int = 2, time_dim: int = 32) -> None:
        super().__init__()
        self.time_dim = time_dim
        self.enter = nn.Linear(dim, hidden)
        self.condition = nn.Linear(dim, hidden * (layers + 1))
        self.time = nn.Linear(time_dim, hidden * (layers + 1))
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.leave = nn.Linear(hidden, dim)

    def encode(self, condition: Tensor) -> Tensor:
        """(B, d) conditions to (B, hidden * (layers + 1)) shifts."""
        return torch.as_tensor(self.condition(condition))

    def forward(self, x: Tensor, step: Tensor, encoded: Tensor) -> Tensor:
        """(B, d) noised states, (B,) or (1,) steps and encoded conditions to (B, d)."""
        context = encoded + self.time(sinusoidal(step, self.time_dim))
        shifts = context.chunk(len(self.layers) + 1, dim=1)
        hidden = nn.functional.silu(self.enter(x) + shifts[0])
        for layer, shift in zip(self.layers, shifts[1:], strict=True):
            hidden = hidden + nn.functional.silu(layer(hidden) + shift)
        return torch.as_tensor(self.leave(hidden))
