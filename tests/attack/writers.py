"""Everything that writes on a disk, in its smallest size: what the attacks on disks and lives try.

A writer takes a folder, and writes into it alone. It may read :func:`files`, results of runs, which
are there beforehand.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO

import kuaisim_gym
from benchmarks.__main__ import main
from dsrm_agents import TrainingCheckpoint, export_onnx, fit_dsrm, fit_encoder, make_vec_env
from dsrm_agents.hsrl.codebook import Codebook
from kuaisim_gym.data import Dataset, write_csv
from kuaisim_gym.data.synthetic import (
    KuaiRandConfig,
    SyntheticConfig,
    synthetic_kuairand,
    synthetic_kuairec,
)
from kuaisim_gym.simulator.response import FactorModel
from tests.attack.forks import contents, in_child

ENV = "KuaiRec-Fair-v0"
SESSIONS = ("--max-len", "4", "--sessions", "8", "--seed", "3")
SIZES = (*SESSIONS, "--episodes", "8")

Write = Callable[[Path], object]


@dataclass(frozen=True)
class Writer:
    """A piece of work that ends in files.

    Attributes:
        write: Writes into a folder; returns an exit status if it is a command.
        needs: Make what it uses, once and before it is forked.
        prepare: Puts into the folder what it reads there.
        limited: Whether a limit of its files' sizes may be tried: HDF5 does not survive one.
        same: Whether two calls give the same bytes; results hold seconds and processor seconds.
        once: Whether it refuses to write what is there already, and whole.
        optional: Whether it may go on without its files, as those who keep a cache do.
    """

    write: Write
    needs: tuple[Callable[[], object], ...] = ()
    prepare: Write = lambda folder: folder.mkdir(parents=True, exist_ok=True)
    limited: bool = True
    same: bool = True
    once: bool = False
    optional: bool = False


@cache
def world() -> Dataset:
    """A small KuaiRec world."""
    return synthetic_kuairec(
        seed=3,
        config=SyntheticConfig(
            n_users=60, n_test_users=20, n_items=80, events_per_user=20, n_categories=6
        ),
    )


@cache
def rand_world() -> Dataset:
    """A small KuaiRand world."""
    return synthetic_kuairand(
        seed=3,
        config=KuaiRandConfig(
            n_users=60, n_items=80, n_categories=6, logged_per_user=20, random_per_user=15
        ),
    )


@cache
def large_world() -> Dataset:
    """One that takes a while to write."""
    config = SyntheticConfig(n_users=1500, n_test_users=100, n_items=400, events_per_user=100)
    return synthetic_kuairec(seed=3, config=config)


@cache
def home() -> Path:
    """A folder of this process for what is made once; it goes with the process."""
    folder = Path(mkdtemp(prefix="kuaisim-attack-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def files() -> Path:
    """The small world as published files."""
    return published(world(), home() / "csv")


@cache
def large_files() -> Path:
    """The large world as published files."""
    return published(large_world(), home() / "large")


def published(dataset: Dataset, folder: Path) -> Path:
    """Writes files as if long ago: digests of those that have just changed are not kept."""
    write_csv(dataset, folder)
    for file in folder.iterdir():
        os.utime(file, (1e9, 1e9))
    return folder


@cache
def runs() -> Path:
    """Results of two runs, with kept agents."""
    for agent in ("ppo", "random"):
        command("train", agent, *SIZES, "--out", str(home() / "runs"))
    return home() / "runs"


def run_of(folder: Path) -> None:
    """Copies the runs into a folder."""
    shutil.copytree(runs(), folder, dirs_exist_ok=True)


def command(*arguments: str) -> int:
    """A command of ``kuaisim`` on the small world, where it takes one."""
    takes_data = arguments[0] in ("train", "suite", "tune", "datasets", "play")
    data = ("--dataset", f"kuairec={files()}") if takes_data else ()
    return main([*arguments, *data])


@cache
def model() -> PPO:
    """An agent that has learned nothing."""
    env = make_vec_env(ENV, 4, dataset=world(), max_len=4, seed=1)
    return PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=1, device="cpu")


@cache
def purifier() -> Any:
    return fit_dsrm(world(), updates=3, sessions=16, seed=1, progress=False)


@cache
def encoder() -> Any:
    return fit_encoder(world(), updates=3, progress=False)


@cache
def codebook() -> Codebook:
    points = np.random.default_rng(0).standard_normal((40, 4), dtype=np.float32)
    return Codebook.fit(points, seed=0)


@cache
def factors() -> FactorModel:
    """A response model."""
    return gym.make(ENV, dataset=world()).unwrapped.batch.simulator.model


@cache
def control(writer: Writer) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What is in a writer's folder before and after it has worked undisturbed."""
    for need in writer.needs:
        need()
    with TemporaryDirectory(dir=home()) as parent:
        folder = Path(parent) / "work"
        writer.prepare(folder)
        before = contents(folder)
        ending = in_child(lambda: writer.write(folder))
        if ending.status:
            raise RuntimeError(f"It fails where nothing disturbs it:\n{ending.text}")
        return before, contents(folder)


def difference(writer: Writer, folder: Path) -> str | None:
    """How a folder differs from what a writer leaves there undisturbed, if it does."""
    expected, found = (
        {timeless(file): content for file, content in files.items()}
        for files in (control(writer)[1], contents(folder))
    )
    more, fewer = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
    if more or (fewer and not writer.optional):  # a cache keeps only what was asked for
        return f"there are {more} and not {fewer}"
    changed = [file for file in found if expected[file] != found[file]]
    return f"{changed} differ" if changed and writer.same else None


def repeated(writer: Writer, folder: Path) -> str | None:
    """What is wrong after work that ended badly is done again, if anything is."""
    ending = in_child(lambda: writer.write(folder))
    different = difference(writer, folder)
    if ending.status and (different or not writer.once):
        return f"repeated: status {ending.status}: {ending.text[-1500:]}"
    return different and f"repeated: {different}"


def timeless(file: str) -> str:
    """A file's name without the time that TensorBoard puts into it."""
    return re.sub(r"(tfevents)\..*", r"\1", file)


def checkpoint(folder: Path) -> None:
    """A training that keeps its progress, from its own seed on."""
    model.__wrapped__().learn(4 * 8 * 3, TrainingCheckpoint(folder / "training.pt", every=1))


def fitting(folder: Path, updates: int = 40) -> None:
    """A fit that keeps its progress, and its result."""
    progress = folder / "fit.progress"
    fit_dsrm(
        world(), updates=updates, sessions=16, seed=1, progress=False,
        checkpoint=progress,
    ).save(folder / "dsrm.safetensors")  # fmt: skip


def minari(folder: Path, dataset: Callable[[], Dataset] = world, users: int = 50) -> None:
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    source = dataset()
    env = gym.make(ENV, dataset=source)
    kuaisim_gym.write_minari(
        "log/kuairec-v0",
        kuaisim_gym.logged_episodes(source, users=source.train_users[:users]),
        dataset=source,
        observation_space=env.observation_space,
        action_space=gym.spaces.Discrete(source.n_items),
    )


def cache_of(folder: Path, source: Callable[[], Path] = files) -> None:
    """Reads published files and builds a simulator, with the folder as the cache."""
    os.environ["KUAISIM_CACHE"] = str(folder)
    dataset = kuaisim_gym.load_dataset("kuairec", source())
    gym.make(ENV, dataset=dataset).reset(seed=1)


def to(*arguments: str) -> Write:
    """A command that takes its folder as its last word."""
    return lambda folder: command(*arguments, str(folder))


WRITERS = {
    "codebook": Writer(lambda folder: codebook().save(folder / "book.safetensors"), (codebook,)),
    "purifier": Writer(lambda folder: purifier().save(folder / "dsrm.safetensors"), (purifier,)),
    "encoder": Writer(lambda folder: encoder().save(folder / "encoder.safetensors"), (encoder,)),
    "factor model": Writer(lambda folder: factors().save(folder / "it.safetensors"), (factors,)),
    "training checkpoint": Writer(checkpoint, (model,)),
    "fit with progress": Writer(fitting, (world,)),
    "write_csv, kuairec": Writer(lambda folder: write_csv(world(), folder / "csv"), (world,)),
    "write_csv, kuairand": Writer(
        lambda folder: write_csv(rand_world(), folder / "csv"), (rand_world,)
    ),
    "Minari": Writer(minari, (world,), limited=False),
    "export_onnx": Writer(lambda folder: export_onnx(model(), folder), (model,)),
    "cache": Writer(cache_of, (files,), optional=True),
    "train random": Writer(to("train", "random", *SIZES, "--out"), (files,), same=False),
    "train ppo": Writer(to("train", "ppo", *SIZES, "--out"), (files,), same=False),
    "train, TensorBoard": Writer(
        lambda folder: command(
            "train", "ppo", *SIZES, "--out", str(folder), "--tensorboard", str(folder / "log")
        ),
        (files,),
        same=False,
    ),
    "suite": Writer(
        to(
            "suite", "--agents", "random", "popularity", "--max-len", "4", "--seeds", "1", "2",
            "--sessions", "8", "--episodes", "8", "--jobs", "1", "--out",
        ),
        (files,),
        same=False,
    ),
    "tune": Writer(to("tune", "a2c", *SIZES, "--trials", "2", "--out"), (files,), same=False),
    "plot": Writer(to("plot"), (runs,), run_of),
    "stability": Writer(to("stability"), (runs,), run_of),
    "report": Writer(to("report"), (runs,), run_of),
    "report --html": Writer(
        lambda folder: command("report", str(runs()), "--html", str(folder / "page.html")),
        (runs,),
        same=False,
    ),
    "datasets": Writer(to("datasets", "--out"), (files,), same=False),
    "play --out": Writer(
        lambda folder: command("play", "popularity", *SESSIONS, "--out", str(folder / "film.gif")),
        (files,),
    ),
}  # fmt: skip
