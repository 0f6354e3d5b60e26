"""Figure 3: what the same policy is worth on raw and on purified states.

Two policies: the DNaIR-style one, which is not trained, so that the state is all that differs; and
PPO, trained on either state, from the result files of its ordinary runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figures.drawing import means_and_halves
from benchmarks.figures.studies import ENV, MAX_LEN, PURIFIED, RAW, SESSIONS, title
from benchmarks.registry import SLATES, Learner
from benchmarks.results import Result, world_of
from benchmarks.run import evaluation_env, play
from dsrm_agents import fit_purifier
from dsrm_agents.baselines.novelty import make_novelty
from kuaisim_gym import metrics
from kuaisim_gym.data import Dataset
from kuaisim_gym.errors import ConfigError

# DNaIR's own weight of novelty; and of (0, .05, .1, .2, .4, .8) the one with the longest sessions
# on the train simulator, mean over raw and purified states.
BETAS = (0.1, 0.4)
PPO = {RAW: "ppo", PURIFIED: "ppo+dsrm"}  # agents of the registry by state
PANELS = {"len": "Len (steps)", "r_each": r"$R_{each}$", "ad": "AD (0 is balanced)"}
LABELS = {RAW: "raw state", PURIFIED: "purified by DSRM"}

Bars = dict[str, dict[str, list[dict[str, float]]]]  # metrics of each seed by policy and state


@dataclass(frozen=True)
class NoveltyStudy:
    """The DNaIR-style policy on one state.

    Attributes:
        state: ``"raw"``, or the name of a purifier.
        beta: Weight of novelty.
        seed: Of the purifier and of the test sessions.
        sessions: Test sessions.
    """

    kind: ClassVar[str] = "policies"

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
        purifier = None if self.state == RAW else fit_purifier(self.state, dataset, seed=self.seed)
        env = evaluation_env(ENV, dataset, MAX_LEN, self.seed, self.sessions, SLATES)
        policy = make_novelty(env.batch, self.beta)
        sessions, evaluation = play(policy, Learner.wear(env, purifier), self.sessions)
        found = metrics.summarise(sessions, env.catalogue.popular)
        return {"eval": evaluation, "metrics": found}


def studies(seeds: Iterable[int], sessions: int) -> list[NoveltyStudy]:
    """All that the figure needs beside the results of PPO."""
    return [
        NoveltyStudy(state, beta, seed, sessions)
        for seed in seeds
        for beta in BETAS
        for state in (RAW, PURIFIED)
    ]


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
            state: [one["metrics"] for one in made if (one["beta"], one["state"]) == (beta, state)]
            for state in LABELS
        }
        for beta in BETAS
    }
    found["PPO"] = {
        state: [one["metrics"] for one in learned if one["agent"] == agent]
        for state, agent in PPO.items()
    }
    return found


def draw(groups: Bars) -> Figure:
    """Raw beside purified, mean and 95 % interval over seeds."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    places, width = np.arange(len(groups)), 0.38
    for axes, (metric, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for side, (state, legend) in zip((-0.5, 0.5), LABELS.items(), strict=True):
            values = [[one[metric] for one in group[state]] for group in groups.values()]
            mean, half = means_and_halves(values)
            axes.bar(places + side * width, mean, width, yerr=half, capsize=3, label=legend)
        axes.set_xticks(places, groups, fontsize="small")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    figure.suptitle(title("Figure 3", "one policy, two states"), fontsize="medium")
    return figure
