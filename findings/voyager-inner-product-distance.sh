#!/usr/bin/env bash
# The distance of two vectors in Voyager depends on what was added, and on the last question.
#
# Behaviour: under `Space.InnerProduct`, `Index.get_distance(a, b)` adds a coordinate to both
# vectors, by which the index makes all norms equal, and then takes 1 - a.b of these longer vectors.
# Of the vectors (1, 0) and (0, 1), whose inner product is 0, the distance is 1 as long as nothing
# longer was added, -15 after (3, 4) was, and -9800 after somebody asked for the distance of a
# vector of length 100. `query` leaves the coordinate out, and its distances are right.
#
# Since: seen in 2.2.3.
#
# Matters: scores of a retrieval stage are inner products. Those that one computes for candidates of
# another source, by the index's own function, are not on the scale of its answers, rank shorter
# vectors first, and change while the catalogue grows; a question is enough to shift the norm to
# which items that are added later are fitted. Compute them by hand.
#
# Source: voyager's cpp/src/TypedIndex.h:253-271 (getDistance calls getDotFactorAndUpdateNorm for
# both vectors).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    voyager==2.2.3 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
from importlib.metadata import version

import numpy as np
from voyager import Index, Space

user, item = np.eye(2, dtype=np.float32)
index = Index(Space.InnerProduct, num_dimensions=2)
seen = {}
index.add_item(item)
seen["one item"] = index.get_distance(user, item)
index.add_item(np.array([3, 4], np.float32))
seen["and one of length 5"] = index.get_distance(user, item)
index.get_distance(np.array([100, 0], np.float32), item)
seen["and a question of length 100"] = index.get_distance(user, item)
ids, distances = index.query(user, k=2)
print("voyager", version("voyager"))
print("expected:", dict.fromkeys(seen, 1.0))
print("seen:", seen, "and by query", dict(zip(ids.tolist(), distances.tolist())))
assert seen["one item"] == 1.0
assert seen["and one of length 5"] < -10 and seen["and a question of length 100"] < -9000
assert dict(zip(ids.tolist(), distances.tolist())) == {0: 1.0, 1: -2.0}
CODE
