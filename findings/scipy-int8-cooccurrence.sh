#!/usr/bin/env bash
# Co-occurrence counts of a SciPy matrix of bytes wrap at 127; its sums do not.
#
# Behaviour: the product of two sparse int8 matrices is int8: 300 users who watched both of two
# items count as 44. `sum()` of the same matrix widens to int64 and is right, which makes the
# product look safe. A Boolean matrix gives True for the count.
#
# Since: seen in 1.17.1, for csr_matrix and csr_array alike.
#
# Matters: a user-item matrix of zeros and ones is kept in bytes to save memory, and item-item
# neighbours, EASE and cosine similarities begin with `matrix.T @ matrix`. Popular pairs become
# rare or negative, and rankings are wrong where it matters most, without a warning. Multiply
# `matrix.astype(np.int32)` or float32.
#
# Source: scipy/sparse/_compressed.py:460 (`dtype=upcast(self.dtype, other.dtype)`) against
# scipy/sparse/_base.py:1327 (get_sum_dtype in sum).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    scipy==1.17.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import numpy as np
import scipy
from scipy import sparse

watched = sparse.csr_array(np.ones((300, 2), np.int8))  # 300 users, two items
seen = {
    "sum": int(watched.sum(axis=0)[0]),
    "int8": int((watched.T @ watched)[0, 1]),
    "bool": (watched.astype(bool).T @ watched.astype(bool))[0, 1].item(),
    "int32": int((watched.astype(np.int32).T @ watched)[0, 1]),
}
print("scipy", scipy.__version__, "numpy", np.__version__)
print("expected: 300 users in all")
print("seen:", seen)
assert seen == {"sum": 300, "int8": 44, "bool": True, "int32": 300}
CODE
