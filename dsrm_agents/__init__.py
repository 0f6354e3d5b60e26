"""Agents for fairness-aware interactive recommendation, on Stable-Baselines3."""

from __future__ import annotations

from dsrm_agents.common.evaluation import evaluate
from dsrm_agents.common.sb3_vec_env import KuaiVecEnv, make_vec_env
from dsrm_agents.dsrm.fit import fit_dsrm
from dsrm_agents.dsrm.purifier import DSRM
from dsrm_agents.dsrm.wrappers import PurifyObservation, PurifyVecEnv, PurifyVectorObservation
from dsrm_agents.encoders.extractor import HistoryExtractor
from dsrm_agents.encoders.history import HistoryEncoder
from dsrm_agents.hrl.hppo import HierarchicalPPO
from dsrm_agents.hrl.policies import HierarchicalPolicy

__all__ = [
    "DSRM",
    "HierarchicalPPO",
    "HierarchicalPolicy",
    "HistoryEncoder",
    "HistoryExtractor",
    "KuaiVecEnv",
    "PurifyObservation",
    "PurifyVecEnv",
    "PurifyVectorObservation",
    "evaluate",
    "fit_dsrm",
    "make_vec_env",
]
