"""Gymnasium's wrappers around vector environments, tried in each way that sessions are replaced.

    python -m benchmarks.wrappers docs/wrappers.md    # renews the page's table

A wrapper works if sessions can be played over several ends behind it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers as of_one
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import vector

import kuaisim_gym  # noqa: F401  # registers the ids
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.disk import write_atomically

from .formatting import markdown_table

AnyVector = VectorEnv[Any, Any, Any]

ENV_ID = "KuaiRec-Fair-v0"
N_ENVS, MAX_LEN, STEPS = 3, 4, 12
MARK, END = "<!-- wrappers -->", "<!-- /wrappers -->"


def native(options: dict[str, Any], **arguments: Any) -> AnyVector:
    """The vector environment that an id has of its own, or another one on request."""
    return gym.make_vec(ENV_ID, num_envs=N_ENVS, max_len=MAX_LEN, **options, **arguments)


def sync_of_wrapped(options: dict[str, Any]) -> AnyVector:
    """Gymnasium's vector environment of single ones, each behind a wrapper."""
    options = dict(options)
    mode = {"autoreset_mode": options.pop("autoreset_mode")}
    inner = [of_one.RecordEpisodeStatistics]
    return native(options, wrappers=inner, vectorization_mode="sync", vector_kwargs=mode)


def around(wrapper: Callable[[AnyVector], Any], options: dict[str, Any]) -> Any:
    """A wrapper of vector environments around the native one."""
    return wrapper(native(options))


WRAPPERS: dict[str, Callable[[AnyVector], Any]] = {
    "RecordEpisodeStatistics": vector.RecordEpisodeStatistics,
    "DictInfoToList": vector.DictInfoToList,
    "ClipReward": partial(vector.ClipReward, min_reward=0.0, max_reward=0.5),
    "TransformReward": partial(vector.TransformReward, func=np.sqrt),
    "NormalizeReward": vector.NormalizeReward,
    "ClipAction": vector.ClipAction,
    "RescaleAction": partial(vector.RescaleAction, min_action=0.0, max_action=1.0),
    "TransformObservation": partial(vector.TransformObservation, func=lambda arrays: arrays),
    "FlattenObservation": vector.FlattenObservation,
    "NormalizeObservation": vector.NormalizeObservation,
}
WAYS: dict[str, Callable[[dict[str, Any]], Any]] = {  # rows: make an environment of its options
    "no wrapper": native,
    "`make_vec(id, wrappers=[...])`": partial(native, wrappers=[of_one.RecordEpisodeStatistics]),
    'the same with `vectorization_mode="sync"`': sync_of_wrapped,
    **{f"`{name}`": partial(around, wrapper) for name, wrapper in WRAPPERS.items()},
}
CASES: dict[str, dict[str, Any]] = {  # columns: options of make_vec
    **{f"`{mode.name}`": {"autoreset_mode": mode} for mode in AutoresetMode},
    '`NEXT_STEP`, `"dict"`': {
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "observation_type": "dict",
    },
}


def table() -> str:
    """The verdicts, by way of wrapping and by mode."""
    config = SyntheticConfig(
        n_users=60, n_test_users=15, n_items=80, events_per_user=20, n_categories=4
    )
    dataset = synthetic_kuairec(3, config)
    rows = [
        [name, *(verdict(way, dataset, options) for options in CASES.values())]
        for name, way in WAYS.items()
    ]
    return markdown_table(["", *CASES], rows, "l" * (1 + len(CASES)))


def verdict(way: Callable[[dict[str, Any]], Any], dataset: Dataset, options: dict[str, Any]) -> str:
    """Plays sessions: ``"yes"``, or the name of the error that a user would get."""
    try:
        env = way(options | {"dataset": dataset})
    except Exception as error:  # of any kind: the table is about them
        return f"refused (`{type(error).__name__}`)"
    try:
        return "yes" if ends_of(env, options["autoreset_mode"]) >= N_ENVS else "plays no end"
    except Exception as error:
        return f"fails (`{type(error).__name__}`)"


def ends_of(env: Any, mode: AutoresetMode) -> int:
    """Plays steps of drawn actions; the number of sessions that ended."""
    env.reset(seed=1)
    env.action_space.seed(1)
    over, ends = np.zeros(N_ENVS, dtype=bool), 0
    for _ in range(STEPS):
        if mode is AutoresetMode.DISABLED and over.any():
            env.reset(options={"reset_mask": over})
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        if observation not in env.observation_space or not np.isfinite(reward).all():
            raise ValueError("observations leave their space, or rewards are not finite")
        over = terminated | truncated
        ends += int(over.sum())
    return ends


def main(page: Path) -> None:
    """Puts the table between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, after = text.partition(MARK)[0], text.partition(END)[2]
    write_atomically(page, f"{before}{MARK}\n{table()}\n{END}{after}".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
