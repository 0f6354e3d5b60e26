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

from dsrm_agents.dsrm.controls import LinearErasure, OracleRegression, RidgeRegression
from dsrm_agents.dsrm.dsrm import DSRM
from dsrm_agents.dsrm.erasure import erase, whiten_blindly
from dsrm_agents.dsrm.kinds import KINDS
from dsrm_agents.dsrm.objective import LossConfig, Objective
from dsrm_agents.dsrm.purifier import FittedPurifier, PurifierConfig, TrainedPurifier
from dsrm_agents.dsrm.student import DISTILLATION, Student, distil
from dsrm_agents.dsrm.targets import Histories, Pairs, TargetConfig, build_pairs
from dsrm_agents.dsrm.training import TrainConfig, train
from dsrm_agents.dsrm.truth import true_preference
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import preference_encoder

MODES = ("debiased", "literal")
# Eq. 7 as printed. Its targets hold no noise, so nothing is gained by pulling weights to zero.
LITERAL = {
    "prediction": "noise",
    "source": "identity",
    "blind": 0,
    "weight_decay": 1e-4,
    "updates": 3000,
}
# What is fitted under a name: its kind, and what differs from the defaults.
PURIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in KINDS},
    "oracle-regression": (
        "oracle-regression",
        {"source": "identity", "blind": 0, "weight_decay": 0.1},  # its targets hold no noise
    ),
    "dsrm-literal": ("dsrm", LITERAL),
}

_Group = TypeVar("_Group", PurifierConfig, TargetConfig, TrainConfig, LossConfig)

logger = logging.getLogger(__name__)


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
            :class:`~dsrm_agents.dsrm.training.TrainConfig`,
            :class:`~dsrm_agents.dsrm.objective.LossConfig` and the purifier's own configuration,
            as far as they concern it. A student's are its teacher's; ``updates`` holds for both.

    Returns:
        The fitted purifier, with averaged weights, in evaluation mode.

    Raises:
        ConfigError: The name or an option is unknown or out of range, or the dataset lacks what
            the purifier is fitted to.
        CheckpointError: The checkpoint is damaged or of another fit.
    """
    kind, changes = PURIFIERS[check_choice("purifier", name, tuple(PURIFIERS))]
    seed = check_whole("seed", seed, 0)
    if kind == "student":
        return _fit_student(dataset, seed, checkpoint, progress, options)
    recipe = _Recipe.of(KINDS[kind], dataset, changes | options)
    # Seeds torch inside the fork only; the caller's random state is as before afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        purifier = KINDS[kind](recipe.purifier)
        if isinstance(purifier, LinearErasure):
            states, popularity = _logged_states(dataset)
            purifier.read(erase(states, popularity[:, : recipe.purifier.blind]))
        elif isinstance(purifier, (RidgeRegression, TrainedPurifier)):
            _fit_to_pairs(
                purifier,
                dataset,
                recipe,
                seed,
                identity=json.dumps([name, seed, recipe.description]),
                checkpoint=checkpoint,
                progress=f"Purifier ({name})" if progress else None,
            )
    return purifier.eval()


def _fit_to_pairs(
    purifier: RidgeRegression | TrainedPurifier,
    dataset: Dataset,
    recipe: _Recipe,
    seed: int,
    **training: Any,
) -> None:
    states, popularity = _logged_states(dataset)
    purifier.read(whiten_blindly(states, popularity[:, : recipe.purifier.blind]))
    pairs = build_pairs(dataset.training, preference_encoder(dataset), recipe.targets, seed)
    if isinstance(purifier, OracleRegression):
        pairs = _to_the_truth(pairs, dataset)
    target = purifier.scale_targets(torch.from_numpy(pairs.target))
    if isinstance(purifier, RidgeRegression):
        condition = purifier.condition(torch.from_numpy(pairs.observed))
        purifier.solve(condition, target, torch.from_numpy(pairs.weight))
    else:
        objective = Objective(purifier, pairs, target, recipe.losses)
        free = () if objective.adversary is None else objective.adversary.parameters()
        rows = len(pairs.user)
        train(objective, objective, rows, recipe.training, undecayed=free, **training)
    if isinstance(purifier, OracleRegression) or recipe.targets.source != "identity":
        purifier.calibrate(states, popularity)  # the identity ends in the encoder's units already
    logger.info("Fitted %s on %d pairs of %s", purifier.kind, len(pairs.user), dataset.name)


def _fit_student(
    dataset: Dataset,
    seed: int,
    checkpoint: str | Path | None,
    progress: bool,
    options: dict[str, Any],
) -> Student:
    first = None if checkpoint is None else f"{checkpoint}.teacher"
    teacher = fit_dsrm(dataset, seed=seed, checkpoint=first, progress=progress, **options)
    training = replace(DISTILLATION, updates=options.get("updates", DISTILLATION.updates))
    return distil(
        teacher, dataset, training=training, seed=seed, checkpoint=checkpoint, progress=progress
    )


def options_of(kind: type[FittedPurifier]) -> tuple[str, ...]:
    """Names of the options of :func:`fit_purifier` that concern a kind of purifier."""
    groups: tuple[type[Any], ...] = (kind.config_class,)
    if issubclass(kind, RidgeRegression):
        groups += (TargetConfig,)
    elif issubclass(kind, (TrainedPurifier, Student)):  # a student's are its teacher's
        groups += (TargetConfig, TrainConfig, LossConfig)
    names = [field.name for group in groups for field in fields(group)]
    return tuple(name for name in names if name not in ("dim", "fingerprint"))


@dataclass(frozen=True)
class _Recipe:
    """All options of a fit, sorted."""

    purifier: PurifierConfig
    targets: TargetConfig
    training: TrainConfig
    losses: LossConfig

    @classmethod
    def of(cls, kind: type[FittedPurifier], dataset: Dataset, options: dict[str, Any]) -> _Recipe:
        """Sorts flat options.

        Raises:
            ConfigError: One is unknown, out of range, or does not concern this kind.
        """
        given = {"dim": preference_encoder(dataset).dim, "fingerprint": dataset.fingerprint}
        known = options_of(kind)
        for option in options:
            check_choice(f"An option of {kind.kind}", option, known)

        def made(group: type[_Group]) -> _Group:
            names = [field.name for field in fields(group)]
            return group(**{name: every[name] for name in names if name in every})

        every: dict[str, Any] = given | options
        return cls(made(kind.config_class), made(TargetConfig), made(TrainConfig), made(LossConfig))

    @property
    def description(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {field.name: asdict(getattr(self, field.name)) for field in fields(self)}


def _logged_states(dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(n, d) raw states of the train users' whole histories, and statistics of popularity."""
    histories = Histories(dataset.training, preference_encoder(dataset))
    known = histories.mass(histories.response) > 0
    popularity = histories.popularity(np.ones(len(histories.response)))
    return histories.states(histories.response)[known], popularity[known]


def _to_the_truth(pairs: Pairs, dataset: Dataset) -> Pairs:
    """The same conditions with the users' true preferences as targets."""
    users = dataset.train_users
    truth = true_preference(dataset, users, preference_encoder(dataset), users)
    return replace(pairs, target=truth[pairs.user])
