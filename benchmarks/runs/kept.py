"""Agents that a run keeps beside its result: settings and weights, and what was fitted before.

``NAME.json`` is the result, ``NAME.agent`` holds the run's settings and the model's weights, and
``NAME.fitted`` the purifier or encoder, if there is one. None of them is a pickle.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from dsrm_agents.common.checkpoint import load_whole
from kuaisim_gym.disk import write_atomically
from kuaisim_gym.errors import CheckpointError

FORMAT = "kuaisim-run-1"


class Kept(NamedTuple):
    """Content of a run's file.

    Attributes:
        settings: Fields of the run, by name.
        parameters: Of the model's networks; empty for an agent with a rule.
        remembered: Further tensors of an algorithm with a ``training_state()``.
    """

    settings: dict[str, Any]
    parameters: dict[str, Any]
    remembered: dict[str, Any]

    def restore(self, model: BaseAlgorithm) -> None:
        """Gives the weights to an untrained model with the same arguments.

        Raises:
            CheckpointError: The model is another one.
        """
        try:
            model.set_parameters(self._completed(model), device="cpu")
            if self.remembered:
                model.set_training_state(self.remembered)  # type: ignore[attr-defined]
        except (ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"The weights are not of this {type(model).__name__}: {error}. Name the "
                "environment and the data that it was trained in, and the same version of the "
                "agent."
            ) from error

    def _completed(self, model: BaseAlgorithm) -> dict[str, Any]:
        """The parameters, and what is the model's own where files leave it out.

        Raises:
            KeyError: A network is missing.
        """
        complete = dict(self.parameters)
        for name, own in model.get_parameters().items():
            network = attrgetter(name)(model)
            if isinstance(network, nn.Module):
                complete[name] = _tables(network, own) | self.parameters[name]
            else:
                complete.setdefault(name, own)
        return complete


def _tables(network: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a network's state that is not learned, such as the features of items."""
    learned = {name for name, _ in network.named_parameters()}
    return {name: value for name, value in state.items() if name not in learned}


def agent_file(result: Path) -> Path:
    """The file of the agent beside a result file."""
    return result.with_suffix(".agent")


def fitted_file(result: Path) -> Path:
    """The file of what was fitted before the training, beside a result file."""
    return result.with_suffix(".fitted")


def keep(
    result: Path,
    settings: Mapping[str, Any],
    model: BaseAlgorithm | None,
    fitted: Any,
    untrained: BaseAlgorithm | None = None,
) -> None:
    """Writes the files of an agent; equal agents make equal bytes.

    Optimisers, which are twice as large as the networks, only go on with a training: they are left
    out.

    Args:
        result: The future result file.
        settings: Fields of the run, by name.
        model: The trained model; ``None`` for an agent with a rule.
        fitted: A purifier or encoder; others, which only the training needs, are not kept.
        untrained: A new model of the same run. Its tables that are equal, such as the features of
            items, are left out, too: whoever plays the agent has them of the data.
    """
    if hasattr(fitted, "save"):
        fitted.save(fitted_file(result))
    parameters: dict[str, Any] = {}
    for name, state in {} if model is None else model.get_parameters().items():
        network = attrgetter(name)(model)
        if isinstance(network, nn.Module):
            parameters[name] = dict(state)
            if untrained is not None:
                given = _tables(network, untrained.get_parameters()[name])
                equal = {key for key, value in given.items() if torch.equal(value, state[key])}
                parameters[name] = {key: state[key] for key in state if key not in equal}
    file = io.BytesIO()
    content = {
        "format": FORMAT,
        "settings": json.dumps(settings),
        "parameters": parameters,
        "remembered": getattr(model, "training_state", dict)(),
    }
    torch.save(content, file)
    write_atomically(agent_file(result), file.getvalue())


def read_kept(result: Path) -> Kept:
    """Reads the file of the agent beside a result file.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    path = agent_file(result)
    if not result.is_file() and not path.is_file():
        raise CheckpointError(f"{result} is not there: give the JSON file of a run.")
    if not path.is_file():
        raise CheckpointError(
            f"{path} is not there: only `kuaisim train` keeps agents. Train it again, which makes "
            "the same one."
        )
    try:
        content = load_whole(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT!r}, got {content['format']!r}")
        return Kept(json.loads(content["settings"]), content["parameters"], content["remembered"])
    except Exception as error:  # damage shows in errors of zipfile, struct, pickle or torch
        raise CheckpointError(
            f"{path} cannot be read as an agent: {error}. Train it again."
        ) from error
