"""Item quality freed of exposure bias, where a dataset has answers to items that nobody chose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import TrainingData

_USER_ROWS = 10.0  # rows at which a user's own mean has half its say


def unbiased_quality(
    data: TrainingData, logged: NDArray[np.floating]
) -> NDArray[np.float32] | None:
    """Items' effects on the response, from randomised rows.

    A log shows items to those who like them, and popularity sways its answers; a response model
    fitted to it inherits both biases. Randomised rows are free of them, but few an item. An
    empirical-Bayes estimate combines the two: the prior mean is linear in the logged effect, and
    rows move an item away from it the further, the more items differ from that line beyond chance.

    Args:
        data: Its randomised rows are read, and nothing else.
        logged: (n_items,) the items' effects in the log.

    Returns:
        (n_items,) float32, standardised over the catalogue; ``None`` where there are no randomised
        rows of its items.
    """
    rows = data.randomised
    if rows is None:
        return None
    shown = rows.items < data.n_items
    if not shown.any():
        return None
    users, items = rows.users[shown], rows.items[shown]
    response = rows.response[shown].astype(np.float64)
    response -= response.mean()
    of_user = np.bincount(users, minlength=data.n_users)
    level = np.bincount(users, response, data.n_users) / (of_user + _USER_ROWS)
    response -= level[users]

    count = np.bincount(items, minlength=data.n_items).astype(np.float64)
    total = np.bincount(items, response, data.n_items)
    answered = count > 0
    mean = np.divide(total, count, out=np.zeros_like(total), where=answered)
    line = np.column_stack([logged, np.ones(len(count))]).astype(np.float64)
    root = np.sqrt(count)
    weights = np.linalg.lstsq(line * root[:, None], mean * root, rcond=None)[0]
    prior = line @ weights
    n_answered = int(np.count_nonzero(answered))
    within = float(np.sum((response - mean[items]) ** 2) / max(len(response) - n_answered, 1))
    apart = count @ (mean - prior) ** 2 - (n_answered - line.shape[1]) * within
    between = max(float(apart / count.sum()), 1e-12)
    quality = prior + (total - count * prior) / (count + within / between)
    spread = quality.std() or 1.0
    return np.asarray((quality - quality.mean()) / spread, dtype=np.float32)
