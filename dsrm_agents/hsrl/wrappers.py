"""Semantic ids as actions, for any algorithm that takes MultiDiscrete ones."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.vec_env import VecEnv

from dsrm_agents.common.catalogue import check_item_numbers
from dsrm_agents.common.stateless import StatelessVecEnv, batch_of
from dsrm_agents.hsrl.codebook import Codebook, bucket_of
from kuaisim_gym.envs.actions import as_actions
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError, InvalidActionError


class SemanticAction:
    """Turns L tokens into a slate: the items that share most of them, the best first.

    Items that share all tokens stand before those that share all but the last, and so on; equals
    stand in order of the ranking. So every choice of tokens has a slate of distinct items that were
    not shown before, whatever its bucket holds.

    Args:
        batch: Of N sessions with ``action_type="slate"``.
        codebook: Ids of the catalogue's items.
        ranking: (n_items,) float by which items that share as many tokens are ranked, higher first;
            their logged effect if ``None``.

    Raises:
        ConfigError: The environment takes other actions, or codebook or ranking are of other items.
    """

    def __init__(
        self, batch: SessionBatch, codebook: Codebook, ranking: ArrayLike | None = None
    ) -> None:
        if batch.action_type != "slate":
            raise ConfigError(
                f'Semantic ids need action_type="slate" beneath them, got {batch.action_type!r}.'
            )
        catalogue = batch.catalogue
        codebook.check_catalogue(catalogue)
        ranking = catalogue.item_embedding[:, 0] if ranking is None else ranking
        ranked = check_item_numbers("ranking", ranking, catalogue)
        self.batch = batch
        self.codebook = codebook
        self.ranking = ranked
        self.space = spaces.MultiDiscrete([codebook.codes] * codebook.levels)
        # Items in order of their tokens, then of rank: those with a common prefix side by side.
        bucket = bucket_of(codebook.tokens, codebook.codes)
        self._order = np.lexsort((-ranked, bucket))
        self._bucket = bucket[self._order]

    def slates(self, tokens: Any) -> NDArray[np.int64]:
        """Slates of N sessions.

        Args:
            tokens: (N, L) integers in [0, V).

        Returns:
            (N, K) int64 item positions.

        Raises:
            InvalidActionError: The tokens have another type, shape or range.
        """
        core, codebook = self.batch.core, self.codebook
        tokens = as_actions(tokens, (core.n_sessions, codebook.levels))
        if tokens.dtype.kind not in "iu":
            raise InvalidActionError(f"Semantic ids must be integers, got {tokens.dtype}.")
        outside = tokens[(tokens < 0) | (tokens >= codebook.codes)]
        if len(outside):
            raise InvalidActionError(
                f"A token must lie in [0, {codebook.codes}), got {outside[0]}."
            )
        slates = np.empty((core.n_sessions, core.config.slate_size), dtype=np.int64)
        free = None if core.config.allow_repeats else core.unexposed()
        for row, bucket in enumerate(bucket_of(tokens, codebook.codes).tolist()):
            slates[row] = self._slate(bucket, slates.shape[1], None if free is None else free[row])
        return slates

    def _slate(self, bucket: int, size: int, free: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        slate = np.empty(0, dtype=np.int64)
        inner = (int(np.searchsorted(self._bucket, bucket)),) * 2  # items of longer prefixes
        for span in (1, *self.codebook.codes ** np.arange(1, self.codebook.levels + 1)):
            first = bucket // span * span
            start, end = np.searchsorted(self._bucket, (first, first + span))
            new = np.concatenate([self._order[start : inner[0]], self._order[inner[1] : end]])
            if free is not None:
                new = new[free[new]]
            best = new[np.argsort(-self.ranking[new], kind="stable")]
            slate = np.concatenate([slate, best[: size - len(slate)]])
            if len(slate) == size:
                break
            inner = (int(start), int(end))
        else:
            raise ConfigError(
                f"Fewer than {size} items are left that this session has not shown: shorten "
                "sessions (max_len) or slates (slate_size)."
            )
        return slate


class SemanticActionWrapper(gym.ActionWrapper[Any, Any, Any]):
    """Semantic ids as actions of a Gymnasium environment.

    Args:
        env: One of ours with ``action_type="slate"``, wrapped or not.
        codebook: Ids of the catalogue's items.
        ranking: As for :class:`SemanticAction`.

    Raises:
        ConfigError: As for :class:`SemanticAction`.
    """

    def __init__(
        self, env: gym.Env[Any, Any], codebook: Codebook, ranking: ArrayLike | None = None
    ) -> None:
        super().__init__(env)
        batch = getattr(env.unwrapped, "batch", None)
        if not isinstance(batch, SessionBatch):
            raise ConfigError(f"Semantic ids are for environments of kuaisim_gym; got {env}.")
        self.semantic = SemanticAction(batch, codebook, ranking)
        self.action_space = self.semantic.space

    def action(self, action: Any) -> NDArray[np.int64]:
        """The (K,) slate of (L,) tokens."""
        slates = self.semantic.slates(as_actions(action, self.semantic.space.shape)[None])
        return np.asarray(slates[0])


class SemanticVecEnv(StatelessVecEnv):
    """Semantic ids as actions of a Stable-Baselines3 ``VecEnv``.

    Args:
        venv: Of :func:`dsrm_agents.make_vec_env` with ``action_type="slate"``, wrapped or not.
        codebook: Ids of the catalogue's items.
        ranking: As for :class:`SemanticAction`.

    Raises:
        ConfigError: As for :class:`SemanticAction`.
    """

    def __init__(self, venv: VecEnv, codebook: Codebook, ranking: ArrayLike | None = None) -> None:
        self.semantic = SemanticAction(batch_of(venv, "SemanticVecEnv"), codebook, ranking)
        super().__init__(venv, action_space=self.semantic.space)

    @property
    def settings(self) -> dict[str, Any]:
        """Constructor arguments, for checkpoints to compare."""
        return {"codebook": self.semantic.codebook, "ranking": self.semantic.ranking}

    def step_async(self, actions: Any) -> None:
        """Looks the items up and shows them."""
        self.venv.step_async(self.semantic.slates(actions))
