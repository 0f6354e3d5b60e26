#!/usr/bin/env bash
# Gymnasium's NumpyToTorch fails at the first end of an episode under autoreset mode SAME_STEP.
#
# Behaviour: `NumpyToTorch` and `JaxToTorch` convert the infos of a vector environment, too. Under
# SAME_STEP these hold the last observations of ended episodes in an array of objects,
# `infos["final_obs"]`, which DLPack does not know: "BufferError: DLPack only supports
# signed/unsigned integers, float and complex dtypes". All goes well until an episode ends, and
# always under NEXT_STEP. An array of texts in an info fails in the same way, at once.
#
# Since: seen in Gymnasium 1.4.0, with PyTorch 2.13.0; both wrappers and the mode are its own.
#
# Matters: SAME_STEP is the mode in which no step is lost, and a PyTorch trainer of sessions that
# are longer than its smoke test fails in the middle of a run. Use NEXT_STEP and leave out the
# steps that reset, or convert observations and rewards by hand.
#
# Source: gymnasium/wrappers/array_conversion.py:145 (`xp.from_dlpack`, whatever the dtype) and
# gymnasium/vector/vector_env.py:308 (final observations in an array of objects).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    gymnasium==1.4.0 numpy==2.4.6 torch==2.13.0 array-api-compat==1.16.0 packaging==26.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import NumpyToTorch


def outcome(mode):
    """What stops 60 steps that always push to the right, and after how many."""
    envs = gym.make_vec(
        "CartPole-v1", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}
    )
    envs = NumpyToTorch(envs)
    envs.reset(seed=1)
    for step in range(60):
        try:
            envs.step(torch.ones(2, dtype=torch.int64))
        except BufferError as error:
            return f"step {step + 1}: BufferError: {error}"
    return "works"


seen = {mode.name: outcome(mode) for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)}
print("gymnasium", gym.__version__, "torch", torch.__version__)
print("expected:", dict.fromkeys(seen, "works"))
print("seen:", seen)
assert seen["NEXT_STEP"] == "works"
assert seen["SAME_STEP"].startswith("step 9: BufferError: DLPack only supports")
CODE
