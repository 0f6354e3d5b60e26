"""Training pairs of purifiers: what an environment shows of a user, and the belief about them.

The target cannot be read off eq. 7, which trains the denoiser towards its own condition. Here a
condition is what sessions of train users show, at every number of steps, and the target is the
belief about the same user given the same evidence (:mod:`kuaisim_gym.simulator.belief`): quality,
taste and the sway of popularity apart, and as certain as the evidence allows. Some conditions hide
the log, as for a user who has none; their target rests on the session alone.

Sessions are played in the train simulator by policies of all kinds: near the belief's ranking or
far from it, with many popular items or few. What their users answer only makes evidence: given it,
the belief is the same in any simulator. A belief about the whole session would have the same mean
if the simulator's users were those of the belief, but where they are not, a purifier would learn
the train simulator's ways.

No row and no user of the test source takes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dsrm_agents.dsrm.erasure import popularity_statistics
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data import Dataset, Interactions, Truth
from kuaisim_gym.engine.reference import preference
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.envs.options import preference_encoder
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import PARTS, WEIGHT_SCALE, PreferenceEncoder
from kuaisim_gym.simulator.belief import Belief
from kuaisim_gym.simulator.build import load_preferences

READS = ("pooled", "parts")  # values of the environment's option ``preference``
SOURCES = ("belief", "draw", "identity")
LONGEST = 50  # steps of a session, the paper's larger T
SLOTS = 256  # sessions at a time
MOST_LOGS = 20_000  # train users whose logs alone make pairs
KEPT = 0.3  # share of a session's steps that make pairs, beside its start
HIDDEN = 0.2  # share of the pairs that hide the log
BLOCK = 256  # users at a time, against the full catalogue

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class TargetConfig:
    """Construction of pairs.

    Attributes:
        source: What targets are: ``"belief"``, its mean; ``"draw"``, a draw from it, so that a
            generative purifier learns how certain it is; or ``"identity"``, the condition, as eq. 7
            prints it.
        sessions: Least number of sessions that are played.
    """

    source: str = "belief"
    sessions: int = 3072

    def __post_init__(self) -> None:
        check_choice("source", self.source, SOURCES)
        check_whole("sessions", self.sessions, 1)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence that sessions show of their users, and the beliefs given it.

    Attributes:
        parts: (n, 4 d + 4) float32, as ``preference="parts"`` shows them.
        mean: (n, d) float32, means of the beliefs given these parts' evidence.
        covariance: (n, d, d) float32, their covariances.
        users: (n,) int32, positions.
    """

    parts: FloatArray
    mean: FloatArray
    covariance: FloatArray
    users: NDArray[np.int32]


@lru_cache(maxsize=2)
def play_sessions(dataset: Dataset, sessions: int, seed: int) -> Evidence:
    """Plays sessions of train users, once for all purifiers of a dataset.

    Args:
        dataset: The data.
        sessions: Least number of sessions.
        seed: Same seed, same sessions.

    Returns:
        Evidence of the train users' logs alone, and at the start of each session and at a share of
        its later steps.
    """
    slots = min(SLOTS, sessions)
    batch = SessionBatch(
        slots,
        dataset.source,
        dataset=dataset,
        preference="parts",
        action_type="slate",
        abandonment="none",
        max_len=LONGEST,
    )
    rng = np.random.default_rng(seed)
    found = [_of_logs(dataset, rng)]
    found += [one for _ in range(-(-sessions // slots)) for one in _played(batch, rng)]
    columns = {
        field.name: np.concatenate([getattr(one, field.name) for one in found])
        for field in fields(Evidence)
    }
    for column in columns.values():
        column.setflags(write=False)  # shared by all purifiers
    return Evidence(**columns)


def _of_logs(dataset: Dataset, rng: np.random.Generator) -> Evidence:
    """Evidence of the train users' logs, of a sample where users are many."""
    users, model = dataset.train_users, load_preferences(dataset)
    users = np.sort(rng.choice(users, min(MOST_LOGS, len(users)), replace=False))
    return Evidence(
        log_parts(preference_encoder(dataset), dataset.train_log, users),
        model.mean[users].astype(np.float32),
        model.covariance[users].astype(np.float32),
        users,
    )


def _played(batch: SessionBatch, rng: np.random.Generator) -> Iterator[Evidence]:
    """Evidence of one session in each slot, step by step."""
    core, n, n_items = batch.core, batch.n_sessions, batch.catalogue.n_items
    batch.seed(rng.integers(2**63, size=n).astype(np.uint64))
    both = batch.belief()
    batch.reset()
    session = Belief(both.model, core, "session")
    # A policy follows the belief more or less, and likes popular items more or less.
    following = rng.random((n, 1), dtype=np.float32)
    own_way = rng.random((n, 1), dtype=np.float32)
    own_way = own_way * rng.standard_normal((n, n_items), dtype=np.float32)
    own_way += rng.standard_normal((n, 1), dtype=np.float32) * batch.catalogue.popular
    kept = np.ones(n)
    while core.state.active.any():
        acting = core.state.active.copy()
        rows = np.flatnonzero(acting & (rng.random(n) < kept))
        yield _evidence(batch, rows, both, session, rng.random(len(rows)) < HIDDEN)
        kept = np.full(n, KEPT)
        scores = following * both.scores() + own_way
        slates = core.engine.top_items(scores, batch.config.slate_size, core.state.exposed)
        session.update(batch.step(slates, acting))


def _evidence(
    batch: SessionBatch,
    rows: NDArray[np.int64],
    both: Belief,
    session: Belief,
    hidden: NDArray[np.bool_],
) -> Evidence:
    """Evidence in some slots, of which some hide the log."""
    parts = np.asarray(batch.observe())[rows, batch.encoder.preference_slice]
    dim = both.dim
    of_log = [*range(2 * dim), len(PARTS) * dim, len(PARTS) * dim + 1]
    parts[np.ix_(hidden, of_log)] = 0.0
    return Evidence(
        parts,
        np.where(hidden[:, None], session.mean[rows], both.mean[rows]).astype(np.float32),
        np.where(hidden[:, None, None], session.covariance[rows], both.covariance[rows]).astype(
            np.float32
        ),
        batch.core.state.users[rows],
    )


class Examples:
    """All that a purifier may be fitted to; each piece is made when it is first read.

    Args:
        dataset: The data. Nothing of the test source is read; ``truth`` is by
            :attr:`true_preferences` alone.
        config: Construction of the pairs.
        seed: Same seed, same pairs.

    Attributes:
        encoder: Encodes histories as the environment does.
    """

    def __init__(self, dataset: Dataset, config: TargetConfig | None = None, seed: int = 0) -> None:
        self.dataset, self.config, self.seed = dataset, config or TargetConfig(), seed
        self.encoder = preference_encoder(dataset)

    @property
    def evidence(self) -> Evidence:
        """The sessions' evidence, and the beliefs given it."""
        return play_sessions(self.dataset, self.config.sessions, self.seed)

    def observed(self, reads: str) -> FloatArray:
        """(n, 4 d + 4) float32 parts, or the (n, d) pooled states made of them."""
        parts = self.evidence.parts
        return parts if reads == "parts" else self.encoder.pooled(parts)

    def targets(self, reads: str) -> FloatArray:
        """(n, d) float32 targets of the pairs.

        Raises:
            ConfigError: Conditions are no targets, because they are parts.
        """
        if self.config.source == "identity":
            if reads != "pooled":
                raise ConfigError(
                    f'source="identity" is for purifiers of reads="pooled", got {reads!r}.'
                )
            return self.observed(reads)
        evidence = self.evidence
        if self.config.source == "belief":
            return evidence.mean
        noise = np.random.default_rng(self.seed).standard_normal(evidence.mean.shape)
        values, axes = np.linalg.eigh(evidence.covariance.astype(np.float64))
        drawn = np.einsum("nij,nj->ni", axes, np.sqrt(np.maximum(values, 0.0)) * noise)
        return np.asarray(evidence.mean + drawn, dtype=np.float32)

    @cached_property
    def popularity(self) -> FloatArray:
        """(n, 3) float32, popularity statistics of the logs of the pairs' users."""
        data = self.dataset.training
        log, exposures = (
            data.train_log,
            np.bincount(data.train_log.items, minlength=data.n_all_items),
        )
        statistics = popularity_statistics(log.users, log.items, exposures, data.n_users)
        return statistics[self.evidence.users].astype(np.float32)

    @property
    def true_preferences(self) -> FloatArray:
        """(n, d) float32, the true preference of each pair's user.

        Raises:
            ConfigError: The dataset is real: nobody knows its users' preferences.
        """
        users, place = np.unique(self.evidence.users, return_inverse=True)
        return true_preference(self.dataset, users, self.dataset.train_users)[place]


def log_parts(
    encoder: PreferenceEncoder, rows: Interactions, users: NDArray[np.integer]
) -> FloatArray:
    """Parts that ``preference="parts"`` shows of some users before a session.

    Args:
        encoder: Encodes histories as the environment does.
        rows: Logged rows.
        users: (n,) positions, ascending; rows of others are left out.

    Returns:
        (n, 4 d + 4) float32.
    """
    mine = rows.take(np.isin(rows.users, users))
    cells = (np.searchsorted(users, mine.users), mine.items)
    shape, parts = (len(users), len(encoder.embedding)), []
    weights = np.zeros((len(users), len(PARTS)), dtype=np.float32)
    for part, weight in enumerate((mine.response, np.ones(len(mine), dtype=np.float32))):
        total, weights[:, part] = encoder.pool(csr_matrix((weight, cells), shape=shape))
        standard = (encoder.mean, encoder.scale, encoder.reach)
        parts.append(preference(total, weights[:, part], *standard))
    nothing = np.zeros((len(users), 2 * encoder.dim), dtype=np.float32)
    return np.hstack([*parts, nothing, np.log1p(weights) / np.float32(WEIGHT_SCALE)])


def true_preference(
    dataset: Dataset, users: NDArray[np.integer], reference: NDArray[np.integer]
) -> FloatArray:
    """The beliefs that would tell the users' true answers best.

    How generous a user is makes the level. The taste is the one whose scores come nearest, over the
    catalogue, to the excess of the user's expected answers over what the items and the user get
    anyway; answers count as scores by the slope of the link.

    Args:
        dataset: A synthetic world; only ``truth`` and the items of the factor model are read.
        users: (n,) positions.
        reference: (m,) positions of the users whose answers are averaged into the items' means,
            such as the train users. They sit around the origin.

    Returns:
        (n, d) float32 in the units of beliefs.

    Raises:
        ConfigError: The dataset is real: nobody knows its users' preferences.
    """
    if dataset.truth is None:
        raise ConfigError(f"True preferences are known in synthetic worlds only: {dataset.name}.")
    model = load_preferences(dataset)
    vectors = model.vectors[: dataset.n_items]
    centred = vectors - vectors.mean(axis=0)
    pooled, level = _pooled_answers(dataset.truth, users, centred)
    reference_pooled, reference_level = _pooled_answers(dataset.truth, reference, centred)
    excess = np.linalg.pinv(centred.T @ centred) @ (pooled - reference_pooled.mean(axis=0)).T
    preferences = np.column_stack([level - reference_level.mean(), excess.T])
    slope = float(model.slope(model.quality[: dataset.n_items]).mean())
    return (preferences / slope).astype(np.float32)


def _pooled_answers(
    truth: Truth, users: NDArray[np.integer], vectors: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, k) sums of item vectors over the catalogue, by answers, and (n,) mean answers."""
    items = np.arange(len(vectors))[None, :]
    pooled, level = np.empty((len(users), vectors.shape[1])), np.empty(len(users))
    for start in range(0, len(users), BLOCK):
        rows = slice(start, start + BLOCK)
        answers = truth.expected(users[rows, None], items).astype(np.float64)
        pooled[rows] = answers @ vectors
        level[rows] = answers.mean(axis=1)
    return pooled, level
