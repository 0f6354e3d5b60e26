"""Reference rows: what chance, popularity, quality and degrees of knowledge are worth."""

from __future__ import annotations

from functools import partial

from benchmarks.agents.agent import SLATE_ACTIONS, Agent
from dsrm_agents.baselines.reference import REFERENCES, make_reference

AGENTS = tuple(
    Agent(
        name,
        rule=partial(make_reference, name),
        env_options=SLATE_ACTIONS,
        # The causes of synthetic worlds, which real data never tell, are asked for by name alone.
        suits=lambda dataset, name=name: name != "truth+quota",  # type: ignore[misc]
    )
    for name in REFERENCES
)
