"""Simulators: a response model for each split, and the dynamics of sessions."""

from kuaisim_gym.simulator.build import Simulator, build_simulator, load_catalogue
from kuaisim_gym.simulator.catalogue import Catalogue

__all__ = ["Catalogue", "Simulator", "build_simulator", "load_catalogue"]
