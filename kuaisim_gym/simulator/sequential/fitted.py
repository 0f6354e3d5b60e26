"""The fitted network with users, items and histories: the log-odds that a user begins with."""

from __future__ import annotations

import copy
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from kuaisim_gym.precision import single_precision
from kuaisim_gym.simulator.sequential.config import SequentialConfig
from kuaisim_gym.simulator.sequential.network import SequenceNetwork
from kuaisim_gym.simulator.sequential.sequences import RESET_EVENTS, Sequences, batches

FloatArray = NDArray[np.float32]


class FittedSequences:
    """A fitted network in simulation: no dropout, no gradients.

    It holds users and items encoded, their features included, and the end of each user's logged
    history, as far back as an answer can depend on it. Encoders are needed in training alone.

    Args:
        behaviours: Names of the B behaviours; the first is the response.
        network: Turns events into log-odds.
        users: (n_users, encoding) float32, encoded users.
        items: (n_items, encoding) float32, encoded items.
        histories: Logged events of all users; only the last ``config.reach`` are kept.
        losses: Held-out loss after each epoch; the weights are those of the least.

    Attributes:
        histories: The last logged events of all users.
        logged: (n_users,) int64, events kept of each user.
        scale: (B,) float32, factor of log-odds; one unless :meth:`rescaled`.
        shift: (B,) float32, added to scaled log-odds; zero unless :meth:`rescaled`.
    """

    @single_precision()
    def __init__(
        self,
        behaviours: tuple[str, ...],
        network: SequenceNetwork,
        users: Tensor,
        items: Tensor,
        histories: Sequences,
        losses: tuple[float, ...] = (),
    ) -> None:
        self.behaviours = behaviours
        self.network = network.eval().requires_grad_(False)
        self.users = users
        self.items = items
        self.losses = losses
        self.scale: FloatArray = np.ones(len(behaviours), dtype=np.float32)
        self.shift: FloatArray = np.zeros(len(behaviours), dtype=np.float32)
        self.histories = histories.last(self.config.reach)
        self.logged = self.histories.lengths
        self._scores = torch.zeros(len(users), len(behaviours), self.config.encoding)
        self._scored: NDArray[np.bool_] = np.zeros(len(users), dtype=bool)

    @property
    def config(self) -> SequentialConfig:
        """Sizes of the network."""
        return self.network.config

    def rescaled(self, scale: FloatArray, shift: FloatArray) -> Self:
        """The model with log-odds ``scale * log-odds + shift``, both (B,) float32."""
        model = copy.copy(self)  # shares weights, histories and scores
        model.scale = np.asarray(self.scale * scale, dtype=np.float32)
        model.shift = np.asarray(self.shift * scale + shift, dtype=np.float32)
        return model

    def adjusted(self, raw: FloatArray) -> FloatArray:
        """Log-odds (..., b) of the first b behaviours as the network gives them, rescaled."""
        b = raw.shape[-1]
        return np.asarray(raw * self.scale[:b] + self.shift[:b], dtype=np.float32)

    @staticmethod
    def response(logits: FloatArray) -> FloatArray:
        """Probabilities of log-odds: a single sigmoid, where KuaiSim has two."""
        return np.asarray(expit(logits), dtype=np.float32)

    def encoded(self, items: NDArray[np.integer]) -> Tensor:
        """(..., encoding) float32, the encoded items at (...) positions."""
        return self.items[torch.from_numpy(items.astype(np.int64))]

    def read(self, users: NDArray[np.integer]) -> None:
        """Fills the scores of users by their logged histories, each of which is read once."""
        needed = np.zeros(len(self._scored), dtype=bool)
        needed[users] = True
        missing = np.flatnonzero(needed & ~self._scored)
        for batch in batches(self.logged[missing], RESET_EVENTS):
            self._scores[torch.from_numpy(missing[batch])] = self.recall(missing[batch])[0]
        self._scored[missing] = True

    def recall(
        self, users: NDArray[np.int64], memory: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Reads the logged histories of some users.

        Args:
            users: (m,) positions.
            memory: Takes in each layer's keys and values, (m, heads, L, d).

        Returns:
            (m, B, encoding) scores and (m,) int64, how many of the L positions each history takes.
        """
        network = self.network
        rows = self.histories.padded(users, self.logged[users])
        events = network.events(self.items[rows.items], rows.responses)
        # A history that was cut begins with the start too, but too far back to be seen from the
        # last ``window`` positions.
        states = network(network.with_start(events), memory)
        last = states[torch.arange(len(users)), rows.lengths]
        return network.scores(last, self.users[torch.from_numpy(users)]), rows.lengths + 1
