"""The fairness dial of one agent, compared with agents that are trained for each setting."""
