"""Environment ids, each with its dataset, task and options."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

ENVIRONMENTS: dict[str, dict[str, Any]] = {}  # by id: "name", "task" and options, as registered


def register(
    env_id: str,
    name: str,
    task: str = "session",
    entry_point: str = "kuaisim_gym.envs.single:KuaiEnv",
    **options: Any,
) -> None:
    """Registers an environment, for ``gymnasium.make``, ``make_vec`` and ``make_vec_env`` alike.

    Args:
        env_id: Versioned id, such as ``"KuaiRec-Fair-v0"``.
        name: Its dataset, such as ``"kuairec"``; ``gymnasium.make`` cannot change it.
        task: Name of its task, a key of ``kuaisim_gym.envs.tasks.TASKS``; fixed like the dataset.
        entry_point: ``"module:class"`` of the single environment, which documents it.
        **options: Defaults of options, where they differ from the task's.
    """
    ENVIRONMENTS[env_id] = {"name": name, "task": task, **options}
    gym.register(
        env_id,
        entry_point=entry_point,
        vector_entry_point="kuaisim_gym.envs.vector:KuaiVectorEnv",
        kwargs={"env_id": env_id},
        order_enforce=False,  # the core does, with an error that says what to do
    )


register("KuaiRec-Fair-v0", "kuairec")
register("KuaiRand-Fair-v0", "kuairand")
register("KuaiRec-v0", "kuairec", abandonment="none")
register("KuaiRand-v0", "kuairand", abandonment="none")
register("KuaiRand-Request-v0", "kuairand", "request", "kuaisim_gym.envs.single:KuaiRequestEnv")
register(
    "KuaiRand-Retention-v0", "kuairand", "retention", "kuaisim_gym.envs.single:KuaiRetentionEnv"
)
