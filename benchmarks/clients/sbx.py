# /// script
# dependencies = ["sbx-rl==0.28.0", "jax==0.10.2", "stable-baselines3==2.9.2", "torch==2.13.0"]
#
# [tool.clients]
# extras = ["agents"]
# ///
"""SBX: PPO and DQN in JAX."""

from __future__ import annotations

import gymnasium as gym
from sbx import DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy

from dsrm_agents import make_vec_env

ENV_ID = "KuaiRec-Fair-v0"

slates = make_vec_env(ENV_ID, 4, action_type="slate", max_len=5)
scores = make_vec_env(ENV_ID, 4, max_len=5)
items = gym.make(ENV_ID, action_type="discrete", max_len=5)
for env in (slates, scores):
    agent = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=1).learn(64)
    evaluate_policy(agent, env, n_eval_episodes=4)
agent = DQN("MlpPolicy", items, learning_starts=10, seed=1).learn(40)
evaluate_policy(agent, items, n_eval_episodes=2, warn=False)
