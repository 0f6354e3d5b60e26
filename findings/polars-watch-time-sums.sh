#!/usr/bin/env bash
# Polars adds up 700 hours of watch time to a negative number.
#
# Behaviour: the sum of an Int32 column is an Int32, and wraps around at 2,147,483,647 without a
# word; so do sums by group and `over`. Int8 and Int16 are widened to Int64 before they are added,
# Int32 is not: 700 plays of one hour in milliseconds are -1,774,967,296, which is 2**32 too few.
# The mean of the same column is right. NumPy, pandas, PyArrow and DuckDB add 32-bit numbers up in
# 64 bits.
#
# Since: seen in 2.1.0.
#
# Matters: watch times are logged in milliseconds, and 32 bits are enough for any single one:
# Parquet files and databases bring Int32. Totals of busy users, of items and of whole days are
# negative, or positive and wrong after another 600 hours. Cast to Int64 before adding.
#
# Source: the notes of polars.Series.sum in polars/series/series.py:2127 ("Dtypes in {Int8, UInt8,
# Int16, UInt16} are cast to Int64 before summing to prevent overflow issues").
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    polars==2.1.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import numpy as np
import polars as pl

HOUR = 3_600_000

plays = np.full(700, HOUR, np.int32)  # milliseconds
log = pl.DataFrame({"user": 0, "played": plays})
seen = {
    "NumPy": int(plays.sum()),
    "polars": log["played"].sum(),
    "polars, by user": log.group_by("user").agg(pl.col("played").sum())["played"].item(),
    "polars, mean times rows": log["played"].mean() * len(log),
    "polars, Int16": pl.Series(np.full(700, 1000, np.int16)).sum() * HOUR // 1000,
}
print("polars", pl.__version__, "numpy", np.__version__)
print("expected:", 700 * HOUR, "milliseconds, 700 hours")
print("seen:", seen)
wrapped = 700 * HOUR - 2**32
assert log["played"].dtype == pl.Int32 and wrapped < 0
assert seen == dict.fromkeys(seen, 700 * HOUR) | {"polars": wrapped, "polars, by user": wrapped}
CODE
