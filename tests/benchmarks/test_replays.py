"""Committed results are what today's code plays: pages compare agents with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.released import load
from benchmarks.runs.evaluate import evaluated
from benchmarks.studies.results import read_result

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results"
SEED = 11
SYNTHETIC = {
    "KuaiRec-Fair-v0": "kuairec-synthetic_T30",
    "KuaiRand-Fair-v0": "kuairand-synthetic_T30",
}
REAL = {  # name of the file, source, folder and slate
    "kuairand-pool-real_T20_K2": ("kuairand-pool", "kuairand_real", 2),
    "kuairand-click-modelled_T30": ("kuairand-click", "kuairand_real", None),
    "kuairec-like-real_T30": ("kuairec-like", "kuairec_real", None),
    "kuairec-watch-modelled_T30": ("kuairec-watch", "kuairec_real", None),
}


def check(agent: str, env: str, world: str, **settings: Any) -> None:
    """Plays the sessions of a committed result again.

    Arithmetic in another order, on another processor, can turn a tie between two items around: a
    few sessions of the thousand may end a step earlier or later.
    """
    committed = read_result(COMMITTED / f"{agent}_{env}_{world}_seed{SEED}.json")
    played = evaluated(load(agent, train=False, env=env, seed=SEED, **settings))
    assert played["dataset"] == committed["dataset"]
    for metric, margin in (("len", 0.02), ("r_each", 0.0005), ("ad", 0.0005)):
        expected = pytest.approx(committed["metrics"][metric], abs=margin)
        assert played["metrics"][metric] == expected, metric


@pytest.mark.parametrize("env", SYNTHETIC)
@pytest.mark.parametrize("agent", ["quality+quota", "filter+quota", "train-oracle+quota", "hrl"])
def test_agents_play_their_committed_sessions(agent: str, env: str) -> None:
    check(agent, env, SYNTHETIC[env])


@pytest.mark.parametrize("world", REAL)
@pytest.mark.parametrize("agent", ["quality+quota", "filter+quota"])
def test_rules_play_their_committed_sessions_on_real_data(
    agent: str, world: str, real_data
) -> None:
    source, folder, slate_size = REAL[world]
    max_len = int(world.split("_T")[1].split("_")[0])
    check(
        agent, "Recommendation-Fair-v0", world, dataset=f"{source}={real_data(folder)}",
        max_len=max_len, slate_size=slate_size,
    )  # fmt: skip
