#!/usr/bin/env bash
# MABWiser's UCB1 never tries the items that it knows nothing of.
#
# Behaviour: UCB1 owes an item that has never been shown an endless upper bound: it comes next. In
# MABWiser such an item has the bound 0, below that of every item that was shown with a reward of 0
# or more. An arm of the constructor without a row in the log, and one that `add_arm` brings, are
# never chosen, however long one plays. With costs for rewards, below 0, they come first.
#
# Since: seen in 2.7.4.
#
# Matters: trying what is new is what a bandit is for, and catalogues get new items each day. Here
# the newcomer is the best item of all, is never shown, and the log gives no sign of it: regret
# grows for ever. Give each newcomer one made-up row, or call `warm_start`.
#
# Source: mabwiser/ucb.py:32 (expectations start at 0) and 95 (`if self.arm_to_count[arm]`: only
# arms with rows get a bound).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    mabwiser==2.7.4 numpy==2.4.6 pandas==3.1.1 scipy==1.17.1 scikit-learn==1.9.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
from importlib.metadata import version

from mabwiser.mab import MAB, LearningPolicy

WORTH = {"old": 0.2, "other": 0.1, "unseen": 0.9, "newcomer": 0.9}

agent = MAB(["old", "other", "unseen"], LearningPolicy.UCB1(alpha=1), seed=1)
agent.fit(["old", "other"], [WORTH["old"], WORTH["other"]])
agent.add_arm("newcomer")
shown = dict.fromkeys(WORTH, 0)
for _ in range(500):
    item = agent.predict()
    shown[item] += 1
    agent.partial_fit([item], [WORTH[item]])
bounds = agent.predict_expectations()
print("mabwiser", version("mabwiser"))
print("expected: each item is shown at least once in 500 steps")
print("seen:", shown, "with bounds", {item: round(float(b), 2) for item, b in bounds.items()})
assert shown["unseen"] == shown["newcomer"] == 0 and sum(shown.values()) == 500
assert bounds["unseen"] == bounds["newcomer"] == 0 < min(bounds["old"], bounds["other"])
CODE
