"""Stage I: fits purifiers on the train users' logs and sessions (section 4.4)."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from dsrm_agents.common.networks import seeded
from dsrm_agents.dsrm.dsrm import DSRM
from dsrm_agents.dsrm.pairs import Examples, TargetConfig
from dsrm_agents.dsrm.purifier import PURIFIERS, FittedPurifier, recipe_of
from dsrm_agents.dsrm.training import TrainConfig, TrainRun
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data import Dataset, check_dataset
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.precision import single_precision

MODES = {"debiased": "dsrm", "literal": "dsrm-literal"}

Config = TypeVar("Config")

logger = logging.getLogger(__name__)


def fit_dsrm(dataset: Dataset, mode: str = "debiased", **options: Any) -> DSRM:
    """Fits DSRM; no row and no user of the test split takes part.

    Args:
        dataset: The data.
        mode: ``"debiased"`` (default), or ``"literal"`` (eq. 7 as printed: its optimum is the
            identity).
        **options: Further arguments of :func:`fit_purifier`.

    Returns:
        The fitted module, with averaged weights, in evaluation mode.

    Raises:
        ConfigError: An option is unknown or out of range.
        CheckpointError: The checkpoint is damaged or of another fit.
    """
    check_dataset("fit_dsrm(dataset)", dataset)
    purifier = fit_purifier(MODES[check_choice("mode", mode, tuple(MODES))], dataset, **options)
    assert isinstance(purifier, DSRM)
    return purifier


@single_precision()
def fit_purifier(
    name: str,
    dataset: Dataset,
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> FittedPurifier:
    """Fits any purifier by name; no row and no user of the test split takes part.

    Args:
        name: One of :data:`~dsrm_agents.dsrm.purifier.PURIFIERS`, where a subclass of
            :class:`~dsrm_agents.dsrm.purifier.FittedPurifier` registers itself; or
            ``"module:name"``, which imports the module that defines it first.
        dataset: The data.
        seed: Same seed, same weights.
        checkpoint: File in which progress is kept: an interrupted fit goes on where it was and ends
            with the weights of one that was never interrupted.
        progress: Whether to show a progress bar.
        **options: Fields of :class:`~dsrm_agents.dsrm.pairs.TargetConfig`,
            :class:`~dsrm_agents.dsrm.training.TrainConfig` and the purifier's configuration,
            as far as they concern it. A student's are its teacher's, whose updates it halves.

    Returns:
        The fitted purifier, with averaged weights, in evaluation mode.

    Raises:
        ConfigError: The name or an option is unknown or out of range, or the dataset lacks the
            rows or the truth that the purifier is fitted to.
        CheckpointError: The checkpoint is damaged or of another fit.
    """
    if not isinstance(name, str):
        raise ConfigError(
            "fit_purifier(name, dataset) needs the name of a purifier first, got a "
            f"{type(name).__name__}: one of {list(PURIFIERS)}."
        )
    check_dataset("fit_purifier(name, dataset)", dataset)
    recipe = recipe_of(name)
    purifier_class = recipe.purifier
    for option in options:
        check_choice(f"An option of {purifier_class.kind}", option, purifier_class.options())
    of_dataset = {"fingerprint": dataset.fingerprint, "dataset": dataset.description}
    options = {**recipe.options, **options, **of_dataset}
    seed = check_whole("seed", seed, 0)
    examples = Examples(dataset, _of(TargetConfig, options), seed)
    config = _of(purifier_class.config_class, {**options, "dim": examples.encoder.dim})
    run = TrainRun(
        _of(TrainConfig, options),
        identity=json.dumps([name, seed, asdict(config), asdict(examples.config)]),
        checkpoint=checkpoint,
        progress=f"Purifier ({name})" if progress else None,
    )
    with seeded(seed):
        purifier = purifier_class(config)
        purifier.fit(examples, run)
    logger.info("Fitted %s on %s", name, dataset.name)
    return purifier.eval()


def _of(config_class: type[Config], options: dict[str, Any]) -> Config:
    """A configuration of those options that are its fields."""
    names = {field.name for field in fields(config_class)}  # type: ignore[arg-type]
    return config_class(**{name: value for name, value in options.items() if name in names})
