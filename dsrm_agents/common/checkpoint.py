"""Checkpoints of trainings, which resume to the weights of an uninterrupted run.

    if path.exists():
        resume(path, agent)
    left, fresh = total - agent.num_timesteps, agent.num_timesteps == 0
    agent.learn(left, TrainingCheckpoint(path, every=20_000), reset_num_timesteps=fresh)

A checkpoint is written where a rollout begins: the update before it is complete, and the rollout
buffer is empty. Later steps are repeated, from the same sessions and random numbers, so that
neither the moment of the end nor the number of checkpoints makes a difference. It is a file of
tensors and plain values, which :func:`torch.load` reads without running code.

It holds the weights and the optimiser; the numbers of steps and updates; the sessions and their
last observations; the states of torch's and NumPy's global generators, and of every
:class:`numpy.random.Generator` that is an attribute of the algorithm, its policy or its buffer; and
the ``training_state()`` of an algorithm that has one, tensors by name, which its
``set_training_state()`` takes.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnvWrapper

from dsrm_agents.common.identity import differences, identity_of
from dsrm_agents.common.sb3_vec_env import KuaiVecEnv
from kuaisim_gym.config import check_whole
from kuaisim_gym.disk import write_atomically
from kuaisim_gym.errors import CheckpointError, ConfigError

FORMAT = "kuaisim-agent-training-1"

# Purified observations differ slightly between batch sizes.
_TOLERANCE = 1e-3


class TrainingCheckpoint(BaseCallback):
    """Callback that writes checkpoints of PPO, A2C, HierarchicalPPO or HSRL; see the module.

    Args:
        path: The file; a checkpoint replaces the last.
        every: Time steps, of all sessions together, between checkpoints at least.
        extra: Returns further JSON values that :func:`resume` returns.

    Raises:
        ConfigError: ``path`` is a folder, or ``every`` is no positive integer; at the start of
            training, the algorithm or its environment has a state that checkpoints do not hold.
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
    """Restores an algorithm and its environment from a checkpoint.

    Continue with ``reset_num_timesteps=False`` and the time steps that are left of the same total,
    on which schedules depend.

    Args:
        path: The file that a :class:`TrainingCheckpoint` wrote.
        model: A new algorithm with the same arguments, on an environment with the same options,
            behind the same purifier if there was one.

    Returns:
        The value of ``extra`` when it was written.

    Raises:
        CheckpointError: The file is missing, damaged, or of another training.
        ConfigError: The algorithm or its environment has a state that checkpoints do not hold.
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
    """Restores the algorithm and its environment, and returns the extra.

    Raises:
        ConfigError: The content is of another training.
    """
    different = differences(identity_of(model, sorted(_generators(model))), content["identity"])
    if different:
        raise ConfigError(f"{different}. Make the algorithm with the same arguments.")
    env: Any = model.env
    env.restore({name: tensor.numpy() for name, tensor in content["sessions"].items()})
    observations = {name: tensor.numpy() for name, tensor in content["observations"].items()}
    for name, shown in _named(env.observe()).items():
        if not np.allclose(shown, observations[name], rtol=_TOLERANCE, atol=_TOLERANCE):
            raise ConfigError(
                "The environment shows these sessions otherwise than at the checkpoint: wrap it in "
                "the purifier that it had."
            )
    model.set_parameters(content["parameters"])
    model.num_timesteps, model._n_updates = content["num_timesteps"], content["n_updates"]
    model._last_obs = observations.get("", observations)
    model._last_episode_starts = content["episode_starts"].numpy()
    if content["remembered"]:
        model.set_training_state(content["remembered"])  # type: ignore[attr-defined]
    _set_random_states(model, content["random"])
    extra: dict[str, Any] = json.loads(content["extra"])
    return extra


def _check_resumable(model: BaseAlgorithm) -> None:
    """Refuses algorithms and environments with a state that checkpoints do not hold."""
    name = type(model).__name__
    if not isinstance(model, OnPolicyAlgorithm):
        raise ConfigError(
            f"Checkpoints are for on-policy algorithms, such as PPO; {name} has a replay buffer, "
            "which they do not hold. Train it in one go."
        )
    if model.use_sde or hasattr(model, "_last_lstm_states"):
        raise ConfigError(
            "Checkpoints hold no exploration matrices (use_sde=True) and no recurrent states, and "
            f"this {name} has some. Train it in one go."
        )
    env: Any = model.env
    while isinstance(env, VecEnvWrapper) and hasattr(type(env), "observe"):
        env = env.venv
    if not isinstance(env, KuaiVecEnv):
        raise ConfigError(
            "Checkpoints are for environments of make_vec_env and stateless wrappers such as "
            f"PurifyVecEnv; they do not hold the state of {type(env).__name__}."
        )


def _write(path: Path, model: BaseAlgorithm, extra: dict[str, Any]) -> None:
    env: Any = model.env
    last_obs: Any = model._last_obs
    starts: Any = model._last_episode_starts
    content = {
        "format": FORMAT,
        "identity": identity_of(model, sorted(_generators(model))),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "parameters": model.get_parameters(),
        "remembered": getattr(model, "training_state", dict)(),
        "random": _random_states(model),
        "sessions": {name: torch.from_numpy(array) for name, array in env.snapshot().items()},
        "observations": {
            name: torch.from_numpy(np.array(array)) for name, array in _named(last_obs).items()
        },
        "episode_starts": torch.from_numpy(np.array(starts)),
        "extra": json.dumps(extra),
    }
    file = io.BytesIO()
    torch.save(content, file)
    write_atomically(path, file.getvalue())


def load_whole(content: bytes) -> Any:
    """Loads tensors and plain values that torch has saved, and no other objects.

    Raises:
        Exception: The content is damaged, which shows in errors of zipfile, struct, pickle
            or torch.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:  # which is what torch writes
        torn = archive.testzip()  # torch itself compares no checksums
    if torn is not None:
        raise zipfile.BadZipFile(f"the checksum of its entry {torn} is wrong")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = load_whole(path.read_bytes())
    except Exception as error:  # damage shows in errors of zipfile, struct, pickle or torch
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {error}. Remove it to start over."
        ) from error
    format_name = content.get("format") if isinstance(content, dict) else None
    if format_name != FORMAT:
        raise CheckpointError(
            f"{path} is no checkpoint of this version: expected format {FORMAT!r}, got "
            f"{format_name!r}. Remove it to start over."
        )
    assert isinstance(content, dict)
    return content


def _generators(model: BaseAlgorithm) -> dict[str, np.random.Generator]:
    """Generators that are attributes of the algorithm, its policy and its buffer, by name."""
    assert isinstance(model, OnPolicyAlgorithm)
    owners = {"model": model, "policy": model.policy, "buffer": model.rollout_buffer}
    return {
        f"{owner}.{name}": value
        for owner, parent in owners.items()
        for name, value in vars(parent).items()
        if isinstance(value, np.random.Generator)
    }


def _random_states(model: BaseAlgorithm) -> dict[str, Any]:
    """Tensors of torch's generators, and JSON of NumPy's, whose states hold 128-bit integers."""
    states: dict[str, Any] = {"torch": torch.get_rng_state()}
    if model.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(model.device)
    numpy = {name: rng.bit_generator.state for name, rng in _generators(model).items()}
    numpy["global"] = np.random.get_state(legacy=False)  # noqa: NPY002  # SB3 draws from it
    return states | {"numpy": json.dumps(numpy, default=lambda array: array.tolist())}


def _set_random_states(model: BaseAlgorithm, states: dict[str, Any]) -> None:
    numpy = json.loads(states["numpy"])
    for name, rng in _generators(model).items():
        rng.bit_generator.state = numpy[name]
    np.random.set_state(numpy["global"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if model.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], model.device)


def _named(observations: Any) -> dict[str, NDArray[Any]]:
    """Observations as a dict, under no name if they are vectors."""
    return observations if isinstance(observations, dict) else {"": observations}
