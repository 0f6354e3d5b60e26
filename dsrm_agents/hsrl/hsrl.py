"""PPO with a credit for every token (HSRL, 4.3)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from torch import Tensor

from dsrm_agents.common.responses import check_mean_response, shown_slates
from dsrm_agents.common.slate_ppo import Losses, SlatePPO, clipped_surrogate, take
from dsrm_agents.hsrl.policies import Evaluation, HSRLPolicy
from kuaisim_gym.precision import single_precision

CHUNK = 1024  # rows at once, where no gradient is needed


class TokenSamples(NamedTuple):
    """Steps of a rollout.

    Attributes:
        observations: Dict of tensors, B rows each.
        slates: (B, K) int64 item positions.
        credit: (B, K) float32, the responses to the items less their mean.
        old_log_prob: (B, K, D) float32, of the tokens; empty before they are evaluated.
        returns: (B,) float32, of the slates.
    """

    observations: dict[str, Tensor]
    slates: Tensor
    credit: Tensor
    old_log_prob: Tensor
    returns: Tensor


class HSRL(SlatePPO):
    """Trains :class:`HSRLPolicy`; saves, loads and predicts as any SB3 algorithm.

    A slate's reward is the mean of its items' responses. A drawn item is credited with the slate's
    return plus its response above that mean, and each of its tokens with the excess of that over
    the critic's value of the context before the token: a coarse token with everything that it led
    to, a fine token with its addition. A choice of the popularity group has the slate's return
    alone, because bounds make one popular item more one fewer later.

    Deviations from the released code: on-policy, so that no importance ratio is missing; bootstraps
    where a session goes on, not where it ended (SB3's GAE); and the critic's values are a token's
    baseline, where they are averaged there into one for the slate
    (``token_credit=False`` does that).

    Args:
        policy: ``"HSRLPolicy"`` or a subclass.
        env: As for the base class.
        learning_rate: Of all networks.
        token_credit: Whether each token has a baseline.
        **kwargs: Of :class:`~dsrm_agents.common.slate_ppo.SlatePPO`.

    Raises:
        ConfigError: As for the base class.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"HSRLPolicy": HSRLPolicy}
    follows_days = True
    policy: HSRLPolicy

    def __init__(
        self,
        policy: str | type[HSRLPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1.3e-3,
        *,
        token_credit: bool = True,
        **kwargs: Any,
    ) -> None:
        self.token_credit = token_credit
        super().__init__(policy, env, learning_rate, **kwargs)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of this class alone, for checkpoints to compare."""
        return {"token_credit": self.token_credit}

    @single_precision()
    def _setup_model(self) -> None:
        super()._setup_model()
        self.policy_kwargs["codebook"] = self.policy.codebook  # saved, rather than fitted again

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        self._responses = _Responses()
        self._responses.init_callback(self)
        callbacks = CallbackList([self._responses, super()._init_callback(callback, progress_bar)])
        callbacks.model = self  # its members know already
        return callbacks

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_responses"]

    def _rollout(self) -> TokenSamples:
        buffer = self.rollout_buffer

        def flat(array: NDArray[Any]) -> Tensor:
            rows = buffer.buffer_size * buffer.n_envs
            return torch.as_tensor(array.reshape(rows, *array.shape[2:]), device=self.device)

        responses = flat(np.stack(self._responses.slates))
        assert isinstance(buffer.observations, dict)
        rollout = TokenSamples(
            observations={name: flat(array) for name, array in buffer.observations.items()},
            slates=flat(buffer.actions).long(),
            credit=responses - responses.mean(dim=1, keepdim=True),
            old_log_prob=torch.empty(len(responses), 0),
            returns=flat(buffer.returns),
        )
        with torch.no_grad():
            # The policy is still the one that drew them.
            chunks = torch.arange(len(responses)).split(CHUNK)
            log_prob = [self._evaluate(take(rollout, rows)).paths.log_prob for rows in chunks]
        return rollout._replace(old_log_prob=torch.cat(log_prob))

    def _evaluate(self, batch: TokenSamples) -> Evaluation:
        return self.policy.evaluate_slates(batch.observations, batch.slates)

    def _losses(self, batch: TokenSamples, clip: float) -> Losses:
        """PPO's clipped surrogate over tokens, value error, divergence and entropy of a draw."""
        present = self._evaluate(batch)
        slate = batch.returns[:, None]
        item = slate + batch.credit
        log_prob = present.paths.log_prob
        target = item[:, :, None].expand_as(log_prob)
        if self.policy.fairness is not None:
            group = slate.expand_as(item)[:, :, None]
            target = torch.cat([group, target[:, :, 1:]], dim=2)
        value_loss = (present.values - slate).square().mean()
        if self.token_credit:
            baseline = present.token_values
            value_loss = value_loss + (baseline - item[:, :, None]).square().mean()
        else:
            baseline = present.values[:, :, None]
        policy_loss, divergence = clipped_surrogate(
            log_prob,
            batch.old_log_prob,
            target - baseline.detach(),
            torch.full_like(log_prob, 1.0 / log_prob.numel()),
            clip,
        )
        entropy = present.paths.entropy.sum(dim=2).mean()
        return Losses(policy_loss[None], value_loss[None], divergence[None], entropy)

    def _record(self, losses: Losses, batch: TokenSamples) -> None:
        names = ("policy_loss", "value_loss", "approx_kl", "entropy")
        for name, value in zip(names, losses, strict=True):
            self.logger.record(f"train/{name}", float(value))
        for level, weight in enumerate(self.policy.critic.omega.detach().softmax(0).tolist()):
            self.logger.record(f"train/critic_weight_{level}", weight)


class _Responses(BaseCallback):
    """Keeps the (N, K) responses to the slates of every step of the current rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.slates: list[NDArray[np.float32]] = []

    def _on_rollout_start(self) -> None:
        self.slates = []

    def _on_step(self) -> bool:
        step = self.locals
        before = self.model._last_obs
        assert isinstance(before, dict)
        _, responses = shown_slates(before, step["new_obs"], step["dones"], step["infos"])
        check_mean_response(step["rewards"], responses)
        self.slates.append(responses)
        return True
