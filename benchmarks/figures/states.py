"""Figure 4: raw and purified states of held-out users, drawn by t-SNE.

A t-SNE picture proves nothing by itself: it preserves neighbours, but neither distances nor
densities, and other seeds and perplexities give other pictures. The evidence is in the captions:
cross-validated probes of the same states in all dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from dsrm_agents import fit_purifier
from dsrm_agents.dsrm.probes import probe, probe_data
from dsrm_agents.dsrm.purifier import Denoise

from ..studies.results import Result
from .studies import PURIFIED, RAW, FigureStudy, title

COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C9")  # of the most frequent categories
PERPLEXITY = 30.0
LABELS = {RAW: "raw states", PURIFIED: "states purified by DSRM"}


@dataclass(frozen=True)
class StatesStudy(FigureStudy):
    """Positions of probed users' raw and purified states by t-SNE, and probes of both."""

    kind = "states"

    seed: int

    @property
    def world_seed(self) -> int:
        return self.seed

    @property
    def label(self) -> str:
        return f"tsne_seed{self.seed}"

    def make(self, path: Path) -> Result:
        dataset = self.load()
        data = probe_data(dataset)
        assert data.causes is not None, "a synthetic world knows its users' favourite categories"
        purifier = fit_purifier(PURIFIED, dataset, seed=self.seed)
        shown: dict[str, tuple[Denoise, str]] = {
            RAW: (lambda states: states, "pooled"),
            PURIFIED: (purifier.denoise, purifier.reads),
        }
        return {
            "popularity": np.round(data.popularity, 3).tolist(),
            "interest": data.causes.interest.tolist(),
            "places": {
                name: _positions(denoise(data.states[reads].copy()))
                for name, (denoise, reads) in shown.items()
            },
            "probes": {
                name: probe(denoise, data, reads) for name, (denoise, reads) in shown.items()
            },
        }


def _positions(states: NDArray[np.float32]) -> list[list[float]]:
    """(n, 2) positions by t-SNE, equal for equal states."""
    largest = (len(states) - 1) / 3  # that t-SNE takes for a perplexity
    tsne = TSNE(perplexity=min(PERPLEXITY, largest), init="pca", random_state=0)
    positions: list[list[float]] = np.round(tsne.fit_transform(states).astype(float), 2).tolist()
    return positions


def draw(study: Result) -> Figure:
    """Raw states left, purified right; coloured by popularity above and by interest below."""
    figure = Figure(figsize=(9, 8.4), layout="constrained")
    grid = figure.subplots(2, 2)
    interest = np.array(study["interest"])
    frequent = np.argsort(-np.bincount(interest), kind="stable")[: len(COLOURS)]
    for column, (state, label) in enumerate(LABELS.items()):
        x, y = np.array(study["places"][state]).T
        above, below = grid[:, column]
        dots = above.scatter(x, y, c=study["popularity"], s=5, cmap="viridis")
        rare = ~np.isin(interest, frequent)
        below.scatter(x[rare], y[rare], s=4, color="lightgrey", label="others")
        for colour, category in zip(COLOURS, frequent, strict=False):
            chosen = interest == category
            below.scatter(x[chosen], y[chosen], s=5, color=colour, label=str(category))
        probes = study["probes"][state]
        above.set_title(label, fontsize="medium")
        below.set_xlabel(
            f"popularity leakage $R^2$ = {probes['leakage_r2']:.2f}\n"
            f"interest accuracy = {probes['interest_accuracy']:.2f}"
        )
        for axes in (above, below):
            axes.set(xticks=[], yticks=[])
    scale = above.inset_axes((1.02, 0.0, 0.05, 1.0))
    figure.colorbar(dots, cax=scale, label="mean log popularity of the history")
    below.legend(
        title="favourite\ncategory", loc="center left", bbox_to_anchor=(1.02, 0.5), markerscale=2
    )
    text = f"t-SNE of {len(interest):,} held-out users"
    figure.suptitle(title("Figure 4", text), fontsize="medium")
    return figure
