"""State encoder in front of an agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from dsrm_agents.common.catalogue import check_ids_kept
from dsrm_agents.common.origin import identity, marked
from dsrm_agents.common.stateless import StatelessVecEnv, batch_of
from dsrm_agents.encoders.events import History, LoggedEvents
from dsrm_agents.encoders.states import StateEncoder
from kuaisim_gym.errors import CheckpointError, ConfigError


class EncodedVecEnv(StatelessVecEnv):
    """Replaces the preference in observations by the encoder's state of the last events.

    The events are the user's last in the log, then those of the session, as far as the encoder
    reads back. Everything is read off the sessions and the log; nothing is remembered between
    steps. Of an episode of several sessions, only the one that runs is read.

    Args:
        venv: Of :func:`dsrm_agents.make_vec_env` with ``observation_type="dict"``, wrapped or not.
        encoder: A fitted encoder, or the file that one was saved to.

    Raises:
        CheckpointError: The encoder cannot be read, or was fitted on another dataset.
        ConfigError: The environment is not of kuaisim_gym, shows no events or no pooled state, or
            is behind a wrapper that changes its observations.
    """

    def __init__(self, venv: VecEnv, encoder: StateEncoder | str | Path) -> None:
        super().__init__(venv)
        batch = batch_of(venv, "EncodedVecEnv")
        if batch.encoder.observation_type != "dict":
            raise ConfigError(
                'A state encoder needs the session\'s events: expected observation_type="dict", '
                f"got {batch.encoder.observation_type!r}."
            )
        check_ids_kept("A state encoder", venv)
        shown = batch.encoder.preference
        if shown != "pooled" or venv.observation_space != batch.observation_space:
            raise ConfigError(
                "A state encoder takes the place of the pooled state: expected "
                f'preference="pooled" and no wrapper that changes observations, got {shown!r} and '
                f"{venv.observation_space}."
            )
        if not isinstance(encoder, StateEncoder):
            encoder = StateEncoder.load(encoder)
        if encoder.fingerprint != batch.dataset.fingerprint:
            raise CheckpointError(
                "This encoder was fitted on another dataset than the environment's, "
                f"{batch.dataset.description}: fit it again with fit_encoder(dataset)."
            )
        self.encoder = encoder
        self.observation_space = marked(venv.observation_space, encoder=identity(encoder))
        self._state = batch.core.state
        self._preference = batch.encoder.preference_slice
        data = batch.dataset.training
        self._logged = LoggedEvents(data.log, data.n_users)

    @property
    def settings(self) -> dict[str, Any]:
        """Digest of the encoder, for checkpoints to compare."""
        return {"encoder": self.encoder.digest}

    def reset(self) -> VecEnvObs:
        """First observations, of the users' logged events alone."""
        return self._encoded(self.venv.reset(), self._state.users)

    def observe(self) -> VecEnvObs:
        """The latest observations, encoded."""
        return self._encoded(super().observe(), self._state.users)

    def step_wait(self) -> VecEnvStepReturn:
        """Encodes the observations, and those that ended sessions hide in their infos."""
        before = self._state.users.copy()  # a slot whose session ends has the next user afterwards
        observations, rewards, dones, infos = self.venv.step_wait()
        slots = np.flatnonzero(dones)
        if slots.size:
            last = [infos[slot]["terminal_observation"] for slot in slots]
            stacked = {name: np.stack([final[name] for final in last]) for name in last[0]}
            states = self._encoded(stacked, before[slots])["state"]
            for final, state in zip(last, states, strict=True):
                final["state"] = state
        return self._encoded(observations, self._state.users), rewards, dones, infos

    def _encoded(self, observations: Any, users: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """(N, ...) observations of (N,) users with another preference."""
        length = self.encoder.config.history_len
        logged = self._logged.last(users, length)
        shown = observations["exposed"], observations["responses"]
        state = observations["state"].copy()
        state[:, self._preference] = self.encoder.encode(*continued(logged, shown))
        return {**observations, "state": state}


def continued(logged: History, shown: tuple[NDArray[np.int32], NDArray[np.float32]]) -> History:
    """The last H events of continued histories.

    Args:
        logged: (n, H) items and responses, events last.
        shown: (n, room) items and responses that follow, events first.

    Returns:
        (n, H) items and responses, events last.
    """
    length = logged[0].shape[1]
    count = (shown[0] >= 0).sum(axis=1)
    columns = count[:, None] + np.arange(length)
    items = np.concatenate([logged[0], shown[0]], axis=1)
    responses = np.concatenate([logged[1], shown[1]], axis=1)
    return (
        np.take_along_axis(items, columns, axis=1),
        np.take_along_axis(responses, columns, axis=1),
    )
