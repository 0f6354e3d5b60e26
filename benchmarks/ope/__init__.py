"""Off-policy evaluation, scored by the truth."""
