#!/usr/bin/env bash
# RecBole's Shannon entropy falls as recommendations spread over more items.
#
# Behaviour: the entropy of what is recommended is 0 where one item is shown to all, and log n where
# n items are shown equally often: more is more diverse. RecBole's ShannonEntropy divides it by the
# number of distinct items that were recommended. Two items for everybody score .347, a thousand
# items, each as often as the others, .007; one item scores 0. A model that shows nearly nothing but
# two hits is the most diverse of all, and early stopping on this metric, of which RecBole takes
# more for better, looks for it. The formula in its documentation does not divide.
#
# Since: seen in 1.2.1.
#
# Matters: entropy beside the Gini index is how RecBole's users report that a debiased or fair model
# widens what is shown. Here the debiased model loses. Multiply by the number of distinct items, or
# compute the entropy from `rec.items`.
#
# Source: recbole/evaluator/metrics.py:630 (`return result / len(item_count)`), and the formula in
# the documentation of the class.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    recbole==1.2.1 torch==2.13.0 numpy==2.4.6 pandas==3.1.1 scipy==1.17.1 scikit-learn==1.9.1 \
    ray==2.6.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
from importlib.metadata import version
from math import log

import torch
from recbole.evaluator import DataStruct, ShannonEntropy

metric = ShannonEntropy({"topk": [1], "metric_decimal_place": 4})
seen, expected = {}, {}
for n_items in (1, 2, 10, 100, 1000):
    shown = DataStruct()
    shown.set("rec.items", torch.arange(1000).reshape(-1, 1) % n_items)  # 1,000 users, one item each
    seen[n_items] = float(metric.calculate_metric(shown)["shannonentropy@1"])
    expected[n_items] = round(log(n_items), 4)
print("recbole", version("recbole"), "torch", version("torch"), "numpy", version("numpy"))
print("expected, by the number of items that are shown equally often:", expected)
print("seen:", seen)
assert seen[1] == 0 and seen[2] > seen[10] > seen[100] > seen[1000] > 0
assert all(abs(seen[n] - expected[n] / n) < 1e-4 for n in seen)
CODE
