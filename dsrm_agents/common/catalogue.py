"""Catalogue and observations of an environment, for agents that pick items."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from torch import Tensor, nn

from dsrm_agents.common.networks import SinglePrecision
from kuaisim_gym.engine import bits
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.groups import Groups, popularity_groups

CURE = (  # for agents that read ids, or credit items with a reward that is their mean answer
    "Where the environment is normalised, use VecNormalize(env, norm_obs_keys=['state'], "
    "norm_reward=False)."
)
EXTEND = "or move it to a larger catalogue with dsrm_agents.extend(model, env)"


def same_catalogue(
    env: VecEnv, expected: Catalogue | None, agent: str, extends: bool = False
) -> Catalogue:
    """The environment's catalogue, or the agent's, if that was built for it.

    Args:
        env: The environment.
        expected: The agent's catalogue; ``None`` before it is built.
        agent: Name of the agent, for errors.
        extends: Whether the agent can be moved to a larger catalogue.

    Raises:
        ConfigError: The environment has no catalogue.
        CheckpointError: It has another one.
    """
    try:
        shown: Catalogue = env.get_attr("catalogue")[0]
    except AttributeError as error:
        raise ConfigError(
            f"{agent} needs an environment with a `catalogue` attribute, such as "
            f"KuaiRec-Fair-v0; {env} has none."
        ) from error
    if expected is None:
        return shown
    if not expected.is_of(shown):
        moved = f", {EXTEND}" if extends and shown.n_items > expected.n_items else ""
        if shown.changes:
            moved += ", and the same seed, initial, arrivals and lifetime of `catalogue=`"
        raise CheckpointError(
            f"{agent} was built for other items, {expected.n_items} in number, than the "
            f"{shown.n_items} of {env.get_attr('dataset_description')[0]}: use the dataset that it "
            f"was trained on{moved}, or train a new agent."
        )
    return shown if expected.base is None else expected


def groups_of(catalogue: Catalogue, groups: Groups | None) -> Groups:
    """Groups of the items of a policy, which say whether they change.

    Args:
        catalogue: The items.
        groups: Their groups; the popular items and the rest if ``None``.
    """
    groups = popularity_groups(catalogue.popular) if groups is None else groups
    change = catalogue.changes and groups.by_popularity
    return groups if groups.change == change else replace(groups, change=change)


def check_fixed(changes: bool, agent: str) -> None:
    """Checks that a catalogue is the same every day.

    Args:
        changes: Whether it is not.
        agent: Name of what cannot follow them, for the error.

    Raises:
        ConfigError: Items are born and leave.
    """
    if changes:
        raise ConfigError(
            f"{agent} knows the items and their popularity once and for all, and this catalogue "
            'changes: make the environment with catalogue="fixed", or take an agent that follows '
            "the days, such as HierarchicalPPO."
        )


class CatalogueAlgorithm(SinglePrecision):
    """Mix-in of Stable-Baselines3's algorithms whose policy is built for the items of a catalogue.

    It stands before the algorithm among the bases. ``policy_kwargs["catalogue"]`` is taken from
    the environment, or is the one that a loaded agent was built for.

    Attributes:
        follows_days: Whether it can act where the catalogue changes.
        extends: Whether :func:`dsrm_agents.extend` moves it to a larger catalogue.
    """

    follows_days: ClassVar[bool] = False
    extends: ClassVar[bool] = False

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Changes the environment.

        Raises:
            CheckpointError: It shows other items than the agent was built for.
            ConfigError: A VecNormalize changes the ids that it shows.
        """
        wrapped = self._wrap_env(env, self.verbose)
        expected, name = self.policy_kwargs["catalogue"], type(self).__name__
        check_ids_kept(name, wrapped)
        same_catalogue(wrapped, expected, name, self.extends)
        super().set_env(wrapped, force_reset)

    def _take_catalogue(self) -> None:
        """Takes the environment's catalogue, or checks it, before the policy is built."""
        name = type(self).__name__
        if self.env is not None:
            check_ids_kept(name, self.env)
            expected = self.policy_kwargs.get("catalogue")
            catalogue = same_catalogue(self.env, expected, name, self.extends)
            self.policy_kwargs["catalogue"] = catalogue
            if not self.follows_days:
                check_fixed(self.policy_kwargs["catalogue"].changes, name)
        check_item_spaces(name, self.observation_space, self.action_space)


def check_ids_kept(agent: str, env: VecEnv) -> None:
    """Checks that item ids and answers reach an agent as they are.

    Stable-Baselines3 2.9.2 standardises all boxes of a dictionary unless it is told which
    (``common/vec_env/vec_normalize.py:105``), ids among them.

    Args:
        agent: Name of what reads them, for the error.
        env: The environment; wrappers around it are looked through.

    Raises:
        ConfigError: A VecNormalize changes more than the state.
    """
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize) and isinstance(env.observation_space, spaces.Dict):
            changed = set(env.norm_obs_keys or ()) - {"state"} if env.norm_obs else set()
            if changed:
                raise ConfigError(
                    f"{agent} reads item ids and answers, but VecNormalize changes "
                    f"{', '.join(sorted(changed))}. {CURE}"
                )
        env = env.venv


def ids_of(observation: PyTorchObs, name: str) -> Tensor:
    """Item positions of an observation, int64.

    Raises:
        ConfigError: They are floats, such as VecNormalize makes of them.
    """
    assert isinstance(observation, dict)
    ids = observation[name]
    if ids.is_floating_point():
        raise ConfigError(
            f"The observation's {name!r} must be whole numbers, item positions, but are floats, "
            f"as if an environment was normalised. {CURE}"
        )
    return ids.long()


def check_item_numbers(name: str, values: ArrayLike, catalogue: Catalogue) -> NDArray[np.floating]:
    """Checks numbers of items.

    Args:
        name: Name of the argument, for the error.
        values: Should be (n_items,) finite numbers.
        catalogue: The items.

    Returns:
        The numbers as an array of floats of the same precision.

    Raises:
        ConfigError: They are not.
    """
    numbers = np.asarray(values)
    if not np.issubdtype(numbers.dtype, np.floating):
        numbers = numbers.astype(np.float64)  # unsigned counts could not be negated
    if numbers.shape != (catalogue.n_items,) or not np.isfinite(numbers).all():
        raise ConfigError(
            f"{name} must be ({catalogue.n_items},) finite numbers, one for each item of the "
            f"catalogue; got an array of shape {numbers.shape}."
        )
    return numbers


def check_item_spaces(
    agent: str, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> tuple[int, int]:
    """Checks that observations name the items shown, and that actions are slates of items.

    Args:
        agent: Name of the agent, for the error.
        observation_space: Must be that of ``observation_type="dict"``.
        action_space: Must be that of ``action_type="slate"``.

    Returns:
        d, numbers in a state, and K, items in a slate.

    Raises:
        ConfigError: The spaces are others.
    """
    if not (
        isinstance(observation_space, spaces.Dict)
        and isinstance(action_space, spaces.MultiDiscrete)
    ):
        raise ConfigError(
            f"{agent} needs observation_type='dict' and action_type='slate', got "
            f"{observation_space} and {action_space}."
        )
    return math.prod(observation_space["state"].shape or ()), len(action_space.nvec)


def state_and_exposed(observation: PyTorchObs) -> tuple[Tensor, Tensor]:
    """The state (N, d) float32 and the exposed item positions (N, room) int64, -1 padded.

    Raises:
        ConfigError: The session has another room than the policy was built for.
    """
    assert isinstance(observation, dict)
    state, exposed = observation["state"].float(), ids_of(observation, "exposed")
    if state.shape[0] != exposed.shape[0]:  # len() would fix the number in an exported graph
        # SB3 reshapes arrays to the policy's space without asking whether they fit.
        raise ConfigError(
            "The observation's 'exposed' part has another room than the policy was built for: "
            "use the max_len and slate_size that it was trained with."
        )
    return state, exposed


def outside_pool(observation: PyTorchObs, n_items: int) -> Tensor:
    """Items that the sessions' users cannot be shown, beside those that a session has shown.

    Args:
        observation: As of ``observation_type="dict"``; those of a dataset with pools hold the
            ``"pool"`` of each user, all -1 where a user can be shown every item; those of a
            catalogue that changes the items that are ``"available"``.
        n_items: Size of the catalogue.

    Returns:
        (N, n_items) bool; (N, 0) where every item can be shown.
    """
    assert isinstance(observation, dict)
    exposed = ids_of(observation, "exposed")
    if "available" in observation:
        absent = nn.functional.pad(~flags_of(observation, "available", n_items), (0, 1))
        # An item that has left since it was shown is no other one.
        return absent.scatter_(1, torch.where(exposed < 0, n_items, exposed), False)[:, :-1]
    if "pool" not in observation or bool((observation["pool"] < 0).all()):
        return torch.empty(exposed.shape[0], 0, dtype=torch.bool, device=exposed.device)
    pool = ids_of(observation, "pool")
    outside = torch.ones(len(pool), n_items + 1, dtype=torch.bool, device=pool.device)
    outside.scatter_(1, torch.where(pool < 0, n_items, pool), False)
    outside &= (pool >= 0).any(dim=1, keepdim=True)
    return outside[:, :-1]


def flags_of(observation: PyTorchObs, name: str, n_items: int) -> Tensor:
    """(N, n_items) bool of the items that an observation holds as bits, such as ``"popular"``."""
    assert isinstance(observation, dict)
    packed = observation[name]
    shifts = torch.arange(8, device=packed.device)  # as kuaisim_gym.engine.bits has them
    of_byte = (torch.arange(256, device=packed.device)[:, None] >> shifts & 1).bool()
    return of_byte.index_select(0, packed.flatten().int()).view(len(packed), -1)[:, :n_items]


def shown_popular(
    observation: Any, slates: NDArray[np.integer], catalogue: Catalogue
) -> NDArray[np.bool_]:
    """Tells which items of slates were popular when they were shown.

    Args:
        observation: Of N sessions, to which the slates answered.
        slates: (N, K) int64 item positions.
        catalogue: Tells where popularity never changes.

    Returns:
        (N, K) bool.
    """
    if not catalogue.changes:
        return np.asarray(catalogue.popular[slates])
    return bits.contains(observation["popular"], np.arange(len(slates)), slates)


def state_and_unavailable(observation: PyTorchObs, n_items: int) -> tuple[Tensor, Tensor]:
    """The state (N, d) float32, and items that may not be shown, (N, m) int64, -1 padded.

    They are those of :func:`state_and_exposed`, then those of :func:`outside_pool`.
    """
    (state, exposed), outside = state_and_exposed(observation), outside_pool(observation, n_items)
    if outside.shape[1]:
        items = torch.arange(n_items, device=outside.device)
        exposed = torch.cat([exposed, torch.where(outside, items, -1)], dim=1)
    return state, exposed
