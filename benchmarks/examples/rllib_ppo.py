"""PPO of Ray RLlib (new API stack), trained on the train and evaluated on the test simulator.

RLlib pins Gymnasium 1.2.2, which the environments support as well. All other extras are tested with
a later version, so RLlib has its own extra and needs its own virtual environment:

    python -m venv .rllib
    .rllib/bin/pip install -e ".[rllib]"
    .rllib/bin/python -m benchmarks.examples.rllib_ppo --iterations 80

RLlib uses the native vector environment: it passes ``num_envs`` to the environment creator.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium as gym
import ray
import torch
from gymnasium.vector import VectorEnv
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import register_env

ENV_ID = "KuaiRec-Fair-v0"


def make_envs(options: dict[str, Any]) -> VectorEnv:
    """Makes ``options["num_envs"]`` parallel sessions."""
    import kuaisim_gym  # noqa: F401  # registers the ids, in a worker process too

    return gym.make_vec(ENV_ID, **options)


def config(env_runners: int, seed: int, test_sessions: int, **options: Any) -> PPOConfig:
    """The algorithm's settings.

    Args:
        env_runners: Worker processes that collect; with 0, the learner's process collects.
        seed: Seed of users, answers, weights and exploration.
        test_sessions: Sessions of an evaluation.
        **options: Options of the environment, such as ``max_len``.
    """
    register_env(ENV_ID, make_envs)
    return (
        PPOConfig()
        .environment(ENV_ID, env_config={**options, "split": "train"})
        .env_runners(
            num_env_runners=env_runners,
            num_envs_per_env_runner=64,
            gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT,
        )
        .training(
            gamma=0.95, lambda_=0.95, lr=1e-3, train_batch_size_per_learner=2048,
            minibatch_size=256, num_epochs=8, clip_param=0.2, vf_clip_param=float("inf"),
            use_kl_loss=False, grad_clip=0.5,
        )
        .rl_module(
            model_config=DefaultModelConfig(
                fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False
            )
        )
        .evaluation(
            evaluation_duration=test_sessions,  # episodes
            evaluation_config=AlgorithmConfig.overrides(
                explore=False,
                env_config={**options, "split": "test"},
                metrics_num_episodes_for_smoothing=test_sessions,  # the mean is over all of them
            ),
        )
        .debugging(seed=seed)
    )  # fmt: skip


def run(
    iterations: int, env_runners: int = 0, seed: int = 11, test_sessions: int = 500, **options: Any
) -> tuple[list[float], float]:
    """Trains, then evaluates.

    Returns:
        Mean lengths of recent sessions after each iteration, and the mean length of the test
        sessions, which are the first to end: short sessions are over-represented.
    """
    algorithm = config(env_runners, seed, test_sessions, **options).build_algo()
    curve = []
    for _ in range(iterations):
        curve.append(float(algorithm.train()["env_runners"]["episode_len_mean"]))
        print(f"iteration {len(curve):>3}: train Len {curve[-1]:.2f}")
    test = float(algorithm.evaluate()["env_runners"]["episode_len_mean"])
    algorithm.stop()
    return curve, test


def main(arguments: list[str] | None = None) -> None:
    """Trains and prints the mean session length on the test simulator."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.examples.rllib_ppo")
    parser.add_argument("--iterations", type=int, default=80, help="of 2,048 steps each")
    parser.add_argument("--env-runners", type=int, default=0, help="worker processes")
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # networks this small are slower on several
    ray.init(include_dashboard=False)
    _, test = run(args.iterations, args.env_runners, args.seed)
    print(f"test Len {test:.2f}")


if __name__ == "__main__":
    main()
