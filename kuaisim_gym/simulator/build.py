"""Builds the two simulators and the catalogue of a dataset, once, and keeps them in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuaisim_gym.config import SPLITS, check_choice
from kuaisim_gym.data.cache import Arrays, cached
from kuaisim_gym.data.dataset import Dataset, Interactions
from kuaisim_gym.errors import ConfigError, UnknownIdError
from kuaisim_gym.simulator.catalogue import Catalogue, build_catalogue
from kuaisim_gym.simulator.fit import fit_factor_model
from kuaisim_gym.simulator.response import FactorModel, ResponseModel, TableModel

FIT_VERSION = 2  # raise when the same rows would give another model


@dataclass(frozen=True, eq=False)
class Simulator:
    """Who may arrive, and how they answer, in one role.

    Attributes:
        dataset: Where it was fitted.
        split: ``"train"`` answers as the biased log does; ``"test"`` from unbiased data.
        model: Answers by position: the simulator's own, possibly noisy, answers.
        expected: Answers by position with each user's expected response: the noise-free world
            where it is known, otherwise a model fitted on this role's data.
        users: (n,) int32 positions of the users whose sessions this role simulates.
        observed_share: Share of (user, catalogue item) cells answered by a recorded row
            rather than by a model, in [0, 1].
    """

    dataset: Dataset
    split: str
    model: ResponseModel
    expected: ResponseModel
    users: NDArray[np.int32]
    observed_share: float

    def probability(self, user_ids: ArrayLike, item_ids: ArrayLike) -> NDArray[np.float32]:
        """Probability of a positive response, by the dataset's own ids.

        Args:
            user_ids: Integers, broadcastable with ``item_ids``.
            item_ids: Integers (KuaiRec's ``video_id``).

        Returns:
            float32 in [0, 1], of the broadcast shape.

        Raises:
            UnknownIdError: An id is not in the dataset, or this split cannot answer for it.
            ConfigError: The shapes do not go together.
        """
        dataset = self.dataset
        users = _positions("user", user_ids, dataset.user_ids)
        items = _positions("item", item_ids, dataset.item_ids)
        if self.split == "test":
            strangers = ~np.isin(users, dataset.test_users)
            if strangers.any():
                raise UnknownIdError(
                    f"User {dataset.user_ids[users[strangers]][0]} is not a test user; the test "
                    f"simulator answers for the {len(dataset.test_users)} test users alone."
                )
            hidden = items[items >= dataset.n_items]
            if hidden.size:
                raise UnknownIdError(
                    f"Item {dataset.item_ids[hidden][0]} occurs in the log alone; the test "
                    f"simulator answers for the {dataset.n_items} catalogue items."
                )
        try:
            users, items = np.broadcast_arrays(users, items)
        except ValueError as error:
            raise ConfigError(
                f"user_ids of shape {users.shape} and item_ids of shape {items.shape} do not go "
                "together; give equal shapes, or (N, 1) and (1, M) for all pairs."
            ) from error
        return np.asarray(self.model.probability(users, items), dtype=np.float32)


def build_simulator(dataset: Dataset, split: str = "test") -> Simulator:
    """Fits, or reads from the cache, the simulator of one role.

    The train simulator is a response model of the biased log. The test simulator looks answers
    up in the test table and completes unobserved cells by a model fitted on that table alone.

    Args:
        dataset: The data.
        split: ``"train"`` or ``"test"``.

    Returns:
        The simulator.

    Raises:
        ConfigError: Unknown split.
    """
    return _built(dataset, check_choice("split", split, SPLITS))


@lru_cache(maxsize=4)
def _built(dataset: Dataset, split: str) -> Simulator:
    if split == "train":
        model = _fitted(dataset, "train", dataset.train_log, dataset.log)
        return Simulator(dataset, split, model, model, dataset.train_users, 0.0)
    users, test = dataset.test_users, dataset.test
    rows = np.full(dataset.n_users, -1, dtype=np.int32)
    rows[users] = np.arange(len(users))
    table = np.full((len(users), dataset.n_items), np.nan, dtype=np.float32)
    table[rows[test.users], test.items] = test.response
    observed_share = float(np.mean(~np.isnan(table)))
    if dataset.truth is not None and observed_share == 1.0:
        expected: ResponseModel = TableModel(rows, dataset.truth.expected, None)
        return Simulator(dataset, split, TableModel(rows, table, None), expected, users, 1.0)
    fallback = _fitted(dataset, "test", test, test)
    model_with_table = TableModel(rows, table, fallback)
    return Simulator(dataset, split, model_with_table, fallback, users, observed_share)


def _fitted(
    dataset: Dataset, role: str, train: Interactions, everyone: Interactions
) -> FactorModel:
    def build() -> Arrays:
        model = fit_factor_model(train, everyone, dataset.n_users, len(dataset.item_ids))
        return {name: np.asarray(value) for name, value in vars(model).items()}

    arrays = cached(f"response-{dataset.fingerprint}-{role}-v{FIT_VERSION}", build)
    mean = float(arrays.pop("mean"))
    return FactorModel(mean, **arrays)  # type: ignore[arg-type]


def _positions(kind: str, ids: ArrayLike, known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of ids in the dataset's array.

    Raises:
        UnknownIdError: An id is not there.
    """
    wanted = np.asarray(ids)
    if wanted.dtype.kind not in "iu":
        raise UnknownIdError(f"Expected integer {kind} ids, got an array of {wanted.dtype}.")
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
    positions = order[place]
    missing = known[positions] != wanted
    if missing.any():
        raise UnknownIdError(
            f"{kind} id {wanted[missing].flat[0]} is not in the dataset, which holds "
            f"{len(known)} {kind}s with ids from {known.min()} to {known.max()}."
        )
    return positions


@lru_cache(maxsize=4)
def load_catalogue(dataset: Dataset) -> Catalogue:
    """Builds, or reads from the cache, the catalogue of a dataset."""

    def build() -> Arrays:
        model = build_simulator(dataset, "train").model
        assert isinstance(model, FactorModel)
        catalogue = build_catalogue(dataset, model)
        return {"embedding": catalogue.embedding, "exposures": catalogue.exposures}

    arrays = cached(f"catalogue-{dataset.fingerprint}-v{FIT_VERSION}", build)
    return Catalogue(**arrays)  # type: ignore[arg-type]
