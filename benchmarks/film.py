"""The ``film`` command: one session of an untrained rule in each environment, as a GIF."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import kuaisim_gym
from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym import KuaiEnv
from kuaisim_gym.rendering import Canvas

RULE = "filter+quota"
SIZE = (900, 480)  # pixels, width and height
COLOURS = 64
MILLISECONDS = (250, 2500)  # of a frame, and of the last one


@dataclass(frozen=True)
class Film:
    """Contents of a GIF.

    Attributes:
        env_id: The environment.
        dataset: Name of a folder of ``--real``, for environments without a synthetic world.
        source: How that folder is read.
        options: Of the environment.
    """

    env_id: str
    dataset: str = ""
    source: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the file, of letters, digits and hyphens."""
        return f"{self.env_id.removesuffix('-v0').lower()}.gif"

    def make(self, real: Path | None) -> KuaiEnv:
        """The environment; test users, whose answers no platform chose."""
        options = dict(self.options)
        if self.dataset:
            assert real is not None
            options["dataset"] = kuaisim_gym.load_dataset(self.source, real / self.dataset)
        env = gym.make(self.env_id, split="test", action_type="slate", **options).unwrapped
        assert isinstance(env, KuaiEnv)
        return env


FILMS = (
    Film("KuaiRec-Fair-v0"),
    Film("KuaiRand-Fair-v0"),
    Film("KuaiRand-Request-v0"),
    Film("KuaiRand-Retention-v0"),
    Film("Recommendation-Fair-v0", "kuairec_real", "kuairec-like"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to")
    parser.add_argument("--seed", type=int, default=1, help="of the session; default: 1")
    parser.add_argument(
        "--real", type=Path, metavar="DIR",
        help="folder with kuairec_real; without it, films of synthetic worlds alone are made",
    )  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """Writes the films and prints their names and sizes."""
    for film in FILMS:
        if film.dataset and options.real is None:
            continue
        path = options.out / film.name
        write_gif(path, frames(film.make(options.real), options.seed))
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def frames(env: KuaiEnv, seed: int) -> list[NDArray[np.uint8]]:
    """Pictures of an episode under the rule, (height, width, 3) each: the start, then each step."""
    rule, canvas = make_reference(RULE, env.batch), Canvas(SIZE)
    observation, _ = env.reset(seed=seed)
    pictures, over = [canvas.draw(env.batch.view(0))], False
    while not over:
        slate = rule.slates(observation)[0]
        observation, _, terminated, truncated, _ = env.step(slate)
        over = terminated or truncated
        pictures.append(canvas.draw(env.batch.view(0)))
    return pictures


def write_gif(path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    """Writes pictures as an endless GIF, with one palette for all of them.

    The last one comes first, for viewers that show a single picture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    palette = Image.fromarray(pictures[-1]).quantize(COLOURS, dither=Image.Dither.NONE)
    images = [
        Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in [pictures[-1], *pictures[:-1]]
    ]
    frame, last = MILLISECONDS
    durations = [last] + [frame] * (len(images) - 1)
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True
    )
