"""Training that goes on after it was stopped, to the same weights as one that never was.

    if path.exists():
        resume(path, agent)
    left, fresh = total - agent.num_timesteps, agent.num_timesteps == 0
    agent.learn(left, TrainingCheckpoint(path, every=20_000), reset_num_timesteps=fresh)

A checkpoint is written where a rollout begins: the update before it is complete, and the rollout
buffer is empty. What came after it is made again, from the same sessions and random numbers, so
that neither the moment of the end nor how often checkpoints are written makes a difference. It is
one file, of tensors and plain values, which :func:`torch.load` reads without running code.

Kept are the weights and the optimiser; the steps and updates made; the sessions and what they last
showed; the states of torch's and NumPy's global generators, and of every
:class:`numpy.random.Generator` that is an attribute of the algorithm, its policy or its buffer; and
what an algorithm with more to remember gives as ``training_state()``, tensors by name.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnvWrapper
from torch import Tensor

from dsrm_agents.common.identity import differences, identity_of
from dsrm_agents.common.sb3_vec_env import KuaiVecEnv
from kuaisim_gym.config import check_whole
from kuaisim_gym.data.cache import write_atomically
from kuaisim_gym.errors import CheckpointError, ConfigError

FORMAT = "kuaisim-agent-training-1"

# A purifier makes the same observation slightly otherwise in a batch of another size.
_SAME = 1e-3


@runtime_checkable
class Remembering(Protocol):
    """An algorithm whose next rollout depends on more than weights, sessions and generators."""

    def training_state(self) -> dict[str, Tensor]:
        """What it remembers, where a rollout begins."""

    def set_training_state(self, state: dict[str, Tensor]) -> None:
        """Takes it up again."""


class TrainingCheckpoint(BaseCallback):
    """Keeps a checkpoint while PPO, A2C or HierarchicalPPO learns; see the module.

    Args:
        path: The file; each checkpoint takes the place of the one before.
        every: Time steps, of all sessions together, between checkpoints at least.
        extra: Gives whatever else the caller wants back from :func:`resume`, as JSON knows it.

    Raises:
        ConfigError: ``path`` is a folder, or ``every`` is no positive integer; at the start of
            training, the algorithm or its environment has a state that is not kept.
    """

    def __init__(
        self, path: str | Path, every: int, extra: Callable[[], dict[str, Any]] = dict
    ) -> None:
        super().__init__()
        self.path = Path(path)
        if self.path.is_dir():
            raise ConfigError(f"The checkpoint {path} is a folder; name a file.")
        self.every = check_whole("every", every, 1)
        self.extra = extra
        self._written = 0

    def _init_callback(self) -> None:
        _check_resumable(self.model)

    def _on_training_start(self) -> None:
        self._written = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps - self._written >= self.every:
            _write(self.path, self.model, self.extra())
            self._written = self.model.num_timesteps

    def _on_step(self) -> bool:
        return True


def resume(path: str | Path, model: BaseAlgorithm) -> dict[str, Any]:
    """Puts a fresh algorithm, and its environment, where a checkpoint was written.

    Continue with ``reset_num_timesteps=False`` and the time steps that are left of the same total,
    on which schedules depend.

    Args:
        path: The file that a :class:`TrainingCheckpoint` wrote.
        model: Made with the same arguments, on an environment made with the same options, behind
            the same purifier if there was one.

    Returns:
        What ``extra`` gave when it was written.

    Raises:
        CheckpointError: The file is missing, damaged, or of another training.
        ConfigError: The algorithm or its environment has a state that is not kept.
    """
    _check_resumable(model)
    content = _read(Path(path))
    try:
        return _take_up(content, model)
    except ConfigError as error:
        raise CheckpointError(
            f"{path} holds the progress of another training. {error} Or remove the file to start "
            "over."
        ) from error
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}. Remove it to start over.") from error


def _take_up(content: dict[str, Any], model: BaseAlgorithm) -> dict[str, Any]:
    """Fills the algorithm and its environment; gives the extra back.

    Raises:
        ConfigError: The content is of another training.
    """
    different = differences(identity_of(model, sorted(_generators(model))), content["identity"])
    if different:
        raise ConfigError(f"{different}. Make the algorithm with the same arguments.")
    env: Any = model.env
    env.restore({name: one.numpy() for name, one in content["sessions"].items()})
    observations = {name: one.numpy() for name, one in content["observations"].items()}
    for name, shown in _named(env.observe()).items():
        if not np.allclose(shown, observations[name], rtol=_SAME, atol=_SAME):
            raise ConfigError(
                "The environment shows these sessions otherwise than they were seen last: wear the "
                "purifier that was worn."
            )
    model.set_parameters(content["parameters"])
    model.num_timesteps, model._n_updates = content["num_timesteps"], content["n_updates"]
    model._last_obs = observations.get("", observations)
    model._last_episode_starts = content["episode_starts"].numpy()
    if isinstance(model, Remembering):
        model.set_training_state(content["remembered"])
    _set_random_states(model, content["random"])
    extra: dict[str, Any] = json.loads(content["extra"])
    return extra


def _check_resumable(model: BaseAlgorithm) -> None:
    """Refuses what has a state that checkpoints do not hold."""
    name = type(model).__name__
    if not isinstance(model, OnPolicyAlgorithm):
        raise ConfigError(
            f"Checkpoints are for on-policy algorithms, such as PPO; {name} has a replay buffer, "
            "which is not kept. Train it in one go."
        )
    if model.use_sde or hasattr(model, "_last_lstm_states"):
        raise ConfigError(
            f"Checkpoints keep no exploration matrices (use_sde=True) and no recurrent states; "
            f"this {name} has one of them. Train it in one go."
        )
    env: Any = model.env
    while isinstance(env, VecEnvWrapper) and hasattr(type(env), "observe"):
        env = env.venv
    if not isinstance(env, KuaiVecEnv):
        raise ConfigError(
            "Checkpoints are for environments of make_vec_env, worn by PurifyVecEnv or by nothing; "
            f"what {type(env).__name__} remembers is not kept."
        )


def _write(path: Path, model: BaseAlgorithm, extra: dict[str, Any]) -> None:
    env: Any = model.env
    seen: Any = model._last_obs
    starts: Any = model._last_episode_starts
    content = {
        "format": FORMAT,
        "identity": identity_of(model, sorted(_generators(model))),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "parameters": model.get_parameters(),
        "remembered": model.training_state() if isinstance(model, Remembering) else {},
        "random": _random_states(model),
        "sessions": {name: torch.from_numpy(one) for name, one in env.snapshot().items()},
        "observations": {
            name: torch.from_numpy(np.array(one)) for name, one in _named(seen).items()
        },
        "episode_starts": torch.from_numpy(np.array(starts)),
        "extra": json.dumps(extra),
    }
    file = io.BytesIO()
    torch.save(content, file)
    write_atomically(path, file.getvalue())


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # which is what torch writes
            torn = archive.testzip()  # torch itself compares no checksums
        if torn is not None:
            raise zipfile.BadZipFile(f"the checksum of its part {torn} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage meets zipfile, struct, pickle or torch: errors of each
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {error}. Remove it to start over."
        ) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{path} is no checkpoint of this version: expected format {FORMAT!r}, got {found!r}. "
            "Remove it to start over."
        )
    assert isinstance(content, dict)
    return content


def _generators(model: BaseAlgorithm) -> dict[str, np.random.Generator]:
    """The generators that the algorithm, its policy and its buffer have as attributes, by name."""
    assert isinstance(model, OnPolicyAlgorithm)
    owners = {"model": model, "policy": model.policy, "buffer": model.rollout_buffer}
    return {
        f"{owner}.{name}": value
        for owner, one in owners.items()
        for name, value in vars(one).items()
        if isinstance(value, np.random.Generator)
    }


def _random_states(model: BaseAlgorithm) -> dict[str, Any]:
    """Tensors of torch's generators; of NumPy's, JSON: their states hold integers of 128 bits."""
    states: dict[str, Any] = {"torch": torch.get_rng_state()}
    if model.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(model.device)
    numpy = {name: one.bit_generator.state for name, one in _generators(model).items()}
    numpy["global"] = np.random.get_state(legacy=False)  # noqa: NPY002  # SB3 draws from it
    return states | {"numpy": json.dumps(numpy, default=lambda array: array.tolist())}


def _set_random_states(model: BaseAlgorithm, states: dict[str, Any]) -> None:
    numpy = json.loads(states["numpy"])
    for name, one in _generators(model).items():
        one.bit_generator.state = numpy[name]
    np.random.set_state(numpy["global"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if model.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], model.device)


def _named(observations: Any) -> dict[str, NDArray[Any]]:
    """Observations as a dict, under no name if they are vectors."""
    return observations if isinstance(observations, dict) else {"": observations}
