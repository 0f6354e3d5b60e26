#!/usr/bin/env bash
# In ir-measures the item that is first for P@1 is second for RR@1 of the same run.
#
# Behaviour: items with equal scores are ordered by falling id for RR, P, nDCG and AP, and by rising
# id for RR with a cutoff and for Judged, because these come from other programs inside. One list of
# two tied items, the second by id relevant: P@1 is 1 and RR@1 is 0, RR is 1 and RR@10 is .5. The
# order of the rows counts for neither.
#
# Since: seen in 0.4.0 and 0.4.3; tables of reciprocal rank with and without a cutoff are of
# different rankings.
#
# Matters: recommenders score in ties all the time: counts of clicks, quantised scores, float16,
# a popularity ranking with its many items of one exposure, an agent's slate handed over as scores of
# 1. The winner is then the id, in two directions; item ids follow age, so that one metric prefers
# new items and the next old ones. Hand over strictly falling scores, such as minus the rank.
#
# Source: ir_measures/providers/msmarco_provider.py:41 and judged_provider.py:36 sort by
# `(-score, id)`; trec_eval, behind pytrec_eval_provider.py, breaks ties by falling id
# (its `comp_sim_docno`). The registration order of the providers makes RR@k the former's.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    ir-measures==0.4.3 pytrec-eval-terrier==0.5.11 numpy==2.4.6 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
from importlib.metadata import version

from ir_measures import RR, P, Qrel, ScoredDoc, calc_aggregate, nDCG

METRICS = [P @ 1, RR @ 1, RR, RR @ 10, nDCG @ 10]
slate = [ScoredDoc("user", "item1", 1.0), ScoredDoc("user", "item2", 1.0)]


def scores(run, relevant):
    """All metrics of a run in which one item is relevant, by their names."""
    answers = [Qrel("user", row.doc_id, int(row.doc_id == relevant)) for row in run]
    return {str(key): round(x, 2) for key, x in calc_aggregate(METRICS, answers, run).items()}


second, first = scores(slate, "item2"), scores(slate, "item1")
falling = [ScoredDoc("user", "item1", -1.0), ScoredDoc("user", "item2", -2.0)]
print("ir-measures", version("ir-measures"), "pytrec-eval-terrier", version("pytrec-eval-terrier"))
print("expected: P@1 = RR@1 and RR = RR@10, as with falling scores:", scores(falling, "item2"))
print("seen, item2 relevant:", second)
print("seen, item1 relevant:", first)
assert scores(slate[::-1], "item2") == second
assert second == {"P@1": 1, "RR@1": 0, "RR": 1, "RR@10": 0.5, "nDCG@10": 1}
assert first == {"P@1": 0, "RR@1": 1, "RR": 0.5, "RR@10": 1, "nDCG@10": 0.63}
assert scores(falling, "item2") == {"P@1": 0, "RR@1": 0, "RR": 0.5, "RR@10": 0.5, "nDCG@10": 0.63}
CODE
