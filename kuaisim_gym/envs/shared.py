"""Common base of the environments, and the protocol of agents."""

from __future__ import annotations

import inspect
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.rendering import Canvas
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.groups import Groups

RENDER_FPS = 4  # steps a second of a recorded session


class Agent(Protocol):
    """Anything with the ``predict`` of a Stable-Baselines3 model."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """Actions for a batch of observations, and the next hidden state."""


@runtime_checkable
class DrawingAgent(Agent, Protocol):
    """An agent that draws slates and tells their probabilities."""

    def draw(self, observation: Any) -> tuple[Any, NDArray[np.float64]]:
        """Actions for a batch of N observations, and the log-probabilities of their items.

        These are (N, K), in nats, each item's given the slate's earlier ones: a slate's is the sum.
        """


class BatchView:
    """Attributes of all environments over a batch, for agents, wrappers and viewers."""

    batch: SessionBatch
    canvas: Canvas | None = None  # made for the first frame

    @property
    def preference(self) -> str:
        """Content of the state vector about the preference, the option of this name."""
        return self.batch.encoder.preference

    @property
    def preference_slice(self) -> slice:
        """Position of the preference in the state vector."""
        return self.batch.encoder.preference_slice

    @property
    def preference_unit(self) -> str:
        """Unit of the preference in the state vector, see the observation encoder's."""
        return self.batch.encoder.preference_unit

    @property
    def dataset(self) -> Dataset:
        """The data of the world."""
        return self.batch.dataset

    @property
    def world(self) -> str:
        """The world in a few words, which say whether it is synthetic."""
        return self.batch.simulator.world

    @property
    def dataset_description(self) -> str:
        """The data of the world in a line, likewise."""
        return self.batch.dataset.description

    @property
    def dataset_fingerprint(self) -> str:
        """Fingerprint of the dataset, for processes that need not load the dataset itself."""
        return self.batch.dataset.fingerprint

    @property
    def catalogue(self) -> Catalogue:
        """The items, as the platform knows them from the train log."""
        return self.batch.catalogue

    @property
    def groups(self) -> Groups:
        """Groups of the items, between which exposures are balanced."""
        return self.batch.groups

    @property
    def reward_space(self) -> spaces.Box:
        """Rewards of one session, as MO-Gymnasium has it: of shape (D,) where they are vectors."""
        return self.batch.reward_space

    @property
    def reward_dim(self) -> int:
        """Numbers in a reward, as a wrapper of MO-Gymnasium asks for."""
        return int(np.prod(self.reward_space.shape))

    @property
    def free_counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bounds on a slate's items of each group that cost nothing, see the session core's."""
        return self.batch.core.free_counts()

    def drawn(self) -> Canvas:
        """The canvas of all frames, made by the first call."""
        if self.canvas is None:
            self.canvas = Canvas()
        return self.canvas

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the window, if there is one, and drops the canvas."""
        if self.canvas is not None:
            self.canvas.close()
            self.canvas = None


def wants_masks(agent: Agent) -> bool:
    """Tells if an agent's ``predict`` takes action masks, as sb3-contrib's MaskablePPO does."""
    return "action_masks" in inspect.signature(agent.predict).parameters
