"""Builds the simulators and the catalogue of a dataset, and caches them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuaisim_gym.config import CALIBRATIONS, RESPONSE_MODELS, SPLITS, check_choice
from kuaisim_gym.data.cache import Arrays, cached, kept
from kuaisim_gym.data.coding import Positions
from kuaisim_gym.data.dataset import Dataset, IdArray
from kuaisim_gym.data.feedback import Interactions, LabelLog
from kuaisim_gym.errors import ConfigError, UnknownIdError
from kuaisim_gym.simulator.catalogue import Catalogue, build_catalogue
from kuaisim_gym.simulator.cells import observed_cells
from kuaisim_gym.simulator.factors import (
    PREFERENCE_ARRAYS,
    PreferenceModel,
    fit_preference_model,
)
from kuaisim_gym.simulator.fit import fit_factor_model
from kuaisim_gym.simulator.positives import fit_positive_model, with_taste
from kuaisim_gym.simulator.quality import HOLD_OUT_SHARE, MEASURES, last_rows, platt, quality
from kuaisim_gym.simulator.response import (
    FACTOR_ARRAYS,
    DeferredModel,
    FactorModel,
    LogitModel,
    NoAnswerModel,
    ResponseModel,
    TableModel,
    TruthModel,
)
from kuaisim_gym.simulator.watch import fit_watch_model

FIT_VERSION = 4  # raise when the same rows would give another model
PREFERENCES_VERSION = 3  # likewise, of the model of preferences alone
_MODEL = "model.safetensors"  # of the sequential model, in its entry of the cache


@dataclass(frozen=True, eq=False)
class Simulator:
    """Users who may arrive in a split, and the probabilities of their responses.

    Attributes:
        dataset: The dataset it was fitted on.
        split: ``"train"`` responds as the biased log does; ``"test"`` from unbiased data.
        response_model: The response model that was chosen.
        model: Probabilities by position: the simulator's, which may be noisy.
        expected: Expected responses by position: the noise-free world where it is known, otherwise
            a model fitted on this split's data.
        users: (n,) int32 positions of the users whose sessions this split simulates.
        observed_share: Share of (user, catalogue item) cells whose response is a recorded row
            rather than a model's, in [0, 1].
    """

    dataset: Dataset
    split: str
    response_model: str
    model: ResponseModel
    expected: ResponseModel
    users: NDArray[np.int32]
    observed_share: float

    @property
    def world(self) -> str:
        """The dataset's name, and whether data and test answers are synthetic, real or modelled."""
        kind = "synthetic" if self.dataset.synthetic else "real"
        if kind == "real" and self.split == "test" and self.observed_share < 1.0:
            kind += f", {self.dataset.modelled} of answers modelled"
        return f"{self.dataset.name} ({kind})"

    def probability(self, user_ids: ArrayLike, item_ids: ArrayLike) -> NDArray[np.float32]:
        """Probability of a positive response, by the dataset's own ids.

        Args:
            user_ids: Integers or strings, as the dataset's; broadcastable with ``item_ids``.
            item_ids: Integers or strings, as the dataset's.

        Returns:
            float32 in [0, 1], of the broadcast shape.

        Raises:
            UnknownIdError: An id is not in the dataset, or this split has no response of it.
            ConfigError: The shapes cannot be broadcast.
        """
        return np.asarray(self.model.probability(*self._positions(user_ids, item_ids)))

    def feedback(self, user_ids: ArrayLike, item_ids: ArrayLike) -> NDArray[np.float32]:
        """As :meth:`probability`, for every behaviour in ``model.behaviours``, on a last axis."""
        return np.asarray(self.model.feedback(*self._positions(user_ids, item_ids)))

    def _positions(
        self, user_ids: ArrayLike, item_ids: ArrayLike
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
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
            log_only = items[items >= dataset.n_items]
            if log_only.size:
                raise UnknownIdError(
                    f"Item {dataset.item_ids[log_only][0]} occurs in the log alone; the test "
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
    """Quality of a response model on rows that it was not fitted to.

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
    """Fits, or reads from the cache, the simulator of one split.

    The train simulator is a response model of the biased log; of a log of positives alone it is
    that of :mod:`~kuaisim_gym.simulator.positives`. The test simulator follows from the
    feedback type of the test rows. Where a row is the response itself (KuaiRec), responses are
    looked up in the test table, and unobserved cells are completed by the noise-free world where it
    is known, and otherwise by a factor model of that table alone. Where a row is one random draw
    (KuaiRand), the simulator is a response model of the test rows.

    Args:
        dataset: The data.
        split: ``"train"`` or ``"test"``.
        response_model: ``"factor"``, :class:`~kuaisim_gym.simulator.response.FactorModel`; or
            ``"sequential"``, KuaiSim's transformer over the last 100 events, which needs torch.
        calibration: ``"calibrated"``: probabilities are true to held-out rows. ``"balanced"``: as
            if positive and negative rows weighed the same in all, KuaiSim's class weights, which
            lifts rewards to the published range; for yes-or-no behaviours only. ``None``: the
            default of the feedback type, balanced for KuaiRand and calibrated for KuaiRec.

    Returns:
        The simulator.

    Raises:
        ConfigError: Unknown option, or one that this dataset cannot have.
    """
    check_choice("split", split, SPLITS)
    check_choice("response_model", response_model, RESPONSE_MODELS)
    calibration = dataset.log.calibration if calibration is None else calibration
    check_choice("calibration", calibration, CALIBRATIONS)
    if calibration == "balanced" and dataset.log.link != "logistic":
        raise ConfigError(
            f"calibration='balanced' weighs yes-or-no behaviours; {dataset.name}'s responses are "
            f"shares. Use 'calibrated' or None."
        )
    if not dataset.log.has_negatives and (calibration, response_model) != ("calibrated", "factor"):
        raise ConfigError(
            f"{dataset.name} has a log of positives alone, without a negative to weigh or to "
            f"learn a sequence of answers from: use response_model='factor' and "
            f"calibration='calibrated' or None, got {response_model!r} and {calibration!r}."
        )
    return _built(dataset, split, response_model, calibration)


@lru_cache(maxsize=4)
def _built(dataset: Dataset, split: str, response_model: str, calibration: str) -> Simulator:
    if split == "test" and not dataset.test.is_draw:
        return _table_simulator(dataset, response_model)
    users = dataset.train_users if split == "train" else dataset.test_users
    model = _split_model(dataset, split, response_model)
    rows, _ = _split_rows(dataset, split)
    if rows.link == "logistic" and rows.has_negatives:
        model = _calibrated(model, dataset, split, response_model, calibration)
    return Simulator(dataset, split, response_model, model, model, users, 0.0)


def _table_simulator(dataset: Dataset, response_model: str) -> Simulator:
    """The test simulator that looks responses up."""
    test, users = dataset.test, dataset.test_users
    rows = np.full(dataset.n_users, -1, dtype=np.int32)
    rows[users] = np.arange(len(users))
    shape = len(users), dataset.n_items
    table = observed_cells(rows[test.users], test.items, test.response, shape)
    expected: ResponseModel
    if dataset.truth is not None:
        expected = TruthModel(test.behaviours, dataset.truth)
    else:
        expected = DeferredModel(test.behaviours, partial(_completing_model, dataset))
    # An item outside a pool counts as exposed, and its answer is not used.
    fallback = NoAnswerModel(test.behaviours) if dataset.pools else expected
    model = TableModel(test.behaviours, rows, table, fallback)
    return Simulator(
        dataset, "test", response_model, model, expected, users, dataset.answered_share
    )


def _completing_model(dataset: Dataset) -> ResponseModel:
    """The model of the test rows that answers where there is none."""
    model = _split_model(dataset, "test", "factor")
    complete = len(dataset.test) == len(dataset.test_users) * dataset.n_items
    if dataset.test.link == "logistic" and not complete:
        model = _calibrated(model, dataset, "test", "factor", "calibrated")
    return model


def _split_rows(dataset: Dataset, split: str) -> tuple[Interactions, Interactions]:
    """Rows that a split's items are fitted to, and rows that its users are fitted to."""
    if split == "train":
        return dataset.train_log, dataset.log
    rows = dataset.test
    if not dataset.log.has_negatives and dataset.randomised is not None and not rows.is_draw:
        rows = rows.merged(dataset.randomised)  # labels are few: all users' tell of the items
    return rows, dataset.test


def _split_model(dataset: Dataset, split: str, response_model: str) -> LogitModel:
    """The split's response model on all its rows."""
    rows, placing = _split_rows(dataset, split)
    return _fit(dataset, rows, placing, f"{split}-{response_model}", response_model)


def _fit(
    dataset: Dataset, rows: Interactions, placing: Interactions, label: str, response_model: str
) -> LogitModel:
    """Fits a response model to ``rows`` and users to ``placing``; each label is fitted once."""
    key = f"response-{dataset.fingerprint}-{label}-v{FIT_VERSION}"
    if response_model == "sequential":
        return _sequential(dataset, rows, placing, key)

    size = (dataset.n_users, dataset.n_all_items)

    def build() -> Arrays:
        if not rows.has_negatives:
            model = fit_positive_model(rows, placing, size, dataset.positive_rate)
        elif rows.complete_from is not None:
            model = fit_watch_model(rows, dataset.n_items, size)
        else:
            features = (dataset.user_features, dataset.item_features)
            model = fit_factor_model(rows, placing, *features, size, progress=True)
            if not dataset.log.has_negatives and rows.link == "logistic":
                taste = _split_model(dataset, "train", "factor")
                assert isinstance(taste, FactorModel)
                model = with_taste(model, taste, rows)
        return {name: np.asarray(getattr(model, name)) for name in FACTOR_ARRAYS}

    arrays = cached(key, build)
    return FactorModel(rows.behaviours, rows.link == "logistic", **arrays)  # type: ignore[arg-type]


def assess(dataset: Dataset, split: str, response_model: str = "factor") -> Assessment:
    """Predicts the last tenth of each user's rows from the earlier ones, and calibrates by it.

    Of rows without an order, as in KuaiRec's test table, a random tenth is predicted.

    Args:
        dataset: The data.
        split: Whose rows: the train log's, or the test source's.
        response_model: As for :func:`build_simulator`.

    Returns:
        The assessment, from the cache where it is there.
    """
    check_choice("split", split, SPLITS)
    check_choice("response_model", response_model, RESPONSE_MODELS)
    rows, _ = _split_rows(dataset, split)
    names = rows.behaviours
    if not rows.has_negatives:  # nothing tells how true probabilities are
        unchanged = np.ones(len(names), np.float32), np.zeros(len(names), np.float32)
        return Assessment({name: {} for name in names}, *unchanged)
    if split == "test" and not rows.is_draw:
        # A table of responses has no order: every user's last rows could be of the same items.
        held_out = np.random.default_rng(0).random(len(rows)) < HOLD_OUT_SHARE
        held_out &= rows.is_sample
    else:
        held_out = last_rows(rows)

    def build() -> Arrays:
        fitted, check = rows.take(~held_out), rows.take(held_out)
        label = f"{split}-{response_model}-trial"
        model = _fit(dataset, fitted, fitted, label, response_model)
        scale, shift = np.ones(len(names), np.float32), np.zeros(len(names), np.float32)
        responses = [check.behaviour(b) for b in range(len(names))]
        if rows.link == "logistic" and len(check):
            logits = model.logits(check.users, check.items)
            for b, response in enumerate(responses):
                scale[b], shift[b] = platt(logits[:, b], response)
            model = model.rescaled(scale, shift)
        predicted = model.feedback(check.users, check.items)
        measures = [
            quality(predicted[:, b], response, check.users) if len(check) else {}
            for b, response in enumerate(responses)
        ]
        table = np.array([[values[name] for name in MEASURES if values] for values in measures])
        return {"scale": scale, "shift": shift, "metrics": table}

    key = f"assess-{dataset.fingerprint}-{split}-{response_model}-v{FIT_VERSION}"
    arrays = cached(key, build)
    metrics = {
        name: dict(zip(MEASURES, row.tolist(), strict=False))  # none without held-out rows
        for name, row in zip(names, arrays["metrics"], strict=True)
    }
    return Assessment(metrics, arrays["scale"], arrays["shift"])  # type: ignore[arg-type]


def _calibrated(
    model: LogitModel, dataset: Dataset, split: str, response_model: str, calibration: str
) -> LogitModel:
    assessment = assess(dataset, split, response_model)
    shift = np.array(assessment.shift)
    if calibration == "balanced":
        # Weighing negatives by #positive / #negative moves the optimum's log-odds by minus the log
        # of that ratio, exactly; no other fit is needed.
        rows, _ = _split_rows(dataset, split)
        for b in range(len(rows.behaviours)):
            positive = float(rows.behaviour(b).sum(dtype=np.float64)) + 0.5
            shift[b] -= np.log(positive / (len(rows) - positive + 1.0))
    return model.rescaled(np.array(assessment.scale), shift)


def _sequential(
    dataset: Dataset, rows: Interactions, placing: Interactions, key: str
) -> LogitModel:
    try:
        from kuaisim_gym.simulator.sequential import SequentialModel, fit_sequential
    except ImportError as error:
        raise ConfigError(
            'response_model="sequential" needs torch: pip install "kuaisim-gym[agents]".'
        ) from error

    def build() -> SequentialModel:
        features = (dataset.user_features, dataset.item_features)
        return fit_sequential(rows, placing, dataset.n_users, len(dataset.item_ids), *features)

    return kept(
        key,
        build,
        lambda model, folder: model.save(folder / _MODEL),
        lambda folder, _: SequentialModel.load(folder / _MODEL, dataset),
    )


def _positions(kind: str, ids: ArrayLike, dataset_ids: IdArray) -> NDArray[np.int32]:
    """Positions of ids in the dataset's array.

    Raises:
        UnknownIdError: An id is not in it.
    """
    ids = np.asarray(ids)
    kinds, form = ("U", "string") if dataset_ids.dtype.kind == "U" else ("iu", "integer")
    if ids.dtype.kind not in kinds:
        raise UnknownIdError(f"Expected {form} {kind} ids, got an array of {ids.dtype}.")
    positions = Positions(dataset_ids)(ids)
    if (positions < 0).any():
        raise UnknownIdError(
            f"{kind} id {ids[positions < 0].flat[0]} is not in the dataset, which holds "
            f"{len(dataset_ids)} {kind}s with ids from {min(dataset_ids)} to {max(dataset_ids)}."
        )
    return positions


@lru_cache(maxsize=4)
def load_catalogue(dataset: Dataset) -> Catalogue:
    """Builds, or reads from the cache, the catalogue of a dataset."""

    def build() -> Arrays:
        catalogue = build_catalogue(dataset.training, load_preferences(dataset))
        return {"embedding": catalogue.embedding, "exposures": catalogue.exposures}

    arrays = cached(f"catalogue-{dataset.fingerprint}-v{FIT_VERSION}.{PREFERENCES_VERSION}", build)
    return Catalogue(**arrays)  # type: ignore[arg-type]


@lru_cache(maxsize=4)
def load_preferences(dataset: Dataset) -> PreferenceModel:
    """Fits, or reads from the cache, the model of preferences that beliefs rest on.

    It reads nothing of the test source. Where sessions are answered by a response model of
    randomised rows, one is fitted to those of the train users, which tells how far tastes in such a
    model are from the beliefs of the same users' logs.
    """

    def build() -> Arrays:
        model = fit_preference_model(dataset.training, _rehearsal(dataset))
        return {name: np.asarray(getattr(model, name)) for name in PREFERENCE_ARRAYS}

    key = f"preferences-{dataset.fingerprint}-v{FIT_VERSION}.{PREFERENCES_VERSION}"
    return PreferenceModel(**cached(key, build))  # type: ignore[arg-type]


def _rehearsal(dataset: Dataset) -> FactorModel | None:
    """The train users' counterpart of a test simulator whose rows are draws."""
    rows = dataset.randomised
    if rows is None or not rows.is_draw:
        return None
    labels = LabelLog(rows.users, rows.items, rows.response.astype(np.uint8))
    size = (dataset.n_users, dataset.n_all_items)
    return fit_factor_model(labels, labels, dataset.user_features, dataset.item_features, size)
