"""Manager and worker networks, as one Stable-Baselines3 policy (sections 4.3.1 and 4.3.2)."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.distributions import Normal

from dsrm_agents.common.bounds import Band, SlateBounds, impossible
from dsrm_agents.common.catalogue import flags_of, groups_of, outside_pool, state_and_exposed
from dsrm_agents.common.networks import mlp, start_near_zero
from dsrm_agents.common.policies import SlateActorCritic
from dsrm_agents.hrl.items import ChangingItems, Context, FixedItems
from dsrm_agents.hrl.workers import WORKERS, Worker
from kuaisim_gym.config import check_choice, check_whole, is_number
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.groups import Groups, TargetSpec

# Range of w_acc: a factor on the worker's inverse temperature, neither off nor frozen.
ACCURACY_RANGE = (0.5, 1.5)
# Spread of the manager's Gaussian, fixed: a learned one shrinks once every slate is balanced, and
# with it the signal that pulls the demand back when it drifts, until a run collapses.
EXPLORATION = 0.5
# Where the manager of a band starts, before squashing: its slates are as balanced as they can be,
# because on train users an open band gains nothing; two draws in a hundred open it.
BALANCED = 1.0


class Decision(NamedTuple):
    """One joint decision of both levels.

    Attributes:
        slates: (N, K) int64 item positions, the worker's.
        control: (N, 2) float32, the manager's draw before squashing, new or held.
        control_log_prob: (N,) float32.
        choice_log_prob: (N, 2K) float32, of the choices behind a slate; a slate's is the sum.
        values: (N, 2) float32, of [manager, worker].
        bounds: Within which the slates were drawn.
        shortlist: (N, W) int64 columns of the worker's items that they were drawn from; (N, 0) for
            all.
    """

    slates: Tensor
    control: Tensor
    control_log_prob: Tensor
    choice_log_prob: Tensor
    values: Tensor
    bounds: SlateBounds
    shortlist: Tensor


class HierarchicalPolicy(SlateActorCritic):
    """A manager sets z = [w_acc, w_fair]; a worker draws slates under it.

    The manager is Gaussian before squashing: w_acc in ``ACCURACY_RANGE``, w_fair in (0, 1), both
    bounded, because w_fair < 0 would reward popularity and w_acc = 0 would ignore the user. It
    decides every ``decision_period`` steps of a session, and z holds in between. The worker is
    described in :mod:`dsrm_agents.hrl.workers`.

    Args:
        observation_space: Dict with ``"state"`` and ``"exposed"``.
        action_space: MultiDiscrete, one item position a slot.
        lr_schedule: Learning rate; the manager and both critics use it scaled.
        catalogue: The items, as the environment's ``catalogue`` attribute gives them.
        groups: Groups of the items, the environment's attribute of that name; the popular items and
            the rest if ``None``.
        worker: ``"constrained"`` draws slates whose balance is at least w_fair; ``"band"`` draws
            slates that the environment does not penalise and holds the session at the groups'
            target (:class:`~dsrm_agents.common.bounds.Band`); w_fair narrows them, and starts where
            they are balanced. ``"unconstrained"`` keeps eq. 6 alone.
        free_counts: For ``worker="band"``, the environment's attribute of that name: (G,) least and
            most items of each group in a slate that is not penalised.
        decision_period: c, steps between two decisions of the manager. Its rewards in between are
            discounted as one step of a semi-Markov process.
        item_features: (n_items, f) float that describe the items in place of the catalogue's
            embedding (:func:`dsrm_agents.hrl.features.item_features` makes them), so that items
            that nobody has logged can be scored.
        similarity: What an item's agreement with the state weighs beside its quality before
            training: 1 for beliefs, whose ranking the worker then starts with; less for states in
            other units.
        shortlist: Items of each group that a session's slates are drawn from, the best as far as a
            search finds them, so that a step and an update grow little with the catalogue
            (:mod:`dsrm_agents.hrl.shortlists`); ``None`` for all items, which is exact.
        hidden: Width of the two hidden layers of the manager and of each critic.
        manager_lr_scale: Manager's learning rate over the worker's.
        critic_lr_scale: Critics' learning rate over the worker's.

    Raises:
        ConfigError: The spaces are others, or an option is unknown.
    """

    item_module = "worker.items"
    item_options = ("item_features",)

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        catalogue: Catalogue,
        groups: Groups | None = None,
        worker: str = "constrained",
        free_counts: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
        decision_period: int = 1,
        item_features: NDArray[np.floating] | None = None,
        similarity: float = 1.0,
        shortlist: int | None = None,
        hidden: int = 64,
        manager_lr_scale: float = 1.0,
        critic_lr_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.catalogue = catalogue
        self.groups = groups_of(catalogue, groups)
        if catalogue.changes and worker == "unconstrained":
            raise ConfigError(
                'worker="unconstrained" pays for log popularity, which no observation of a '
                'catalogue that changes tells: use "constrained" or "band".'
            )
        if worker == "band" and free_counts is None:
            raise ConfigError(
                'worker="band" needs free_counts, the bounds of slates that are not penalised: '
                "HierarchicalPPO takes them from its environment."
            )
        if not is_number(similarity) or similarity < 0.0:
            raise ConfigError(
                f"similarity must be a finite number of at least 0, got {similarity!r}."
            )
        self.decision_period = check_whole("decision_period", decision_period, 1)
        self.lr_scales = {
            "manager": manager_lr_scale,
            "worker": 1.0,
            "manager_critic": critic_lr_scale,
            "worker_critic": critic_lr_scale,
        }
        options = {
            "catalogue": catalogue,
            "groups": self.groups,
            "worker": check_choice("worker", worker, WORKERS),
            "free_counts": free_counts,
            "decision_period": decision_period,
            "item_features": item_features,
            "similarity": similarity,
            "shortlist": shortlist,
            "hidden": hidden,
            "manager_lr_scale": manager_lr_scale,
            "critic_lr_scale": critic_lr_scale,
        }
        super().__init__(observation_space, action_space, lr_schedule, options, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        """Makes the modules and the optimiser; replaces the base class's one head an action."""
        options, hidden = self._options, [self._options["hidden"]] * 2
        layout = ChangingItems if self.groups.change else FixedItems
        items = layout(self.catalogue, self.groups, options["item_features"])
        target = self._falling_target
        constrained, band = options["worker"] != "unconstrained", None
        if options["worker"] == "band":
            least, most = (counts[::-1] for counts in options["free_counts"])
            band = Band(target, least, most, self.slate_size)
        sizes = (self.state_dim, self.slate_size)
        shortlist = options["shortlist"]
        if shortlist is not None:
            check_whole("shortlist", shortlist, self.slate_size)
        similarity = options["similarity"]
        self.worker = Worker(items, *sizes, constrained, target, similarity, band, shortlist)
        self.manager = mlp(self.state_dim, hidden, 2, nn.Tanh)
        start_near_zero(self.manager[-1])
        if band is not None:
            with torch.no_grad():
                cast(nn.Linear, self.manager[-1]).bias[1] = BALANCED
        self.manager_critic = mlp(self.state_dim, hidden, 1, nn.Tanh)
        start_near_zero(self.manager_critic[-1])
        self.worker_critic = mlp(self.state_dim, hidden, 1, nn.Tanh)
        start_near_zero(self.worker_critic[-1])
        rate = lr_schedule(1)
        self._optimise(
            [
                {
                    "params": list(getattr(self, name).parameters()),
                    "lr": rate * scale,
                    "name": name,
                }
                for name, scale in self.lr_scales.items()
            ]
        )

    def set_fairness(
        self, longtail_share: float | None = None, target: TargetSpec | None = None
    ) -> None:
        """Keeps every session at shares of the groups, without training.

        The worker still ranks by what it learned; how many items of a group a slate holds is no
        longer the manager's choice. Shares that a slate cannot express are met over the slates.

        Args:
            longtail_share: Of popularity groups, in [0, 1], 0.5 being balanced; ``None`` without a
                target gives the choice back.
            target: Shares of any groups, as the environment takes them: numbers in the order of
                ``groups.names`` or by name, ``"uniform"`` or ``"catalogue"``.

        Raises:
            ConfigError: No such shares, both arguments, or the worker is unconstrained.
        """
        if longtail_share is not None and not (
            is_number(longtail_share) and 0.0 <= longtail_share <= 1.0
        ):
            raise ConfigError(
                f"The long-tail share must lie in [0, 1] or be None, got {longtail_share!r}."
            )
        if longtail_share is not None and (target is not None or not self.groups.by_popularity):
            raise ConfigError(
                "longtail_share sets popularity groups alone, in place of a target; these groups "
                f"are of {self.groups.column}: give target={{group: share}}."
            )
        if not self.worker.constrained:
            raise ConfigError(
                "The fairness of an unconstrained worker cannot be set: nothing bounds its slates. "
                'Train with worker="constrained".'
            )
        if longtail_share is not None:
            target = (longtail_share, 1.0 - longtail_share)
        shares = torch.full_like(self.worker.group_shares, torch.nan)
        if target is not None:
            falling = self.groups.with_target(target).target[::-1].copy()
            shares = torch.as_tensor(falling).to(shares)
        self.worker.group_shares.copy_(shares)

    @property
    def longtail_share(self) -> Tensor:
        """() float32: the share of the last group, NaN if :meth:`set_fairness` set none."""
        return self.worker.group_shares[-1]

    @property
    def _falling_target(self) -> NDArray[np.float64]:
        """(G,) target of the groups, by falling label as the worker has them."""
        return self.groups.target[::-1].copy()

    def decide(
        self,
        obs: PyTorchObs,
        last_control: Tensor | None = None,
        due: Tensor | None = None,
        deterministic: bool = False,
    ) -> Decision:
        """Draws, or takes the best of, both levels.

        Args:
            obs: Observations of N sessions.
            last_control: (N, 2) the manager's last draws; ``None`` where all are due.
            due: (N,) bool, where the manager decides anew.
            deterministic: Whether to take the best instead of drawing.

        Returns:
            The decision.
        """
        state, _ = state_and_exposed(obs)
        manager = self._manager_distribution(state)
        control = manager.mean if deterministic else manager.sample()
        if last_control is not None and due is not None:
            control = torch.where(due[:, None], control, last_control)
        context = self._context(obs, control)
        shortlist = self.worker.shortlist(context)
        drawn = self.worker.act(context, deterministic, shortlist)
        manager_log_prob = manager.log_prob(control).sum(1)
        values = self._values(state)
        of_slates = drawn.log_prob, values, drawn.bounds
        return Decision(drawn.slates, control, manager_log_prob, *of_slates, shortlist)

    def evaluate_decision(
        self,
        obs: PyTorchObs,
        control: Tensor,
        slates: Tensor,
        bounds: SlateBounds | None = None,
        shortlist: Tensor | None = None,
    ) -> Decision:
        """Log-probabilities and values of past decisions.

        No gradient crosses levels: the worker sees ``control`` as data.

        Args:
            obs: Observations of N sessions.
            control: (N, 2) the manager's draws.
            slates: (N, K) int64 item positions, the worker's.
            bounds: Those of the decisions, which ``None`` finds again.
            shortlist: Likewise; found again it is of today's scores.

        Returns:
            The decision, with gradients.
        """
        state, _ = state_and_exposed(obs)
        context = self._context(obs, control)
        bounds = self.worker.bounds(context) if bounds is None else bounds
        shortlist = self.worker.shortlist(context) if shortlist is None else shortlist
        log_prob = self.worker.log_prob(context, slates, bounds, shortlist)
        manager_log_prob = self._manager_distribution(state).log_prob(control).sum(1)
        values = self._values(state)
        return Decision(slates, control, manager_log_prob, log_prob, values, bounds, shortlist)

    def worker_drift(self, obs: PyTorchObs, control: Tensor, slates: Tensor) -> Tensor:
        """(N,) float32: divergence of a draw from the untrained worker's, about, in nats."""
        state, exposed = state_and_exposed(obs)
        nothing = exposed[:, :0]
        context = Context(state, exposed, nothing, nothing, *self.weights(control))
        return self.worker.drift(context, slates)

    def worker_entropy(
        self, obs: PyTorchObs, control: Tensor, shortlist: Tensor | None = None
    ) -> Tensor:
        """(N,) float32 entropy of a slate's first draw, in nats: a pass over what can be drawn."""
        return self.worker.entropy(self._context(obs, control), shortlist)

    def manager_entropy(self) -> float:
        """Entropy of the manager's draw, in nats; constant, as its spread is."""
        return float(2.0 * Normal(0.0, EXPLORATION).entropy())

    def level_values(self, obs: PyTorchObs) -> Tensor:
        """(N, 2) float32: values of [manager, worker]."""
        return self._values(state_and_exposed(obs)[0])

    def weights(self, control: Tensor) -> tuple[Tensor, Tensor]:
        """Squashes the manager's draw.

        Args:
            control: (N, 2).

        Returns:
            (N,) w_acc in ``ACCURACY_RANGE`` and (N,) w_fair in (0, 1).
        """
        low, high = ACCURACY_RANGE
        squashed = torch.sigmoid(control)
        return low + (high - low) * squashed[:, 0], squashed[:, 1]

    def score_items(
        self, obs: PyTorchObs, described: Tensor, exposures: NDArray[np.integer]
    ) -> Tensor:
        """Scores of eq. 6 for any items, in the catalogue or not.

        Args:
            obs: Observations of N sessions.
            described: (m, f) float32, as the item tower reads items: their features, or their
                embedding if there are none.
            exposures: (m,) how often the platform has shown each, 0 for new ones.

        Returns:
            (N, m) float32, under the z that the manager would choose.
        """
        context = self._manager_context(obs)
        popularity = torch.as_tensor(self.catalogue.standardised_log(exposures), device=self.device)
        return self.worker.scorer(context) @ self.worker.items.keys(described, popularity).T

    def item_scores(self, obs: PyTorchObs) -> Tensor:
        """(N, n_items) float32 scores of the catalogue, as :meth:`score_items` gives them."""
        items = self.worker.items
        columns = self.worker.scorer(self._manager_context(obs)) @ items.keys().T
        return columns[:, items.column_of_item]

    def best(
        self, obs: PyTorchObs, control: Tensor, dialled: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """The slates of a deterministic :meth:`decide`, and the scores behind them.

        Args:
            obs: Observations of N sessions.
            control: (N, 2) the manager's draws.
            dialled: As for :meth:`~dsrm_agents.hrl.workers.Worker.distribution`.

        Returns:
            (N, K) int64 item positions, and (N, n_items) float32 scores of the catalogue.
        """
        items = self.worker.items
        slates = self.worker.distribution(self._context(obs, control), dialled=dialled)
        scores = slates.query @ slates.key[:-1].T  # the last column is no item
        return items.item_of_column[slates.best()], scores[:, items.column_of_item]

    def draw_slates(self, obs: PyTorchObs) -> tuple[Tensor, Tensor]:
        """Draws the worker's slates under the manager's mean, whose probabilities are known.

        Returns:
            (N, K) int64 item positions, and their :meth:`slate_log_prob`.
        """
        context = self._manager_context(obs)
        drawn = self.worker.act(context, deterministic=False)
        return drawn.slates, drawn.log_prob[:, : self.slate_size] + drawn.log_prob[
            :, self.slate_size :
        ]

    def slate_log_prob(self, obs: PyTorchObs, slates: Tensor) -> Tensor:
        """(N, K) float32 log-probabilities of (N, K) items, each given the slate's earlier ones.

        They are those of :meth:`draw_slates`, minus infinity for what it never draws.
        """
        context = self._manager_context(obs)
        bounds, shortlist = self.worker.bounds(context), self.worker.shortlist(context)
        of_group, of_item = self.worker.log_prob(context, slates, bounds, shortlist).chunk(2, dim=1)
        return impossible(of_group + of_item)

    # The interface of Stable-Baselines3.

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Actions for one or N observations.

        Args:
            observation: As the environment gives it.
            state: What the last call returned; ``None`` at the start, or always where the manager
                decides at every step. It holds the manager's (N, 2) draws and how many steps ago
                each was made.
            episode_start: (N,) bool, whether a session has just begun.
            deterministic: Whether to take the best action instead of drawing.

        Returns:
            The actions, and the state for the next call.
        """
        if self.decision_period == 1:
            return super().predict(observation, state, episode_start, deterministic)
        self.set_training_mode(False)
        obs, vectorised = self.obs_to_tensor(observation)
        n = len(state_and_exposed(obs)[0])
        last, age = (np.zeros((n, 2), np.float32), np.zeros(n, int)) if state is None else state
        if episode_start is not None:
            age = np.where(episode_start, 0, age)
        due = torch.as_tensor(age % self.decision_period == 0, device=self.device)
        with torch.no_grad():
            decision = self.decide(
                obs, torch.as_tensor(last, device=self.device), due, deterministic
            )
        slates = decision.slates.cpu().numpy()
        following = (decision.control.cpu().numpy(), age + 1)
        return (slates if vectorised else slates[0]), following

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Slates (N, K), worker values (N, 1) and the slates' log-probabilities (N,)."""
        decision = self.decide(obs, deterministic=deterministic)
        return decision.slates, decision.values[:, 1:], decision.choice_log_prob.sum(1)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self.decide(observation, deterministic=deterministic).slates

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """(N, 1) float32: the worker's values."""
        return self.level_values(obs)[:, 1:]

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> Any:
        """Refuses: an action's probability needs the manager's draw, which is not in the action.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("HierarchicalPolicy has two levels: train it with HierarchicalPPO.")

    def _manager_distribution(self, state: Tensor) -> Normal:
        return Normal(self.manager(state), EXPLORATION, validate_args=False)

    def _values(self, state: Tensor) -> Tensor:
        return torch.cat([self.manager_critic(state), self.worker_critic(state)], dim=1)

    def _manager_context(self, obs: PyTorchObs) -> Context:
        """The worker's context under the z that the manager would choose."""
        state, _ = state_and_exposed(obs)
        return self._context(obs, self._manager_distribution(state).mean)

    def _context(self, obs: PyTorchObs, control: Tensor) -> Context:
        (state, exposed), n_items = state_and_exposed(obs), self.catalogue.n_items
        popular = flags_of(obs, "popular", n_items) if self.groups.change else exposed[:, :0]
        outside = outside_pool(obs, n_items)
        return Context(state, exposed, outside, popular, *self.weights(control))
