"""Runs made by hand, for tests of what is said of results."""

from __future__ import annotations

from typing import Any

from benchmarks.studies.results import METRICS, Result
from kuaisim_gym.data import SOURCES

TODAY = {"name": "kuairec", "source": "kuairec", "synthetic": True, "fingerprint": "t" * 16,
         "answers": "synthetic", "seed": 0, "version": SOURCES["kuairec"].version}  # fmt: skip
OLDER = TODAY | {"version": 2, "fingerprint": "o" * 16}
LIKE = {"name": "kuairec-like", "source": "kuairec-like", "synthetic": False,
        "fingerprint": "l" * 16, "answers": "real"}  # fmt: skip


def result(agent: str, seed: int, length: float, block: Result = TODAY, **train: Any) -> Result:
    metrics = dict.fromkeys(METRICS, 0.5) | {"len": length}
    curve = [
        {"episodes": 100 * n, "len": length - 1 / n, "r_each": 0.5, "popular_share": 0.5}
        for n in range(1, 11)
    ]
    block_train = {"episodes": 20_003, "steps": 1, "seconds": 10.0, "curve": curve,
                   "processor_seconds": 10.0}  # fmt: skip
    return {
        "agent": agent, "env": "KuaiRec-Fair-v0", "max_len": 30, "seed": seed, "slate_size": 10,
        "dataset": block, "eval": {"sessions": 1000}, "versions": {}, "commit": "c",
        "train": block_train | train,
        "metrics": metrics | {f"{name}_ci95": 0.196 for name in METRICS},
    }  # fmt: skip


def pair(agent: str, first: float, second: float, block: Result = TODAY, **train: Any) -> list:
    return [result(agent, 11, first, block, **train), result(agent, 15, second, block, **train)]


RUNS = [
    *pair("dsrm-hrl", 20.0, 22.0),
    *pair("hrl", 19.0, 21.0, processor_seconds=4.0),
    *pair("quality+quota", 20.5, 20.5, steps=0),
    *pair("td3", 24.0, 24.5),  # less: -4 and -2.5
    *pair("bcq", 10.0, 12.0),
    result("a2c", 11, 30.0),  # one seed: no interval
    *pair("dsrm-hrl", 5.0, 5.5, LIKE, episodes=5_000),
    *pair("hrl", 5.1, 5.5, LIKE, episodes=5_000),
    *pair("dsrm-hrl", 90.0, 90.0, OLDER),
    *pair("flat", 90.0, 90.0, OLDER),
]
