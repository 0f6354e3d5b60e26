"""Rollouts with two levels: values and rewards have a manager and a worker column."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from dsrm_agents.common.bounds import CHOICES_PER_ITEM, SlateBounds
from dsrm_agents.hrl.policies import Decision

FloatArray = NDArray[np.float32]


class HierarchicalSamples(NamedTuple):
    """Steps of a rollout; columns of two are [manager, worker].

    Attributes:
        observations: Dict of tensors, B rows each, without the responses, which decisions ignore.
        slates: (B, K) int64 item positions.
        control: (B, 2) float32, the manager's draws.
        decided: (B,) float32, 1 where the manager decided, 0 where its z was held.
        old_control_log_prob: (B,) float32.
        old_choice_log_prob: (B, 2K) float32, of the choices that make a slate.
        credit: (B, 2K) float32, what an item's response adds to a choice's advantage.
        advantages: (B, 2) float32.
        returns: (B, 2) float32.
        least: (B, G) int64, of the bounds within which the slates were drawn.
        most: (B, G) int64.
        shortlist: (B, W) int32 columns that the slates were drawn from; (B, 0) for all.
    """

    observations: dict[str, Tensor]
    slates: Tensor
    control: Tensor
    decided: Tensor
    old_control_log_prob: Tensor
    old_choice_log_prob: Tensor
    credit: Tensor
    advantages: Tensor
    returns: Tensor
    least: Tensor
    most: Tensor
    shortlist: Tensor

    @property
    def bounds(self) -> SlateBounds:
        """Within which the slates were drawn."""
        return SlateBounds(self.least, self.most)


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
        (T, N, 2) float32; entries where a level did not decide have no meaning.
    """
    advantages = np.zeros_like(rewards)
    # The return that follows a step: the lambda-return within a stretch or at its end.
    following, going_on = last_values, 1.0 - last_dones[:, None].astype(np.float32)
    for step in reversed(range(len(rewards))):
        target = rewards[step] + gammas * going_on * following
        advantages[step] = target - values[step]
        decision = values[step] + gae_lambda * advantages[step]
        following = np.where(decided[step] > 0, decision, target)
        going_on = 1.0 - episode_starts[step][:, None]
    return advantages


class HierarchicalRolloutBuffer(DictRolloutBuffer):
    """SB3's dict rollout buffer with a level axis, and the manager's draws.

    Args:
        *args: As for the base class.
        manager_gamma: Discount of the manager; ``gamma`` is the worker's.
        n_groups: G, groups of items.
        **kwargs: As for the base class.
    """

    control: FloatArray
    control_log_prob: FloatArray
    decided: FloatArray
    choice_log_prob: FloatArray
    credit: FloatArray
    bounds: NDArray[np.int64]
    shortlist: NDArray[np.int32]

    def __init__(
        self, *args: Any, manager_gamma: float = 0.99, n_groups: int = 2, **kwargs: Any
    ) -> None:
        self.manager_gamma = manager_gamma
        self.n_groups = n_groups
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Empties the buffer."""
        super().reset()
        steps = (self.buffer_size, self.n_envs)
        self.rewards = np.zeros((*steps, 2), dtype=np.float32)
        self.values = np.zeros((*steps, 2), dtype=np.float32)
        self.control = np.zeros((*steps, 2), dtype=np.float32)
        self.control_log_prob = np.zeros(steps, dtype=np.float32)
        self.decided = np.zeros(steps, dtype=np.float32)
        choices = CHOICES_PER_ITEM * self.action_dim
        self.choice_log_prob = np.zeros((*steps, choices), dtype=np.float32)
        self.credit = np.zeros((*steps, choices), dtype=np.float32)
        self.bounds = np.zeros((2, *steps, self.n_groups), dtype=np.int64)  # least and most
        self.shortlist = np.zeros((*steps, 0), dtype=np.int32)  # as wide as those that come

    def add_decision(
        self,
        obs: dict[str, NDArray[Any]],
        decision: Decision,
        decided: Tensor,
        rewards: FloatArray,
        credit: FloatArray,
        episode_starts: NDArray[Any],
    ) -> None:
        """Stores one step of all sessions; shapes as in :class:`HierarchicalSamples`."""
        step = self.pos
        for name, array in obs.items():
            self.observations[name][step] = array
        self.actions[step] = decision.slates.cpu().numpy()
        self.control[step] = decision.control.cpu().numpy()
        self.control_log_prob[step] = decision.control_log_prob.cpu().numpy()
        self.choice_log_prob[step] = decision.choice_log_prob.cpu().numpy()
        self.values[step] = decision.values.cpu().numpy()
        for bound, stored in zip(decision.bounds, self.bounds, strict=True):
            stored[step] = bound.cpu().numpy()
        width = decision.shortlist.shape[1]
        if self.shortlist.shape[2] != width:
            self.shortlist = np.zeros((*self.shortlist.shape[:2], width), dtype=np.int32)
        self.shortlist[step] = decision.shortlist.cpu().numpy()
        self.decided[step] = decided.cpu().numpy()
        self.rewards[step] = rewards
        self.credit[step] = credit
        self.episode_starts[step] = episode_starts
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

    def samples(self) -> HierarchicalSamples:
        """All stored steps, those of all slots in order of time."""

        def flat(array: NDArray[Any]) -> Tensor:
            steps = array.shape[0] * array.shape[1]  # -1 would not do for arrays without numbers
            return torch.as_tensor(array.reshape(steps, *array.shape[2:]), device=self.device)

        return HierarchicalSamples(
            observations={
                name: flat(array)
                for name, array in self.observations.items()
                if name != "responses"
            },
            slates=flat(self.actions),
            control=flat(self.control),
            decided=flat(self.decided),
            old_control_log_prob=flat(self.control_log_prob),
            old_choice_log_prob=flat(self.choice_log_prob),
            credit=flat(self.credit),
            advantages=flat(self.advantages),
            returns=flat(self.returns),
            least=flat(self.bounds[0]),
            most=flat(self.bounds[1]),
            shortlist=flat(self.shortlist),
        )

    def get(self, batch_size: int | None = None, env: VecNormalize | None = None) -> Any:
        """Refuses: a flat sample would lose the manager's level.

        Raises:
            TypeError: Always.
        """
        raise TypeError("A hierarchical buffer is read with samples(), not get().")
