"""Draws ``images/world.png``, one step of a session: ``python docs/draw_world.py``."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from kuaisim_gym import SessionConfig

BLUE, GREEN, RED, INK = "#2f6db3", "#3a7d44", "#c62828", "#222222"


def main() -> None:
    """Writes the picture beside the films."""
    rules = SessionConfig()
    figure = Figure(figsize=(9, 3.2), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 90), ylim=(0, 32))
    axes.set_axis_off()
    box(axes, (2, 12, 20, 13), BLUE, "AGENT", "looks, and chooses")
    box(
        axes, (62, 12, 26, 13), GREEN, "USER",
        f"arrives with temper {rules.max_len}\nanswers each video: yes or no",
    )  # fmt: skip
    arrow(axes, (62, 22.5), (22, 22.5), GREEN)
    axes.text(42, 23.2, "observation", ha="center", va="bottom", weight="bold", color=GREEN)
    text = "what log and session say of the user,\nprogress, popular share, last and mean reward"
    axes.text(42, 21.7, text, ha="center", va="top", fontsize=8, color=INK)
    arrow(axes, (22, 14), (62, 14), BLUE)
    axes.text(42, 14.6, "action", ha="center", va="bottom", weight="bold", color=BLUE)
    text = f"a slate of {rules.slate_size} videos that were not shown yet"
    axes.text(42, 13.2, text, ha="center", va="top", fontsize=8, color=INK)
    lines = (
        ("reward", "r = share of yes", INK),
        (
            "cost in temper",
            f"2 - r,  and 1 more if |2s - 1| ≥ {rules.ad_bound}:  "
            f"s = popular share of the last {rules.exposure_window} videos",
            RED,
        ),
        ("end", "the user leaves when temper is below 1", INK),
    )
    for row, (name, line, colour) in enumerate(lines):
        axes.text(22, 8.2 - 3.1 * row, name, ha="right", va="center", weight="bold", color=colour)
        axes.text(23.5, 8.2 - 3.1 * row, line, ha="left", va="center", color=INK)
    title = "One step of a session. Dull slates cost patience, and so do one-sided ones."
    axes.text(45, 29, title, ha="center", va="center", fontsize=12, color=INK)
    figure.savefig(Path(__file__).parent / "images" / "world.png")


def box(
    axes: Axes, place: tuple[float, float, float, float], colour: str, title: str, text: str
) -> None:
    """A rounded box at (left, bottom, width, height)."""
    left, bottom, width, height = place
    style = "round,pad=0,rounding_size=1.2"
    axes.add_patch(
        FancyBboxPatch((left, bottom), width, height, style, fc="white", ec=colour, lw=2)
    )
    middle = left + width / 2
    axes.text(middle, bottom + 0.7 * height, title, ha="center", va="center",
              weight="bold", fontsize=13, color=colour)  # fmt: skip
    axes.text(middle, bottom + 0.32 * height, text, ha="center", va="center",
              fontsize=8.5, color=INK)  # fmt: skip


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """An arrow between two boxes."""
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=18, lw=2, color=colour)
    )


if __name__ == "__main__":
    main()
