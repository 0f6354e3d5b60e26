"""Installs each extra alone into a new environment, and does there what the pages promise of it.

    python tests/check_extras.py [NAME ...] [--folder DIR]    # or: make extras-check

It takes minutes, the network and gigabytes, so that the test suite leaves it out. Nothing of the
clone can be imported where an extra is tried; ``--folder`` keeps the environments.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.clients.__main__ import build  # noqa: E402
from tests.check_package import say  # noqa: E402

WORLD = """
import gymnasium as gym
import numpy as np
import kuaisim_gym
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec

small = synthetic_kuairec(1, SyntheticConfig(
    n_users=60, n_test_users=15, n_items=80, events_per_user=20, n_categories=4
))
env_id = "KuaiRec-Fair-v0"
"""
PLAYED = """
env = gym.make(env_id, dataset=small, **options)
env.reset(seed=1)
env.action_space.seed(1)
for _ in range(3):
    env.step(env.action_space.sample())
"""
TRAINED = """
from stable_baselines3 import PPO
from dsrm_agents import evaluate, make_vec_env

train = make_vec_env(env_id, 4, "train", seed=1, dataset=small)
agent = PPO("MlpPolicy", train, n_steps=8, batch_size=32, seed=1).learn(64)
assert len(evaluate(agent, make_vec_env(env_id, 4, "test", seed=2, dataset=small), 8).length) == 8
"""
PROGRAMS = {  # by extra; "" is the package without any
    "": f"options = {{'render_mode': 'ansi'}}{PLAYED}assert 'step' in env.render()",
    "fast": f"options = {{'engine': 'numba'}}{PLAYED}",
    "render": f"options = {{'render_mode': 'rgb_array'}}{PLAYED}assert env.render().ndim == 3",
    "agents": TRAINED,
    "minari": """
import os
os.environ["MINARI_DATASETS_PATH"] = os.getcwd()
from itertools import islice

env = gym.make(env_id, dataset=small, action_type="discrete")
for form in ("hdf5", "arrow", "parquet"):
    episodes = list(islice(kuaisim_gym.logged_episodes(small, users=small.train_users[:5]), 10))
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    stored = kuaisim_gym.write_minari(
        f"{form}-v0", episodes, dataset=small, data_format=form, **spaces
    )
    for read, episode in zip(stored, episodes, strict=True):
        np.testing.assert_array_equal(read.observations, episode.observations)
        np.testing.assert_array_equal(read.rewards, episode.rewards)
""",
    "onnx": f"""{TRAINED}
import onnxruntime
from dsrm_agents import export_onnx

path = export_onnx(agent, "graphs")["policy"]
graph = onnxruntime.InferenceSession(path)
assert graph.get_inputs()[0].name
""",
    "ray": """
import ray
ray.init("local", num_cpus=1, include_dashboard=False)  # not a cluster that runs here
play = ray.remote(lambda: gym.make(env_id, dataset=small, engine="numpy").reset(seed=1)[0])
observation = gym.make(env_id, dataset=small, engine="numpy").reset(seed=1)[0]
np.testing.assert_array_equal(ray.get(play.remote()), observation)
""",
    "rllib": """
import runpy, sys
sys.argv = ["rllib_ppo", "--iterations", "1"]
runpy.run_module("kuaisim_benchmarks.examples.rllib_ppo", run_name="__main__")
""",
    "bench": """
from kuaisim_benchmarks.__main__ import main
settings = ["--max-len", "5", "--seeds", "11", "--sessions", "50", "--jobs", "1"]
assert main(["suite", "--agents", "random", "quality+quota", *settings, "--out", "results"]) == 0
assert main(["plot", "results"]) == 0 == main(["table", "results"])
""",
    "bench,ray": """
from kuaisim_benchmarks.__main__ import main
settings = ["--max-len", "5", "--seeds", "11", "--sessions", "50", "--jobs", "1"]
assert main(["suite", "--agents", "random", *settings, "--backend", "ray", "--out", "results"]) == 0
""",
    "docs": "",
    "test": "",
}  # fmt: skip
COMMANDS = {  # further ones, in a copy of the sources
    "docs": "-m sphinx -W --keep-going -n -q docs site",
    "test": "-m pytest -q -p no:cacheprovider tests/test_tensors.py tests/test_config.py",
}
WITHOUT_CONSTRAINTS = ("rllib",)  # it pins another Gymnasium
SOURCES = ("benchmarks", "docs", "dsrm_agents", "findings", "kuaisim_gym", "tests", "CHANGELOG.md",
           "CONTRIBUTING.md", "README.md", "setup.cfg")  # fmt: skip


def check(extra: str, wheel: Path, folder: Path) -> str | None:
    """Installs an extra, and runs its program.

    Args:
        extra: A key of ``PROGRAMS``.
        wheel: This package.
        folder: Place of the virtual environment, which is made where there is none.

    Returns:
        ``None``, or the end of the output of the command that failed.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pinned = [] if extra in WITHOUT_CONSTRAINTS else ["-c", str(ROOT / "constraints.txt")]
    install = ["-m", "pip", "install", "--quiet", *pinned]
    with tempfile.TemporaryDirectory() as work:
        commands = [
            [*install, f"{wheel}[{extra}]" if extra else str(wheel)],
            [*install, "--no-deps", "--force-reinstall", str(wheel)],
        ]
        if PROGRAMS[extra]:
            commands.append(["-I", "-c", WORLD + PROGRAMS[extra]])
        if extra in COMMANDS:
            for name in SOURCES:
                (Path(work) / name).symlink_to(ROOT / name)
            commands.append(COMMANDS[extra].split())
        for words in commands:
            done = subprocess.run(
                [str(python), *words], cwd=work, check=False, capture_output=True, text=True
            )
            if done.returncode:
                return "\n".join((done.stdout + done.stderr).splitlines()[-20:])
    return None


def main() -> int:
    """Checks extras one after another, and prints a line for each; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of an extra; all of them")
    parser.add_argument("--folder", type=Path, help="keeps the virtual environments there")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - PROGRAMS.keys()):
        parser.error(f"NAME must be one of {', '.join(PROGRAMS)}, got {', '.join(unknown)}")
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        wheel = build(Path(temporary))
        for extra in options.names or PROGRAMS:
            begin = time.monotonic()
            place = (options.folder or Path(temporary)) / (extra.replace(",", "+") or "none")
            failure = check(extra, wheel, place.resolve())
            verdict = "works" if failure is None else "FAILS"
            say(f"[{extra}]: {verdict}, {time.monotonic() - begin:.0f} s")
            if failure is not None:
                say(failure)
                failures += 1
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
