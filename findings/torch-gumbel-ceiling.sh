#!/usr/bin/env bash
# Gumbel noise of PyTorch has a ceiling, and the best of 16 million items tie below it.
#
# Behaviour: `torch.distributions.Gumbel` is -log(-log(u)) of a float32 u, which lies on a grid of
# 2**-24 and ends at 1 - 2**-23. No noise is above 15.95, and the large ones are log(2**24 / k) with
# k = 2, 3, 4, ... The thousand largest of 16 million draws have about 650 different values, and the
# first place is often shared, where `argmax` and `topk` take one of them by its place in memory.
#
# Since: seen in PyTorch 2.13.0.
#
# Matters: Gumbel-top-k is how slates are drawn without replacement from large catalogues, by the
# Plackett-Luce law. Among millions of equal items the ties make the draw depend on the items'
# numbers: `argmax` prefers low ones. `-empty.exponential_().log()` has its fine end where it is
# needed: nearly all of the largest are different, and there is no such ceiling.
#
# Source: torch/distributions/gumbel.py:46 (`Uniform(finfo.tiny, 1 - finfo.eps)`), and the two
# logarithms of the transforms below it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import math

import torch

ITEMS, TOP = 16_000_000, 1000

torch.manual_seed(0)
noise = torch.distributions.Gumbel(0.0, 1.0)
drawn = noise.sample((ITEMS,)).topk(TOP).values
other = torch.empty(ITEMS).exponential_().log().neg().topk(TOP).values
ceiling = -math.log(-math.log(1 - 2**-23))
print("torch", torch.__version__)
print("expected:", TOP, "different values among the largest", TOP)
print("seen:", len(drawn.unique()), f"up to {float(drawn.max()):.2f}; ceiling {ceiling:.2f}")
print("seen of -log of an exponential variable:", len(other.unique()))
assert 400 < len(drawn.unique()) < 800 and len(other.unique()) > 980
assert float(drawn.max()) <= ceiling + 1e-3
CODE
