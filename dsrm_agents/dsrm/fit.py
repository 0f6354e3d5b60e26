"""Stage I: fits purifiers on the train users' logs (section 4.4)."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dsrm_agents.dsrm.controls import (
    Blank,
    DenoisingAutoencoder,
    Identity,
    LinearErasure,
    OracleRegression,
    Regression,
    VariationalAutoencoder,
)
from dsrm_agents.dsrm.erasure import erase, whiten_blindly
from dsrm_agents.dsrm.objective import LossConfig, Objective
from dsrm_agents.dsrm.truth import true_preference
from dsrm_agents.dsrm.purifier import (
    DSRM,
    MODES,
    FittedPurifier,
    PurifierConfig,
    TrainedPurifier,
    read_checkpoint,
)
from dsrm_agents.dsrm.student import DISTILLATION, Student, distil
from dsrm_agents.dsrm.targets import Histories, Pairs, TargetConfig, build_pairs
from dsrm_agents.dsrm.training import TrainConfig, train
from kuaisim_gym.config import check_choice
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import preference_encoder
from kuaisim_gym.errors import CheckpointError, ConfigError, unknown_option

_Group = TypeVar("_Group", PurifierConfig, TargetConfig, TrainConfig, LossConfig)

logger = logging.getLogger(__name__)

KINDS: dict[str, type[FittedPurifier]] = {
    purifier.kind: purifier
    for purifier in (
        Identity,
        Blank,
        LinearErasure,
        Regression,
        DenoisingAutoencoder,
        VariationalAutoencoder,
        DSRM,
        Student,
        OracleRegression,
    )
}
# What is fitted under a name, with what differs from the defaults. The literal mode has clean
# targets, so nothing is to be gained by pulling its weights to zero.
_LITERAL = {
    "mode": "literal",
    "prediction": "noise",
    "source": "identity",
    "blind": 0,
    "weight_decay": 1e-4,
    "updates": 3000,
}
PURIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in KINDS},
    "oracle-regression": ("oracle-regression", {"source": "identity", "blind": 0}),
    "dsrm-literal": ("dsrm", _LITERAL),
}


def fit_dsrm(
    dataset: Dataset,
    mode: str = "debiased",
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> DSRM:
    """Fits DSRM; no row and no user of the test split takes part.

    Args:
        dataset: The data.
        mode: ``"debiased"`` (default), or ``"literal"`` (eq. 7 as printed: its optimum is the
            identity).
        seed: Same seed, same weights.
        checkpoint: See :func:`fit_purifier`.
        progress: Whether to show a progress bar.
        **options: See :func:`fit_purifier`.

    Returns:
        The fitted module, with averaged weights, in evaluation mode.

    Raises:
        ConfigError: An option is unknown or out of range.
        CheckpointError: The checkpoint is damaged or of another fit.
    """
    name = {"debiased": "dsrm", "literal": "dsrm-literal"}[check_choice("mode", mode, MODES)]
    fitted = fit_purifier(
        name, dataset, seed=seed, checkpoint=checkpoint, progress=progress, **options
    )
    assert isinstance(fitted, DSRM)
    return fitted


def fit_purifier(
    name: str,
    dataset: Dataset,
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> FittedPurifier:
    """Fits any purifier by name; no row and no user of the test split takes part.

    Args:
        name: One of :data:`PURIFIERS`.
        dataset: The data.
        seed: Same seed, same weights.
        checkpoint: File in which progress is kept: an interrupted fit goes on where it was and ends
            with the weights of one that was never interrupted.
        progress: Whether to show a progress bar.
        **options: Fields of :class:`~dsrm_agents.dsrm.targets.TargetConfig`,
            :class:`~dsrm_agents.dsrm.training.TrainConfig`, :class:`LossConfig` and the purifier's
            own configuration.

    Returns:
        The fitted purifier, with averaged weights, in evaluation mode.

    Raises:
        ConfigError: The name or an option is unknown or out of range, or the dataset lacks what
            the purifier is fitted to.
        CheckpointError: The checkpoint is damaged or of another fit.
    """
    kind, changes = PURIFIERS[check_choice("purifier", name, tuple(PURIFIERS))]
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ConfigError(f"seed must be an integer of at least 0, got {seed!r}.")
    if kind == "student":
        first = None if checkpoint is None else f"{checkpoint}.teacher"
        teacher = fit_dsrm(dataset, seed=seed, checkpoint=first, progress=progress, **options)
        training = replace(DISTILLATION, updates=options.get("updates", DISTILLATION.updates))
        return distil(
            teacher,
            dataset,
            training=training,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
        )
    recipe = _Recipe.of(kind, dataset, changes | options)
    if kind == "oracle-regression" and dataset.truth is None:
        raise ConfigError("Only a synthetic world knows the true preferences to regress on.")
    # Seeds torch inside the fork only; the caller's random state is as before afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        purifier = KINDS[kind](recipe.purifier)
        states, popularity = _logged_states(dataset)
        if kind == "linear":
            purifier.read(erase(states, popularity, recipe.purifier.blind))
        elif isinstance(purifier, TrainedPurifier):
            purifier.read(whiten_blindly(states, popularity, recipe.purifier.blind))
            pairs = build_pairs(dataset.training, preference_encoder(dataset), recipe.targets, seed)
            if kind == "oracle-regression":
                pairs = _to_the_truth(pairs, dataset)
            objective = Objective(purifier, pairs, recipe.losses)
            train(
                objective,
                objective,
                len(pairs.user),
                recipe.training,
                identity=json.dumps([name, seed, recipe.description]),
                checkpoint=checkpoint,
                progress=f"Purifier ({name})" if progress else None,
            )
            if name != "dsrm-literal":  # which ends in the encoder's units already
                purifier.calibrate(states, popularity)
            logger.info("Fitted %s on %d pairs of %s", name, len(pairs.user), dataset.name)
    return purifier.eval()


def load_purifier(path: str | Path) -> FittedPurifier:
    """Reads a purifier of any kind.

    Args:
        path: What its ``save`` wrote.

    Raises:
        CheckpointError: The file is missing, damaged, or no purifier checkpoint.
    """
    metadata, tensors = read_checkpoint(path)
    if metadata["kind"] not in KINDS:
        raise CheckpointError(
            f"{path} holds a purifier of unknown kind {metadata['kind']!r}; known: "
            f"{', '.join(KINDS)}. Use its own class's load()."
        )
    return KINDS[metadata["kind"]].rebuild(path, metadata, tensors)


@dataclass(frozen=True)
class _Recipe:
    """All options of a fit, sorted."""

    purifier: PurifierConfig
    targets: TargetConfig
    training: TrainConfig
    losses: LossConfig

    @classmethod
    def of(cls, kind: str, dataset: Dataset, options: dict[str, Any]) -> _Recipe:
        """Sorts flat options.

        Raises:
            ConfigError: One is unknown or out of range.
        """
        own = KINDS[kind].config_class
        given = {"dim": preference_encoder(dataset).dim, "fingerprint": dataset.fingerprint}
        groups = (own, TargetConfig, TrainConfig, LossConfig)
        known = [field.name for group in groups for field in fields(group)]
        for option in options:
            if option not in known or option in given:
                names = [name for name in known if name not in given]
                raise unknown_option("An option of the fit", option, names)

        def made(group: type[_Group]) -> _Group:
            names = [field.name for field in fields(group)]
            return group(**{name: every[name] for name in names if name in every})

        every: dict[str, Any] = given | options
        return cls(made(own), made(TargetConfig), made(TrainConfig), made(LossConfig))

    @property
    def description(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {field.name: asdict(getattr(self, field.name)) for field in fields(self)}


def _logged_states(dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(n, d) raw states and (n,) popularities of the train users' whole histories."""
    histories = Histories(dataset.training, preference_encoder(dataset))
    response = histories.log.response
    known = histories.mass(response) > 0
    every = np.ones(len(response), dtype=bool)
    return histories.states(response)[known], histories.popularity(every)[known]


def _to_the_truth(pairs: Pairs, dataset: Dataset) -> Pairs:
    """The same conditions with the users' true preferences as targets."""
    users = dataset.train_users
    truth = true_preference(dataset, users, preference_encoder(dataset), users)
    target = np.asarray(truth[pairs.user], dtype=np.float32)
    return Pairs(pairs.observed, target, pairs.popularity, pairs.weight, pairs.user)
