"""Rollouts with two levels: every quantity has a manager and a worker column."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

FloatArray = NDArray[np.float32]


class HierarchicalSamples(NamedTuple):
    """A minibatch; columns of two are [manager, worker].

    Attributes:
        observations: Dict of tensors, B rows each.
        slates: (B, K) int64.
        control: (B, 2) float32, the manager's draws.
        old_values: (B, 2) float32.
        old_log_prob: (B, 2) float32.
        advantages: (B, 2) float32.
        returns: (B, 2) float32.
    """

    observations: dict[str, Tensor]
    slates: Tensor
    control: Tensor
    old_values: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    returns: Tensor


def level_advantages(
    rewards: FloatArray,
    values: FloatArray,
    episode_starts: FloatArray,
    last_values: FloatArray,
    last_dones: NDArray[np.bool_],
    gammas: FloatArray,
    gae_lambda: float,
) -> FloatArray:
    """Generalised advantage estimates of both levels, each with its own discount.

    Args:
        rewards: (T, N, 2).
        values: (T, N, 2), before each step.
        episode_starts: (T, N), 1 where the step is a session's first.
        last_values: (N, 2), after the last step.
        last_dones: (N,), whether the last step ended the session.
        gammas: (2,) discount of each level.
        gae_lambda: GAE's lambda, shared.

    Returns:
        (T, N, 2) float32.
    """
    advantages = np.zeros_like(rewards)
    running = np.zeros_like(last_values)
    next_values, going_on = last_values, 1.0 - last_dones[:, None].astype(np.float32)
    for step in reversed(range(len(rewards))):
        delta = rewards[step] + gammas * next_values * going_on - values[step]
        running = delta + gammas * gae_lambda * going_on * running
        advantages[step] = running
        next_values, going_on = values[step], 1.0 - episode_starts[step][:, None]
    return advantages


class HierarchicalRolloutBuffer(DictRolloutBuffer):
    """SB3's dict rollout buffer with a level axis and the manager's draws.

    Args:
        *args: As for the base class.
        manager_gamma: Discount of the manager; ``gamma`` is the worker's.
        **kwargs: As for the base class.
    """

    def __init__(self, *args: Any, manager_gamma: float = 0.99, **kwargs: Any) -> None:
        self.manager_gamma = manager_gamma
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Empties the buffer."""
        super().reset()
        shape = (self.buffer_size, self.n_envs, 2)
        self.control: FloatArray = np.zeros(shape, dtype=np.float32)
        for name in ("rewards", "values", "log_probs", "advantages", "returns"):
            setattr(self, name, np.zeros(shape, dtype=np.float32))

    def add_decision(
        self,
        obs: dict[str, NDArray[Any]],
        slates: NDArray[np.int64],
        control: Tensor,
        rewards: FloatArray,
        episode_starts: NDArray[Any],
        values: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Stores one step of all sessions; shapes as in :class:`HierarchicalSamples`."""
        for name, part in obs.items():
            self.observations[name][self.pos] = part
        self.actions[self.pos] = slates
        self.control[self.pos] = control.cpu().numpy()
        self.rewards[self.pos] = rewards
        self.episode_starts[self.pos] = episode_starts
        self.values[self.pos] = values.cpu().numpy()
        self.log_probs[self.pos] = log_prob.cpu().numpy()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: NDArray[np.bool_]) -> None:
        """Fills ``advantages`` and ``returns``; ``last_values`` is (N, 2), ``dones`` (N,)."""
        gammas = np.array([self.manager_gamma, self.gamma], dtype=np.float32)
        self.advantages = level_advantages(
            self.rewards,
            self.values,
            self.episode_starts,
            last_values.cpu().numpy(),
            dones,
            gammas,
            self.gae_lambda,
        )
        self.returns = self.advantages + self.values

    def minibatches(
        self, batch_size: int, rng: np.random.Generator
    ) -> Generator[HierarchicalSamples, None, None]:
        """All stored steps in random order; may be called once an epoch."""
        rows = self.buffer_size * self.n_envs

        def flat(array: NDArray[Any]) -> NDArray[Any]:
            return array.reshape(rows, *array.shape[2:])

        order = rng.permutation(rows)
        for start in range(0, rows, batch_size):
            batch = order[start : start + batch_size]

            def tensor(array: NDArray[Any], batch: NDArray[Any] = batch) -> Tensor:
                return torch.as_tensor(flat(array)[batch], device=self.device)

            yield HierarchicalSamples(
                observations={name: tensor(part) for name, part in self.observations.items()},
                slates=tensor(self.actions).long(),
                control=tensor(self.control),
                old_values=tensor(self.values),
                old_log_prob=tensor(self.log_probs),
                advantages=tensor(self.advantages),
                returns=tensor(self.returns),
            )

    def get(self, batch_size: int | None = None, env: VecNormalize | None = None) -> Any:
        """Refused: a flat sample would lose the manager's level.

        Raises:
            TypeError: Always.
        """
        raise TypeError("A hierarchical buffer is read with minibatches(), not get().")
