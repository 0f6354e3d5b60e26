"""What preference states still say: of popularity, of the user's taste, and of who the user is.

The paper's first claim (DSRM-HRL section 4.2) is that exposure writes popularity into the user
state and that the reverse process removes it and keeps the taste. Each function measures one side
of that on plain arrays; :func:`probe` applies all of them to a purifier, on users whom no purifier
was fitted on. A purifier that leaves the input as it is, or that maps all users to one point, must
be seen to do so, hence the probes for identity and for collapse.

Probes that learn are judged on users whom they were not fitted on. What a synthetic world knows of
its users, and the test rows, are read to measure and never to purify.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kuaisim_gym.config import check_choice
from kuaisim_gym.data.dataset import Dataset, Truth
from kuaisim_gym.envs.assembly import preference_encoder
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import PreferenceEncoder
from kuaisim_gym.simulator import load_catalogue

PROBES = ("ridge", "mlp")
FOLDS = 5
SHUFFLES = 5  # of the label, for the floor
MOST_USERS = 1_500  # probed
MOST_REFERENCE = 2_000  # train users who say where the centre is
MOST_ROWS = 200_000  # held-out answers
TOP_K = 20  # items
ITEM_PRIOR = 5.0  # rows of the mean answer that every item's mean is drawn to
BLOCK = 256  # users at a time, against the whole catalogue
NO_SPREAD = 1e-12  # of the mean square: what rounding leaves where all states are one

FloatArray = NDArray[np.float32]
States = NDArray[np.floating]
Denoise = Callable[[FloatArray], FloatArray]


def history_popularity(dataset: Dataset) -> NDArray[np.float64]:
    """How popular the items are that each user was shown: the label of the leakage probes.

    Args:
        dataset: Only ``training`` is read. An item's popularity is counted in the rows of the train
            users alone; the other users' rows say what they were shown.

    Returns:
        (n_users,) float64, mean ``log(1 + count)`` over a user's logged rows, NaN for users without
        rows.
    """
    data = dataset.training
    popularity = np.log1p(np.bincount(data.train_log.items, minlength=data.n_all_items))
    shown = np.bincount(data.log.users, minlength=data.n_users)
    total = np.bincount(data.log.users, weights=popularity[data.log.items], minlength=data.n_users)
    return np.where(shown > 0, total / np.maximum(shown, 1), np.nan)


def popularity_leakage(
    states: States,
    label: NDArray[np.floating],
    probe: str = "ridge",
    folds: int = FOLDS,
    seed: int = 0,
) -> float:
    """How well a probe reads the popularity of a user's history from the state.

    Args:
        states: (n, d).
        label: (n,), see :func:`history_popularity`; users with NaN are left out.
        probe: ``"ridge"`` for what is there linearly, its penalty chosen by generalised
            cross-validation; ``"mlp"`` for what a small network finds besides.
        folds: Parts that the users are split into.
        seed: Of the split and of the network.

    Returns:
        R^2 over users whom the probe was not fitted on: 1 for all of it, 0 or less for none.

    Raises:
        ConfigError: Unknown probe, or fewer users than folds.
    """
    check_choice("probe", probe, PROBES)
    known = np.isfinite(label)
    states, label = states[known], label[known]
    fold = _split(len(label), folds, seed)
    model = _linear_probe() if probe == "ridge" else _network_probe(seed)
    return _r2(label, _out_of_fold(model, states, label, fold))


def leakage_floor(
    states: States,
    label: NDArray[np.floating],
    folds: int = FOLDS,
    seed: int = 0,
    shuffles: int = SHUFFLES,
) -> float:
    """What :func:`popularity_leakage` finds by ridge where there is nothing to find.

    Args:
        states: (n, d).
        label: (n,), shuffled among the users before each measurement.
        folds: Parts that the users are split into.
        seed: Of the split and of the shuffles.
        shuffles: Measurements to average.

    Returns:
        Mean R^2, about 0.

    Raises:
        ConfigError: Fewer users than folds.
    """
    rng = np.random.default_rng(seed)
    known = np.isfinite(label)
    states, label = states[known], label[known]
    found = [
        popularity_leakage(states, rng.permutation(label), "ridge", folds, seed)
        for _ in range(shuffles)
    ]
    return float(np.mean(found))


def interest_accuracy(
    states: States, interest: NDArray[np.integer], folds: int = FOLDS, seed: int = 0
) -> float:
    """How often multinomial logistic regression names the user's favourite category.

    Args:
        states: (n, d).
        interest: (n,) category, such as ``Truth.interest``. A category that a fit has not seen
            counts as missed.
        folds: Parts that the users are split into.
        seed: Of the split.

    Returns:
        Share of users named rightly by a probe that was not fitted on them.

    Raises:
        ConfigError: Fewer users than folds.
    """
    fold = _split(len(interest), folds, seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1_000))
    return float(np.mean(_out_of_fold(model, states, interest, fold) == interest))


def true_preference(
    dataset: Dataset,
    users: NDArray[np.integer],
    encoder: PreferenceEncoder,
    reference: NDArray[np.integer],
) -> FloatArray:
    """The states that the users' true preferences would have.

    A state is an exposure-weighted mean of what was answered; this is the same mean over the whole
    catalogue, each item shown once and answered as an unbiased user would. How generous a user is
    and how good an item is are no preferences: each answer counts as its excess over both.

    Args:
        dataset: A synthetic world; only ``truth`` is read.
        users: (n,) positions.
        encoder: Gives the embedding and the units.
        reference: (m,) positions of the users whose answers are averaged into the items' means,
            such as a sample of the train users. They sit around the origin.

    Returns:
        (n, d) float32 in the encoder's units.

    Raises:
        ConfigError: The dataset is real: nobody knows its users' preferences.
    """
    embedding = encoder.embedding[: dataset.n_items]
    truth = _truth(dataset)
    pooled, level = _pooled_answers(truth, users, embedding)
    reference_pooled, reference_level = _pooled_answers(truth, reference, embedding)
    # Sum of (answer - item's mean - (user's mean - overall mean)) * embedding, term by term.
    excess = pooled - reference_pooled.mean(axis=0)
    excess -= np.outer(level - reference_level.mean(), embedding.mean(axis=0, dtype=np.float64))
    return np.asarray(excess / encoder.scale, dtype=np.float32)


def cosine(
    first: States,
    second: States,
    first_centre: States | None = None,
    second_centre: States | None = None,
) -> float:
    """Mean cosine between two states of the same user.

    Args:
        first: (n, d).
        second: (n, d).
        first_centre: (d,) what to count ``first`` from; its own mean if ``None``.
        second_centre: (d,) the same of ``second``.

    Returns:
        In [-1, 1]; a user who sits at a centre counts 0.
    """
    a, b = _directions(first, first_centre), _directions(second, second_centre)
    return float(np.mean(np.sum(a * b, axis=1)))


def recall_at_k(
    states: States,
    item_embedding: States,
    relevance: States,
    k: int = TOP_K,
    items: NDArray[np.integer] | None = None,
    centre: States | None = None,
) -> float:
    """How many of each user's best items the state ranks first.

    Args:
        states: (n, d).
        item_embedding: (n_items, d); an item scores its inner product with the centred state.
        relevance: (n, n_items), how much each user truly likes each item.
        k: Length of both lists.
        items: Positions of the items that compete, such as the long tail; all if ``None``.
        centre: (d,) what to count states from; their own mean if ``None``.

    Returns:
        Mean share of a user's k most relevant items that are among the k best scored.

    Raises:
        ConfigError: There are fewer than k items.
    """
    if items is not None:
        item_embedding, relevance = item_embedding[items], relevance[:, items]
    n_items = len(item_embedding)
    if not 1 <= k <= n_items:
        raise ConfigError(f"k must be 1 to {n_items}, the number of items, got {k}.")
    centred = _centred(states, centre)
    scored = item_embedding.astype(np.float64).T
    shares = [_overlap(centred[rows] @ scored, relevance[rows], k) for rows in _blocks(len(states))]
    return float(np.mean(np.concatenate(shares)))


def effective_rank(states: States) -> float:
    """How many directions the states spread over.

    Args:
        states: (n, d).

    Returns:
        Exponential of the entropy of the covariance's normalised eigenvalues (Roy and Vetterli
        2007): d for isotropic states, 1 for states on a line, 0 where all states are one.
    """
    centred = _centred(states, None)
    energy = np.linalg.eigvalsh(centred.T @ centred).clip(0.0)
    total = energy.sum()
    if total <= NO_SPREAD * np.square(states, dtype=np.float64).sum():
        return 0.0
    share = energy[energy > 0] / total
    return float(np.exp(-np.sum(share * np.log(share))))


def discriminability(first: States, second: States) -> float:
    """How often a user is recognised by one half of the history among all users' other halves.

    Args:
        first: (n, d) states of one half.
        second: (n, d) states of the other half, the same users in the same order.

    Returns:
        Share of users whose nearest neighbour, by cosine of centred states, is themselves, over
        both directions: 1 where every user keeps a place of their own, 1 / n after a collapse.
    """
    centre = np.concatenate([first, second]).mean(axis=0, dtype=np.float64)
    a, b = _directions(first, centre), _directions(second, centre)
    hits = [
        np.argmax(left[rows] @ right.T, axis=1) == np.arange(rows.start, rows.stop)
        for left, right in ((a, b), (b, a))
        for rows in _blocks(len(left))
    ]
    return float(np.mean(np.concatenate(hits)))


def identity_check(raw: States, purified: States) -> dict[str, float]:
    """How much of its input a purifier hands back.

    Args:
        raw: (n, d) states before.
        purified: (n, d) states after.

    Returns:
        ``cosine_to_input``, the mean cosine of the states as they are; ``relative_change``, the
        root mean square of ``purified - raw`` over that of ``raw``; and ``r2`` of ``purified =
        raw``: 1 for the identity, not bounded below.
    """
    origin = np.zeros(raw.shape[1])
    change = np.square(purified.astype(np.float64) - raw).sum()
    size = np.square(raw, dtype=np.float64).sum()
    return {
        "cosine_to_input": cosine(raw, purified, origin, origin),
        "relative_change": float(np.sqrt(change / size)) if size > 0 else 0.0,
        "r2": _r2(purified, raw),
    }


def response_r2(
    states: States,
    users: NDArray[np.integer],
    items: NDArray[np.integer],
    responses: NDArray[np.floating],
    item_mean: NDArray[np.floating],
    item_embedding: States,
    centre: States | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> float:
    """How well states tell who answers an item better than others do; needs no truth.

    A ridge regression explains an answer's excess over the item's mean by the elementwise product
    of the user's centred state and the item's embedding: it may weigh the coordinates, and knows
    nothing else of the user.

    Args:
        states: (n, d).
        users: (r,) of each held-out answer, the row of ``states``.
        items: (r,) positions.
        responses: (r,) in [0, 1].
        item_mean: (n_items,) what is expected of an item whoever is asked.
        item_embedding: (n_items, d).
        centre: (d,) what to count states from; their own mean if ``None``.
        folds: Parts that the users are split into.
        seed: Of the split.

    Returns:
        R^2 over the answers of users whom the regression was not fitted on; 0 or less where states
        tell nothing.

    Raises:
        ConfigError: Fewer users than folds have answers.
    """
    asked, user_number = np.unique(users, return_inverse=True)
    fold = _split(len(asked), folds, seed)[user_number]
    products = (_centred(states, centre)[users] * item_embedding[items]).astype(np.float32)
    excess = responses.astype(np.float64) - item_mean[items]
    return _r2(
        excess, _out_of_fold(make_pipeline(StandardScaler(), Ridge()), products, excess, fold)
    )


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of the probed users that no purifier and no embedding has seen.

    Attributes:
        users: (r,) int64, rows of ``ProbeData.states``.
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
    """What a synthetic world knows of the probed users.

    Attributes:
        preference: (n, d) float32, see :func:`true_preference`; counted from the origin.
        interest: (n,) int32, favourite categories.
        relevance: (n, n_items) float32, true relevance of every item.
    """

    preference: FloatArray
    interest: NDArray[np.int32]
    relevance: FloatArray


@dataclass(frozen=True, eq=False)
class ProbeData:
    """All that purifiers are measured by, made once for a dataset; see :func:`probe_data`.

    Attributes:
        seed: Of every split and network.
        users: (n,) int32 positions of the probed users, ascending.
        states: (n, d) float32, their raw states.
        popularity: (n,) float64, see :func:`history_popularity`.
        reference: (m, d) float32, raw states of train users; the mean of what becomes of them is
            what purified states are counted from.
        halves: (2, h, d) float32, raw states of the two halves of a history, of those probed users
            who have both.
        item_embedding: (n_items, d) float32.
        tail: Positions of the items outside the popular group.
        answers: Held-out answers, ``None`` where the probed users have too few.
        causes: ``None`` for real data.
    """

    seed: int
    users: NDArray[np.int32]
    states: FloatArray
    popularity: NDArray[np.float64]
    reference: FloatArray
    halves: FloatArray
    item_embedding: FloatArray
    tail: NDArray[np.int64]
    answers: Answers | None
    causes: Causes | None

    def __post_init__(self) -> None:
        for part in (self, self.answers, self.causes):
            for array in () if part is None else vars(part).values():
                if isinstance(array, np.ndarray):
                    array.setflags(write=False)  # shared by all purifiers that are compared


def probe_data(
    dataset: Dataset, *, users: NDArray[np.integer] | None = None, seed: int = 0
) -> ProbeData:
    """Gathers what purifiers of a dataset are measured by.

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
    placed = np.flatnonzero(encoder.history_weight > 0)
    if users is None:
        users = _sample(np.intersect1d(dataset.test_users, placed), MOST_USERS, rng)
    probed: NDArray[np.int32] = np.unique(users).astype(np.int32)
    if not np.isin(probed, placed).all():
        raise ConfigError("Probed users must have a response in the log; some given have none.")
    if len(probed) < FOLDS:
        raise ConfigError(f"Probes need at least {FOLDS} users, got {len(probed)}.")
    reference = _sample(dataset.train_users, MOST_REFERENCE, rng)

    def raw(who: NDArray[np.integer]) -> FloatArray:
        return encoder.encode(encoder.history_sum[who], encoder.history_weight[who])

    return ProbeData(
        seed=seed,
        users=probed,
        states=raw(probed),
        popularity=history_popularity(dataset)[probed],
        reference=raw(reference),
        halves=_halves(dataset, encoder, probed, rng),
        item_embedding=catalogue.item_embedding,
        tail=np.flatnonzero(~catalogue.popular),
        answers=_answers(dataset, probed, rng),
        causes=_causes(dataset, encoder, probed, reference),
    )


def probe(denoise: Denoise, data: ProbeData) -> dict[str, float]:
    """Measures a purifier.

    Args:
        denoise: (n, d) float32 raw states to (n, d) float32 purified ones, such as
            :meth:`~dsrm_agents.dsrm.purifier.DSRM.denoise`.
        data: What to measure by; see :func:`probe_data`.

    Returns:
        By name: ``leakage_r2``, ``leakage_mlp`` and ``leakage_floor`` of popularity; ``cosine`` to
        the true preference; ``recall20`` and, among the long tail, ``recall20_longtail``;
        ``interest_accuracy``; ``effective_rank``; ``discriminability``; ``cosine_to_input`` and
        ``identity_r2``; ``response_r2``; and ``n_users``. What the data cannot tell is absent: what
        needs the truth on real data, ``response_r2`` without held-out answers, and
        ``discriminability`` without two users who have two halves of a history.

    Raises:
        ConfigError: What comes back has another shape or is not finite.
    """
    purified = _applied(denoise, data.states)
    centre = _applied(denoise, data.reference).mean(axis=0, dtype=np.float64)
    identity = identity_check(data.states, purified)
    found = {
        "leakage_r2": popularity_leakage(purified, data.popularity, seed=data.seed),
        "leakage_mlp": popularity_leakage(purified, data.popularity, "mlp", seed=data.seed),
        "leakage_floor": leakage_floor(purified, data.popularity, seed=data.seed),
        "effective_rank": effective_rank(purified),
        "cosine_to_input": identity["cosine_to_input"],
        "identity_r2": identity["r2"],
        "n_users": float(len(data.users)),
    }
    if data.halves.shape[1] > 1:
        found["discriminability"] = discriminability(*(_applied(denoise, h) for h in data.halves))
    if data.answers is not None:
        found["response_r2"] = response_r2(
            purified,
            data.answers.users,
            data.answers.items,
            data.answers.responses,
            data.answers.item_mean,
            data.item_embedding,
            centre,
            seed=data.seed,
        )
    if data.causes is not None:
        found |= _against_causes(purified, centre, data, data.causes)
    return found


def _against_causes(
    purified: FloatArray, centre: States, data: ProbeData, causes: Causes
) -> dict[str, float]:
    """The measurements that need the truth."""
    origin = np.zeros(purified.shape[1])  # true preferences are excesses already
    ranked = (purified, data.item_embedding, causes.relevance)
    return {
        "interest_accuracy": interest_accuracy(purified, causes.interest, seed=data.seed),
        "cosine": cosine(purified, causes.preference, centre, origin),
        "recall20": recall_at_k(*ranked, centre=centre),
        "recall20_longtail": recall_at_k(*ranked, items=data.tail, centre=centre),
    }


def _applied(denoise: Denoise, states: FloatArray) -> FloatArray:
    """What a purifier makes of (n, d) states.

    Raises:
        ConfigError: It has another shape or is not finite.
    """
    purified = np.asarray(denoise(states.copy()))  # the purifier's own: it may write into it
    if purified.shape != states.shape or not np.isfinite(purified).all():
        raise ConfigError(
            f"A purifier must return finite states of shape {states.shape}, got "
            f"{purified.shape}{'' if purified.shape != states.shape else ', not all finite'}."
        )
    return purified


def _sample(users: NDArray[np.int32], most: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """At most ``most`` of the users, ascending."""
    return np.sort(rng.choice(users, min(most, len(users)), replace=False))


def _halves(
    dataset: Dataset, encoder: PreferenceEncoder, users: NDArray[np.int32], rng: np.random.Generator
) -> FloatArray:
    """(2, h, d) states of random halves of the logged rows of each user who has both.

    A half without any response has no state; users with one, and so all users with a single row,
    are left out.
    """
    log = dataset.log.of_users(users, dataset.n_users)
    rows = np.searchsorted(users, log.users)
    shuffled = np.lexsort((rng.random(len(log)), rows))
    in_first = np.empty(len(log), dtype=bool)
    in_first[shuffled] = (np.arange(len(log)) - log.starts(dataset.n_users)[log.users]) % 2 == 0
    shape = (len(users), len(encoder.embedding))
    pooled = [
        encoder.pool(csr_matrix((log.response * chosen, (rows, log.items)), shape=shape))
        for chosen in (in_first, ~in_first)
    ]
    both = np.logical_and(*(weight > 0 for _, weight in pooled))
    return np.stack([encoder.encode(total[both], weight[both]) for total, weight in pooled])


def _answers(
    dataset: Dataset, users: NDArray[np.int32], rng: np.random.Generator
) -> Answers | None:
    """A sample of the users' test rows; ``None`` where fewer users than folds have some."""
    test = dataset.test.of_users(users, dataset.n_users)
    if len(test) > MOST_ROWS:
        test = test.take(np.sort(rng.choice(len(test), MOST_ROWS, replace=False)))
    if len(test.distinct_users) < FOLDS:
        return None
    log, n_all = dataset.train_log, len(dataset.item_ids)
    total = np.bincount(log.items, weights=log.response, minlength=n_all)
    count = np.bincount(log.items, minlength=n_all)
    overall = log.response.mean(dtype=np.float64)
    item_mean = (total + ITEM_PRIOR * overall) / (count + ITEM_PRIOR)
    return Answers(
        np.searchsorted(users, test.users), test.items, test.response, item_mean[: dataset.n_items]
    )


def _causes(
    dataset: Dataset,
    encoder: PreferenceEncoder,
    users: NDArray[np.int32],
    reference: NDArray[np.int32],
) -> Causes | None:
    """What a synthetic world knows of the users; ``None`` for real data."""
    truth = dataset.truth
    if truth is None:
        return None
    return Causes(
        true_preference(dataset, users, encoder, reference),
        truth.interest[users],
        truth.preference[users] @ truth.item_vectors.T,
    )


def _truth(dataset: Dataset) -> Truth:
    if dataset.truth is None:
        raise ConfigError(f"True preferences are known in synthetic worlds only: {dataset.name}.")
    return dataset.truth


def _pooled_answers(
    truth: Truth, users: NDArray[np.integer], embedding: FloatArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, d) answer-weighted mean embeddings over the catalogue, and (n,) mean answers."""
    items = np.arange(len(embedding))[None, :]
    pooled, level = np.empty((len(users), embedding.shape[1])), np.empty(len(users))
    for rows in _blocks(len(users)):
        answers = truth.expected(users[rows, None], items)
        pooled[rows] = answers @ embedding / len(embedding)
        level[rows] = answers.mean(axis=1, dtype=np.float64)
    return pooled, level


def _overlap(scores: States, relevance: States, k: int) -> NDArray[np.float64]:
    """(n,) share of the k most relevant items among the k best scored."""
    wanted = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(wanted, np.argpartition(-relevance, k - 1, axis=1)[:, :k], True, axis=1)
    found = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return np.asarray(np.take_along_axis(wanted, found, axis=1).mean(axis=1))


def _blocks(n: int) -> Iterator[slice]:
    """Slices of at most ``BLOCK`` that cover ``n`` rows."""
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


def _centred(states: States, centre: States | None) -> NDArray[np.float64]:
    """(n, d) states counted from a centre, their own mean if ``None``."""
    states = states.astype(np.float64)
    return np.asarray(states - (states.mean(axis=0) if centre is None else centre))


def _directions(states: States, centre: States | None) -> NDArray[np.float64]:
    """(n, d) centred states at unit length; zero for one at the centre."""
    centred = _centred(states, centre)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(np.divide(centred, length, out=np.zeros_like(centred), where=length > 0))


def _r2(actual: States, predicted: States) -> float:
    """1 - SSE / SST about the column means; 0 where there is nothing to explain."""
    actual = actual.astype(np.float64)
    total = np.square(_centred(actual, None)).sum()
    if total <= NO_SPREAD * np.square(actual).sum():
        return 0.0
    return float(1.0 - np.square(actual - predicted).sum() / total)


def _split(n: int, folds: int, seed: int) -> NDArray[np.int64]:
    """(n,) int64, the fold of each of n users, folds as equal as can be.

    Raises:
        ConfigError: Fewer than two folds, or fewer users than folds.
    """
    if not 2 <= folds <= n:
        raise ConfigError(f"folds must be 2 to {n}, the number of users, got {folds}.")
    return np.random.default_rng(seed).permutation(n) % folds


def _out_of_fold(
    model: Any, inputs: States, label: NDArray[Any], fold: NDArray[np.int64]
) -> NDArray[Any]:
    """What each row is predicted to be by the model fitted on the other folds' rows.

    Args:
        model: Of scikit-learn, not fitted.
        inputs: (n, d).
        label: (n,).
        fold: (n,).

    Returns:
        (n,) of the label's type.
    """
    predicted = np.empty_like(label)
    for number in np.unique(fold):
        held = fold == number
        known = label[~held]
        if (known == known[0]).all():  # classifiers refuse to learn a single class
            predicted[held] = known[0]
        else:
            predicted[held] = clone(model).fit(inputs[~held], known).predict(inputs[held])
    return predicted


def _linear_probe() -> Any:
    return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 4, 11)))


def _network_probe(seed: int) -> Any:
    """A small network, kept by its weight penalty from learning noise by heart.

    With some 1,000 users to learn from, stopping on a tenth of them instead finds less: less even
    than the ridge probe where all there is to find is linear.
    """
    network = MLPRegressor(
        hidden_layer_sizes=(64,),
        activation="tanh",
        alpha=5.0,
        learning_rate_init=3e-3,
        max_iter=500,
        random_state=int(np.random.default_rng(seed).integers(2**31)),  # takes 32 bits only
    )
    probe = make_pipeline(StandardScaler(), network)
    return TransformedTargetRegressor(probe, transformer=StandardScaler())
