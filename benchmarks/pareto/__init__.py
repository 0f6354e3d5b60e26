"""The fairness dial of a trained agent, beside agents that were trained for each setting."""
