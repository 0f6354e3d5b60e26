"""Fits the factor model: alternating ridge regressions, with features as the prior.

Every user and every item has a vector theta: its effect on the response, and its factors. Given
the other side, the vectors of one side are independent ridge regressions, whose prior mean is
linear in the features: one embedding for each value of each field, as in regression-based latent
factor models (Agarwal & Chen, KDD 2009). Yes-or-no behaviours take the same steps on a logistic
regression's weights and residuals.

Items, and what features are worth, are learned from the train users only; every user, test users
included, is then a ridge estimate from that user's own rows given the items. A test user's log
therefore affects that user alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix, hstack
from scipy.special import expit
from tqdm.auto import tqdm

from kuaisim_gym.data.dataset import Features, pair_products
from kuaisim_gym.data.feedback import Interactions
from kuaisim_gym.simulator.response import FactorModel
from kuaisim_gym.simulator.spectral import leading_item_vectors

RANK = 8
SWEEPS = 12  # at most; fewer once the held-out loss has stopped falling
LAST_SWEEPS = 2  # of the chosen fit, over all rows
OTHER_SWEEPS = 4  # of the behaviours that share the first one's factors
PLACING_STEPS = 4  # Newton steps that place users given the items
VALIDATION_SHARE = 0.1
FIELD_RIDGE = 10.0  # users or items that must share a value before it has half its say
_LEAST_GAIN = 3e-4  # relative fall of the held-out loss that is worth another sweep
_LEAST_WEIGHT = 1e-4  # of a row in a logistic step; keeps sure answers from exploding
_MOST_STEP = 2.0  # of a logistic step; Newton's method overshoots where answers are nearly sure
_CHUNK = 1 << 16  # rows whose factors are gathered at once: they fit the processor's cache

Vector = NDArray[np.float64]
RowVector = NDArray[np.float32]  # one value a row: single precision, because rows are many

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Link:
    """The map from scores to responses, and the strength of the priors that go with it.

    Attributes:
        logistic: Whether responses are yes or no, and scores log-odds.
        user_ridge: Pull on a user's effect, in rows (in units of information, if logistic).
        item_ridge: The same for items.
        factor_ridges: Pulls on factors to compare, on held-out rows, with effects alone.
    """

    logistic: bool
    user_ridge: float
    item_ridge: float
    factor_ridges: tuple[float, ...]

    def response(self, score: RowVector) -> RowVector:
        """Expected response of a score."""
        return np.asarray(expit(score)) if self.logistic else score

    def weight(self, response: RowVector) -> RowVector:
        """Information of a row at its expected response."""
        if self.logistic:
            return np.maximum(response * (1.0 - response), _LEAST_WEIGHT)
        return np.ones_like(response)

    def loss(self, score: RowVector, response: RowVector) -> RowVector:
        """Log-loss, or squared error of the clipped score, row by row."""
        if self.logistic:
            return np.asarray(np.logaddexp(0.0, score) - response * score)
        return np.asarray((np.clip(score, 0.0, 1.0) - response) ** 2)


# Identity: the noise variance, .05, over that of the effects on real rows, .0055 for users and .04
# for videos. Logistic: one over the effects' variance in log-odds, which is near 1.
LINKS = {
    "identity": Link(False, user_ridge=9.0, item_ridge=1.2, factor_ridges=(2.0, 4.0, 8.0)),
    "logistic": Link(True, user_ridge=1.0, item_ridge=1.0, factor_ridges=(8.0, 16.0)),
}


def fit_factor_model(
    train: Interactions,
    everyone: Interactions,
    user_features: Features,
    item_features: Features,
    size: tuple[int, int],
    seed: int = 0,
    progress: bool = False,
) -> FactorModel:
    """Fits a factor model to all behaviours of a table.

    The first behaviour has effects and, where held-out rows are predicted better with them,
    factors; the others have separate effects and share its factors.

    Args:
        train: Rows that items are learned from.
        everyone: Rows that users are placed by; ``train`` is normally a part of them.
        user_features: Of all users.
        item_features: Of all items.
        size: Number of user and of item positions.
        seed: Seed of the validation split.
        progress: Whether to show a progress bar.

    Returns:
        The model. Users and items without rows get what their features say.
    """
    link = LINKS[train.link]
    designs = {
        "user": feature_matrix(user_features, size[0]),
        "item": feature_matrix(item_features, size[1]),
    }
    held_out = np.random.default_rng(seed).random(len(train)) < VALIDATION_SHARE
    if held_out.all():
        held_out[:] = False  # too few rows to hold any out
    fit_rows, check_rows = train.take(~held_out), train.take(held_out)
    fits: list[_Fit] = []
    steps = 1 + len(train.behaviours)
    with tqdm(
        total=steps, desc="Response model", unit="fit", leave=False, disable=not progress
    ) as bar:
        for behaviour in range(len(train.behaviours)):
            first = fits[0] if fits else None
            problem = partial(
                _Problem, behaviour=behaviour, size=size, link=link, designs=designs, first=first
            )
            problem_of_all = problem(train)
            if first is None:
                start, sweeps = _choose(problem(fit_rows), problem(check_rows)), LAST_SWEEPS
                bar.update()
            else:
                start, sweeps = problem_of_all.start(), OTHER_SWEEPS
            fit = problem_of_all.alternate(start, sweeps)
            fits.append(problem(everyone).place_users(fit))
            bar.update()
    return FactorModel(
        behaviours=train.behaviours,
        logistic=link.logistic,
        mean=np.array([fit.mean for fit in fits], dtype=np.float32),
        slope=np.array([fit.slope for fit in fits], dtype=np.float32),
        user_effect=np.stack([fit.theta["user"][:, 0] for fit in fits]).astype(np.float32),
        item_effect=np.stack([fit.theta["item"][:, 0] for fit in fits]).astype(np.float32),
        user_factors=fits[0].theta["user"][:, 1:].astype(np.float32),
        item_factors=fits[0].theta["item"][:, 1:].astype(np.float32),
    )


def _choose(fit: _Problem, check: _Problem) -> _Fit:
    """The fit, of effects alone or with factors, that predicts held-out rows best.

    Factors must beat effects by more than chance: by two standard errors of the difference.
    """
    effects = fit.alternate(fit.start(), SWEEPS, check)
    if not len(check.rows):
        return effects
    base = check.losses(effects)
    best, lowest = effects, float(base.mean())
    start = fit.spectrum(effects)
    for ridge in fit.link.factor_ridges:
        factors = fit.alternate(_with_factors(effects, ridge, start), SWEEPS, check)
        losses = check.losses(factors)
        error = (base - losses).std() / np.sqrt(len(losses))
        if losses.mean() > base.mean() - 2.0 * error:
            continue
        if losses.mean() > lowest:
            break  # the loss has one minimum over the ridges
        best, lowest = factors, float(losses.mean())
    logger.info("Held-out loss: effects alone %.5f, chosen %.5f", base.mean(), lowest)
    return best


def feature_matrix(features: Features, n: int) -> csr_matrix | None:
    """(n, all values) sparse: each user's or item's values; weights of a field sum to one."""
    blocks = []
    for name, codes in features.codes.items():
        present = codes > 0
        share = present / np.maximum(present.sum(axis=1, keepdims=True), 1)
        owner = np.broadcast_to(np.arange(n)[:, None], codes.shape)
        cells = (share[present], (owner[present], codes[present]))
        blocks.append(csr_matrix(cells, shape=(n, len(features.values[name]))))
    return hstack(blocks, format="csr") if blocks else None


class _Prior:
    """Linear prior of the users' or the items' vectors, given their features.

    Args:
        design: The features, as :func:`feature_matrix` gives them.
        informed: (n,) bool, the users or items that have rows.
    """

    def __init__(self, design: csr_matrix | None, informed: NDArray[np.bool_]) -> None:
        self._design = design
        if design is not None:
            self._informed, self._informed_design = informed, design[informed]
            gram = (self._informed_design.T @ self._informed_design).toarray()
            gram[np.diag_indices_from(gram)] += FIELD_RIDGE
            self._factor = cho_factor(gram)

    def mean(self, theta: Vector) -> Vector:
        """Prior means of all vectors: a ridge regression of the informed ones on their features.

        Args:
            theta: (n, D) present vectors.

        Returns:
            (n, D); zero without features.
        """
        if self._design is None:
            return np.zeros_like(theta)
        embedding = cho_solve(self._factor, self._informed_design.T @ theta[self._informed])
        return np.asarray(self._design @ embedding)


@dataclass(frozen=True, eq=False)
class _Fit:
    """The parameters of one behaviour.

    Attributes:
        mean: Constant of the score.
        slope: Weight of the first behaviour's factors in the scores.
        theta: By side, (n, D): effect, then factors.
        prior: By side, (n, D): prior mean of theta, given the features.
        pull: By side, (D,): how strongly theta is pulled there.
    """

    mean: float
    slope: float
    theta: dict[str, Vector]
    prior: dict[str, Vector]
    pull: dict[str, Vector]

    def factor_score(self, rows: Interactions) -> RowVector:
        """(n,) inner products of the rows' factors."""
        product = np.zeros(len(rows), dtype=np.float32)
        user, item = (self.theta[side][:, 1:].astype(np.float32) for side in ("user", "item"))
        if user.shape[1]:
            for start in range(0, len(rows), _CHUNK):
                block = slice(start, start + _CHUNK)
                product[block] = pair_products(user, item, rows.users[block], rows.items[block])
        return product


def _with_factors(effects: _Fit, ridge: float, start: Vector) -> _Fit:
    """The fit with effects and factors: zero for users, ``start`` for items."""
    factors = {"user": np.zeros((len(effects.theta["user"]), RANK)), "item": start}

    def widened(arrays: dict[str, Vector], by: dict[str, Vector]) -> dict[str, Vector]:
        return {side: np.concatenate([arrays[side], by[side]], axis=-1) for side in arrays}

    pull = dict.fromkeys(effects.pull, np.full(RANK, ridge))
    none = {side: np.zeros_like(array) for side, array in factors.items()}
    return replace(
        effects,
        theta=widened(effects.theta, factors),
        prior=widened(effects.prior, none),
        pull=widened(effects.pull, pull),
    )


class _Problem:
    """Regression of one behaviour on users and items.

    Args:
        rows: The rows, grouped by user.
        behaviour: Which of their behaviours.
        size: Number of users and of items.
        link: Score to response.
        designs: By side, the matrix of :func:`feature_matrix`.
        first: The first behaviour's fit, whose factors the others share; ``None`` for the first.
    """

    def __init__(
        self,
        rows: Interactions,
        behaviour: int,
        size: tuple[int, int],
        link: Link,
        designs: dict[str, csr_matrix | None],
        first: _Fit | None,
    ) -> None:
        self.rows, self.size, self.link, self._designs = rows, size, link, designs
        self.response = rows.behaviour(behaviour)
        self._shared = None if first is None else first.factor_score(rows)

    def start(self) -> _Fit:
        """Fit to start from: the mean, and effects of zero."""
        mean = float(self.response.mean(dtype=np.float64))
        if self.link.logistic:
            mean = float(np.log((mean + 1e-6) / (1.0 - mean + 1e-6)))
        zero = {side: np.zeros((n, 1)) for side, n in zip(self._designs, self.size, strict=True)}
        pull = {
            "user": np.array([self.link.user_ridge]),
            "item": np.array([self.link.item_ridge]),
        }
        return _Fit(mean, 1.0, zero, zero, pull)

    def score(self, fit: _Fit) -> RowVector:
        """(n,) scores of the rows."""
        if self._shared is None:
            score = fit.factor_score(self.rows)
        else:
            score = np.float32(fit.slope) * self._shared
        score += (fit.mean + fit.theta["user"][:, 0]).astype(np.float32)[self.rows.users]
        score += fit.theta["item"][:, 0].astype(np.float32)[self.rows.items]
        return score

    def losses(self, fit: _Fit) -> RowVector:
        """(n,) losses of the rows."""
        return self.link.loss(self.score(fit), self.response)

    def alternate(self, fit: _Fit, sweeps: int, check: _Problem | None = None) -> _Fit:
        """Sweeps over items and users.

        Args:
            fit: Where to start.
            sweeps: At most so many; exactly, without ``check``.
            check: Held-out rows; no sweep is kept that does not lower their loss.

        Returns:
            The last fit that was kept.
        """
        best, lowest = fit, np.inf
        for _ in range(sweeps):
            fit = self._sweep(fit)
            if check is not None and len(check.rows):
                loss = float(check.losses(fit).mean())
                if loss > lowest * (1.0 - _LEAST_GAIN):
                    return best
                lowest = loss
            best = fit
        return best

    def place_users(self, fit: _Fit) -> _Fit:
        """Fits every user's vector to this problem's rows, given the items."""
        for _ in range(PLACING_STEPS if self.link.logistic else 1):
            fit = self._side(fit, "user")
        return fit

    def spectrum(self, effects: _Fit) -> Vector:
        """(n_items, rank) initial factors: the leading directions of the effects' residuals.

        Alternating from random factors finds nothing where signal is weak and users are many.
        """
        residual = self.response - self.link.response(self.score(effects))
        numbers = self._numbers["user"]
        matrix = csr_matrix((residual, numbers.indices, numbers.indptr), shape=self.size)
        degrees = [
            np.bincount(owner, minlength=n)
            for owner, n in zip((self.rows.users, self.rows.items), self.size, strict=True)
        ]
        leading = leading_item_vectors(matrix.astype(np.float64), degrees[0], degrees[1], RANK)
        start = np.zeros((self.size[1], RANK))
        start[:, : leading.shape[1]] = leading
        return np.asarray(start * np.sqrt(self.size[1] / RANK))

    def _sweep(self, fit: _Fit) -> _Fit:
        if fit.theta["user"].shape[1] > 1:
            sides = ("user", "item")  # factors start at the items
        else:
            sides = ("item", "user")
            if self.link.logistic:
                fit = self._globals(fit)
        for side in sides:
            prior = self._priors[side].mean(fit.theta[side])
            fit = self._side(replace(fit, prior=fit.prior | {side: prior}), side)
        return fit

    def _globals(self, fit: _Fit) -> _Fit:
        """A Newton step for the mean and the share in the first behaviour's factors."""
        expected = self.link.response(self.score(fit))
        weight, residual = self.link.weight(expected), self.response - expected
        shared = np.zeros_like(residual) if self._shared is None else self._shared
        design = np.stack([np.ones_like(shared), shared]).astype(np.float64)
        gram = (design * weight) @ design.T + np.eye(2)  # the ridge of one row
        mean, slope = np.linalg.solve(gram, design @ residual)
        return replace(fit, mean=fit.mean + mean, slope=fit.slope + slope)

    def _side(self, fit: _Fit, side: str) -> _Fit:
        """Runs a ridge regression for every user, or for every item, given the other side."""
        opposite = "item" if side == "user" else "user"
        expected = self.link.response(self.score(fit))
        weight, residual = self.link.weight(expected), self.response - expected
        numbers = self._numbers[side]
        design = fit.theta[opposite].copy()
        design[:, 0] = 1.0
        width = design.shape[1]
        upper = np.triu_indices(width)
        products = design[:, upper[0]] * design[:, upper[1]]

        def gathered(values: RowVector, columns: Vector) -> Vector:
            ordered = values if side == "user" else values[numbers.data]  # rows stand by user
            cells = (ordered, numbers.indices, numbers.indptr)
            return np.asarray(csr_matrix(cells, shape=numbers.shape) @ columns.astype(np.float32))

        gram = np.empty((numbers.shape[0], width, width))
        gram[:, upper[0], upper[1]] = gathered(weight, products)
        gram[:, upper[1], upper[0]] = gram[:, upper[0], upper[1]]
        theta, prior, pull = fit.theta[side], fit.prior[side], fit.pull[side]
        target = gathered(residual, design).astype(np.float64)
        target += np.einsum("nij,nj->ni", gram, theta) + pull * prior
        gram[:, np.arange(width), np.arange(width)] += pull
        solved = np.asarray(np.linalg.solve(gram, target[..., None])[..., 0], dtype=np.float64)
        if self.link.logistic:
            solved = theta + np.clip(solved - theta, -_MOST_STEP, _MOST_STEP)
        return replace(fit, theta=fit.theta | {side: solved})

    @cached_property
    def _priors(self) -> dict[str, _Prior]:
        owners = {"user": self.rows.users, "item": self.rows.items}
        return {
            side: _Prior(design, np.bincount(owners[side], minlength=n) > 0)
            for (side, design), n in zip(self._designs.items(), self.size, strict=True)
        }

    @cached_property
    def _numbers(self) -> dict[str, csr_matrix]:
        """Row numbers as sparse matrices, user x item and item x user."""
        # Built from its arrays: the usual constructors would add up rows of the same cell.
        starts = self.rows.starts(self.size[0])
        number = np.arange(len(self.rows), dtype=np.int64)
        by_user = csr_matrix((number, self.rows.items, starts), shape=self.size)
        return {"user": by_user, "item": by_user.T.tocsr()}
