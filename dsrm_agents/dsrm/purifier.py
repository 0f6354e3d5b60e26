"""The fitted module: purifies states, and is saved and loaded without pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dsrm_agents.dsrm.denoiser import MLPDenoiser
from dsrm_agents.dsrm.diffusion import PREDICTIONS, GaussianDiffusion
from dsrm_agents.dsrm.targets import MODES
from kuaisim_gym.config import check_choice
from kuaisim_gym.data.cache import write_atomically
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.observation import PREFERENCE_BOUND

FORMAT = "dsrm-1"


@dataclass(frozen=True)
class DSRMConfig:
    """Everything needed to rebuild the module before its weights are loaded.

    Attributes:
        dim: d, of the preference state.
        mode: ``"debiased"`` or ``"literal"``, see :mod:`dsrm_agents.dsrm.targets`.
        prediction: ``"x0"`` or ``"noise"``.
        diffusion_steps: K of the diffusion.
        hidden: Width of the denoiser.
        layers: Residual layers of the denoiser.
        fingerprint: Of the dataset that it was fitted on.
    """

    dim: int
    mode: str = "debiased"
    prediction: str = "x0"
    diffusion_steps: int = 20
    hidden: int = 128
    layers: int = 2
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("prediction", self.prediction, PREDICTIONS)
        for name in ("dim", "diffusion_steps", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")


class DSRM(nn.Module):
    """Projects observed preference states to purified ones (Pi_theta of section 4.2).

    The reverse process starts from the noised observed state with its noise at zero, so that the
    same observation always gives the same purified state.

    Args:
        config: Sizes and kinds.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, config: DSRMConfig) -> None:
        super().__init__()
        self.config = config
        self.diffusion = GaussianDiffusion(config.diffusion_steps, config.prediction)
        self.denoiser = MLPDenoiser(config.dim, config.hidden, config.layers)
        self.register_buffer("centre", torch.zeros(2, config.dim))
        self.register_buffer("spread", torch.ones(2, config.dim))

    def set_whitening(self, observed: Tensor, target: Tensor) -> None:
        """Takes mean and spread of the (n, d) conditions and (n, d) targets."""
        for row, states in enumerate((observed, target)):
            spread = states.std(dim=0)
            self.centre[row] = states.mean(dim=0)
            self.spread[row] = torch.where(spread > 1e-6, spread, torch.ones_like(spread))

    def loss(self, observed: Tensor, target: Tensor) -> Tensor:
        """Training loss on (B, d) conditions and (B, d) targets, a scalar."""
        condition = (observed - self.centre[0]) / self.spread[0]
        x0 = (target - self.centre[1]) / self.spread[1]
        return self.diffusion.loss(self.denoiser, x0, condition)

    def forward(self, observed: Tensor) -> Tensor:
        """(B, d) observed states to (B, d) purified ones, in the same units."""
        condition = (observed - self.centre[0]) / self.spread[0]
        start = self.diffusion.alpha_bar[-1].sqrt() * condition
        x0 = self.diffusion.ddim(self.denoiser, start, condition)
        purified = x0 * self.spread[1] + self.centre[1]
        return purified.clamp(-PREFERENCE_BOUND, PREFERENCE_BOUND)

    def denoise(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """The batched purification that every wrapper calls.

        Args:
            states: (N, d) float32 preference states.

        Returns:
            (N, d) float32 in the observation space's range.

        Raises:
            ConfigError: The states are not finite or not of the size this module was fitted for.
        """
        if states.ndim != 2 or states.shape[1] != self.config.dim:
            raise ConfigError(
                f"Expected states of shape (N, {self.config.dim}), got {states.shape}."
            )
        states = np.ascontiguousarray(states, dtype=np.float32)
        if not np.isfinite(states).all():
            raise ConfigError("Expected finite states, got NaN or infinity.")
        with torch.inference_mode():
            purified: Tensor = self(torch.from_numpy(states))
        return purified.numpy()

    def save(self, path: str | Path) -> None:
        """Writes weights and configuration to one safetensors file, whole or not at all."""
        metadata = {"format": FORMAT, "config": json.dumps(asdict(self.config))}
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> DSRM:
        """Reads what :meth:`save` wrote.

        Raises:
            CheckpointError: The file is missing, damaged, or not a DSRM checkpoint.
        """
        if not Path(path).is_file():
            raise CheckpointError(f"There is no DSRM checkpoint at {path}.")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} is not a DSRM checkpoint: expected format {FORMAT!r}, "
                f"got {metadata.get('format')!r}."
            )
        try:
            module = cls(DSRMConfig(**json.loads(metadata["config"])))
            module.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is a damaged DSRM checkpoint: {error}") from error
        return module.eval()
