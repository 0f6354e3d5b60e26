"""Options of environments: what is meant where nobody says, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuaisim_gym.config import SessionConfig, check_choice, is_whole
from kuaisim_gym.data import SOURCES, Dataset, load_dataset
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import PreferenceEncoder
from kuaisim_gym.simulator import Simulator, load_catalogue


def check_seed(seed: object) -> int:
    """Returns a valid seed as an int.

    Raises:
        ConfigError: It is not an integer in [0, 2**64).
    """
    if is_whole(seed) and 0 <= seed < 2**64:
        return int(seed)
    raise ConfigError(f"A seed must be an integer in [0, 2**64), got {seed!r}.")


def seeds_of(seed: object, n: int) -> list[int | None]:
    """A seed or ``None`` for each of n sessions.

    Args:
        seed: s, which gives session i the seed s + i; or a sequence of one seed or ``None`` for
            each; or ``None``, which gives none.
        n: Number of sessions.

    Raises:
        ConfigError: A seed is none, or there are too few or too many.
    """
    if seed is None:
        return [None] * n
    is_sequence = isinstance(seed, Sequence) and not isinstance(seed, (str, bytes))
    if not (is_sequence or (isinstance(seed, np.ndarray) and seed.ndim)):
        first = check_seed(seed)
        check_seed(first + n - 1)
        return [first + slot for slot in range(n)]
    seeds: Sequence[Any] = seed  # type: ignore[assignment]
    if len(seeds) != n:
        raise ConfigError(f"seed must hold {n} seeds, got {len(seeds)}.")
    return [None if value is None else check_seed(value) for value in seeds]


def reset_options(options: object, known: Sequence[str] = ()) -> dict[str, Any]:
    """Options of a reset by name; empty for ``None``.

    Args:
        options: What was given.
        known: Names of the options that there are.

    Raises:
        ConfigError: They are no dictionary, or hold another option.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"options of reset() must be a dictionary or None, got {options!r}.")
    if options and not known:
        raise ConfigError(f"reset() knows no options, got {options!r}; give them to make().")
    for option in options:
        check_choice("options: a key", option, known)
    return dict(options)


def arriving_users(users: ArrayLike | None, simulator: Simulator) -> NDArray[np.int32]:
    """(n,) int32, ascending: the positions of the users whose sessions are played.

    Raises:
        ConfigError: They are no distinct users of the split, or there are none.
    """
    if users is None:
        return simulator.users
    try:
        chosen = np.asarray(users)
    except ValueError as error:
        raise ConfigError(f"users must be an array of positions of users: {error}") from error
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not chosen.size:
        raise ConfigError(
            "users must be a one-dimensional array of at least one integer, the positions of "
            f"users, got shape {chosen.shape} of {chosen.dtype}; give None for all users."
        )
    distinct, times = np.unique(chosen, return_counts=True)
    if len(distinct) < len(chosen):
        raise ConfigError(f"users must be distinct, got {distinct[times > 1][0]} more than once.")
    strangers = distinct[~np.isin(distinct, simulator.users)]
    if strangers.size:
        raise ConfigError(
            f"users must be positions of users of the {simulator.split} split, one of its "
            f"{len(simulator.users)}; {strangers[0]} is none."
        )
    return distinct.astype(np.int32)


@lru_cache(maxsize=2)
def _load(name: str, path: str | None, seed: int) -> Dataset:
    return load_dataset(name, path, seed)


def shared_dataset(name: str, path: str | Path | None, seed: int) -> Dataset:
    """Loads a dataset once per process; the arguments are those of ``load_dataset``."""
    return _load(name, None if path is None else str(Path(path).resolve()), seed)


@lru_cache(maxsize=2)
def preference_encoder(dataset: Dataset) -> PreferenceEncoder:
    """The preference encoder of a dataset, shared by its environments."""
    return PreferenceEncoder(dataset.training, load_catalogue(dataset))


def usual_slate_size(n_items: int) -> int:
    """Items in a slate where nobody says: ten, or a tenth of a small catalogue, at least one."""
    return min(SessionConfig.slate_size, max(1, n_items // 10))


def usual_window(slate_size: int, longest: int) -> int | None:
    """Exposures that count where nobody says, neither how many nor how large a slate is.

    Slates of a small catalogue are too small for balance: of three items, no slate is within the
    usual bound of any two groups, nor one of four within that of three. As many whole slates count
    as hold ten items.

    Returns:
        ``None`` where a slate alone is large enough.
    """
    if slate_size >= SessionConfig.slate_size:
        return None
    slates = -(-SessionConfig.slate_size // slate_size)
    return min(slates, longest) * slate_size


def find_dataset(name: str, dataset: Dataset | str | Path | None, seed: int) -> Dataset:
    """The dataset of an environment: a loaded one, or that of a folder, or the synthetic world.

    Raises:
        ConfigError: It is none, or of another source than the environment simulates.
    """
    if isinstance(dataset, Dataset):
        if dataset.source != name and not SOURCES[name].plays_any:
            raise ConfigError(
                f"This environment simulates {name}, got a dataset of {dataset.source}. "
                "Recommendation-Fair-v0 and Recommendation-v0 play any dataset."
            )
        return dataset
    if dataset is None or isinstance(dataset, (str, Path)):
        return shared_dataset(name, dataset, seed)
    raise ConfigError(f"dataset must be a Dataset, a folder or None, got {type(dataset).__name__}.")
