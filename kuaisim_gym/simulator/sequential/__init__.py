"""KuaiSim's sequential user response model: a causal transformer over a user's last events."""

from kuaisim_gym.simulator.sequential.config import SequentialConfig
from kuaisim_gym.simulator.sequential.fit import fit_sequential
from kuaisim_gym.simulator.sequential.model import SequentialModel
from kuaisim_gym.simulator.sequential.sessions import SequentialSessions

__all__ = ["SequentialConfig", "SequentialModel", "SequentialSessions", "fit_sequential"]
