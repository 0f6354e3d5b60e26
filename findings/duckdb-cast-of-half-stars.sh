#!/usr/bin/env bash
# DuckDB casts a CSV's half stars up, and to even numbers once the column is also shown.
#
# Behaviour: `SELECT rating::INTEGER` from a CSV file rounds 0.5, 1.5, ... up to 1, 2, 3, 4, 5.
# With the rating itself in the same SELECT, in a WHERE clause, or from a table that was made of
# the file, the same expression gives the even neighbours 0, 2, 2, 4, 4. The column is a DOUBLE in
# all of them: a cast that is the only use of a column is moved into the CSV reader, which rounds
# the text by another rule than the cast of a DOUBLE. pandas and NumPy cut off, which is a third
# answer. `avg(rating::INTEGER)` of these five is 3.0 from the file and 2.4 from the table.
#
# Since: DuckDB 2.0.0, seen in 2.0.1 too; 1.1.3, 1.4.4 and 1.5.6 give 0, 2, 2, 4, 4 always.
#
# Matters: MovieLens' ratings are 0.5, 1.0, ... 5.0, and "whole stars" are a common label. Counts,
# thresholds and reference scores depend on whether the query was typed on the file or on a table,
# and on the columns beside it. Say which rounding is meant: `floor(rating)`, or `round(rating)`,
# which goes up in each form.
#
# Source: the plan of the first query (EXPLAIN) has no cast left above the reader; DuckDB's pull
# request 22788 of May 2026, "Push down type casts to file readers".
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    duckdb==2.0.0 pandas==3.1.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
from pathlib import Path

import duckdb
import pandas as pd

Path("ratings.csv").write_text("rating\n0.5\n1.5\n2.5\n3.5\n4.5\n")
duckdb.sql("CREATE TABLE ratings AS SELECT * FROM 'ratings.csv'")


def stars(query):
    """The last column of a query's rows."""
    return [row[-1] for row in duckdb.sql(query).fetchall()]


seen = {
    "file": stars("SELECT rating::INTEGER FROM 'ratings.csv'"),
    "file, rating shown": stars("SELECT rating, rating::INTEGER FROM 'ratings.csv'"),
    "table": stars("SELECT rating::INTEGER FROM ratings"),
    "file, round": stars("SELECT round(rating)::INTEGER FROM 'ratings.csv'"),
    "file, mean": stars("SELECT avg(rating::INTEGER) FROM 'ratings.csv'"),
    "table, mean": stars("SELECT avg(rating::INTEGER) FROM ratings"),
    "table, round": stars("SELECT round(rating)::INTEGER FROM ratings"),
    "pandas": pd.read_csv("ratings.csv").rating.astype(int).tolist(),
}
print("duckdb", duckdb.__version__, "pandas", pd.__version__)
print("expected: one answer from the file and the table")
print("seen:", seen)
assert duckdb.sql("SELECT rating FROM 'ratings.csv'").types == ["DOUBLE"]
up, even = [1, 2, 3, 4, 5], [0, 2, 2, 4, 4]
assert list(seen.values()) == [up, even, even, up, [3.0], [2.4], up, [0, 1, 2, 3, 4]]
CODE
