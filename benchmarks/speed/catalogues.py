"""Cost of playing and training, and memory, as the catalogue grows to a million items.

Each family of agents plays and trains in the same sessions of worlds that are made directly,
without fits: item vectors are Gaussian in all directions, the hardest case for a search. Ratios are
of processor seconds to those of the smallest catalogue.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from dsrm_agents import HSRL, Codebook, HierarchicalPPO, make_vec_env
from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym.data import Dataset, WatchLog
from kuaisim_gym.simulator import build
from kuaisim_gym.simulator.factors import LINK_BOUND, PreferenceModel
from kuaisim_gym.simulator.response import FactorModel

from . import timing
from .timing import Row, process_memory

ITEMS = (3_327, 100_000, 1_000_000)
QUICK = (1_000, 2_000)
USERS, FACTORS, EVENTS = 400, 8, 12_000
SLOTS, ROLLOUT, MAX_LEN = 64, 32, 30
SHORTLIST = 256  # items of each group
LEVELS = {3_327: 3, 100_000: 4, 1_000_000: 5}  # of 16 codes: buckets stay as small
ALL_ITEMS = 100_000  # the most that are scored one by one: a million take 3.5 GB an update
FAMILIES = ("random", "filter+quota", "hierarchical, all items", "hierarchical, shortlist", "hsrl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    timing.add_out(parser, repeats=7)
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)


def main(options: argparse.Namespace) -> None:
    """Measures, prints a table and writes ``catalogues.json``."""
    items, repeats = QUICK if options.quick else ITEMS, options.repeats
    cases = [
        case
        for case in product(options.families, items, [repeats])
        if case[0] != "hierarchical, all items" or case[1] <= ALL_ITEMS
    ]
    rows = with_ratios(timing.in_fresh_processes(measured, cases))
    timing.report("catalogues", {"catalogues": rows}, options.out, repeats=repeats)


def with_ratios(rows: list[Row]) -> list[Row]:
    """Rows with times over those of the family's first row."""
    first: dict[Any, Row] = {}
    for row in rows:
        smallest = first.setdefault(row["family"], row)
        for name in ("played", "trained"):
            time_, least = row[f"{name}_ms"], smallest[f"{name}_ms"]
            row[f"{name}_ratio"] = time_ / least if isinstance(time_, float) else ""  # type: ignore[operator]
    return rows


def measured(case: tuple[str, int, int]) -> Row:
    """Milliseconds of 64 sessions' step, played and trained, and MB of the process."""
    family, n_items, repeats = case
    torch.set_num_threads(1)
    row: Row = {"family": family, "items": n_items}
    with made_directly(n_items) as dataset:
        env = make_vec_env(
            "KuaiRec-Fair-v0", SLOTS, dataset=dataset, seed=0, max_len=MAX_LEN,
            action_type="slate", observation_type="dict", preference="belief",
        )  # fmt: skip
    act, train = _agent(family, env)
    observation = env.reset()

    def play() -> int:
        nonlocal observation
        for _ in range(MAX_LEN // 3):
            observation = env.step(act(observation))[0]
        return MAX_LEN // 3

    row["played_ms"] = _milliseconds(play, repeats)
    row["trained_ms"] = _milliseconds(train, max(repeats // 2, 1)) if train is not None else ""
    row["MB_at_the_peak"] = process_memory()["VmHWM"]
    return row


def _milliseconds(call: Callable[[], int], repeats: int) -> float:
    """Median processor milliseconds of a unit, after a call that warms up."""
    call()
    found = []
    for _ in range(repeats):
        started = time.process_time()
        units = call()
        found.append((time.process_time() - started) / units)
    return 1e3 * statistics.median(found)


def _agent(family: str, env: VecEnv) -> tuple[Callable[[Any], Any], Callable[[], int] | None]:
    """A function that acts as a family does, and one that trains and returns its steps."""
    n_items = env.get_attr("catalogue")[0].n_items
    if family == "random":
        rng = np.random.default_rng(0)
        return lambda _: rng.integers(0, n_items, (SLOTS, 10)), None
    if family == "filter+quota":
        return make_reference(family, env.batch).slates, None  # type: ignore[attr-defined]
    model: HSRL | HierarchicalPPO
    if family == "hsrl":
        codebook = Codebook.fit(env.get_attr("catalogue")[0].known, LEVELS.get(n_items, 3), 16)
        model = HSRL(
            "HSRLPolicy", env, n_steps=ROLLOUT, seed=1, policy_kwargs={"codebook": codebook}
        )
    else:
        shortlist = SHORTLIST if family == "hierarchical, shortlist" else None
        options = {"shortlist": shortlist}
        model = HierarchicalPPO(
            "HierarchicalPolicy", env, n_steps=ROLLOUT, seed=1, policy_kwargs=options
        )
    model.set_logger(Logger(folder=None, output_formats=[]))

    def train() -> int:
        model.learn(ROLLOUT * SLOTS, reset_num_timesteps=False)
        return ROLLOUT

    return lambda observation: model.predict(observation)[0], train


@contextmanager
def made_directly(n_items: int) -> Iterator[Dataset]:
    """A world of some items, of which models are made and not fitted while the block runs."""
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, USERS * n_items, EVENTS))
    users, items = (side.astype(np.int32) for side in np.divmod(pairs, n_items))
    log = WatchLog(users, items, rng.gamma(2.0, 0.3, len(pairs)).astype(np.float32))
    is_test = users >= USERS - 10
    dataset = Dataset(
        name="kuairec",
        synthetic=True,
        user_ids=np.arange(USERS),
        item_ids=np.arange(n_items),
        n_items=n_items,
        log=log.take(~is_test),
        test=log.take(is_test),
        show_counts=rng.zipf(1.5, n_items).clip(max=10**6),
    )
    preferences, answers = _preferences(rng, n_items), _answers(rng, n_items)
    with patch.multiple(
        build,
        cached=lambda key, make: make(),
        fit_preference_model=lambda *_: preferences,
        fit_factor_model=lambda *_, **__: answers,
    ):
        yield dataset


def _preferences(rng: np.random.Generator, n_items: int) -> PreferenceModel:
    scores = np.linspace(-LINK_BOUND, LINK_BOUND, 161)
    expected = 1.0 / (1.0 + np.exp(-scores))
    d = 1 + FACTORS
    return PreferenceModel(
        quality=rng.standard_normal(n_items),
        vectors=0.5 * rng.standard_normal((n_items, FACTORS)),
        variance=np.full(n_items, 0.1),
        mean=rng.standard_normal((USERS, d)),
        covariance=np.tile(0.5 * np.eye(d), (USERS, 1, 1)),
        population_mean=np.zeros((USERS, d)),
        population_covariance=np.eye(d),
        link=np.stack([expected, expected * (1.0 - expected)], axis=1),
    )


def _answers(rng: np.random.Generator, n_items: int) -> FactorModel:
    return FactorModel(
        WatchLog.behaviours,
        False,
        mean=np.full(1, 0.5, dtype=np.float32),
        slope=np.full(1, 0.1, dtype=np.float32),
        user_effect=np.zeros((1, USERS), dtype=np.float32),
        item_effect=0.1 * rng.standard_normal((1, n_items), dtype=np.float32),
        user_factors=rng.standard_normal((USERS, FACTORS), dtype=np.float32),
        item_factors=rng.standard_normal((n_items, FACTORS), dtype=np.float32),
    )
