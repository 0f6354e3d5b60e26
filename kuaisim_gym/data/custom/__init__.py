"""Datasets from tables of any origin: ``load_dataset("table", log=..., ...)``."""

from kuaisim_gym.data.custom.source import TableSource

__all__ = ["TableSource"]
