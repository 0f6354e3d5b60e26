#!/usr/bin/env bash
# The top 10 of torch.topk are not the first 10 of its top 20.
#
# Behaviour: among equal scores, `torch.topk` picks other items for another k. The list of 10 is
# then not the beginning of the list of 20, and neither is in the order of the items' numbers, as
# a stable sort would have it.
#
# Since: seen in 2.13.0 on the CPU. PyTorch's documentation warns that tied indices "may vary
# across different invocations", but not that they depend on k.
#
# Matters: counts tie all the time, as popularity scores, quantised scores, or scores of items
# without a row. Recall@10 cut from a top-20 list then differs from Recall@10 of a top-10 list,
# and a "popular" baseline depends on the length of the list. Break ties by hand:
# `scores.sort(descending=True, stable=True)`, or add a second key.
#
# Source: ATen/native/TopKImpl.h, which PyTorch installs among its headers: partial_sort where
# 64 k is at most the number of items, nth_element and sort where it is more. Here 10 and 20 lie
# on different sides.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import torch

popularity = torch.arange(1000).remainder(5).float()  # of 1,000 items, 200 with each count
ranked = popularity.sort(descending=True, stable=True).indices
top10, top20 = (popularity.topk(k).indices for k in (10, 20))
print("torch", torch.__version__)
print("expected:", ranked[:10].tolist(), "from both, or at least the same from both")
print("seen, k = 10:", top10.tolist())
print("seen, k = 20:", top20[:10].tolist(), "...")
assert popularity[top20].unique().tolist() == [4.0]  # right, all of them
assert set(top10.tolist()) != set(top20[:10].tolist())
CODE
