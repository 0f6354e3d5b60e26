"""Identity of a training: two that agree in it learn the same from the same sessions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnvWrapper

from kuaisim_gym.tensors import digest_of

_SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")
# Arguments of SB3's PPO and A2C that decide what is learned; each stands in an attribute.
_ON_POLICY = (
    *_SCHEDULES, "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "normalize_advantage",
    "ent_coef", "vf_coef", "max_grad_norm", "target_kl", "use_sde", "sde_sample_freq",
    "policy_kwargs", "seed",
)  # fmt: skip


def identity_of(model: BaseAlgorithm, generators: Iterable[str] = ()) -> str:
    """Describes an algorithm: its class, its arguments and the shapes of its policy.

    The arguments are those of SB3's on-policy algorithms and the ``settings`` of the algorithm, if
    it has some, as wrappers have. Objects among them stand for their fingerprint or class.

    Args:
        model: The algorithm.
        generators: Names of its random generators.

    Returns:
        JSON.
    """
    settings = {name: getattr(model, name) for name in _ON_POLICY if hasattr(model, name)}
    for name in _SCHEDULES:
        if callable(settings.get(name)):
            settings[name] = _values(settings[name])
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
            **_plain(settings | getattr(model, "settings", {})),
            "wrappers": wrappers,
            "generators": list(generators),
            **shapes,
        }
    )


def differences(present: str, saved: str) -> str:
    """Differences of two descriptions in words; empty if there are none."""
    current, previous = json.loads(present), json.loads(saved)
    return "; ".join(
        f"{name} is {current.get(name)!r} here and was {previous.get(name)!r}"
        for name in dict.fromkeys((*current, *previous))
        if current.get(name) != previous.get(name)
    )


def _wrapper(env: VecEnvWrapper) -> Any:
    """A wrapper's class, with its settings if it has some."""
    name, settings = type(env).__name__, getattr(type(env), "settings", None)
    return name if settings is None else [name, _plain(env.settings)]


def _plain(value: Any) -> Any:
    """A value as JSON knows it."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)} {digest_of([value])}"
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "fingerprint"):
        return value.fingerprint
    return _name(value if hasattr(value, "__qualname__") else type(value))


def _name(definition: Any) -> str:
    return f"{definition.__module__}.{definition.__qualname__}"


def _values(schedule: Any) -> list[float]:
    """Values of a schedule at its beginning, middle and end."""
    return [float(schedule(remaining)) for remaining in (1.0, 0.5, 0.0)]
