#!/usr/bin/env bash
# The watch ratio of a play that was not seen to the end is 0 in PyArrow.
#
# Behaviour: `pc.field("played") / pc.field("duration")` of two columns of whole numbers is cut off
# to a whole number, as is `pc.divide`. A play of 9.9 seconds of 10 has the ratio 0, one of 19
# seconds has 1. A filter `ratio >= 0.5` compares the number that was cut off, and keeps only those
# that were seen to the end. pandas divides the same Arrow columns, with the same operator, to 0.99.
#
# Since: seen in 26.0.1.
#
# Matters: `/` cuts nothing off in Python, NumPy, pandas, Polars and DuckDB, and logs hold both
# times in whole milliseconds. Datasets are filtered by likes as they are read, and the likes are
# other ones than those of the same line of pandas. Write `pc.field("played").cast("float64")`.
#
# Source: the documentation of pyarrow.compute.divide, which speaks of integer division, and which
# the operator of `pyarrow.compute.Expression` calls.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

plays = pa.table({"played": [2_000, 5_000, 9_900, 19_000], "duration": [10_000] * 4})
ratio = pc.field("played") / pc.field("duration")
log = ds.dataset(plays)
frame = plays.to_pandas(types_mapper=pd.ArrowDtype)
expected = (frame.played / frame.duration).tolist()
likes = frame.played[frame.played / frame.duration >= 0.5].tolist()
seen = log.to_table(columns={"ratio": ratio})["ratio"].to_pylist()
kept = log.to_table(filter=ratio >= 0.5)["played"].to_pylist()
print("pyarrow", pa.__version__, "pandas", pd.__version__)
print("expected:", expected, "and likes", likes)
print("seen:", seen, "and likes", kept)
assert expected == [0.2, 0.5, 0.99, 1.9] and likes == [5_000, 9_900, 19_000]
assert seen == [0, 0, 0, 1] and kept == [19_000]
CODE
