"""Gaussian diffusion with a schedule of K steps: knows neither environments nor data."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError

PREDICTIONS = ("noise", "x0")


class Denoiser(Protocol):
    """Predicts the noise or the clean state from a noised one."""

    def encode(self, condition: Tensor) -> Tensor:
        """(B, d) conditions to whatever :meth:`__call__` takes; once for all steps."""
        ...

    def __call__(self, x: Tensor, step: Tensor, encoded: Tensor) -> Tensor:
        """(B, d) noised states, (B,) or (1,) steps in [1, K], encoded conditions to (B, d)."""
        ...


def cosine_alpha_bar(steps: int, offset: float = 0.008) -> Tensor:
    """Cosine schedule (Nichol and Dhariwal 2021), laid over exactly ``steps`` steps.

    A beta table made for a thousand steps would leave nearly all signal after twenty; this one
    runs from clean to almost pure noise whatever their number.

    Args:
        steps: K.
        offset: Keeps the first steps from being too small.

    Returns:
        (K + 1,) float64: cumulative alphas; entry 0 is 1, entry K at least 1e-4.
    """
    time = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    curve = torch.cos((time + offset) / (1.0 + offset) * math.pi / 2) ** 2
    return (curve / curve[0]).clamp(min=1e-4)


class GaussianDiffusion(nn.Module):
    """The forward process (eq. 2) and its deterministic reverse (DDIM, sigma = 0).

    Eq. 2 and 3 write one symbol for the cumulative and the per-step alpha; here ``alpha_bar`` is
    cumulative throughout. The reverse is DDIM rather than eq. 3 with noise, so that an
    observation is a function of the state alone.

    Args:
        steps: K, diffusion steps.
        prediction: ``"noise"`` (eq. 7) or ``"x0"``, which is steadier for few steps.

    Raises:
        ConfigError: Fewer than one step, or an unknown prediction.
    """

    alpha_bar: Tensor

    def __init__(self, steps: int = 20, prediction: str = "x0") -> None:
        super().__init__()
        if steps < 1:
            raise ConfigError(f"The number of diffusion steps must be at least 1, got {steps}.")
        self.steps = steps
        self.prediction = check_choice("prediction", prediction, PREDICTIONS)
        self.register_buffer("alpha_bar", cosine_alpha_bar(steps).float(), persistent=False)

    def q_sample(self, x0: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Eq. 2: ``sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise``.

        Args:
            x0: (B, d) clean states.
            step: (B,) int64 in [0, K].
            noise: (B, d) standard normal.

        Returns:
            (B, d) noised states.
        """
        alpha_bar = self.alpha_bar[step][:, None]
        return alpha_bar.sqrt() * x0 + (1.0 - alpha_bar).sqrt() * noise

    def loss(self, denoiser: Denoiser, x0: Tensor, condition: Tensor) -> Tensor:
        """Mean squared error of the prediction at random steps (eq. 7 for ``"noise"``).

        Args:
            denoiser: The network.
            x0: (B, d) clean states.
            condition: (B, d) what the network is told.

        Returns:
            Scalar.
        """
        step = torch.randint(1, self.steps + 1, (len(x0),), device=x0.device)
        noise = torch.randn_like(x0)
        predicted = denoiser(self.q_sample(x0, step, noise), step, denoiser.encode(condition))
        return nn.functional.mse_loss(predicted, noise if self.prediction == "noise" else x0)

    def ddim(self, denoiser: Denoiser, x: Tensor, condition: Tensor) -> Tensor:
        """Runs the reverse process from step K to 0 without noise.

        Args:
            denoiser: The network.
            x: (B, d) states at step K.
            condition: (B, d).

        Returns:
            (B, d) clean states.
        """
        encoded = denoiser.encode(condition)
        for k in range(self.steps, 0, -1):
            alpha_bar, before = self.alpha_bar[k], self.alpha_bar[k - 1]
            predicted = denoiser(x, torch.tensor([k], device=x.device), encoded)
            if self.prediction == "noise":
                noise = predicted
                x0 = (x - (1.0 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()
            else:
                x0 = predicted
                noise = (x - alpha_bar.sqrt() * x0) / (1.0 - alpha_bar).sqrt()
            x = before.sqrt() * x0 + (1.0 - before).sqrt() * noise
        return x
