# /// script
# dependencies = ["stable-baselines3==2.9.2", "sb3-contrib==2.9.2", "torch==2.13.0"]
#
# [tool.clients]
# extras = ["agents"]
# ///
"""sb3-contrib: MaskablePPO with ActionMasker and with our own vector environment."""

from __future__ import annotations

import gymnasium as gym
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.wrappers import ActionMasker

import kuaisim_gym
from dsrm_agents import make_vec_env

ENV_ID = "KuaiRec-Fair-v0"

single = gym.make(ENV_ID, action_type="discrete", max_len=5)
masked = ActionMasker(single, lambda env: env.unwrapped.action_masks())
batched = make_vec_env(ENV_ID, 4, action_type="discrete", max_len=5)
for env in (masked, batched):
    agent = MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=1)
    agent.learn(64)
    assert len(agent.ep_info_buffer) > 0
    mean, _ = evaluate_policy(agent, env, n_eval_episodes=4, warn=False)
    assert mean >= 0

specs = batched.get_attr("spec")
assert [spec.id for spec in specs] == [ENV_ID] * 4
assert gym.make(specs[0]).action_space == batched.action_space
try:
    batched.set_options({"max_len": 3})
except kuaisim_gym.ConfigError as error:
    assert "reset() knows no options" in str(error)
else:
    raise AssertionError("a reset has no options")
