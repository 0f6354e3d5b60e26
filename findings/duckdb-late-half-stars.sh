#!/usr/bin/env bash
# DuckDB rounds ratings of a CSV whose first 20,480 rows are whole stars.
#
# Behaviour: a column's type is guessed from the first 20,480 rows. If those are whole numbers,
# the column is BIGINT, and a 3.5 further down becomes 4: no error, no warning, and nothing among
# the rejected rows. The guess itself would have refused 3.5 as a BIGINT; the reader does not. A
# cell such as "n/a" in the same row does raise an error.
#
# Since: seen in 1.0.0, 1.1.3, 1.5.6, 2.0.0 and 2.0.1.
#
# Matters: ratings and logs are sorted by time or user, and half stars, weights or watch ratios
# may begin late: MovieLens had whole stars only until 2003. Means and thresholds are off without
# a sign of it. Name the types (`columns={...}` or `types={'rating': 'DOUBLE'}`), or let the guess
# see all rows (`sample_size=-1`).
#
# Source: DuckDB's issue 25824 (strict casts in csv_scanner/sniffer/type_detection.cpp, casts that
# are not strict in csv_scanner/scanner/string_value_scanner.cpp); its documentation of CSV auto
# detection names the 20,480 rows.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    duckdb==2.0.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
from pathlib import Path

import duckdb

ratings = ["4"] * 29_000 + ["3.5"] * 1_000
Path("ratings.csv").write_text("rating\n" + "\n".join(ratings) + "\n")


def stars(source):
    """The number of rows by rating."""
    return dict(duckdb.sql(f"SELECT rating, count(*) FROM {source} GROUP BY ALL").fetchall())


expected = {4.0: 29_000, 3.5: 1_000}
seen = stars("'ratings.csv'")
print("duckdb", duckdb.__version__)
print("expected:", expected)
print("seen:", seen)
assert seen == {4: 30_000}
assert stars("read_csv('ratings.csv', sample_size=-1)") == expected
assert stars("read_csv('ratings.csv', types={'rating': 'DOUBLE'})") == expected
CODE
