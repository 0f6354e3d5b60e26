"""The fitted model: answers from logged histories, running sessions, checkpoints."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.errors import CheckpointError
from kuaisim_gym.simulator.sequential.config import SequentialConfig
from kuaisim_gym.simulator.sequential.network import SequenceNetwork
from kuaisim_gym.simulator.sequential.sequences import Sequences, batches
from kuaisim_gym.simulator.sequential.sessions import RESET_EVENTS, SequentialSessions
from kuaisim_gym.tensors import TensorFile, open_tensors, save_tensors

FloatArray = NDArray[np.float32]
Index = NDArray[np.integer]

_FORMAT = "kuaisim-sequential-model-1"
_BLOCK = 1 << 22  # numbers gathered at once


class SequentialModel:
    """A sequential response model in simulation: no dropout, no gradients.

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
        # Filled as users are asked for.
        self._scores = torch.zeros(len(users), len(behaviours), self.config.encoding)
        self._scored: NDArray[np.bool_] = np.zeros(len(users), dtype=bool)

    @property
    def config(self) -> SequentialConfig:
        """Sizes."""
        return self.network.config

    def probability(self, users: Index, items: Index) -> FloatArray:
        """Probability of a positive response, given each user's logged history.

        Args:
            users: Integer positions, broadcastable with ``items``.
            items: Integer positions.

        Returns:
            float32 in [0, 1], of the broadcast shape.
        """
        return self.response(self._logits(users, items, 1))[..., 0]

    def feedback(self, users: Index, items: Index) -> FloatArray:
        """As :meth:`probability`, for every behaviour, along a last axis of size B."""
        return self.response(self.logits(users, items))

    def logits(self, users: Index, items: Index) -> FloatArray:
        """As :meth:`feedback`, but log-odds."""
        return self._logits(users, items, len(self.behaviours))

    def begin(self, n_sessions: int, engine: object = None) -> SequentialSessions:
        """Room for N sessions, whose answers follow what happens in them; torch computes."""
        return SequentialSessions(self, n_sessions)

    def rescaled(self, scale: FloatArray, shift: FloatArray) -> SequentialModel:
        """The model whose log-odds are ``scale * log-odds + shift``, both (B,) float32."""
        other = copy.copy(self)  # shares weights, histories and what is known of them
        other.scale = np.asarray(self.scale * scale, dtype=np.float32)
        other.shift = np.asarray(self.shift * scale + shift, dtype=np.float32)
        return other

    def adjusted(self, raw: FloatArray) -> FloatArray:
        """Log-odds (..., b) of the first b behaviours as the network gives them, rescaled."""
        b = raw.shape[-1]
        return np.asarray(raw * self.scale[:b] + self.shift[:b], dtype=np.float32)

    @staticmethod
    def response(logits: FloatArray) -> FloatArray:
        """Probabilities of log-odds: a single sigmoid, where KuaiSim has two."""
        return np.asarray(expit(logits), dtype=np.float32)

    def recall(
        self, users: NDArray[np.int64], kept: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Reads the logged histories of some users.

        Args:
            users: (m,) positions.
            kept: Takes in each layer's keys and values, (m, heads, L, d).

        Returns:
            (m, B, encoding) scores and (m,) int64, how many of the L places each history takes.
        """
        network = self.network
        rows = self.histories.padded(users, self.logged[users])
        events = network.events(self.items[rows.items], rows.responses)
        # A history that was cut begins with the start too, but too far back to be seen from the
        # last ``window`` places.
        states = network(network.with_start(events), kept)
        last = states[torch.arange(len(users)), rows.lengths]
        return network.scores(last, self.users[torch.from_numpy(users)]), rows.lengths + 1

    @torch.inference_mode()
    def _logits(self, users: Index, items: Index, count: int) -> FloatArray:
        """Log-odds of the first ``count`` behaviours."""
        users, items = np.asarray(users), np.asarray(items)
        self._score(users)
        shape = np.broadcast_shapes(users.shape, items.shape)
        one_user_a_row = users.shape[-1:] == (1,) and items.ndim > 0
        rows, k = (shape[:-1], shape[-1]) if one_user_a_row else (shape, 1)
        shared = one_user_a_row and items.size == k  # the same items for all users
        asked = np.broadcast_to(users[..., 0] if one_user_a_row else users, rows).reshape(-1)
        found = np.empty((len(asked), k, count), dtype=np.float32)
        if shared:
            encoded = self._encoded(items.reshape(-1))
        else:
            items = np.broadcast_to(items, shape).reshape(-1, k)
        size = count * (self.config.encoding + k) + (0 if shared else k * self.config.encoding)
        step = max(1, _BLOCK // size)
        for first in range(0, len(asked), step):
            part = slice(first, first + step)
            scores = self._scores[torch.from_numpy(asked[part].astype(np.int64)), :count]
            own = encoded if shared else self._encoded(items[part])
            found[part] = self.network.logits(scores, own).numpy()
        return self.adjusted(found.reshape(*shape, count))

    def _encoded(self, items: Index) -> Tensor:
        return self.items[torch.from_numpy(items.astype(np.int64))]

    def _score(self, users: Index) -> None:
        """Reads the histories of those users who were not asked for before."""
        asked = np.zeros(len(self._scored), dtype=bool)
        asked[users] = True
        missing = np.flatnonzero(asked & ~self._scored)
        for part in batches(self.logged[missing], RESET_EVENTS):
            self._scores[torch.from_numpy(missing[part])] = self.recall(missing[part])[0]
        self._scored[missing] = True

    def save(self, path: str | Path) -> None:
        """Writes weights, encoded users and items, and histories to one safetensors file."""
        weights = self.network.state_dict()
        arrays = {f"network.{name}": tensor.numpy() for name, tensor in weights.items()}
        arrays |= {"users": self.users.numpy(), "items": self.items.numpy()}
        arrays |= {"scale": self.scale, "shift": self.shift, "starts": self.histories.starts}
        arrays |= {"events": self.histories.items, "responses": self.histories.responses}
        save_tensors(
            path,
            _FORMAT,
            arrays,
            config=json.dumps(asdict(self.config)),
            behaviours=json.dumps(self.behaviours),
            losses=json.dumps(self.losses),
        )

    @classmethod
    def load(cls, path: str | Path, dataset: Dataset) -> SequentialModel:
        """Reads what :meth:`save` wrote.

        Args:
            path: The file. It holds the histories too, which need not be those of
                ``dataset.log``: a simulator of the test source is placed by other rows.
            dataset: The data that it was fitted on, or data of the same users and items.

        Returns:
            The model.

        Raises:
            CheckpointError: The file is missing, torn or something else, or it was fitted on a
                dataset of other users, items or behaviours.
        """
        with open_tensors(path, _FORMAT, "sequential response model") as file:
            model = cls._restored(file)
        found = (len(model.users), len(model.items), model.behaviours)
        expected = (dataset.n_users, len(dataset.item_ids), dataset.behaviours)
        if found != expected:
            raise CheckpointError(
                f"{path} was fitted on {found[0]} users, {found[1]} items and behaviours "
                f"{found[2]}; the dataset has {expected[0]}, {expected[1]} and {expected[2]}. Use "
                "the dataset that it was fitted on."
            )
        return model

    @classmethod
    def _restored(cls, file: TensorFile) -> SequentialModel:
        header = {
            name: json.loads(file.header[name]) for name in ("config", "behaviours", "losses")
        }
        behaviours = tuple(header["behaviours"])
        network = SequenceNetwork(len(behaviours), SequentialConfig(**header["config"]))
        tensors = {name: torch.from_numpy(array) for name, array in file.arrays.items()}
        prefix = "network."
        network.load_state_dict(
            {name[len(prefix) :]: tensors[name] for name in tensors if name.startswith(prefix)}
        )
        names = ("starts", "events", "responses")
        histories = Sequences(*(file.arrays[name] for name in names))
        losses = tuple(header["losses"])
        model = cls(behaviours, network, tensors["users"], tensors["items"], histories, losses)
        return model.rescaled(file.arrays["scale"], file.arrays["shift"])
