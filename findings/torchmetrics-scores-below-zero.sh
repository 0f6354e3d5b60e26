#!/usr/bin/env bash
# In torchmetrics no relevant item is found whose score is negative, wherever it ranks.
#
# Behaviour: `RetrievalMRR`, `RetrievalMAP`, `RetrievalPrecision` and `RetrievalRecall` take
# relevant items with a score of 0 or less for irrelevant. A perfect ranking by log-probabilities
# has 0.0 in all four, and 1.0 once a constant is added to its scores, which changes no order.
# `RetrievalHitRate` and `RetrievalNormalizedDCG` go by the order alone, and say 1.0 both times.
#
# Since: seen in 1.9.0. The documentation speaks of probabilities, and nothing is refused.
#
# Matters: recommenders score by inner products, logits and log-probabilities. Lists of one agent
# are perfect and useless at the same time, an agent is worse than another because its logits are
# lower, and a figure of a paper depends on a bias term. Subtract the smallest score and add 1.
#
# Source: torchmetrics/functional/retrieval/reciprocal_rank.py:55, average_precision.py:55,
# precision.py:68 and recall.py:62 (`torch.where(preds > 0, target, torch.zeros_like(target))`).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import torch
import torchmetrics
from torchmetrics import retrieval

log_probabilities = torch.tensor([0.7, 0.2, 0.1]).log()
relevant = torch.tensor([1, 0, 0])
user = torch.zeros(3, dtype=torch.long)
metrics = {
    "MRR": retrieval.RetrievalMRR(),
    "MAP": retrieval.RetrievalMAP(),
    "P@1": retrieval.RetrievalPrecision(top_k=1),
    "R@1": retrieval.RetrievalRecall(top_k=1),
    "hit rate@1": retrieval.RetrievalHitRate(top_k=1),
    "nDCG": retrieval.RetrievalNormalizedDCG(),
}


def scores(predictions):
    """Each metric of one user's list."""
    return {
        name: float(metric(predictions, relevant, indexes=user))
        for name, metric in metrics.items()
    }


seen, shifted = scores(log_probabilities), scores(log_probabilities + 5)
print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
print("expected:", dict.fromkeys(metrics, 1.0))
print("seen:", seen)
print("seen of scores + 5:", shifted)
assert shifted == dict.fromkeys(metrics, 1.0)
assert seen == shifted | dict.fromkeys(("MRR", "MAP", "P@1", "R@1"), 0.0)
CODE
