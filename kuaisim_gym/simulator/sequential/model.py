"""The sequential response model: answers from logged histories, and checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.errors import CheckpointError
from kuaisim_gym.precision import single_precision
from kuaisim_gym.simulator.response import LogitModel
from kuaisim_gym.simulator.sequential.config import SequentialConfig
from kuaisim_gym.simulator.sequential.fitted import FittedSequences
from kuaisim_gym.simulator.sequential.network import SequenceNetwork
from kuaisim_gym.simulator.sequential.sequences import Sequences
from kuaisim_gym.simulator.sequential.sessions import SequentialSessions
from kuaisim_gym.snapshots import within
from kuaisim_gym.tensors import TensorFile, open_tensors, save_tensors

FloatArray = NDArray[np.float32]
Index = NDArray[np.integer]

_FORMAT = "kuaisim-sequential-model-1"
_BLOCK = 1 << 22  # numbers gathered at once


class SequentialModel(FittedSequences, LogitModel):
    """The sequential response model; its scores of a logged history are computed once."""

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
    @single_precision()
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
