"""Environment ids, each with its dataset, task and options."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np

from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.registry import check_name

ENVIRONMENTS: dict[str, dict[str, Any]] = {}  # by id: "name", "task" and options, as registered
_ID = re.compile(r"\w[\w.-]*-v\d+", re.ASCII)
_ENTRY_POINT = re.compile(r"[\w.]+:\w+")


def register(
    env_id: str,
    name: str,
    task: str = "session",
    entry_point: str = "kuaisim_gym.envs.single:KuaiEnv",
    **options: Any,
) -> None:
    """Registers an environment, for ``gymnasium.make``, ``make_vec`` and ``make_vec_env`` alike.

    The same call again changes nothing, so that a module can be executed twice.

    Args:
        env_id: Versioned id, such as ``"KuaiRec-Fair-v0"``.
        name: Its dataset, such as ``"kuairec"``; ``gymnasium.make`` cannot change it. The source
            of this name must be known when the environment is made.
        task: Name of its task, a key of ``kuaisim_gym.envs.tasks.TASKS``; fixed like the dataset.
        entry_point: ``"module:class"`` of the single environment, which documents it.
        **options: Defaults of options, where they differ from the task's.

    Raises:
        ConfigError: The id is none, or stands for another environment; or another argument is no
            name.
    """
    if not isinstance(env_id, str) or not _ID.fullmatch(env_id):
        raise ConfigError(
            "An environment id must be letters, digits, '_', '.' and '-' with a version behind "
            f"them, such as 'Mine-Fair-v0', got {env_id!r}."
        )
    check_name(f"The dataset of {env_id}", name)
    check_name(f"The task of {env_id}", task)
    if not isinstance(entry_point, str) or not _ENTRY_POINT.fullmatch(entry_point):
        raise ConfigError(
            f"The entry_point of {env_id} must be 'module:class', got {entry_point!r}."
        )
    row = {"name": name, "task": task, **options}
    kwargs = {"env_id": env_id}
    if env_id not in gym.registry:
        gym.register(
            env_id,
            entry_point=entry_point,
            vector_entry_point="kuaisim_gym.envs.vector:KuaiVectorEnv",
            kwargs=kwargs,
            order_enforce=False,  # the core does, with an error that says what to do
            # Gymnasium's checker of what environments return: after a first reset that is refused,
            # it would fail in every step. Our tests check; make(..., disable_env_checker=False).
            disable_env_checker=True,
        )
    spec, holder = gym.registry[env_id], ENVIRONMENTS.get(env_id, row)
    same_class = (spec.entry_point, spec.kwargs) == (entry_point, kwargs)
    if not (same_class and _equal(holder, row)):
        raise ConfigError(
            f"{env_id} is {spec.entry_point} with {holder} already, got {entry_point} with {row}: "
            "choose another id."
        )
    ENVIRONMENTS[env_id] = row


def _equal(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tells whether two registrations agree; an option may be an array."""
    return row.keys() == other.keys() and all(
        np.array_equal(value, other[name]) if np.ndim(value) else bool(value == other[name])
        for name, value in row.items()
    )


def import_named(name: str) -> str:
    """The last part of ``"module:name"``, whose module is imported first; other names as they are.

    Raises:
        ConfigError: The module cannot be imported.
    """
    module, _, member = name.rpartition(":")
    if module:
        try:
            import_module(module)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"The module of {name} cannot be imported: {error}. Check the spelling and "
                "PYTHONPATH."
            ) from error
    return member


def registered(env_id: str) -> dict[str, Any]:
    """Dataset, task and options of an id, as :func:`register` got them.

    Args:
        env_id: The id; or ``"module:id"``, as ``gymnasium.make`` takes it, which imports the module
            that registers it first.

    Raises:
        ConfigError: The id is unknown, or the module cannot be imported.
    """
    return ENVIRONMENTS[check_choice("env", import_named(env_id), ENVIRONMENTS)]


register("KuaiRec-Fair-v0", "kuairec")
register("KuaiRand-Fair-v0", "kuairand")
register("KuaiRec-v0", "kuairec", abandonment="none")
register("KuaiRand-v0", "kuairand", abandonment="none")
register("KuaiRand-Request-v0", "kuairand", "request", "kuaisim_gym.envs.single:KuaiRequestEnv")
register("KuaiRec-Dynamic-v0", "kuairec", catalogue="dynamic")
register("KuaiRand-Dynamic-v0", "kuairand", catalogue="dynamic")
register("Recommendation-Fair-v0", "table")
register("Recommendation-v0", "table", abandonment="none")
register(
    "KuaiRand-Retention-v0", "kuairand", "retention", "kuaisim_gym.envs.single:KuaiRetentionEnv"
)
