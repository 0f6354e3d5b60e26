#!/usr/bin/env bash
# A second `fit` of implicit's ALS goes on from the first, and remembers its test set.
#
# Behaviour: `AlternatingLeastSquares.fit` draws factors at random only while there are none. A
# second call starts at the factors of the first, seed or no seed: two fits of 5 iterations are,
# number for number, one of 10. A model that was fitted to all data and then to the training part
# alone, as in a second fold, finds held-out items among its starting values: its nDCG on the test
# part is more than twice that of a fresh model, on data that is pure chance.
#
# Since: seen in 0.7.3.
#
# Matters: `fit` starts anew in scikit-learn and nearly everywhere else. Loops over folds, days or
# hyper-parameters that keep one model object leak test data into the next fit, and a search prefers
# whatever came last. Make a new model for each fit.
#
# Source: implicit/cpu/als.py:144-147 (`if self.user_factors is None`, and the same of the items).
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
from implicit.evaluation import ndcg_at_k, train_test_split
from scipy.sparse import csr_matrix

chance = np.random.default_rng(0).random((300, 100)) < 0.1
log = csr_matrix(chance.astype(np.float32))
train, test = train_test_split(log, 0.8, random_state=1)


def fitted(*logs, iterations=2):
    """A model that was fitted to some logs, one after the other."""
    model = AlternatingLeastSquares(
        factors=32, iterations=iterations, random_state=1, num_threads=1
    )
    for each in logs:
        model.fit(each, show_progress=False)
    return model


def quality(model):
    return ndcg_at_k(model, train, test, K=10, show_progress=False, num_threads=1)


twice, once = fitted(train, train, iterations=5), fitted(train, iterations=10)
fresh, second = quality(fitted(train)), quality(fitted(log, train))
print("implicit", implicit.__version__)
print(f"expected: nDCG@10 of {fresh:.3f} by the fit to the training part, whatever came before")
print(f"seen: {second:.3f} after a fit to all data")
same = np.allclose(twice.user_factors, once.user_factors, rtol=1e-3, atol=1e-4)
print("seen: two fits of 5 iterations are one of 10:", same)
assert same and second > 1.7 * fresh
CODE
