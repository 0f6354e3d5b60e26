"""The ``data`` command: what ``python -m kuaisim_gym.data`` does."""

from __future__ import annotations

from kuaisim_gym.data.__main__ import add_arguments
from kuaisim_gym.data.__main__ import run as main

__all__ = ["add_arguments", "main"]
