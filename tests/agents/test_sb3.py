"""Stable-Baselines3's own algorithms train on the environment as they are."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from dsrm_agents import make_vec_env

ON_POLICY = {"n_steps": 16}
OFF_POLICY = {"learning_starts": 16, "buffer_size": 500, "batch_size": 16}


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (PPO, ON_POLICY | {"batch_size": 32}),
        (A2C, ON_POLICY),
        (SAC, OFF_POLICY),
        (TD3, OFF_POLICY),
        (DDPG, OFF_POLICY),
    ],
)
@pytest.mark.parametrize("shell", ["single", "vectorised"])
def test_it_trains_saves_loads_and_goes_on(
    small, tmp_path, algorithm: type[BaseAlgorithm], options: dict, shell: str
) -> None:
    if shell == "single":
        env = gym.make("KuaiRec-Fair-v0", dataset=small)
    else:
        env = make_vec_env("KuaiRec-Fair-v0", 4, dataset=small)
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", **options).learn(64)
    observation = model.get_env().reset()
    before, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env, device="cpu")
    np.testing.assert_array_equal(before, loaded.predict(observation, deterministic=True)[0])
    loaded.learn(32, reset_num_timesteps=False)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_slates_and_dicts_train_too(algorithm: type[BaseAlgorithm]) -> None:
    # MultiDiscrete heads are as wide as the catalogue times the slate: keep both small.
    from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec

    config = SyntheticConfig(n_users=40, n_test_users=5, n_items=60, events_per_user=10)
    env = make_vec_env(
        "KuaiRec-Fair-v0",
        4,
        dataset=synthetic_kuairec(1, config),
        observation_type="dict",
        action_type="slate",
        slate_size=4,
        max_len=8,
    )
    algorithm("MultiInputPolicy", env, n_steps=8, device="cpu").learn(32)


def test_the_usual_wrappers_work(small) -> None:
    env = VecNormalize(VecMonitor(make_vec_env("KuaiRec-Fair-v0", 4, dataset=small, max_len=6)))
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu").learn(128)
    assert 2 <= model.ep_info_buffer[0]["l"] <= 6


def test_ppo_learns_what_a_linear_scorer_can(small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 32, seed=0, dataset=small, abandonment="none")
    model = PPO(
        "MlpPolicy", env, n_steps=32, batch_size=256, learning_rate=3e-3, gamma=0.5, seed=0,
        device="cpu",
    )  # fmt: skip

    def mean_reward() -> float:
        check = make_vec_env("KuaiRec-Fair-v0", 100, seed=9, dataset=small, abandonment="none")
        observation, total = check.reset(), 0.0
        for _ in range(10):
            observation, reward, _, _ = check.step(
                model.predict(observation, deterministic=True)[0]
            )
            total += float(reward.mean()) / 10
        return total

    before = mean_reward()
    model.learn(16_000)
    assert mean_reward() > before + 0.05
