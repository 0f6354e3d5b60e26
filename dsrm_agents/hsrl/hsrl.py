"""PPO with a credit for every token (HSRL, 4.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.ppo import PPO
from torch import Tensor

from dsrm_agents.common.catalogue import CatalogueAlgorithm
from dsrm_agents.common.responses import check_mean_response, shown_slates
from dsrm_agents.common.surrogate import clipped_surrogate
from dsrm_agents.hsrl.policies import Evaluation, HSRLPolicy
from kuaisim_gym.config import check_choice, check_whole

# PPO's other options (target_kl, clip_range_vf, ...) are not for tokens.
PASSED_ON = ("stats_window_size", "tensorboard_log", "verbose", "seed", "device")
CHUNK = 1024  # rows at once, where no gradient is needed


class HSRL(CatalogueAlgorithm, PPO):
    """Trains :class:`HSRLPolicy`; saves, loads and predicts as any SB3 algorithm.

    A slate's reward is the mean of its items' responses. A drawn item is credited with the slate's
    return and how much better than that mean it was answered, and each of its tokens with what that
    is above the critic's value of what was known before the token: a coarse token with all that it
    led to, a fine one with what it added. A choice of the popularity group has the slate's return
    alone, because bounds make one popular item more one fewer later.

    Deviations from the released code: on-policy, so that no importance ratio is missing; bootstraps
    where a session goes on, not where it ended (SB3's GAE); and the critic's values are a token's
    baseline, where they are averaged there into one for the slate
    (``token_credit=False`` does that).

    Args:
        policy: ``"HSRLPolicy"`` or a subclass.
        env: An environment with ``observation_type="dict"`` and ``action_type="slate"``, such as
            :func:`dsrm_agents.make_vec_env` makes, purified or not.
        learning_rate: Of all networks.
        n_steps: Steps a session slot makes per rollout.
        batch_size: Minibatch size.
        n_epochs: Passes over a rollout.
        gamma: Discount.
        gae_lambda: GAE's lambda over steps.
        clip_range: PPO's clip, for every token.
        ent_coef: Entropy bonus, of one draw.
        vf_coef: Weight of the value losses.
        max_grad_norm: Clip of the gradient's norm.
        token_credit: Whether tokens have baselines of their own.
        policy_kwargs: For the policy; ``catalogue`` is taken from the environment.
        **kwargs: Passed on to PPO, see ``PASSED_ON``.

    Raises:
        ConfigError: The environment has no catalogue or the wrong spaces, or an option is unknown;
            when learning, its reward is not the mean response of the slate.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"HSRLPolicy": HSRLPolicy}
    policy: HSRLPolicy

    def __init__(
        self,
        policy: str | type[HSRLPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1.3e-3,
        n_steps: int = 32,
        batch_size: int = 256,
        n_epochs: int = 1,
        gamma: float = 0.9,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.3,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        token_credit: bool = True,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        for option in kwargs:
            check_choice("An option of HSRL", option, PASSED_ON)
        self.token_credit = token_credit
        check_whole("n_epochs", n_epochs, 1)
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
            _init_setup_model=_init_setup_model,
            **kwargs,
        )

    def _setup_model(self) -> None:
        self._take_catalogue()
        super()._setup_model()
        self.policy_kwargs["codebook"] = self.policy.codebook  # saved, rather than fitted again
        self._rng = np.random.default_rng(self.seed)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        self._answers = _Answers()
        self._answers.init_callback(self)
        both = CallbackList([self._answers, super()._init_callback(callback, progress_bar)])
        both.model = self  # its parts know already
        return both

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_answers"]

    def train(self) -> None:
        """One PPO update on the rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip = float(self.clip_range(self._current_progress_remaining))  # type: ignore[operator]
        rollout = self._rollout()
        history: list[Tensor] = []
        for _ in range(self.n_epochs):
            order = self._rng.permutation(len(rollout["returns"]))
            for batch in _batches(rollout, order, self.batch_size):
                losses = self._losses(batch, clip)
                self.policy.optimizer.zero_grad()
                (losses[0] + self.vf_coef * losses[1] - self.ent_coef * losses[2]).backward()
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
                history.append(torch.stack(losses).detach())
            self._n_updates += 1
        names = ("policy_loss", "value_loss", "entropy", "approx_kl")
        for name, value in zip(names, torch.stack(history).mean(0).tolist(), strict=True):
            self.logger.record(f"train/{name}", value)
        for level, weight in enumerate(self.policy.critic.omega.detach().softmax(0).tolist()):
            self.logger.record(f"train/critic_weight_{level}", weight)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _rollout(self) -> dict[str, Any]:
        """The rollout's steps as tensors, with the log-probabilities of their tokens."""
        buffer = self.rollout_buffer
        rows = buffer.buffer_size * buffer.n_envs

        def flat(array: NDArray[Any]) -> Tensor:
            return torch.as_tensor(array.reshape(rows, *array.shape[2:]), device=self.device)

        responses = flat(np.stack(self._answers.responses))
        assert isinstance(buffer.observations, dict)
        rollout = {
            "observations": {name: flat(part) for name, part in buffer.observations.items()},
            "slates": flat(buffer.actions).long(),
            "returns": flat(buffer.returns),
            "credit": responses - responses.mean(dim=1, keepdim=True),
        }
        with torch.no_grad():
            # The policy is still the one that drew them.
            old = [
                self._evaluate(batch).paths.log_prob
                for batch in _batches(rollout, np.arange(rows), CHUNK)
            ]
        return {**rollout, "old_log_prob": torch.cat(old)}

    def _evaluate(self, batch: dict[str, Any]) -> Evaluation:
        return self.policy.evaluate_slates(batch["observations"], batch["slates"])

    def _losses(self, batch: dict[str, Any], clip: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """PPO's clipped surrogate, the value error, the entropy and the approximate divergence."""
        now = self._evaluate(batch)
        slate, own = batch["returns"][:, None], batch["returns"][:, None] + batch["credit"]
        log_prob = now.paths.log_prob
        target = own[:, :, None].expand_as(log_prob)
        if self.policy.fairness is not None:
            group = slate.expand_as(own)[:, :, None]
            target = torch.cat([group, target[:, :, 1:]], dim=2)
        value_loss = (now.values - slate).square().mean()
        if self.token_credit:
            baseline = now.token_values
            value_loss = value_loss + (baseline - own[:, :, None]).square().mean()
        else:
            baseline = now.values[:, :, None]
        policy_loss, divergence = clipped_surrogate(
            log_prob,
            batch["old_log_prob"],
            target - baseline.detach(),
            torch.full_like(log_prob, 1.0 / log_prob.numel()),
            clip,
        )
        return policy_loss, value_loss, now.paths.entropy.sum(dim=2).mean(), divergence


class _Answers(BaseCallback):
    """Keeps what every slate of the current rollout was answered: (N, K) a step."""

    def __init__(self) -> None:
        super().__init__()
        self.responses: list[NDArray[np.float32]] = []

    def _on_rollout_start(self) -> None:
        self.responses = []

    def _on_step(self) -> bool:
        step = self.locals
        before = self.model._last_obs
        assert isinstance(before, dict)
        _, responses = shown_slates(before, step["new_obs"], step["dones"], step["infos"])
        check_mean_response(step["rewards"], responses)
        self.responses.append(responses)
        return True


def _batches(
    rollout: dict[str, Any], order: NDArray[np.int64], size: int
) -> Iterator[dict[str, Any]]:
    """The rollout's rows in an order, so many at a time."""
    for start in range(0, len(order), size):
        rows = torch.as_tensor(order[start : start + size])
        yield {
            name: {key: one[rows] for key, one in part.items()}
            if isinstance(part, dict)
            else part[rows]
            for name, part in rollout.items()
        }
