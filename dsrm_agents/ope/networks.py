"""Trained networks as policies that know their probabilities."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    MultiCategoricalDistribution,
)
from torch import Tensor

from dsrm_agents.ope.logged import Context, FloatArray
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.catalogue import Catalogue


@runtime_checkable
class DrawsSlates(Protocol):
    """A Stable-Baselines3 policy that draws slates by itself, such as HRL's and HSRL's."""

    def draw_slates(self, obs: Any) -> tuple[Tensor, Tensor]:
        """(N, K) item positions, and (N, K) log-probabilities given the slate's earlier items."""

    def slate_log_prob(self, obs: Any, slates: Tensor) -> Tensor:
        """(N, K) log-probabilities of (N, K) slates, likewise."""


class NetworkPolicy:
    """A trained agent that draws items: HierarchicalPPO, HSRL, or one with categorical actions.

    Args:
        model: The agent. Its policy has ``draw_slates`` and ``slate_log_prob``, or draws every
            place of the slate from a categorical distribution, as PPO and A2C do with
            ``action_type="slate"`` or ``"discrete"``; of such a slate an item may come twice.

    Raises:
        ConfigError: Its actions are no items, so that a slate's probability is not known: the
            scorers and shares of continuous agents rank items, which is not to draw them.
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self.policy: Any = model.policy
        #: Items that it was trained on; ``None`` where it knows no more than their number.
        self.catalogue: Catalogue | None = getattr(model, "policy_kwargs", {}).get("catalogue")
        distribution = getattr(self.policy, "action_dist", None)
        drawn = isinstance(distribution, CategoricalDistribution | MultiCategoricalDistribution)
        if not (isinstance(self.policy, DrawsSlates) or drawn):
            raise ConfigError(
                f"{type(model).__name__} with {type(self.policy).__name__} draws no items, and the "
                "probability of its slates is not known: log a HierarchicalPPO, HSRL, an agent "
                "with categorical actions, or a SoftmaxPolicy of its item scores."
            )

    def act(
        self, context: Context, slate_size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """Draws slates, as of :class:`~dsrm_agents.ope.logged.StochasticPolicy`.

        Torch draws them, from a seed that ``rng`` gives; its own generator stays as it was.

        Raises:
            ConfigError: The observations, or the size of the slates, are not those it learned on.
        """
        obs = self._tensors(context)
        if slate_size != self.slate_size:
            raise ConfigError(
                f"The network shows slates of {self.slate_size} items, and {slate_size} are asked "
                f"for: make the sessions with slate_size={self.slate_size}."
            )
        device = self.policy.device
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(rng.integers(2**62)))
            if isinstance(self.policy, DrawsSlates):
                slates, log_prob = self.policy.draw_slates(obs)
            else:
                slates = self.policy.get_distribution(obs).sample().reshape(-1, slate_size)
                log_prob = self._of_places(obs, slates)
        return slates.cpu().numpy().astype(np.int64), log_prob.double().cpu().numpy()

    def log_prob(self, context: Context, slates: NDArray[np.int64]) -> FloatArray:
        """Log-probabilities, as of :class:`~dsrm_agents.ope.logged.StochasticPolicy`.

        An agent that draws slates shows no item twice, whatever score its network has for one.
        """
        with torch.no_grad():
            obs = self._tensors(context)
            shown = torch.as_tensor(slates, device=self.policy.device)
            drawn = isinstance(self.policy, DrawsSlates)
            log_prob = (
                self.policy.slate_log_prob(obs, shown) if drawn else self._of_places(obs, shown)
            )
        never = context.repeats(slates) if drawn else False
        return np.where(never, -np.inf, log_prob.double().cpu().numpy())

    @property
    def _choices(self) -> NDArray[np.int64]:
        """(K,) items to choose from at each place of a slate."""
        space = self.policy.action_space
        return np.atleast_1d(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n)

    @property
    def n_items(self) -> int:
        """Items that it chooses from."""
        return int(self._choices[0])

    @property
    def slate_size(self) -> int:
        """K."""
        return len(self._choices)

    def _tensors(self, context: Context) -> Any:
        if context.observation is None:
            raise ConfigError("A network reads observations: log sessions with observe=True.")
        expected = _shapes(self.policy.observation_space)
        shapes = _shapes(context.observation)
        if shapes != {name: (len(context.users), *shape) for name, shape in expected.items()}:
            raise ConfigError(
                f"The network reads observations of shapes {expected}, got {shapes} of "
                f"{len(context.users)} sessions: use the environment and the options that it was "
                "trained with."
            )
        self.policy.set_training_mode(False)
        return self.policy.obs_to_tensor(context.observation)[0]

    def _of_places(self, obs: Any, slates: Tensor) -> Tensor:
        """(N, K) log-probabilities of items that are drawn place by place."""
        distribution = self.policy.get_distribution(obs).distribution
        if isinstance(distribution, list):
            positions = zip(distribution, slates.unbind(1), strict=True)
            return torch.stack([position.log_prob(item) for position, item in positions], dim=1)
        return torch.as_tensor(distribution.log_prob(slates[:, 0]))[:, None]


def _shapes(observation: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of an observation, or of its space, by key; of an array, by none."""
    arrays = observation.spaces if isinstance(observation, spaces.Dict) else observation
    arrays = arrays if isinstance(arrays, dict) else {"": arrays}
    return {name: tuple(array.shape or ()) for name, array in arrays.items()}
