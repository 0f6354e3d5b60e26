"""Origin of an agent's observations and actions: the world, the purifier, the options.

It is kept in the spaces, which Stable-Baselines3 saves with an agent, so that an agent that is
loaded elsewhere still tells what it was trained on. Spaces are equal whatever their origins.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

from gymnasium import spaces

from kuaisim_gym.data import Dataset
from kuaisim_gym.errors import CheckpointError, ConfigError

Space = TypeVar("Space", bound=spaces.Space[Any])

_NAME = "kuaisim_origin"


def marked(space: Space, **facts: Any) -> Space:
    """A copy of a space whose origin has these facts, too."""
    origin = {**origin_of(space), **facts}
    space = deepcopy(space)
    vars(space)[_NAME] = origin
    return space


def origin_of(space: object) -> dict[str, Any]:
    """Facts about the origin of a space, by name; none where it has none.

    They are ``"fingerprint"`` and ``"dataset"``, a line about it; ``"options"`` of the environment;
    ``"purifier"`` and ``"encoder"``, the digest of what changed the observations, and a name before
    it; ``"quota"`` of a scorer's slates.
    """
    return dict(getattr(space, _NAME, {}))


def of_dataset(dataset: Dataset) -> dict[str, Any]:
    """Facts about a dataset."""
    return {"fingerprint": dataset.fingerprint, "dataset": dataset.description}


def identity(module: object) -> tuple[str, str]:
    """Name and digest of a purifier or an encoder; the digest is empty where it has none."""
    name = getattr(module, "kind", type(module).__name__)
    return str(name), str(getattr(module, "digest", ""))


def check_origin(
    agent_space: object, space: object, insist: str, agent: str = "This agent"
) -> None:
    """Checks that observations come from where an agent's came from in training.

    Args:
        agent_space: The agent's observation space.
        space: That of the observations.
        insist: Advice on how to go on nevertheless.
        agent: Name of the agent, for the errors.

    Raises:
        CheckpointError: They are of another dataset.
        ConfigError: They are not purified as they were in training.
    """
    trained, shown = origin_of(agent_space), origin_of(space)
    if not trained or not shown:
        return  # of an environment of one's own
    if trained["fingerprint"] != shown["fingerprint"]:
        raise CheckpointError(
            f"{agent} was trained on {trained['dataset']}; these observations are of "
            f"{shown['dataset']}{_another(trained, shown)}. Use the dataset that it was trained "
            f"on, or train a new agent; {insist}."
        )
    for kind, advice in (("purifier", "PurifyVecEnv"), ("encoder", "EncodedVecEnv")):
        learned, present = trained.get(kind), shown.get(kind)
        if learned != present:
            raise ConfigError(
                f"{agent} was trained {_behind(kind, learned)}, these observations are "
                f"{_behind(kind, present)}{_same_name(learned, present)}. Put the {kind} that it "
                f"was trained behind in front of it ({advice}), or none where it had none; "
                f"{insist}."
            )


def shapes(space: spaces.Space[Any]) -> str:
    """A space in a few words: its shapes, by key where it has some, and its kind."""
    if isinstance(space, spaces.Dict):
        return f"{{{', '.join(f'{key}: {shapes(one)}' for key, one in space.spaces.items())}}}"
    if isinstance(space, spaces.MultiDiscrete):
        return f"MultiDiscrete({space.nvec.tolist()})"
    if isinstance(space, spaces.Discrete):
        return f"Discrete({space.n})"
    return f"{type(space).__name__}{space.shape}"


def _another(trained: dict[str, Any], shown: dict[str, Any]) -> str:
    return ", of other rows" if trained["dataset"] == shown["dataset"] else ""


def _behind(kind: str, label: tuple[str, str] | None) -> str:
    return f"without {kind}" if label is None else f"behind the {kind} {label[0]!r}"


def _same_name(first: tuple[str, str] | None, second: tuple[str, str] | None) -> str:
    return " with other weights" if first and second and first[0] == second[0] else ""
