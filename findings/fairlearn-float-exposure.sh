#!/usr/bin/env bash
# fairlearn finds no disparity between groups whose exposures are .85 and .15.
#
# Behaviour: `demographic_parity_difference` and `_ratio` count predictions that equal 1. Of
# fractions, such as a probability of being shown or a share of attention, none does: the difference
# is 0.0, the best value, without a warning, and the ratio is NaN. A single exposure of exactly 1.0
# counts, .99 does not. The documentation speaks of the expected prediction of a group.
#
# Since: seen in 0.10.0 and 0.15.0.
#
# Matters: exposure under a stochastic policy is a fraction. An agent that hides a group entirely
# gets a perfect score, and a search over fairness weights finds that all of them are fair. Use
# `MetricFrame(metrics=mean_prediction, ...)` and its `difference()` and `ratio()`.
#
# Source: fairlearn/metrics/_base_metrics.py:328 (`y_pred == pos_label`), used by
# fairlearn/metrics/_fairness_metrics.py:54; its docstring defines the metric by E[h(X) | A=a].
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    fairlearn==0.15.0 pandas==3.1.1 numpy==2.4.6 scikit-learn==1.9.1
cd "$folder"
"$folder/venv/bin/python" -W error::UserWarning - <<'CODE'
import math

import fairlearn
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    demographic_parity_ratio,
    mean_prediction,
)

groups = ["popular", "popular", "niche", "niche"]
relevant = [1, 0, 1, 0]
exposure = [0.9, 0.8, 0.2, 0.1]

frame = MetricFrame(
    metrics=mean_prediction, y_true=relevant, y_pred=exposure, sensitive_features=groups
)
difference = demographic_parity_difference(relevant, exposure, sensitive_features=groups)
ratio = demographic_parity_ratio(relevant, exposure, sensitive_features=groups)
certain = demographic_parity_difference(relevant, [1.0, *exposure[1:]], sensitive_features=groups)
print("fairlearn", fairlearn.__version__)
print(f"expected: a difference of {frame.difference():.2f} and a ratio of {frame.ratio():.2f}")
print("seen: a difference of", difference, "and a ratio of", ratio)
print("seen with 1.0 in place of .9: a difference of", certain)
assert math.isclose(frame.difference(), 0.7)
assert difference == 0.0 and math.isnan(ratio) and certain == 0.5
CODE
