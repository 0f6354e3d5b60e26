"""Growth curves: user-steps per processor second over sessions and over items."""

from __future__ import annotations

import argparse

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from kuaisim_gym.errors import DatasetNotFoundError

from ..commands import add_folder
from ..reports.plots import save_figure
from ..studies.results import read_result

add_arguments = add_folder


def main(options: argparse.Namespace) -> None:
    """Draws ``environments.png`` next to ``environments.json``."""
    path = options.folder / "environments.json"
    if not path.is_file():
        raise DatasetNotFoundError(f"{path} is not there; write it with `environments --out`.")
    study = read_result(path)
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, growing in zip(panels, ("sessions", "items"), strict=True):
        fixed = "items" if growing == "sessions" else "sessions"
        rows = study[growing]
        for number, actions in enumerate(("discrete", "slate", "scorer")):
            line = [row for row in rows if row["actions"] == actions]
            rates = [row["per_processor_second"] for row in line]
            axes.loglog([row[growing] for row in line], rates, f"C{number}o-", label=actions)
        ticks = sorted({row[growing] for row in rows})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(growing)
        axes.set_title(f"{rows[0]['env']}, {rows[0][fixed]:,} {fixed}, {rows[0]['engine']}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("user-steps a processor second")
    panels[0].legend()
    print(save_figure(figure, path.with_suffix(".png"), dpi=120))
