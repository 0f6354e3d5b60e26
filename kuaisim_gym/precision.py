"""Precision of networks: float32, whatever torch's default dtype is in the caller's program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kuaisim_gym.errors import ConfigError


@contextmanager
def single_precision() -> Iterator[None]:
    """Makes float32 torch's default dtype; after the block, or the function, it is as before.

    Networks and what they read are float32. Everything that makes networks, fits them or asks them
    does so in here, and so gives the same numbers in programs that have set another default.
    """
    before = torch.get_default_dtype()
    if before is torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_single_precision(network: str) -> None:
    """Refuses to make a network that code of others would fit or ask in another precision.

    Args:
        network: Name of its class, for the error.

    Raises:
        ConfigError: torch's default dtype is not float32.
    """
    default = torch.get_default_dtype()
    if default is not torch.float32:
        raise ConfigError(
            f"{network} is a network of float32, but Stable-Baselines3 makes its own of torch's "
            f"default dtype, {default}: call torch.set_default_dtype(torch.float32) before."
        )
