"""PPO over slates: the constructor, the update and the loss that its two algorithms share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.ppo import PPO
from torch import Tensor

from dsrm_agents.common.catalogue import EXTEND, CatalogueAlgorithm
from dsrm_agents.common.policies import SlateActorCritic
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.errors import CheckpointError, KuaiSimError

# PPO's other options (target_kl, clip_range_vf, ...) have no meaning for slates.
PASSED_ON = ("stats_window_size", "tensorboard_log", "verbose", "seed", "device")

Rollout = TypeVar("Rollout", bound=tuple[Any, ...])


class Losses(NamedTuple):
    """Losses of a minibatch, over the L levels of a policy.

    Attributes:
        policy: (L,) negative clipped surrogates.
        value: (L,) squared errors.
        divergence: (L,) approximate Kullback-Leibler divergences from the policy that acted.
        entropy: () that earns the bonus.
    """

    policy: Tensor
    value: Tensor
    divergence: Tensor
    entropy: Tensor

    def total(self, vf_coef: float, ent_coef: float) -> Tensor:
        """() loss to minimise; no term has gradients in two levels."""
        return self.policy.sum() + vf_coef * self.value.sum() - ent_coef * self.entropy


class SlatePPO(CatalogueAlgorithm, PPO):
    """Base of PPO algorithms over slates; a subclass has ``_rollout`` and ``_losses``.

    Args:
        policy: A policy that draws slates, or its alias.
        env: An environment with ``observation_type="dict"`` and ``action_type="slate"``, such as
            :func:`dsrm_agents.make_vec_env` makes, purified or not.
        learning_rate: Of the policy's networks.
        n_steps: Steps a session slot makes per rollout.
        batch_size: Minibatch size.
        n_epochs: Passes over a rollout.
        gamma: Discount, a step.
        gae_lambda: GAE's lambda.
        clip_range: PPO's clip, of every choice.
        ent_coef: Entropy bonus, of one draw.
        vf_coef: Weight of the value losses.
        max_grad_norm: Clip of the gradient's norm, for each group of the optimiser by itself.
        policy_kwargs: For the policy; ``catalogue`` and ``groups`` are taken from the environment.
        **kwargs: Passed on to PPO, see ``PASSED_ON``.

    Raises:
        ConfigError: The environment has no catalogue or the wrong spaces, or an option is unknown;
            when learning, its reward is not the mean response of the slate.
    """

    extends = True
    policy: SlateActorCritic

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule,
        *,
        n_steps: int = 32,
        batch_size: int = 256,
        n_epochs: int = 1,
        gamma: float = 0.9,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.3,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        for option in kwargs:
            check_choice(f"An option of {type(self).__name__}", option, PASSED_ON)
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=check_whole("n_epochs", n_epochs, 1),
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            policy_kwargs=dict(policy_kwargs or {}),  # the catalogue is added to our own copy
            _init_setup_model=_init_setup_model,
            **kwargs,
        )

    @classmethod
    def load(cls, path: Any, env: GymEnv | None = None, *arguments: Any, **options: Any) -> Self:
        """Loads a saved agent; see Stable-Baselines3.

        Raises:
            CheckpointError: The environment has other items, slates or observations.
        """
        try:
            return super().load(path, env, *arguments, **options)
        except ValueError as error:
            if isinstance(error, KuaiSimError) or "spaces do not match" not in str(error):
                raise
            raise CheckpointError(
                f"This {cls.__name__} was trained on another environment: use the dataset and the "
                f"options that it was trained with, {EXTEND}, where model is {cls.__name__}.load("
                f"path) without an environment. {error}"
            ) from error

    def _take_catalogue(self) -> None:
        """Takes the items and their groups; an agent keeps the groups that it was built for."""
        super()._take_catalogue()
        if self.env is not None:
            self.policy_kwargs.setdefault("groups", self.env.get_attr("groups")[0])

    def _setup_model(self) -> None:
        self._take_catalogue()
        super()._setup_model()
        self._rng = np.random.default_rng(self.seed)

    def train(self) -> None:
        """Updates the policy on the rollout, ``n_epochs`` times over it."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip = float(self.clip_range(self._current_progress_remaining))  # type: ignore[operator]
        rollout = self._rollout()
        history: list[Losses] = []
        for _ in range(self.n_epochs):
            for batch in minibatches(rollout, self.batch_size, self._rng):
                losses = self._losses(batch, clip)
                self.policy.optimizer.zero_grad()
                losses.total(self.vf_coef, self.ent_coef).backward()
                for group in self.policy.optimizer.param_groups:
                    torch.nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)
                self.policy.optimizer.step()
                history.append(Losses(*(loss.detach() for loss in losses)))
            self._n_updates += 1
        means = (torch.stack(column).mean(0) for column in zip(*history, strict=True))
        self._record(Losses(*means), batch)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    @abstractmethod
    def _rollout(self) -> Any:
        """The rollout's steps: a named tuple of (B, ...) tensors, or dicts of them."""

    @abstractmethod
    def _losses(self, batch: Any, clip: float) -> Losses:
        """Losses of a minibatch, under PPO's clip range."""

    @abstractmethod
    def _record(self, losses: Losses, batch: Any) -> None:
        """Logs the mean losses of an update, and figures of its last minibatch."""


def minibatches(rollout: Rollout, size: int, rng: np.random.Generator) -> Iterator[Rollout]:
    """All rows of a rollout in random order, so many at a time."""
    for rows in torch.as_tensor(rng.permutation(len(rollout[-1]))).split(size):
        yield take(rollout, rows)


def take(rollout: Rollout, rows: Tensor) -> Rollout:
    """Some rows of a named tuple of tensors, or dicts of tensors."""
    columns = (
        {name: tensor[rows] for name, tensor in column.items()}
        if isinstance(column, dict)
        else column[rows]
        for column in rollout
    )
    return type(rollout)(*columns)


def clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, weight: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """PPO's loss over weighted draws, and their approximate KL divergence.

    Args:
        log_prob: (B,) or (B, m).
        old_log_prob: The same shape.
        advantages: Broadcastable to it; standardised here, under the weights.
        weight: The same shape as ``log_prob``, summing to one, or to zero where nothing counts.
        clip: PPO's clip range.

    Returns:
        () the loss and () the divergence (Schulman's estimator, never negative).
    """
    advantages = advantages.expand_as(weight)
    centred = advantages - (weight * advantages).sum()
    spread = (weight * centred.square()).sum().sqrt()
    standard = centred / (spread + 1e-8)
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    surrogate = torch.minimum(ratio * standard, clipped * standard)
    return -(weight * surrogate).sum(), (weight * (ratio - 1.0 - log_ratio)).sum()
