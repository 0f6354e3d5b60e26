"""Figures from which the needs of a service follow: requests, users in memory, new popularity.

Everything is measured on the synthetic KuaiRand world, and the arithmetic is a table of its own, of
the measured figures alone. Agents are not trained, which changes no time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsrm_agents import HierarchicalPPO, Recommender, make_vec_env
from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym.data import Dataset
from kuaisim_gym.simulator.build import load_catalogue, load_preferences
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.factors import fit_preference_model

from .play import TINY, world
from .timing import Row, add_out, report

ENV, NAME = "KuaiRand-Fair-v0", "kuairand"
OPTIONS: dict[str, Any] = {
    "observation_type": "dict",
    "action_type": "slate",
    "preference": "belief",
}
BATCHES = (1, 16, 64, 256)  # requests that are answered together
SESSION = 5  # slates shown before a request
ITEMS = (10_000, 100_000, 1_000_000)  # of catalogues whose popularity is renewed
EXPOSURES = 10_000_000  # that are counted
USERS = 1_000_000  # of the service that the arithmetic is of
REQUESTS = 20.0  # of each of them in a day
PEAK = 3.0  # requests in the busiest hour, over those of a mean one
FILLED = 0.6  # of a processor's time, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser, repeats=5)


def main(options: argparse.Namespace) -> None:
    """Measures, prints tables and writes ``scale.json``."""
    torch.set_num_threads(1)
    dataset = world(NAME, TINY if options.quick else None)
    repeats = 1 if options.quick else options.repeats
    exposures, sizes = (1_000, (500,)) if options.quick else (EXPOSURES, ITEMS)
    requests = [row for agent in AGENTS for row in answered(agent, dataset, repeats)]
    users = occupied(dataset)
    renewed = [renewal(n, exposures, repeats) for n in sizes] + [refit(dataset)]
    tables = {
        "requests": requests,
        "users": users,
        "renewal": renewed,
        "a million users": arithmetic(requests, users),
    }
    report("scale", tables, options.out, repeats=repeats)


def _rule(dataset: Dataset) -> Recommender:
    env = make_vec_env(ENV, 2, dataset=dataset, **OPTIONS)
    return Recommender(make_reference("filter+quota", env.batch), None, dataset)


def _hierarchy(dataset: Dataset) -> Recommender:
    env = make_vec_env(ENV, 2, dataset=dataset, **OPTIONS)
    agent = HierarchicalPPO("HierarchicalPolicy", env, policy_kwargs={"worker": "band"})
    return Recommender(agent, None, dataset)


AGENTS: dict[str, Callable[[Dataset], Recommender]] = {
    "filter+quota": _rule,
    "belief-hrl": _hierarchy,
}


def answered(agent: str, dataset: Dataset, repeats: int) -> list[Row]:
    """Processor milliseconds of a request, and requests a second of a core, by the batch."""
    recommender, rows = AGENTS[agent](dataset), list[Row]()
    rng = np.random.default_rng(0)
    items = dataset.item_ids[: dataset.n_items]
    size = recommender.options["slate_size"]
    for n in BATCHES:
        users = rng.choice(dataset.user_ids, n).tolist()
        histories = [
            [(item, 1.0) for item in rng.choice(items, SESSION * size, replace=False).tolist()]
            for _ in users
        ]
        calls = -(-BATCHES[-1] // n)  # as many requests in each timing
        ask = partial(_ask, recommender, users, histories, calls)
        seconds = _processor_seconds(ask, repeats) / calls
        rows.append(
            {
                "agent": agent,
                "requests_together": n,
                "ms_a_request": 1e3 * seconds / n,
                "requests_a_core_second": n / seconds,
            }
        )
    return rows


def _ask(recommender: Recommender, users: list[Any], histories: list[Any], calls: int) -> None:
    for _ in range(calls):
        recommender.recommend(users, histories)


def occupied(dataset: Dataset) -> list[Row]:
    """Bytes a user of what a service keeps in memory of each."""
    model = load_preferences(dataset)
    n = dataset.n_users
    beliefs = (model.mean, model.covariance, model.population_mean)
    features: list[NDArray[Any]] = [
        *dataset.user_features.codes.values(),
        *dataset.user_features.numbers.values(),
    ]
    log = sum(column.nbytes for column in dataset.log.columns.values()) / len(dataset.log)
    return [
        _of_user("belief: mean, covariance, prior", sum(array.nbytes for array in beliefs) / n),
        _of_user("features", sum(array.nbytes for array in features) / n),
        _of_user("id", dataset.user_ids.nbytes / n),
        _of_user("100 rows of the log, which only fits read", 100 * log),
    ]


def _of_user(label: str, size: float) -> Row:
    return {"of each user": label, "bytes": size, "MB_a_million_users": size * USERS / 1e6}


def renewal(n_items: int, exposures: int, repeats: int) -> Row:
    """Processor milliseconds of counting exposures, and of the popularity that follows."""
    rng = np.random.default_rng(0)
    shown = (n_items * rng.random(exposures) ** 3).astype(np.int32)
    embedding = rng.standard_normal((n_items, 9), dtype=np.float32)
    catalogue, is_there = Catalogue(embedding, np.ones(n_items, np.int64)), np.ones(n_items, bool)

    def today() -> Any:
        counts = np.bincount(shown, minlength=n_items).astype(np.int64)
        new = catalogue.on_day(counts, is_there)
        return new.popular, new.log_popularity

    return {
        "renewed": "popularity",
        "items": n_items,
        "rows": exposures,
        "processor_ms": 1e3 * _processor_seconds(today, repeats),
    }


def refit(dataset: Dataset) -> Row:
    """Processor milliseconds of a new fit of qualities, vectors and all users' beliefs."""
    load_catalogue(dataset)
    seconds = _processor_seconds(lambda: fit_preference_model(dataset.training), 1, warm_up=False)
    return {
        "renewed": "items and beliefs",
        "items": dataset.n_all_items,
        "rows": len(dataset.log),
        "processor_ms": 1e3 * seconds,
    }


def arithmetic(requests: list[Row], users: list[Row]) -> list[Row]:
    """Needs of a service of a million users, of measured figures."""
    rate = USERS * REQUESTS / 86_400 * PEAK
    rows: list[Row] = [
        {"of a million users": "requests a second in the busiest hour", "number": rate}
    ]
    for agent in AGENTS:
        for n in (BATCHES[0], BATCHES[2]):
            of_core = next(
                float(row["requests_a_core_second"])
                for row in requests
                if (row["agent"], row["requests_together"]) == (agent, n)
            )
            together = "one by one" if n == 1 else f"{n} together"
            label = f"cores for them, {agent}, {together}"
            rows.append({"of a million users": label, "number": rate / of_core / FILLED})
    online = sum(float(row["MB_a_million_users"]) for row in users[:-1])
    rows.append({"of a million users": "GB in memory, in each process", "number": online / 1e3})
    return rows


def _processor_seconds(call: Callable[[], Any], repeats: int, warm_up: bool = True) -> float:
    """Median of some calls."""
    if warm_up:
        call()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)
