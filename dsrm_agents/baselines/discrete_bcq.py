"""Batch-constrained Q-learning over items that are likely enough in the log."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor
from torch.nn import functional as F

from dsrm_agents.baselines.bcq import BatchConstrainedPolicy
from dsrm_agents.baselines.items import ItemNetwork, unexposed
from dsrm_agents.baselines.logged import Decisions, OfflineAlgorithm
from kuaisim_gym.errors import ConfigError

# Rows that an item without rows counts for: no share of the log, but an order among such items.
NEVER = 1e-30


class DiscreteBCQPolicy(BatchConstrainedPolicy):
    """Q and the imitation G of the log, as :class:`DiscreteBCQ` says.

    Args:
        *args: Spaces, as for the base class.
        threshold: tau; from 0, where all items are supported, to 1, where the likeliest alone is.
        hidden: Width of the networks' hidden layers.
        **kwargs: Of the base class, ``catalogue`` among them.

    Raises:
        ConfigError: The spaces are others, or ``threshold`` is out of range.
    """

    online: ItemNetwork
    target: ItemNetwork

    def __init__(
        self, *args: Any, threshold: float = 0.3, hidden: int = 128, **kwargs: Any
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold must lie in [0, 1], got {threshold}.")
        super().__init__(*args, **kwargs)
        self.threshold = threshold
        self.hidden = hidden
        self.imitation = ItemNetwork(self.catalogue, self.state_dim, hidden)
        self._build(ItemNetwork(self.catalogue, self.state_dim, hidden))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        options = {"threshold": self.threshold, "hidden": self.hidden}
        return super()._get_constructor_parameters() | options

    def prior(self) -> Tensor:
        """(n_items,): the logarithm of the items' shares of the log, up to a constant."""
        return self.counts.clamp(min=NEVER).log()

    def supported(self, likelihood: Tensor) -> tuple[Tensor, Tensor]:
        """Mask of the items that are likely enough beside the likeliest, and log G / max G of all.

        Args:
            likelihood: (n, n_items), log G up to a constant a row.
        """
        ratio = likelihood - likelihood.amax(dim=1, keepdim=True)
        least = math.log(self.threshold) if self.threshold else -math.inf
        return ratio >= least, ratio

    def judge(
        self, state: Tensor, exposed: Tensor, deterministic: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Supports likely items; those shown before are no longer possible actions."""
        likelihood = unexposed(self.imitation(state) + self.prior(), exposed)
        return self.online(state), *self.supported(likelihood)


class DiscreteBCQ(OfflineAlgorithm):
    """Discrete BCQ (Fujimoto, Conti, Ghavamzadeh & Pineau, 2019) on the platform's log.

    An imitation G(a | s) of the log says which items may be considered,
    A(s) = {a : G(a | s) / max_a' G(a' | s) >= tau}, and Q is learned by double Q-learning over
    those,

        y = r + gamma Q'(s', argmax_{a in A(s')} Q(s', a)),

    with the Huber loss, together with the cross-entropy of G and beta times its mean squared
    logits. Without the constraint (tau = 0) it is double Q-learning; with tau = 1 it imitates.

    Deviations: G is the items' share of the log times what its network makes of the state, so that
    an item never logged has no probability and the penalty on logits draws G to those shares, not
    to all items alike; A(s) is closed at tau, for tau = 1 to mean something; the target network
    follows by Polyak averaging; a slate holds the K best unexposed items, where the decisions of
    the log are of one item each; at s', any item may follow, since the log repeats items.

    Args:
        policy: ``"DiscreteBCQPolicy"``, or a class like it.
        env: As for :class:`~dsrm_agents.baselines.logged.OfflineAlgorithm`.
        threshold: tau.
        logit_penalty: beta.
        policy_kwargs: For the policy: ``hidden``.
        **kwargs: Of the same class.

    Raises:
        ConfigError: An option is out of range, or the environment has no catalogue or other spaces.
        CheckpointError: It shows other items than the agent was built for.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"DiscreteBCQPolicy": DiscreteBCQPolicy}
    policy: DiscreteBCQPolicy

    def __init__(
        self,
        policy: str | type[DiscreteBCQPolicy],
        env: GymEnv | str | None,
        threshold: float = 0.3,
        logit_penalty: float = 0.01,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.logit_penalty = logit_penalty
        policy_kwargs = {"threshold": threshold} | (policy_kwargs or {})
        super().__init__(policy, env, policy_kwargs=policy_kwargs, **kwargs)

    @torch.no_grad()
    def targets(self, decisions: Decisions) -> Tensor:
        """y, (n,)."""
        policy, following = self.policy, decisions.next_states
        supported, _ = policy.supported(policy.imitation(following) + policy.prior())
        best = policy.online(following).masked_fill_(~supported, -torch.inf).argmax(dim=1)
        value = policy.target.of(following, best[:, None]).squeeze(1)
        return decisions.rewards + self.gamma * decisions.lasting * value

    def losses(self, decisions: Decisions) -> dict[str, Tensor]:
        policy, items = self.policy, decisions.items
        value = policy.online.of(decisions.states, items[:, None]).squeeze(1)
        logits = policy.imitation(decisions.states)
        return {
            "value": F.smooth_l1_loss(value, self.targets(decisions)),
            "imitation": F.cross_entropy(logits + policy.prior(), items),
            "logit": self.logit_penalty * logits.square().mean(),
        }
