"""One user at a time: the plain Gymnasium environment."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError, InvalidActionError
from kuaisim_gym.simulator.catalogue import Catalogue


class KuaiEnv(gym.Env):
    """Interactive recommendation of short videos, with fairness-aware abandonment.

    ## Description
    A user arrives, is shown slates of K videos, and leaves when patience ("temper") runs out.
    Dull slates cost patience, and so do slates that favour one popularity group. Agents see a
    preference state built from a popularity-biased log. ``split="train"`` answers as that log
    does, ``split="test"`` from unbiased data: KuaiRec's fully observed small matrix, KuaiRand's
    uniformly random exposures.

    ## Action Space
    ``action_type="continuous"`` (default): ``Box(-1, 1, (33,), float32)``, a linear scorer over
    [item embedding (32), standardised log-popularity]; the K best items not yet shown form the
    slate. ``action_type="slate"``: ``MultiDiscrete([n_items] * K)``, item positions.

    ## Observation Space
    ``observation_type="state"`` (default): ``Box`` float32 of

    | Part | Range | Meaning |
    |---|---|---|
    | 0-31 | [-10, 10] | preference state, in standard deviations over train users |
    | 32 | [0, 1] | progress: steps over max_len |
    | 33 | [0, 1] | popular share of the exposure window, 0.5 before any exposure |
    | 34 | [0, 1] | last reward |
    | 35 | [0, 1] | mean reward of the session |

    ``env.unwrapped.preference_slice`` names the preference. ``observation_type="dict"`` holds it
    under ``"state"`` and the item positions shown so far, -1 padded, under ``"exposed"``.

    ## Rewards
    Mean of the K responses, in [0, 1]. KuaiRec: a response is Bernoulli with probability
    ``min(watch_ratio, 1)``. KuaiRand: seven behaviours are answered, each Bernoulli, and found in
    ``info["feedback"]``, (K, 7) in the order of ``dataset.behaviours``; a response is the click,
    or what ``reward_weights`` make of them. An item shown before in the session, or twice in a
    slate, gets 0.

    ## Starting State
    A user drawn uniformly from the split, with temper ``max_len`` and the logged history.

    ## Episode End
    A step costs ``2 - reward`` temper, and one more if the popular share s of the last ``window``
    exposures has ``|2s - 1| >= ad_bound``. The user leaves (``terminated``) when temper < 1.
    ``truncated`` happens at ``max_steps`` only.

    ## Arguments
    ``dataset``, ``split``, ``dataset_seed``, ``response_model``, ``calibration``,
    ``observation_type``, ``action_type`` and the fields of
    :class:`~kuaisim_gym.config.SessionConfig`.

    ## Version History
    * v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self, name: str = "kuairec", render_mode: str | None = None, **options: Any
    ) -> None:
        if render_mode is not None:
            raise ConfigError(f"This environment cannot be rendered, got {render_mode=}; use None.")
        self.render_mode = render_mode
        self.batch = SessionBatch(1, name, **options)
        self.observation_space = self.batch.observation_space
        self.action_space = self.batch.action_space
        self._seeded = False

    @property
    def preference_slice(self) -> slice:
        """Which part of the state vector is the preference."""
        return self.batch.encoder.preference_slice

    @property
    def dataset(self) -> Dataset:
        """Where the world comes from."""
        return self.batch.dataset

    @property
    def catalogue(self) -> Catalogue:
        """The items, as the platform knows them from the train log."""
        return self.batch.catalogue

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins a session; see :meth:`gymnasium.Env.reset`."""
        super().reset(seed=seed)
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**63))
        if seed is not None:
            self.batch.core.seed(np.array([seed], dtype=np.uint64))
            self._seeded = True
        self.batch.reset()
        return self._observation(), self.batch.arrival(0)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Shows a slate; see :meth:`gymnasium.Env.step`.

        Raises:
            InvalidActionError: The action is not of the action space.
            ResetNeededError: The session has not begun or is over.
        """
        try:
            action = np.asarray(action)
        except ValueError as error:
            raise InvalidActionError(f"An action must be an array, got {action!r}.") from error
        if action.shape != self.action_space.shape:
            raise InvalidActionError(
                f"An action must have shape {self.action_space.shape}, got {action.shape}."
            )
        result = self.batch.step(action[None])
        info: dict[str, Any] = {
            "responses": result.responses[0],
            "penalised": bool(result.penalised[0]),
        }
        if result.feedback.shape[2] > 1:
            info["feedback"] = result.feedback[0]
        if result.done[0]:
            info["session"] = self.batch.finished(0)
        return (
            self._observation(),
            float(result.reward[0]),
            bool(result.terminated[0]),
            bool(result.truncated[0]),
            info,
        )

    def _observation(self) -> Any:
        observation = self.batch.observe()
        if isinstance(observation, dict):
            return {name: part[0] for name, part in observation.items()}
        return observation[0]
