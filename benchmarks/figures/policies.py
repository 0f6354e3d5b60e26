"""Figure 3: what the same policy is worth on raw and on purified states.

Three policies: the DNaIR-style one, which is not trained, so that the state is all that differs;
one that ranks by quality and similarity with a quota, whose single number is chosen on the train
simulator; and PPO, trained on each state, from the result files of its ordinary runs. All of it on
world 0, as those are: the world on which the purifiers' defaults were chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from benchmarks.agents.agent import SLATES, purified
from benchmarks.figures.drawing import means_and_halves
from benchmarks.figures.studies import ENV, MAX_LEN, PURIFIED, RAW, SESSIONS, title
from benchmarks.results import Result, world_of
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


class PolicyStudy:
    """What the studies of one policy on one state share."""

    kind: ClassVar[str] = "policies"
    world_seed: ClassVar[int] = 0

    state: str
    seed: int

    def purifier(self, dataset: Dataset) -> Purifier | None:
        """Fits what the state goes through, if it is not raw."""
        return None if self.state == RAW else fit_purifier(self.state, dataset, seed=self.seed)


@dataclass(frozen=True)
class NoveltyStudy(PolicyStudy):
    """The DNaIR-style policy on one state.

    Attributes:
        state: ``"raw"``, or the name of a purifier.
        beta: Weight of novelty.
        seed: Of the purifier and of the test sessions.
        sessions: Test sessions.
    """

    state: str
    beta: float
    seed: int
    sessions: int = SESSIONS

    @property
    def name(self) -> str:
        """See :class:`~benchmarks.figures.studies.Study`."""
        return f"dnair-style_beta{self.beta:g}_{self.state}_seed{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """See :class:`~benchmarks.figures.studies.Study`."""
        return {"policy": "dnair-style", **asdict(self)}

    def make(self, dataset: Dataset) -> dict[str, Any]:
        """See :class:`~benchmarks.figures.studies.Study`."""
        purifier = self.purifier(dataset)
        env = evaluation_env(ENV, dataset, MAX_LEN, self.seed, self.sessions, SLATES)
        policy = make_novelty(env.batch, self.beta)
        sessions, evaluation = play(policy, purified(env, purifier), self.sessions)
        found = metrics.summarise(sessions, env.catalogue.popular)
        return {"eval": evaluation, "metrics": found}


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

    state: str
    seed: int
    sessions: int = SESSIONS

    @property
    def name(self) -> str:
        """See :class:`~benchmarks.figures.studies.Study`."""
        return f"similarity+quota_{self.state}_seed{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """See :class:`~benchmarks.figures.studies.Study`."""
        return {"policy": "similarity+quota", **asdict(self)}

    def make(self, dataset: Dataset) -> dict[str, Any]:
        """See :class:`~benchmarks.figures.studies.Study`."""
        purifier = self.purifier(dataset)
        return by_similarity(dataset, purifier, self.seed, self.sessions)


def by_similarity(
    dataset: Dataset, purifier: Purifier | None, seed: int, sessions: int
) -> dict[str, Any]:
    """What a state is worth to :class:`~dsrm_agents.baselines.similarity.SimilarityPolicy`.

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
    found, evaluation = played(alpha, "test")
    train = {"len_by_alpha": {f"{key:g}": value for key, value in lengths.items()}}
    return {"alpha": alpha, "train": train, "eval": evaluation, "metrics": found}


def studies(seeds: Iterable[int], sessions: int) -> list[NoveltyStudy | SimilarityStudy]:
    """All that the figure needs beside the results of PPO."""
    found: list[NoveltyStudy | SimilarityStudy] = []
    for seed, state in product(seeds, STATES):
        found += [NoveltyStudy(state, beta, seed, sessions) for beta in BETAS]
        found.append(SimilarityStudy(state, seed, sessions))
    return found


def ppo_results(results: list[Result], dataset: Dataset, seeds: Iterable[int]) -> list[Result]:
    """PPO's results on both states in a world.

    Args:
        results: As read from a folder.
        dataset: The world.
        seeds: Which are needed of each.

    Raises:
        ConfigError: One is missing.
    """
    wanted_world = (ENV, dataset.synthetic, dataset.fingerprint, MAX_LEN)
    there = {(one["agent"], one["seed"]): one for one in results if world_of(one) == wanted_world}
    wanted = [(agent, seed) for agent in PPO.values() for seed in seeds]
    missing = [f"{agent} seed {seed}" for agent, seed in wanted if (agent, seed) not in there]
    if missing:
        raise ConfigError(
            f"Figure 3 lacks results of {ENV}, T {MAX_LEN}, synthetic world "
            f"{dataset.fingerprint}: {', '.join(missing)}. Make them with `suite --agents "
            f"{' '.join(PPO.values())}`."
        )
    return [there[run] for run in wanted]


def bars(made: list[Result], learned: list[Result]) -> Bars:
    """Sorts the studies and PPO's results into the figure's bars."""
    found: Bars = {
        f"DNaIR-style\n$\\beta$ = {beta:g}": {
            state: [
                one["metrics"] for one in made if (one.get("beta"), one["state"]) == (beta, state)
            ]
            for state in STATES
        }
        for beta in BETAS
    }
    found["quality +\nsimilarity,\nquota"] = {
        state: [
            one["metrics"]
            for one in made
            if (one["policy"], one["state"]) == ("similarity+quota", state)
        ]
        for state in STATES
    }
    found["PPO"] = {
        state: [one["metrics"] for one in learned if one["agent"] == agent]
        for state, agent in PPO.items()
    }
    return found


def draw(groups: Bars) -> Figure:
    """Every policy on every state, mean and 95 % interval over seeds."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    width = 0.8 / len(LABELS)
    for axes, (metric, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for side, (state, legend) in enumerate(LABELS.items()):
            places = [place for place, group in enumerate(groups.values()) if group.get(state)]
            values = [
                [one[metric] for one in group[state]]
                for group in groups.values()
                if group.get(state)
            ]
            if not values:
                continue
            mean, half = means_and_halves(values)
            shifted = np.array(places) + (side - (len(LABELS) - 1) / 2) * width
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
