"""Figure 6: the number of diffusion steps, judged by probes and by policies on purified states."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dsrm_agents import fit_purifier
from dsrm_agents.dsrm.probes import probe, probe_data

from ..agents import find_agent
from ..reports.plots import means_and_halves
from ..runs.judging import play
from ..runs.training import train_agent
from ..speed.timing import timed
from ..studies.results import Result
from .policies import by_similarity
from .studies import PURIFIED, SESSIONS, FigureStudy, run_of, title

STEPS = (5, 10, 20, 30, 100, 500)
EPISODES = 5000
TIMINGS = 5  # the median counts
POLICY_PANELS = {"len": "Len (steps)", "r_cum": r"$R_{cum}$", "ad": "AD (0 is balanced)"}
TRAINED = "dsrm-hrl"
BLOCKS = {"metrics": TRAINED, "similarity": "quality + similarity, quota"}
PROBE_LINES = {"cosine": "cosine to the true preference", "leakage_r2": "popularity leakage $R^2$"}


@dataclass(frozen=True)
class SensitivityStudy(FigureStudy):
    """DSRM with a number of diffusion steps, and an agent on its states; all have one seed."""

    kind = "sensitivity"
    policy = TRAINED

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
        dataset, spec = self.load(), run_of(self.seed, self.sessions, self.episodes, TRAINED)
        started = time.perf_counter()
        steps: dict[str, Any] = {"diffusion_steps": self.diffusion_steps, "serving_steps": None}
        purifier = fit_purifier(PURIFIED, dataset, seed=self.seed, **steps)
        fit_seconds = time.perf_counter() - started
        data = probe_data(dataset)  # the same users and folds for all K
        states = data.states[purifier.reads].copy()  # the purifier may write into it

        def denoise_all() -> int:
            return len(purifier.denoise(states))

        model, train = train_agent(spec, dataset, purifier, progress=False)
        played = play(find_agent(TRAINED), spec, dataset, model, purifier)
        return {
            "fit": {
                "seconds": fit_seconds,
                "states_per_second": timed(denoise_all, TIMINGS)["per_second"],
            },
            "probes": probe(purifier.denoise, data, purifier.reads),
            "train": {name: train[name] for name in ("episodes", "steps", "seconds")},
            "eval": played.block,
            "metrics": played.metrics,
            "similarity": by_similarity(dataset, purifier, self.seed, self.sessions)["metrics"],
        }


def studies(
    steps: Iterable[int], seeds: Iterable[int], episodes: int, sessions: int
) -> list[SensitivityStudy]:
    """All studies of the figure, slow ones first: processes then finish together."""
    return [
        SensitivityStudy(number, seed, episodes, sessions)
        for number, seed in product(sorted(steps, reverse=True), seeds)
    ]


def draw(results: list[Result]) -> Figure:
    """Mean and 95 % interval over seeds, by number of diffusion steps."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    steps = sorted({result["diffusion_steps"] for result in results})
    panels = figure.subplots(2, 2).ravel()

    def line(axes: Any, block: str, metric: str, label: str) -> None:
        groups = (
            [result[block][metric] for result in results if result["diffusion_steps"] == number]
            for number in steps
        )
        mean, half = means_and_halves(groups)
        (drawn,) = axes.plot(steps, mean, marker="o", label=label)
        axes.fill_between(steps, mean - half, mean + half, color=drawn.get_color(), alpha=0.2)

    for axes, (metric, label) in zip(panels[:3], POLICY_PANELS.items(), strict=True):
        for block, name in BLOCKS.items():
            line(axes, block, metric, name)
        axes.set_ylabel(label)
    for metric, label in PROBE_LINES.items():
        line(panels[3], "probes", metric, label)
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
    text = f"{seeds} world(s), {TRAINED} trained for {episodes:,} sessions"
    figure.suptitle(title("Figure 6", text), fontsize="medium")
    return figure
