"""What DSRM is compared with: the same interface, pairs and blindness, without the diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from dsrm_agents.dsrm.purifier import FittedPurifier, PurifierConfig, TrainedPurifier
from kuaisim_gym.errors import ConfigError


class Identity(FittedPurifier):
    """The raw state."""

    kind = "identity"

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """See :class:`FittedPurifier`."""
        return states


class Blank(FittedPurifier):
    """No state at all: what an agent does with this, it does for everybody."""

    kind = "blank"

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """See :class:`FittedPurifier`."""
        return torch.zeros_like(states)


class LinearErasure(FittedPurifier):
    """The state without the directions along which it tells popularity, and else unchanged."""

    kind = "linear"

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """See :class:`FittedPurifier`."""
        return condition


class Regression(TrainedPurifier):
    """A network of DSRM's size that regresses targets on conditions: does diffusion itself help?

    Args:
        config: Sizes.
    """

    kind = "mlp"

    def __init__(self, config: PurifierConfig) -> None:
        super().__init__(config)
        self.network = _mlp(config.dim, *[config.hidden] * config.layers, config.dim)

    def loss(self, condition: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`TrainedPurifier`: squared errors."""
        clean = self.network(condition)
        return (clean - target).square().mean(dim=1), clean

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """See :class:`FittedPurifier`."""
        return torch.as_tensor(self.network(condition))


class OracleRegression(Regression):
    """The same network, fitted to the true preferences of train users: the upper bound.

    A row of tables and no method, for it reads what only a synthetic world knows.
    """

    kind = "oracle-regression"


@dataclass(frozen=True)
class AutoencoderConfig(PurifierConfig):
    """A :class:`PurifierConfig` with what autoencoders add.

    Attributes:
        latent: Width of the narrowest layer.
        noise: Standard deviation of the Gaussian noise on (whitened) conditions when training a
            denoising autoencoder.
        beta: Weight of the Kullback-Leibler term of a variational autoencoder, per coordinate.
    """

    latent: int = 16
    noise: float = 0.5
    beta: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent < 1:
            raise ConfigError(f"latent must be at least 1, got {self.latent}.")
        for name in ("noise", "beta"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}.")


class DenoisingAutoencoder(TrainedPurifier):
    """Through a narrow layer, from conditions with noise on them (Vincent et al. 2008).

    Args:
        config: Sizes.
    """

    kind = "dae"
    config_class = AutoencoderConfig
    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        wide = [config.hidden] * max(1, config.layers // 2)
        self.encoder = _mlp(config.dim, *wide, config.latent)
        self.decoder = _mlp(config.latent, *wide, config.dim)

    def loss(self, condition: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`TrainedPurifier`: squared errors under noise."""
        noisy = condition + self.config.noise * torch.randn_like(condition)
        clean = self.decoder(self.encoder(noisy))
        return (clean - target).square().mean(dim=1), clean

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """See :class:`FittedPurifier`."""
        return torch.as_tensor(self.decoder(self.encoder(condition)))


class VariationalAutoencoder(TrainedPurifier):
    """Through a Gaussian code of little information (Kingma and Welling 2014).

    Args:
        config: Sizes.
    """

    kind = "vae"
    config_class = AutoencoderConfig
    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        wide = [config.hidden] * max(1, config.layers // 2)
        self.encoder = _mlp(config.dim, *wide, 2 * config.latent)
        self.decoder = _mlp(config.latent, *wide, config.dim)

    def loss(self, condition: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`TrainedPurifier`: the negative evidence lower bound of the target."""
        mean, log_variance = self.encoder(condition).chunk(2, dim=1)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        clean = self.decoder(code)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=1)
        loss = (clean - target).square().mean(dim=1)
        return loss + self.config.beta * divergence / self.config.dim, clean

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """See :class:`FittedPurifier`: from the code's mean."""
        return torch.as_tensor(self.decoder(self.encoder(condition)[:, : self.config.latent]))


def _mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with SiLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])
