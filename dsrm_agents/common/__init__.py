"""Shared code of the agents."""
