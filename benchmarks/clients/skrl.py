# /// script
# dependencies = ["skrl==2.1.1", "torch==2.13.0"]
# ///
"""skrl: PPO and its trainer, which renders every step unless it is told not to."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import gymnasium as gym
import torch
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from skrl.trainers.torch import SequentialTrainer

import kuaisim_gym  # noqa: F401  # registers the ids


class Actor(GaussianMixin, Model):
    """A linear policy."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        GaussianMixin.__init__(self, clip_actions=True)
        self.mean = torch.nn.Linear(self.num_observations, self.num_actions)
        self.log_std = torch.nn.Parameter(torch.zeros(self.num_actions))

    def compute(self, inputs: dict[str, Any], role: str = "") -> Any:
        """Mean actions, and the logarithm of their spread."""
        return torch.tanh(self.mean(inputs["observations"])), {"log_std": self.log_std}


class Critic(DeterministicMixin, Model):
    """A linear value."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.value = torch.nn.Linear(self.num_observations, 1)

    def compute(self, inputs: dict[str, Any], role: str = "") -> Any:
        """Values of the observations."""
        return self.value(inputs["observations"]), {}


for mode in ("SameStep", "NextStep"):
    envs = gym.make_vec("KuaiRec-Fair-v0", num_envs=4, autoreset_mode=mode, max_len=4)
    env = wrap_env(envs, wrapper="gymnasium")
    spaces = {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "device": env.device,
    }
    agent = PPO(
        models={"policy": Actor(**spaces), "value": Critic(**spaces)},
        memory=RandomMemory(memory_size=16, num_envs=env.num_envs, device=env.device),
        cfg=PPO_CFG(rollouts=16, learning_epochs=1),
        **spaces,
    )
    trainer = SequentialTrainer(
        cfg={"timesteps": 32, "headless": False, "disable_progressbar": True},
        env=env,
        agents=agent,
    )
    trainer.train()
    assert env.render(None) is None or env.render(None) == (None,) * 4
try:
    finished = wrap_env(
        gym.make_vec("KuaiRec-Fair-v0", num_envs=4, autoreset_mode="Disabled", max_len=4),
        wrapper="gymnasium",
    )
    finished.reset()
    for _ in range(10):
        finished.step(torch.zeros(4, finished.action_space.shape[0]))
    disabled = "yes"
except Exception as error:  # it never resets what is over
    disabled = f"fails (`{type(error).__name__}`)"
print(f"| skrl {version('skrl')} | yes | yes | {disabled} |")
