#!/usr/bin/env bash
# One of eight million single-precision exponential numbers of NumPy is exactly 0.
#
# Behaviour: `Generator.standard_exponential(n, dtype=np.float32)` multiplies a whole number of 23
# bits by a width, and the whole number may be 0. Of 134 million numbers 14 are 0, which has
# probability 0 by the law. In double precision there are none. The Gumbel noise -log(x) of a zero
# is infinite, and so is the weight w / x.
#
# Since: seen in 2.4.6.
#
# Matters: the k smallest of x / w are a draw of k items without replacement, and -log(x) on top of
# the logits is the same. Of a million items one in eight slates has an infinite key. It is above
# any finite mask, so that an item that must not be shown comes first, and NaN over a mask of minus
# infinity. Take `np.maximum(x, np.finfo(x.dtype).tiny)`.
#
# Source: the documentation of numpy.random.Generator.standard_exponential, which names the method
# (ziggurat) and the type, and says nothing of zeros.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import numpy as np

DRAWS, BLOCKS = 2**23, 16

rng = np.random.default_rng(0)
zeros = dict.fromkeys((np.float32, np.float64), 0)
for kind in zeros:
    for _ in range(BLOCKS):
        zeros[kind] += int((rng.standard_exponential(DRAWS, dtype=kind) == 0).sum())
with np.errstate(divide="ignore", invalid="ignore"):
    masked = np.array([-1e9, -np.inf]) - np.log(np.float32(0))
print("numpy", np.__version__)
print("expected: no zero among", DRAWS * BLOCKS, "numbers")
print("seen:", {kind.__name__: count for kind, count in zeros.items()})
print("seen, logits of forbidden items with the noise of a zero:", masked.tolist())
assert 4 < zeros[np.float32] < 40 and zeros[np.float64] == 0
assert masked[0] == np.inf and np.isnan(masked[1])
CODE
