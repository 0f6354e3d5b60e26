"""Learning from the platform's log alone: its transitions, and the base of offline algorithms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from copy import deepcopy
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from dsrm_agents.baselines.items import SlatePolicy
from dsrm_agents.common.catalogue import CatalogueAlgorithm
from dsrm_agents.common.networks import descend
from kuaisim_gym.config import check_whole
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.envs.offline import Episode, logged_episodes
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.precision import single_precision

MOST = 2_000_000  # logged decisions; some 300 MB of states


class Decisions(NamedTuple):
    """Logged decisions with their outcomes.

    Attributes:
        states: (n, d) float32.
        items: (n,) int64 item positions.
        rewards: (n,) float32, the responses to the items.
        next_states: (n, d) float32.
        lasting: (n,) float32, 0 where the session ended there, so that nothing is to come.
    """

    states: Tensor
    items: Tensor
    rewards: Tensor
    next_states: Tensor
    lasting: Tensor


class LoggedTransitions:
    """One-item decisions of a log, drawn uniformly.

    A state is stored once, even if it follows a decision and precedes another. Only episodes
    that terminated end in a state of no value: a log that was cut goes on unseen, so the last
    state of a truncated episode is bootstrapped from, like any other.

    Args:
        episodes: Of one-item decisions, such as
            :func:`~kuaisim_gym.envs.offline.logged_episodes` gives; read until there are
            ``most`` decisions.
        most: Decisions from which on no further episode is read.

    Raises:
        ConfigError: There is no episode.
    """

    def __init__(self, episodes: Iterable[Episode], most: int = MOST) -> None:
        log: list[Episode] = []
        self._n = 0
        for episode in episodes:
            log.append(episode)
            self._n += len(episode)
            if self._n >= most:
                break
        if not log:
            raise ConfigError("A log needs at least one episode to learn from, got none.")
        self.states: NDArray[np.float32] = np.concatenate([row.observations for row in log])
        self.items: NDArray[np.int64] = np.concatenate([row.actions for row in log])
        rewards = np.concatenate([row.rewards for row in log])
        self.rewards: NDArray[np.float32] = rewards.astype(np.float32)
        self._lasting = ~np.concatenate([row.terminations for row in log])
        # An earlier episode has one state more than it has decisions.
        number = np.repeat(np.arange(len(log)), [len(row) for row in log])
        self._state_rows = np.arange(self._n) + number

    def __len__(self) -> int:
        return self._n

    def sample(self, n: int, rng: np.random.Generator, device: torch.device) -> Decisions:
        """Draws decisions, with replacement."""
        rows = rng.integers(self._n, size=n)
        state_rows = self._state_rows[rows]
        arrays = (
            self.states[state_rows],
            self.items[rows],
            self.rewards[rows],
            self.states[state_rows + 1],
            self._lasting[rows].astype(np.float32),
        )
        return Decisions(*(torch.as_tensor(array, device=device) for array in arrays))


def transitions_of(env: VecEnv, rng: np.random.Generator) -> LoggedTransitions:
    """The log of the users whose sessions an environment plays, as it would observe them.

    Args:
        env: One of :func:`dsrm_agents.make_vec_env`, of train users.
        rng: Draws the users whose log is used if there are more than :data:`MOST` decisions.

    Raises:
        ConfigError: The environment has other users, or further columns in its context, which
            the log knows nothing of; or all rewards of the log are 1.
    """
    batch: SessionBatch = env.get_attr("batch")[0]
    if batch.extra_context:
        raise ConfigError(
            f"The log has no {', '.join(batch.extra_context)}: learn from it for an environment "
            "of single sessions."
        )
    if not batch.dataset.log.has_negatives:
        raise ConfigError(
            f"The log of {batch.dataset.name} holds positives alone: all its rewards are 1, and "
            "nothing can be learned from them. Use an agent that plays sessions."
        )
    return LoggedTransitions(
        logged_episodes(
            batch.dataset,
            max_len=batch.config.max_len,
            window=batch.config.exposure_window,
            users=rng.permutation(batch.core.session_users),
        )
    )


class OfflinePolicy(SlatePolicy):
    """A policy over items that is learned from a log, with target networks.

    Attributes:
        counts: (n_items,) float32, the logged decisions for each item; zeros before learning.
        online: The networks that are learned with the help of a target.
        target: The same networks, following slowly.
    """

    counts: Tensor
    online: nn.Module
    target: nn.Module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("counts", torch.zeros(self.catalogue.n_items))

    def _build(self, online: nn.Module) -> None:
        self.online = online
        self.target = deepcopy(online).requires_grad_(False)


class OfflineAlgorithm(CatalogueAlgorithm):
    """Gradient steps on logged transitions; the environment gives spaces, items and log alone.

    It is reset where learning begins, as by any algorithm, and never stepped. The log is that of
    the environment's users, and its states are as they were logged: behind a purifier, an agent
    would act on other states than it learned from.

    Args:
        policy: An :class:`OfflinePolicy`, or its alias.
        env: An environment with ``observation_type="dict"`` and ``action_type="slate"``, such as
            :func:`dsrm_agents.make_vec_env` makes.
        learning_rate: Of Adam.
        batch_size: Transitions an update.
        tau: Share by which target networks follow at every update.
        gamma: Discount, a logged decision.
        policy_kwargs: For the policy; ``catalogue`` is taken from the environment.
        seed: Of everything drawn.
        device: Of the networks.
        **kwargs: Of SB3's ``BaseAlgorithm``: ``verbose``, ``tensorboard_log``, ...

    Attributes:
        transitions: The data; taken from the environment when learning begins, unless they were set
            before, and not changed with the environment. They are not saved.

    Raises:
        ConfigError: The environment has no catalogue, or other spaces.
        CheckpointError: It shows other items than the agent was built for.
    """

    policy: OfflinePolicy

    def __init__(
        self,
        policy: str | type[OfflinePolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-3,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.9,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            policy_kwargs=dict(policy_kwargs or {}),  # the catalogue is added to our own copy
            support_multi_env=True,
            **kwargs,
        )
        self.batch_size = check_whole("batch_size", batch_size, 1)
        self.tau = tau
        self.gamma = gamma
        self.transitions: LoggedTransitions | None = None
        if _init_setup_model:
            self._setup_model()

    @single_precision()
    def _setup_model(self) -> None:
        self._take_catalogue()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._rng = np.random.default_rng(self.seed)
        policy: Any = self.policy_class  # whose arguments are not those of SB3's own policies
        self.policy = policy(self.observation_space, self.action_space, **self.policy_kwargs)
        self.policy = self.policy.to(self.device)
        learned = [weight for weight in self.policy.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(learned, lr=self.lr_schedule(1.0))

    @single_precision()
    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "offline",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Learns from the log.

        Args:
            total_timesteps: Transitions to draw: updates times the batch size.
            callback: Called after every update, with no ``infos``: no session is played.
            log_interval: Updates between two lines of the log.
            tb_log_name: Name of the run for TensorBoard.
            reset_num_timesteps: Whether to count from zero.
            progress_bar: Whether to show one.

        Raises:
            ConfigError: The environment is not one of train users and single sessions.
        """
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if self.transitions is None:
            assert self.env is not None
            self.transitions = transitions_of(self.env, self._rng)
        counts = np.bincount(self.transitions.items, minlength=self.policy.catalogue.n_items)
        self.policy.counts.copy_(torch.as_tensor(counts))
        infos: list[dict[str, Any]] = []  # which callbacks look for
        callback.on_training_start(locals(), globals())
        callback.on_rollout_start()
        while self.num_timesteps < total_timesteps:
            self._update(self.transitions.sample(self.batch_size, self._rng, self.device))
            self.num_timesteps += self.batch_size
            if self._n_updates % log_interval == 0:
                self.logger.dump(self.num_timesteps)
            callback.update_locals(locals())
            if not callback.on_step():
                break
        callback.on_training_end()
        return self

    @abstractmethod
    def losses(self, decisions: Decisions) -> dict[str, Tensor]:
        """Losses of an update by name; it descends their sum."""

    def _update(self, decisions: Decisions) -> None:
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._update_learning_rate(self.optimizer)
        losses = self.losses(decisions)
        descend(self.optimizer, torch.stack(list(losses.values())).sum())
        polyak_update(self.policy.online.parameters(), self.policy.target.parameters(), self.tau)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, loss in losses.items():
            self.logger.record_mean(f"train/{name}_loss", loss.item())

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "transitions"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "optimizer"], []
