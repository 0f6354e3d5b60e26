"""Figure 3: the same policies on raw and on purified states.

There are three policies: a DNaIR-style policy without training, so that only the state differs; a
ranking by quality and similarity with a quota, whose single weight is chosen on the train
simulator; and PPO, trained on each state, from the results of its ordinary runs. All of them play
in world 0, as those runs do: the world on which the purifiers' defaults were chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dsrm_agents import fit_purifier
from dsrm_agents.baselines.novelty import make_novelty
from dsrm_agents.baselines.similarity import SimilarityPolicy
from dsrm_agents.dsrm.purifier import Purifier
from kuaisim_gym.data import Dataset
from kuaisim_gym.errors import ConfigError

from ..agents.agent import SLATES, Agent
from ..estimates.states import WEIGHTS
from ..reports.plots import means_and_halves
from ..runs.judging import Played, play
from ..studies.results import Result
from .studies import (
    AGENT,
    ENV,
    MAX_LEN,
    PURIFIED,
    RAW,
    SESSIONS,
    FigureStudy,
    run_of,
    title,
)

# DNaIR's published weight of novelty; and of (0, .05, .1, .2, .4, .8) the weight with the longest
# sessions on the train simulator, mean over raw and purified states.
BETAS = (0.1, 0.4)
# The raw state, two purified states, and a state that says nothing.
LABELS = {
    RAW: "raw state",
    "linear": "popularity erased",
    PURIFIED: "purified by DSRM",
    "blank": "no state",
}
PPO = {state: AGENT if state == RAW else f"{AGENT}+{state}" for state in (RAW, PURIFIED, "blank")}
PANELS = {"len": "Len (steps)", "r_each": r"$R_{each}$", "ad": "AD (0 is balanced)"}

Bars = dict[str, dict[str, list[dict[str, float]]]]  # metrics of all seeds by policy and state


@dataclass(frozen=True)
class PolicyStudy(FigureStudy):
    """A policy on one state.

    Attributes:
        state: ``"raw"``, or the name of a purifier.
    """

    kind = "policies"
    world_seed = 0

    state: str

    def purifier(self, seed: int) -> Purifier | None:
        """The fitted purifier; ``None`` for the raw state."""
        return None if self.state == RAW else fit_purifier(self.state, self.load(), seed=seed)


@dataclass(frozen=True)
class NoveltyStudy(PolicyStudy):
    """The DNaIR-style policy with ``beta``, its weight of novelty, on one state."""

    policy = "dnair-style"

    beta: float
    seed: int
    sessions: int = SESSIONS

    @property
    def label(self) -> str:
        return f"{self.policy}_beta{self.beta:g}_{self.state}_seed{self.seed}"

    def make(self, path: Path) -> Result:
        rule = Agent("rule", rule=lambda batch: make_novelty(batch, self.beta), env_options=SLATES)
        spec, purifier = run_of(self.seed, self.sessions), self.purifier(self.seed)
        played = play(rule, spec, self.load(), None, purifier)
        return {"eval": played.block, "metrics": played.metrics}


@dataclass(frozen=True)
class SimilarityStudy(PolicyStudy):
    """A ranking by quality and similarity with a quota, on one state."""

    policy = "similarity+quota"

    seed: int
    sessions: int = SESSIONS

    @property
    def label(self) -> str:
        return f"{self.policy}_{self.state}_seed{self.seed}"

    def make(self, path: Path) -> Result:
        return by_similarity(self.load(), self.purifier(self.seed), self.seed, self.sessions)


def by_similarity(
    dataset: Dataset, purifier: Purifier | None, seed: int, sessions: int
) -> dict[str, Any]:
    """Plays :class:`~dsrm_agents.baselines.similarity.SimilarityPolicy` on raw or purified states.

    Returns:
        ``weight``, the weight of similarity in
        :data:`~benchmarks.estimates.states.WEIGHTS` with the longest sessions on the
        train simulator, its ``metrics`` on the test simulator, and the blocks ``train`` and
        ``eval``.
    """

    def play_with(weight: float, split: str) -> Played:
        rule = Agent("rule", rule=lambda batch: SimilarityPolicy(batch, weight), env_options=SLATES)
        return play(rule, run_of(seed, sessions), dataset, None, purifier, split=split)

    lengths = {weight: play_with(weight, "train").metrics["len"] for weight in WEIGHTS}
    weight = max(lengths, key=lengths.__getitem__)
    played = play_with(weight, "test")
    train = {"len_by_weight": {f"{weight:g}": length for weight, length in lengths.items()}}
    return {"weight": weight, "train": train, "eval": played.block, "metrics": played.metrics}


def studies(seeds: Iterable[int], sessions: int) -> list[PolicyStudy]:
    """All studies of the figure; the results of PPO are of ordinary runs."""
    return [
        study
        for seed, state in product(seeds, LABELS)
        for study in (
            *(NoveltyStudy(state, beta, seed, sessions) for beta in BETAS),
            SimilarityStudy(state, seed, sessions),
        )
    ]


def ppo_results(results: list[Result], dataset: Dataset, seeds: Iterable[int]) -> list[Result]:
    """Selects PPO's results on all states in a world.

    Raises:
        ConfigError: A result is missing.
    """
    world = (ENV, dataset.fingerprint, MAX_LEN)
    runs = {
        (run["agent"], run["seed"]): run
        for run in results
        if (run["env"], run["dataset"]["fingerprint"], run["max_len"]) == world
    }
    needed = list(product(PPO.values(), seeds))
    missing = [f"{agent} seed {seed}" for agent, seed in needed if (agent, seed) not in runs]
    if missing:
        raise ConfigError(
            f"Figure 3 lacks results of {ENV}, T {MAX_LEN}, synthetic world "
            f"{dataset.fingerprint}: {', '.join(missing)}. Make them with `suite --agents "
            f"{' '.join(PPO.values())}`."
        )
    return [runs[key] for key in needed]


def bars(results: list[Result], learned: list[Result]) -> Bars:
    """Sorts results of the studies and of PPO into the bars of the figure."""

    def of_policy(policy: str, beta: float | None = None) -> dict[str, list[dict[str, float]]]:
        return {
            state: [
                result["metrics"]
                for result in results
                if (result["policy"], result.get("beta"), result["state"]) == (policy, beta, state)
            ]
            for state in LABELS
        }

    novelty = {
        f"DNaIR-style\n$\\beta$ = {beta:g}": of_policy(NoveltyStudy.policy, beta) for beta in BETAS
    }
    ppo = {
        state: [run["metrics"] for run in learned if run["agent"] == agent]
        for state, agent in PPO.items()
    }
    quota = of_policy(SimilarityStudy.policy)
    return novelty | {"quality +\nsimilarity,\nquota": quota, "PPO": ppo}


def draw(groups: Bars) -> Figure:
    """Bars of all policies on all states: mean and 95 % interval over seeds."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    width = 0.8 / len(LABELS)
    for axes, (metric, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for side, (state, legend) in enumerate(LABELS.items()):
            runs = {n: g[state] for n, g in enumerate(groups.values()) if g.get(state)}
            if not runs:
                continue
            mean, half = means_and_halves(
                [values[metric] for values in seeds] for seeds in runs.values()
            )
            shifted = np.array(list(runs)) + (side - (len(LABELS) - 1) / 2) * width
            axes.bar(shifted, mean, width, yerr=half, capsize=2, label=legend)
        axes.set_xticks(range(len(groups)), groups, fontsize="x-small")
        axes.set(ylabel=label, ylim=(0, None))
        axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="x-small")
    text = "one policy, several states; intervals over fits"
    figure.suptitle(title("Figure 3", text), fontsize="medium")
    return figure
