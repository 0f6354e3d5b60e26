#!/usr/bin/env bash
# Cornac's AUC of a recommender that cannot tell items apart is 0, not .5.
#
# Behaviour: the AUC is the probability that a liked item scores above another one, where a tie
# counts half: scores that say nothing have .5. Cornac counts a tie as an error. Equal scores for
# all items have an AUC of 0, the value of a ranking that is wrong throughout; scores with few
# levels, such as counts of likes, stars or quantised embeddings, lose half the share of their tied
# pairs. Breaking the ties by noise of one part in a billion brings the .5 back.
#
# Since: seen in 3.0.1.
#
# Matters: popularity by counts in a long tail, a cold user's scores and item groups are full of
# ties. A popularity baseline then looks worse than chance, and what a model gains over it is partly
# that its scores are real numbers. Break ties at random before the metric, or use one that counts
# them half, such as scikit-learn's.
#
# Source: cornac/metrics/ranking.py:485 (`ui_scores > uj_scores` alone).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    cornac==3.0.1 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 powerlaw==2.0.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
from importlib.metadata import version

import numpy as np
from cornac.metrics import AUC
from sklearn.metrics import roc_auc_score

rng = np.random.default_rng(1)
items, liked = np.arange(1000), np.arange(0, 1000, 7)  # likes have nothing to do with the scores
label = np.isin(items, liked)
counts = rng.poisson(0.3, 1000).astype(float)  # most items were never liked by anybody
scores = {"equal": np.zeros(1000), "counts": counts, "nudged": counts + 1e-9 * rng.random(1000)}
expected = {name: round(roc_auc_score(label, score), 3) for name, score in scores.items()}
seen = {
    name: round(float(AUC().compute(item_indices=items, pd_scores=score, gt_pos=liked)), 3)
    for name, score in scores.items()
}
print("cornac", version("cornac"), "numpy", version("numpy"), "scikit-learn", version("scikit-learn"))
print("expected, of scores that say nothing:", expected)
print("seen:", seen)
assert seen["equal"] == 0 and expected["equal"] == 0.5
assert seen["counts"] < 0.3 and abs(expected["counts"] - 0.5) < 0.05
assert abs(seen["nudged"] - 0.5) < 0.05
CODE
