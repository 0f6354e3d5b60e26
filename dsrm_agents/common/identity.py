"""What an algorithm was made with: two that agree in it learn the same from the same sessions."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnvWrapper

# Arguments that do not decide what is learned, or, the first two, are compared in other ways.
_LEFT_OUT = frozenset({"env", "policy", "device", "verbose", "tensorboard_log"})
_SCHEDULES = frozenset({"learning_rate", "clip_range", "clip_range_vf"})


def identity_of(model: BaseAlgorithm, generators: Iterable[str] = ()) -> str:
    """Describes an algorithm: its class, its arguments and the shapes of its policy.

    Arguments are those of the constructors of the class and its bases, as far as the algorithm
    keeps them under their own names; objects among them stand for their fingerprint or class.

    Args:
        model: The algorithm.
        generators: Names of the random generators that it has of its own.

    Returns:
        JSON.
    """
    arguments = {
        name
        for kind in type(model).__mro__
        for name in inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    }
    settings = {
        name: _schedule(value) if name in _SCHEDULES and callable(value) else _plain(value)
        for name, value in vars(model).items()
        if name in arguments - _LEFT_OUT
    }
    wrappers, env = [], model.env
    while isinstance(env, VecEnvWrapper):
        wrappers.append(_wrapper(env))
        env = env.venv
    shapes = {
        f"policy.{name}": list(value.shape) for name, value in model.policy.state_dict().items()
    }
    return json.dumps(
        {
            "algorithm": _name(type(model)),
            "policy": _name(type(model.policy)),
            **settings,
            "wrappers": wrappers,
            "generators": list(generators),
            **shapes,
        }
    )


def differences(here: str, there: str) -> str:
    """In words, where two descriptions differ; empty if they do not."""
    mine, theirs = json.loads(here), json.loads(there)
    return "; ".join(
        f"{name} is {mine.get(name)!r} here and was {theirs.get(name)!r}"
        for name in dict.fromkeys((*mine, *theirs))
        if mine.get(name) != theirs.get(name)
    )


def _wrapper(env: VecEnvWrapper) -> Any:
    """A wrapper's class, with what it says of its settings if it has any."""
    name, settings = type(env).__name__, getattr(type(env), "settings", None)
    return name if settings is None else [name, _plain(env.settings)]


def _plain(value: Any) -> Any:
    """A value as JSON knows it."""
    if isinstance(value, np.ndarray):
        content = hashlib.blake2b(np.ascontiguousarray(value).view(np.uint8).data, digest_size=8)
        return f"{value.dtype}{list(value.shape)} {content.hexdigest()}"
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "fingerprint"):
        return value.fingerprint
    return _name(value if hasattr(value, "__qualname__") else type(value))


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _schedule(schedule: Any) -> list[float]:
    """A schedule at its beginning, middle and end, where 1, a half and no progress is left."""
    return [float(schedule(left)) for left in (1.0, 0.5, 0.0)]
