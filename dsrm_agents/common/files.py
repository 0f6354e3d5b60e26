"""Tensors in files, without pickle, and what identifies them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kuaisim_gym.errors import CheckpointError


def read_safetensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def digest_of(module: nn.Module) -> str:
    """16 hexadecimal digits that identify a module's weights and buffers."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in module.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
