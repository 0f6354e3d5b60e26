"""Gaussian diffusion of K steps: schedule, training loss and reverse process."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError

PREDICTIONS = ("noise", "x0", "v")

Level = TypeVar("Level", float, Tensor)


class Denoiser(Protocol):
    """A network that makes one prediction from a noised state, its step and a condition."""

    def __call__(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Predicts noise, clean state or velocity, whichever the diffusion is set to.

        Args:
            x: (B, d) noised states, which stay as they are.
            step: (B,) int64 in [1, K]; or (1,), the step of all states.
            condition: (B, c) conditions.

        Returns:
            (B, d).
        """
        ...

    def at(self, condition: Tensor, steps: Sequence[int]) -> Callable[[Tensor, int], Tensor]:
        """The same network for conditions that stay, as sampling calls it.

        A network may override this to prepare the embeddings of the steps once.

        Args:
            condition: (B, c) conditions.
            steps: Those that will be asked for.

        Returns:
            A function of (B, d) noised states and the step k of them all.
        """
        return lambda x, k: self(x, torch.tensor([k], device=x.device), condition)


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
    """The forward process (eq. 2) and its reverse, from DDIM (sigma = 0) to DDPM (eq. 3).

    Eq. 2 and 3 write one symbol for the cumulative and the per-step alpha; here ``alpha_bar`` is
    cumulative throughout, and its per-step ratio is ``alpha_bar[k] / alpha_bar[k - 1]``. A noised
    state is ``signal x0 + spread noise`` with ``signal = sqrt(alpha_bar)`` and
    ``spread = sqrt(1 - alpha_bar)``.

    Args:
        steps: K, diffusion steps.
        prediction: What the network predicts: ``"noise"`` (eq. 7); ``"x0"``, the clean state; or
            ``"v"``, the velocity ``signal noise - spread x0`` (Salimans and Ho 2022), whose error
            means as much at the noisy end as at the clean one, which suits few steps.

    Attributes:
        alpha_bar: K + 1 floats, the cumulative alphas of the steps.

    Raises:
        ConfigError: Fewer than one step, or an unknown prediction.
    """

    signal: Tensor
    spread: Tensor

    def __init__(self, steps: int = 20, prediction: str = "v") -> None:
        super().__init__()
        if steps < 1:
            raise ConfigError(f"The number of diffusion steps must be at least 1, got {steps}.")
        self.steps = steps
        self.prediction = check_choice("prediction", prediction, PREDICTIONS)
        alpha_bar = cosine_alpha_bar(steps)
        # Floats, not a tensor, for the sampler: reading an entry costs it nothing.
        self.alpha_bar: list[float] = alpha_bar.tolist()
        self.register_buffer("signal", alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("spread", (1.0 - alpha_bar).sqrt().float(), persistent=False)

    def q_sample(self, x0: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Eq. 2: ``sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise``.

        Args:
            x0: (B, d) clean states.
            step: (B,) int64 in [0, K].
            noise: (B, d) standard normal.

        Returns:
            (B, d) noised states.
        """
        return self.signal[step][:, None] * x0 + self.spread[step][:, None] * noise

    def training_loss(self, denoiser: Denoiser, x0: Tensor, condition: Tensor) -> Tensor:
        """Squared errors of the prediction at random steps (eq. 7 for ``"noise"``).

        Args:
            denoiser: The network.
            x0: (B, d) clean states.
            condition: (B, c) conditions.

        Returns:
            (B,) mean squared error of each row, in the space of the prediction.
        """
        step = torch.randint(1, self.steps + 1, (len(x0),), device=x0.device)
        signal, spread = self.signal[step][:, None], self.spread[step][:, None]
        noise = torch.randn_like(x0)
        predicted = denoiser(self.q_sample(x0, step, noise), step, condition)
        target = {"noise": noise, "x0": x0, "v": signal * noise - spread * x0}[self.prediction]
        return (predicted - target).square().mean(dim=1)

    def clean_weights(self, signal: Level, spread: Level) -> tuple[Level | float, Level | float]:
        """Solves ``x = signal x0 + spread noise`` for the clean state, given the prediction.

        Args:
            signal: ``sqrt(alpha_bar)`` of one or more steps, above 0.
            spread: ``sqrt(1 - alpha_bar)`` of the same.

        Returns:
            a and b in ``x0 = a x + b predicted``.
        """
        if self.prediction == "noise":
            return 1.0 / signal, -spread / signal
        if self.prediction == "x0":
            return 0.0, 1.0
        return signal, -spread

    def sample(
        self,
        denoiser: Denoiser,
        x: Tensor,
        condition: Tensor,
        *,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        stops: int | None = None,
    ) -> Tensor:
        """Clean states: the last ones of :meth:`reverse`, which has the same arguments."""
        walk = self.reverse(denoiser, x, condition, eta=eta, generator=generator, stops=stops)
        return deque(walk, maxlen=1).pop()

    def reverse(
        self,
        denoiser: Denoiser,
        x: Tensor,
        condition: Tensor,
        *,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        stops: int | None = None,
    ) -> Iterator[Tensor]:
        """Walks the reverse process, step by step (Song, Meng and Ermon 2021, eq. 12).

        Step k goes to ``sqrt(abar_{k-1}) x0 + sqrt(1 - abar_{k-1} - sigma^2) noise + sigma z``
        with z standard normal and ``sigma^2 = eta^2 (1 - abar_{k-1}) / (1 - abar_k)
        (1 - abar_k / abar_{k-1})``. For ``eta = 0`` that is DDIM, a function of ``x`` alone. For
        ``eta = 1`` it is DDPM: every step is taken, so ``abar_k / abar_{k-1}`` is eq. 3's per-step
        alpha, sigma^2 is the variance of q(x_{k-1} | x_k, x0), and the mean is eq. 3's. As
        ``abar_0 = 1``, the last step adds no noise whatever eta.

        Args:
            denoiser: The network.
            x: (B, d) states at step K; left as they are.
            condition: (B, c) conditions.
            eta: Share of DDPM's noise, in [0, 1].
            generator: Of the noise; ``None`` for torch's global one.
            stops: How many evenly spaced steps to take instead of all K, each from one to the next
                (their section 4.2); above, k - 1 then stands for the next. ``None`` for all.

        Yields:
            (B, d) states at the steps taken, from K to 0; the last ones are clean.

        Raises:
            ConfigError: ``eta`` is out of range.
        """
        if not 0.0 <= eta <= 1.0:
            raise ConfigError(f"eta must be in [0, 1], got {eta}.")
        taken = self.steps if stops is None else min(stops, self.steps)
        visited = [round(self.steps * index / taken) for index in range(taken, -1, -1)]
        predict = denoiser.at(condition, visited[:-1])
        yield x
        for k, following in pairwise(visited):
            now, after = self.alpha_bar[k], self.alpha_bar[following]
            predicted = predict(x, k)
            signal, spread = math.sqrt(now), math.sqrt(1.0 - now)
            sigma = eta * math.sqrt((1.0 - after) / (1.0 - now) * (1.0 - now / after))
            # With noise = (x - signal x0) / spread the mean is stay x + gain x0. Its weights are
            # computed on floats, which is faster: two kernels a step, where writing out x0 and
            # noise takes six.
            stay = math.sqrt(1.0 - after - sigma**2) / spread
            gain = math.sqrt(after) - stay * signal
            on_x, on_predicted = self.clean_weights(signal, spread)
            x = torch.add((stay + gain * on_x) * x, predicted, alpha=gain * on_predicted)
            if sigma > 0.0:
                z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                x = x + sigma * z
            yield x
