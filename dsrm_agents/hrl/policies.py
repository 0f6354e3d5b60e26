"""Manager and worker networks, as one Stable-Baselines3 policy (sections 4.3.1 and 4.3.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.distributions import Normal

from dsrm_agents.hrl.distributions import (
    MASKED,
    SlateBounds,
    feasible_bounds,
    first_draw_entropy,
    sample_slate,
    slate_log_prob,
)
from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.catalogue import Catalogue

WORKERS = ("constrained", "unconstrained")
# Range of w_acc: a factor on the worker's inverse temperature, neither off nor frozen.
ACCURACY_RANGE = (0.5, 1.5)
# Spread of the manager's Gaussian, fixed: a learned one shrinks once every slate is balanced, and
# with it the signal that pulls the demand back when it drifts, until a run collapses.
EXPLORATION = 0.5
START_SHARPNESS = 8.0  # of the cosine at the start; learned from there


class Decision(NamedTuple):
    """One joint decision of both levels.

    Attributes:
        slates: (N, K) int64 item positions.
        control: (N, 2) float32, the manager's draw before squashing.
        log_prob: (N, 2) float32, of [control, slate].
        values: (N, 2) float32, of [manager, worker].
    """

    slates: Tensor
    control: Tensor
    log_prob: Tensor
    values: Tensor


class Evaluation(NamedTuple):
    """What PPO asks about a past decision; columns of two are [manager, worker].

    Attributes:
        log_prob: (N, 2) float32.
        values: (N, 2) float32.
        entropy: (N,) float32, of the slate's first draw.
    """

    log_prob: Tensor
    values: Tensor
    entropy: Tensor


class HierarchicalPolicy(ActorCriticPolicy):
    """A manager sets z = [w_acc, w_fair]; a worker draws the slate under it.

    The manager is Gaussian before squashing: w_acc in ``ACCURACY_RANGE``, w_fair in (0, 1).
    The worker scores ``psi_i = w_acc * Sim(s, e_i) - w_fair * log pop_i`` (eq. 6) with Sim a
    sharpened cosine of learned projections of the state and of the item, and log pop
    standardised. ``worker="constrained"`` (default) draws from the slates whose balance is at
    least w_fair, the constraint of eq. 5; ``"unconstrained"`` keeps eq. 6 alone.

    Deviations from the paper: the cosine has learned projections (eq. 6 leaves the worker
    without parameters although section 4.4 optimises it), and w_fair also is the constraint's
    level (eq. 5 compares a number with the vector z).

    Args:
        observation_space: Dict with ``"state"`` and ``"exposed"``.
        action_space: MultiDiscrete, one item position a slot.
        lr_schedule: Learning rate; the manager and both critics use it scaled.
        catalogue: The items, as the environment's ``catalogue`` attribute gives them.
        worker: ``"constrained"`` or ``"unconstrained"``.
        hidden: Width of the two hidden layers of the manager and of each critic.
        manager_lr_scale: Manager's learning rate over the worker's.
        critic_lr_scale: Critics' learning rate over the worker's.

    Raises:
        ConfigError: The spaces are not those of ``observation_type="dict"`` and
            ``action_type="slate"``, or an option is unknown.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        catalogue: Catalogue,
        worker: str = "constrained",
        hidden: int = 64,
        manager_lr_scale: float = 1.0,
        critic_lr_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.slate_size = slate_size_of(observation_space, action_space)
        self.worker = check_choice("worker", worker, WORKERS)
        self.catalogue = catalogue
        self.hidden = hidden
        self.lr_scales = {"manager": manager_lr_scale, "critic": critic_lr_scale, "worker": 1.0}
        kwargs.setdefault("features_extractor_class", FlattenExtractor)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        """Makes the modules and the optimiser; replaces the base class's one head an action."""
        assert isinstance(self.observation_space, spaces.Dict)
        state_dim = int(np.prod(self.observation_space["state"].shape or ()))
        items = np.column_stack([self.catalogue.item_embedding, self.catalogue.log_popularity])
        popular = self.catalogue.popular
        # Scores have a column an item, popular items first, as the slate distribution wants.
        item_of_column = np.argsort(~popular, kind="stable")
        self.items: Tensor
        self.item_of_column: Tensor
        self.column_of_item: Tensor
        self.register_buffer("items", torch.as_tensor(items[item_of_column], dtype=torch.float32))
        self.register_buffer("item_of_column", torch.as_tensor(item_of_column))
        self.register_buffer("column_of_item", torch.as_tensor(np.argsort(item_of_column)))
        # NaN leaves the demand to the manager; a buffer, so that it is saved with the weights.
        self.fairness_demand: Tensor
        self.register_buffer("fairness_demand", torch.tensor(torch.nan))
        self.n_popular = int(popular.sum())
        key_dim = self.items.shape[1]
        self.manager = _mlp(state_dim, self.hidden, 2)
        self.query = nn.Linear(state_dim + 2, key_dim)
        self.key = nn.Linear(key_dim, key_dim, bias=False)
        self.log_sharpness = nn.Parameter(torch.tensor(START_SHARPNESS).log())
        self.manager_critic = _mlp(state_dim, self.hidden, 1)
        self.worker_critic = _mlp(state_dim, self.hidden, 1)
        with torch.no_grad():
            # Start at eq. 6 as printed: Sim is the cosine of preference and embedding.
            self.key.weight.copy_(torch.eye(key_dim))
            self.query.weight.zero_()
            shared = min(key_dim - 1, state_dim)
            self.query.weight[:shared, :shared] = torch.eye(shared)
            self.query.bias.zero_()
        groups = {
            "manager": list(self.manager.parameters()),
            "worker": [*self.query.parameters(), *self.key.parameters(), self.log_sharpness],
            "critic": [*self.manager_critic.parameters(), *self.worker_critic.parameters()],
        }
        rate = lr_schedule(1)
        self.optimizer = self.optimizer_class(
            [
                {"params": group, "lr": rate * self.lr_scales[name], "name": name}
                for name, group in groups.items()
            ],
            **self.optimizer_kwargs,
        )

    def set_fairness(self, demand: float | None) -> None:
        """Fixes the fairness demand w_fair, or gives it back to the manager.

        Args:
            demand: In [0, 1]; ``None`` for the manager's own choice.

        Raises:
            ConfigError: Outside [0, 1].
        """
        if demand is not None and not 0.0 <= demand <= 1.0:
            raise ConfigError(f"The fairness demand must lie in [0, 1] or be None, got {demand}.")
        self.fairness_demand.fill_(torch.nan if demand is None else demand)

    def decide(self, obs: PyTorchObs, deterministic: bool = False) -> Decision:
        """Draws, or takes the best of, both levels."""
        state, exposed = _parts(obs)
        policy = self._manager_distribution(state)
        control = policy.mean if deterministic else policy.sample()
        scores, bounds = self._worker(state, exposed, control)
        columns = sample_slate(scores, self.n_popular, bounds, self.slate_size, deterministic)
        log_slate = slate_log_prob(scores, columns, self.n_popular, bounds)
        log_prob = torch.stack([policy.log_prob(control).sum(1), log_slate], dim=1)
        return Decision(self.item_of_column[columns], control, log_prob, self._values(state))

    def evaluate_decision(
        self, obs: PyTorchObs, control: Tensor, slates: Tensor, slate_entropy: bool = True
    ) -> Evaluation:
        """Log-probabilities, values and entropy of past decisions.

        No gradient crosses levels: the worker sees ``control`` as data.

        Args:
            obs: Observations of N sessions.
            control: (N, 2) the manager's draws.
            slates: (N, K) int64.
            slate_entropy: Whether to compute the worker's entropy, a pass over all items; zero
                is returned otherwise.

        Returns:
            The evaluation.
        """
        state, exposed = _parts(obs)
        policy = self._manager_distribution(state)
        scores, bounds = self._worker(state, exposed, control)
        log_slate = slate_log_prob(scores, self.column_of_item[slates], self.n_popular, bounds)
        if slate_entropy:
            entropy = first_draw_entropy(scores)
        else:
            entropy = torch.zeros_like(log_slate)
        return Evaluation(
            torch.stack([policy.log_prob(control).sum(1), log_slate], dim=1),
            self._values(state),
            entropy,
        )

    def level_values(self, obs: PyTorchObs) -> Tensor:
        """(N, 2) float32: values of [manager, worker]."""
        return self._values(_parts(obs)[0])

    def weights(self, control: Tensor) -> tuple[Tensor, Tensor]:
        """Squashes the manager's draw.

        Args:
            control: (N, 2).

        Returns:
            (N,) w_acc in ``ACCURACY_RANGE`` and (N,) w_fair in (0, 1).
        """
        low, high = ACCURACY_RANGE
        squashed = torch.sigmoid(control)
        accuracy, fairness = low + (high - low) * squashed[:, 0], squashed[:, 1]
        free = torch.isnan(self.fairness_demand)
        return accuracy, torch.where(free, fairness, self.fairness_demand)

    # The Stable-Baselines3 contract.

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Slates (N, K), worker values (N, 1) and worker log-probabilities (N,)."""
        decision = self.decide(obs, deterministic)
        return decision.slates, decision.values[:, 1:], decision.log_prob[:, 1]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self.decide(observation, deterministic).slates

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """(N, 1) float32: the worker's values."""
        return self.level_values(obs)[:, 1:]

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> Any:
        """Refused: a slate's probability needs the manager's draw, which is not in the action.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("HierarchicalPolicy has two levels: train it with HierarchicalPPO.")

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        kept = ("observation_space", "action_space", "lr_schedule", "optimizer_class")
        return {name: parameters[name] for name in (*kept, "optimizer_kwargs")} | {
            "catalogue": self.catalogue,
            "worker": self.worker,
            "hidden": self.hidden,
            "manager_lr_scale": self.lr_scales["manager"],
            "critic_lr_scale": self.lr_scales["critic"],
        }

    def _manager_distribution(self, state: Tensor) -> Normal:
        return Normal(self.manager(state), EXPLORATION)

    def _values(self, state: Tensor) -> Tensor:
        return torch.cat([self.manager_critic(state), self.worker_critic(state)], dim=1)

    def _worker(
        self, state: Tensor, exposed: Tensor, control: Tensor
    ) -> tuple[Tensor, SlateBounds]:
        """(N, n_items) scores of eq. 6, ``MASKED`` where exposed, and the feasible set."""
        accuracy, fairness = self.weights(control)
        query = self.query(torch.cat([state, accuracy[:, None], fairness[:, None]], dim=1))
        key = self.key(self.items)
        cosine = nn.functional.normalize(query, dim=1) @ nn.functional.normalize(key, dim=1).T
        sharpness = self.log_sharpness.exp() * accuracy
        scores = sharpness[:, None] * cosine - fairness[:, None] * self.items[:, -1]

        n_items, n_popular = len(self.items), self.n_popular
        shown = torch.zeros(len(state), n_items + 1, dtype=torch.bool, device=state.device)
        # The padding, -1, lands in an extra column that is cut off.
        shown.scatter_(1, torch.where(exposed < 0, n_items, self.column_of_item[exposed]), True)
        shown = shown[:, :n_items]
        popular_left = n_popular - shown[:, :n_popular].sum(1)
        tail_left = n_items - n_popular - shown[:, n_popular:].sum(1)
        demand = fairness if self.worker == "constrained" else torch.zeros_like(fairness)
        bounds = feasible_bounds(demand, self.slate_size, popular_left, tail_left)
        return scores.masked_fill(shown, MASKED), bounds


def slate_size_of(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> int:
    """K, of spaces that the policy can work with.

    Raises:
        ConfigError: They are not those of ``observation_type="dict"`` and
            ``action_type="slate"``.
    """
    if not isinstance(observation_space, spaces.Dict) or not isinstance(
        action_space, spaces.MultiDiscrete
    ):
        raise ConfigError(
            "HierarchicalPolicy needs observation_type='dict' and action_type='slate', got "
            f"{observation_space} and {action_space}."
        )
    return len(action_space.nvec)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.Tanh(),
        nn.Linear(hidden, hidden),
        nn.Tanh(),
        nn.Linear(hidden, outputs),
    )
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.orthogonal_(last.weight, gain=0.01)  # start near zero: neutral z, neutral values
    nn.init.zeros_(last.bias)
    return layers


def _parts(obs: PyTorchObs) -> tuple[Tensor, Tensor]:
    """The state (N, d) float32 and the exposed item positions (N, room) int64."""
    assert isinstance(obs, dict)
    state, exposed = obs["state"].float(), obs["exposed"].long()
    if len(state) != len(exposed):
        # SB3 reshapes parts to the policy's own space without asking whether they fit.
        raise ConfigError(
            "The observation's 'exposed' part has another room than the policy was built for: "
            "use the max_len and slate_size that it was trained with."
        )
    return state, exposed
