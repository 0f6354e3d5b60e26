"""Means over seeds and what chance makes of them."""

from __future__ import annotations

import numpy as np
from scipy.stats import t as student_t


def mean_and_ci95(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of Student's 95 % interval; NaN half-width for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    error = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return float(np.mean(values)), float(student_t.ppf(0.975, len(values) - 1)) * float(error)
