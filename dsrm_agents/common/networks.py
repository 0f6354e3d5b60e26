"""Networks and gradient steps that several agents have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import create_mlp
from torch import Tensor, nn

from kuaisim_gym.precision import single_precision


def mlp(
    inputs: int, hidden: Sequence[int], outputs: int, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Multi-layer perceptron with a linear output layer.

    Args:
        inputs: Width of the input.
        hidden: Widths of the hidden layers.
        outputs: Width of the output.
        activation: Follows each hidden layer.
    """
    return nn.Sequential(*create_mlp(inputs, outputs, list(hidden), activation))


def start_near_zero(layer: nn.Module) -> None:
    """Initialises a linear layer so that its outputs are small: neutral values, flat policies."""
    assert isinstance(layer, nn.Linear)
    nn.init.orthogonal_(layer.weight, gain=0.01)
    nn.init.zeros_(layer.bias)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Takes one gradient step on a () loss, which no parameters but the optimiser's feel."""
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    optimizer.step()


def follow(target: nn.Module, online: nn.Module, share: float) -> None:
    """Moves a target network's parameters towards the online ones' by a share of the way.

    All tensors in one call; Stable-Baselines3's ``polyak_update`` makes two for each.
    """
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), share)


class SinglePrecision(BaseAlgorithm):
    """Mix-in of algorithms that learn and act in float32, whatever torch's default dtype is.

    It stands before the algorithm among the bases; a class whose ``_setup_model`` is its own makes
    its networks in :func:`~kuaisim_gym.precision.single_precision` there.
    """

    @single_precision()
    def learn(self, *args: Any, **kwargs: Any) -> Self:
        return super().learn(*args, **kwargs)  # type: ignore[safe-super]

    @single_precision()
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        return super().predict(*args, **kwargs)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generator; after the block its state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
