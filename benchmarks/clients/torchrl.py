# /// script
# dependencies = ["torchrl==0.14.1", "tensordict==0.14.3", "torch==2.13.0"]
# ///
"""TorchRL: environments by id, and rollouts of vector environments over the ends of sessions."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorWrapper
from torchrl.envs import GymEnv, GymWrapper, check_env_specs

import kuaisim_gym  # noqa: F401  # registers the ids

ENV_ID = "KuaiRec-Fair-v0"


class WithoutSession(VectorWrapper):
    """Leaves the metrics out of infos: under SAME_STEP, TorchRL takes none that hold dictionaries.

    Nor does ``GymEnv(..., num_envs=2)``. Both is so with any environment, see
    ``findings/torchrl-nested-infos.sh``.
    """

    @property
    def autoreset_mode(self) -> Any:
        """The mode, for which TorchRL asks here."""
        return self.env.autoreset_mode

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Resets, as Gymnasium's."""
        observation, infos = self.env.reset(**options)
        return observation, self.flat(infos)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps, as Gymnasium's."""
        *outcome, infos = self.env.step(actions)
        return *outcome, self.flat(infos)

    def flat(self, infos: dict[str, Any]) -> dict[str, Any]:
        """Infos, and those of sessions that ended, but for their metrics."""
        infos = {name: value for name, value in infos.items() if "session" not in name}
        if "final_info" in infos:
            infos["final_info"] = self.flat(infos["final_info"])
        return infos


def check_id(**options: Any) -> None:
    """``GymEnv`` offers ``frameskip=``, and goes on without it."""
    check_env_specs(GymEnv(ENV_ID, **options))


def check_rollout(mode: str, observation_type: str) -> None:
    """A rollout goes on over the ends of sessions."""
    options = {"max_len": 4, "observation_type": observation_type}
    envs = gym.make_vec(ENV_ID, num_envs=3, autoreset_mode=mode, **options)
    env = GymWrapper(WithoutSession(envs) if mode == "SameStep" else envs)
    env.set_seed(1)
    rollout = env.rollout(12, break_when_any_done=False)
    rewards = rollout["next", "reward"]
    assert rollout.shape == (3, 12)
    assert torch.isfinite(rewards).all() and (rewards > 0).any()
    assert rollout["next", "done"].sum() >= 3


def verdict(mode: str, observation_type: str) -> str:
    """Answer for a user of TorchRL: ``"yes"``, or the error's name."""
    try:
        check_rollout(mode, observation_type)
    except Exception as error:  # of any kind: the row is about them
        return f"refused (`{type(error).__name__}`)"
    return "yes"


check_id()
check_id(action_type="slate")
check_id(observation_type="dict")
# TorchRL refuses NextStep, and under SameStep takes no dictionary with a part called "state": see
# findings/torchrl-final-dict-observations.sh.
for kind, states in (("state", "vectors"), ("history", "histories"), ("dict", "dictionaries")):
    verdicts = [verdict(mode, kind) for mode in ("NextStep", "SameStep", "Disabled")]
    works = [text == "yes" for text in verdicts]
    assert works == [False, kind != "dict", True], verdicts
    print(f"| TorchRL {version('torchrl')}, {states} | {' | '.join(verdicts)} |")
