"""Makes ``rliable_answers.json``: what rliable itself says of some scores.

It does not import beside pandas 3, so that it runs in an environment of its own::

    python -m venv other && other/bin/pip install rliable==1.2.0 "pandas<3"
    other/bin/python tests/benchmarks/rliable_answers.py > tests/benchmarks/rliable_answers.json
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import numpy as np

THRESHOLDS = [-0.1, 0.0, 0.25, 0.5, 0.7, 0.95, 1.3]
RESAMPLES = 2000


def main() -> None:
    """Prints the scores and the answers."""
    from rliable import library, metrics

    rng = np.random.default_rng(1)
    scores = np.round(rng.normal(0.6, 0.3, (5, 7)), 1)  # with ties; 35 is no multiple of 4
    others = np.round(rng.normal(0.4, 0.3, (3, 7)), 1)
    np.random.seed(1)  # rliable draws from it
    aggregates = {
        "mean": metrics.aggregate_mean,
        "median": metrics.aggregate_median,
        "interquartile_mean": metrics.aggregate_iqm,
        "optimality_gap": metrics.aggregate_optimality_gap,
    }
    answers = {name: float(function(scores)) for name, function in aggregates.items()}
    intervals = {
        name: library.get_interval_estimates(
            {"x": data}, lambda *each, made=made: np.array([made(*each)]), reps=RESAMPLES
        )[1]["x"][:, 0].tolist()
        for name, data, made in (
            ("interquartile_mean", scores, metrics.aggregate_iqm),
            ("probability_of_improvement", [scores, others], metrics.probability_of_improvement),
        )
    }
    profiles, _ = library.create_performance_profile({"x": scores}, THRESHOLDS, reps=2)
    answers |= {
        "performance_profile": profiles["x"].tolist(),
        "probability_of_improvement": float(metrics.probability_of_improvement(scores, others)),
        "intervals": intervals,
    }
    made = {
        "versions": {name: version(name) for name in ("rliable", "arch", "numpy", "pandas")},
        "source": "https://github.com/google-research/rliable",
        "scores": scores.tolist(),
        "others": others.tolist(),
        "thresholds": THRESHOLDS,
        "answers": answers,
    }
    sys.stdout.write(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
