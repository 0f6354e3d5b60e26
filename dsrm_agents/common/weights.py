"""Weights of agents that Stable-Baselines3 saved, which are read without running code.

A file of ``agent.save(path)`` is a zip of pickles: ``PPO.load(path)`` runs whatever they say. The
weights among them are tensors, which :func:`torch.load` reads alone.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from dsrm_agents.common.checkpoint import load_whole
from kuaisim_gym.errors import CheckpointError, ConfigError

_OVERHEAD = 1 << 24  # bytes of a file beside its tensors: names, shapes and alignment


def load_weights(agent: BaseAlgorithm, path: str | Path) -> None:
    """Gives the weights of a saved agent to another one, without running code from the file.

    For files whose origin is not certain. Weights and buffers of the networks alone are taken over;
    the optimiser, the number of steps and all arguments stay the agent's own. After an error the
    agent is as it was.

    Args:
        agent: An agent of the same class and arguments, on an environment of the same dataset and
            options.
        path: The file that ``save`` of any Stable-Baselines3 algorithm wrote, with or without its
            ending .zip.

    Raises:
        CheckpointError: The file is missing, damaged, or of another agent: it holds something other
            than tensors, or their names, shapes, types or numbers of items do not fit, or a weight
            is not finite.
        ConfigError: ``agent`` is no algorithm of Stable-Baselines3.
    """
    if not isinstance(agent, BaseAlgorithm):
        raise ConfigError(
            f"Expected an agent of Stable-Baselines3, such as PPO(...), got {type(agent).__name__}."
        )
    file = Path(path)
    if not file.is_file():  # Stable-Baselines3 adds the ending itself
        file = file.with_name(f"{file.name}.zip")
    modules = {name: attrgetter(name)(agent) for name in agent.get_parameters()}
    networks = {name: module for name, module in modules.items() if isinstance(module, nn.Module)}
    try:
        with zipfile.ZipFile(file) as archive:
            states = {name: _read(archive, name, module) for name, module in networks.items()}
    except Exception as error:  # damage shows in errors of zipfile, struct, pickle or torch
        raise CheckpointError(
            f"{file} does not hold the weights of this {type(agent).__name__}: {error}. Nothing "
            "was loaded. Make the agent with the arguments of the saved one, on the same data."
        ) from error
    for name, network in networks.items():
        network.load_state_dict(states[name])


def _read(archive: zipfile.ZipFile, name: str, network: nn.Module) -> Mapping[str, Tensor]:
    """The tensors of a network in an archive.

    Raises:
        ValueError: They are not those of this network, or something else is there.
        Exception: The file is damaged.
    """
    expected = network.state_dict()
    most = sum(tensor.untyped_storage().nbytes() for tensor in expected.values()) + _OVERHEAD
    if (size := archive.getinfo(f"{name}.pth").file_size) > most:
        raise ValueError(f"{name}.pth has {size} bytes, at most {most} are expected")
    content = archive.read(f"{name}.pth")
    with zipfile.ZipFile(io.BytesIO(content)) as inner:
        if (size := sum(entry.file_size for entry in inner.infolist())) > most:
            raise ValueError(f"{name}.pth unpacks to {size} bytes, at most {most} are expected")
    state = load_whole(content)
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError(f"{name}.pth is no table of tensors by name")
    if state.keys() != expected.keys():
        absent, surplus = (
            sorted(expected.keys() - state.keys()),
            sorted(map(str, state.keys() - expected.keys())),
        )
        raise ValueError(f"{name}.pth lacks {absent[:5]}, and has {surplus[:5]} in their place")
    learned = {tensor_name for tensor_name, _ in network.named_parameters()}
    for tensor_name, tensor in state.items():
        _check(f"{name}.{tensor_name}", tensor, expected[tensor_name], tensor_name in learned)
    return state


def _check(name: str, tensor: Tensor, own: Tensor, is_learned: bool) -> None:
    """Refuses a tensor that cannot stand in the place of the agent's own.

    Raises:
        ValueError: It is of another form, a weight is not finite, or integers, which tell items
            apart, are others. A buffer may be NaN throughout, as one that was not set.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError(f"{name} is no plain tensor")
    if (tensor.shape, tensor.dtype) != (own.shape, own.dtype):
        raise ValueError(
            f"{name} is {list(tensor.shape)} {tensor.dtype}, expected {list(own.shape)} {own.dtype}"
        )
    if not tensor.is_floating_point() and tensor.ndim and not torch.equal(tensor, own.cpu()):
        raise ValueError(f"{name} numbers other items or groups")
    unset = not is_learned and bool(tensor.isnan().all())
    if not unset and not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} is not finite")
