"""History encoders as the features extractor of Stable-Baselines3's ``MultiInputPolicy``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from dsrm_agents.encoders.history import HistoryEncoder
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.precision import check_single_precision


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
        *args: Of :class:`~dsrm_agents.encoders.history.HistoryEncoder`, from ``kind`` on.
        **kwargs: Likewise; ``item_embedding`` may be ``env.catalogue.embedding``.

    Attributes:
        encoder: The history encoder.

    Raises:
        ConfigError: The space is another one, or an option is not possible.
    """

    def __init__(self, observation_space: spaces.Space[Any], *args: Any, **kwargs: Any) -> None:
        check_single_precision(type(self).__name__)
        n_all_items, n_behaviours, n_context = history_sizes(observation_space)
        encoder = HistoryEncoder(n_all_items, n_behaviours, *args, **kwargs)
        super().__init__(observation_space, features_dim=encoder.width + n_context)
        self.encoder = encoder

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Encodes n observations.

        Args:
            observations: Items (n, H), which Stable-Baselines3 has made floats, exact up to 2**24;
                responses (n, H * B); context (n, C).

        Returns:
            (n, width + C) float32.

        Raises:
            ConfigError: The arrays do not fit the policy's observation space.
        """
        floats, context = observations["items"], observations["context"]
        if len(floats) != len(context):
            # SB3 reshapes arrays to the policy's space without asking whether they fit.
            raise ConfigError(
                "The observation's history has another length than the policy was built for: use "
                "the observation options that it was trained with."
            )
        items = floats.long()
        if not torch.equal(items.to(floats.dtype), floats):
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
