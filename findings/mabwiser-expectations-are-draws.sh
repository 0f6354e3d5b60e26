#!/usr/bin/env bash
# MABWiser's expected rewards of popular items are drawn anew at each question.
#
# Behaviour: `predict_expectations` of `LearningPolicy.Popularity` and `Softmax` is a draw from a
# Dirichlet distribution whose parameters are the expectations, which add up to 1: so wide that one
# item or another has nearly everything. Two questions in a row, with nothing learned in between,
# have other answers, and the item with 60 % of the rewards is not on top in a third of them.
# `EpsilonGreedy` answers with uniform numbers for one question in 1/epsilon.
#
# Since: seen in 2.7.4.
#
# Matters: the name promises estimates, and they are used as such: to rank a slate, to report what
# was learned, as the reward model of an off-policy estimate. The most popular item then differs
# from call to call. Take `EpsilonGreedy(epsilon=0)` for the estimates, and average many answers of
# `Softmax` where its probabilities are wanted.
#
# Source: mabwiser/popularity.py:53 and mabwiser/softmax.py:71 (`rng.dirichlet(alpha, size)`),
# mabwiser/greedy.py:61 (`rng.rand()` in place of the means).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    mabwiser==2.7.4 numpy==2.4.6 pandas==3.1.1 scipy==1.17.1 scikit-learn==1.9.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
from importlib.metadata import version

import numpy as np
from mabwiser.mab import MAB, LearningPolicy

items = ["a", "b", "c"]
log = {
    "decisions": np.repeat(items, 100),
    "rewards": np.repeat([1, 0] * 3, [60, 40, 30, 70, 10, 90]),
}


def answers(policy):
    """Answers to 1,000 questions, with nothing learned in between."""
    agent = MAB(items, policy, seed=1)
    agent.fit(**log)
    return np.array([list(agent.predict_expectations().values()) for _ in range(1000)])


popular = answers(LearningPolicy.Popularity())
greedy = answers(LearningPolicy.EpsilonGreedy(epsilon=0))
first = (popular.argmax(axis=1) == 0).mean()
print("mabwiser", version("mabwiser"))
print("expected: 1,000 times the answer", [0.6, 0.3, 0.1])
print("seen: answers such as", popular[:3].round(2).tolist(), f"with a on top of {first:.0%}")
print("seen, their mean:", popular.mean(axis=0).round(2).tolist())
assert len(np.unique(popular, axis=0)) == 1000
assert 0.5 < first < 0.7
np.testing.assert_allclose(popular.mean(axis=0), [0.6, 0.3, 0.1], atol=0.05)
np.testing.assert_allclose(greedy, [[0.6, 0.3, 0.1]] * 1000)  # estimates, as expected
CODE
