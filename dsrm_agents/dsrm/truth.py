"""The states that a synthetic world's true preferences would have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import Dataset, Truth
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import PreferenceEncoder

BLOCK = 256  # users at a time, against the whole catalogue

FloatArray = NDArray[np.float32]


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
    truth = dataset.truth
    if truth is None:
        raise ConfigError(f"True preferences are known in synthetic worlds only: {dataset.name}.")
    pooled, level = _pooled_answers(truth, users, embedding)
    reference_pooled, reference_level = _pooled_answers(truth, reference, embedding)
    # Sum of (answer - item's mean - (user's mean - overall mean)) * embedding, term by term.
    excess = pooled - reference_pooled.mean(axis=0)
    excess -= np.outer(level - reference_level.mean(), embedding.mean(axis=0, dtype=np.float64))
    return np.asarray(excess / encoder.scale, dtype=np.float32)


def _pooled_answers(
    truth: Truth, users: NDArray[np.integer], embedding: FloatArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, d) answer-weighted mean embeddings over the catalogue, and (n,) mean answers."""
    items = np.arange(len(embedding))[None, :]
    pooled, level = np.empty((len(users), embedding.shape[1])), np.empty(len(users))
    for start in range(0, len(users), BLOCK):
        rows = slice(start, start + BLOCK)
        answers = truth.expected(users[rows, None], items)
        pooled[rows] = answers @ embedding / len(embedding)
        level[rows] = answers.mean(axis=1, dtype=np.float64)
    return pooled, level
