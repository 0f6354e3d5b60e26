"""Reference rows: the worth of chance, popularity, quality, belief and degrees of knowledge.

They read the sessions' users directly, because that is their point: an oracle knows what no
agent can observe. The scores of ``filter`` alone, posterior means of what the user prefers, are
known to an agent, too: it observes the belief. A row is a score of the items and the composition of
slates:

* no suffix: the best items of any group;
* ``+quota``: K/2 popular and K/2 long-tail items, or as other groups are due, over two slates where
  K is odd; with even K and the default window no step is ever penalised;
* ``+providers``: the same, items of providers who are behind what is due to them being raised;
* ``+band``: the best slate of those that cost no penalty, 4 to 6 popular items of 10 by default;
* ``+balanced-band``: such slates, half of whose items are popular over the session;
* ``+planned-band``: such slates that make the longest session.

``expected-oracle+planned-band`` is the ceiling: a policy that knows expected answers and is never
penalised cannot keep users longer, see :mod:`dsrm_agents.baselines.bands`. Where the expected
answers are a model's, as on real data, a policy that learns from the answers of a session may know
more than they say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.baselines.bands import COMPOSITIONS, Composition, PlannedBand
from dsrm_agents.baselines.rules import RuleAgent
from dsrm_agents.baselines.slates import composed
from kuaisim_gym.cells import CellIndex
from kuaisim_gym.config import check_choice
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.randomness import POLICY_STREAM, uniform
from kuaisim_gym.simulator import Simulator, build_simulator
from kuaisim_gym.simulator.response import ResponseModel

FloatArray = NDArray[np.float32]
_ALL = -1  # stands for all groups
_MOST_USERS = 1000  # in an item's mean answer

ScoreRule = Callable[[SessionBatch], FloatArray]


class ReferencePolicy(RuleAgent):
    """Shows the best unexposed items by a score, so many of each group.

    Args:
        score: Scores of (N, n_items) for the present users of a batch.
        composition: Of the slates of the sessions that the policy will act in.
    """

    def __init__(self, score: ScoreRule, composition: Composition) -> None:
        super().__init__(composition.batch, composition)
        self.score = score

    @property
    def knows_answers(self) -> bool:
        """True where the score is an oracle's, and can be had of simulated users alone."""
        return any(self.score is score.rule for score in SCORES.values() if score.is_answer)

    def bound_to(self, batch: SessionBatch) -> ReferencePolicy:
        return type(self)(self.score, type(self.composition)(batch))

    def item_scores(self, observation: Any) -> FloatArray:
        """(N, n_items) float32; the observation is not read."""
        return self.score(self.batch)


class FilterPolicy(ReferencePolicy):
    """The row ``filter``, whose scores are inner products of users and items.

    Where nothing else reads them, the best items are searched for in a part of the catalogue; the
    slates are those of all scores.
    """

    def __init__(self, score: ScoreRule, composition: Composition) -> None:
        super().__init__(score, composition)
        self._indexes: dict[int, CellIndex] = {}

    def slates(self, observation: Any) -> NDArray[np.int64]:
        core = self.batch.core
        if self.composition.reads_scores or core.pools is not None or core.platform is not None:
            return super().slates(observation)
        queries = self.batch.belief().queries()

        def best(group: int, most: int) -> NDArray[np.int64]:
            return self._index(group).best(queries, most, core.state.exposed)

        counts = self.composition(None)
        return (
            best(_ALL, self.batch.config.slate_size) if counts is None else composed(counts, best)
        )

    def _index(self, group: int) -> CellIndex:
        """The items of a group, or of all."""
        if group not in self._indexes:
            labels = self.batch.core.groups.labels
            items = np.flatnonzero((labels == group) | (group == _ALL))
            vectors = self.batch.belief().item_vectors[items]
            self._indexes[group] = CellIndex(vectors, items)
        return self._indexes[group]


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
    return _answers(build_simulator(batch.simulator.dataset, "train", response_model).model, batch)


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


@lru_cache(maxsize=2)
def _random_rates(dataset: Dataset) -> FloatArray:
    """(n_items,) mean answers in the randomised rows, drawn to their mean as chance suggests."""
    assert dataset.randomised is not None
    rows = dataset.randomised.take(dataset.randomised.items < dataset.n_items)
    count = np.bincount(rows.items, minlength=dataset.n_items)
    total = np.bincount(rows.items, rows.response, dataset.n_items)
    mean, within, seen = total.sum() / len(rows), float(rows.response.var()), count > 0
    apart = float(((total - count * mean)[seen] ** 2 / count[seen]).sum()) - seen.sum() * within
    chance = within / max(apart / len(rows), 1e-9)  # rows at which a mean has half its say
    return np.asarray((total + chance * mean) / (count + chance), dtype=np.float32)


@dataclass(frozen=True)
class Score:
    """A score of items.

    Attributes:
        rule: Gives the scores of a batch's present users.
        test_only: Whether it knows the users of the test split.
        synthetic_only: Whether it knows the causes of a synthetic world.
        randomised_only: Whether it knows what users answered to items that nobody chose.
        is_answer: Whether scores are expected answers, by which a session can be planned.
    """

    rule: ScoreRule
    test_only: bool = False
    synthetic_only: bool = False
    randomised_only: bool = False
    is_answer: bool = True

    def suits(self, dataset: Dataset) -> bool:
        """Tells if a dataset has what the score knows."""
        has_truth, has_randomised = dataset.truth is not None, dataset.randomised is not None
        return (has_truth or not self.synthetic_only) and (
            has_randomised or not self.randomised_only
        )


SCORES: dict[str, Score] = {
    "random": Score(_random, is_answer=False),
    "popularity": Score(
        lambda batch: _same_for_all(batch, batch.catalogue.log_popularity), is_answer=False
    ),
    # Column 0 of the embedding is the item's effect on the logged response.
    "quality": Score(
        lambda batch: _same_for_all(batch, batch.catalogue.item_embedding[:, 0]), is_answer=False
    ),
    # What train users answered to items that nobody chose.
    "random-rates": Score(
        lambda batch: _same_for_all(batch, _random_rates(batch.dataset)),
        randomised_only=True,
        is_answer=False,
    ),
    # The posterior mean of what the user prefers, given log and session.
    "filter": Score(lambda batch: batch.belief().scores(), is_answer=False),
    "expected-quality": Score(
        lambda batch: _same_for_all(batch, _mean_answers(batch.simulator)), test_only=True
    ),
    "train-oracle": Score(_train_oracle),
    "truth": Score(_truth, synthetic_only=True),
    "expected-oracle": Score(
        lambda batch: _answers(batch.simulator.expected, batch), test_only=True
    ),
    "realised-oracle": Score(lambda batch: _answers(batch.simulator.model, batch), test_only=True),
}

# By name: a score, and the composition of slates.
REFERENCES: dict[str, tuple[Score, type[Composition]]] = {
    name + suffix: (score, composition)
    for name, score in SCORES.items()
    for suffix, composition in COMPOSITIONS.items()
    if score.is_answer or not issubclass(composition, PlannedBand)
}
CEILING = "expected-oracle+planned-band"


def make_reference(name: str, batch: SessionBatch) -> ReferencePolicy:
    """The reference row of that name, bound to the sessions it will act in.

    Raises:
        ConfigError: Unknown name, sessions of the train split for an oracle of the test
            simulator, a catalogue with too few items in a group, or a band without a slate.
    """
    score, composition = REFERENCES[check_choice("reference", name, REFERENCES)]
    policy = ReferencePolicy
    if score is SCORES["filter"]:
        batch.belief()  # from the sessions' start
        policy = FilterPolicy
    if score.test_only and batch.simulator.split != "test":
        raise ConfigError(f"{name} knows the test users alone; give it sessions of split='test'.")
    if score.synthetic_only and batch.dataset.truth is None:
        raise ConfigError(
            f"{name} knows the causes of a synthetic world; {batch.dataset.name} is real."
        )
    if score.randomised_only and batch.dataset.randomised is None:
        raise ConfigError(f"{name} knows randomised rows; {batch.dataset.name} has none.")
    return policy(score.rule, composition(batch))
