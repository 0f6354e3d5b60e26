"""A/B tests in simulation: one test, a thousand without a difference, and arms that interfere."""
