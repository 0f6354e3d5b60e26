#!/usr/bin/env bash
# In Vowpal Wabbit item 262,145 is item 1, and user 1 is item 134,672.
#
# Behaviour: names of features are hashed, except those that are whole numbers: their place is the
# hash of the namespace plus the number, in a table of 2**18 weights. Items whose numbers are
# 262,144 apart are therefore always one and the same, and the users are the items, moved by a
# constant: what is learned of `|user 1` is predicted for `|item 134672`, exactly. With a letter
# before the number, or with `--hash all`, both are apart.
#
# Since: seen in 9.11.9.
#
# Matters: one expects of hashing that few of the items collide, at random, and that a larger
# catalogue gets slowly worse. Here numbered catalogues fold over, and the first users of a platform
# speak for a stretch of its items. Policies learn from the wrong item, and their logs do not show
# it. Write `|item i1`, and choose `-b` for twice the number of users and items at least.
#
# Source: `vw --help`: the options `--hash` (default `strings`, or `all`) and `--bit_precision`.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    vowpalwabbit==9.11.9
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import vowpalwabbit

OTHERS = ("item 1", "item 2", "item 262145", "item 134672", "user 1")


def predictions(learned, others, options=""):
    """What is predicted for some features after a feature was liked 50 times."""
    model = vowpalwabbit.Workspace(f"--quiet --noconstant {options}")
    for _ in range(50):
        model.learn(f"1 |{learned}")
    return {other: round(model.predict(f"|{other}"), 3) for other in others}


item, user = predictions("item 1", OTHERS), predictions("user 1", OTHERS)
named = predictions("item i1", ("item i1", "item i262145"))
hashed = predictions("item 1", OTHERS, "--hash all")
print("vowpalwabbit", vowpalwabbit.__version__)
print("expected after item 1 was liked:", dict.fromkeys(OTHERS, 0.0) | {"item 1": 1.0})
print("seen:", item)
print("seen after user 1 liked something:", user)
nothing = dict.fromkeys(OTHERS, 0.0)
assert item == nothing | {"item 1": 1.0, "item 262145": 1.0}
assert user == nothing | {"user 1": 1.0, "item 134672": 1.0}
assert named == {"item i1": 1.0, "item i262145": 0.0} and hashed == nothing | {"item 1": 1.0}
CODE
