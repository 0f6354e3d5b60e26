"""DSRM: the purifier that runs a diffusion backwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsrm_agents.dsrm.denoiser import MLPDenoiser
from dsrm_agents.dsrm.diffusion import PREDICTIONS, GaussianDiffusion, drop_conditions
from dsrm_agents.dsrm.purifier import FittedPurifier, PurifierConfig, TrainedPurifier
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.errors import ConfigError

STARTS = ("noise", "state")


@dataclass(frozen=True)
class DSRMConfig(PurifierConfig):
    """A :class:`PurifierConfig` with what diffusion adds.

    Attributes:
        prediction: ``"v"``, ``"x0"`` or ``"noise"`` (eq. 7).
        diffusion_steps: K of the diffusion.
        start: Where the reverse process begins: ``"noise"``, at pure noise of which the mean is
            taken; or ``"state"``, at the observed state as step ``start_step`` would have it,
            its noise at the mean. That state is not blind, so what it brings of popularity is
            erased from the output alone.
        start_step: That step, in [1, K]; ``None`` for K.
        condition_dropout: Share of training rows that lose their condition.
        guidance: Weight of classifier-free guidance; 0 for none.
    """

    prediction: str = "v"
    diffusion_steps: int = 20
    start: str = "noise"
    start_step: int | None = None
    condition_dropout: float = 0.1
    guidance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_choice("start", self.start, STARTS)
        check_whole("diffusion_steps", self.diffusion_steps, 1)
        if self.start_step is not None and not 1 <= self.start_step <= self.diffusion_steps:
            raise ConfigError(
                f"start_step must lie in [1, {self.diffusion_steps}], got {self.start_step}."
            )
        if self.start == "noise" and self.start_step not in (None, self.diffusion_steps):
            raise ConfigError('start_step is for start="state"; noise stands at the last step.')
        if not 0 <= self.condition_dropout < 1:
            raise ConfigError(
                f"condition_dropout must lie in [0, 1), got {self.condition_dropout}."
            )
        if self.guidance and not self.condition_dropout:
            raise ConfigError("guidance needs a condition_dropout above 0.")


class DiffusionPurifier(FittedPurifier):
    """A purifier with a diffusion and a network to reverse it.

    Args:
        config: Sizes and kinds.
    """

    config_class = DSRMConfig
    config: DSRMConfig

    def __init__(self, config: DSRMConfig) -> None:
        super().__init__(config)
        self.diffusion = GaussianDiffusion(config.diffusion_steps, config.prediction)
        self.denoiser = MLPDenoiser(config.dim, hidden=config.hidden, layers=config.layers)
        self.start = config.start_step or config.diffusion_steps

    def begin(self, states: Tensor) -> Tensor:
        """Where the reverse process of (B, d) observed states begins: its noise at zero."""
        if self.config.start == "state":
            return self.diffusion.signal[self.start] * self.in_units(states)
        return torch.zeros_like(states)


class DSRM(DiffusionPurifier, TrainedPurifier):
    """Denoising state representation module (Pi_theta of section 4.2).

    The reverse process is deterministic and starts with its noise at zero, so that the same
    observation always gives the same purified state: close to the mean of what it might be (its
    mean, were that Gaussian) rather than a draw, which would show agents the targets' noise.

    Args:
        config: Sizes and kinds.
    """

    kind = "dsrm"

    def loss(self, condition: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`TrainedPurifier`: errors of the prediction at random steps (eq. 7)."""
        encoded = self.denoiser.encode(condition)
        if self.config.condition_dropout:
            encoded = drop_conditions(encoded, self.config.condition_dropout)
        return self.diffusion.training_loss(self.denoiser, target, encoded)

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """See :class:`FittedPurifier`."""
        return self.diffusion.sample(
            self.denoiser,
            self.begin(states),
            self.denoiser.encode(condition),
            start=self.start,
            guidance=self.config.guidance,
        )

    def draw(
        self, states: Tensor, *, eta: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws purified states from noise, instead of the one that is served.

        Args:
            states: (B, d) observed states.
            eta: 0 for DDIM from random noise, 1 for DDPM (eq. 3), or between.
            generator: Of the noise; ``None`` for torch's own.

        Returns:
            (B, d) purified states, which may lie outside the observation space.
        """
        noise = torch.randn(states.shape, generator=generator)
        clean = self.diffusion.sample(
            self.denoiser,
            noise,
            self.denoiser.encode(self.condition(states)),
            eta=eta,
            guidance=self.config.guidance,
            generator=generator,
        )
        return self._in_encoder_units(clean)
