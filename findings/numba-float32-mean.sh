#!/usr/bin/env bash
# The mean watch ratio of 20 million rows is 0.84 in numba, and 1 in NumPy.
#
# Behaviour: numba compiles `array.sum()` and `array.mean()` of float32 to one running float32
# sum, which stops growing at 2**24: adding 1 to 16,777,216 changes nothing. NumPy adds in pairs
# along a contiguous axis, and is right. But NumPy does as numba along the other axis: the mean of
# each of two columns of a (n, 2) table is as wrong, in NumPy itself, while a table of one column
# is right.
#
# Since: seen in numba 0.68.1 and NumPy 2.4.6.
#
# Matters: logs of plays have tens of millions of rows, and single precision halves their memory.
# A mean that was right in NumPy becomes 16 % too small when the function is compiled or when a
# second column is averaged along. Ask for double precision: `array.mean(axis=0,
# dtype=np.float64)`; in numba, `array.astype(np.float64)` or a loop with a float64 total.
#
# Source: numba/np/arraymath.py:866 (array_mean: `c += v.item()` in the array's own type);
# numpy.sum's documentation, Notes: the more precise sum is taken along the fast axis in memory
# alone.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    numba==0.68.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import numba
import numpy as np

compiled_mean = numba.njit(lambda array: array.mean())
ratios = np.ones(20_000_000, np.float32)
seen = {
    "NumPy": float(ratios.mean()),
    "numba": float(compiled_mean(ratios)),
    "NumPy, table of one column": float(ratios[:, None].mean(axis=0)[0]),
    "NumPy, table of two columns": float(np.ones((20_000_000, 2), np.float32).mean(axis=0)[0]),
}
print("numba", numba.__version__, "numpy", np.__version__)
print("expected: 1.0 from all")
print("seen:", seen)
stuck = 2**24 / 20_000_000
np.testing.assert_allclose(list(seen.values()), [1.0, stuck, 1.0, stuck], rtol=1e-6)
CODE
