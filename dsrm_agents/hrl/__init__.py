"""The hierarchical agent: a fairness manager above a constrained slate worker (section 4.3)."""
