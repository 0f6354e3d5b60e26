"""Measures of states, on plain arrays; probes that learn are judged on held-out users."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError

PROBES = ("ridge", "mlp")
FOLDS = 5
SHUFFLES = 5  # of the label, for the floor
TOP_K = 20  # items
BLOCK = 256  # users at a time, against the whole catalogue
NO_SPREAD = 1e-12  # of the mean square: the rounding error of states that are all the same

States = NDArray[np.floating]


def popularity_leakage(
    states: States, label: NDArray[np.floating], probe: str = "ridge", seed: int = 0
) -> float:
    """R^2 of a probe that reads the popularity of a user's history from the state.

    Args:
        states: (n, d).
        label: (n,) popularity of each user's history; users with NaN are left out.
        probe: ``"ridge"`` for linear traces, its penalty chosen by generalised cross-validation;
            ``"mlp"`` for those that a small network finds besides.
        seed: Of the split into folds and of the network.

    Returns:
        R^2 over users whom the probe was not fitted on: 1 for all of it, 0 or less for none.

    Raises:
        ConfigError: Unknown probe, or fewer users than folds.
    """
    check_choice("probe", probe, PROBES)
    labelled = np.isfinite(label)
    states, label = states[labelled], label[labelled]
    linear = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 4, 11)))
    model = linear if probe == "ridge" else _network_probe(seed)
    return _r2(label, _out_of_fold(model, states, label, _folds(len(label), seed)))


def leakage_floor(
    states: States, label: NDArray[np.floating], probe: str = "ridge", seed: int = 0
) -> float:
    """Popularity leakage where there is none: labels are shuffled among the users.

    Args:
        states: (n, d).
        label: (n,), shuffled before each of :data:`SHUFFLES` measurements.
        probe: ``"ridge"`` or ``"mlp"``.
        seed: Of the split and of the shuffles.

    Returns:
        Mean R^2, about 0.

    Raises:
        ConfigError: Unknown probe, or fewer users than folds.
    """
    rng = np.random.default_rng(seed)
    labelled = np.isfinite(label)
    states, label = states[labelled], label[labelled]
    floors = [
        popularity_leakage(states, rng.permutation(label), probe, seed) for _ in range(SHUFFLES)
    ]
    return float(np.mean(floors))


def interest_accuracy(states: States, interest: NDArray[np.integer], seed: int = 0) -> float:
    """Share of users whose favourite category multinomial logistic regression names.

    Args:
        states: (n, d).
        interest: (n,) category, such as ``Truth.interest``. A category that a fit has not seen
            counts as missed.
        seed: Of the split into folds.

    Returns:
        Share of users named rightly by a probe that was not fitted on them.

    Raises:
        ConfigError: Fewer users than folds.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1_000))
    fold = _folds(len(interest), seed)
    return float(np.mean(_out_of_fold(model, states, interest, fold) == interest))


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
    """Recall at k of the items that users truly like most, ranked by their states.

    Args:
        states: (n, d).
        item_embedding: (n_items, d); an item scores its inner product with the centred state.
        relevance: (n, n_items), true relevance of each item.
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
    """Number of directions that the states spread over.

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
    """Share of users who are recognised by one half of the history among all users' other halves.

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


def response_r2(
    states: States,
    users: NDArray[np.integer],
    items: NDArray[np.integer],
    responses: NDArray[np.floating],
    item_mean: NDArray[np.floating],
    item_embedding: States,
    centre: States | None = None,
    seed: int = 0,
) -> float:
    """R^2 of states in predicting who answers an item better than others do; needs no truth.

    A ridge regression explains an answer's excess over the item's mean by the elementwise product
    of the user's centred state and the item's embedding: it may weigh the coordinates, and knows
    nothing else of the user.

    Args:
        states: (n, d).
        users: (r,) of each held-out answer, the row of ``states``.
        items: (r,) positions.
        responses: (r,) in [0, 1].
        item_mean: (n_items,) expected answer to an item, averaged over users.
        item_embedding: (n_items, d).
        centre: (d,) what to count states from; their own mean if ``None``.
        seed: Of the split into folds.

    Returns:
        R^2 over the answers of users whom the regression was not fitted on; 0 or less where states
        tell nothing.

    Raises:
        ConfigError: Fewer users than folds have answers.
    """
    distinct, user_number = np.unique(users, return_inverse=True)
    fold = _folds(len(distinct), seed)[user_number]
    products = (_centred(states, centre)[users] * item_embedding[items]).astype(np.float32)
    excess = responses.astype(np.float64) - item_mean[items]
    model = make_pipeline(StandardScaler(), Ridge())
    return _r2(excess, _out_of_fold(model, products, excess, fold))


def _overlap(scores: States, relevance: States, k: int) -> NDArray[np.float64]:
    """(n,) share of the k most relevant items among the k best scored."""
    relevant = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(relevant, np.argpartition(-relevance, k - 1, axis=1)[:, :k], True, axis=1)
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return np.asarray(np.take_along_axis(relevant, best, axis=1).mean(axis=1))


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


def _folds(n: int, seed: int) -> NDArray[np.int64]:
    """(n,) int64, the fold of each of n users, folds as equal as can be.

    Raises:
        ConfigError: Fewer users than folds.
    """
    if n < FOLDS:
        raise ConfigError(f"Probes need at least {FOLDS} users, got {n}.")
    return np.random.default_rng(seed).permutation(n) % FOLDS


def _out_of_fold(
    model: Any, inputs: States, label: NDArray[Any], fold: NDArray[np.int64]
) -> NDArray[Any]:
    """Predictions of each row by the model fitted on the other folds' rows.

    Args:
        model: An estimator of scikit-learn, not fitted.
        inputs: (n, d).
        label: (n,).
        fold: (n,).

    Returns:
        (n,) of the label's type.
    """
    predicted = np.empty_like(label)
    for number in np.unique(fold):
        test = fold == number
        train_label = label[~test]
        if (train_label == train_label[0]).all():  # classifiers refuse to learn a single class
            predicted[test] = train_label[0]
        else:
            predicted[test] = clone(model).fit(inputs[~test], train_label).predict(inputs[test])
    return predicted


def _network_probe(seed: int) -> Any:
    """A small network, whose weight penalty keeps it from overfitting.

    With some 1,000 users to learn from, early stopping on a tenth of them finds less instead: less
    even than the ridge probe where the relation is linear.
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
