"""Agents for fairness-aware interactive recommendation, on Stable-Baselines3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kuaisim_gym.lazy import check_extra, lazy_names

check_extra(__name__, "agents", "torch", "stable_baselines3")

if TYPE_CHECKING:
    from dsrm_agents.baselines.bcq import BCQ
    from dsrm_agents.baselines.discrete_bcq import DiscreteBCQ
    from dsrm_agents.baselines.dnair import DNaIR
    from dsrm_agents.baselines.dorl import PenalisedVecEnv, fit_dorl
    from dsrm_agents.baselines.mofir import MOFIR, PreferenceVecEnv
    from dsrm_agents.baselines.sac4ir import SAC4IR
    from dsrm_agents.baselines.scorer import ScorerVecEnv
    from dsrm_agents.common.checkpoint import TrainingCheckpoint, resume
    from dsrm_agents.common.evaluation import evaluate
    from dsrm_agents.common.extension import extend
    from dsrm_agents.common.sb3_vec_env import KuaiVecEnv, make_vec_env
    from dsrm_agents.common.weights import load_weights
    from dsrm_agents.dsrm.dsrm import DSRM, Student, distil
    from dsrm_agents.dsrm.fit import fit_dsrm, fit_purifier
    from dsrm_agents.dsrm.purifier import Purifier, load_purifier
    from dsrm_agents.dsrm.wrappers import PurifyObservation, PurifyVecEnv, PurifyVectorObservation
    from dsrm_agents.encoders.extractor import HistoryExtractor
    from dsrm_agents.encoders.history import HistoryEncoder
    from dsrm_agents.encoders.pretrain import fit_encoder
    from dsrm_agents.encoders.states import StateEncoder
    from dsrm_agents.encoders.wrapper import EncodedVecEnv
    from dsrm_agents.export import export_onnx
    from dsrm_agents.hrl.features import item_features
    from dsrm_agents.hrl.hppo import HierarchicalPPO
    from dsrm_agents.hrl.policies import HierarchicalPolicy
    from dsrm_agents.hsrl.codebook import Codebook
    from dsrm_agents.hsrl.hsrl import HSRL
    from dsrm_agents.hsrl.policies import HSRLPolicy
    from dsrm_agents.hsrl.wrappers import SemanticActionWrapper, SemanticVecEnv
    from dsrm_agents.ope.evaluation import evaluate_off_policy
    from dsrm_agents.ope.logged import LoggedSessions
    from dsrm_agents.ope.networks import NetworkPolicy
    from dsrm_agents.ope.propensities import SoftmaxPolicy
    from dsrm_agents.ope.recording import log_sessions
    from dsrm_agents.serving import Recommender

# Imported when they are used: these modules load torch and Stable-Baselines3.
_MODULES, __getattr__ = lazy_names(
    __name__,
    {
        "baselines.bcq": ("BCQ",),
        "baselines.discrete_bcq": ("DiscreteBCQ",),
        "baselines.dnair": ("DNaIR",),
        "baselines.dorl": ("PenalisedVecEnv", "fit_dorl"),
        "baselines.mofir": ("MOFIR", "PreferenceVecEnv"),
        "baselines.sac4ir": ("SAC4IR",),
        "baselines.scorer": ("ScorerVecEnv",),
        "common.checkpoint": ("TrainingCheckpoint", "resume"),
        "common.evaluation": ("evaluate",),
        "common.extension": ("extend",),
        "common.sb3_vec_env": ("KuaiVecEnv", "make_vec_env"),
        "common.weights": ("load_weights",),
        "dsrm.dsrm": ("DSRM", "Student", "distil"),
        "dsrm.fit": ("fit_dsrm", "fit_purifier"),
        "dsrm.purifier": ("Purifier", "load_purifier"),
        "dsrm.wrappers": ("PurifyObservation", "PurifyVecEnv", "PurifyVectorObservation"),
        "encoders.extractor": ("HistoryExtractor",),
        "encoders.history": ("HistoryEncoder",),
        "encoders.pretrain": ("fit_encoder",),
        "encoders.states": ("StateEncoder",),
        "encoders.wrapper": ("EncodedVecEnv",),
        "export": ("export_onnx",),
        "hrl.features": ("item_features",),
        "hrl.hppo": ("HierarchicalPPO",),
        "hrl.policies": ("HierarchicalPolicy",),
        "hsrl.codebook": ("Codebook",),
        "hsrl.hsrl": ("HSRL",),
        "hsrl.policies": ("HSRLPolicy",),
        "hsrl.wrappers": ("SemanticActionWrapper", "SemanticVecEnv"),
        "ope.evaluation": ("evaluate_off_policy",),
        "ope.logged": ("LoggedSessions",),
        "ope.networks": ("NetworkPolicy",),
        "ope.propensities": ("SoftmaxPolicy",),
        "ope.recording": ("log_sessions",),
        "serving": ("Recommender",),
    },
)

__all__ = [
    "BCQ",
    "DSRM",
    "HSRL",
    "MOFIR",
    "SAC4IR",
    "Codebook",
    "DNaIR",
    "DiscreteBCQ",
    "EncodedVecEnv",
    "HSRLPolicy",
    "HierarchicalPPO",
    "HierarchicalPolicy",
    "HistoryEncoder",
    "HistoryExtractor",
    "KuaiVecEnv",
    "LoggedSessions",
    "NetworkPolicy",
    "PenalisedVecEnv",
    "PreferenceVecEnv",
    "Purifier",
    "PurifyObservation",
    "PurifyVecEnv",
    "PurifyVectorObservation",
    "Recommender",
    "ScorerVecEnv",
    "SemanticActionWrapper",
    "SemanticVecEnv",
    "SoftmaxPolicy",
    "StateEncoder",
    "Student",
    "TrainingCheckpoint",
    "distil",
    "evaluate",
    "evaluate_off_policy",
    "export_onnx",
    "extend",
    "fit_dorl",
    "fit_dsrm",
    "fit_encoder",
    "fit_purifier",
    "item_features",
    "load_purifier",
    "load_weights",
    "log_sessions",
    "make_vec_env",
    "resume",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__
