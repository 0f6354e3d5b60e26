# /// script
# dependencies = [
#     "rl_zoo3==2.9.2", "stable-baselines3==2.9.2", "sb3-contrib==2.9.2", "torch==2.13.0",
# ]
# ///
"""RL Baselines3 Zoo: training and playing an id of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SETTINGS = """
KuaiRec-Fair-v0:
  n_timesteps: !!float 128
  policy: MlpPolicy
  n_envs: 2
  n_steps: 32
  batch_size: 32
"""
Path("ppo.yml").write_text(SETTINGS, encoding="utf-8")
COMMON = ["--algo", "ppo", "--env", "KuaiRec-Fair-v0", "--gym-packages", "kuaisim_gym"]
for arguments in (
    ["rl_zoo3.train", *COMMON, "-f", "logs", "-conf", "ppo.yml", "--eval-freq", "64"],
    ["rl_zoo3.enjoy", *COMMON, "-f", "logs", "-n", "40", "--no-render"],
):
    subprocess.run([sys.executable, "-I", "-m", *arguments], check=True)
assert list(Path("logs/ppo").glob("KuaiRec-Fair-v0_1/KuaiRec-Fair-v0.zip"))
