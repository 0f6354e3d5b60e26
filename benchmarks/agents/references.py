"""References without training: random, popular and best items, and oracles."""

from __future__ import annotations

from functools import partial

from dsrm_agents.baselines.bands import Quota
from dsrm_agents.baselines.exploring import ExploringFilter
from dsrm_agents.baselines.reference import CEILING, make_reference

from .agent import SLATE_ACTIONS, Agent

# The combinations that tables show, in their order; studies make further ones by name.
ROWS = (
    "random", "popularity", "quality+quota", "quality+band", "filter+quota", "filter+band",
    "expected-quality+quota", "expected-quality+band", "train-oracle+quota", "truth+quota",
    "expected-oracle+quota",
    "expected-oracle+balanced-band", "expected-oracle+band", CEILING, "realised-oracle+quota",
)  # fmt: skip

AGENTS = (
    *(
        Agent(
            name,
            rule=partial(make_reference, name),
            env_options=SLATE_ACTIONS,
            # The true preferences of synthetic worlds are used only on request.
            suits=lambda dataset, name=name: name != "truth+quota",  # type: ignore[misc]
        )
        for name in ROWS
    ),
    Agent(
        "thompson+quota",
        rule=lambda batch: ExploringFilter(batch, Quota(batch)),
        env_options=SLATE_ACTIONS,
        reference="Thompson, Biometrika 1933",
        controls=("filter+quota",),
    ),
)
