# /// script
# dependencies = ["ray[rllib]==2.60.0", "torch==2.13.0", "gymnasium==1.2.2"]
#
# [tool.clients]
# constraints = false  # it wants an earlier Gymnasium
# ///
"""Ray RLlib: PPO on the id, on the native vector environment, and the example of the benchmark."""

from __future__ import annotations

import gymnasium as gym
import ray
from kuaisim_benchmarks.examples import rllib_ppo
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env


def make_env(options):
    """Makes one environment, in whichever process."""
    import kuaisim_gym  # noqa: F401  # registers the ids

    return gym.make("KuaiRec-Fair-v0", max_len=5, **options)


def make_envs(options):
    """Makes the native vector environment of ``options["num_envs"]``."""
    import kuaisim_gym  # noqa: F401  # registers the ids

    return gym.make_vec("KuaiRec-Fair-v0", max_len=5, **options)


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
register_env("single", make_env)
register_env("native", make_envs)
MODES = {"single": gym.VectorizeMode.SYNC, "native": gym.VectorizeMode.VECTOR_ENTRY_POINT}
for name, mode in MODES.items():
    config = (
        PPOConfig()
        .environment(name)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4, gym_env_vectorize_mode=mode)
        .training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1)
    )
    algorithm = config.build_algo()
    result = algorithm.train()["env_runners"]
    assert 1 <= result["episode_len_mean"] <= 5
    algorithm.stop()
lengths, test_length = rllib_ppo.run(1, test_sessions=4, max_len=5)
assert all(1 <= length <= 5 for length in (*lengths, test_length))
ray.shutdown()
