"""Time of one served recommendation, by the length of the session and by the agent."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from dsrm_agents import HierarchicalPPO, PurifyVecEnv, Recommender, fit_purifier, make_vec_env
from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.options import shared_dataset

from .timing import Row, add_out, report

DATASETS = {"kuairec": "KuaiRec-Fair-v0", "kuairand": "KuaiRand-Fair-v0"}
SLATES = {"observation_type": "dict", "action_type": "slate"}
SESSION = 15  # slates shown before the last request, half of the longest session
WARM_UP = 20  # requests


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser)
    parser.add_argument("--requests", type=int, default=1000, help="timed requests a row")
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=list(DATASETS))


def main(options: argparse.Namespace) -> None:
    """Measures, prints a table and writes ``serving.json``."""
    torch.set_num_threads(1)
    requests = 3 if options.quick else options.requests
    rows = []
    for name in options.dataset:
        dataset = shared_dataset(name, None, 0)
        for agent, recommender in _recommenders(name, dataset, options.quick):
            for slates in (0, SESSION):
                measured = _timed(recommender, dataset, slates, requests)
                rows.append({"dataset": name, "agent": agent, "slates_before": slates, **measured})
    report("serving", {"one request": rows}, options.out, requests=requests)


def _recommenders(name: str, dataset: Dataset, quick: bool) -> Iterator[tuple[str, Recommender]]:
    """Recommenders of agents without training, which changes no time."""
    sizes: dict[str, Any] = {"updates": 5} if quick else {"updates": 100}

    def env(**more: Any) -> Any:
        return make_vec_env(DATASETS[name], 2, dataset=dataset, **more)

    def hierarchical(venv: Any) -> HierarchicalPPO:
        return HierarchicalPPO("HierarchicalPolicy", venv, policy_kwargs={"worker": "band"})

    yield "ppo", Recommender(PPO("MlpPolicy", env()), None, dataset)
    yield "hrl", Recommender(hierarchical(env(**SLATES)), None, dataset)
    believing: dict[str, str] = {**SLATES, "preference": "belief"}
    yield "belief-hrl", Recommender(hierarchical(env(**believing)), None, dataset)
    for kind in ("student", "dsrm"):
        purifier = fit_purifier(kind, dataset, **sizes)
        purified = PurifyVecEnv(env(**SLATES, preference=purifier.reads), purifier)
        yield f"{kind}-hrl", Recommender(hierarchical(purified), purifier, dataset)
    rule = make_reference("filter+quota", env(**SLATES).batch)
    yield "filter+quota", Recommender(rule, None, dataset)


def _timed(recommender: Recommender, dataset: Dataset, slates: int, requests: int) -> Row:
    """Percentiles of the milliseconds of requests of different users, one by one.

    Processor milliseconds are those of an otherwise idle machine.
    """
    rng = np.random.default_rng(0)
    users = rng.choice(dataset.user_ids, requests + WARM_UP).tolist()
    size = recommender.options["slate_size"]
    items = dataset.item_ids[: dataset.n_items]
    wall, processor = [], []
    for user in users:
        shown = rng.choice(items, slates * size, replace=False).tolist()
        answers = rng.integers(2, size=len(shown)).tolist()
        history = list(zip(shown, answers, strict=True))
        started, started_processor = time.perf_counter(), time.process_time()
        recommender.recommend(user, history)
        processor.append(1e3 * (time.process_time() - started_processor))
        wall.append(1e3 * (time.perf_counter() - started))
    row: Row = {}
    for clock, milliseconds in (("", wall), ("processor_", processor)):
        p50, p99 = np.percentile(milliseconds[WARM_UP:], [50, 99]).tolist()
        row |= {f"p50_{clock}ms": p50, f"p99_{clock}ms": p99}
    return row
