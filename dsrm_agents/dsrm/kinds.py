"""The kinds of purifiers, and any of them from a file."""

from __future__ import annotations

from pathlib import Path

from dsrm_agents.dsrm.controls import (
    Blank,
    DenoisingAutoencoder,
    Identity,
    LinearErasure,
    OracleRegression,
    Regression,
    RidgeRegression,
    VariationalAutoencoder,
)
from dsrm_agents.dsrm.dsrm import DSRM
from dsrm_agents.dsrm.purifier import FittedPurifier
from dsrm_agents.dsrm.student import Student
from kuaisim_gym.errors import CheckpointError
from kuaisim_gym.tensors import open_tensors

KINDS: dict[str, type[FittedPurifier]] = {
    purifier.kind: purifier
    for purifier in (
        Identity,
        Blank,
        LinearErasure,
        RidgeRegression,
        Regression,
        DenoisingAutoencoder,
        VariationalAutoencoder,
        DSRM,
        Student,
        OracleRegression,
    )
}


def load_purifier(path: str | Path) -> FittedPurifier:
    """Reads a purifier of any kind.

    Args:
        path: What its ``save`` wrote.

    Raises:
        CheckpointError: The file is missing, damaged, or no purifier checkpoint.
    """
    with open_tensors(path, FittedPurifier.format, FittedPurifier.content) as file:
        kind = file.header["kind"]
        if kind not in KINDS:
            raise CheckpointError(
                f"{path} holds a purifier of unknown kind {kind!r}; known: {', '.join(KINDS)}. Use "
                "its own class's load()."
            )
        return KINDS[kind].rebuilt(file)
