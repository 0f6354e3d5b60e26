"""Gaussian diffusion with a schedule of K steps: knows neither environments nor data."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError

PREDICTIONS = ("noise", "x0", "v")

Level = TypeVar("Level", float, Tensor)


class Denoiser(Protocol):
    """A network that makes one prediction from a noised state, its step and a condition.

    Conditions are encoded apart because sampling tells the same ones at every step.
    """

    def encode(self, condition: Tensor) -> Tensor:
        """Encodes conditions.

        Args:
            condition: (B, c) whatever the network is told.

        Returns:
            (B, e) of the network's choice, save that all zeros must mean "no condition": that is
            what :func:`drop_conditions` and guided sampling write.
        """
        ...

    def __call__(self, x: Tensor, step: Tensor, encoded: Tensor) -> Tensor:
        """Predicts noise, clean state or velocity, whichever the diffusion is set to.

        Args:
            x: (B, d) noised states, which stay as they are.
            step: (B,) int64 in [1, K]; or (1,), the step of all states.
            encoded: (B, e) encoded conditions.

        Returns:
            (B, d).
        """
        ...

    def at(self, encoded: Tensor, steps: int) -> Callable[[Tensor, int], Tensor]:
        """The same network for conditions that stay, as sampling calls it.

        A network may override this to prepare what no state changes, all steps' embeddings say.

        Args:
            encoded: (B, e) encoded conditions.
            steps: Largest step that will be asked for.

        Returns:
            A function of (B, d) noised states and the step k of them all.
        """
        return lambda x, k: self(x, torch.tensor([k], device=x.device), encoded)


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


def drop_conditions(encoded: Tensor, rate: float) -> Tensor:
    """Replaces random rows by "no condition", for classifier-free guidance (Ho, Salimans 2022).

    A network trained on what this returns answers with and without a condition, which is what
    ``guidance`` in :meth:`GaussianDiffusion.sample` compares.

    Args:
        encoded: (B, e) encoded conditions.
        rate: Chance of a row to lose its condition, in [0, 1].

    Returns:
        (B, e) with all zeros in the rows that lost theirs.
    """
    keep = torch.rand(len(encoded), 1, device=encoded.device) >= rate
    return encoded * keep


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

    def training_loss(
        self, denoiser: Denoiser, x0: Tensor, encoded: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Squared errors of the prediction at random steps (eq. 7 for ``"noise"``).

        Rows come apart and with the clean states that the predictions imply, so that a caller can
        weight rows and add terms on the clean states.

        Args:
            denoiser: The network.
            x0: (B, d) clean states.
            encoded: (B, e) encoded conditions, some dropped where guidance is to be used.

        Returns:
            (B,) mean squared error of each row, in the space of the prediction; and the (B, d)
            implied clean states. Both carry gradients.
        """
        step = torch.randint(1, self.steps + 1, (len(x0),), device=x0.device)
        signal, spread = self.signal[step][:, None], self.spread[step][:, None]
        noise = torch.randn_like(x0)
        x = self.q_sample(x0, step, noise)
        predicted = denoiser(x, step, encoded)
        wanted = {"noise": noise, "x0": x0, "v": signal * noise - spread * x0}[self.prediction]
        on_x, on_predicted = self.clean_weights(signal, spread)
        return (predicted - wanted).square().mean(dim=1), on_x * x + on_predicted * predicted

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
        encoded: Tensor,
        *,
        start: int | None = None,
        eta: float = 0.0,
        guidance: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Runs the reverse process down to step 0: the last state of :meth:`reverse`.

        Args:
            denoiser: See :meth:`reverse`, as for all others.
            x: (B, d) states at step ``start``.
            encoded: (B, e) encoded conditions.
            start: Step that ``x`` is at.
            eta: Share of DDPM's noise.
            guidance: Weight of classifier-free guidance.
            generator: Of the noise.

        Returns:
            (B, d) clean states.

        Raises:
            ConfigError: ``start`` or ``eta`` is out of range.
        """
        walk = self.reverse(
            denoiser,
            x,
            encoded,
            start=start,
            eta=eta,
            guidance=guidance,
            generator=generator,
        )
        return deque(walk, maxlen=1).pop()

    def reverse(
        self,
        denoiser: Denoiser,
        x: Tensor,
        encoded: Tensor,
        *,
        start: int | None = None,
        eta: float = 0.0,
        guidance: float = 0.0,
        generator: torch.Generator | None = None,
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
            x: (B, d) states at step ``start``; left as they are.
            encoded: (B, e) encoded conditions.
            start: Step that ``x`` is at, in [1, K]; ``None`` for K.
            eta: Share of DDPM's noise, in [0, 1].
            guidance: w in ``x0 + w (x0 - x0 without condition)``; -1 leaves the condition out, and
                0 makes no second prediction.
            generator: Of the noise; ``None`` for torch's own.

        Yields:
            (B, d) states at steps start, start - 1, ..., 0; the last ones are clean.

        Raises:
            ConfigError: ``start`` or ``eta`` is out of range.
        """
        start = self.steps if start is None else start
        if not 1 <= start <= self.steps:
            raise ConfigError(f"start must be a step in [1, {self.steps}], got {start}.")
        if not 0.0 <= eta <= 1.0:
            raise ConfigError(f"eta must be in [0, 1], got {eta}.")
        predict = denoiser.at(encoded, start)
        if guidance != 0.0:
            unconditional = denoiser.at(torch.zeros_like(encoded), start)
        yield x
        for k in range(start, 0, -1):
            now, after = self.alpha_bar[k], self.alpha_bar[k - 1]
            predicted = predict(x, k)
            if guidance != 0.0:
                # x0 is linear in the prediction, so that guiding either comes to the same.
                without = unconditional(x, k)
                predicted = predicted + guidance * (predicted - without)
            signal, spread = math.sqrt(now), math.sqrt(1.0 - now)
            sigma = eta * math.sqrt((1.0 - after) / (1.0 - now) * (1.0 - now / after))
            # With noise = (x - signal x0) / spread the mean is keep x + gain x0. Its weights are
            # found on floats, which is faster: two kernels a step, where writing out x0 and noise
            # takes six.
            keep = math.sqrt(1.0 - after - sigma**2) / spread
            gain = math.sqrt(after) - keep * signal
            on_x, on_predicted = self.clean_weights(signal, spread)
            x = torch.add((keep + gain * on_x) * x, predicted, alpha=gain * on_predicted)
            if sigma > 0.0:
                z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                x = x + sigma * z
            yield x
