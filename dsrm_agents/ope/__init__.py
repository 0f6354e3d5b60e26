"""Off-policy evaluation: what a policy would earn, from the logged sessions of another one."""
