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

from dsrm_agents.common.catalogue import CatalogueAlgorithm
from dsrm_agents.common.fairness import Fairness, FairnessWeight
from dsrm_agents.common.responses import check_mean_response, shown_slates
from dsrm_agents.common.surrogate import clipped_surrogate
from dsrm_agents.hrl.buffers import HierarchicalRolloutBuffer, HierarchicalSamples
from dsrm_agents.hrl.losses import Losses
from dsrm_agents.hrl.policies import HierarchicalPolicy, check_spaces
from dsrm_agents.hrl.rollouts import Steps, within_group_credit
from kuaisim_gym.config import check_choice

# PPO's other options (target_kl, clip_range_vf, ...) have no meaning for two levels.
PASSED_ON = ("stats_window_size", "tensorboard_log", "verbose", "seed", "device")


class HierarchicalPPO(CatalogueAlgorithm, PPO):
    """Trains :class:`HierarchicalPolicy`; saves, loads and predicts as any SB3 algorithm.

    The worker is rewarded by r_t, the manager by ``r_t + lambda * Fair(L_t)`` (eq. 4), with
    Fair as in :class:`~dsrm_agents.common.fairness.Fairness`. A slate's reward is the mean of its
    items' responses. Where the worker looks no further than that (``gamma=0``) and draws items,
    the choice of an item among its group has for advantage the slate's, plus how much better the
    item was answered than the slate's others of the group; the choice of the group has the
    slate's alone, because bounds make one popular item more one fewer later.

    Args:
        policy: ``"HierarchicalPolicy"`` or a subclass.
        env: An environment with ``observation_type="dict"`` and ``action_type="slate"`` (for the
            Gaussian worker ``"continuous"``), such as :func:`dsrm_agents.make_vec_env` makes,
            purified or not.
        learning_rate: The worker's.
        n_steps: Steps a session slot makes per rollout.
        batch_size: Minibatch size.
        n_epochs: Passes over a rollout.
        gamma: The worker's discount; 0, the default, is the immediate engagement of 4.3.2.
        manager_gamma: The manager's discount, a step.
        gae_lambda: GAE's lambda, both levels.
        clip_range: PPO's clip, both levels; of the worker for every choice.
        ent_coef: Entropy bonus of the worker: of a slate's first draw.
        vf_coef: Weight of both value losses.
        max_grad_norm: Clip of the gradient's norm, for each level by itself.
        fairness: Fair of eq. 4: ``"ad"``, ``"gini"`` or ``"longtail"``.
        fairness_coef: lambda of eq. 4.
        fairness_target: If given, lambda is a Lagrange multiplier that holds the mean of Fair at
            least there; ``fairness_coef`` is where it starts.
        multiplier_step: Of the multiplier, a rollout.
        policy_kwargs: For the policy; ``catalogue`` is taken from the environment.
        **kwargs: Passed on to PPO, see ``PASSED_ON``.

    Raises:
        ConfigError: The environment has no catalogue or the wrong spaces, or an option is unknown;
            when learning, its reward is not the mean response of the slate.
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
        learning_rate: float | Schedule = 8e-4,
        n_steps: int = 32,
        batch_size: int = 256,
        n_epochs: int = 1,
        gamma: float = 0.0,
        manager_gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.3,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        fairness: str = "ad",
        fairness_coef: float = 3.5,
        fairness_target: float | None = None,
        multiplier_step: float = 0.5,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        for option in kwargs:
            check_choice("An option of HierarchicalPPO", option, PASSED_ON)
        self.manager_gamma = manager_gamma
        self.fairness = fairness
        self.fairness_coef = fairness_coef
        self.fairness_target = fairness_target
        self.multiplier_step = multiplier_step
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
            _init_setup_model=_init_setup_model,
            **kwargs,
        )

    def _setup_model(self) -> None:
        self._take_catalogue()
        worker = self.policy_kwargs.get("worker", "constrained")
        check_spaces(self.observation_space, self.action_space, worker)
        n_draws = int(np.prod(self.action_space.shape or ()))
        # A drawn item is two choices: of its group, and of the item in it.
        each = 1 if worker == "gaussian" else 2
        self.rollout_buffer_kwargs = {
            "manager_gamma": self.manager_gamma,
            "n_draws": n_draws,
            "n_choices": each * n_draws,
        }
        self.fair = Fairness(self.fairness, self.policy_kwargs["catalogue"])
        reached = getattr(self, "weight", None)  # by a loaded agent
        self.weight = FairnessWeight(self.fairness_coef, self.fairness_target, self.multiplier_step)
        self.fair.check_target(self.fairness_target)
        if reached is not None and self.fairness_target is not None:
            self.weight.value = reached.value
        super()._setup_model()
        self._rng = np.random.default_rng(self.seed)
        # The manager's last draws, and how many steps ago each session's was made.
        self._held = torch.zeros(self.n_envs, 2, device=self.device)
        self._age = torch.zeros(self.n_envs, dtype=torch.int64, device=self.device)

    def training_state(self) -> dict[str, Tensor]:
        """What the next rollout depends on beside weights, sessions and generators."""
        multiplier = torch.tensor(self.weight.value, dtype=torch.float64)
        return {"held": self._held, "age": self._age, "multiplier": multiplier}

    def set_training_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what :meth:`training_state` gave."""
        self._held, self._age = state["held"].to(self.device), state["age"].to(self.device)
        self.weight.value = float(state["multiplier"])

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
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        dones = np.zeros(env.num_envs, dtype=bool)
        steps = Steps()
        for _ in range(n_rollout_steps):
            assert isinstance(self._last_obs, dict)
            assert self._last_episode_starts is not None
            self._age[torch.as_tensor(self._last_episode_starts, dtype=torch.bool)] = 0
            due = self._age % self.policy.decision_period == 0
            with torch.no_grad():
                decision = self.policy.decide(self._observed(), self._held, due)
            new_obs, rewards, dones, infos = env.step(decision.actions.cpu().numpy())
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            slates, responses = shown_slates(self._last_obs, new_obs, dones, infos)
            popular = self.policy.catalogue.popular[slates]
            fair = self.fair(slates, self._last_obs["exposed"])
            bonus = self.weight.value * (fair - (self.fairness_target or 0.0))
            level_rewards = np.stack([rewards + bonus, rewards], axis=1)
            credit = np.zeros(decision.draw_log_prob.shape, dtype=np.float32)
            if self.policy.draws_items and self.gamma == 0.0:
                check_mean_response(rewards, responses)
                credit[:, -slates.shape[1] :] = within_group_credit(responses, popular)
            steps.add(popular, fair, level_rewards, infos)
            rollout_buffer.add_decision(
                self._last_obs,
                decision,
                due.cpu().numpy(),
                level_rewards + self._value_at_cap(dones, infos),
                credit,
                self._last_episode_starts,
            )
            self._held = decision.control
            self._age += 1
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
        with torch.no_grad():
            last_values = self.policy.level_values(self._observed())
        rollout_buffer.compute_returns_and_advantage(last_values, dones)
        steps.record(self.logger, self.weight.value)
        self.weight.update(steps.mean_fair)
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
        ended = [slot for slot in np.flatnonzero(dones) if infos[slot].get("TimeLimit.truncated")]
        if ended:
            last = [infos[slot]["terminal_observation"] for slot in ended]
            stacked = {name: np.stack([one[name] for one in last]) for name in last[0]}
            with torch.no_grad():
                values = self.policy.level_values(obs_as_tensor(stacked, self.device))
            bonus[ended] = gammas * values.cpu().numpy()
        return bonus

    def train(self) -> None:
        """One PPO update of both levels on the rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip = float(self.clip_range(self._current_progress_remaining))  # type: ignore[operator]
        history: list[Tensor] = []
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.minibatches(self.batch_size, self._rng):
                losses = self._losses(batch, clip)
                self.policy.optimizer.zero_grad()
                losses.total(self.vf_coef, self.ent_coef).backward()
                for group in self.policy.optimizer.param_groups:
                    torch.nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)
                self.policy.optimizer.step()
                history.append(losses.detached())
            self._n_updates += 1
        self._log_update(torch.stack(history).mean(0).tolist(), batch)

    def _losses(self, batch: HierarchicalSamples, clip: float) -> Losses:
        """PPO's clipped surrogates and value errors, the manager's where it decided."""
        now = self.policy.evaluate_decision(batch.observations, batch.control, batch.draws)
        entropy = torch.zeros(())
        if self.ent_coef != 0.0:
            entropy = self.policy.worker_entropy(batch.observations, batch.control).mean()
        decided = batch.decided / batch.decided.sum().clamp(min=1.0)
        everywhere = torch.full_like(batch.credit, 1.0 / batch.credit.numel())
        manager, manager_kl = clipped_surrogate(
            now.control_log_prob, batch.old_control_log_prob, batch.advantages[:, 0], decided, clip
        )
        worker, worker_kl = clipped_surrogate(
            now.draw_log_prob,
            batch.old_draw_log_prob,
            batch.advantages[:, 1:] + batch.credit,
            everywhere,
            clip,
        )
        error = (now.values - batch.returns).square()
        values = torch.stack([(error[:, 0] * decided).sum(), error[:, 1].mean()])
        return Losses(
            torch.stack([manager, worker]), values, torch.stack([manager_kl, worker_kl]), entropy
        )

    def _log_update(self, losses: list[float], batch: HierarchicalSamples) -> None:
        columns = [
            f"train/{level}_{name}"
            for name in ("policy_loss", "value_loss", "approx_kl")
            for level in ("manager", "worker")
        ]
        for column, value in zip(columns, losses, strict=True):
            self.logger.record(column, value)
        with torch.no_grad():
            entropy = self.policy.worker_entropy(batch.observations, batch.control).mean()
        self.logger.record("train/worker_entropy", float(entropy))
        self.logger.record("train/manager_entropy", self.policy.manager_entropy())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for level, name in enumerate(("manager", "worker")):
            self.logger.record(
                f"rollout/{name}_value", float(self.rollout_buffer.values[..., level].mean())
            )

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Sets every group's rate to the schedule's, times the group's scale."""
        rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        for group in optimizers.param_groups:
            group["lr"] = rate * self.policy.lr_scales[group["name"]]
