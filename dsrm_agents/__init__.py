"""Agents for fairness-aware interactive recommendation, on Stable-Baselines3."""
