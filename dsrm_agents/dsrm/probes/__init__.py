"""Probes of preference states: traces of popularity, of the user's taste, and of who the user is.

The paper's first claim (DSRM-HRL section 4.2) is that exposure writes popularity into the user
state and that the reverse process removes it and keeps the taste. Each function measures one side
of that on plain arrays; :func:`probe` applies all of them to a purifier, on users whom no purifier
was fitted on. Further probes expose purifiers that leave the input as it is, or that map all users
to one point.

Probes that learn are judged on users whom they were not fitted on. The truth of a synthetic world
and the test rows are read to measure and never to purify.
"""

from __future__ import annotations

from dsrm_agents.dsrm.probes.measures import (
    cosine,
    discriminability,
    effective_rank,
    identity_check,
    interest_accuracy,
    leakage_floor,
    popularity_leakage,
    recall_at_k,
    response_r2,
)
from dsrm_agents.dsrm.probes.probing import (
    ProbeData,
    history_popularity,
    probe,
    probe_data,
)
from dsrm_agents.dsrm.pairs import true_preference

__all__ = [
    "ProbeData",
    "cosine",
    "discriminability",
    "effective_rank",
    "history_popularity",
    "identity_check",
    "interest_accuracy",
    "leakage_floor",
    "popularity_leakage",
    "probe",
    "probe_data",
    "recall_at_k",
    "response_r2",
    "true_preference",
]
