"""Baselines of DSRM: the same interface and pairs, without the diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from stable_baselines3.common.torch_layers import create_mlp
from torch import Tensor, nn

from dsrm_agents.dsrm.erasure import erase
from dsrm_agents.dsrm.pairs import Examples
from dsrm_agents.dsrm.purifier import (
    FloatArray,
    PairedPurifier,
    PurifierConfig,
    StatePurifier,
    TrainedPurifier,
)
from dsrm_agents.dsrm.training import TrainRun
from kuaisim_gym.config import check_whole
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import PARTS, PREFERENCE_BOUND, WEIGHT_SCALE


class Identity(StatePurifier):
    """The raw state."""

    kind = "identity"

    def prepare(self, examples: Examples) -> None:
        pass  # nothing to learn

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        return states


class ZeroState(StatePurifier):
    """Zeros in place of every state, so that an agent treats all users alike."""

    kind = "blank"

    def prepare(self, examples: Examples) -> None:
        pass  # nothing to learn

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        return torch.zeros_like(states)


class Centre(StatePurifier):
    """The raw state less the mean one of histories of that length.

    The platform, or a policy, shows most users the same items first: how long log and session are,
    tells the mean state by a linear regression.
    """

    kind = "centre"
    recipes = {kind: {"reads": "parts"}}
    needs = "parts"

    slope: Tensor

    def __init__(self, config: PurifierConfig) -> None:
        super().__init__(config)
        self.register_buffer("slope", torch.zeros(1 + len(PARTS), config.dim))

    def prepare(self, examples: Examples) -> None:
        parts = torch.tensor(examples.observed("parts"))
        design, states = self._lengths(parts), self._pooled(parts)
        self.slope.copy_(torch.linalg.lstsq(design, states, driver="gelsd").solution)

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        return self._pooled(states) - self._lengths(states) @ self.slope

    def _lengths(self, parts: Tensor) -> Tensor:
        """(B, 5): one, and the weights and rows of (B, 4 d + 4) parts."""
        return torch.nn.functional.pad(parts[:, -len(PARTS) :], (1, 0), value=1.0)

    def _pooled(self, parts: Tensor) -> Tensor:
        """(B, d) states, as :meth:`~kuaisim_gym.observation.PreferenceEncoder.pooled` makes them.

        Liked means of log and session are averaged by the weight of what was liked.
        """
        means = parts[:, : -len(PARTS)].unflatten(1, (len(PARTS), -1))[:, ::2]
        weights = torch.expm1(WEIGHT_SCALE * parts[:, -len(PARTS) :: 2])
        total = weights.sum(dim=1, keepdim=True).clamp_min(1e-6)
        pooled = torch.einsum("bp,bpd->bd", weights / total, means)
        return pooled.clamp(-PREFERENCE_BOUND, PREFERENCE_BOUND)


class LinearErasure(StatePurifier):
    """The state without the directions along which it tells popularity, otherwise unchanged."""

    kind = "linear"
    recipes = {kind: {"blind": 1}}

    def prepare(self, examples: Examples) -> None:
        states, popularity = examples.observed(self.reads), examples.popularity
        self.set_condition_map(erase(states, popularity[:, : self.config.blind]))

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        return condition


@dataclass(frozen=True)
class RidgeConfig(PurifierConfig):
    """Configuration of ridge regression.

    Attributes:
        penalty: Weight of the squared coefficients, in pairs.
    """

    penalty: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalty > 0:
            raise ConfigError(f"penalty must be positive, got {self.penalty}.")


class RidgeRegression(PairedPurifier):
    """Linear regression on the same pairs, in closed form: does a network help?

    Args:
        config: Sizes and penalty.
    """

    kind = "ridge"
    recipes = {"ridge-pooled": {"reads": "pooled"}}
    config_class = RidgeConfig
    config: RidgeConfig

    slope: Tensor

    def __init__(self, config: RidgeConfig) -> None:
        super().__init__(config)
        self.register_buffer("slope", torch.zeros(config.width, config.dim))

    def learn(self, condition: Tensor, target: Tensor, run: TrainRun) -> None:
        gram = condition.t() @ condition + self.config.penalty * torch.eye(self.config.width)
        self.slope.copy_(torch.linalg.solve(gram, condition.t() @ target))

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        return condition @ self.slope


@dataclass(frozen=True)
class RegressionConfig(PurifierConfig):
    """Configuration of a plain network, with as many weights as DSRM's by default."""

    hidden: int = 128


class Regression(TrainedPurifier):
    """A network of DSRM's size that regresses targets on conditions: does diffusion itself help?

    Args:
        config: Sizes.
    """

    kind = "mlp"
    config_class = RegressionConfig

    def __init__(self, config: PurifierConfig) -> None:
        super().__init__(config)
        self.network = _mlp(config.width, [config.hidden] * config.layers, config.dim)

    def loss(self, condition: Tensor, target: Tensor) -> Tensor:
        error: Tensor = self.network(condition) - target
        return error.square().mean(dim=1)

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        return torch.as_tensor(self.network(condition))


class OracleRegression(Regression):
    """The same network, fitted to true preferences: is the belief a good target?

    They exist in synthetic worlds alone.
    """

    kind = "oracle-regression"

    def targets(self, examples: Examples) -> FloatArray:
        return examples.true_preferences


@dataclass(frozen=True)
class AutoencoderConfig(PurifierConfig):
    """Configuration of an autoencoder, with as many weights as DSRM's network by default.

    Attributes:
        layers: Hidden layers of the encoder, and of the decoder.
        latent: Width of the narrowest layer.
    """

    hidden: int = 288
    layers: int = 1
    latent: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("latent", self.latent, 1)


@dataclass(frozen=True)
class DAEConfig(AutoencoderConfig):
    """Configuration of a denoising autoencoder.

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
    """Configuration of a variational autoencoder.

    Attributes:
        beta: Weight of the Kullback-Leibler term, per coordinate.
    """

    beta: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ConfigError(f"beta must be at least 0, got {self.beta}.")


class Autoencoder(TrainedPurifier):
    """A template for autoencoders: an encoder to a narrow code, and a decoder.

    Args:
        config: Sizes.

    Attributes:
        code_parameters: Numbers that the encoder gives for each coordinate of the code.
    """

    config_class = AutoencoderConfig
    code_parameters: ClassVar[int] = 1
    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        widths = [config.hidden] * config.layers
        self.encoder = _mlp(config.width, widths, self.code_parameters * config.latent)
        self.decoder = _mlp(config.latent, widths, config.dim)

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        return torch.as_tensor(self.decoder(self.encoder(condition)[:, : self.config.latent]))


class DenoisingAutoencoder(Autoencoder):
    """A denoising autoencoder, trained on conditions with added noise (Vincent et al. 2008)."""

    kind = "dae"
    config_class = DAEConfig
    config: DAEConfig

    def loss(self, condition: Tensor, target: Tensor) -> Tensor:
        noisy = condition + self.config.noise * torch.randn_like(condition)
        error: Tensor = self.decoder(self.encoder(noisy)) - target
        return error.square().mean(dim=1)


class VariationalAutoencoder(Autoencoder):
    """A variational autoencoder with a Gaussian code (Kingma and Welling 2014)."""

    kind = "vae"
    config_class = VAEConfig
    code_parameters = 2  # mean and logarithm of the variance
    config: VAEConfig

    def loss(self, condition: Tensor, target: Tensor) -> Tensor:
        """Negative evidence lower bound of the target, (B,)."""
        mean, log_variance = self.encoder(condition).chunk(2, dim=1)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        error = (self.decoder(code) - target).square().mean(dim=1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=1)
        return torch.as_tensor(error + self.config.beta * divergence / self.config.dim)


def _mlp(inputs: int, hidden: list[int], outputs: int) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    return nn.Sequential(*create_mlp(inputs, outputs, hidden, activation_fn=nn.SiLU))
