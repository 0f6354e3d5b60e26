"""Agents for fairness-aware interactive recommendation, on Stable-Baselines3."""

from __future__ import annotations

from dsrm_agents.baselines.scorer import ScorerVecEnv
from dsrm_agents.common.checkpoint import TrainingCheckpoint, resume
from dsrm_agents.common.evaluation import evaluate
from dsrm_agents.common.quality import unbiased_quality
from dsrm_agents.common.sb3_vec_env import KuaiVecEnv, make_vec_env
from dsrm_agents.dsrm.dsrm import DSRM
from dsrm_agents.dsrm.fit import fit_dsrm, fit_purifier
from dsrm_agents.dsrm.kinds import load_purifier
from dsrm_agents.dsrm.purifier import Purifier
from dsrm_agents.dsrm.student import Student, distil
from dsrm_agents.dsrm.wrappers import PurifyObservation, PurifyVecEnv, PurifyVectorObservation
from dsrm_agents.encoders.extractor import HistoryExtractor
from dsrm_agents.encoders.history import HistoryEncoder
from dsrm_agents.hrl.features import item_features
from dsrm_agents.hrl.hppo import HierarchicalPPO
from dsrm_agents.hrl.policies import HierarchicalPolicy

__all__ = [
    "DSRM",
    "HierarchicalPPO",
    "HierarchicalPolicy",
    "HistoryEncoder",
    "HistoryExtractor",
    "KuaiVecEnv",
    "Purifier",
    "PurifyObservation",
    "PurifyVecEnv",
    "PurifyVectorObservation",
    "ScorerVecEnv",
    "Student",
    "TrainingCheckpoint",
    "distil",
    "evaluate",
    "fit_dsrm",
    "fit_purifier",
    "item_features",
    "load_purifier",
    "make_vec_env",
    "resume",
    "unbiased_quality",
]
