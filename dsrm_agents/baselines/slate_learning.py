"""Off-policy learning from slates: a replay of the response to each shown item.

A slate of K items is taken for K choices in one state, each with the response to its item, and with
a common successor: the decomposition that makes a value an item learnable (SlateQ, Ie et al., IJCAI
2019, without its model of the item that a user picks, because here users answer all items). Values
come from an :class:`~dsrm_agents.baselines.items.ItemNetwork`, with a level common to all items,
which the published methods do not have.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from dsrm_agents.baselines.items import SlatePolicy, unexposed
from dsrm_agents.common.catalogue import CatalogueAlgorithm, state_and_unavailable
from kuaisim_gym.errors import ConfigError


class SlateSamples(NamedTuple):
    """Transitions of one step of a session each.

    Attributes:
        states: (n, d) float32.
        exposed: (n, room) int64 item positions shown before, -1 padded.
        slates: (n, K) int64 item positions.
        responses: (n, K) float32, to each item of the slate.
        next_states: (n, d) float32.
        next_exposed: (n, room) int64.
        dones: (n, 1) float32, 1 where the user left.
    """

    states: Tensor
    exposed: Tensor
    slates: Tensor
    responses: Tensor
    next_states: Tensor
    next_exposed: Tensor
    dones: Tensor


class SlateReplayBuffer(ReplayBuffer):
    """Stores states, slates, the response to each item, and the items shown before.

    Args:
        buffer_size: Transitions of all slots together.
        observation_space: That of ``observation_type="dict"``.
        action_space: That of ``action_type="slate"``.
        device: Of the samples.
        n_envs: Slots.
        optimize_memory_usage: Must be false.
        seed: Of what is sampled.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        seed: int | None = None,
    ) -> None:
        assert isinstance(observation_space, spaces.Dict)
        super().__init__(
            buffer_size,
            observation_space["state"],
            action_space,
            device,
            n_envs=n_envs,
            optimize_memory_usage=optimize_memory_usage,
        )
        room = observation_space["exposed"].shape or (0,)
        self.responses = np.zeros(self.actions.shape, dtype=np.float32)
        self.next_exposed = np.zeros((*self.rewards.shape, *room), dtype=np.int32)
        self._rng = np.random.default_rng(seed)

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Adds a step of every slot; observations are dicts, the next ones those before a reset.

        Raises:
            ConfigError: The next observations do not show the slates last.
        """
        exposed, size = next_obs["exposed"], self.action_dim
        ends = (exposed >= 0).sum(axis=1)
        columns = np.maximum(ends, size)[:, None] + np.arange(-size, 0)
        if not np.array_equal(np.take_along_axis(exposed, columns, axis=1), action):
            raise ConfigError(
                "A replay of slates reads the response to a slate from the observation after it, "
                "but that does not show the slate last: use an environment that shows the slates "
                "it is given, and whose episodes are single sessions."
            )
        self.responses[self.pos] = np.take_along_axis(next_obs["responses"], columns, axis=1)
        self.next_exposed[self.pos] = exposed
        super().add(obs["state"], next_obs["state"], action, reward, done, infos)

    def sample(self, batch_size: int, env: Any = None) -> SlateSamples:  # type: ignore[override]
        """Draws transitions uniformly.

        Args:
            batch_size: n.
            env: Not used: states are never normalised.
        """
        steps = self._rng.integers(self.size(), size=batch_size)
        slots = self._rng.integers(self.n_envs, size=batch_size)
        next_exposed = self.next_exposed[steps, slots]
        before = (next_exposed >= 0).sum(axis=1) - self.action_dim
        exposed = np.where(np.arange(next_exposed.shape[1]) < before[:, None], next_exposed, -1)
        left = self.dones[steps, slots] * (1 - self.timeouts[steps, slots])
        return SlateSamples(
            self.to_torch(self.observations[steps, slots]),
            self.to_torch(exposed).long(),
            self.to_torch(self.actions[steps, slots]).long(),
            self.to_torch(self.responses[steps, slots]),
            self.to_torch(self.next_observations[steps, slots]),
            self.to_torch(next_exposed).long(),
            self.to_torch(left[:, None]),
        )


class SlateOffPolicyAlgorithm(CatalogueAlgorithm, OffPolicyAlgorithm):
    """Base of off-policy algorithms over items; a subclass has ``_update`` and ``_optimizers``.

    Args:
        policy: A :class:`~dsrm_agents.baselines.items.SlatePolicy`, or its alias.
        env: An environment with ``observation_type="dict"`` and ``action_type="slate"``, such as
            :func:`dsrm_agents.make_vec_env` makes, purified or not.
        learning_rate: Of Adam.
        buffer_size: Transitions in the replay.
        learning_starts: Steps, of all slots together, with random slates before any update.
        batch_size: Transitions an update.
        tau: Share by which target networks follow at every update.
        gamma: Discount, a step.
        train_freq: Steps of every slot between updates.
        gradient_steps: Updates at a time.
        policy_kwargs: For the policy; ``catalogue`` is taken from the environment.
        seed: Of everything drawn.
        device: Of the networks.
        **kwargs: Of SB3's ``OffPolicyAlgorithm``: ``verbose``, ``tensorboard_log``, ...

    Raises:
        ConfigError: The environment has no catalogue, or other spaces.
        CheckpointError: It shows other items than the agent was built for.
    """

    policy: SlatePolicy

    def __init__(
        self,
        policy: str | type[SlatePolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 100_000,
        learning_starts: int = 2000,
        batch_size: int = 128,
        tau: float = 0.01,
        gamma: float = 0.9,
        train_freq: int = 1,
        gradient_steps: int = 1,
        policy_kwargs: dict[str, Any] | None = None,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            replay_buffer_class=SlateReplayBuffer,
            replay_buffer_kwargs={"seed": seed},
            policy_kwargs=dict(policy_kwargs or {}),  # the catalogue is added to our own copy
            seed=seed,
            device=device,
            support_multi_env=True,
            sde_support=False,
            **kwargs,
        )
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._take_catalogue()
        super()._setup_model()

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Updates the policy on replayed slates."""
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        self._update_learning_rate(self._optimizers())
        figures = []
        for _ in range(gradient_steps):
            batch: Any = self.replay_buffer.sample(batch_size)
            figures.append(self._update(batch))
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name in figures[0]:
            mean = float(np.mean([update[name] for update in figures]))
            self.logger.record(f"train/{name}", mean)

    @abstractmethod
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimisers that follow the learning rate."""

    @abstractmethod
    def _update(self, batch: SlateSamples) -> dict[str, float]:
        """One update; returns figures to log, by name."""

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Random slates of unexposed items at first, then the policy's."""
        assert isinstance(self._last_obs, dict)
        if self.num_timesteps >= learning_starts:
            slates, _ = self.predict(self._last_obs, deterministic=False)
            return slates, slates
        observation = {name: torch.as_tensor(array) for name, array in self._last_obs.items()}
        n_items = self.policy.catalogue.n_items
        _, shown = state_and_unavailable(observation, n_items)
        draws = unexposed(torch.rand(n_envs, n_items), shown)
        slates = draws.topk(self.policy.slate_size, dim=1).indices.numpy()
        return slates, slates
