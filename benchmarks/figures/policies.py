"""Figure 3: the worth of the same policy on raw and on purified states.

Three policies: the DNaIR-style one, which is not trained, so that the state is all that differs;
one that ranks by quality and similarity with a quota, whose single number is chosen on the train
simulator; and PPO, trained on each state, from the result files of its ordinary runs. All of it on
world 0, as those are: the world on which the purifiers' defaults were chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.agents.agent import SLATES, purified
from benchmarks.figures.drawing import means_and_halves
from benchmarks.figures.studies import ENV, MAX_LEN, PURIFIED, RAW, SESSIONS, FigureStudy, title
from benchmarks.results import Result, World, world_of
from benchmarks.run import evaluation_env, play
from dsrm_agents import fit_purifier
from dsrm_agents.baselines.novelty import make_novelty
from dsrm_agents.baselines.similarity import SimilarityPolicy
from dsrm_agents.dsrm.purifier import Purifier
from kuaisim_gym import metrics
from kuaisim_gym.data import Dataset
from kuaisim_gym.errors import ConfigError

# DNaIR's own weight of novelty; and of (0, .05, .1, .2, .4, .8) the one with the longest sessions
# on the train simulator, mean over raw and purified states.
BETAS = (0.1, 0.4)
PPO = {RAW: "ppo", PURIFIED: "ppo+dsrm", "blank": "ppo+blank"}  # agents by state
ALPHAS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
# Each with and without purification, and without the state's popularity or anything in it.
STATES = (RAW, "linear", PURIFIED, "blank")
PANELS = {"len": "Len (steps)", "r_each": r"$R_{each}$", "ad": "AD (0 is balanced)"}
LABELS = {
    RAW: "raw state",
    "linear": "popularity erased",
    PURIFIED: "purified by DSRM",
    "blank": "no state",
}

Bars = dict[str, dict[str, list[dict[str, float]]]]  # metrics of each seed by policy and state


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
        """Fits what the state goes through, if it is not raw."""
        return None if self.state == RAW else fit_purifier(self.state, self.load(), seed=seed)


@dataclass(frozen=True)
class NoveltyStudy(PolicyStudy):
    """The DNaIR-style policy on one state.

    Attributes:
        state: ``"raw"``, or the name of a purifier.
        beta: Weight of novelty.
        seed: Of the purifier and of the test sessions.
        sessions: Test sessions.
    """

    policy = "dnair-style"

    beta: float
    seed: int
    sessions: int = SESSIONS

    @property
    def label(self) -> str:
        return f"{self.policy}_beta{self.beta:g}_{self.state}_seed{self.seed}"

    def make(self, path: Path) -> Result:
        purifier = self.purifier(self.seed)
        env = evaluation_env(ENV, self.load(), MAX_LEN, self.seed, self.sessions, SLATES)
        policy = make_novelty(env.batch, self.beta)
        sessions, evaluation = play(policy, purified(env, purifier), self.sessions)
        return {
            "eval": evaluation,
            "metrics": metrics.summarise(sessions, env.catalogue.popular),
        }


@dataclass(frozen=True)
class SimilarityStudy(PolicyStudy):
    """Quality and similarity with a quota, on one state.

    The weight of similarity is the one of :data:`ALPHAS` with the longest sessions on the train
    simulator, with this state.

    Attributes:
        state: ``"raw"``, or the name of a purifier.
        seed: Of the purifier and of the sessions.
        sessions: Test sessions, and train sessions for each weight.
    """

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
    """The worth of a state to :class:`~dsrm_agents.baselines.similarity.SimilarityPolicy`.

    Args:
        dataset: The world.
        purifier: What the policy's state goes through; ``None`` for the raw state.
        seed: Of the sessions.
        sessions: Test sessions, and train sessions for each weight.

    Returns:
        ``alpha``, the weight of similarity that is best on the train simulator, its ``metrics`` on
        the test simulator, and the blocks ``train`` and ``eval``.
    """

    def played(alpha: float, split: str) -> tuple[dict[str, float], dict[str, Any]]:
        env = evaluation_env(ENV, dataset, MAX_LEN, seed, sessions, SLATES, split)
        policy = SimilarityPolicy(env.batch, alpha)
        finished, evaluation = play(policy, purified(env, purifier), sessions)
        return metrics.summarise(finished, env.catalogue.popular), evaluation

    lengths = {alpha: played(alpha, "train")[0]["len"] for alpha in ALPHAS}
    alpha = max(lengths, key=lengths.__getitem__)
    values, evaluation = played(alpha, "test")
    train = {"len_by_alpha": {f"{key:g}": value for key, value in lengths.items()}}
    return {"alpha": alpha, "train": train, "eval": evaluation, "metrics": values}


def studies(seeds: Iterable[int], sessions: int) -> list[PolicyStudy]:
    """All that the figure needs beside the results of PPO."""
    needed: list[PolicyStudy] = []
    for seed, state in product(seeds, STATES):
        needed += [NoveltyStudy(state, beta, seed, sessions) for beta in BETAS]
        needed.append(SimilarityStudy(state, seed, sessions))
    return needed


def ppo_results(results: list[Result], dataset: Dataset, seeds: Iterable[int]) -> list[Result]:
    """PPO's results on both states in a world.

    Args:
        results: As read from a folder.
        dataset: The world.
        seeds: Which are needed of each.

    Raises:
        ConfigError: One is missing.
    """
    world = World(ENV, dataset.synthetic, dataset.fingerprint, MAX_LEN)
    runs = {(run["agent"], run["seed"]): run for run in results if world_of(run) == world}
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
    """Sorts the studies and PPO's results into the figure's bars."""

    def of_policy(policy: str, beta: float | None = None) -> dict[str, list[dict[str, float]]]:
        return {
            state: [
                result["metrics"]
                for result in results
                if (result["policy"], result.get("beta"), result["state"]) == (policy, beta, state)
            ]
            for state in STATES
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
    """Every policy on every state, mean and 95 % interval over seeds."""
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
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="x-small")
    figure.suptitle(
        title("Figure 3", "one policy, several states; intervals over fits"), fontsize="medium"
    )
    return figure
