"""Networks that were fitted on a dataset: their identity and their files, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kuaisim_gym.precision import single_precision
from kuaisim_gym.tensors import TensorFile, digest_of, open_tensors, save_tensors


class FittedModule(nn.Module):
    """A network that was fitted on a dataset and is rebuilt from its configuration and weights.

    Attributes:
        format: Name and version of its files.
        content: Noun of such a network, for messages.
        config_class: Dataclass of its configuration.
        config: Its configuration, with the dataset's ``fingerprint`` in it.
    """

    format: ClassVar[str]
    content: ClassVar[str]
    config_class: ClassVar[type[Any]]
    config: Any

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the dataset that it was fitted on."""
        fingerprint: str = self.config.fingerprint
        return fingerprint

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the weights."""
        return digest_of(arrays_of(self.state_dict()).values())

    def header(self) -> dict[str, str]:
        """Texts that :meth:`rebuilt` reads, by name."""
        return {"config": json.dumps(asdict(self.config))}

    def save(self, path: str | Path) -> None:
        """Writes weights and header to a safetensors file, completely or not at all."""
        save_tensors(path, self.format, arrays_of(self.state_dict()), **self.header())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads the file that :meth:`save` wrote.

        Raises:
            CheckpointError: The file is missing, damaged, or of another class.
        """
        with open_tensors(path, cls.format, cls.content) as file:
            return cls.rebuilt(file)

    @classmethod
    def rebuilt(cls, file: TensorFile) -> Self:
        """The network of a file, ready for use.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: Header or weights do not fit.
        """
        with single_precision():
            module = cls(cls.config_class(**json.loads(file.header["config"])))
        module.load_state_dict(tensors_of(file.arrays))
        return module.eval()


def arrays_of(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors as NumPy arrays, from any device."""
    return {name: tensor.numpy(force=True) for name, tensor in tensors.items()}


def tensors_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """NumPy arrays as tensors, which share their memory."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
