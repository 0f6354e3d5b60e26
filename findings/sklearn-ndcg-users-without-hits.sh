#!/usr/bin/env bash
# scikit-learn's mean NDCG counts users without a relevant item as zeros.
#
# Behaviour: `ndcg_score` of a user with nothing to find is 0, not undefined, and enters the mean.
# A perfect ranking then has an NDCG below 1: the share of users who liked anything. Gains are the
# relevances themselves, not 2**relevance - 1.
#
# Since: `ndcg_score` became public in 0.22 (2019); seen in 1.9.1.
#
# Matters: most test users of short-video logs like nothing in a sampled slate. Papers and
# recommender libraries leave such users out and use the exponential gain, so figures are not
# comparable, and the scale depends on the data: here the perfect ranking has 0.5. Drop the rows
# first (`relevance[relevance.any(axis=1)]`) and pass `2.0**relevance - 1`.
#
# Source: sklearn/metrics/_ranking.py:1943 (`gain[all_irrelevant] = 0`).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import numpy as np
import sklearn
from sklearn.metrics import ndcg_score

relevance = np.array([[0, 0, 1, 0, 3], [0, 0, 0, 0, 0]])  # two users, five items
perfect = relevance.astype(float)
swapped = np.array([[0, 0, 3, 0, 1]])
seen = {
    "perfect": ndcg_score(relevance, perfect),
    "perfect, users with hits": ndcg_score(relevance[:1], perfect[:1]),
    "swapped": round(ndcg_score(relevance[:1], swapped), 3),
    "swapped, exponential gain": round(ndcg_score(2.0 ** relevance[:1] - 1, swapped), 3),
}
print("scikit-learn", sklearn.__version__)
print("expected: 1.0 for the perfect ranking, with or without the user who liked nothing")
print("seen:", seen)
assert seen == {
    "perfect": 0.5,
    "perfect, users with hits": 1.0,
    "swapped": 0.797,
    "swapped, exponential gain": 0.71,
}
CODE
