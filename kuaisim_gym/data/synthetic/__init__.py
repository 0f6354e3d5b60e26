"""Synthetic worlds: causal models calibrated to facts measured on the real data.

Both worlds share one model of who sees what, and why they respond to it
(:mod:`~kuaisim_gym.data.synthetic.causal`); they differ in feedback, test data and features.
"""

from __future__ import annotations

from kuaisim_gym.data.synthetic.kuairand import KuaiRandConfig, synthetic_kuairand
from kuaisim_gym.data.synthetic.kuairec import SyntheticConfig, synthetic_kuairec

__all__ = ["KuaiRandConfig", "SyntheticConfig", "synthetic_kuairand", "synthetic_kuairec"]
