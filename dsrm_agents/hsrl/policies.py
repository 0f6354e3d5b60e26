"""HSRL as a Stable-Baselines3 policy: slates over semantic ids, and a multi-level critic."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from dsrm_agents.common.bounds import FeasibleCounts, SlateBounds
from dsrm_agents.common.catalogue import (
    check_item_numbers,
    flags_of,
    groups_of,
    state_and_exposed,
    state_and_unavailable,
)
from dsrm_agents.common.copies import copies_today, other_copies
from dsrm_agents.common.policies import SlateActorCritic
from dsrm_agents.hsrl.codebook import Codebook
from dsrm_agents.hsrl.network import CONTEXTS, MultiLevelCritic, TokenNetwork
from dsrm_agents.hsrl.slates import Paths, SemanticSlates
from dsrm_agents.hsrl.trie import Shown, Trie
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.groups import Groups

# Of the prior, in units of an item effect's spread: the hierarchical worker's start.
SHARPNESS = 4.0


class Evaluation(NamedTuple):
    """Probabilities and values of past slates.

    Attributes:
        paths: Tokens of the slates.
        values: (N, 1) float32, of the states.
        token_values: (N, K, D) float32, of the context before each token.
    """

    paths: Paths
    values: Tensor
    token_values: Tensor


class HSRLPolicy(SlateActorCritic):
    """Draws slates token by token (HPN) and values the context before every token (MLC).

    For SB3's PPO and A2C as they are, with ``policy_kwargs={"catalogue": env.catalogue, "codebook":
    codebook}``, and for :class:`~dsrm_agents.hsrl.hsrl.HSRL`, which has a credit for every token.
    Items that a session has shown are not shown again, even if the environment allows it.

    Deviations from the released code: the state is the environment's in place of a transformer's
    over the history (wrap the environment for another); items start at a prior, because 20,000
    sessions are few; and a slate's probability is that of drawing its items, not of the tokens.

    Args:
        observation_space: Dict with ``"state"`` and ``"exposed"``.
        action_space: MultiDiscrete, one item position a slot.
        lr_schedule: Learning rate.
        catalogue: The items, as the environment's ``catalogue`` attribute gives them.
        codebook: Their ids; fitted to ``catalogue.known`` if ``None``, or where popularity changes
            to ``catalogue.standardised``, again whenever SB3's own algorithms are loaded, which do
            not keep it. Items that nobody has logged stand where their features say.
        groups: Groups of the items, the environment's attribute of that name; the popular items and
            the rest if ``None``.
        fairness: Demand in [0, 1] on the balance of every slate, see
            :class:`~dsrm_agents.common.bounds.FeasibleCounts`; ids then begin with the group.
            ``None`` for none.
        context: Input of later levels, see :class:`~dsrm_agents.hsrl.network.TokenNetwork`.
        item_quality: (n_items,) float, from which the prior is made, in place of the items' logged
            effects.
        sharpness: Log weight of the prior a unit of quality; 0 draws all items alike at the start.
        dim: Width of a context.
        hidden: Width of the hidden layers of the state's encoder and of the critic.

    Raises:
        ConfigError: The spaces are others, the codebook is of other items, or an option is unknown
            or out of range.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        catalogue: Catalogue,
        codebook: Codebook | None = None,
        groups: Groups | None = None,
        fairness: float | None = None,
        context: str = "sampled",
        item_quality: NDArray[np.floating] | None = None,
        sharpness: float = SHARPNESS,
        dim: int = 32,
        hidden: int = 64,
        **kwargs: Any,
    ) -> None:
        if fairness is not None and not 0.0 <= fairness <= 1.0:
            raise ConfigError(f"fairness must lie in [0, 1] or be None, got {fairness}.")
        if not 0.0 <= sharpness < np.inf:
            raise ConfigError(f"sharpness must be a finite number of at least 0, got {sharpness}.")
        self.catalogue = catalogue
        self.groups = groups_of(catalogue, groups)
        # Today's popularity says nothing of tomorrow's.
        self._known = catalogue.standardised if catalogue.changes else catalogue.known
        self.codebook = Codebook.fit(self._known) if codebook is None else codebook
        self.codebook.check_catalogue(catalogue)
        if item_quality is not None:
            item_quality = check_item_numbers("item_quality", item_quality, catalogue)
        self.fairness = fairness
        self.context = check_choice("context", context, CONTEXTS)
        options = {
            "catalogue": catalogue,
            "codebook": self.codebook,
            "groups": self.groups,
            "fairness": fairness,
            "context": context,
            "item_quality": item_quality,
            "sharpness": sharpness,
            "dim": check_whole("dim", dim, 1),
            "hidden": check_whole("hidden", hidden, 1),
        }
        super().__init__(observation_space, action_space, lr_schedule, options, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        """Makes the modules and the optimiser; replaces the base class's one head an action."""
        options = self._options
        ids, widths = self.codebook.ids, self.codebook.widths
        self.feasible: FeasibleCounts | None = None
        if self.fairness is not None:
            self.feasible = FeasibleCounts(self.groups.target[::-1].copy(), self.slate_size)
            last = len(self.groups) - 1
            falling = last - self.groups.labels.astype(np.int64)
            if self._copied:
                falling, ids = np.repeat([0, 1], len(ids)), np.tile(ids, (2, 1))
            ids = np.column_stack([falling, ids])
            widths = (len(self.groups), *widths)
        quality = options["item_quality"]
        if quality is None:
            quality = self.catalogue.item_embedding[:, 0]
        copies = np.arange(len(ids)) % self.catalogue.n_items
        self.trie = Trie(ids, widths, options["sharpness"] * quality[copies])
        items, sizes = torch.as_tensor(self._known[copies]), (options["dim"], options["hidden"])
        self.network = TokenNetwork(widths, self.state_dim, items, self.context, *sizes)
        self.critic = MultiLevelCritic(len(widths), *sizes)
        self._optimise([{"params": list(self.parameters()), "lr": lr_schedule(1)}])

    @property
    def _copied(self) -> bool:
        """True where ids are of :mod:`~dsrm_agents.common.copies`, in groups that change."""
        return self.groups.change and self.fairness is not None

    def _today(self, obs: PyTorchObs, items: Tensor) -> Tensor:
        """(N, m) item positions, -1 for none, to those in the trie."""
        if not self._copied:
            return items
        return copies_today(flags_of(obs, "popular", self.catalogue.n_items), items)

    def _draw(self, distribution: SemanticSlates, deterministic: bool) -> tuple[Tensor, Tensor]:
        """(N, K) item positions, and the (N,) log-probabilities."""
        slates, log_prob = distribution.draw(deterministic)
        return slates % self.catalogue.n_items, log_prob

    def slates(self, obs: PyTorchObs) -> SemanticSlates:
        """The distribution of slates of N sessions, of positions in the trie."""
        n_items = self.catalogue.n_items
        state, exposed = state_and_unavailable(obs, n_items)
        hidden = self._today(obs, exposed)
        if self._copied:
            elsewhere = other_copies(flags_of(obs, "popular", n_items))
            hidden = torch.cat([hidden, elsewhere], dim=1)
        shown = self.trie.shown(hidden)
        return SemanticSlates(
            self.network,
            self.trie,
            self.network.encoder(state),
            shown,
            self.fairness is not None,
            self._bounds(shown),
            self.slate_size,
        )

    def evaluate_slates(self, obs: PyTorchObs, slates: Tensor) -> Evaluation:
        """Probabilities and values of (N, K) slates."""
        distribution = self.slates(obs)
        paths = distribution.paths(self._today(obs, slates.long()))
        return Evaluation(paths, self._values(distribution.context), self.critic.at(paths.contexts))

    def item_scores(self, obs: PyTorchObs) -> Tensor:
        """(N, n_items) float32 log-probabilities of the items' token paths, as a slate's first."""
        items = torch.arange(self.catalogue.n_items, device=self.device)
        distribution = self.slates(obs)
        everything = items.expand(len(distribution.context), -1)
        return distribution.item_log_prob(self._today(obs, everything))

    # The interface of Stable-Baselines3.

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Slates (N, K), values (N, 1) and the slates' log-probabilities (N,)."""
        distribution = self.slates(obs)
        slates, log_prob = self._draw(distribution, deterministic)
        return slates, self._values(distribution.context), log_prob

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self._draw(self.slates(observation), deterministic)[0]

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """(N, 1) float32."""
        state, _ = state_and_exposed(obs)
        return self._values(self.network.encoder(state))

    def evaluate_actions(
        self, obs: PyTorchObs, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values (N, 1), log-probabilities (N,) and entropies of one draw (N,) of slates."""
        distribution = self.slates(obs)
        paths = distribution.paths(self._today(obs, actions.long()))
        entropy = paths.entropy.sum(dim=2).mean(dim=1)
        return self._values(distribution.context), paths.log_prob.sum(dim=(1, 2)), entropy

    def get_distribution(self, obs: PyTorchObs) -> Any:
        """Refuses: SB3's distributions are over independent parts of an action.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("HSRLPolicy draws slates: ask slates(obs) for their distribution.")

    def _values(self, context: Tensor) -> Tensor:
        """(N, 1) values of states, of their (N, dim) first contexts."""
        return torch.as_tensor(self.critic(self.network.state_contexts(context)))

    def _bounds(self, shown: Shown) -> SlateBounds:
        left = self.trie.count(shown)
        if self.feasible is None or self.fairness is None:
            most = left.new_full((len(left), 1), self.slate_size)
            return SlateBounds(torch.zeros_like(most), most)
        demand = torch.full((len(left),), self.fairness, device=left.device)
        bounds: SlateBounds = self.feasible(demand, left)
        return bounds
