"""A policy in the style of DNaIR: relevance plus novelty, where novelty counts by quality.

It is the reward of DNaIR (Shi et al., TOIS 2024) used greedily, not DNaIR's deep Q-network:
nothing is trained, so its slates for a raw and for a purified state differ by the state alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsrm_agents.baselines.slates import check_picks_items
from dsrm_agents.common.catalogue import check_fixed, state_and_unavailable
from dsrm_agents.common.stateless import StatelessAgent
from kuaisim_gym.data.dataset import TrainingData
from kuaisim_gym.engine import find_engine
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.positives import exposures_behind

BETA = 0.4  # DNaIR's weight of novelty
GOOD = 0.5  # responses from here on speak for an item's quality

FloatArray = NDArray[np.float32]


class NoveltyPolicy(StatelessAgent):
    """Shows the unexposed items of the highest relevance + beta * quality * novelty.

    Relevance is the cosine of the observed preference and the item's embedding, standardised over
    the catalogue so that it weighs the same whatever the states' size. Users, simulator and answers
    are not read: behind a purifier, the policy depends on the purified states alone.

    Args:
        item_embedding: (n_items, d) float32.
        quality: (n_items,) in [0, 1], see :func:`item_quality`.
        exposures: (n_items,) numbers of times that items were shown.
        slate_size: K.
        preference: Slice of the observed state vector that is the preference, d wide.
        beta: Weight of novelty; 0 for relevance alone.

    Raises:
        ConfigError: ``beta`` is negative.
    """

    def __init__(
        self,
        item_embedding: FloatArray,
        quality: NDArray[np.floating],
        exposures: NDArray[np.integer],
        slate_size: int,
        preference: slice,
        beta: float = BETA,
    ) -> None:
        if not beta >= 0:
            raise ConfigError(f"beta must be at least 0, got {beta}.")
        self.directions = _at_unit_length(item_embedding)
        self.bonus: FloatArray = (beta * quality * item_novelty(exposures)).astype(np.float32)
        self.slate_size = slate_size
        self.preference = preference
        self._top_items = find_engine().top_items

    def slates(self, observation: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
        scores = self.scores(observation["state"][:, self.preference])
        tensors = {name: torch.as_tensor(array) for name, array in observation.items()}
        shown = state_and_unavailable(tensors, scores.shape[1])[1].numpy()
        rows, columns = np.nonzero(shown >= 0)
        scores[rows, shown[rows, columns]] = -np.inf
        return np.asarray(self._top_items(scores, self.slate_size))

    def scores(self, preference: FloatArray) -> FloatArray:
        """(N, d) preference states to (N, n_items) scores, whatever was exposed."""
        cosine = _at_unit_length(preference) @ self.directions.T
        centred = cosine - cosine.mean(axis=1, keepdims=True)
        spread = cosine.std(axis=1, keepdims=True)
        # A user without history sits at the origin, from where no item is nearer than another.
        relevance = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
        return np.asarray(relevance + self.bonus, dtype=np.float32)


def item_quality(data: TrainingData) -> NDArray[np.float64]:
    """(n_items,) share of good responses among an item's exposures, with a Beta(1, 1) prior.

    Args:
        data: Only ``train_log`` is read. An item that was not shown has quality 1/2.
    """
    log = data.train_log
    shown = exposures_behind(data)
    good = np.bincount(log.items, weights=log.response >= GOOD, minlength=data.n_all_items)
    return ((good + 1.0) / (shown + 2.0))[: data.n_items]


def item_novelty(exposures: NDArray[np.integer]) -> NDArray[np.float64]:
    """(n_items,) ``1 / log10(popularity + 1.1)``, popularity being exposures scaled to [0, 1].

    From 24.2 for the least to 3.1 for the most exposed item.
    """
    counted = exposures - exposures.min()
    popularity = counted / max(int(counted.max()), 1)
    return np.asarray(1.0 / np.log10(popularity + 1.1))


def make_novelty(batch: SessionBatch, beta: float = BETA) -> NoveltyPolicy:
    """The policy for the items of some sessions.

    Args:
        batch: Sessions with ``observation_type="dict"`` and slate actions.
        beta: Weight of novelty.

    Raises:
        ConfigError: The sessions have other observations or actions, or a catalogue that changes.
    """
    check_picks_items(batch)
    catalogue = batch.catalogue
    check_fixed(catalogue.changes, "NoveltyPolicy")
    return NoveltyPolicy(
        catalogue.item_embedding,
        item_quality(batch.dataset.training),
        catalogue.exposures,
        batch.config.slate_size,
        slice(0, catalogue.item_embedding.shape[1]),
        beta,
    )


def _at_unit_length(vectors: FloatArray) -> FloatArray:
    """(n, d) float32; vectors of length zero stay what they are."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return np.asarray(unit, dtype=np.float32)
