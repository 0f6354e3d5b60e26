"""A/B tests: users hashed to arms, fixed and sequential tests, guardrails and power.

Users are the units, however many sessions they make. All of it is arithmetic on arrays of NumPy and
knows neither environments nor agents: it serves the logs of a real platform as well.
"""

from dsrm_agents.experiments.assignment import assign, imbalance_p_value
from dsrm_agents.experiments.comparison import Comparison, Estimate, compare, running_ratio
from dsrm_agents.experiments.guardrails import Guardrail, guard, share_guardrail, worst_guardrail
from dsrm_agents.experiments.power import power_of, users_needed, variance_needed
from dsrm_agents.experiments.sequential import SequentialTest

__all__ = [
    "Comparison", "Estimate", "Guardrail", "SequentialTest", "assign", "compare", "guard",
    "imbalance_p_value", "power_of", "running_ratio", "share_guardrail", "users_needed",
    "variance_needed", "worst_guardrail",
]  # fmt: skip
