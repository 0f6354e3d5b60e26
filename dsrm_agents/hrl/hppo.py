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
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor

from dsrm_agents.common.bounds import choice_credit
from dsrm_agents.common.catalogue import shown_popular
from dsrm_agents.common.fairness import Fairness, FairnessWeight
from dsrm_agents.common.responses import check_mean_response, shown_slates
from dsrm_agents.common.slate_ppo import Losses, SlatePPO, clipped_surrogate, take
from dsrm_agents.hrl.buffers import HierarchicalRolloutBuffer, HierarchicalSamples
from dsrm_agents.hrl.policies import HierarchicalPolicy
from dsrm_agents.hrl.rollouts import RolloutStatistics, within_group_credit
from kuaisim_gym.config import is_number
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.precision import single_precision

LEVELS = ("manager", "worker")
LOGGED = 16  # decisions whose entropy, a pass over all that can be drawn, is logged
# Where the worker starts, by the unit of the observed preference: a belief says how much a taste
# counts; of the pooled states' standard deviations this is best for train users of both worlds.
SIMILARITY = {"score": 1.0, "spread": 0.5}


class HierarchicalPPO(SlatePPO):
    """Trains :class:`HierarchicalPolicy`; saves, loads and predicts as any SB3 algorithm.

    The worker is rewarded by r_t, the manager by ``r_t + lambda * Fair(L_t)`` (eq. 4), with
    Fair as in :class:`~dsrm_agents.common.fairness.Fairness`. A slate's reward is the mean of its
    items' responses. Where the worker looks no further than that (``gamma=0``), the choice of an
    item among its group has for advantage the slate's, plus how much better the item was answered
    than the slate's others of the group; the choice of the group has the slate's alone.

    Args:
        policy: ``"HierarchicalPolicy"`` or a subclass.
        env: As for the base class.
        learning_rate: The worker's.
        gamma: The worker's discount; 0, the default, is the immediate engagement of 4.3.2.
        manager_gamma: The manager's discount, a step.
        fairness: Fair of eq. 4: ``"ad"`` or ``"gini"``.
        fairness_coef: lambda of eq. 4.
        fairness_target: If given, lambda is a Lagrange multiplier that holds the mean of Fair at
            least there; ``fairness_coef`` is where it starts.
        multiplier_step: Of the multiplier, a rollout.
        anchor: Weight of the worker's divergence from where it started
            (:meth:`~dsrm_agents.hrl.workers.Worker.drift`); 0 lets it go. The simulator of train
            users was fitted to a log that a platform has chosen, so that its rewards cannot tell
            when a worker that started at a belief begins to lose.
        **kwargs: Of :class:`~dsrm_agents.common.slate_ppo.SlatePPO`.

    Raises:
        ConfigError: As for the base class.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "HierarchicalPolicy": HierarchicalPolicy
    }
    follows_days = True
    policy: HierarchicalPolicy
    rollout_buffer: HierarchicalRolloutBuffer

    def __init__(
        self,
        policy: str | type[HierarchicalPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 8e-4,
        *,
        gamma: float = 0.0,
        manager_gamma: float = 0.99,
        fairness: str = "ad",
        fairness_coef: float = 3.5,
        fairness_target: float | None = None,
        multiplier_step: float = 0.5,
        anchor: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.manager_gamma = manager_gamma
        self.fairness = fairness
        self.fairness_coef = fairness_coef
        self.fairness_target = fairness_target
        self.multiplier_step = multiplier_step
        self.anchor = _checked_anchor(anchor)
        super().__init__(policy, env, learning_rate, gamma=gamma, **kwargs)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of this class alone, for checkpoints to compare."""
        return {
            "manager_gamma": self.manager_gamma,
            "fairness": self.fairness,
            "fairness_coef": self.fairness_coef,
            "fairness_target": self.fairness_target,
            "multiplier_step": self.multiplier_step,
            "anchor": self.anchor,
        }

    @single_precision()
    def _setup_model(self) -> None:
        self.rollout_buffer_class = HierarchicalRolloutBuffer
        reached = getattr(self, "weight", None)  # by a loaded agent
        self.weight = FairnessWeight(self.fairness_coef, self.fairness_target, self.multiplier_step)
        if reached is not None and self.fairness_target is not None:
            self.weight.value = reached.value
        super()._setup_model()
        self.fair = Fairness(self.fairness, self.policy.catalogue, self.policy.groups)
        self.fair.check_target(self.fairness_target)
        # The manager's last draws, and how many steps ago each session's was made.
        self._last_control = torch.zeros(self.n_envs, 2, device=self.device)
        self._age = torch.zeros(self.n_envs, dtype=torch.int64, device=self.device)

    def _take_catalogue(self) -> None:
        """Takes the catalogue from the environment, and what else the worker starts from."""
        super()._take_catalogue()
        groups = self.policy_kwargs.get("groups")  # by default of popularity
        self.rollout_buffer_kwargs = {
            "manager_gamma": self.manager_gamma,
            "n_groups": 2 if groups is None else len(groups),
        }
        if self.env is not None:
            similarity = SIMILARITY[preference_unit(self.env)]
            self.policy_kwargs.setdefault("similarity", similarity)
            if self.policy_kwargs.get("worker") == "band":
                # Of these sessions' rules, which may not be those that the agent was saved under.
                self.policy_kwargs["free_counts"] = self.env.get_attr("free_counts")[0]

    def training_state(self) -> dict[str, Tensor]:
        """State that the next rollout depends on, beside weights, sessions and generators."""
        multiplier = torch.tensor(self.weight.value, dtype=torch.float64)
        return {"held": self._last_control, "age": self._age, "multiplier": multiplier}

    def set_training_state(self, state: dict[str, Tensor]) -> None:
        """Restores what :meth:`training_state` returned."""
        self._last_control, self._age = state["held"].to(self.device), state["age"].to(self.device)
        self.weight.value = float(state["multiplier"])

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Fills the buffer with decisions of both levels.

        SB3's loop has one reward, one value and one discount a step, and a policy that remembers
        nothing; two levels have two of each, and the manager's draw is held between its decisions.

        Returns:
            False if the callback asked to stop.
        """
        assert isinstance(rollout_buffer, HierarchicalRolloutBuffer)
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        dones = np.zeros(env.num_envs, dtype=bool)
        statistics = RolloutStatistics()
        for _ in range(n_rollout_steps):
            assert isinstance(self._last_obs, dict)
            assert self._last_episode_starts is not None
            self._age[torch.as_tensor(self._last_episode_starts, dtype=torch.bool)] = 0
            due = self._age % self.policy.decision_period == 0
            with torch.inference_mode():
                decision = self.policy.decide(self._observed(), self._last_control, due)
            new_obs, rewards, dones, infos = env.step(decision.slates.cpu().numpy())
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            slates, responses = shown_slates(self._last_obs, new_obs, dones, infos)
            groups = self.policy.groups
            popular = shown_popular(self._last_obs, slates, self.policy.catalogue)
            labels = popular.astype(np.int8) if groups.change else groups.labels[slates]
            fair = self.fair(slates, self._last_obs["exposed"], labels)
            bonus = self.weight.value * (fair - (self.fairness_target or 0.0))
            level_rewards = np.stack([rewards + bonus, rewards], axis=1)
            credit = np.zeros_like(responses)
            if self.gamma == 0.0:
                check_mean_response(rewards, responses)
                credit = within_group_credit(responses, labels)
            statistics.add(popular, fair, level_rewards, infos)
            rollout_buffer.add_decision(
                self._last_obs,
                decision,
                due,
                level_rewards + self._value_at_cap(dones, infos),
                choice_credit(credit),
                self._last_episode_starts,
            )
            self._last_control = decision.control
            self._age += 1
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
        with torch.inference_mode():
            last_values = self.policy.level_values(self._observed())
        rollout_buffer.compute_returns_and_advantage(last_values, dones)
        statistics.record(self.logger, self.weight.value)
        self.weight.update(statistics.mean_fair)
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
            stacked = {name: np.stack([obs[name] for obs in last]) for name in last[0]}
            with torch.no_grad():
                values = self.policy.level_values(obs_as_tensor(stacked, self.device))
            bonus[ended] = gammas * values.cpu().numpy()
        return bonus

    def _rollout(self) -> HierarchicalSamples:
        return self.rollout_buffer.samples()

    def _losses(self, batch: HierarchicalSamples, clip: float) -> Losses:
        """PPO's clipped surrogates and value errors, the manager's where it decided."""
        decision = self.policy.evaluate_decision(
            batch.observations, batch.control, batch.slates, batch.bounds, batch.shortlist
        )
        entropy = torch.zeros(())
        if self.ent_coef != 0.0:
            entropy = self.policy.worker_entropy(
                batch.observations, batch.control, batch.shortlist
            ).mean()
        decided = batch.decided / batch.decided.sum().clamp(min=1.0)
        everywhere = torch.full_like(batch.credit, 1.0 / batch.credit.numel())
        manager, manager_kl = clipped_surrogate(
            decision.control_log_prob,
            batch.old_control_log_prob,
            batch.advantages[:, 0],
            decided,
            clip,
        )
        worker, worker_kl = clipped_surrogate(
            decision.choice_log_prob,
            batch.old_choice_log_prob,
            batch.advantages[:, 1:] + batch.credit,
            everywhere,
            clip,
        )
        if self.anchor:
            drift = self.policy.worker_drift(batch.observations, batch.control, batch.slates).mean()
            worker = worker + self.anchor * drift
        error = (decision.values - batch.returns).square()
        values = torch.stack([(error[:, 0] * decided).sum(), error[:, 1].mean()])
        return Losses(
            torch.stack([manager, worker]), values, torch.stack([manager_kl, worker_kl]), entropy
        )

    def _record(self, losses: Losses, batch: HierarchicalSamples) -> None:
        for name, values in zip(("policy_loss", "value_loss", "approx_kl"), losses, strict=False):
            for level, value in zip(LEVELS, values.tolist(), strict=True):
                self.logger.record(f"train/{level}_{name}", value)
        few = take(batch, torch.arange(min(len(batch.control), LOGGED)))
        with torch.no_grad():
            entropy = self.policy.worker_entropy(
                few.observations, few.control, few.shortlist
            ).mean()
        self.logger.record("train/worker_entropy", float(entropy))
        self.logger.record("train/manager_entropy", self.policy.manager_entropy())
        for column, level in enumerate(LEVELS):
            value = self.rollout_buffer.values[..., column].mean()
            self.logger.record(f"rollout/{level}_value", float(value))

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Sets every group's rate to the schedule's, times the group's scale."""
        rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        for group in optimizers.param_groups:
            group["lr"] = rate * self.policy.lr_scales[group["name"]]


def preference_unit(env: VecEnv) -> str:
    """Unit of the observed preference, as the outermost wrapper that changes it says.

    Args:
        env: An environment of ours; a wrapper that puts preferences in another unit has a class
            attribute ``preference_unit``.

    Returns:
        ``"score"`` or ``"spread"``, see ``ObservationEncoder.preference_unit``.
    """
    while isinstance(env, VecEnvWrapper):
        if unit := getattr(type(env), "preference_unit", None):
            return str(unit)
        env = env.venv
    return str(env.get_attr("preference_unit")[0])


def _checked_anchor(anchor: float) -> float:
    if not is_number(anchor) or anchor < 0.0:
        raise ConfigError(
            f"anchor must be a finite number of at least 0, got {anchor!r}: 0 lets the worker go."
        )
    return float(anchor)
