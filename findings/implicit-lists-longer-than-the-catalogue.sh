#!/usr/bin/env bash
# implicit fills long lists up with item 0, and counts it each time: a precision of 540 %.
#
# Behaviour: for a list that is longer than the catalogue, `recommend` gives item 0 with score 0.0
# for every place that is left. It is not marked, and item 0 may have been there already, or be in
# the user's history. The evaluation counts it as a hit each time it is a test item: precision, MAP
# and nDCG at 100 of a catalogue of 12 are above 1.
#
# Since: seen in 0.7.3.
#
# Matters: k = 100 is a common cut-off, and small catalogues are common too: a category, a shop, the
# small matrix of a benchmark, a first test. Item 0 is then by far the most exposed item of a
# fairness report. Cut k at the number of items.
#
# Source: implicit/cpu/topk.pyx (`indices = np.zeros((query_rows, k), dtype="int32")`) and
# implicit/evaluation.pyx, which looks up each place of the list among the test items.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    implicit==0.7.3 numpy==2.4.6 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import implicit
import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.evaluation import ranking_metrics_at_k, train_test_split
from scipy.sparse import csr_matrix

ITEMS = 12

log = csr_matrix((np.random.default_rng(0).random((60, ITEMS)) < 0.3).astype(np.float32))
train, test = train_test_split(log, 0.8, random_state=1)
model = AlternatingLeastSquares(factors=4, random_state=1, num_threads=1)
model.fit(train, show_progress=False)
shown, scores = model.recommend(0, train[0], N=ITEMS + 5)
seen = ranking_metrics_at_k(model, train, test, K=100, show_progress=False, num_threads=1)
seen = {name: round(value, 2) for name, value in seen.items() if name != "auc"}
print("implicit", implicit.__version__)
print("expected: each of", ITEMS, "items once, and metrics of at most 1")
print("seen:", shown.tolist())
print("seen, at 100:", seen)
assert shown[ITEMS:].tolist() == [0] * 5 and scores[ITEMS:].tolist() == [0.0] * 5
assert 0 in shown[:ITEMS] and seen["precision"] > 2 and seen["map"] > 1 and seen["ndcg"] > 1
CODE
