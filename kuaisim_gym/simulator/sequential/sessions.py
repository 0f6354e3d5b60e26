"""Sessions that go on: a user's history grows by one slate per step, and only it is computed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kuaisim_gym.errors import ResetNeededError
from kuaisim_gym.precision import single_precision
from kuaisim_gym.simulator.response import SessionAnswers
from kuaisim_gym.simulator.sequential.fitted import FittedSequences
from kuaisim_gym.simulator.sequential.network import Layer
from kuaisim_gym.simulator.sequential.sequences import RESET_EVENTS, batches
from kuaisim_gym.snapshots import Snapshot

FloatArray = NDArray[np.float32]

_CHUNK = 13  # events appended at once at most; longer slates are split


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

    @single_precision()
    @torch.inference_mode()
    def __init__(self, model: FittedSequences, n_sessions: int) -> None:
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

    @single_precision()
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
