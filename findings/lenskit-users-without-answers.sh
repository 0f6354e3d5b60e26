#!/usr/bin/env bash
# LensKit's means hold users with nothing to find as zeros, and no users without a list.
#
# Behaviour: a user without test items has no hit rate, nDCG or recall: the table of lists says NaN,
# and `list_summary` turns it into a zero of the mean. A user with test items for whom the run holds
# no list, a failure, is left out of both. Of two users who are served perfectly, one who has nothing
# to find, and one who was forgotten, the hit rate is 2/3. It is still 2/3 if the forgotten user had
# nothing to find either, where no user failed.
#
# Since: seen in 2025.8.0 and 2025.8.1.
#
# Matters: an agent that gives no list to hard users (cold starts, an empty candidate set, a session
# that ended early) looks better than one that tries; and a split that leaves many users
# without test items lowers all scores by the same factor, which then cannot be compared across
# splits. Give every test user a list, an empty one if need be, and drop those without test items.
#
# Source: lenskit/metrics/bulk.py:67 (`fillna` with each metric's default of 0) and the loop over the
# run's lists in `RunAnalysis.measure`; lenskit/metrics/_base.py says that the mean ignores NaNs, and
# `add_metric` that the default stands for users without recommendations.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    lenskit==2025.8.1 pandas==2.3.3 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import math
from importlib.metadata import version

from lenskit.data import ItemList, ItemListCollection
from lenskit.metrics import Hit, RunAnalysis


def collection(lists, ordered):
    """Lists of items by user."""
    users = {user: ItemList(items, ordered=ordered) for user, items in lists.items()}
    return ItemListCollection.from_dict(users, key="user")


def measured(answers):
    """Hit rate of each user who has a list, and the mean that LensKit reports."""
    run = {"served": ["a", "x"], "also served": ["b", "y"], "nothing to find": ["x", "y"]}
    result = RunAnalysis(Hit(2)).measure(collection(run, True), collection(answers, False))
    lists = result.list_metrics(fill_missing=False)["Hit@2"].to_dict()
    return lists, float(result.list_summary()["mean"]["Hit@2"])


answers = {"served": ["a"], "also served": ["b"], "nothing to find": []}
lists, mean = measured({**answers, "forgotten": ["d"]})
_, without = measured(answers)
_, answered = measured({**answers, "nothing to find": ["x"]})
print("lenskit", version("lenskit"), "pandas", version("pandas"))
print("expected: a mean of 2/3, and of 1 without the forgotten user's answers")
print(f"seen: {lists}, no row of 'forgotten', a mean of {mean:.3f}, and of {without:.3f} without")
print(f"seen once 'nothing to find' is served as well: {answered:.3f}")
assert set(lists) == {"served", "also served", "nothing to find"}
assert math.isnan(lists["nothing to find"])
assert math.isclose(mean, 2 / 3) and mean == without and answered == 1.0
CODE
