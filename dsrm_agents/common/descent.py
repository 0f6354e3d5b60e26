"""One step of gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Moves the optimiser's parameters, once, to where a () loss is lower."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
