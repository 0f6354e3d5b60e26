"""PPO on default options: ``python -m benchmarks.examples.first_hour``, half a minute a seed."""

import time
from typing import Any

import torch
from stable_baselines3 import PPO

from dsrm_agents import evaluate, make_vec_env


def run(seed: int, points: int = 20, sessions: int = 1000, **options: Any) -> None:
    """Trains for 10,240 steps a point; prints test sessions before and after, and the curve."""
    train = make_vec_env("KuaiRec-Fair-v0", n_envs=64, split="train", seed=seed, **options)
    test = make_vec_env("KuaiRec-Fair-v0", n_envs=500, split="test", seed=seed, **options)
    agent = PPO("MlpPolicy", train, n_steps=32, batch_size=256, seed=seed, device="cpu")
    print(f"seed {seed}: test Len {evaluate(agent, test, sessions).length.mean():.2f} untrained")
    started = time.process_time()
    for _ in range(points):
        agent.learn(10_240, reset_num_timesteps=False)
        lengths = [episode["l"] for episode in agent.ep_info_buffer or ()]
        print(f"{sum(lengths) / len(lengths):.1f}", end=" ", flush=True)
    print(f"ep_len_mean, {time.process_time() - started:.0f} s")
    print(f"seed {seed}: test Len {evaluate(agent, test, sessions).length.mean():.2f} trained")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in (11, 15, 19):
        run(chosen)
