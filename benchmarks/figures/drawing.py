"""Helpers of the figures: saving them small, and means with intervals.

They are kept beside the results, so their files are to be small.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from benchmarks.formatting import mean_and_ci95

DPI = 110  # of figures that ask for no more
COLOURS = 256


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG file with a palette: dots in thousands cost a third of what they did."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=max(DPI, figure.dpi), format="png")
    method, no_dots = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE  # keep colour maps smooth
    image = Image.open(drawn).convert("RGB")
    plain = image.quantize(COLOURS, method, kmeans=4, dither=no_dots)
    plain.save(path, format="PNG", optimize=True)
    return path


def means_and_halves(groups: Iterable[list[float]]) -> NDArray[np.float64]:
    """(2, n) float64: the mean of each group, and the half-width of its 95 % interval.

    A single value has no interval: its half-width is NaN, which is not drawn.
    """
    return np.array([mean_and_ci95(values) for values in groups]).T
