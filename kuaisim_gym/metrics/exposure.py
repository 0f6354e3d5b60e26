"""Exposure of items and of groups of items: who is shown, and how evenly.

AD is the paper's (section 5.1.2); the others separate what AD, an aggregate over users, mixes.
Groups are labels: (n_items,) ints from 0 on, -1 for items of no group. Distributions are over the
last axis, so that one call handles many of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import ConfigError, DataFormatError
from kuaisim_gym.metrics.sessions import BoolArray, FloatArray, PopularGroup, Sessions

Counts = NDArray[np.integer] | NDArray[np.floating]
Labels = NDArray[np.integer]


def absolute_difference(sessions: Sessions, popular: PopularGroup) -> float:
    """AD: |f(popular) - f(long tail)| with f the group's share of all exposures, in [0, 1].

    It is |2p - 1| with p the popular share of the exposures of all sessions together. Users of
    opposite imbalance cancel out: compare :func:`slate_absolute_difference`.
    """
    return abs(1.0 - 2.0 * longtail_share(sessions, popular))


def slate_absolute_difference(sessions: Sessions, popular: PopularGroup) -> float:
    """Mean over slates of |2p - 1| with p the slate's own popular share."""
    flags, shown = popular_flags(sessions, popular)
    share = flags.mean(axis=2)[shown[:, :, 0]]
    return float(np.abs(2.0 * share - 1.0).mean())


def longtail_share(sessions: Sessions, popular: PopularGroup) -> float:
    """Share of exposures that went to items outside the popular group."""
    flags, shown = popular_flags(sessions, popular)
    return float(1.0 - flags.sum() / shown.sum())


def popular_flags(sessions: Sessions, popular: PopularGroup) -> tuple[BoolArray, BoolArray]:
    """(S, T, K) bool arrays: cells with a popular item, and cells with an item."""
    flags = check_flags(sessions, popular)
    shown = sessions.slates >= 0
    if sessions.popular is not None:
        return sessions.popular & shown, shown
    return flags[np.where(shown, sessions.slates, 0)] & shown, shown


def check_flags(sessions: Sessions, popular: PopularGroup) -> BoolArray:
    """Returns the popular group as a flag for each item.

    Args:
        sessions: Finished sessions.
        popular: (n_items,) bool; or the catalogue or the dataset of the sessions.

    Raises:
        DataFormatError: It is not of bools, not of one dimension, or lacks an item that was shown.
    """
    flags = np.asarray(getattr(popular, "popular", popular))
    if flags.dtype != np.bool_ or flags.ndim != 1:
        raise DataFormatError(
            "popular must be (n_items,) bools, a catalogue or a dataset, such as "
            f"env.unwrapped.catalogue, got {flags.dtype} of shape {flags.shape}."
        )
    last = int(sessions.slates.max(initial=-1))
    if last >= len(flags):
        raise DataFormatError(
            f"popular must have a flag for each item, but it has {len(flags)}, and the sessions "
            f"show item {last}: give that of their own catalogue."
        )
    return flags


def exposure_counts(sessions: Sessions, n_items: int) -> NDArray[np.int64]:
    """(n_items,) int64: how often each item was shown."""
    shown = sessions.slates[sessions.slates >= 0]
    return np.bincount(shown, minlength=n_items).astype(np.int64)


def group_shares(exposure: Counts, labels: Labels, n_groups: int) -> FloatArray:
    """(n_groups,) float64: each group's share of the exposure of all items that have a group.

    Args:
        exposure: (n_items,) counts or masses that are not negative.
        labels: (n_items,) groups, -1 for none.
        n_groups: G.

    Returns:
        Shares that sum to 1, NaN where no item of a group was shown.
    """
    member = labels >= 0
    mass = np.bincount(labels[member], weights=exposure[member], minlength=n_groups)
    with np.errstate(invalid="ignore"):
        return np.asarray(mass / mass.sum())


def group_difference(shares: FloatArray, target: FloatArray) -> FloatArray:
    """AD for any number of groups: sum_g |share_g - target_g|, in [0, 2].

    It is twice the total variation distance. Two groups with the target (1/2, 1/2) give |2p - 1|.

    Args:
        shares: (..., G) distributions over groups.
        target: (G,) distribution.

    Returns:
        (...,) float64.
    """
    return np.asarray(np.abs(shares - target).sum(axis=-1))


def group_divergence(shares: FloatArray, target: FloatArray) -> FloatArray:
    """KL(share || target) = sum_g share_g log(share_g / target_g) in nats, at least 0.

    In this direction a group that is not shown costs a finite amount, and one that is shown
    without being in the target an infinite one (Kullback and Leibler, "On Information and
    Sufficiency", 1951).

    Args:
        shares: (..., G) distributions over groups.
        target: (G,) distribution.

    Returns:
        (...,) float64.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, shares * np.log(shares / target), 0.0)
    undefined = np.isnan(shares).any(axis=-1)
    return np.asarray(np.where(undefined, np.nan, terms.sum(axis=-1)))


def jain_index(shares: FloatArray, target: FloatArray) -> FloatArray:
    """Jain's fairness index of share over target: 1 where all agree, towards 1/G for one group.

    ``(sum x)^2 / (G sum x^2)`` with ``x_g = share_g / target_g`` (Jain, Chiu and Hawe, "A
    Quantitative Measure of Fairness and Discrimination", DEC TR-301, 1984). Groups whose target is
    0 are left out.

    Args:
        shares: (..., G) distributions over groups.
        target: (G,) distribution.

    Returns:
        (...,) float64.
    """
    ratio = shares[..., target > 0] / target[target > 0]
    return np.asarray(ratio.sum(axis=-1) ** 2 / (ratio.shape[-1] * (ratio**2).sum(axis=-1)))


def gini(exposure: Counts) -> FloatArray:
    """Gini coefficients of exposure over the whole catalogue: 0 equal, towards 1 concentrated.

    Args:
        exposure: (..., n_items) counts or masses that are not negative.

    Returns:
        (...,) float64.
    """
    ordered = np.sort(exposure, axis=-1).astype(np.float64)
    n = ordered.shape[-1]
    ranks = 2.0 * np.arange(1, n + 1) - n - 1
    return np.asarray(ordered @ ranks / (n * ordered.sum(axis=-1)))


def coverage(counts: Counts) -> float:
    """Share of the catalogue that was shown at least once. It grows with the number of sessions."""
    return float(np.mean(counts > 0))


def entropy(exposure: Counts) -> FloatArray:
    """Shannon entropy of exposure over the catalogue, over its logarithm: 1 equal, 0 one item.

    Args:
        exposure: (..., n_items) counts or masses that are not negative, of at least two items.

    Returns:
        (...,) float64 in [0, 1].
    """
    share = exposure / exposure.sum(axis=-1, keepdims=True)
    logarithms = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.asarray(-(share * logarithms).sum(axis=-1) / np.log(share.shape[-1]))


def self_information(popularity: Counts) -> FloatArray:
    """(n_items,) float64: -log2 of each item's share of popularity, in bits.

    Args:
        popularity: (n_items,) counts, to which 1 is added: an item without any is rare, not
            infinitely so.
    """
    smoothed = popularity + 1.0
    return np.asarray(-np.log2(smoothed / smoothed.sum()))


def novelty(exposure: Counts, information: FloatArray) -> float:
    """Mean self-information of what was shown, in bits: the rarer, the higher.

    (Zhou et al., "Solving the apparent diversity-accuracy dilemma of recommender systems", PNAS
    2010; there popularity is the share of users, here that of exposures or positives.)

    Args:
        exposure: (n_items,) counts or masses that are not negative.
        information: (n_items,) of :func:`self_information`.
    """
    return float(exposure @ information / exposure.sum())


def attention(slate_size: int, patience: float) -> FloatArray:
    """(K,) float64: share of attention that each rank of a slate gets, by the browsing model.

    A user goes on from a rank to the next with probability ``patience`` (rank-biased precision,
    Moffat and Zobel, TOIS 2008): rank k gets ``patience ** (k - 1)``, over the sum. With 1 all
    ranks get the same, as in the simulator, whose users answer the whole slate.

    Args:
        slate_size: K.
        patience: In (0, 1].

    Raises:
        ConfigError: ``patience`` is not in (0, 1].
    """
    if not 0.0 < patience <= 1.0:
        raise ConfigError(f"patience must be in (0, 1], got {patience}.")
    weights = patience ** np.arange(slate_size)
    return np.asarray(weights / weights.sum())


def slate_unfairness(
    slates: NDArray[np.integer], labels: Labels, target: FloatArray, weights: FloatArray
) -> FloatArray:
    """AWRF of slates: sum_g |attention_g - target_g|, in [0, 2], of each of them.

    Attention-weighted rank fairness (Sapiezynski et al., "Quantifying the Impact of User Attention
    on Fair Group Representation in Ranked Lists", WWW 2019 companion) with the absolute difference
    of Raj and Ekstrand ("Measuring Fairness in Ranked Results", SIGIR 2022), for any number of
    groups. With equal attention and two groups it is the slate's |2p - 1|.

    Args:
        slates: (L, K) item positions.
        labels: (n_items,) groups, -1 for none.
        target: (G,) distribution.
        weights: (K,) of :func:`attention`.

    Returns:
        (L,) float64, NaN for a slate without an item that has a group.
    """
    groups = labels[slates]
    weight = np.where(groups >= 0, weights, 0.0)
    with np.errstate(invalid="ignore"):
        weight = weight / weight.sum(axis=1, keepdims=True)
    alike = groups[:, :, None] == groups[:, None, :]
    attended = (alike * weight[:, None, :]).sum(axis=2)  # by the item's group, at every rank
    is_first = ~np.tril(alike, -1).any(axis=2) & (groups >= 0)
    share = np.where(groups >= 0, target[groups], 0.0)
    # All groups that the slate lacks together miss what the target gives to no group of the slate.
    missed = 1.0 - (share * is_first).sum(axis=1)
    return np.asarray((np.abs(attended - share) * is_first).sum(axis=1) + missed)
