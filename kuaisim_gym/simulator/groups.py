"""Groups of items, and the share of the exposures that is due to each.

Users of the simulators leave early where exposures are unbalanced between groups. Two groups, by
popularity, are the paper's; any labels of the items make others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuaisim_gym.config import SessionConfig
from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.engine.reference import group_excess
from kuaisim_gym.errors import ConfigError, unknown_option
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.tensors import digest_of

POPULARITY = "popularity"
MISSING = "missing"  # name of the group of items without a label
TARGETS = ("uniform", "catalogue")
# Tenths, and probabilities in float32, do not sum exactly: temper that is 1 on paper, or a surplus
# that equals its bound, may come out a little below. Thresholds are compared with this slack, far
# below a tenth, the smallest difference that a slate of ten makes.
SLACK = 1e-5

GroupSpec = str | Mapping[str, Sequence[float]] | ArrayLike
TargetSpec = str | Mapping[str, float] | ArrayLike
LabelArray = NDArray[np.signedinteger]
DoubleArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of the catalogue's items, and a distribution of exposures over them.

    Attributes:
        column: ``"popularity"``, the column that the groups are made of, or ``"labels"``.
        names: G names. The popularity groups are ``("long tail", "popular")``.
        labels: (n_items,) int8, int16 or int32, the smallest that holds them: the position of
            each item's group in ``names``.
        target: (G,) float64, the share of the exposures that is due to each group; sums to one.
        change: Whether labels are those of a day, and change in place.
    """

    column: str
    names: tuple[str, ...]
    labels: LabelArray
    target: DoubleArray
    change: bool = False

    def __post_init__(self) -> None:
        for array in (self.labels, self.target):
            array.setflags(write=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies and pickles forget the marks, and code is compiled anew for arrays without them.
        self.__dict__.update(state)
        self.__post_init__()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def n_items(self) -> int:
        """Number of items of the catalogue."""
        return len(self.labels)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(G,) int64: items of each group."""
        return np.bincount(self.labels, minlength=len(self))

    @property
    def by_popularity(self) -> bool:
        """True of the popular fifth of the catalogue and the rest."""
        return self.column == POPULARITY

    @property
    def is_default(self) -> bool:
        """True of the popularity groups where half of the exposures is due to each."""
        return self.by_popularity and bool((self.target == 0.5).all())

    @property
    def measure(self) -> str:
        """Name of the number that sessions keep of their exposure window, in [0, 1].

        ``"popular_share"``; of two other groups ``"group_share"``, the second one's; of more
        ``"imbalance"``, half of the L1 distance to the target.
        """
        if len(self) > 2:
            return "imbalance"
        return "popular_share" if self.by_popularity else "group_share"

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify labels, where they stay, and target."""
        return digest_of([self.target] if self.change else [self.labels, self.target])

    def with_target(self, target: TargetSpec) -> Groups:
        """The same groups with another target.

        Raises:
            ConfigError: It is no distribution over these groups.
        """
        return replace(self, target=_target(target, self.names, self.sizes))

    def distance(self, slates: NDArray[np.integer]) -> DoubleArray:
        """(...) L1 distance of slates' group shares to the target, of (..., K) item positions."""
        return self.imbalance(self.labels[slates])

    def imbalance(self, labels: NDArray[np.integer]) -> DoubleArray:
        """(...) the same distance, of (..., K) labels of the slates' items."""
        k = labels.shape[-1]
        flat = labels.reshape(-1, k)
        excess = group_excess(flat, np.full(len(flat), k), self.target)
        return np.asarray(2.0 * excess / k).reshape(labels.shape[:-1])

    def fairness(self, share: DoubleArray) -> DoubleArray:
        """Fairness of exposures whose :attr:`measure` is known.

        It is 1 where the groups have the shares that are due to them, and falls in proportion to
        the L1 distance to 0, where all exposures are of the group that least is due to. Between the
        popular items and the long tail it is 1 - AD, the paper's absolute difference.

        Args:
            share: (...) float64, as sessions keep it of their exposure window.

        Returns:
            (...) float64 in [0, 1].
        """
        half = share if len(self) > 2 else np.abs(share - self.target[1])
        return np.asarray(np.maximum(1.0 - half / (1.0 - self.target.min()), 0.0))


def popularity_groups(popular: NDArray[np.bool_], target: TargetSpec = "uniform") -> Groups:
    """The long tail and the popular items.

    Args:
        popular: (n_items,) bool, such as ``catalogue.popular``.
        target: As for :func:`find_groups`.
    """
    return _labelled(POPULARITY, ("long tail", "popular"), popular.astype(np.int64), target)


def find_groups(
    groups: GroupSpec, target: TargetSpec, dataset: Dataset, catalogue: Catalogue
) -> Groups:
    """Makes groups of a catalogue's items.

    Args:
        groups: ``"popularity"``; or the name of a label column (``dataset.item_groups``) or of a
            field of the item features, of which the first value counts; or ``{column: quantiles}``,
            such as ``{"video_duration": (0.25, 0.5, 0.75)}``, which cuts a column of numbers or of
            ordered labels, such as dates, at quantiles over the catalogue's items; or (n_items,)
            integers or texts. Items without a value in a column form the group ``"missing"``.
        target: Shares of the exposures that are due: ``"uniform"``, as much for each group;
            ``"catalogue"``, in proportion to their items; (G,) numbers in the order of the groups,
            or numbers by name. Values of a column are in its own order, labels ascending.
        dataset: Source of the columns.
        catalogue: The items.

    Raises:
        ConfigError: There is no such column, a label is missing, a group is empty, there is only
            one, or the target is no distribution over them.
    """
    if isinstance(groups, str):
        if groups == POPULARITY:
            return popularity_groups(catalogue.popular, target)
        return _of_column(groups, target, dataset)
    if isinstance(groups, Mapping):
        return _of_quantiles(groups, target, dataset)
    names, labels = _of_labels(groups, dataset.n_items)
    return _labelled("labels", names, labels, target)


def penalty_rule(groups: Groups, config: SessionConfig) -> tuple[bool, float]:
    """Tells what is penalised: the surplus of which groups, and how much of it.

    Args:
        groups: The groups.
        config: The rules, of which abandonment, bound and window count.

    Returns:
        Whether the surplus of the popular group alone is; and the surplus from which on, twice the
        exposures above what is due, infinite where nothing is penalised.

    Raises:
        ConfigError: The rule does not go with the groups, or every step would be penalised.
    """
    window = config.exposure_window
    limit = config.ad_bound * window - SLACK
    if config.abandonment == "none":
        return False, np.inf
    if config.abandonment == "popularity":
        if not groups.by_popularity:
            raise ConfigError(
                "abandonment='popularity' penalises what is popular, but the groups are of "
                f"{groups.column}: use 'imbalance' or 'none'."
            )
        return True, limit
    nearest = 2.0 * float(
        np.maximum(nearest_counts(groups.target, window) - groups.target * window, 0).sum()
    )
    if not groups.is_default and nearest >= limit:
        raise ConfigError(
            f"A window of {window} exposures cannot come closer to the target over {len(groups)} "
            f"groups than an L1 distance of {nearest / window:.3g}, and ad_bound={config.ad_bound} "
            "penalises that: every step would be. Set abandonment='none' to measure groups alone, "
            "or fewer groups, a longer window or a larger bound."
        )
    return False, limit


class CountBoxes(NamedTuple):
    """Bounds on the counts of groups in n exposures, from the tightest to none at all.

    Attributes:
        worst: (E,) float64, ascending: the most exposures above what is due to their groups, half
            of the L1 distance in exposures, that n exposures within the bounds can have.
        least: (E, G) int64, exposures of each group.
        most: (E, G) int64.
    """

    worst: DoubleArray
    least: NDArray[np.int64]
    most: NDArray[np.int64]

    def within(self, excess: float) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """(G,) least and most of the widest bounds below an excess; ``None`` if there are none."""
        index = int(np.searchsorted(self.worst, excess)) - 1
        return None if index < 0 else (self.least[index], self.most[index])


def count_boxes(target: DoubleArray, n: int) -> CountBoxes:
    """Boxes of group counts around a target, each with the worst distance that it admits.

    Counts within a distance of the target are no box where there are more than two groups; a box
    that lies within is one that can be drawn from item by item.

    Args:
        target: (G,) shares that sum to one.
        n: Exposures.
    """
    due = target * n
    radii = np.unique(np.abs(np.arange(n + 1)[:, None] - due).round(9))
    rows: dict[float, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    reached = None
    for radius in radii:
        least = np.maximum(np.ceil(due - radius - SLACK), 0).astype(np.int64)
        most = np.minimum(np.floor(due + radius + SLACK), n).astype(np.int64)
        box = (least.tolist(), most.tolist())
        if box != reached and (least <= most).all() and least.sum() <= n <= most.sum():
            rows[_worst_excess(due, least, most, n)] = (least, most)  # the widest of equals stays
            reached = box
    return CountBoxes(
        np.array(sorted(rows)),
        *(np.array([rows[worst][side] for worst in sorted(rows)]) for side in (0, 1)),
    )


def _worst_excess(
    due: DoubleArray, least: NDArray[np.int64], most: NDArray[np.int64], n: int
) -> float:
    """Largest excess of ``n`` exposures within bounds, by dynamic programming over the groups."""
    best = np.full(n + 1, -np.inf)  # by exposures of the groups so far
    best[0] = 0.0
    for share, low, high in zip(due.tolist(), least.tolist(), most.tolist(), strict=True):
        longer = np.full(n + 1, -np.inf)
        for count in range(low, high + 1):
            reached = best[: n + 1 - count] + max(count - share, 0.0)
            longer[count:] = np.maximum(longer[count:], reached)
        best = longer
    return float(best[n])


def nearest_counts(target: DoubleArray, n: int) -> NDArray[np.int64]:
    """Whole numbers that sum to ``n`` and are nearest to ``n * target``, by largest remainder.

    Args:
        target: (..., G) shares that sum to one.
        n: Exposures.

    Returns:
        (..., G) int64; of equal remainders the first are rounded up.
    """
    due = target * n
    counts = np.floor(due + SLACK).astype(np.int64)
    missing = n - counts.sum(axis=-1, keepdims=True)
    order = np.argsort(counts - due, axis=-1, kind="stable")
    counts += np.argsort(order, axis=-1) < missing
    return counts


def _labelled(
    column: str, names: tuple[str, ...], labels: NDArray[np.integer], target: TargetSpec
) -> Groups:
    """Groups of (n_items,) positions in ``names``, which are checked."""
    sizes = np.bincount(labels, minlength=len(names))
    if len(names) < 2:
        raise ConfigError(
            f"groups must tell items apart, but {column!r} puts all of them into {names[0]!r}."
        )
    if not sizes.all():
        empty = names[int(np.flatnonzero(sizes == 0)[0])]
        raise ConfigError(
            f"Every group needs an item, but the group {empty!r} of {column} is empty."
        )
    last = len(names) - 1
    kind = next(kind for kind in (np.int8, np.int16, np.int32) if last <= np.iinfo(kind).max)
    return Groups(column, names, labels.astype(kind), _target(target, names, sizes))


def _of_labels(labels: ArrayLike, n_items: int) -> tuple[tuple[str, ...], NDArray[np.integer]]:
    """Names, ascending, and positions in them, of labels of one's own."""
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise ConfigError(f"groups must be a label for each item: {error}") from error
    if array.dtype.kind == "O":  # texts of a data frame
        texts = [label for label in array.ravel() if type(label) is str]
        array = np.asarray(texts) if len(texts) == array.size and array.ndim == 1 else array
    if array.shape != (n_items,):
        raise ConfigError(
            f"groups must be ({n_items},) labels, one for each item of the catalogue, got shape "
            f"{array.shape}."
        )
    if array.dtype.kind not in "iuUb":
        raise ConfigError(
            f"groups must be integers or texts, got {array.dtype}{_first_gap(array)}. Give items "
            "without a label one of their own."
        )
    values, positions = np.unique(array, return_inverse=True)
    return tuple(str(value) for value in values.tolist()), positions.reshape(-1)


def _first_gap(labels: NDArray[np.generic]) -> str:
    """Names the first missing label, for an error; nothing if there is none."""
    for item, label in enumerate(labels.tolist()):
        if label is None or label != label:
            return f", and the label of item {item} is {label}"
    return ""


def _of_column(column: str, target: TargetSpec, dataset: Dataset) -> Groups:
    """One group for each value of a column that an item of the catalogue has."""
    if column in dataset.item_features.numbers:
        raise ConfigError(
            f"{column} is a column of numbers, one group a value would be many: cut it at "
            f"quantiles, such as groups={{{column!r}: (0.25, 0.5, 0.75)}}."
        )
    codes, values = column_codes(column, dataset)
    present, positions = np.unique(codes, return_inverse=True)
    names = tuple(values[code] if code else MISSING for code in present.tolist())
    return _labelled(column, names, positions.reshape(-1), target)


def column_codes(column: str, dataset: Dataset) -> tuple[NDArray[np.integer], tuple[str, ...]]:
    """(n_items,) codes of a column of texts, 0 where missing, and the values behind them."""
    labels, features = dataset.item_groups, dataset.item_features
    if column in labels:
        return labels[column].codes, labels[column].values
    if column in features.codes:
        return features.codes[column][: dataset.n_items, 0], features.values[column]
    options = (POPULARITY, *labels, *features.codes, *features.numbers)
    raise unknown_option("groups: a column", column, options)


def _of_quantiles(
    cuts: Mapping[str, Sequence[float]], target: TargetSpec, dataset: Dataset
) -> Groups:
    """Groups between quantiles of a column."""
    if len(cuts) != 1:
        raise ConfigError(f"groups={{column: quantiles}} must name one column, got {list(cuts)}.")
    ((column, quantiles),) = cuts.items()
    try:
        levels = np.asarray(quantiles, dtype=np.float64)
    except (TypeError, ValueError):
        levels = np.empty(0)
    rising = levels.ndim == 1 and levels.size and (np.diff(levels, prepend=0, append=1) > 0).all()
    if not rising:
        raise ConfigError(
            f"The quantiles of {column} must rise within (0, 1), such as (0.25, 0.5, 0.75), got "
            f"{quantiles!r}."
        )
    numbers = dataset.item_features.numbers.get(column)
    if numbers is not None:
        values = numbers[: dataset.n_items]
        has_value = np.isfinite(values)
    else:
        codes, texts = column_codes(column, dataset)
        values, has_value = codes.astype(np.float64), codes > 0
    if not has_value.any():
        raise ConfigError(
            f"No item of the catalogue has a value of {column}: choose another column."
        )
    # Quantiles that are values themselves, so that labels can be cut, too.
    edges = np.quantile(values[has_value], levels, method="inverted_cdf")
    labels = np.searchsorted(edges, values, side="right")
    shown = [f"{edge:g}" if numbers is not None else texts[int(edge)] for edge in edges]
    names = _intervals(column, shown)
    if not has_value.all():
        labels = np.where(has_value, labels, len(names))
        names = (*names, MISSING)
    return _labelled(column, names, labels, target)


def _intervals(column: str, edges: Sequence[str]) -> tuple[str, ...]:
    """Names of the intervals between edges."""
    inner = [f"{low} <= {column} < {high}" for low, high in pairwise(edges)]
    return (f"{column} < {edges[0]}", *inner, f"{column} >= {edges[-1]}")


def _target(target: TargetSpec, names: Sequence[str], sizes: NDArray[np.integer]) -> DoubleArray:
    """(G,) float64 shares that sum to one."""
    if isinstance(target, str):
        if target not in TARGETS:
            raise unknown_option("target", target, TARGETS)
        weights = sizes if target == "catalogue" else np.ones(len(names))
        return np.asarray(weights / weights.sum(), dtype=np.float64)
    if isinstance(target, Mapping):
        for name in target:
            if name not in names:
                raise unknown_option("target: a group", name, names)
        target = [target.get(name, 0.0) for name in names]
    try:
        shares = np.array(target, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"target must be a share for each group: {error}") from error
    if shares.shape != (len(names),):
        raise ConfigError(
            f"target must be {len(names)} shares, one for each group ({_some(names)}), got shape "
            f"{shares.shape}."
        )
    if not (np.isfinite(shares).all() and (shares >= 0).all() and abs(shares.sum() - 1.0) < 1e-6):
        raise ConfigError(
            f"target must be shares of at least 0 that sum to 1, got {_some(shares.tolist())}, "
            f"which sum to {shares.sum():g}."
        )
    normalised: DoubleArray = shares / shares.sum()
    return normalised


def _some(values: Iterable[object]) -> str:
    """The first values, for an error."""
    texts = [str(value) for value in values]
    return ", ".join(texts[:8]) + (", ..." if len(texts) > 8 else "")
