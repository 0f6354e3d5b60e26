"""References without training: random, popular and best items, and oracles."""

from __future__ import annotations

from functools import partial

from benchmarks.agents.agent import SLATE_ACTIONS, Agent
from dsrm_agents.baselines.reference import REFERENCES, make_reference

AGENTS = tuple(
    Agent(
        name,
        rule=partial(make_reference, name),
        env_options=SLATE_ACTIONS,
        # The true preferences of synthetic worlds are used only on request.
        suits=lambda dataset, name=name: name != "truth+quota",  # type: ignore[misc]
    )
    for name in REFERENCES
)
