"""Facts about Stable-Baselines3 that docs/howto/sb3.md states, and what the defaults here do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks.agents import AGENTS
from dsrm_agents import evaluate, make_vec_env
from kuaisim_gym.errors import ConfigError

ENV = "KuaiRec-Fair-v0"
ITEMS, PLACES, STEPS = 3327, 10, 2048  # of KuaiRec, of a slate, of a rollout


def made(small, n: int = 2, **options):
    return make_vec_env(ENV, n, seed=1, dataset=small, max_len=5, **options)


@pytest.mark.parametrize(
    ("algorithm", "options"), [(SAC, {}), (DQN, {"action_type": "discrete"})], ids=["sac", "dqn"]
)
def test_n_step_returns_take_vectors_alone(small, algorithm, options) -> None:
    """2.9.2, common/off_policy_algorithm.py:193."""
    settings = {"n_steps": 3, "learning_starts": 8, "buffer_size": 50}
    with pytest.raises(AssertionError, match="N-step returns are not supported for Dict"):
        algorithm("MultiInputPolicy", made(small, observation_type="dict", **options), **settings)
    algorithm("MlpPolicy", made(small, **options), **settings).learn(20)


def test_some_slots_never_play_in_evaluate_policy(small) -> None:
    """2.9.2, common/evaluation.py:84: of 8 slots and 5 episodes, slot i plays (5 + i) // 8."""
    played = []

    def note(local: dict, _: dict) -> None:
        if local["done"]:
            played.append(local["i"])

    env = made(small, 8)
    agent = PPO("MlpPolicy", env, n_steps=8, batch_size=8)
    evaluate_policy(agent, env, n_eval_episodes=5, callback=note)
    assert sorted(played) == [3, 4, 5, 6, 7]
    with pytest.raises(ConfigError, match="multiple of the 8 slots, got 5"):
        evaluate(agent, env, sessions=5)
    assert len(evaluate(agent, env, sessions=16).length) == 16


def test_masks_of_slates_fill_a_rollout_buffer(small) -> None:
    """2.9.2, sb3_contrib/common/maskable/buffers.py:75 keeps them as float32."""
    whole = {"observation_type": "state", "action_type": "slate", "slate_size": 4}
    agent = MaskablePPO("MlpPolicy", made(small, **whole), n_steps=16, batch_size=8)
    masks = agent.rollout_buffer.action_masks
    assert masks.dtype == np.float32
    assert masks.nbytes == 16 * 2 * 4 * small.n_items * 4
    assert 4 * STEPS * PLACES * ITEMS == pytest.approx(272e6, rel=0.003)
    one = MaskablePPO("MlpPolicy", made(small, action_type="discrete"), n_steps=16, batch_size=8)
    assert one.rollout_buffer.action_masks.nbytes == masks.nbytes / 4
    assert AGENTS["maskable-ppo"].env_options["action_type"] == "discrete"


def test_heads_that_know_nothing_of_each_other_repeat_items() -> None:
    """45 pairs of 10 heads: 1.3 % of slates, and ln(3327) nats a head."""
    heads = torch.distributions.Categorical(logits=torch.zeros(PLACES, ITEMS))
    torch.manual_seed(0)
    slates = heads.sample((50_000,)).sort(dim=1).values
    share = float((slates[:, 1:] == slates[:, :-1]).any(dim=1).float().mean())
    assert share == pytest.approx(1 - np.prod(1 - np.arange(PLACES) / ITEMS), abs=0.002)
    assert share == pytest.approx(0.0134, abs=0.002)
    entropy = float(heads.entropy().sum())
    assert entropy == pytest.approx(81.1, abs=0.05)
    assert 0.01 * entropy > 0.8  # of a reward that is at most 1
