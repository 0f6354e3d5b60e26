"""KuaiRec and KuaiRand simulators with fairness-aware abandonment, as Gymnasium environments.

>>> import gymnasium as gym
>>> import kuaisim_gym
>>> env = gym.make("KuaiRec-Fair-v0")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:
    from kuaisim_gym.data import load_dataset
    from kuaisim_gym.simulator import build_simulator

__version__ = "0.1.0"
__all__ = ["ENVIRONMENTS", "build_simulator", "load_dataset"]

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "KuaiRec-Fair-v0": {"name": "kuairec"},
    "KuaiRand-Fair-v0": {"name": "kuairand"},
    "KuaiRec-v0": {"name": "kuairec", "abandonment": "none"},
    "KuaiRand-v0": {"name": "kuairand", "abandonment": "none"},
    "KuaiRand-Request-v0": {"name": "kuairand", "task": "request"},
    "KuaiRand-Retention-v0": {"name": "kuairand", "task": "retention", "action_type": "fusion"},
}
_CLASSES = {"session": "KuaiEnv", "request": "KuaiRequestEnv", "retention": "KuaiRetentionEnv"}

for _id, _kwargs in ENVIRONMENTS.items():
    if _id not in gym.registry:
        gym.register(
            _id,
            entry_point=f"kuaisim_gym.envs.single:{_CLASSES[_kwargs.get('task', 'session')]}",
            vector_entry_point="kuaisim_gym.envs.vector:KuaiVectorEnv",
            kwargs=_kwargs,
            order_enforce=False,  # the core does, with an error that says what to do
        )


def __getattr__(name: str) -> Any:
    """Loads the data and simulator modules, and with them pandas, only when they are used."""
    if name == "load_dataset":
        from kuaisim_gym.data import load_dataset

        return load_dataset
    if name == "build_simulator":
        from kuaisim_gym.simulator import build_simulator

        return build_simulator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
