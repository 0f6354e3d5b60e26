"""Probes of preferences: traces of popularity, of the user's taste, and of who the user is.

The paper's first claim (DSRM-HRL section 4.2) is that exposure writes popularity into the user
state and that the reverse process removes it and keeps the taste. :func:`probe` measures all sides
of that (:mod:`~dsrm_agents.dsrm.measures`), at the start of sessions of users whom no purifier was
fitted on. Further measures expose purifiers that leave the raw state as it is, or that map all
users to one point.

The truth of a synthetic world and the test rows are read to measure and never to purify.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.dsrm import measures
from dsrm_agents.dsrm.erasure import popularity_statistics
from dsrm_agents.dsrm.pairs import log_parts, true_preference
from dsrm_agents.dsrm.purifier import Denoise, purify
from kuaisim_gym.data import Dataset, Interactions
from kuaisim_gym.envs.options import preference_encoder
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import PreferenceEncoder
from kuaisim_gym.simulator import load_catalogue

MOST_USERS = 1_500  # probed
MOST_REFERENCE = 2_000  # train users who say where the centre is
MOST_ROWS = 200_000  # held-out answers
SMOOTHING = 5.0  # rows' worth of the overall mean in an item's mean response

FloatArray = NDArray[np.float32]


def history_popularity(dataset: Dataset) -> NDArray[np.float64]:
    """Mean popularity of the items that each user was shown: the label of the leakage probes.

    Args:
        dataset: Only ``training`` is read. An item's popularity is counted in the rows of the train
            users alone; the other users' rows say what they were shown.

    Returns:
        (n_users,) float64, mean ``log(1 + count)`` over a user's logged rows, NaN for users without
        rows.
    """
    data = dataset.training
    exposures = np.bincount(data.train_log.items, minlength=data.n_all_items)
    return popularity_statistics(data.log.users, data.log.items, exposures, data.n_users)[:, 0]


@dataclass(frozen=True, eq=False)
class Answers:
    """Held-out answers of the probed users, unseen by purifiers and embeddings.

    Attributes:
        users: (r,) int64, rows of :class:`ProbeData`'s states.
        items: (r,) int32, positions.
        responses: (r,) float32 in [0, 1].
        item_mean: (n_items,) float64, smoothed mean answers of the train log.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int32]
    responses: FloatArray
    item_mean: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Causes:
    """Truth about the probed users, in synthetic worlds.

    Attributes:
        preference: (n, d) float32, see :func:`~dsrm_agents.dsrm.pairs.true_preference`.
        interest: (n,) int32, favourite categories.
        relevance: (n, n_items) float32, true relevance of every item.
    """

    preference: FloatArray
    interest: NDArray[np.int32]
    relevance: FloatArray


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Evaluation data for purifiers, made once for a dataset; see :func:`probe_data`.

    States are by what purifiers read, ``"pooled"`` or ``"parts"``, and ``width`` columns wide.

    Attributes:
        seed: Of every split and network.
        users: (n,) int32 positions of the probed users, ascending.
        states: (n, width) float32, what their sessions show at the start.
        popularity: (n,) float64, see :func:`history_popularity`.
        reference: (m, width) float32, the same of train users; purified states are counted from
            the mean of theirs.
        halves: (2, h, width) float32, the same of the two halves of a history, of those probed
            users who have both.
        item_embedding: (n_items, d) float32.
        tail: Positions of the items outside the popular group.
        answers: Held-out answers, ``None`` where the probed users have too few.
        causes: ``None`` for real data.
    """

    seed: int
    users: NDArray[np.int32]
    states: dict[str, FloatArray]
    popularity: NDArray[np.float64]
    reference: dict[str, FloatArray]
    halves: dict[str, FloatArray]
    item_embedding: FloatArray
    tail: NDArray[np.int64]
    answers: Answers | None
    causes: Causes | None

    def __post_init__(self) -> None:
        tables = [self.states, self.reference, self.halves]
        tables += [vars(owner) for owner in (self, self.answers, self.causes) if owner is not None]
        for table in tables:
            for array in table.values():
                if isinstance(array, np.ndarray):
                    array.setflags(write=False)  # shared by all purifiers that are compared


def probe_data(
    dataset: Dataset, *, users: NDArray[np.integer] | None = None, seed: int = 0
) -> ProbeData:
    """Gathers the evaluation data of a dataset.

    Test rows are read for :class:`Answers` alone, the truth of a synthetic world for
    :class:`Causes` alone; all else comes from ``dataset.training``.

    Args:
        dataset: Synthetic or real.
        users: Positions of the users to probe; a sample of at most 1,500 test users if ``None``.
            They need a response in the log, without which there is no state. Where
            ``dataset.split_by`` is ``"cell"``, purifiers were fitted on logged rows of these users
            too.
        seed: Of the samples, of the halves, and of what :func:`probe` draws later.

    Returns:
        The same data for the same dataset, users and seed.

    Raises:
        ConfigError: Fewer users than folds, or one without any response in the log.
    """
    rng = np.random.default_rng(seed)
    encoder, catalogue = preference_encoder(dataset), load_catalogue(dataset)
    with_state = np.flatnonzero(encoder.history_weight > 0)
    if users is None:
        users = _sample(np.intersect1d(dataset.test_users, with_state), MOST_USERS, rng)
    probed: NDArray[np.int32] = np.unique(users).astype(np.int32)
    if not np.isin(probed, with_state).all():
        raise ConfigError("Probed users must have a response in the log; some of these have none.")
    if len(probed) < measures.FOLDS:
        raise ConfigError(f"Probes need at least {measures.FOLDS} users, got {len(probed)}.")
    reference = _sample(dataset.train_users, MOST_REFERENCE, rng)

    return ProbeData(
        seed=seed,
        users=probed,
        states=_shown(encoder, dataset.log, probed),
        popularity=history_popularity(dataset)[probed],
        reference=_shown(encoder, dataset.log, reference),
        halves=_halves(dataset, encoder, probed, rng),
        item_embedding=catalogue.item_embedding,
        tail=np.flatnonzero(~catalogue.popular),
        answers=_answers(dataset, probed, rng),
        causes=_causes(dataset, probed, reference),
    )


def probe(denoise: Denoise, data: ProbeData, reads: str = "pooled") -> dict[str, float]:
    """Measures a purifier.

    Args:
        denoise: (n, width) float32 observed states to (n, d) float32 preferences, such as
            :meth:`~dsrm_agents.dsrm.purifier.FittedPurifier.denoise`.
        data: Evaluation data; see :func:`probe_data`.
        reads: What it reads, see :attr:`~dsrm_agents.dsrm.purifier.Purifier.reads`.

    Returns:
        By name: ``leakage_r2`` and ``leakage_mlp`` of popularity, with ``leakage_floor`` and
        ``leakage_mlp_floor``; ``cosine`` to the true taste; ``recall20`` and, among the long
        tail, ``recall20_longtail``; ``interest_accuracy``; ``effective_rank``;
        ``discriminability``; ``cosine_to_raw``, to the raw state; ``response_r2``; and
        ``n_users``. Measures that the data do not allow are absent: those that need the truth on
        real data, ``response_r2`` without held-out answers, and ``discriminability`` without two
        users who have two halves of a history.

    Raises:
        ConfigError: The purifier returns another shape, or values that are not finite.
    """

    def purified(states: FloatArray) -> FloatArray:
        return purify(denoise, states.copy(), data.item_embedding.shape[1])  # it may write there

    states = purified(data.states[reads])
    centre = purified(data.reference[reads]).mean(axis=0, dtype=np.float64)
    label, seed, origin = data.popularity, data.seed, np.zeros(states.shape[1])
    results = {
        "leakage_r2": measures.popularity_leakage(states, label, seed=seed),
        "leakage_mlp": measures.popularity_leakage(states, label, "mlp", seed),
        "leakage_floor": measures.leakage_floor(states, label, seed=seed),
        "leakage_mlp_floor": measures.leakage_floor(states, label, "mlp", seed),
        "effective_rank": measures.effective_rank(states),
        "cosine_to_raw": measures.cosine(data.states["pooled"], states, origin, origin),
        "n_users": float(len(data.users)),
    }
    halves = data.halves[reads]
    if halves.shape[1] > 1:
        results["discriminability"] = measures.discriminability(*map(purified, halves))
    if data.answers is not None:
        results["response_r2"] = measures.response_r2(
            states,
            **vars(data.answers),
            item_embedding=data.item_embedding,
            centre=centre,
            seed=seed,
        )
    if data.causes is not None:
        results |= _against_truth(states, centre, data.causes, data)
    return results


def _against_truth(
    states: FloatArray, centre: NDArray[np.float64], causes: Causes, data: ProbeData
) -> dict[str, float]:
    """Measures of the taste, which is what tells users' rankings apart."""
    taste, centre = states[:, 1:], centre[1:]
    ranked = (taste, data.item_embedding[:, 1:], causes.relevance)
    truth = causes.preference[:, 1:]  # an excess already, which sits around the origin
    return {
        "interest_accuracy": measures.interest_accuracy(states, causes.interest, data.seed),
        "cosine": measures.cosine(taste, truth, centre, np.zeros(taste.shape[1])),
        "recall20": measures.recall_at_k(*ranked, centre=centre),
        "recall20_longtail": measures.recall_at_k(*ranked, items=data.tail, centre=centre),
    }


def _sample(users: NDArray[np.int32], most: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """At most ``most`` of the users, ascending."""
    return np.sort(rng.choice(users, min(most, len(users)), replace=False))


def _shown(
    encoder: PreferenceEncoder, rows: Interactions, users: NDArray[np.int32]
) -> dict[str, FloatArray]:
    """States that sessions of some users show at the start, by what purifiers read."""
    parts = log_parts(encoder, rows, users)
    return {"pooled": encoder.pooled(parts), "parts": parts}


def _halves(
    dataset: Dataset, encoder: PreferenceEncoder, users: NDArray[np.int32], rng: np.random.Generator
) -> dict[str, FloatArray]:
    """(2, h, width) states of random halves of the logged rows of each user who has both.

    A half without any response has no state; users with one, and so all users with a single row,
    are left out.
    """
    log = dataset.log.of_users(users, dataset.n_users)
    shuffled = np.lexsort((rng.random(len(log)), log.users))
    in_first = np.empty(len(log), dtype=bool)
    in_first[shuffled] = (np.arange(len(log)) - log.starts(dataset.n_users)[log.users]) % 2 == 0
    shown = [_shown(encoder, log.take(half), users) for half in (in_first, ~in_first)]
    liked = [
        np.bincount(log.users[half], log.response[half], dataset.n_users)[users] > 0
        for half in (in_first, ~in_first)
    ]
    complete = np.logical_and(*liked)
    return {reads: np.stack([half[reads][complete] for half in shown]) for reads in shown[0]}


def _answers(
    dataset: Dataset, users: NDArray[np.int32], rng: np.random.Generator
) -> Answers | None:
    """A sample of the users' test rows; ``None`` where fewer users than folds have some."""
    test = dataset.test.of_users(users, dataset.n_users)
    if len(test) > MOST_ROWS:
        test = test.take(np.sort(rng.choice(len(test), MOST_ROWS, replace=False)))
    if len(test.distinct_users) < measures.FOLDS:
        return None
    log, n_all = dataset.train_log, len(dataset.item_ids)
    response = log.response.astype(np.float64)
    overall = response.mean() if len(response) else 0.0
    item_mean = np.bincount(log.items, response, n_all) + SMOOTHING * overall
    item_mean /= np.bincount(log.items, minlength=n_all) + SMOOTHING
    mean = np.asarray(item_mean[: dataset.n_items], dtype=np.float64)
    return Answers(np.searchsorted(users, test.users), test.items, test.response, mean)


def _causes(
    dataset: Dataset, users: NDArray[np.int32], reference: NDArray[np.int32]
) -> Causes | None:
    """Truth about the users of a synthetic world; ``None`` for real data."""
    truth = dataset.truth
    if truth is None:
        return None
    return Causes(
        true_preference(dataset, users, reference),
        truth.interest[users],
        truth.preference[users] @ truth.item_vectors.T,
    )
