#!/usr/bin/env bash
# The AUROC of torchmetrics depends on which scores come in one batch, and ends at 17.
#
# Behaviour: the metric takes scores outside of [0, 1] for logits and applies a sigmoid. It decides
# so for each `update` alone: of the scores .1, .9, 2 and 3 it keeps the first two as they are if
# they come in a batch of their own, and the sigmoid of 2 is then below .9. The same four items in
# the same order have an AUROC of 1.0 at once and of .75 in two batches. And a float32 sigmoid is 1
# from 17 on: scores of 20, 21, 22 and 23 are all equal, AUROC .5.
#
# Since: seen in 1.9.0. The documentation describes the sigmoid, and that AUROC ranks.
#
# Matters: rank metrics of scores, such as inner products or predicted watch times, change with the
# batch size and with the order of the log. Hand in a sigmoid of scaled scores, or ranks divided by
# their number.
#
# Source: torchmetrics/utilities/compute.py:233 (`if not torch.all((tensor >= 0) * (tensor <= 1))`),
# called by torchmetrics/functional/classification/precision_recall_curve.py:186.
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
from torchmetrics.classification import BinaryAUROC


def auroc(*batches):
    """AUROC of scores and likes that come in batches."""
    metric = BinaryAUROC()
    for scores, likes in batches:
        metric.update(torch.tensor(scores), torch.tensor(likes))
    return float(metric.compute())


seen = {
    "one batch": auroc(([0.1, 0.9, 2.0, 3.0], [0, 0, 1, 1])),
    "two batches": auroc(([0.1, 0.9], [0, 0]), ([2.0, 3.0], [1, 1])),
    "scores above 17": auroc(([20.0, 21.0, 22.0, 23.0], [0, 0, 1, 1])),
}
print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
print("expected:", dict.fromkeys(seen, 1.0))
print("seen:", seen)
assert seen == {"one batch": 1.0, "two batches": 0.75, "scores above 17": 0.5}
CODE
