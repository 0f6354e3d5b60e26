#!/usr/bin/env bash
# RecTools' debiasing leaves a hit that fans replay rarer than the items that nobody knows.
#
# Behaviour: debias_interactions, which `debias_config` of the metrics calls, thins out items that
# more users than a border have met, until as many users are left as the border says; the popularity
# that the border is made of counts users. What is drawn are rows. Where a user has many rows of an
# item, they crowd out the other users: of a hit that 41 users watched, one of them 400 times, one to
# three users are left where ten were to be, and every quiet item keeps its ten.
#
# Since: seen in 0.19.0.
#
# Matters: logs of short videos and songs hold replays (in KuaiRec a user watches some videos many
# times), and fans replay hits. The "debiased" test set is biased against them, so that models that
# show them fall below models that do not. Drop repeated pairs of user and item before the metric.
#
# Source: rectools/metrics/debias.py:108 (popularity by `nunique` of users) and 124 to 126 (rows are
# shuffled, and the first `max_border` of an item kept).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    rectools==0.19.0 numpy==1.26.4 pandas==2.3.3 scipy==1.17.1 pm-implicit==0.7.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
from importlib.metadata import version

import pandas as pd
from rectools.metrics import DebiasConfig, debias_interactions

QUIET, HIT, FAN = range(20), 99, 40
rows = [(user, item) for item in QUIET for user in range(10)]  # ten users each: the border
rows += [(user, HIT) for user in range(40)] + [(FAN, HIT)] * 400
log = pd.DataFrame(rows, columns=["user_id", "item_id"])


def users_left(table, seed):
    """Users of the hit, and the fewest of a quiet item, after debiasing."""
    left = debias_interactions(table, DebiasConfig(iqr_coef=1.5, random_state=seed))
    users = left.groupby("item_id").user_id.nunique()
    return int(users[HIT]), int(users[list(QUIET)].min())


seen = [users_left(log, seed) for seed in range(5)]
without_replays = [users_left(log.drop_duplicates(), seed) for seed in range(5)]
print("rectools", version("rectools"), "pandas", version("pandas"), "numpy", version("numpy"))
print("users of the hit, and of a quiet item, by five draws")
print("expected:", [(10, 10)] * 5)
print("seen:", seen, "and without replays:", without_replays)
assert all(hit < 5 and quiet == 10 for hit, quiet in seen)
assert without_replays == [(10, 10)] * 5
CODE
