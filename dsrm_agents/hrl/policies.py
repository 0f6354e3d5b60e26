"""Manager and worker networks, as one Stable-Baselines3 policy (sections 4.3.1 and 4.3.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.distributions import Normal

from dsrm_agents.common.catalogue import check_item_spaces, state_and_exposed
from dsrm_agents.hrl.workers import WORKERS, Items, QueryWorker, Request, SlateWorker, Worker
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.catalogue import Catalogue

# Range of w_acc: a factor on the worker's inverse temperature, neither off nor frozen.
ACCURACY_RANGE = (0.5, 1.5)
# Spread of the manager's Gaussian, fixed: a learned one shrinks once every slate is balanced, and
# with it the signal that pulls the demand back when it drifts, until a run collapses.
EXPLORATION = 0.5


# ActorCriticPolicy's other options (net_arch, log_std_init, ...) are of networks not used here.
PASSED_ON = ("use_sde", "optimizer_class", "optimizer_kwargs")


class Decision(NamedTuple):
    """One joint decision of both levels.

    Attributes:
        actions: (N, ...) for the environment.
        control: (N, 2) float32, the manager's draw before squashing, new or held.
        draws: (N, m), what the worker drew: K item positions, or a scorer.
        control_log_prob: (N,) float32.
        draw_log_prob: (N, f) float32, of the choices behind the draws; an action's is the sum.
        values: (N, 2) float32, of [manager, worker].
    """

    actions: Tensor
    control: Tensor
    draws: Tensor
    control_log_prob: Tensor
    draw_log_prob: Tensor
    values: Tensor


class Evaluation(NamedTuple):
    """What PPO asks about a past decision.

    Attributes:
        control_log_prob: (N,) float32.
        draw_log_prob: (N, f) float32, of the choices behind the draws.
        values: (N, 2) float32, of [manager, worker].
    """

    control_log_prob: Tensor
    draw_log_prob: Tensor
    values: Tensor


class HierarchicalPolicy(ActorCriticPolicy):
    """A manager sets z = [w_acc, w_fair]; a worker acts under it.

    The manager is Gaussian before squashing: w_acc in ``ACCURACY_RANGE``, w_fair in (0, 1), both
    bounded, because w_fair < 0 would reward popularity and w_acc = 0 would ignore the user. It
    decides every ``decision_period`` steps of a session, and z holds in between. The workers are
    described in :mod:`dsrm_agents.hrl.workers`.

    Args:
        observation_space: Dict with ``"state"`` and ``"exposed"``.
        action_space: MultiDiscrete, one item position a slot; for the Gaussian worker the Box of
            ``action_type="continuous"``.
        lr_schedule: Learning rate; the manager and both critics use it scaled.
        catalogue: The items, as the environment's ``catalogue`` attribute gives them.
        worker: ``"constrained"`` draws slates whose balance is at least w_fair;
            ``"unconstrained"`` keeps eq. 6 alone; ``"gaussian"`` draws the environment's scorer.
        decision_period: c, steps between two decisions of the manager.
        item_features: (n_items, f) float, by which the worker knows the items in place of the
            catalogue's embedding (:func:`dsrm_agents.hrl.features.item_features` makes them).
        item_quality: (n_items,) float in place of the item's logged effect, such as
            :func:`dsrm_agents.common.quality.unbiased_quality` gives.
        hidden: Width of the two hidden layers of the manager and of each critic.
        manager_lr_scale: Manager's learning rate over the worker's.
        critic_lr_scale: Critics' learning rate over the worker's.

    Raises:
        ConfigError: The spaces are not those that the worker needs, or an option is unknown, or
            the Gaussian worker was given features or qualities.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        catalogue: Catalogue,
        worker: str = "constrained",
        decision_period: int = 1,
        item_features: NDArray[np.floating] | None = None,
        item_quality: NDArray[np.floating] | None = None,
        hidden: int = 64,
        manager_lr_scale: float = 1.0,
        critic_lr_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.kind = check_choice("worker", worker, WORKERS)
        check_spaces(observation_space, action_space, worker)
        if worker == "gaussian" and not (item_features is None and item_quality is None):
            raise ConfigError(
                "item_features and item_quality are for workers that draw slates: what a gaussian "
                "worker draws is applied by the environment, to the catalogue's embedding."
            )
        self.decision_period = check_whole("decision_period", decision_period, 1)
        self.catalogue = catalogue
        self.item_features = item_features
        self.item_quality = item_quality
        self.hidden = hidden
        self.lr_scales = {
            "manager": manager_lr_scale,
            "worker": 1.0,
            "manager_critic": critic_lr_scale,
            "worker_critic": critic_lr_scale,
        }
        for option in kwargs:
            check_choice("An option of HierarchicalPolicy", option, PASSED_ON)
        kwargs["features_extractor_class"] = FlattenExtractor
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        """Makes the modules and the optimiser; replaces the base class's one head an action."""
        assert isinstance(self.observation_space, spaces.Dict)
        state_dim = int(np.prod(self.observation_space["state"].shape or ()))
        items = Items(self.catalogue, self.item_features, self.item_quality)
        self.worker: Worker
        if isinstance(self.action_space, spaces.MultiDiscrete):
            slate_size = len(self.action_space.nvec)
            self.worker = SlateWorker(items, state_dim, slate_size, self.kind == "constrained")
        else:
            self.worker = QueryWorker(items, state_dim)
        self.manager = _mlp(state_dim, self.hidden, 2)
        self.manager_critic = _mlp(state_dim, self.hidden, 1)
        self.worker_critic = _mlp(state_dim, self.hidden, 1)
        groups = {
            "manager": list(self.manager.parameters()),
            "worker": [one for one in self.worker.parameters() if one.requires_grad],
            "manager_critic": list(self.manager_critic.parameters()),
            "worker_critic": list(self.worker_critic.parameters()),
        }
        rate = lr_schedule(1)
        self.optimizer = self.optimizer_class(
            [
                {"params": group, "lr": rate * self.lr_scales[name], "name": name}
                for name, group in groups.items()
            ],
            **self.optimizer_kwargs,
        )

    @property
    def draws_items(self) -> bool:
        """Whether the worker draws a slate's items one by one, so that each has its response."""
        return isinstance(self.worker, SlateWorker)

    def set_fairness(self, longtail_share: float | None) -> None:
        """Turns the dial: every session is kept at a share of long-tail items, without training.

        The worker still ranks by what it learned; how many popular items a slate holds is no longer
        the manager's choice. A share that a slate cannot express is met over the slates.

        Args:
            longtail_share: In [0, 1], 0.5 being balanced; ``None`` gives the choice back.

        Raises:
            ConfigError: Outside [0, 1], or the worker's slates cannot be bounded.
        """
        if longtail_share is not None and not 0.0 <= longtail_share <= 1.0:
            raise ConfigError(
                f"The long-tail share must lie in [0, 1] or be None, got {longtail_share}."
            )
        if self.kind != "constrained":
            raise ConfigError(
                f"The fairness of a worker of kind {self.kind!r} cannot be set: its slates are "
                'not bounded. Train with worker="constrained".'
            )
        self.longtail_share.fill_(torch.nan if longtail_share is None else longtail_share)

    @property
    def longtail_share(self) -> Tensor:
        """() float32: the share that :meth:`set_fairness` set, NaN for none."""
        assert isinstance(self.worker, SlateWorker)
        return self.worker.longtail_share

    def decide(
        self,
        obs: PyTorchObs,
        held: Tensor | None = None,
        due: Tensor | None = None,
        deterministic: bool = False,
    ) -> Decision:
        """Draws, or takes the best of, both levels.

        Args:
            obs: Observations of N sessions.
            held: (N, 2) the manager's last draws; ``None`` where all are due.
            due: (N,) bool, where the manager decides anew.
            deterministic: Whether to take the best instead of drawing.

        Returns:
            The decision.
        """
        state, exposed = state_and_exposed(obs)
        manager = self._manager_distribution(state)
        control = manager.mean if deterministic else manager.sample()
        if held is not None and due is not None:
            control = torch.where(due[:, None], control, held)
        request = self._request(state, exposed, control)
        draws, log_prob = self.worker.act(request, deterministic)
        return Decision(
            actions=self.worker.action(draws),
            control=control,
            draws=draws,
            control_log_prob=manager.log_prob(control).sum(1),
            draw_log_prob=log_prob,
            values=self._values(state),
        )

    def evaluate_decision(self, obs: PyTorchObs, control: Tensor, draws: Tensor) -> Evaluation:
        """Log-probabilities and values of past decisions.

        No gradient crosses levels: the worker sees ``control`` as data.

        Args:
            obs: Observations of N sessions.
            control: (N, 2) the manager's draws.
            draws: (N, m) the worker's.

        Returns:
            The evaluation.
        """
        state, exposed = state_and_exposed(obs)
        log_prob = self.worker.log_prob(self._request(state, exposed, control), draws)
        manager = self._manager_distribution(state).log_prob(control).sum(1)
        return Evaluation(manager, log_prob, self._values(state))

    def worker_entropy(self, obs: PyTorchObs, control: Tensor) -> Tensor:
        """(N,) float32, in nats; for slates of the first draw, a pass over all items."""
        state, exposed = state_and_exposed(obs)
        return self.worker.entropy(self._request(state, exposed, control))

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
        """Scores of eq. 6 for any items, those that the catalogue does not know included.

        Args:
            obs: Observations of N sessions.
            described: (m, f) float32, as the item tower reads items: their features, or their
                embedding if there are none.
            exposures: (m,) how often the platform has shown each, 0 for new ones.

        Returns:
            (N, m) float32, under the z that the manager would choose.
        """
        state, exposed = state_and_exposed(obs)
        request = self._request(state, exposed, self._manager_distribution(state).mean)
        popularity = torch.as_tensor(self.catalogue.standardised_log(exposures), device=self.device)
        return self.worker.scorer(request) @ self.worker.items.keys(described, popularity).T

    # The Stable-Baselines3 contract.

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
        held, age = (np.zeros((n, 2), np.float32), np.zeros(n, int)) if state is None else state
        if episode_start is not None:
            age = np.where(episode_start, 0, age)
        due = torch.as_tensor(age % self.decision_period == 0, device=self.device)
        with torch.no_grad():
            decision = self.decide(
                obs, torch.as_tensor(held, device=self.device), due, deterministic
            )
        actions = decision.actions.cpu().numpy()
        kept = (decision.control.cpu().numpy(), age + 1)
        return (actions if vectorised else actions[0]), kept

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (N, ...), worker values (N, 1) and the actions' log-probabilities (N,)."""
        decision = self.decide(obs, deterministic=deterministic)
        return decision.actions, decision.values[:, 1:], decision.draw_log_prob.sum(1)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self.decide(observation, deterministic=deterministic).actions

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """(N, 1) float32: the worker's values."""
        return self.level_values(obs)[:, 1:]

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> Any:
        """Refused: an action's probability needs the manager's draw, which is not in the action.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("HierarchicalPolicy has two levels: train it with HierarchicalPPO.")

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        kept = ("observation_space", "action_space", "lr_schedule", "optimizer_class")
        return {name: parameters[name] for name in (*kept, "optimizer_kwargs")} | {
            "catalogue": self.catalogue,
            "worker": self.kind,
            "decision_period": self.decision_period,
            "item_features": self.item_features,
            "item_quality": self.item_quality,
            "hidden": self.hidden,
            "manager_lr_scale": self.lr_scales["manager"],
            "critic_lr_scale": self.lr_scales["worker_critic"],
        }

    def _manager_distribution(self, state: Tensor) -> Normal:
        return Normal(self.manager(state), EXPLORATION)

    def _values(self, state: Tensor) -> Tensor:
        return torch.cat([self.manager_critic(state), self.worker_critic(state)], dim=1)

    def _request(self, state: Tensor, exposed: Tensor, control: Tensor) -> Request:
        return Request(state, exposed, *self.weights(control))


def check_spaces(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], worker: str
) -> None:
    """Checks that a worker can act in an environment.

    Raises:
        ConfigError: It needs other spaces.
    """
    action_type = "continuous" if worker == "gaussian" else "slate"
    check_item_spaces(f"The {worker} worker", observation_space, action_space, action_type)


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
