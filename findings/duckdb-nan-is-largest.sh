#!/usr/bin/env bash
# In DuckDB a watch ratio of 0/0 is above every threshold: a like.
#
# Behaviour: dividing 0 by 0 gives NaN, for whole numbers too, and NaN is larger than any number
# and equal to itself. `ratio >= 2` is therefore true where pandas, NumPy and Python say false,
# and `avg` is NaN where pandas leaves the row out. The same column handed over from pandas counts
# as missing, because pandas' NaN arrives as NULL: the answer depends on which of the two divides.
#
# Since: DuckDB 1.1.0 (2024), seen up to 2.0.1; in 1.0.0 the quotient was NULL, and nobody's
# like.
#
# Matters: a watch ratio is play duration by video duration, "liked" above a threshold, and a
# video whose duration was not recorded may be logged with zero. Positives appear from nothing,
# and reference scores change with DuckDB's version. Divide by `nullif(duration, 0)`.
#
# Source: DuckDB's documentation of floating-point types (NaN is equal to NaN and greater than any
# other number) and the setting `ieee_floating_point_ops`, which came in 1.1.0.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    duckdb==2.0.0 pandas==3.1.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import duckdb
import pandas as pd

log = pd.DataFrame({"played_ms": [0, 9_000, 30_000], "duration_ms": [0, 10_000, 10_000]})
ratio = log.played_ms / log.duration_ms
ratios = ratio.to_frame("ratio")


def first(query):
    """The one cell of a query's answer."""
    return duckdb.sql(query).fetchall()[0][0]


likes = {
    "pandas": int((ratio >= 2).sum()),
    "DuckDB, ratio of pandas": first("SELECT count(*) FROM ratios WHERE ratio >= 2"),
    "DuckDB": first("SELECT count(*) FROM log WHERE played_ms / duration_ms >= 2"),
}
means = (float(ratio.mean()), first("SELECT avg(played_ms / duration_ms) FROM log"))
print("duckdb", duckdb.__version__, "pandas", pd.__version__)
print("expected: one like of three rows, and a mean of", means[0])
print("seen:", likes, "and a mean of", means[1])
assert likes == {"pandas": 1, "DuckDB, ratio of pandas": 1, "DuckDB": 2}
assert means[0] == 1.95 and means[1] != means[1]
CODE
