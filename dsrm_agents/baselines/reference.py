"""Reference rows: the worth of chance, popularity, quality and degrees of knowledge.

They read the sessions' users directly, because that is their point: an oracle knows what no
agent can observe. A slate with quota holds K/2 popular and K/2 long-tail items: with even K and the
default window no step is ever penalised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.baselines.slates import best_slates
from dsrm_agents.common.stateless import StatelessAgent
from kuaisim_gym.config import check_choice
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.randomness import POLICY_STREAM, uniform
from kuaisim_gym.simulator import Simulator, build_simulator
from kuaisim_gym.simulator.response import ResponseModel

FloatArray = NDArray[np.float32]
_MOST_USERS = 1000  # in an item's mean answer

ScoreRule = Callable[[SessionBatch], FloatArray]


class ReferencePolicy(StatelessAgent):
    """Shows the best unexposed items by a score, with or without the quota.

    Args:
        batch: The sessions that it will act in, with slate actions.
        score: Scores of (N, n_items) for the batch's present users.
        quota: Whether half of every slate must be popular.
    """

    def __init__(self, batch: SessionBatch, score: ScoreRule, quota: bool) -> None:
        self.batch = batch
        self.score = score
        self.quota = quota

    def slates(self, observation: Any) -> NDArray[np.int64]:
        """(N, K) item positions; the observation is not read."""
        return best_slates(self.batch, self.score(self.batch), self.quota)


def _random(batch: SessionBatch) -> FloatArray:
    state, n_items = batch.core.state, batch.catalogue.n_items
    draws = uniform(state.seeds, state.episodes, state.steps, n_items, POLICY_STREAM)
    return draws.astype(np.float32)


def _same_for_all(batch: SessionBatch, score: FloatArray) -> FloatArray:
    """(N, n_items) from the (n_items,) score of any user."""
    return np.broadcast_to(score, (batch.core.n_sessions, len(score)))


def _answers(model: ResponseModel, batch: SessionBatch) -> FloatArray:
    users, items = batch.core.state.users[:, None], np.arange(batch.catalogue.n_items)[None, :]
    return model.probability(users, items)


def _train_oracle(batch: SessionBatch) -> FloatArray:
    response_model = batch.simulator.response_model
    return _answers(build_simulator(batch.dataset, "train", response_model).model, batch)


def _truth(batch: SessionBatch) -> FloatArray:
    assert batch.dataset.truth is not None
    users, items = batch.core.state.users[:, None], np.arange(batch.catalogue.n_items)
    return batch.dataset.truth.expected(users, items[None, :])


@lru_cache(maxsize=2)
def _mean_answers(simulator: Simulator) -> FloatArray:
    """(n_items,) mean expected answer to each item, over at most a thousand of the users."""
    users = simulator.users[:: -(-len(simulator.users) // _MOST_USERS)]
    items = np.arange(simulator.dataset.n_items)
    answers = simulator.expected.probability(users[:, None], items[None, :])
    return np.asarray(answers.mean(axis=0), dtype=np.float32)


@dataclass(frozen=True)
class Reference:
    """A reference row.

    Attributes:
        score: Scores of the items.
        quota: Whether half of every slate must be popular.
        test_only: Whether it knows the users of the test split.
        synthetic_only: Whether it knows the causes of a synthetic world.
    """

    score: ScoreRule
    quota: bool = True
    test_only: bool = False
    synthetic_only: bool = False


REFERENCES: dict[str, Reference] = {
    "random": Reference(_random, quota=False),
    "popularity": Reference(
        lambda batch: _same_for_all(batch, batch.catalogue.log_popularity), quota=False
    ),
    # Column 0 of the embedding is the item's effect on the logged response.
    "quality+quota": Reference(
        lambda batch: _same_for_all(batch, batch.catalogue.item_embedding[:, 0])
    ),
    "expected-quality+quota": Reference(
        lambda batch: _same_for_all(batch, _mean_answers(batch.simulator)), test_only=True
    ),
    "train-oracle+quota": Reference(_train_oracle),
    "truth+quota": Reference(_truth, synthetic_only=True),
    "expected-oracle+quota": Reference(
        lambda batch: _answers(batch.simulator.expected, batch), test_only=True
    ),
    "realised-oracle+quota": Reference(
        lambda batch: _answers(batch.simulator.model, batch), test_only=True
    ),
}


def make_reference(name: str, batch: SessionBatch) -> ReferencePolicy:
    """The reference row of that name, bound to the sessions it will act in.

    Raises:
        ConfigError: Unknown name, sessions of the train split for an oracle of the test
            simulator, or a catalogue with too few items in a group.
    """
    reference = REFERENCES[check_choice("reference", name, REFERENCES)]
    if reference.test_only and batch.simulator.split != "test":
        raise ConfigError(f"{name} knows the test users alone; give it sessions of split='test'.")
    if reference.synthetic_only and batch.dataset.truth is None:
        raise ConfigError(
            f"{name} knows the causes of a synthetic world; {batch.dataset.name} is real."
        )
    popular, half = int(batch.catalogue.popular.sum()), batch.config.slate_size // 2
    if reference.quota and not half <= popular <= batch.catalogue.n_items - half - 1:
        raise ConfigError(
            f"A quota needs {half} items in each group, but {popular} of "
            f"{batch.catalogue.n_items} items are popular."
        )
    return ReferencePolicy(batch, reference.score, reference.quota)
