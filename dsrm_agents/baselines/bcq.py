"""Batch-constrained Q-learning: offline learning within the support of a log."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor, nn
from torch.nn import functional as F

from dsrm_agents.baselines.items import unexposed
from dsrm_agents.baselines.logged import Decisions, OfflineAlgorithm, OfflinePolicy
from dsrm_agents.common.networks import mlp
from kuaisim_gym.config import check_whole
from kuaisim_gym.errors import ConfigError

CLIP = 0.5  # of the latent draws that actions are generated from
AHEAD = 10  # actions generated for a target
AT_ONCE = 4  # sessions whose items are compared with generated actions: what caches hold


class BatchConstrainedPolicy(OfflinePolicy):
    """Shows the items of the highest value among those that the log supports.

    Where fewer than K supported items are left, the likeliest of the others follow them, so that
    a slate never goes further from the data than it must.
    """

    @abstractmethod
    def judge(
        self, state: Tensor, exposed: Tensor, deterministic: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values, support and likelihoods of all items.

        Args:
            state: (n, d) float32.
            exposed: (n, room) int64 item positions, -1 padded.
            deterministic: Whether to leave out what is drawn.

        Returns:
            (n, n_items) each: values float32, of the supported items at least; whether an item is
            supported, at least one a row; and a likelihood, float32, negative if unsupported.
        """

    def scores(self, state: Tensor, exposed: Tensor, deterministic: bool) -> Tensor:
        """Values of supported items and, below all of them, likelihoods of the others."""
        value, supported, likelihood = self.judge(state, exposed, deterministic)
        least = value.masked_fill(~supported, torch.inf).amin(dim=1, keepdim=True)
        return torch.where(supported, value, least + likelihood)


class ActionVAE(nn.Module):
    """The conditional variational auto-encoder of logged actions.

    Args:
        state_dim: d.
        action_dim: D; the latent space has twice as many dimensions.
        hidden: Width of the two hidden layers of encoder and decoder.
    """

    def __init__(self, state_dim: int, action_dim: int, hidden: int) -> None:
        super().__init__()
        self.latent_dim = 2 * action_dim
        self.encoder = mlp(state_dim + action_dim, [hidden] * 2, 2 * self.latent_dim)
        self.decoder = mlp(state_dim + self.latent_dim, [hidden] * 2, action_dim)

    def forward(self, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The actions as reconstructed, (n, D), and the mean Kullback-Leibler divergence, ()."""
        mean, log_std = self.encoder(torch.cat([state, action], dim=1)).chunk(2, dim=1)
        log_std = log_std.clamp(-4, 15)
        latent = mean + log_std.exp() * noise
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std
        return self.decode(state, latent), divergence.mean()

    def decode(self, state: Tensor, latent: Tensor) -> Tensor:
        """(..., d) states and (..., 2 D) latent vectors to (..., D) actions."""
        action: Tensor = self.decoder(torch.cat([state, latent], dim=-1))
        return action


class TwinCritic(nn.Module):
    """Two critics of an action and a perturbation of it: the networks that have targets.

    Args:
        state_dim: d.
        action_dim: D.
        hidden: Width of the two hidden layers of each.
    """

    def __init__(self, state_dim: int, action_dim: int, hidden: int) -> None:
        super().__init__()
        width = state_dim + action_dim
        self.critics = nn.ModuleList([mlp(width, [hidden] * 2, 1) for _ in range(2)])
        self.perturbation = mlp(width, [hidden] * 2, action_dim)

    def values(self, state: Tensor, action: Tensor) -> Tensor:
        """(2, ...): Q_1 and Q_2 of (..., d) states and (..., D) actions."""
        pairs = torch.cat([state, action], dim=-1)
        return torch.stack([critic(pairs)[..., 0] for critic in self.critics])

    def perturbed(self, state: Tensor, action: Tensor, phi: float) -> Tensor:
        """(..., D): actions moved by up to phi a coordinate."""
        shift = self.perturbation(torch.cat([state, action], dim=-1)).tanh()
        return _at_length(action + phi * shift)


class BCQPolicy(BatchConstrainedPolicy):
    """Generates actions and values the items nearest to them, as :class:`BCQ` says.

    Args:
        *args: Spaces, as for the base class.
        n_candidates: n, actions generated for a state.
        phi: How far a coordinate may be perturbed.
        hidden: Width of the networks' hidden layers.
        **kwargs: Of the base class, ``catalogue`` among them.

    Attributes:
        vectors: (n_items, D) float32, the items as actions.

    Raises:
        ConfigError: The spaces are others, or ``n_candidates`` is not positive.
    """

    vectors: Tensor
    latents: Tensor
    online: TwinCritic
    target: TwinCritic

    def __init__(
        self,
        *args: Any,
        n_candidates: int = 100,
        phi: float = 0.05,
        hidden: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.hidden = hidden
        vectors = _at_length(torch.tensor(self.catalogue.known))
        self.register_buffer("vectors", vectors, persistent=False)
        self.phi = phi
        self.vae = ActionVAE(self.state_dim, vectors.shape[1], hidden)
        self._build(TwinCritic(self.state_dim, vectors.shape[1], hidden))
        n = check_whole("n_candidates", n_candidates, 1)
        # The same draws for all states: what is shown depends on nothing but the state.
        self.register_buffer("latents", torch.randn(n, self.vae.latent_dim).clamp(-CLIP, CLIP))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        options = {"n_candidates": len(self.latents), "phi": self.phi, "hidden": self.hidden}
        return super()._get_constructor_parameters() | options

    def generate(self, networks: TwinCritic, state: Tensor, latents: Tensor) -> Tensor:
        """(n, m, D): m perturbed actions for each of (n, d) states, of (n or 1, m, 2 D) latents.

        Gradients reach the perturbation alone.
        """
        shape = (len(state), latents.shape[1], -1)
        state = state[:, None].expand(shape)
        with torch.no_grad():
            actions = _at_length(self.vae.decode(state, latents.expand(shape)))
        return networks.perturbed(state, actions, self.phi)

    def likeness(self, actions: Tensor) -> Tensor:
        """(..., n_items) likeness of items to generated (..., D) actions, always negative.

        It is the cosine less 2; items that were never logged are below all logged items.
        """
        squared_length = self.vectors.shape[1]  # of actions and items alike
        less = -2.0 - 3.0 * (self.counts == 0)
        return F.linear(actions, self.vectors / squared_length, less)

    def judge(
        self, state: Tensor, exposed: Tensor, deterministic: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Supports the unexposed items that are nearest to generated actions."""
        latents = self.latents
        if not deterministic:
            latents = torch.randn_like(latents).clamp(-CLIP, CLIP)
        chunks = zip(state.split(AT_ONCE), exposed.split(AT_ONCE), strict=True)
        judged = [self._judge(latents, *chunk) for chunk in chunks]
        value, supported, likelihood = map(torch.cat, zip(*judged, strict=True))
        return value, supported, likelihood

    def _judge(
        self, latents: Tensor, state: Tensor, exposed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`judge`, for a few sessions."""
        likeness = self.likeness(self.generate(self.online, state, latents[None]))
        n, m, n_items = likeness.shape
        likeness += unexposed(torch.zeros(n, n_items, device=state.device), exposed)[:, None]
        nearest = likeness.argmax(dim=2)
        states = state[:, None].expand(n, m, -1)
        value, _ = self.online.values(states, self.vectors[nearest])
        values = torch.zeros(n, n_items, device=state.device).scatter_(1, nearest, value)
        supported = torch.zeros_like(values, dtype=torch.bool).scatter_(1, nearest, True)
        return values, supported, likeness.amax(dim=1)


class BCQ(OfflineAlgorithm):
    """BCQ (Fujimoto, Meger & Precup, ICML 2019) on the platform's log, an action being a vector.

    A conditional variational auto-encoder (E, D) of the logged actions generates candidates,
    a_i = D(s, z_i) with z_i from a normal distribution clipped to +-0.5, which a network xi moves
    by up to Phi a coordinate; the policy takes the best of them by Q_1. The critics' target is

        y = r + gamma max_i [lambda min_j Q'_j(s', a_i) + (1 - lambda) max_j Q'_j(s', a_i)],

    xi ascends Q_1(s, a + xi(s, a)) at generated a, and the auto-encoder descends the squared
    error plus half the Kullback-Leibler divergence, both as means.

    An action is an item's [embedding | log popularity], brought to length sqrt(D) so that a
    coordinate is about one in size and no item is near to everything. In slates a generated action
    stands for the logged item nearest to it, and the critic values that item, which is shown. A
    slate holds the K best of the items that stand for n candidates; where they are fewer than K,
    the items next nearest to a candidate follow, as further draws would have found them.

    Deviations beside these: the candidates' latent draws are the same for all states unless
    ``deterministic`` is false; decoded actions are brought back to the items' length, where the
    paper bounds them; all networks are updated at once, so xi by the critic before its update; the
    hidden layers are narrower than the paper's.

    Args:
        policy: ``"BCQPolicy"``, or a class like it.
        env: As for :class:`~dsrm_agents.baselines.logged.OfflineAlgorithm`.
        minimum_weight: lambda.
        divergence_weight: Of the Kullback-Leibler divergence.
        policy_kwargs: For the policy: ``n_candidates``, ``phi``, ``hidden``.
        **kwargs: Of the same class.

    Raises:
        ConfigError: An option is out of range, or the environment has no catalogue or other spaces.
        CheckpointError: It shows other items than the agent was built for.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"BCQPolicy": BCQPolicy}
    policy: BCQPolicy

    def __init__(
        self,
        policy: str | type[BCQPolicy],
        env: GymEnv | str | None,
        minimum_weight: float = 0.75,
        divergence_weight: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if not 0 <= minimum_weight <= 1:
            raise ConfigError(f"minimum_weight must lie in [0, 1], got {minimum_weight}.")
        self.minimum_weight = minimum_weight
        self.divergence_weight = divergence_weight
        super().__init__(policy, env, **kwargs)

    @torch.no_grad()
    def targets(self, decisions: Decisions) -> Tensor:
        """y, (n,)."""
        policy, following = self.policy, decisions.next_states
        actions = policy.generate(policy.target, following, self._latents(len(following), AHEAD))
        states = following[:, None].expand(-1, AHEAD, -1)
        values = policy.target.values(states, actions)
        low, high = values.amin(dim=0), values.amax(dim=0)
        value = (self.minimum_weight * low + (1 - self.minimum_weight) * high).amax(dim=1)
        return decisions.rewards + self.gamma * decisions.lasting * value

    def losses(self, decisions: Decisions) -> dict[str, Tensor]:
        policy, states = self.policy, decisions.states
        actions = policy.vectors[decisions.items]
        noise = self._normal(len(states), policy.vae.latent_dim)
        reconstructed, divergence = policy.vae(states, actions, noise)
        values = policy.online.values(states, actions)
        return {
            "value": 2 * F.mse_loss(values, self.targets(decisions).expand_as(values)),
            "reconstruction": F.mse_loss(reconstructed, actions),
            "divergence": self.divergence_weight * divergence,
            "perturbation": -self._perturbed_value(states).mean(),
        }

    def _perturbed_value(self, states: Tensor) -> Tensor:
        """Q_1, (n,), of perturbed generated actions; it moves the perturbation alone."""
        policy = self.policy
        moved = policy.generate(policy.online, states, self._latents(len(states), 1))[:, 0]
        critic = policy.online.critics[0]
        fixed = {name: weight.detach() for name, weight in critic.named_parameters()}
        pairs = torch.cat([states, moved], dim=1)
        value: Tensor = torch.func.functional_call(critic, fixed, (pairs,))
        return value.squeeze(1)

    def _latents(self, n: int, m: int) -> Tensor:
        """(n, m, 2 D) clipped normal draws."""
        return self._normal(n, m, self.policy.vae.latent_dim).clamp_(-CLIP, CLIP)

    def _normal(self, *shape: int) -> Tensor:
        draws = self._rng.standard_normal(shape, dtype=np.float32)
        return torch.as_tensor(draws, device=self.device)


def _at_length(vectors: Tensor) -> Tensor:
    """(..., D) vectors of length sqrt(D), so that a coordinate is one in the quadratic mean."""
    return F.normalize(vectors, dim=-1) * math.sqrt(vectors.shape[-1])
