#!/usr/bin/env bash
# river's ROC AUC of perfectly calibrated click rates is .5, however well they rank.
#
# Behaviour: the metric counts at ten thresholds from 0 to 1. Rates below 1/9 all lie between the
# first two, where the curve is a straight line: AUC .5, as of a coin. The documentation says that
# the error is not significant for well calibrated probabilities; these are the very rates that the
# clicks were drawn with, and their true AUC is .755. That of ten times the rates is nearly right.
#
# Since: seen in 0.26.1.
#
# Matters: click rates are a few percent. Online learners are compared by this metric, all of them
# get .5, and one that errs upwards, beyond 1/9, seems to be the only one that learned anything.
# Hand in rates that are stretched over 0 to 1, or use `metrics.RollingROCAUC`.
#
# Source: river/metrics/roc_auc.py:64-69 (`n_thresholds=10`) and 14-16 (its docstring).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    river==0.26.1 numpy==2.4.6 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import numpy as np
import river
from river import metrics
from scipy.stats import rankdata

rng = np.random.default_rng(0)
rates = rng.uniform(0.001, 0.1, 20_000) ** 2 * 10  # all below .1
clicks = rng.random(len(rates)) < rates


def auc(predictions):
    """river's AUC of predictions of the clicks."""
    metric = metrics.ROCAUC()
    for click, prediction in zip(clicks.tolist(), predictions.tolist()):
        metric.update(click, prediction)
    return round(metric.get(), 3)


n_clicks, rest = clicks.sum(), (~clicks).sum()
wins = rankdata(rates)[clicks].sum() - n_clicks * (n_clicks + 1) / 2
true, seen, stretched = round(wins / (n_clicks * rest), 3), auc(rates), auc(rates * 10)
print("river", river.__version__)
print("expected:", true, "from the ranks of the clicks")
print("seen:", seen, "and", stretched, "of the rates times 10")
assert rates.max() < 1 / 9 and true > 0.65
assert seen == 0.5 and abs(stretched - true) < 0.03
CODE
