"""DORL: A2C in a world model that rewards states after which the logged choices vary.

Offline learners stay near what the logs are sure of, which is what was shown most: the Matthew
effect. DORL (Gao et al., "Alleviating Matthew Effect of Offline Reinforcement Learning in
Interactive Recommendation", SIGIR 2023) adds a bonus for states after which the logging policy
chose variedly. The learner is Stable-Baselines3's own A2C; what makes it DORL is the reward that
:class:`PenalisedVecEnv` puts in the place of the world's, in training alone:

    dorl = fit_dorl(dataset)
    env = PenalisedVecEnv(make_vec_env("KuaiRec-Fair-v0", 64, dataset=dataset), dorl)
    agent = A2C("MlpPolicy", env)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from dsrm_agents.baselines.slates import last_slates
from dsrm_agents.baselines.world_model import WorldModel, fit_world_model
from dsrm_agents.common.catalogue import check_fixed
from dsrm_agents.common.stateless import StatelessVecEnv, batch_of
from kuaisim_gym.data import Dataset, check_dataset
from kuaisim_gym.data.dataset import TrainingData
from kuaisim_gym.engine import bits
from kuaisim_gym.engine.bits import BitArray
from kuaisim_gym.errors import CheckpointError, ConfigError

WINDOWS = (1, 2)  # items whose categories form a tuple, as in the released code
UNKNOWN = 1.0  # entropy after a tuple that was never seen, or always followed by the same category
FIELDS = ("category", "tag")  # names of the categories in KuaiRec and in KuaiRand

FloatArray = NDArray[np.float32]
Items = NDArray[np.integer]


class ChoiceEntropy:
    """Entropy of the next category in the logs, given those of the last one or two items.

    After an order-free tuple of categories, one of each item in the window, p is the distribution
    of the next item's categories over the train users' rows in the order of the log:

        ``H = -sum_c p_c log p_c / log C``, in [0, 1],

    C being the number of categories; the paper's ``P_E = -KL(p || uniform)`` is ``(H - 1) log C``.
    A window's entropy is the average over the tuples that its items make. As in the released
    code it is 1 after tuples that were never seen or only ever led to one category.

    That code divides by the logarithm of the number of categories that followed the tuple, where
    rare tuples, which have led to two categories, look as open as any; here C is one for all.
    Items without a category form a category, so that unknown categories earn nothing.
    A tuple that two items make in both orders counts twice in their average.

    Args:
        data: Its ``train_log`` and the items' categories are read.

    Raises:
        ConfigError: The data have no categories.

    Attributes:
        after_single: (C,) float64, H after each category.
        after_pair: (C, C) float64, H after each pair of categories; symmetric.
        single: (n_items,) float32, an item's H for the window of one.
        least: Sum over windows of the least H that any tuple has.
    """

    def __init__(self, data: TrainingData) -> None:
        codes = _category_codes(data)
        users, items = data.train_log.users, data.train_log.items
        singles, pairs = (_rows_apart(users, n) for n in WINDOWS)
        after_single = _followers(codes, items[singles], items[singles + 1])
        after_pair = _followers(codes, items[pairs], items[pairs + 1], items[pairs + 2])
        self.after_single = _normalised_entropy(after_single)
        self.after_pair = _normalised_entropy(
            after_pair + after_pair.swapaxes(0, 1)
        )  # either order
        self.least = float(self.after_single.min() + self.after_pair.min())

        catalogue = codes[: data.n_items]
        member = np.zeros((len(catalogue), len(self.after_single) + 1))
        np.put_along_axis(member, catalogue, 1.0, axis=1)  # padding, -1, fills the last column
        member = member[:, :-1] / member[:, :-1].sum(axis=1, keepdims=True)
        self.single: FloatArray = (member @ self.after_single).astype(np.float32)
        self._member: FloatArray = member.astype(np.float32)
        self._half: FloatArray = (member @ self.after_pair).astype(np.float32)

    def __call__(self, items: Items, before: Items) -> FloatArray:
        """Sum over both windows of the entropy after an item.

        Args:
            items: Positions; the item itself is part of its windows, as in the released code.
            before: Positions of the items shown just before, -1 where there is none: a window that
                is not full counts 1, as in the released code.

        Returns:
            float32 in [0, 2], of the arguments' shape.
        """
        pair = np.einsum("...c,...c->...", self._half[before], self._member[items])
        return np.asarray(self.single[items] + np.where(before < 0, np.float32(UNKNOWN), pair))


@dataclass(frozen=True, eq=False)
class Dorl:
    """World model and choice entropy of the logs.

    Attributes:
        world: Expected responses and their uncertainty.
        entropy: Of the logged choices.
        dataset_fingerprint: Of the dataset that both were read from.
    """

    world: WorldModel
    entropy: ChoiceEntropy
    dataset_fingerprint: str

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the content: the dataset and the world model that was fitted on it."""
        return f"{self.dataset_fingerprint}-{self.world.fingerprint}"


def fit_dorl(dataset: Dataset, seed: int = 0, progress: bool = True) -> Dorl:
    """Fits the world model and counts the logged choices, on the train log alone.

    Args:
        dataset: The dataset.
        seed: Of the world model.
        progress: Whether to show a progress bar.

    Returns:
        World model and entropy, for :class:`PenalisedVecEnv`.

    Raises:
        ConfigError: The data have no categories.
    """
    data = check_dataset("fit_dorl(dataset)", dataset).training
    entropy = ChoiceEntropy(data)  # first: it fails quickly without categories
    world = fit_world_model(data, seed=seed, progress=progress)
    return Dorl(world, entropy, dataset.fingerprint)


class PenalisedVecEnv(StatelessVecEnv):
    """Rewards slates as DORL's world model does, for training.

    The reward of an item shown to user u is

        ``max(0, r(u, i) - uncertainty_coef * P_U(u, i) + entropy_coef * (sum_n H_n - least))``

    and that of a slate the mean over its items, which follow one another in the order shown,
    after those of the session's earlier slates.

    Deviations from the paper: sessions, states and their ends are the train simulator's, which
    is fitted on the same log; the world model answers for the reward alone. The released DORL has
    no uncertainty term, the paper has one. As in the code rewards are lowered by the least that
    there can be and cut off at 0. A constant that every step pays is no detail where sessions are
    longer the better they go: it pays for length. The least entropy is exact;
    the least response is taken as 0 and the least penalty as none, which spares predicting all
    pairs. An item that the world does not answer, because it was shown before, has r = 0.

    Args:
        venv: Of :func:`dsrm_agents.make_vec_env`, wrapped or not.
        dorl: Fitted on the same dataset.
        uncertainty_coef: lambda_1, in units of reward over variance.
        entropy_coef: lambda_2, in units of reward; the released code's by default.

    Raises:
        ConfigError: A coefficient is negative or not finite, or the task has no slates' rewards.
        CheckpointError: ``dorl`` was fitted on another dataset.
    """

    def __init__(
        self, venv: VecEnv, dorl: Dorl, uncertainty_coef: float = 0.05, entropy_coef: float = 5.0
    ) -> None:
        for name, value in (("uncertainty", uncertainty_coef), ("entropy", entropy_coef)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    f"{name}_coef must be a finite number of at least 0, got {value}."
                )
        batch = batch_of(venv, "PenalisedVecEnv")
        check_fixed(batch.catalogue.changes, "PenalisedVecEnv")
        if not batch.slate_rewards:
            raise ConfigError("DORL rewards slates, and this task returns: use another task.")
        fingerprint = batch.dataset.fingerprint
        if dorl.dataset_fingerprint != fingerprint:
            raise CheckpointError(
                "DORL was fitted on another dataset than the environment's, "
                f"{batch.dataset.description}: fit it again with fit_dorl(dataset)."
            )
        self.batch = batch
        self.dorl = dorl
        self.uncertainty_coef = uncertainty_coef
        self.entropy_coef = entropy_coef
        self._users: NDArray[np.int32] = np.zeros(venv.num_envs, dtype=np.int32)
        self._last: NDArray[np.int32] = np.full(venv.num_envs, -1, dtype=np.int32)
        self._exposed: BitArray = batch.core.state.exposed.copy()
        super().__init__(venv)

    @property
    def settings(self) -> dict[str, Any]:
        """Constructor arguments, for checkpoints to compare."""
        return {
            "dorl": self.dorl.fingerprint,
            "uncertainty_coef": self.uncertainty_coef,
            "entropy_coef": self.entropy_coef,
        }

    def step_async(self, actions: NDArray[Any]) -> None:
        """Records users, last items and exposures: a session that ends forgets them."""
        state = self.batch.core.state
        self._users = state.users.copy()
        last = state.slates[np.arange(self.num_envs), state.steps - 1, -1]
        self._last = np.where(state.steps > 0, last, -1)
        self._exposed = state.exposed.copy()
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Puts DORL's reward in the place of the world's."""
        observations, _, dones, infos = self.venv.step_wait()
        rewards = self._rewards(last_slates(self.batch, dones, infos))
        return observations, rewards, dones, infos

    def _rewards(self, slates: Items) -> FloatArray:
        """(N,) float32 of (N, K) slates."""
        expected, uncertainty = self.dorl.world.predict(self._users[:, None], slates)
        if not self.batch.config.allow_repeats:
            expected = np.where(_repeated(slates, self._exposed), np.float32(0.0), expected)
        entropy = self.dorl.entropy(slates, np.column_stack([self._last, slates[:, :-1]]))
        rewards = expected - self.uncertainty_coef * uncertainty
        rewards += self.entropy_coef * (entropy - self.dorl.entropy.least)
        return np.asarray(np.maximum(rewards, 0.0).mean(axis=1), dtype=np.float32)


def category_field(data: TrainingData) -> str | None:
    """The item feature that holds categories, or ``None`` where no item has one."""
    codes = data.item_features.codes
    return next((name for name in FIELDS if name in codes and codes[name].any()), None)


def _category_codes(data: TrainingData) -> NDArray[np.int64]:
    """(n_all_items, width) int64 in [0, C), padded with -1; an item without any has the last.

    Raises:
        ConfigError: There are none.
    """
    features, field = data.item_features.codes, category_field(data)
    if field is None:
        raise ConfigError(
            "DORL counts which categories the logs show next, and these data have no categories: "
            f"expected the item feature {' or '.join(map(repr, FIELDS))}, got "
            f"{sorted(features) or 'none'}. Load them with the file of the items' categories."
        )
    values, ranks = np.unique(features[field], return_inverse=True)
    codes = ranks.reshape(features[field].shape).astype(np.int64) - int(values[0] == 0)
    without = (codes < 0).all(axis=1)
    codes[without, 0] = codes.max() + 1
    return codes


def _rows_apart(users: Items, n: int) -> NDArray[np.int64]:
    """Numbers of the rows that n more rows of the user follow."""
    return np.flatnonzero(users[n:] == users[:-n])


def _followers(codes: NDArray[np.int64], *items: Items) -> NDArray[np.int64]:
    """Counts combinations of categories, one of each item.

    Args:
        codes: (n_items, width) categories, padded with -1.
        *items: (n,) positions each; the items of a window in order, and the one that followed.

    Returns:
        (C, ..., C) int64, as many axes as there are ``items``.
    """
    shape = (int(codes.max()) + 1,) * len(items)
    counts = np.zeros(int(np.prod(shape)), dtype=np.int64)
    for columns in product(range(codes.shape[1]), repeat=len(items)):
        chosen = [codes[rows, column] for rows, column in zip(items, columns, strict=True)]
        real = np.all([code >= 0 for code in chosen], axis=0)
        cells = np.ravel_multi_index([code[real] for code in chosen], shape)
        counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(shape)


def _normalised_entropy(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Entropy over the last axis, in units of the logarithm of its length."""
    total = counts.sum(axis=-1, keepdims=True)
    entropy = entr(counts / np.maximum(total, 1)).sum(axis=-1) / math.log(max(counts.shape[-1], 2))
    return np.where(np.count_nonzero(counts, axis=-1) > 1, entropy, UNKNOWN)


def _repeated(slates: Items, exposed: BitArray) -> NDArray[np.bool_]:
    """(N, K) bool: items of (N, K) slates that were exposed before, or earlier in the slate."""
    twice = np.tril(slates[:, :, None] == slates[:, None, :], k=-1).any(axis=2)
    return np.asarray(bits.contains(exposed, np.arange(len(slates)), slates) | twice)
