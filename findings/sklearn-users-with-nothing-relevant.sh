#!/usr/bin/env bash
# A user with nothing relevant scores 1 in one metric of scikit-learn, and 0 in another.
#
# Behaviour: `label_ranking_average_precision_score` gives a user without a relevant item the full
# 1.0, and one for whom all items are relevant, too; `ndcg_score` gives the first 0.0. Both average
# over users and say nothing. Of agents that serve all other users equally badly, each user without
# a relevant item lifts the one and lowers the other.
#
# Since: seen in 1.9.1.
#
# Matters: in logs of clicks most users like nothing of most slates. With 90 % of such users a
# random ranking has a mean average precision above .9, and an nDCG below .1; both are read as the
# quality of the agent, side by side. Leave these users out of both, and say how many they are.
#
# Source: sklearn/metrics/_ranking.py:1454 ("the score is also equal to 1. The label ranking has no
# meaning") and 1943 (`gain[all_irrelevant] = 0`).
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
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

USERS, ITEMS = 1000, 10

rng = np.random.default_rng(0)
scores = rng.random((USERS, ITEMS))  # an agent that knows nothing
relevant = np.zeros((USERS, ITEMS), int)
relevant[np.arange(100), rng.integers(ITEMS, size=100)] = 1  # 100 users like one item each


def both(users):
    """Mean average precision and nDCG of some users."""
    return (
        round(float(label_ranking_average_precision_score(relevant[users], scores[users])), 2),
        round(float(ndcg_score(relevant[users], scores[users])), 2),
    )


answered, everyone = both(slice(100)), both(slice(USERS))
print("scikit-learn", sklearn.__version__)
print("expected, from the 100 users with a relevant item:", answered)
print("seen, with 900 users who like nothing:", everyone)
assert both(slice(100, USERS)) == (1.0, 0.0)
assert 0.25 < answered[0] < 0.35 and everyone[0] > 0.92 and everyone[1] < 0.1
CODE
