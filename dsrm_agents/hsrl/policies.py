"""HSRL as a Stable-Baselines3 policy: slates over semantic ids, and a multi-level critic."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from dsrm_agents.common.bounds import FeasibleCounts, SlateBounds, impossible
from dsrm_agents.common.catalogue import (
    check_item_numbers,
    flags_of,
    groups_of,
    outside_pool,
    state_and_exposed,
)
from dsrm_agents.common.copies import closed_copies, copies_today
from dsrm_agents.common.policies import SlateActorCritic
from dsrm_agents.hsrl.codebook import Codebook
from dsrm_agents.hsrl.network import CONTEXTS, MultiLevelCritic, TokenNetwork
from dsrm_agents.hsrl.slates import Paths, SemanticSlates
from dsrm_agents.hsrl.trie import Left, Shown, Trie
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

    item_module = "trie"
    item_options = ("item_quality",)

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
        self._known = _known(catalogue)
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

    def larger_options(self, catalogue: Catalogue) -> dict[str, Any]:
        return {"codebook": self.codebook.extended(_known(catalogue)[self.catalogue.n_items :])}

    def take_weights(self, policy: SlateActorCritic) -> None:
        """As of the base class.

        Raises:
            ConfigError: Items that the policy knows have other ids here.
        """
        before: Codebook = policy._options["codebook"]
        if not self.codebook.begins_with(before):
            raise ConfigError(
                "The codebook must hold the policy's own codes and ids, with those of new items "
                "behind them: make it with its method extended."
            )
        super().take_weights(policy)

    @property
    def _copied(self) -> bool:
        """True where ids are of :mod:`~dsrm_agents.common.copies`, in groups that change."""
        return self.groups.change and self.fairness is not None

    def _popular(self, obs: PyTorchObs) -> Tensor | None:
        """(N, n_items) bool, today's popular items, where ids are of copies."""
        return flags_of(obs, "popular", self.catalogue.n_items) if self._copied else None

    @staticmethod
    def _today(popular: Tensor | None, items: Tensor) -> Tensor:
        """(N, m) item positions, -1 for none, to those in the trie."""
        return items if popular is None else copies_today(popular, items)

    def _draw(self, distribution: SemanticSlates, deterministic: bool) -> tuple[Tensor, Tensor]:
        """(N, K) item positions, and the (N,) log-probabilities."""
        slates, log_prob = distribution.draw(deterministic)
        return slates % self.catalogue.n_items, log_prob

    def slates(self, obs: PyTorchObs) -> SemanticSlates:
        """The distribution of slates of N sessions, of positions in the trie."""
        return self._slates(obs, self._popular(obs))

    def _slates(self, obs: PyTorchObs, popular: Tensor | None) -> SemanticSlates:
        """As :meth:`slates`, of what :meth:`_popular` gave."""
        (state, exposed), outside = (
            state_and_exposed(obs),
            outside_pool(obs, self.catalogue.n_items),
        )
        hidden = self._today(popular, exposed.long())
        shown: Shown | Left
        if popular is not None:
            shown = self.trie.left(closed_copies(popular, outside), hidden)
        elif outside.shape[1]:
            shown = self.trie.left(outside, hidden)
        else:
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
        popular = self._popular(obs)
        distribution = self._slates(obs, popular)
        paths = distribution.paths(self._today(popular, slates.long()))
        return Evaluation(paths, self._values(distribution.context), self.critic.at(paths.contexts))

    def draw_slates(self, obs: PyTorchObs) -> tuple[Tensor, Tensor]:
        """Draws slates: (N, K) int64 items, and their :meth:`slate_log_prob`."""
        slates, _ = self._draw(self.slates(obs), False)
        return slates, self.slate_log_prob(obs, slates)

    def slate_log_prob(self, obs: PyTorchObs, slates: Tensor) -> Tensor:
        """(N, K) float32 log-probabilities of (N, K) items, each given the slate's earlier ones."""
        popular = self._popular(obs)
        distribution = self._slates(obs, popular)
        paths = distribution.paths(self._today(popular, slates.long()))
        return impossible(paths.log_prob.sum(dim=2))

    def item_scores(self, obs: PyTorchObs) -> Tensor:
        """(N, n_items) float32 log-probabilities of the items' token paths, as a slate's first."""
        items = torch.arange(self.catalogue.n_items, device=self.device)
        popular = self._popular(obs)
        distribution = self._slates(obs, popular)
        everything = items.expand(len(distribution.context), -1)
        return distribution.item_log_prob(self._today(popular, everything))

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
        popular = self._popular(obs)
        distribution = self._slates(obs, popular)
        paths = distribution.paths(self._today(popular, actions.long()))
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

    def _bounds(self, shown: Shown | Left) -> SlateBounds:
        left = self.trie.count(shown)
        if self.feasible is None or self.fairness is None:
            most = left.new_full((len(left), 1), self.slate_size)
            return SlateBounds(torch.zeros_like(most), most)
        demand = torch.full((len(left),), self.fairness, device=left.device)
        bounds: SlateBounds = self.feasible(demand, left)
        return bounds


def _known(catalogue: Catalogue) -> NDArray[np.float32]:
    """(n_items, f) what tells the items apart: today's popularity says nothing of tomorrow's."""
    return catalogue.standardised if catalogue.changes else catalogue.known
