"""The fitted model: answers from logged histories, checkpoints, and sessions that go on.

In a session a user's history grows by one slate per step, and only the slate is computed.
"""

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
from torch.nn import functional

from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.errors import CheckpointError, ResetNeededError
from kuaisim_gym.simulator.response import LogitModel, SessionAnswers
from kuaisim_gym.simulator.sequential.config import SequentialConfig
from kuaisim_gym.simulator.sequential.network import Layer, SequenceNetwork
from kuaisim_gym.simulator.sequential.sequences import RESET_EVENTS, Sequences, batches
from kuaisim_gym.snapshots import Snapshot, within
from kuaisim_gym.tensors import TensorFile, open_tensors, save_tensors

FloatArray = NDArray[np.float32]
Index = NDArray[np.integer]

_FORMAT = "kuaisim-sequential-model-1"
_BLOCK = 1 << 22  # numbers gathered at once
_CHUNK = 13  # events appended at once at most; longer slates are split


class SequentialModel(LogitModel):
    """The sequential response model in simulation: no dropout, no gradients.

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
        self._scores = torch.zeros(len(users), len(behaviours), self.config.encoding)
        self._scored: NDArray[np.bool_] = np.zeros(len(users), dtype=bool)

    @property
    def config(self) -> SequentialConfig:
        """Sizes of the network."""
        return self.network.config

    def rescaled(self, scale: FloatArray, shift: FloatArray) -> SequentialModel:
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

    def probability(self, users: Index, items: Index) -> FloatArray:
        return self.response(self._logits(users, items, 1))[..., 0]

    def feedback(self, users: Index, items: Index) -> FloatArray:
        return self.response(self.logits(users, items))

    def logits(self, users: Index, items: Index) -> FloatArray:
        return self._logits(users, items, len(self.behaviours))

    def begin(self, n_sessions: int, engine: object = None) -> SequentialSessions:
        return SequentialSessions(self, n_sessions)

    @torch.inference_mode()
    def _logits(self, users: Index, items: Index, count: int) -> FloatArray:
        """Log-odds of the first ``count`` behaviours."""
        users, items = np.asarray(users), np.asarray(items)
        self.read(users)
        shape = np.broadcast_shapes(users.shape, items.shape)
        one_user_a_row = users.shape[-1:] == (1,) and items.ndim > 0
        rows, k = (shape[:-1], shape[-1]) if one_user_a_row else (shape, 1)
        shared = one_user_a_row and items.size == k  # the same items for all users
        row_users = users[..., 0] if one_user_a_row else users
        row_users = np.broadcast_to(row_users, rows).reshape(-1).astype(np.int64)
        raw = np.empty((len(row_users), k, count), dtype=np.float32)
        if shared:
            encoded = self.encoded(items.reshape(-1))
        else:
            items = np.broadcast_to(items, shape).reshape(-1, k)
        size = count * (self.config.encoding + k) + (0 if shared else k * self.config.encoding)
        step = max(1, _BLOCK // size)
        for first in range(0, len(row_users), step):
            block = slice(first, first + step)
            scores = self._scores[torch.from_numpy(row_users[block]), :count]
            block_items = encoded if shared else self.encoded(items[block])
            raw[block] = self.network.logits(scores, block_items).numpy()
        return self.adjusted(raw.reshape(*shape, count))

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
        """Reads the file that :meth:`save` wrote.

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
        fitted = (len(model.users), len(model.items), model.behaviours)
        expected = (dataset.n_users, len(dataset.item_ids), dataset.behaviours)
        if fitted != expected:
            raise CheckpointError(
                f"{path} was fitted on {fitted[0]} users, {fitted[1]} items and behaviours "
                f"{fitted[2]}; the dataset has {expected[0]}, {expected[1]} and {expected[2]}. Use "
                "the dataset that it was fitted on."
            )
        return model

    @classmethod
    def _restored(cls, file: TensorFile) -> SequentialModel:
        config, behaviours, losses = (
            json.loads(file.header[name]) for name in ("config", "behaviours", "losses")
        )
        network = SequenceNetwork(len(behaviours), SequentialConfig(**config))
        weights = within("network", file.arrays)
        network.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights})
        users, items = (torch.from_numpy(file.arrays[name]) for name in ("users", "items"))
        histories = Sequences(*(file.arrays[name] for name in ("starts", "events", "responses")))
        model = cls(tuple(behaviours), network, users, items, histories, tuple(losses))
        return model.rescaled(file.arrays["scale"], file.arrays["shift"])


class SequentialSessions(SessionAnswers):
    """N sessions, each with its user's history.

    An event's keys and values never change once computed, so each layer keeps those of the last
    events in a ring, and only new events are computed. The ring's next position is the same for
    all sessions: each step moves all of them, and a logged history is stored so that it ends there.
    So one penalty by age serves all sessions, and positions before a short history are closed
    session by session.

    The events of a slate are appended in slate order and later ones see earlier ones, as
    neighbours do in training, although they were shown at once.

    Args:
        model: The fitted model.
        n_sessions: N.
    """

    @torch.inference_mode()
    def __init__(self, model: SequentialModel, n_sessions: int) -> None:
        self.model = model
        config = model.config
        self._reach = config.window - 1  # events that the next one may still attend to
        self._capacity = self._reach + _CHUNK
        shape = (config.layers, n_sessions, config.heads, self._capacity)
        self._keys = torch.zeros(*shape, config.width // config.heads)
        self._values = torch.zeros_like(self._keys)
        self._closed = torch.full((n_sessions, self._capacity), -torch.inf)
        self._next = 0
        self._users = torch.zeros(n_sessions, dtype=torch.int64)
        self._scores = torch.zeros(n_sessions, len(model.behaviours), config.encoding)
        self._begun: NDArray[np.bool_] = np.zeros(n_sessions, dtype=bool)

    @torch.inference_mode()
    def reset(self, slots: NDArray[np.bool_], users: NDArray[np.integer]) -> None:
        chosen = torch.from_numpy(np.flatnonzero(slots))
        self._users[chosen] = torch.from_numpy(users.astype(np.int64))
        self._begun |= slots
        ring = (self._next + torch.arange(-self._reach, 0)) % self._capacity
        for batch in batches(self.model.logged[users], RESET_EVENTS):
            memory: list[tuple[Tensor, Tensor]] = []
            scores, lengths = self.model.recall(users[batch].astype(np.int64), memory)
            rows = chosen[torch.from_numpy(batch)]
            self._scores[rows] = scores
            positions = lengths[:, None] + torch.arange(-self._reach, 0)
            real = positions >= 0
            order = torch.arange(len(batch))[:, None]
            for layer, (keys, values) in enumerate(memory):
                for store, fresh in ((self._keys, keys), (self._values, values)):
                    store[layer][rows[:, None], :, ring] = fresh[order, :, positions.clamp(min=0)]
            self._closed[rows] = -torch.inf
            self._closed[rows[:, None], ring] = torch.where(real, 0.0, -torch.inf)

    @torch.inference_mode()
    def logits(self, slates: NDArray[np.integer]) -> FloatArray:
        """Log-odds of every behaviour for (N, K) item positions: (N, K, B) float32.

        Raises:
            ResetNeededError: A session has not begun.
        """
        self._check()
        raw = self.model.network.logits(self._scores, self.model.encoded(slates)).numpy()
        return self.model.adjusted(raw)

    def feedback(self, slates: NDArray[np.integer]) -> FloatArray:
        return self.model.response(self.logits(slates))

    @torch.inference_mode()
    def observe(self, slates: NDArray[np.integer], feedback: FloatArray) -> None:
        self._check()
        model = self.model
        responses = torch.from_numpy(feedback.astype(np.float32))
        events = model.network.events(model.encoded(slates), responses)
        state = events[:, -1]
        for chunk in events.split(_CHUNK, dim=1):
            state = self._append(chunk)
        self._scores = model.network.scores(state, model.users[self._users])

    def snapshot(self) -> Snapshot:
        tensors = {name: tensor.numpy().copy() for name, tensor in self._tensors().items()}
        return {**tensors, "begun": self._begun.copy(), "next": np.array(self._next)}

    @torch.inference_mode()
    def restore(self, snapshot: Snapshot) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.from_numpy(snapshot[name]))
        self._begun[...] = snapshot["begun"]
        self._next = int(snapshot["next"])

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "keys": self._keys,
            "values": self._values,
            "closed": self._closed,
            "users": self._users,
            "scores": self._scores,
        }

    def _append(self, events: Tensor) -> Tensor:
        """Appends (N, k, width) events, k at most ``_CHUNK``; returns the (N, width) state."""
        network, k = self.model.network, events.shape[1]
        ring = (self._next + torch.arange(k)) % self._capacity
        self._next = (self._next + k) % self._capacity
        self._closed[:, ring] = 0.0
        # Ages at the last of the new events; at earlier ones they are smaller.
        ages = (self._next - 1 - torch.arange(self._capacity)) % self._capacity
        ages = ages - torch.arange(k - 1, -1, -1)[:, None]
        mask = network.penalty(ages) + self._closed[:, None, None, :]
        x = events
        for number, layer in enumerate(network.layers):
            assert isinstance(layer, Layer)
            keys, values = self._keys[number], self._values[number]
            keys[:, :, ring], values[:, :, ring] = layer.key_value(x)
            if number == len(network.layers) - 1:
                x, mask = x[:, -1:], mask[:, :, -1:]  # only the state after the last is asked for
            attended = functional.scaled_dot_product_attention(layer.query(x), keys, values, mask)
            x = layer.finish(x, attended)
        return x[:, 0]

    def _check(self) -> None:
        if not self._begun.all():
            slot = int(np.flatnonzero(~self._begun)[0])
            raise ResetNeededError(f"Session {slot} has not begun: call reset() first.")
