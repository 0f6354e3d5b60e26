"""PPO on two levels: one rollout, two rewards, two advantages, separate gradients (4.4)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.ppo import PPO
from torch import Tensor

from dsrm_agents.common.fairness import Fairness, FairnessWeight
from dsrm_agents.hrl.buffers import HierarchicalRolloutBuffer, HierarchicalSamples
from dsrm_agents.hrl.policies import HierarchicalPolicy, check_spaces
from kuaisim_gym.errors import CheckpointError, ConfigError, unknown_option
from kuaisim_gym.simulator.catalogue import Catalogue

# PPO's other options (target_kl, clip_range_vf, ...) have no meaning for two levels.
PASSED_ON = ("stats_window_size", "tensorboard_log", "verbose", "seed", "device")


class HierarchicalPPO(PPO):
    """Trains :class:`HierarchicalPolicy`; saves, loads and predicts as any SB3 algorithm.

    The worker is rewarded by r_t, the manager by ``r_t + lambda * Fair(L_t)`` (eq. 4), with
    Fair as in :class:`~dsrm_agents.common.fairness.Fairness`. A slate's reward is the mean of its
    items' responses, so each draw is credited with its own response instead of the mean: the
    same expected gradient, but for the little that a draw takes from the later ones, with a
    fraction of the noise.

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
        clip_range: PPO's clip, both levels; of the worker for every draw.
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
            if option not in PASSED_ON:
                raise unknown_option("An option of HierarchicalPPO", option, PASSED_ON)
        self.manager_gamma = manager_gamma
        self.fairness = fairness
        self.fairness_coef = fairness_coef
        self.fairness_target = fairness_target
        self.multiplier_step = multiplier_step
        self.weight = FairnessWeight(fairness_coef, fairness_target, multiplier_step)
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

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Changes the environment.

        Raises:
            CheckpointError: It shows other items than the policy was built for.
        """
        before = self.env
        super().set_env(env, force_reset)
        try:
            self._take_catalogue()
        except CheckpointError:
            self.env = before
            raise

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
        worker = self.policy_kwargs.get("worker", "constrained")
        check_spaces(self.observation_space, self.action_space, worker)
        n_draws = int(np.prod(self.action_space.shape or ()))
        self.rollout_buffer_kwargs = {"manager_gamma": self.manager_gamma, "n_draws": n_draws}
        self.fair = Fairness(self.fairness, self.policy_kwargs["catalogue"])
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
            new_obs, reward, dones, infos = env.step(decision.actions.cpu().numpy())
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            slates, responses = _shown(self._last_obs, new_obs, reward, dones, infos)
            fair = self.fair(slates, self._last_obs["exposed"])
            rewards = np.stack([reward + self.weight.value * fair, reward], axis=1)
            credit = np.zeros_like(rewards[:, :1])
            if self.policy.draws_items:
                credit = responses - reward[:, None]
            steps.add(self.policy.catalogue.popular[slates], fair, rewards, infos)
            rollout_buffer.add_decision(
                self._last_obs,
                decision,
                due.cpu().numpy(),
                rewards + self._value_at_cap(dones, infos),
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


class Losses(NamedTuple):
    """Of a minibatch; columns of two are [manager, worker].

    Attributes:
        policy: (2,) negative clipped surrogates.
        value: (2,) squared errors.
        kl: (2,) approximate divergences from the policy that acted.
        entropy: () of the worker, 0 where it earns no bonus.
    """

    policy: Tensor
    value: Tensor
    kl: Tensor
    entropy: Tensor

    def total(self, vf_coef: float, ent_coef: float) -> Tensor:
        """() what is minimised; no term has gradients in two levels."""
        return self.policy.sum() + vf_coef * self.value.sum() - ent_coef * self.entropy

    def detached(self) -> Tensor:
        """(6,) all but the entropy."""
        return torch.cat([self.policy, self.value, self.kl]).detach()


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


class Steps:
    """What a rollout's steps were like, for the logger."""

    def __init__(self) -> None:
        self._rows: list[list[float]] = []
        self._q: list[float] = []

    def add(
        self,
        popular: NDArray[np.bool_],
        fair: NDArray[np.float32],
        rewards: NDArray[np.float32],
        infos: list[dict[str, Any]],
    ) -> None:
        """Adds one step of all sessions."""
        self._rows.append([popular.mean(), fair.mean(), *rewards.mean(axis=0)])
        self._q += [info["session"]["q"] for info in infos if "session" in info]

    @property
    def mean_fair(self) -> float:
        """Mean of Fair."""
        return float(np.mean(self._rows, axis=0)[1])

    def record(self, logger: Logger, weight: float) -> None:
        """Writes the means; ``weight`` is lambda."""
        names = ("popular_share", "fairness", "manager_reward", "worker_reward")
        for name, value in zip(names, np.mean(self._rows, axis=0), strict=True):
            logger.record(f"rollout/{name}", float(value))
        logger.record("rollout/multiplier", weight)
        if self._q:
            logger.record("rollout/q", float(np.mean(self._q)))


def _shown(
    before: dict[str, NDArray[Any]],
    after: Any,
    rewards: NDArray[np.float32],
    dones: NDArray[np.bool_],
    infos: list[dict[str, Any]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What the last step showed, (N, K) items and (N, K) responses, from the observations.

    Raises:
        ConfigError: The (N,) rewards are not the slates' mean responses.
    """
    exposed, responses = after["exposed"].copy(), after["responses"].copy()
    for slot in np.flatnonzero(dones):
        last = infos[slot]["terminal_observation"]
        exposed[slot], responses[slot] = last["exposed"], last["responses"]
    start = (before["exposed"] >= 0).sum(axis=1)
    size = int((exposed[0] >= 0).sum() - start[0])
    places = start[:, None] + np.arange(size)
    rows = np.arange(len(places))[:, None]
    slates, answers = exposed[rows, places].astype(np.int64), responses[rows, places]
    if size < 1 or not np.allclose(answers.mean(axis=1), rewards, atol=1e-4):
        raise ConfigError(
            "HierarchicalPPO needs a reward that is the mean response of the slate, and episodes "
            "that are one session, to credit items with their own responses. The rewards of this "
            "environment differ, as those of KuaiRand-Retention-v0 do, or were changed on the way."
        )
    return slates, answers
