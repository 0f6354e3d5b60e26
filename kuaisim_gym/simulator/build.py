"""Builds the two simulators and the catalogue of a dataset, once, and keeps them in the cache."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuaisim_gym.config import CALIBRATIONS, RESPONSE_MODELS, SPLITS, check_choice
from kuaisim_gym.data.cache import Arrays, cache_dir, cached, locked
from kuaisim_gym.data.dataset import BehaviourLog, Dataset, Interactions, WatchLog
from kuaisim_gym.errors import CheckpointError, ConfigError, UnknownIdError
from kuaisim_gym.simulator.catalogue import Catalogue, build_catalogue
from kuaisim_gym.simulator.fit import fit_factor_model
from kuaisim_gym.simulator.quality import HOLD_OUT_SHARE, MEASURES, last_rows, platt, quality
from kuaisim_gym.simulator.response import (
    FACTOR_ARRAYS,
    FactorModel,
    LogitModel,
    ResponseModel,
    TableModel,
    TruthModel,
)

FIT_VERSION = 4  # raise when the same rows would give another model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Simulator:
    """Who may arrive, and how they answer, in one role.

    Attributes:
        dataset: Where it was fitted.
        split: ``"train"`` answers as the biased log does; ``"test"`` from unbiased data.
        response_model: Which kind of model was asked for.
        model: Answers by position: the simulator's own, possibly noisy, answers.
        expected: Answers by position with each user's expected response: the noise-free world
            where it is known, otherwise a model fitted on this role's data.
        users: (n,) int32 positions of the users whose sessions this role simulates.
        observed_share: Share of (user, catalogue item) cells answered by a recorded row
            rather than by a model, in [0, 1].
    """

    dataset: Dataset
    split: str
    response_model: str
    model: ResponseModel
    expected: ResponseModel
    users: NDArray[np.int32]
    observed_share: float

    def probability(self, user_ids: ArrayLike, item_ids: ArrayLike) -> NDArray[np.float32]:
        """Probability of a positive response, by the dataset's own ids.

        Args:
            user_ids: Integers, broadcastable with ``item_ids``.
            item_ids: Integers (``video_id``).

        Returns:
            float32 in [0, 1], of the broadcast shape.

        Raises:
            UnknownIdError: An id is not in the dataset, or this split cannot answer for it.
            ConfigError: The shapes do not go together.
        """
        return np.asarray(self.model.probability(*self._positions(user_ids, item_ids)))

    def feedback(self, user_ids: ArrayLike, item_ids: ArrayLike) -> NDArray[np.float32]:
        """As :meth:`probability`, for every behaviour in ``model.behaviours``, on a last axis."""
        return np.asarray(self.model.feedback(*self._positions(user_ids, item_ids)))

    def _positions(
        self, user_ids: ArrayLike, item_ids: ArrayLike
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
        return users, items


@dataclass(frozen=True)
class Assessment:
    """What a response model is worth on rows that it has not seen.

    Attributes:
        metrics: By behaviour, the measures of :func:`~kuaisim_gym.simulator.quality.quality`,
            after calibration.
        scale: (B,) float32 that makes log-odds true to these rows; one where there are no log-odds.
        shift: (B,) float32, added after scaling.
    """

    metrics: dict[str, dict[str, float]]
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]


def build_simulator(
    dataset: Dataset,
    split: str = "test",
    response_model: str = "factor",
    calibration: str | None = None,
) -> Simulator:
    """Fits, or reads from the cache, the simulator of one role.

    The train simulator is a response model of the biased log. KuaiRec's test simulator looks
    answers up in the test table and completes unobserved cells, by the noise-free world where it is
    known and otherwise by a factor model of that table alone. KuaiRand's, where a recorded click
    is one draw and no answer, is a response model of the test users' randomised rows.

    Args:
        dataset: The data.
        split: ``"train"`` or ``"test"``.
        response_model: ``"factor"``, :class:`~kuaisim_gym.simulator.response.FactorModel`; or
            ``"sequential"``, KuaiSim's transformer over the last 100 events, which needs torch.
        calibration: ``"calibrated"``: probabilities are true to held-out rows. ``"balanced"``: as
            if positive and negative rows weighed the same in all, KuaiSim's class weights, which
            lifts rewards to the published range; for yes-or-no behaviours only. ``None``:
            balanced for KuaiRand, calibrated for KuaiRec.

    Returns:
        The simulator.

    Raises:
        ConfigError: Unknown option, or one that this dataset cannot have.
    """
    check_choice("split", split, SPLITS)
    check_choice("response_model", response_model, RESPONSE_MODELS)
    binary = isinstance(dataset.log, BehaviourLog)
    if calibration is None:
        calibration = "balanced" if binary else "calibrated"
    check_choice("calibration", calibration, CALIBRATIONS)
    if calibration == "balanced" and not binary:
        raise ConfigError(
            "calibration='balanced' weighs yes-or-no behaviours; KuaiRec's responses are shares of "
            "a video. Use 'calibrated' or None."
        )
    return _built(dataset, split, response_model, calibration)


@lru_cache(maxsize=4)
def _built(dataset: Dataset, split: str, kind: str, calibration: str) -> Simulator:
    users = dataset.train_users if split == "train" else dataset.test_users
    if split == "test" and not isinstance(dataset.test, BehaviourLog):
        return _table_simulator(dataset, kind, users)
    model = _fitted(dataset, split, kind)
    if isinstance(dataset.log, BehaviourLog):
        model = _calibrated(model, dataset, split, kind, calibration)
    return Simulator(dataset, split, kind, model, model, users, 0.0)


def _table_simulator(dataset: Dataset, kind: str, users: NDArray[np.int32]) -> Simulator:
    test = dataset.test
    rows = np.full(dataset.n_users, -1, dtype=np.int32)
    rows[users] = np.arange(len(users))
    table = np.full((len(users), dataset.n_items), np.nan, dtype=np.float32)
    table[rows[test.users], test.items] = test.response
    observed_share = float(np.mean(~np.isnan(table)))
    expected: ResponseModel
    expected = TruthModel(dataset.truth) if dataset.truth else _fitted(dataset, "test", "factor")
    model = TableModel(rows, table, expected)
    return Simulator(dataset, "test", kind, model, expected, users, observed_share)


def _rows(dataset: Dataset, role: str) -> tuple[Interactions, Interactions]:
    """Rows that a role's items are learned from, and rows that place its users."""
    if role == "train":
        return dataset.train_log, dataset.log
    return dataset.test, dataset.test


def _fitted(dataset: Dataset, role: str, kind: str) -> LogitModel:
    """The role's response model on all its rows."""
    train, everyone = _rows(dataset, role)
    return _fit(dataset, train, everyone, f"{role}-{kind}", kind)


def _fit(
    dataset: Dataset, train: Interactions, everyone: Interactions, label: str, kind: str
) -> LogitModel:
    key = f"response-{dataset.fingerprint}-{label}-v{FIT_VERSION}"
    if kind == "sequential":
        return _sequential(dataset, train, everyone, key)

    def build() -> Arrays:
        model = fit_factor_model(
            train,
            everyone,
            dataset.user_features,
            dataset.item_features,
            (dataset.n_users, len(dataset.item_ids)),
            progress=True,
        )
        return {name: np.asarray(getattr(model, name)) for name in FACTOR_ARRAYS}

    behaviours, logistic = train.BEHAVIOURS, isinstance(train, BehaviourLog)
    return FactorModel(behaviours, logistic, **cached(key, build))  # type: ignore[arg-type]


def assess(dataset: Dataset, split: str, response_model: str = "factor") -> Assessment:
    """Predicts the last tenth of each user's rows from the others, and calibrates by it.

    Of KuaiRec's test table, which has no order, a random tenth is predicted.

    Args:
        dataset: The data.
        split: Whose rows: the train log's, or the test source's.
        response_model: See :func:`build_simulator`.

    Returns:
        The assessment, from the cache where it is there.
    """
    check_choice("split", split, SPLITS)
    check_choice("response_model", response_model, RESPONSE_MODELS)
    train, _ = _rows(dataset, split)
    if split == "test" and isinstance(train, WatchLog):
        # A table of answers has no order: every user's last rows could be of the same items.
        held_out = np.random.default_rng(0).random(len(train)) < HOLD_OUT_SHARE
    else:
        held_out = last_rows(train)
    check = train.take(held_out)
    names = train.BEHAVIOURS

    def build() -> Arrays:
        rest = train.take(~held_out)
        model = _fit(dataset, rest, rest, f"{split}-{response_model}-trial", response_model)
        scale, shift = np.ones(len(names), np.float32), np.zeros(len(names), np.float32)
        if isinstance(check, BehaviourLog) and len(check):
            logits = model.logits(check.users, check.items)
            for b in range(len(names)):
                scale[b], shift[b] = platt(logits[:, b], check.behaviour(b))
            model = model.rescaled(scale, shift)
        predicted = model.feedback(check.users, check.items)
        measures = [
            quality(predicted[:, b], check.behaviour(b), check.users) if len(check) else {}
            for b in range(len(names))
        ]
        table = np.array([[one[name] for name in MEASURES if one] for one in measures])
        return {"scale": scale, "shift": shift, "metrics": table}

    key = f"assess-{dataset.fingerprint}-{split}-{response_model}-v{FIT_VERSION}"
    arrays = cached(key, build)
    metrics = {
        name: dict(zip(MEASURES, row.tolist(), strict=False))  # none without held-out rows
        for name, row in zip(names, arrays["metrics"], strict=True)
    }
    return Assessment(metrics, arrays["scale"], arrays["shift"])  # type: ignore[arg-type]


def _calibrated(
    model: LogitModel, dataset: Dataset, role: str, kind: str, calibration: str
) -> LogitModel:
    found = assess(dataset, role, kind)
    shift = np.array(found.shift)
    if calibration == "balanced":
        # Weighing negatives by #positive / #negative moves the optimum's log-odds by minus the log
        # of that ratio, exactly; no other fit is needed.
        train, _ = _rows(dataset, role)
        for b in range(len(train.BEHAVIOURS)):
            positive = float(train.behaviour(b).sum(dtype=np.float64)) + 0.5
            shift[b] -= np.log(positive / (len(train) - positive + 1.0))
    return model.rescaled(np.array(found.scale), shift)


def _sequential(
    dataset: Dataset, train: Interactions, everyone: Interactions, key: str
) -> LogitModel:
    try:
        from kuaisim_gym.simulator.sequential import SequentialModel, fit_sequential
    except ImportError as error:
        raise ConfigError(
            'response_model="sequential" needs torch: pip install "kuaisim-gym[agents]".'
        ) from error
    file = cache_dir() / f"{key}.safetensors"
    with locked(key) as writable:
        try:
            if file.exists():
                return SequentialModel.load(file, dataset)
        except CheckpointError as error:
            logger.warning("Fitting %s again: %s", file, error)
        model = fit_sequential(
            train,
            everyone,
            dataset.n_users,
            len(dataset.item_ids),
            dataset.user_features,
            dataset.item_features,
        )
        if writable:
            model.save(file)
    return model


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
        model = _fitted(dataset, "train", "factor")
        assert isinstance(model, FactorModel)
        catalogue = build_catalogue(dataset.training, model)
        return {"embedding": catalogue.embedding, "exposures": catalogue.exposures}

    arrays = cached(f"catalogue-{dataset.fingerprint}-v{FIT_VERSION}", build)
    return Catalogue(**arrays)  # type: ignore[arg-type]
