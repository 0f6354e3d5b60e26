"""Baselines: reference rows that need no learning, and adapters of published methods."""
