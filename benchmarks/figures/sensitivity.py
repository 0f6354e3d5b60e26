"""Figure 6: how many diffusion steps DSRM needs, by probes and by what PPO learns behind it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.agents import find_agent
from benchmarks.figures.drawing import means_and_halves
from benchmarks.figures.policies import by_similarity
from benchmarks.figures.studies import ENV, MAX_LEN, SESSIONS, FigureStudy, title
from benchmarks.results import Result
from benchmarks.run import Run, evaluation_env, play, train_agent
from dsrm_agents import fit_purifier
from dsrm_agents.dsrm.probes import probe, probe_data
from dsrm_agents.dsrm.purifier import Denoise
from kuaisim_gym import metrics

STEPS = (5, 10, 20, 30, 100, 500)
AGENT = "ppo"
EPISODES = 5000
TIMINGS = 5  # of which the median counts
POLICY_PANELS = {"len": "Len (steps)", "r_cum": r"$R_{cum}$", "ad": "AD (0 is balanced)"}
BLOCKS = {"metrics": "PPO", "similarity": "quality + similarity, quota"}
PROBE_LINES = {"cosine": "cosine to the true preference", "leakage_r2": "popularity leakage $R^2$"}


@dataclass(frozen=True)
class SensitivityStudy(FigureStudy):
    """DSRM with a number of steps, and PPO behind it.

    Attributes:
        diffusion_steps: K.
        seed: Of the world, of the purifier, of PPO and of the sessions.
        episodes: Training sessions.
        sessions: Test sessions.
    """

    kind = "sensitivity"
    policy = AGENT

    diffusion_steps: int
    seed: int
    episodes: int = EPISODES
    sessions: int = SESSIONS

    @property
    def world_seed(self) -> int:
        return self.seed

    @property
    def label(self) -> str:
        return f"K{self.diffusion_steps}_seed{self.seed}"

    def make(self, path: Path) -> Result:
        dataset = self.load()
        spec = Run(AGENT, ENV, None, MAX_LEN, self.seed, self.episodes, self.sessions)
        started = time.perf_counter()
        purifier = fit_purifier(
            "dsrm", dataset, seed=self.seed, diffusion_steps=self.diffusion_steps
        )
        fit_seconds = time.perf_counter() - started
        data = probe_data(dataset)  # the same users and folds for all K
        agent, train = train_agent(spec, dataset, purifier, progress=False)
        learner = find_agent(AGENT)
        env = evaluation_env(ENV, dataset, MAX_LEN, self.seed, self.sessions, learner.env_options)
        wrapped = learner.wrap(env, purifier, learner.hyperparams, False)
        sessions, evaluation = play(agent, wrapped, self.sessions)
        return {
            "fit": {
                "seconds": fit_seconds,
                "states_per_second": states_per_second(purifier.denoise, data.states),
            },
            "probes": probe(purifier.denoise, data),
            "train": {name: train[name] for name in ("episodes", "steps", "seconds")},
            "eval": evaluation,
            "metrics": metrics.summarise(sessions, env.catalogue.popular),
            "similarity": by_similarity(dataset, purifier, self.seed, self.sessions)["metrics"],
        }


def studies(
    steps: Iterable[int], seeds: Iterable[int], episodes: int, sessions: int
) -> list[SensitivityStudy]:
    """All that the figure needs, the slow ones first: processes then finish together."""
    seeds = tuple(seeds)
    return [
        SensitivityStudy(number, seed, episodes, sessions)
        for number in sorted(steps, reverse=True)
        for seed in seeds
    ]


def states_per_second(denoise: Denoise, states: NDArray[np.float32]) -> float:
    """Speed of a purifier on a batch."""
    states = states.copy()  # the purifier's own: it may write into it
    denoise(states)
    seconds = []
    for _ in range(TIMINGS):
        started = time.perf_counter()
        denoise(states)
        seconds.append(time.perf_counter() - started)
    return len(states) / float(np.median(seconds))


def draw(results: list[Result]) -> Figure:
    """Over K: mean and 95 % interval over seeds."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    steps = sorted({result["diffusion_steps"] for result in results})
    panels = figure.subplots(2, 2).ravel()
    for axes, (metric, label) in zip(panels[:3], POLICY_PANELS.items(), strict=True):
        for block, name in BLOCKS.items():
            _line(axes, steps, [_values(results, number, block, metric) for number in steps], name)
        axes.set_ylabel(label)
    for metric, label in PROBE_LINES.items():
        _line(
            panels[3],
            steps,
            [_values(results, number, "probes", metric) for number in steps],
            label,
        )
    panels[3].set_ylabel("probes of held-out users")
    for axes in (panels[0], panels[3]):
        axes.legend(fontsize="small")
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xticks(steps, [str(number) for number in steps])
        axes.minorticks_off()
        axes.set_xlabel("diffusion steps K")
        axes.grid(alpha=0.3)
    seeds, episodes = len({result["seed"] for result in results}), results[0]["episodes"]
    text = f"{seeds} world(s), PPO trained for {episodes:,} sessions"
    figure.suptitle(title("Figure 6", text), fontsize="medium")
    return figure


def _values(results: list[Result], steps: int, block: str, metric: str) -> list[float]:
    return [result[block][metric] for result in results if result["diffusion_steps"] == steps]


def _line(axes: Any, steps: list[int], groups: list[list[float]], label: str | None = None) -> None:
    mean, half = means_and_halves(groups)
    (line,) = axes.plot(steps, mean, marker="o", label=label)
    axes.fill_between(steps, mean - half, mean + half, color=line.get_color(), alpha=0.2)
