"""SAC4IR: a soft actor-critic over items whose exposure is kept diverse."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from dsrm_agents.baselines.items import ItemNetwork, ItemNetworks, SlatePolicy
from dsrm_agents.baselines.slate_learning import SlateOffPolicyAlgorithm, SlateSamples
from dsrm_agents.common.bounds import MASKED
from dsrm_agents.common.draws import exponential
from dsrm_agents.common.networks import descend
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.precision import single_precision
from kuaisim_gym.simulator.catalogue import Catalogue

# Of the networks that are trained.
ACTOR, CRITICS = slice(0, 1), slice(1, 3)


class SAC4IRPolicy(SlatePolicy):
    """A categorical actor over the unexposed items, and twin critics with their targets.

    Slates are drawn item after item without replacement (Plackett-Luce), or hold the K most
    probable items.

    Args:
        observation_space: That of ``observation_type="dict"``.
        action_space: That of ``action_type="slate"``.
        lr_schedule: Learning rate by remaining progress.
        catalogue: The items.
        hidden: Width of the hidden layers of every network.
        **kwargs: Of SB3's ``BasePolicy``, such as ``optimizer_class``, Adam by default.

    Raises:
        ConfigError: The spaces are others.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        catalogue: Catalogue,
        hidden: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, catalogue, **kwargs)
        self.hidden = hidden
        networks = [ItemNetwork(catalogue, self.state_dim, hidden) for _ in range(3)]
        self.networks = ItemNetworks(networks)
        self.target_critics = ItemNetworks(networks[CRITICS]).requires_grad_(False)
        self.optimizer = self.optimizer_class(
            self.networks.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def logits(self, state: Tensor) -> Tensor:
        """(n, d) states to (n, n_items) logits of the actor, without gradients."""
        return torch.as_tensor(self.networks(state, ACTOR)[0])

    def distribution(self, state: Tensor, exposed: Tensor) -> tuple[Tensor, Tensor]:
        """The policy over items, without gradients.

        Args:
            state: (n, d) float32.
            exposed: (n, room) int64 item positions, -1 padded.

        Returns:
            (n, n_items) float32 probabilities, exactly 0 for exposed items; and their (n,) float32
            entropies in nats.
        """
        logits = hide(self.logits(state), exposed)
        log_probs = logits.log_softmax(dim=1)
        probs = log_probs.exp()
        return probs, -expectation(probs, log_probs)

    def scores(self, state: Tensor, exposed: Tensor, deterministic: bool) -> Tensor:
        """Logits, with Gumbel noise in draws: their K best are then K draws without replacement."""
        logits = self.logits(state)
        if deterministic:
            return logits
        return logits - exponential(logits).log_()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "lr_schedule": self._dummy_schedule,
            "hidden": self.hidden,
        }


class SAC4IR(SlateOffPolicyAlgorithm):
    """Trains :class:`SAC4IRPolicy`; saves, loads and predicts as any SB3 algorithm.

    Soft actor-critic for debiased interactive recommendation, in its form for discrete actions
    (Christodoulou, "Soft Actor-Critic for Discrete Action Settings", arXiv 1910.07207). Actions
    are items, so that the entropy H which is held up is that of exposure:

    * An item k of the slate is worth ``y_k = r_k + gamma (1 - d) V(s')`` with the soft value
      ``V(s) = sum_a pi(a|s) min_j Q'_j(s, a) + alpha H(pi(.|s))`` over the unexposed items; both
      critics learn it by least squares.
    * ``r_k`` is the user's response plus ``novelty_coef * r_pop``, with :func:`rarity` for r_pop.
    * The actor maximises ``sum_a pi(a|s) min_j Q_j(s, a) + alpha H(pi(.|s))``.
    * ``log alpha`` descends ``log alpha * (H - H*)``: alpha falls while there is more entropy than
      ``H* = target_entropy_ratio * log(number of unexposed items)``, and rises while less.

    Deviations:

    * Slates: the method picks one item at a time. Here the K items of a slate are K choices in
      one state, drawn without replacement, each with its own response.
    * r_pop is the popularity rank; the method's form leaves it open.
    * The state is the environment's, without the method's attention over ten item ids; there is no
      reward of co-occurrence with the last items, which the response stands for.
    * The entropy's target excludes items that cannot be shown any more, and is a share below 1:
      with all of ``log |A|`` nothing but uniform exposure meets it.
    * alpha has a learning rate of its own: it has further to go than weights have.

    Args:
        policy: ``"SAC4IRPolicy"`` or a subclass.
        env: As for :class:`~dsrm_agents.baselines.slate_learning.SlateOffPolicyAlgorithm`.
        learning_rate: Of the actor and of the critics.
        ent_coef: alpha; ``"auto"`` learns it from 1, ``"auto_0.1"`` from 0.1.
        ent_coef_lr: Learning rate of log alpha, constant.
        target_entropy_ratio: Target of the entropy, as a share of the largest possible, in (0, 1).
        novelty_coef: Weight of r_pop beside a response of at most 1.
        **kwargs: Of the base class.

    Raises:
        ConfigError: An option is out of range, or the environment has no catalogue or the wrong
            spaces.
        CheckpointError: It shows other items than the agent was built for.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"SAC4IRPolicy": SAC4IRPolicy}
    policy: SAC4IRPolicy

    def __init__(
        self,
        policy: str | type[SAC4IRPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        ent_coef: str | float = "auto_0.1",
        ent_coef_lr: float = 3e-3,
        target_entropy_ratio: float = 0.6,
        novelty_coef: float = 0.4,
        **kwargs: Any,
    ) -> None:
        first_coefficient(ent_coef)
        if not 0 < target_entropy_ratio < 1:
            raise ConfigError(
                "target_entropy_ratio must lie between 0, one item, and 1, all items alike, got "
                f"{target_entropy_ratio}."
            )
        if not (math.isfinite(novelty_coef) and novelty_coef >= 0):
            raise ConfigError(
                f"novelty_coef must be a finite number of at least 0, got {novelty_coef}."
            )
        self.ent_coef = ent_coef
        self.ent_coef_lr = ent_coef_lr
        self.target_entropy_ratio = target_entropy_ratio
        self.novelty_coef = novelty_coef
        self.log_ent_coef: Tensor | None = None
        self.ent_coef_optimizer: torch.optim.Optimizer | None = None
        super().__init__(policy, env, learning_rate, **kwargs)

    @single_precision()
    def _setup_model(self) -> None:
        super()._setup_model()
        self.r_pop = torch.as_tensor(rarity(self.policy.catalogue.exposures), device=self.device)
        start, learned = first_coefficient(self.ent_coef)
        self.alpha = torch.tensor(start, device=self.device)
        if learned:
            self.log_ent_coef = self.alpha.log().requires_grad_(True)
            self.ent_coef_optimizer = torch.optim.Adam(
                [self.log_ent_coef], lr=self.ent_coef_lr, fused=True
            )

    def current_ent_coef(self) -> Tensor:
        """alpha, a scalar."""
        return self.alpha if self.log_ent_coef is None else self.log_ent_coef.detach().exp()

    def target_entropy(self, exposed: Tensor) -> Tensor:
        """H*, (n,) float32 nats, of (n, room) exposed item positions, -1 padded."""
        left = self.policy.catalogue.n_items - (exposed >= 0).sum(dim=1)
        return self.target_entropy_ratio * left.log()

    def targets(self, batch: SlateSamples) -> Tensor:
        """y, (n, K) float32: values of the items of the slates."""
        policy = self.policy
        logits = hide(policy.logits(batch.next_states), batch.next_exposed)
        worst = torch.minimum(*policy.target_critics(batch.next_states))
        soft_value = SoftValue.of(logits, worst, self.current_ent_coef()).value
        rewards = batch.responses + self.novelty_coef * self.r_pop[batch.slates]
        return rewards + self.gamma * (1 - batch.dones) * soft_value[:, None]

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.policy.optimizer]

    def _update(self, batch: SlateSamples) -> dict[str, float]:
        """Descends all losses at once, each where the networks were before.

        The critics' step is small, and asking them again after it is the most expensive part.
        """
        networks, alpha = self.policy.networks, self.current_ent_coef()
        query, level = networks.read(batch.states)
        with torch.no_grad():
            logits, *critics = networks.all(query, level)
            soft = SoftValue.of(hide(logits, batch.exposed), torch.minimum(*critics), alpha)
            error = torch.stack([q.gather(1, batch.slates) for q in critics])
            error -= self.targets(batch)
            of_logits = soft.gradient(alpha, scale=-1.0 / len(logits))
            of_critics = error * (2.0 / error[0].numel())
        self.policy.optimizer.zero_grad()
        networks.backward(query, level, of_logits, of_critics, batch.slates)
        self.policy.optimizer.step()
        excess = (soft.entropy - self.target_entropy(batch.exposed)).mean()
        if self.log_ent_coef is not None and self.ent_coef_optimizer is not None:
            descend(self.ent_coef_optimizer, self.log_ent_coef * excess)
        self._move_targets()
        return {
            "entropy": soft.entropy.mean().item(),
            "excess_entropy": excess.item(),
            "ent_coef": alpha.item(),
            "critic_loss": error.square().mean(dim=(1, 2)).sum().item(),
            "actor_loss": -soft.value.mean().item(),
        }

    def _move_targets(self) -> None:
        """Moves the target critics by tau of the way to the critics."""
        with torch.no_grad():
            online = [weight[CRITICS] for weight in self.policy.networks.parameters()]
            torch._foreach_lerp_(list(self.policy.target_critics.parameters()), online, self.tau)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "r_pop", "alpha"]  # they follow from the rest

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules = ["policy", "policy.optimizer"]
        if self.ent_coef_optimizer is None:
            return modules, []
        return [*modules, "ent_coef_optimizer"], ["log_ent_coef"]


class SoftValue(NamedTuple):
    """``V = sum_a pi_a (q_a - alpha log pi_a)`` of n states, as far as its gradient needs it.

    Passes over items are what an update takes its time for, so that there is none for log pi:
    ``log pi_a = x_a - log sum_b exp x_b`` for logits x.

    Attributes:
        logits: (n, n_items) x.
        q: (n, n_items).
        probs: (n, n_items) pi.
        value: (n,) V.
        entropy: (n,) of pi, in nats.
    """

    logits: Tensor
    q: Tensor
    probs: Tensor
    value: Tensor
    entropy: Tensor

    @classmethod
    def of(cls, logits: Tensor, q: Tensor, alpha: Tensor) -> SoftValue:
        """The values, without gradients, of (n, n_items) logits and q; no logit is infinite."""
        probs = logits.softmax(dim=1)
        log_mass = logits.amax(dim=1) - probs.amax(dim=1).log()
        entropy = log_mass - expectation(probs, logits)
        return cls(logits, q, probs, expectation(probs, q) + alpha * entropy, entropy)

    def gradient(self, alpha: Tensor, scale: float = 1.0) -> Tensor:
        """(n, n_items): of V by the logits, ``pi_a (q_a - alpha log pi_a - V)``, times a scale."""
        mean = expectation(self.probs, self.q) - alpha * expectation(self.probs, self.logits)
        worth = torch.sub(self.q, self.logits, alpha=alpha.item()).sub_(mean[:, None])
        return torch.addcmul(worth.new_zeros(()), worth, self.probs, value=scale)


def hide(logits: Tensor, exposed: Tensor) -> Tensor:
    """Logits, changed in place, that give exposed items a probability of exactly 0.

    They are finite: 0 log 0 = 0, but infinity times zero were NaN.
    """
    rows, slots = (exposed >= 0).nonzero(as_tuple=True)
    logits[rows, exposed[rows, slots]] = MASKED
    return logits


def rarity(exposures: NDArray[np.integer]) -> NDArray[np.float32]:
    """r_pop: unpopularity of items, by rank.

    Args:
        exposures: (n_items,) numbers of times that items were shown.

    Returns:
        (n_items,) float32: 0 for the most exposed item, 1 for the least, evenly between; items
        shown equally often share the mean of their ranks.
    """
    _, inverse, ties = np.unique(exposures, return_inverse=True, return_counts=True)
    rank = (np.cumsum(ties) - (ties + 1) / 2)[inverse]
    return np.asarray(1.0 - rank / max(len(exposures) - 1, 1), dtype=np.float32)


def first_coefficient(ent_coef: str | float) -> tuple[float, bool]:
    """alpha to start with, and whether it is learned.

    Args:
        ent_coef: As for :class:`SAC4IR`.

    Raises:
        ConfigError: It is none of the forms, or no number that alpha can be.
    """
    learned = isinstance(ent_coef, str)
    start = str(ent_coef).removeprefix("auto_") if ent_coef != "auto" else "1"
    try:
        value = float(start)
    except ValueError:
        value = math.nan
    named = not learned or ent_coef == "auto" or str(ent_coef).startswith("auto_")
    if named and math.isfinite(value) and (value > 0 or (value == 0 and not learned)):
        return value, learned
    raise ConfigError(
        'ent_coef must be "auto", "auto_0.1" with any positive number, or a number of at least 0, '
        f"got {ent_coef!r}."
    )


def expectation(probs: Tensor, values: Tensor) -> Tensor:
    """(n,) sums over the second dimension of (n, n_items) probabilities times values."""
    return torch.as_tensor(torch.linalg.vecdot(probs, values))
