"""Encoders of event histories, and their way into Stable-Baselines3's policies."""
