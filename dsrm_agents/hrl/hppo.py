"""PPO on two levels: one rollout, two rewards, two advantages, separate gradients (4.4)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.ppo import PPO
from torch import Tensor
from torch.nn import functional

from dsrm_agents.hrl.buffers import HierarchicalRolloutBuffer, HierarchicalSamples
from dsrm_agents.hrl.policies import HierarchicalPolicy, slate_size_of
from kuaisim_gym.errors import CheckpointError, ConfigError, unknown_option
from kuaisim_gym.simulator.catalogue import Catalogue

# PPO's other options (target_kl, clip_range_vf, ...) have no meaning for two levels.
PASSED_ON = ("stats_window_size", "tensorboard_log", "verbose", "seed", "device")


class HierarchicalPPO(PPO):
    """Trains :class:`HierarchicalPolicy`; saves, loads and predicts as any SB3 algorithm.

    The worker is rewarded by r_t, the manager by ``r_t + fairness_coef * Fair(L_t)`` (eq. 4)
    with ``Fair = -|2p - 1|``, p the slate's popular share: the negative Gini of one slate of
    distinct items is constant, so the group imbalance that abandonment acts on is used instead.

    Args:
        policy: ``"HierarchicalPolicy"`` or a subclass.
        env: An environment with ``observation_type="dict"`` and ``action_type="slate"``, such
            as :func:`dsrm_agents.make_vec_env` makes, purified or not.
        learning_rate: The worker's.
        n_steps: Steps a session slot makes per rollout.
        batch_size: Minibatch size.
        n_epochs: Passes over a rollout.
        gamma: The worker's discount; 0, the default, is the immediate engagement of 4.3.2.
        manager_gamma: The manager's discount.
        gae_lambda: GAE's lambda, both levels.
        clip_range: PPO's clip, both levels.
        ent_coef: Entropy bonus of the slate's first draw.
        vf_coef: Weight of both value losses.
        max_grad_norm: Clip of the gradient's norm, for each level by itself.
        fairness_coef: lambda of eq. 4.
        policy_kwargs: For the policy; ``catalogue`` is taken from the environment.
        **kwargs: Passed on to PPO, see ``PASSED_ON``.

    Raises:
        ConfigError: The environment has no catalogue or the wrong spaces, or an option is unknown.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "HierarchicalPolicy": HierarchicalPolicy
    }
    policy: HierarchicalPolicy
    rollout_buffer: HierarchicalRolloutBuffer

    def __init__(
        self,
        policy: str | type[HierarchicalPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 2e-3,
        n_steps: int = 32,
        batch_size: int = 256,
        n_epochs: int = 3,
        gamma: float = 0.0,
        manager_gamma: float = 0.95,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.3,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        fairness_coef: float = 2.0,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        for option in kwargs:
            if option not in PASSED_ON:
                raise unknown_option("An option of HierarchicalPPO", option, PASSED_ON)
        self.manager_gamma = manager_gamma
        self.fairness_coef = fairness_coef
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            policy_kwargs=dict(policy_kwargs or {}),  # the catalogue is added to our own copy
            rollout_buffer_class=HierarchicalRolloutBuffer,
            rollout_buffer_kwargs={"manager_gamma": manager_gamma},
            _init_setup_model=_init_setup_model,
            **kwargs,
        )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Changes the environment.

        Raises:
            CheckpointError: It shows other items than the policy was built for.
        """
        super().set_env(env, force_reset)
        self._take_catalogue()

    def _take_catalogue(self) -> None:
        """Takes the environment's catalogue, or checks that it is the policy's."""
        if self.env is None:
            return
        try:
            shown: Catalogue = self.env.get_attr("catalogue")[0]
        except AttributeError as error:
            raise ConfigError(
                "HierarchicalPPO needs an environment with a `catalogue` attribute, such as "
                f"KuaiRec-Fair-v0; {self.env} has none."
            ) from error
        known: Catalogue = self.policy_kwargs.setdefault("catalogue", shown)
        if known.fingerprint != shown.fingerprint:
            raise CheckpointError(
                f"This agent was built for the items of catalogue {known.fingerprint!r}, the "
                f"environment shows those of {shown.fingerprint!r}: use the dataset that it was "
                "trained on, or train a new agent."
            )

    def _setup_model(self) -> None:
        self._take_catalogue()
        slate_size_of(self.observation_space, self.action_space)
        super()._setup_model()
        self._rng = np.random.default_rng(self.seed)

    def fairness(self, slates: NDArray[np.int64]) -> NDArray[np.float32]:
        """Fair(L_t) of eq. 4: (N, K) items to (N,) numbers in [-1, 0], 0 for a balanced slate."""
        popular = self.policy.catalogue.popular[slates].mean(axis=1)
        return np.asarray(-np.abs(2.0 * popular - 1.0), dtype=np.float32)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Fills the buffer with decisions of both levels.

        Returns:
            False if the callback asked to stop.
        """
        assert isinstance(rollout_buffer, HierarchicalRolloutBuffer)
        assert self._last_obs is not None
        assert self._last_episode_starts is not None
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        dones = np.zeros(env.num_envs, dtype=bool)
        for _ in range(n_rollout_steps):
            with torch.no_grad():
                decision = self.policy.decide(self._observed())
            slates = decision.slates.cpu().numpy()
            new_obs, reward, dones, infos = env.step(slates)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            manager_reward = reward + self.fairness_coef * self.fairness(slates)
            rewards = np.stack([manager_reward, reward], axis=1)
            rewards += self._value_at_cap(dones, infos)
            rollout_buffer.add_decision(
                self._last_obs,  # type: ignore[arg-type]
                slates,
                decision.control,
                rewards,
                self._last_episode_starts,
                decision.values,
                decision.log_prob,
            )
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
        with torch.no_grad():
            last_values = self.policy.level_values(self._observed())
        rollout_buffer.compute_returns_and_advantage(last_values, dones)
        callback.on_rollout_end()
        return True

    def _observed(self) -> PyTorchObs:
        """The latest observations as tensors."""
        assert isinstance(self._last_obs, dict)
        return obs_as_tensor(self._last_obs, self.device)

    def _value_at_cap(
        self, dones: NDArray[np.bool_], infos: list[dict[str, Any]]
    ) -> NDArray[np.float32]:
        """(N, 2) discounted values of sessions cut by a step cap; zero for all others."""
        bonus = np.zeros((len(dones), 2), dtype=np.float32)
        gammas = np.array([self.manager_gamma, self.gamma], dtype=np.float32)
        for slot in np.flatnonzero(dones):
            if infos[slot].get("TimeLimit.truncated", False):
                last = self.policy.obs_to_tensor(infos[slot]["terminal_observation"])[0]
                with torch.no_grad():
                    bonus[slot] = gammas * self.policy.level_values(last)[0].cpu().numpy()
        return bonus

    def train(self) -> None:
        """One PPO update of both levels on the rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip = float(self.clip_range(self._current_progress_remaining))  # type: ignore[operator]
        losses: list[list[float]] = []
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.minibatches(self.batch_size, self._rng):
                policy_loss, value_loss, entropy = self._losses(batch, clip)
                loss = policy_loss.sum() + self.vf_coef * value_loss.sum()
                loss -= self.ent_coef * entropy
                self.policy.optimizer.zero_grad()
                loss.backward()
                for group in self.policy.optimizer.param_groups:
                    torch.nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)
                self.policy.optimizer.step()
                losses.append([*policy_loss.tolist(), *value_loss.tolist(), entropy.item()])
            self._n_updates += 1
        names = ("policy_loss", "value_loss")
        columns = [f"train/{level}_{name}" for name in names for level in ("manager", "worker")]
        columns.append("train/worker_entropy")
        for column, value in zip(columns, np.mean(losses, axis=0), strict=True):
            self.logger.record(column, float(value))

    def _losses(self, batch: HierarchicalSamples, clip: float) -> tuple[Tensor, Tensor, Tensor]:
        """(2,) clipped surrogates and (2,) value errors, [manager, worker]; mean slate entropy."""
        now = self.policy.evaluate_decision(
            batch.observations, batch.control, batch.slates, slate_entropy=self.ent_coef != 0.0
        )
        advantages = batch.advantages
        if len(advantages) > 1:
            advantages = (advantages - advantages.mean(0)) / (advantages.std(0) + 1e-8)
        ratio = torch.exp(now.log_prob - batch.old_log_prob)
        clipped = torch.clamp(ratio, 1.0 - clip, 1.0 + clip)
        surrogate = torch.minimum(ratio * advantages, clipped * advantages).mean(0)
        value_loss = functional.mse_loss(now.values, batch.returns, reduction="none").mean(0)
        return -surrogate, value_loss, now.entropy.mean()

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Sets every group's rate to the schedule's, times the group's scale."""
        rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        for group in optimizers.param_groups:
            group["lr"] = rate * self.policy.lr_scales[group["name"]]
