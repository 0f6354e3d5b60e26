"""A fitted history encoder whose output takes the place of the preference state."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dsrm_agents.common.fitted import FittedModule
from dsrm_agents.encoders.history import HistoryEncoder
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import PREFERENCE_BOUND
from kuaisim_gym.precision import single_precision
from kuaisim_gym.tensors import TensorFile

WIDTH = 32  # of a history's summary, whatever the embedding has
CHUNK = 256  # histories encoded at a time, which keeps them in the processor's cache

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class StateEncoderConfig:
    """Settings that rebuild a state encoder before its weights are loaded.

    Attributes:
        fingerprint: Of the dataset that it was fitted on.
        n_all_items: Number of items, those of the log alone included.
        dim: d, of the item embedding and of the states.
        kind: Of :class:`~dsrm_agents.encoders.history.HistoryEncoder`.
        history_len: H, events that it reads.
        loss: Name of the loss that it was fitted by.
    """

    fingerprint: str
    n_all_items: int
    dim: int
    kind: str
    history_len: int
    loss: str


class StateEncoder(FittedModule):
    """Encodes a user's last events as a state in the space of the catalogue's item embedding.

    A history encoder over frozen item embeddings, a linear head, and a standardisation: like the
    preference state whose place it takes, a state has zero mean and unit spread over train users.

    Args:
        config: Sizes and kind.
        item_embedding: (n_all_items, d) float32, the catalogue's; ``None`` where weights are loaded
            afterwards.

    Attributes:
        history: The history encoder.
        head: Its summary's map into the space of the items.
        report: Measures of the fit by name; see
            :func:`~dsrm_agents.encoders.pretrain.fit_encoder`.
    """

    format = "state-encoder-2"
    content = "state encoder"
    config_class = StateEncoderConfig
    config: StateEncoderConfig

    mean: Tensor
    scale: Tensor

    def __init__(
        self, config: StateEncoderConfig, item_embedding: FloatArray | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.report: dict[str, float] = {}
        if item_embedding is None:
            item_embedding = np.zeros((config.n_all_items, config.dim), dtype=np.float32)
        self.history = HistoryEncoder(
            config.n_all_items,
            n_behaviours=1,
            kind=config.kind,
            width=WIDTH,
            item_embedding=item_embedding,
            freeze_items=True,
        )
        self.head = nn.Linear(WIDTH, config.dim)
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("scale", torch.ones(config.dim))

    def summary(self, items: Tensor, responses: Tensor) -> Tensor:
        """(n, H) int64 items and (n, H) float32 responses to the (n, WIDTH) input of the head."""
        return torch.as_tensor(self.history(items, responses[:, :, None]))

    def forward(self, items: Tensor, responses: Tensor) -> Tensor:
        """States before standardisation, which training compares with item embeddings.

        Args:
            items: (n, H) int64 positions, oldest first, -1 where there is no event.
            responses: (n, H) float32.

        Returns:
            (n, d) float32.
        """
        return torch.as_tensor(self.head(self.summary(items, responses)))

    def standardise(self, items: NDArray[np.integer], responses: FloatArray) -> None:
        """Takes mean and spread from the histories of the train users."""
        states = self._raw(items, responses)
        spread = states.std(dim=0, correction=0)
        self.mean.copy_(states.mean(dim=0))
        self.scale.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))

    def encode(self, items: NDArray[np.integer], responses: FloatArray) -> FloatArray:
        """Standardised states of histories.

        Args:
            items: (n, H) positions, oldest first, -1 where there is no event; of any H.
            responses: (n, H) float32 in [0, 1]; not read where there is no event.

        Returns:
            (n, d) float32 in [-PREFERENCE_BOUND, PREFERENCE_BOUND].

        Raises:
            ConfigError: The arrays do not fit each other or the dataset.
        """
        if items.ndim != 2 or items.shape != responses.shape:
            raise ConfigError(
                f"Expected items and responses of one shape (n, H), got {items.shape} and "
                f"{responses.shape}."
            )
        if items.size and not (-1 <= items.min() and items.max() < self.config.n_all_items):
            raise ConfigError(
                f"Items must be positions below {self.config.n_all_items}, or -1 for no event; got "
                f"{items.min()} to {items.max()}."
            )
        states = (self._raw(items, responses) - self.mean) / self.scale
        return np.asarray(states.clamp_(-PREFERENCE_BOUND, PREFERENCE_BOUND).numpy())

    @single_precision()
    def _raw(self, items: NDArray[np.integer], responses: FloatArray) -> Tensor:
        """(n, d) states before standardisation, without gradient."""
        events = torch.as_tensor(items, dtype=torch.int64).split(CHUNK)
        answers = torch.as_tensor(responses, dtype=torch.float32).split(CHUNK)
        with torch.inference_mode():
            return torch.cat([self(*chunk) for chunk in zip(events, answers, strict=True)])

    def header(self) -> dict[str, str]:
        return super().header() | {"report": json.dumps(self.report)}

    @classmethod
    def rebuilt(cls, file: TensorFile) -> Self:
        encoder = super().rebuilt(file)
        encoder.report = json.loads(file.header["report"])
        return encoder
