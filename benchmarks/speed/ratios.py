"""Ratios of processor time to an older build's: each case in turns, in processes of their own.

Scorers of the pinned build weigh 33 features of an item, those of today 10: they are faster by that
alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from kuaisim_gym.disk import write_atomically

from .timing import add_out

OLD = "a0088be"  # the pinned build that figures refer to
ROOT = Path(__file__).parents[2]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_VECTOR = """
import gymnasium as gym, kuaisim_gym
def make(actions):
    return gym.make_vec("{env}", num_envs={n}, action_type=actions, engine="{engine}")
try:
    envs = make("{actions}")
except ValueError:  # of a build that calls scorers so
    envs = make("continuous")
envs.reset(seed=1)
chosen = [envs.action_space.sample() for _ in range({steps})]
def work():
    for action in chosen:
        envs.step(action)
work()
"""
_SB3 = """
from dsrm_agents import make_vec_env
envs = make_vec_env("KuaiRec-Fair-v0", 64, seed=1, action_type="{actions}")
envs.reset()
chosen = [[envs.action_space.sample() for _ in range(64)] for _ in range(300)]
def work():
    for action in chosen:
        envs.step(action)
work()
"""
_VECTORS = [
    ("KuaiRec-Fair-v0", n, actions, "auto")
    for n in (64, 1024)
    for actions in ("discrete", "slate", "scorer")
]
_VECTORS += [("KuaiRand-Fair-v0", 1024, "scorer", "auto")]
_VECTORS += [("KuaiRec-Fair-v0", n, "discrete", "numpy") for n in (64, 1024)]
_TRAINING = """
import torch
from dsrm_agents import {names}
from stable_baselines3.common.logger import Logger
torch.set_num_threads(1)
env = make_vec_env("KuaiRec-Fair-v0", {n}, "train", 1, max_len=30,
                   observation_type="dict", action_type="slate")
agent = {agent}
agent.set_logger(Logger(None, []))
agent.learn({warm_up})
def work():
    agent.learn({steps}, reset_num_timesteps=False)
"""
_RANKING = """
import numpy as np
from kuaisim_gym.engine import find_engine
from kuaisim_gym.ranking import Ranker
width = {width} if {width} else (10 if {packs} else 33)
rng, n = np.random.default_rng(0), {n}
ranker = Ranker(rng.standard_normal(({items}, width), dtype=np.float32), find_engine())
users = rng.uniform(-1, 1, (n, width)).astype(np.float32)
shown = rng.integers(0, {items}, (n, 150))
if {packs}:
    flags = np.zeros((n, {items}), dtype=bool)
    flags[np.arange(n)[:, None], shown] = True
    hidden = np.packbits(flags, axis=1, bitorder="little")
    del flags
else:
    hidden = shown.astype(np.int32)
def work():
    for _ in range({times}):
        ranker.best(users, 10, hidden)
work()
"""
_PACKS = "find_spec('kuaisim_gym.engine.bits')"  # older builds take positions of what was shown
# Code by case: what it does before `work` is not timed; a case without `work` is timed as a whole.
CASES = {
    "import": "import dsrm_agents",
    "import and gym.make": """
import gymnasium as gym, dsrm_agents, kuaisim_gym
gym.make("KuaiRec-Fair-v0").reset(seed=1)
""",
    **{
        f"{env.split('-')[0]} {n} {actions}" + (" numpy" if engine == "numpy" else ""): (
            _VECTOR.format(env=env, n=n, actions=actions, engine=engine, steps=19_200 // n)
        )
        for env, n, actions, engine in _VECTORS
    },
    **{f"SB3 64 {actions}": _SB3.format(actions=actions) for actions in ("discrete", "slate")},
    **{
        f"ranking of {items:,}, {kind}": "from importlib.util import find_spec\n"
        + _RANKING.format(items=items, n=n, times=times, width=width, packs=_PACKS)
        for items, n, times in ((100_000, 64, 10), (1_000_000, 64, 1))
        for kind, width in (("33 columns", 33), ("columns in use", 0))
    },
    "gym.make discrete": """
import gymnasium as gym, kuaisim_gym
env = gym.make("KuaiRec-Fair-v0", action_type="discrete")
env.reset(seed=1)
def work():
    for item in range(3000):
        if env.step(item)[2]:
            env.reset()
work()
""",
    "SAC4IR training": _TRAINING.format(
        names="SAC4IR, make_vec_env", n=32, warm_up=4000, steps=1000,
        agent='SAC4IR("SAC4IRPolicy", env, batch_size=64, seed=11)',
    ),
    "HierarchicalPPO training": _TRAINING.format(
        names="HierarchicalPPO, make_vec_env", n=64, warm_up=4000, steps=4000,
        agent='HierarchicalPPO("HierarchicalPolicy", env, seed=11)',
    ),
}  # fmt: skip
_BEFORE = "import time\nstarted = time.process_time()\n"
_AFTER = """
seconds = [time.process_time() - started]
if "work" in globals():
    seconds = []
    for _ in range(5):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
print(sorted(seconds)[len(seconds) // 2])
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser, repeats=5)
    parser.add_argument("--old", default=OLD, help="older build: a commit, a tag, or a wheel")
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), choices=list(CASES), help="what is timed"
    )


def main(options: argparse.Namespace) -> None:
    """Measures, prints the ratios and writes ``ratios.json``."""
    repeats = 1 if options.quick else options.repeats
    with older(options.old) as folder:
        for build in (folder, ROOT):  # worlds and compiled code are kept from here on
            for case in options.cases:
                seconds(case, build)
        ratios = {case: compare(case, folder, repeats) for case in tqdm(options.cases)}
    for case, figures in ratios.items():
        print(f"{case:26s} new / old {figures['ratio']:.3f}")
    machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    report = {
        "study": "speed: ratios",
        "old": options.old,
        "repeats": repeats,
        "machine": machine,
        "ratios": ratios,
    }
    if options.out is None:
        return
    write_atomically(options.out / "ratios.json", (json.dumps(report, indent=1) + "\n").encode())


def compare(case: str, old: Path, repeats: int) -> dict[str, float]:
    """Median processor seconds of both builds, measured in turns, and their ratio."""
    taken: dict[Path, list[float]] = {old: [], ROOT: []}
    for number in range(repeats):
        for build in (old, ROOT) if number % 2 else (ROOT, old):
            taken[build].append(seconds(case, build))
    before, now = (statistics.median(taken[build]) for build in (old, ROOT))
    return {"ratio": now / before, "old_s": before, "new_s": now}


def seconds(case: str, build: Path) -> float:
    """Processor seconds of a case in a new process, with the packages of a folder."""
    done = subprocess.run(
        [sys.executable, "-c", _BEFORE + CASES[case] + _AFTER],
        capture_output=True,
        text=True,
        check=False,
        cwd=build,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(build)},
    )
    if done.returncode:
        raise RuntimeError(f"{case} failed with the packages of {build}:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


@contextmanager
def older(build: str) -> Iterator[Path]:
    """A folder with the packages of a commit, a tag or a wheel, until the block ends."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if build.endswith(".whl"):
            with zipfile.ZipFile(build) as wheel:
                wheel.extractall(folder)
        else:
            packed = subprocess.run(
                ["git", "archive", "--format=tar", build, "kuaisim_gym", "dsrm_agents"],
                cwd=ROOT,
                capture_output=True,
                check=True,
            )
            subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
        yield folder
