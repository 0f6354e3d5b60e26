"""The ``play`` command: sessions of an agent, step by step, as text or as pictures."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kuaisim_gym.disk import check_writable, write_atomically
from kuaisim_gym.envs.shared import RENDER_FPS
from kuaisim_gym.errors import ConfigError

from ..commands import count, place
from .evaluate import add_player_arguments, find_player
from .judging import first_test_seed
from .players import Player
from .settings import SLOTS

COLOURS = 64  # of moving pictures
LAST = 2500  # milliseconds of their last frame


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_player_arguments(parser)
    add = parser.add_argument
    add("--sessions", type=count, default=1, metavar="N", help="sessions to show")
    add("--out", type=place, metavar="FILE.gif", help="moving pictures; default: text is printed")
    add("--fps", type=count, default=RENDER_FPS, metavar="N", help="steps a second of the pictures")


def main(options: argparse.Namespace) -> None:
    """Prints the sessions, or draws them into one file."""
    if options.out is not None and options.out.suffix != ".gif":
        raise ConfigError(f"--out must name a file that ends in .gif, got {options.out}.")
    if options.out is not None:
        check_writable(options.out)
    player = find_player(options)
    if options.out is None:
        for session in replays(player, options.split):
            *_, text = session
            print(text, end="\n\n")
        return
    sessions = replays(player, options.split, "rgb_array")
    write_gif(options.out, [frame for session in sessions for frame in session], options.fps)
    print(options.out)


def write_gif(path: Path, frames: list[NDArray[np.uint8]], fps: int) -> None:
    """Writes an endless GIF with one palette for all frames, which makes small files.

    The last frame comes first and stays, for viewers that show a single one.

    Args:
        path: The file.
        frames: (height, width, 3) each.
        fps: Frames a second.
    """
    plain = Image.Dither.NONE
    palette = Image.fromarray(frames[-1]).quantize(COLOURS, dither=plain)
    first, *others = (
        Image.fromarray(frame).quantize(palette=palette, dither=plain)
        for frame in [frames[-1], *frames[:-1]]
    )
    durations = [LAST, *(1000 // fps for _ in others)]
    content = io.BytesIO()
    first.save(
        content, "GIF", save_all=True, append_images=others, duration=durations, loop=0,
        optimize=True,
    )  # fmt: skip
    write_atomically(path, content.getvalue())


def replays(
    player: Player, split: str = "test", render_mode: str = "ansi"
) -> Iterator[Iterator[Any]]:
    """Plays the sessions of an agent all at once, then shows each of them step by step.

    Slates are all that a session depends on, beside its seed: the agent's observations and
    actions, and wrappers in between, are not needed for the second time.

    Args:
        player: The agent, for at most 1,000 sessions.
        split: ``"test"`` or ``"train"``.
        render_mode: ``"ansi"`` or ``"rgb_array"``.

    Yields:
        Texts or frames of a session, one for each step.

    Raises:
        ConfigError: There are more sessions than play at once.
    """
    spec = player.spec
    if spec.sessions > SLOTS:
        raise ConfigError(f"At most {SLOTS} sessions are shown, got {spec.sessions}.")
    sessions = player.play(split).sessions
    slates = [each[:steps] for each, steps in zip(sessions.slates, sessions.length, strict=True)]
    visits = len(slates) // spec.sessions  # sessions of one user, where users come back
    options: dict[str, Any] = {"dataset": player.dataset, "split": split, **spec.session_options}
    if player.agent.env_options.get("action_type") == "discrete":
        options["slate_size"] = 1
    env = gym.make(spec.env, action_type="slate", render_mode=render_mode, **options)
    for number in range(spec.sessions):
        shown = np.concatenate(slates[number * visits : (number + 1) * visits])
        yield _replay(env, shown, first_test_seed(spec) + number)
    env.close()


def _replay(env: gym.Env[Any, Any], slates: NDArray[np.int32], seed: int) -> Iterator[Any]:
    """Shows slates to the user of a seed, and what is seen after each of them."""
    env.reset(seed=seed)
    for slate in slates:
        env.step(slate)
        yield env.render()
