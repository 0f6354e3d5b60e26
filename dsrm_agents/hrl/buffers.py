"""Rollouts with two levels: every quantity of both has a manager and a worker column."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from dsrm_agents.hrl.policies import Decision

FloatArray = NDArray[np.float32]


class HierarchicalSamples(NamedTuple):
    """A minibatch; columns of two are [manager, worker].

    Attributes:
        observations: Dict of tensors, B rows each.
        draws: (B, m) the worker's.
        control: (B, 2) float32, the manager's draws.
        decided: (B,) float32, 1 where the manager decided, 0 where its z was held.
        old_control_log_prob: (B,) float32.
        old_draw_log_prob: (B, f) float32, of the choices behind the draws.
        credit: (B, f) float32, what a draw's own response adds to the choice's advantage.
        advantages: (B, 2) float32.
        returns: (B, 2) float32.
    """

    observations: dict[str, Tensor]
    draws: Tensor
    control: Tensor
    decided: Tensor
    old_control_log_prob: Tensor
    old_draw_log_prob: Tensor
    credit: Tensor
    advantages: Tensor
    returns: Tensor


def level_advantages(
    rewards: FloatArray,
    values: FloatArray,
    episode_starts: FloatArray,
    decided: FloatArray,
    last_values: FloatArray,
    last_dones: NDArray[np.bool_],
    gammas: FloatArray,
    gae_lambda: float,
) -> FloatArray:
    """Generalised advantage estimates of both levels, each with its own discount.

    Between two decisions a level's rewards are summed as one step of a semi-Markov process, with
    the next value discounted by as many steps as passed. A stretch that the rollout's end cuts
    goes on with the critic's value there.

    Args:
        rewards: (T, N, 2).
        values: (T, N, 2), before each step.
        episode_starts: (T, N), 1 where the step is a session's first.
        decided: (T, N, 2), 1 where the level decided; it must wherever a session starts.
        last_values: (N, 2), after the last step.
        last_dones: (N,), whether the last step ended the session.
        gammas: (2,) discount of each level, a step.
        gae_lambda: GAE's lambda, shared, a decision.

    Returns:
        (T, N, 2) float32; what stands where a level did not decide has no meaning.
    """
    advantages = np.zeros_like(rewards)
    # What follows a step: the lambda-return from there on, within a stretch or at its end.
    following, going_on = last_values, 1.0 - last_dones[:, None].astype(np.float32)
    for step in reversed(range(len(rewards))):
        target = rewards[step] + gammas * going_on * following
        advantages[step] = target - values[step]
        decision = values[step] + gae_lambda * advantages[step]
        following = np.where(decided[step] > 0, decision, target)
        going_on = 1.0 - episode_starts[step][:, None]
    return advantages


class HierarchicalRolloutBuffer(DictRolloutBuffer):
    """SB3's dict rollout buffer with a level axis, the manager's draws and the worker's.

    Args:
        *args: As for the base class.
        manager_gamma: Discount of the manager; ``gamma`` is the worker's.
        n_draws: m, draws that make an action.
        n_choices: f, choices behind them.
        **kwargs: As for the base class.
    """

    def __init__(
        self,
        *args: Any,
        manager_gamma: float = 0.99,
        n_draws: int = 1,
        n_choices: int = 1,
        **kwargs: Any,
    ) -> None:
        self.manager_gamma = manager_gamma
        self.n_draws = n_draws
        self.n_choices = n_choices
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Empties the buffer."""
        super().reset()
        steps = (self.buffer_size, self.n_envs)
        for name in ("rewards", "values", "advantages", "returns", "control"):
            setattr(self, name, np.zeros((*steps, 2), dtype=np.float32))
        for name in ("draw_log_prob", "credit"):
            setattr(self, name, np.zeros((*steps, self.n_choices), dtype=np.float32))
        whole = isinstance(self.action_space, spaces.MultiDiscrete)
        self.draws = np.zeros((*steps, self.n_draws), dtype=np.int64 if whole else np.float32)
        for name in ("control_log_prob", "decided"):
            setattr(self, name, np.zeros(steps, dtype=np.float32))

    control: FloatArray
    draws: NDArray[np.generic]
    draw_log_prob: FloatArray
    credit: FloatArray
    control_log_prob: FloatArray
    decided: FloatArray

    def add_decision(
        self,
        obs: dict[str, NDArray[Any]],
        decision: Decision,
        decided: NDArray[np.bool_],
        rewards: FloatArray,
        credit: FloatArray,
        episode_starts: NDArray[Any],
    ) -> None:
        """Stores one step of all sessions; shapes as in :class:`HierarchicalSamples`."""
        at = self.pos
        for name, part in obs.items():
            self.observations[name][at] = part
        for name in ("control", "draws", "control_log_prob", "draw_log_prob", "values"):
            getattr(self, name)[at] = getattr(decision, name).cpu().numpy()
        self.decided[at] = decided
        self.rewards[at] = rewards
        self.credit[at] = credit
        self.episode_starts[at] = episode_starts
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: NDArray[np.bool_]) -> None:
        """Fills ``advantages`` and ``returns``; ``last_values`` is (N, 2), ``dones`` (N,)."""
        self.advantages = level_advantages(
            self.rewards,
            self.values,
            self.episode_starts,
            np.stack([self.decided, np.ones_like(self.decided)], axis=-1),
            last_values.cpu().numpy(),
            dones,
            np.array([self.manager_gamma, self.gamma], dtype=np.float32),
            self.gae_lambda,
        )
        self.returns = self.advantages + self.values

    def minibatches(
        self, batch_size: int, rng: np.random.Generator
    ) -> Generator[HierarchicalSamples, None, None]:
        """All stored steps in random order; may be called once an epoch."""
        rows = self.buffer_size * self.n_envs
        order = rng.permutation(rows)
        for start in range(0, rows, batch_size):
            batch = order[start : start + batch_size]

            def tensor(array: NDArray[Any], batch: NDArray[Any] = batch) -> Tensor:
                flat = array.reshape(rows, *array.shape[2:])
                return torch.as_tensor(flat[batch], device=self.device)

            yield HierarchicalSamples(
                observations={name: tensor(part) for name, part in self.observations.items()},
                draws=tensor(self.draws),
                control=tensor(self.control),
                decided=tensor(self.decided),
                old_control_log_prob=tensor(self.control_log_prob),
                old_draw_log_prob=tensor(self.draw_log_prob),
                credit=tensor(self.credit),
                advantages=tensor(self.advantages),
                returns=tensor(self.returns),
            )

    def get(self, batch_size: int | None = None, env: VecNormalize | None = None) -> Any:
        """Refused: a flat sample would lose the manager's level.

        Raises:
            TypeError: Always.
        """
        raise TypeError("A hierarchical buffer is read with minibatches(), not get().")
