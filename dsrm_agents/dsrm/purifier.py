"""What purifies states: the interface, and what all fitted purifiers share."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from dsrm_agents.common.files import digest_of, read_safetensors
from dsrm_agents.dsrm.erasure import Affine, erase
from dsrm_agents.dsrm.popularity import STATISTICS
from kuaisim_gym.config import check_whole
from kuaisim_gym.data.cache import write_atomically
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.observation import PREFERENCE_BOUND

FORMAT = "dsrm-purifier-1"

FloatArray = NDArray[np.float32]


Denoise = Callable[[FloatArray], FloatArray]


class Purifier(Protocol):
    """What the wrappers and probes need; anything with these plugs in."""

    @property
    def fingerprint(self) -> str:
        """Of the dataset that it was fitted on."""
        ...

    def denoise(self, states: FloatArray) -> FloatArray:
        """(N, d) float32 preference states to purified ones, within the observation space."""
        ...


def purify(denoise: Denoise, states: FloatArray) -> FloatArray:
    """What somebody's purifier makes of (n, d) states, held to what purifiers promise.

    Raises:
        ConfigError: It returns another shape, or something that is not finite.
    """
    clean = np.asarray(denoise(states))
    if clean.shape != states.shape or not np.isfinite(clean).all():
        raise ConfigError(
            f"A purifier must return finite states of shape {states.shape}, got "
            f"{clean.shape}{'' if clean.shape != states.shape else ', not all finite'}."
        )
    return clean


@dataclass(frozen=True)
class PurifierConfig:
    """Everything needed to rebuild a purifier before its weights are loaded.

    Attributes:
        dim: d, of the preference state.
        fingerprint: Of the dataset that it was fitted on.
        blind: How many statistics of popularity its input and output tell nothing of, of
            :data:`~dsrm_agents.dsrm.popularity.STATISTICS`.
        hidden: Width of its network.
        layers: Hidden layers of its network.
    """

    dim: int
    fingerprint: str = ""
    blind: int = 1
    hidden: int = 96
    layers: int = 2

    def __post_init__(self) -> None:
        for name in ("dim", "hidden", "layers"):
            check_whole(name, getattr(self, name), 1)
        if check_whole("blind", self.blind, 0) > len(STATISTICS):
            raise ConfigError(f"blind must be at most {len(STATISTICS)}, got {self.blind}.")


class FittedPurifier(nn.Module, ABC):
    """A purifier that has been fitted: condition in, clean state out, in units of its own.

    The condition is the observed state, whitened and with the directions left out along which it
    tells the popularity of the user's history (:func:`~dsrm_agents.dsrm.erasure.whiten_blindly`).
    Clean states are scaled by one number, not coordinate by coordinate, so that a unit of error
    weighs the same along all of them.

    Args:
        config: Sizes and kind.

    Attributes:
        kind: Name of the kind in checkpoints and tables.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type[PurifierConfig]] = PurifierConfig

    input_centre: Tensor
    input_map: Tensor
    output_centre: Tensor
    output_map: Tensor
    target_centre: Tensor
    target_scale: Tensor

    def __init__(self, config: PurifierConfig) -> None:
        super().__init__()
        self.config = config
        for name in ("input_centre", "output_centre", "target_centre"):
            self.register_buffer(name, torch.zeros(config.dim))
        for name in ("input_map", "output_map"):
            self.register_buffer(name, torch.eye(config.dim))
        self.register_buffer("target_scale", torch.ones(()))

    @property
    def fingerprint(self) -> str:
        """Of the dataset that it was fitted on."""
        return self.config.fingerprint

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the weights."""
        return digest_of(self)

    @abstractmethod
    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """(B, d) conditions, and the observed states they come from, to clean states."""

    def read(self, whitening: Affine) -> None:
        """Takes the map from observed states to conditions."""
        self.input_centre.copy_(torch.from_numpy(whitening.centre))
        self.input_map.copy_(torch.from_numpy(whitening.matrix))

    def scale_targets(self, target: Tensor) -> Tensor:
        """Takes mean and scale of (n, d) targets; returns them in the purifier's units."""
        self.target_centre.copy_(target.mean(dim=0))
        spread = (target - self.target_centre).square().mean().sqrt()
        self.target_scale.copy_(spread if spread > 0 else torch.ones(()))
        self.output_centre.copy_(self.target_centre)
        self.output_map.copy_(self.target_scale * torch.eye(self.config.dim))
        return self.in_units(target)

    def calibrate(self, states: FloatArray, popularity: NDArray[np.floating]) -> None:
        """Makes the output as blind as the input, and gives it the input's size.

        A network can bend what is left of popularity in its input back into a straight line, so
        the directions along which its output tells it are erased again. Targets are shrunken by
        what is uncertain in them; agents should meet inputs of the size of the raw state's. One
        factor for all coordinates leaves directions and ranks as they are.

        Args:
            states: (n, d) observed states of users.
            popularity: (n, 3) statistics of the popularity of their histories.
        """
        observed = torch.from_numpy(states)
        with torch.inference_mode():
            clean = self.clean(self.condition(observed), observed).numpy()
        erased = erase(clean, popularity[:, : self.config.blind])
        size = np.sqrt(states.var(axis=0).mean() / max(erased(clean).var(axis=0).mean(), 1e-12))
        self.output_map.copy_(torch.from_numpy(size * erased.matrix))
        self.output_centre.copy_(torch.from_numpy(-size * erased.matrix @ erased.centre))

    def condition(self, states: Tensor) -> Tensor:
        """(B, d) observed states to conditions."""
        return (states - self.input_centre) @ self.input_map.T

    def forward(self, states: Tensor) -> Tensor:
        """(B, d) observed states to purified ones, in the encoder's units."""
        purified = self._in_encoder_units(self.clean(self.condition(states), states))
        return purified.clamp_(-PREFERENCE_BOUND, PREFERENCE_BOUND)

    def _in_encoder_units(self, clean: Tensor) -> Tensor:
        return torch.addmm(self.output_centre, clean, self.output_map.t())

    def in_units(self, states: Tensor) -> Tensor:
        """(B, d) states in the encoder's units to the purifier's own."""
        return (states - self.target_centre) / self.target_scale

    def denoise(self, states: FloatArray) -> FloatArray:
        """The batched purification that every wrapper calls.

        Args:
            states: (N, d) float32 preference states.

        Returns:
            (N, d) float32 in the observation space's range.

        Raises:
            ConfigError: The states are not finite or not of the size this was fitted for.
        """
        if states.ndim != 2 or states.shape[1] != self.config.dim:
            raise ConfigError(
                f"Expected states of shape (N, {self.config.dim}), got {states.shape}."
            )
        states = np.require(states, np.float32, ["C", "W"])  # torch wants arrays it could write
        if not np.isfinite(states).all():
            raise ConfigError("Expected finite states, got NaN or infinity.")
        with torch.inference_mode():
            purified: Tensor = self(torch.from_numpy(states))
        return purified.numpy()

    def save(self, path: str | Path) -> None:
        """Writes weights and configuration to one safetensors file, whole or not at all."""
        metadata = {
            "format": FORMAT,
            "kind": self.kind,
            "config": json.dumps(asdict(self.config)),
        }
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            CheckpointError: The file is missing, damaged, or no checkpoint of this kind.
        """
        metadata, tensors = read_checkpoint(path)
        if metadata["kind"] != cls.kind:
            raise CheckpointError(
                f"{path} holds a purifier of kind {metadata['kind']!r}, expected {cls.kind!r}; "
                "load_purifier(path) loads any."
            )
        return cls.rebuild(path, metadata, tensors)

    @classmethod
    def rebuild(
        cls, path: str | Path, metadata: dict[str, str], tensors: dict[str, Tensor]
    ) -> Self:
        """Makes a purifier of what :func:`read_checkpoint` found.

        Raises:
            CheckpointError: Configuration or weights do not fit.
        """
        try:
            purifier = cls(cls.config_class(**json.loads(metadata["config"])))
            purifier.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is a damaged purifier checkpoint: {error}") from error
        return purifier.eval()


class TrainedPurifier(FittedPurifier):
    """A purifier that is fitted by descending a loss on pairs."""

    @abstractmethod
    def loss(self, condition: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Training loss.

        Args:
            condition: (B, d) as :meth:`condition` makes them.
            target: (B, d) clean states in the purifier's units.

        Returns:
            (B,) losses and the (B, d) clean states that the purifier would give.
        """


def read_checkpoint(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and weights of a purifier's file.

    Raises:
        CheckpointError: The file is missing, damaged, or no purifier checkpoint.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"There is no purifier checkpoint at {path}.")
    metadata, tensors = read_safetensors(path)
    if metadata.get("format") != FORMAT or "kind" not in metadata:
        raise CheckpointError(
            f"{path} is not a purifier checkpoint of this version: expected format {FORMAT!r}, "
            f"got {metadata.get('format')!r}."
        )
    return metadata, tensors
