"""History encoders as the features extractor of Stable-Baselines3's ``MultiInputPolicy``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from dsrm_agents.encoders.history import HistoryEncoder
from kuaisim_gym.errors import ConfigError


class HistoryExtractor(BaseFeaturesExtractor):
    """Features of an ``observation_type="history"`` observation: [encoded history | context].

    For any algorithm that has a ``MultiInputPolicy``::

        PPO("MultiInputPolicy", env, policy_kwargs={
            "features_extractor_class": HistoryExtractor,
            "features_extractor_kwargs": {"kind": "attention"},
        })

    PPO and A2C initialise linear layers anew after this constructor; pass ``ortho_init=False``
    among the ``policy_kwargs``, or load weights into ``encoder`` afterwards, where that matters.
    Item embeddings are left alone in either case.

    Args:
        observation_space: Dict of ``"items"``, ``"responses"`` and ``"context"``.
        kind: ``"mean"``, ``"gru"`` or ``"attention"``, see :class:`HistoryEncoder`.
        embedding_dim: Width of a learned item embedding.
        width: Width of the encoded history.
        item_embedding: (n_all_items, d) to start from, such as ``env.catalogue.embedding``.
        freeze_items: Whether to keep ``item_embedding`` as it is given.
        layers: Layers of ``"attention"``.
        heads: Heads of each of them.

    Attributes:
        encoder: The history encoder.

    Raises:
        ConfigError: The space is another one, or an option is not possible.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        kind: str = "gru",
        embedding_dim: int = 32,
        width: int = 64,
        item_embedding: NDArray[np.floating[Any]] | None = None,
        freeze_items: bool = False,
        layers: int = 1,
        heads: int = 4,
    ) -> None:
        n_all_items, n_behaviours, n_context = history_sizes(observation_space)
        super().__init__(observation_space, features_dim=width + n_context)
        self.encoder = HistoryEncoder(
            n_all_items,
            n_behaviours,
            kind,
            embedding_dim,
            width,
            item_embedding,
            freeze_items,
            layers,
            heads,
        )

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Encodes n observations.

        Args:
            observations: Items (n, H), which Stable-Baselines3 has made floats, exact up to 2**24;
                responses (n, H * B); context (n, C).

        Returns:
            (n, width + C) float32.

        Raises:
            ConfigError: The parts cannot be those of observations of the policy's own space.
        """
        given, context = observations["items"], observations["context"]
        if len(given) != len(context):
            # SB3 reshapes parts to the policy's own space without asking whether they fit.
            raise ConfigError(
                "The observation's history has another length than the policy was built for: use "
                "the observation options that it was trained with."
            )
        items = given.long()
        if not torch.equal(items.to(given.dtype), given):
            raise ConfigError(
                "The observation's 'items' are no item positions any more. Where the environment "
                "is normalised, use VecNormalize(env, norm_obs_keys=['context'])."
            )
        responses = observations["responses"].unflatten(1, (items.shape[1], -1))
        return torch.cat([self.encoder(items, responses), context], dim=1)


def history_sizes(space: spaces.Space[Any]) -> tuple[int, int, int]:
    """Numbers of items, of behaviours and of context numbers of a space of histories.

    Raises:
        ConfigError: It is not that of ``observation_type="history"``.
    """
    if isinstance(space, spaces.Dict) and set(space) == {"items", "responses", "context"}:
        items, responses, context = space["items"], space["responses"], space["context"]
        if (
            isinstance(items, spaces.Box)
            and isinstance(responses, spaces.Box)
            and isinstance(context, spaces.Box)
            and np.issubdtype(items.dtype, np.integer)
            and len(items.shape) == len(responses.shape) == len(context.shape) == 1
            and items.shape[0] > 0
            and responses.shape[0] % items.shape[0] == 0
            and items.low.min() == -1
        ):
            n_behaviours = responses.shape[0] // items.shape[0]
            return int(items.high.max()) + 1, n_behaviours, context.shape[0]
    raise ConfigError(
        f"HistoryExtractor needs the histories of items and responses, got {space}: make the "
        "environment with observation_type='history'."
    )
