"""HSRL: a policy over hierarchical semantic ids (Wang et al. 2025, arXiv 2510.09167)."""
