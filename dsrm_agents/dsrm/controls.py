"""What DSRM is compared with: the same interface, pairs and blindness, without the diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from dsrm_agents.dsrm.purifier import FittedPurifier, PurifierConfig, TrainedPurifier
from kuaisim_gym.config import check_whole
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


@dataclass(frozen=True)
class RidgeConfig(PurifierConfig):
    """A :class:`PurifierConfig` with what ridge regression adds.

    Attributes:
        penalty: Of the squared weights, in pairs.
    """

    penalty: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalty > 0:
            raise ConfigError(f"penalty must be positive, got {self.penalty}.")


class RidgeRegression(FittedPurifier):
    """Linear regression on the same pairs, in closed form: does a network help?

    Args:
        config: Sizes.
    """

    kind = "ridge"
    config_class = RidgeConfig
    config: RidgeConfig

    slope: Tensor

    def __init__(self, config: RidgeConfig) -> None:
        super().__init__(config)
        self.register_buffer("slope", torch.zeros(config.dim, config.dim))

    def solve(self, condition: Tensor, target: Tensor, weight: Tensor) -> None:
        """Fits (n, d) conditions to (n, d) targets with (n,) weights."""
        weighted = (condition * weight[:, None]).t()
        gram = weighted @ condition + self.config.penalty * torch.eye(self.config.dim)
        self.slope.copy_(torch.linalg.solve(gram, weighted @ target))

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """See :class:`FittedPurifier`."""
        return condition @ self.slope


@dataclass(frozen=True)
class RegressionConfig(PurifierConfig):
    """A :class:`PurifierConfig` that gives a plain network as many weights as DSRM's."""

    hidden: int = 176


class Regression(TrainedPurifier):
    """A network of DSRM's size that regresses targets on conditions: does diffusion itself help?

    Args:
        config: Sizes.
    """

    kind = "mlp"
    config_class = RegressionConfig

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
    """A :class:`PurifierConfig` with what autoencoders add; the network is of DSRM's size.

    Attributes:
        layers: Hidden layers of the encoder, and of the decoder.
        latent: Width of the narrowest layer.
    """

    hidden: int = 440
    layers: int = 1
    latent: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("latent", self.latent, 1)


@dataclass(frozen=True)
class DAEConfig(AutoencoderConfig):
    """Of a denoising autoencoder.

    Attributes:
        noise: Standard deviation of the Gaussian noise on (whitened) conditions in training.
    """

    noise: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.noise >= 0:
            raise ConfigError(f"noise must be at least 0, got {self.noise}.")


@dataclass(frozen=True)
class VAEConfig(AutoencoderConfig):
    """Of a variational autoencoder.

    Attributes:
        beta: Weight of the Kullback-Leibler term, per coordinate.
    """

    beta: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ConfigError(f"beta must be at least 0, got {self.beta}.")


class Autoencoder(TrainedPurifier):
    """An encoder to a narrow code and a decoder.

    Args:
        config: Sizes.
        outputs: What the encoder says of every coordinate of the code.
    """

    config_class = AutoencoderConfig
    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig, outputs: int = 1) -> None:
        super().__init__(config)
        wide = [config.hidden] * config.layers
        self.encoder = _mlp(config.dim, *wide, outputs * config.latent)
        self.decoder = _mlp(config.latent, *wide, config.dim)

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """See :class:`FittedPurifier`: by the code, or its mean."""
        return torch.as_tensor(self.decoder(self.encoder(condition)[:, : self.config.latent]))


class DenoisingAutoencoder(Autoencoder):
    """Through a narrow layer, from conditions with noise on them (Vincent et al. 2008)."""

    kind = "dae"
    config_class = DAEConfig
    config: DAEConfig

    def loss(self, condition: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`TrainedPurifier`: squared errors under noise."""
        noisy = condition + self.config.noise * torch.randn_like(condition)
        clean = self.decoder(self.encoder(noisy))
        return (clean - target).square().mean(dim=1), clean


class VariationalAutoencoder(Autoencoder):
    """Through a Gaussian code of little information (Kingma and Welling 2014).

    Args:
        config: Sizes.
    """

    kind = "vae"
    config_class = VAEConfig
    config: VAEConfig

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config, outputs=2)

    def loss(self, condition: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`TrainedPurifier`: the negative evidence lower bound of the target."""
        mean, log_variance = self.encoder(condition).chunk(2, dim=1)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        clean = self.decoder(code)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=1)
        loss = (clean - target).square().mean(dim=1)
        return loss + self.config.beta * divergence / self.config.dim, clean


def _mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with SiLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])
