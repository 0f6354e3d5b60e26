#!/usr/bin/env bash
# The precision@10 of implicit is 1.0 where one of ten recommended items is right.
#
# Behaviour: `precision_at_k` and `ranking_metrics_at_k` divide the hits by the smaller of k and the
# number of the user's test items, summed over users. Of users with one test item each, all of whom
# have it somewhere among their ten, the precision is 1.0 and not .1: it is the recall. The same
# happens within a user, whose second half of the list never costs anything.
#
# Since: seen in 0.7.3.
#
# Matters: logs that are split by time or leave one out have one or two test items a user; precision
# is then several times that of any other library (scikit-learn, trec_eval, ranx), and grows with k
# where it should fall. Tables that mix sources cannot be compared. Multiply by hand, or call it
# recall.
#
# Source: implicit/evaluation.pyx, in `ranking_metrics_at_k`: `pr_div += fmin(K, likes.size())` and
# `"precision": relevant / pr_div`.
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
from implicit.evaluation import precision_at_k
from scipy.sparse import csr_matrix

USERS, ITEMS = 40, 12

answers = np.arange(USERS) % ITEMS  # one test item a user
test = csr_matrix((np.ones(USERS, np.float32), (np.arange(USERS), answers)), (USERS, ITEMS))
train = csr_matrix(
    (np.ones(USERS, np.float32), (np.arange(USERS), (answers + 1) % ITEMS)), (USERS, ITEMS)
)
model = AlternatingLeastSquares(factors=4, iterations=3, random_state=1, num_threads=1)
model.fit(train, show_progress=False)
lists, _ = model.recommend(np.arange(USERS), train, N=10)
hits = (lists == answers[:, None]).sum()
seen = {
    k: precision_at_k(model, train, test, K=k, show_progress=False, num_threads=1)
    for k in (5, 10)
}
right = hits / (10 * USERS)
print("implicit", implicit.__version__)
print(f"expected: precision@10 of {right:.3f}, for {hits} of {10 * USERS} items shown are right")
print(f"seen: {seen[10]:.3f}, and {seen[5]:.3f} at 5")
assert np.isclose(seen[10], hits / USERS) and seen[10] > 9 * right > 0
CODE
