"""Trained agents on larger catalogues, without training and without a new network.

HSRL and HierarchicalPPO have no weights of single items: the first weighs codes and an item's
vector, the second projects the vector. What they know of an item are its row in the embedding, or
its features, and its id, which a codebook gives to any row. So further items need rows, in the
coordinates of the embedding that the agent was trained with, and no weights.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from dsrm_agents.common.catalogue import check_item_spaces, same_catalogue
from dsrm_agents.common.policies import SlateActorCritic
from dsrm_agents.common.slate_ppo import SlatePPO
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.precision import single_precision
from kuaisim_gym.simulator.catalogue import Catalogue

LEAST_AGREEMENT = 0.9  # correlation of a column over the earlier items, before and after
LEAST_SPREAD = 0.01  # of a column in units of quality's; narrower ones tell of no taste
_RUN = ("_last_obs", "_last_episode_starts", "_last_original_obs", "_custom_logger")
_WORLD = ("observation_space", "action_space", "n_envs", "policy_kwargs")

FloatArray = NDArray[np.float32]
AgentT = TypeVar("AgentT", bound=SlatePPO)


def extend(
    model: AgentT,
    env: GymEnv,
    embedding: ArrayLike | None = None,
    policy_kwargs: dict[str, Any] | None = None,
) -> AgentT:
    """Moves a trained agent to an environment with further items.

    All weights, the optimiser and the counts of steps are taken over. Earlier items keep rows,
    scales and semantic ids to the last bit: while no new item may be shown, slates have the
    probabilities that they had, as far as groups and exposures, which are those of the new
    environment, are the same.

    New rows come from the catalogue of the new environment. A catalogue that is fitted anew is
    centred anew and has other units, and its axes may turn or change signs; observed states turn
    with them. By default, axes must be the same, as they are while nobody has logged the new items
    and their features alone place them; the linear map that fits earlier items best, by least
    squares, brings the new ones into the agent's units.

    Args:
        model: A trained or loaded ``HSRL`` or ``HierarchicalPPO``; it stays as it is.
        env: The new environment, whose catalogue begins with the agent's items.
        embedding: (m, d) float, the new items in the coordinates of
            ``model.policy.catalogue.embedding``, in place of that map. The environment's states
            must then be in these coordinates, too, which is not checked.
        policy_kwargs: Of the policy, where they differ: what the agent was given for its items,
            ``item_features`` or ``item_quality``, with rows for the new ones at the end;
            ``codebook``, if it was not fitted to ``catalogue.known`` (``standardised`` where the
            catalogue changes); or ``groups``, if they are not the environment's.

    Returns:
        An agent of the same class on ``env``, which predicts, learns, saves and loads.

    Raises:
        ConfigError: ``model`` is another agent; the environment's items do not begin with the
            agent's, its embedding has other axes, it observes or groups otherwise; an array is of
            other items or other features.
    """
    if not isinstance(model, SlatePPO):
        raise ConfigError(
            "extend is for HSRL and HierarchicalPPO, which have no weights of single items; "
            f"{type(model).__name__} must be trained anew."
        )
    policy, changed = model.policy, dict(policy_kwargs or {})
    venv = model._wrap_env(env, model.verbose)
    larger = _checked_catalogue(model, venv)
    earlier = policy.catalogue
    if embedding is None:
        _check_axes(earlier, larger)
        rows = _mapped(earlier, larger)
    else:
        rows = _checked_rows(embedding, earlier, larger)
    _check_states(model, venv)
    catalogue = earlier.extended(rows, larger)
    for name in policy.item_options:
        _check_option(name, policy._options[name], changed.get(name), catalogue)
    derived = {} if "codebook" in changed else policy.larger_options(catalogue)
    groups = {"groups": venv.get_attr("groups")[0]}
    options = model.policy_kwargs | groups | derived | changed | {"catalogue": catalogue}
    _check_groups(policy, options["groups"].names)
    return _built(model, venv, options)


@single_precision()
def _built(model: AgentT, env: VecEnv, policy_kwargs: dict[str, Any]) -> AgentT:
    """The agent on another environment, as Stable-Baselines3 loads one, with the weights."""
    kind: Any = type(model)
    sizes = {"n_steps": model.n_steps, "batch_size": model.batch_size}  # which are compared
    larger: AgentT = kind(
        type(model.policy), env, device=model.device, _init_setup_model=False, **sizes
    )
    skipped = {*model._excluded_save_params(), *_RUN, *_WORLD}
    state = {name: value for name, value in vars(model).items() if name not in skipped}
    vars(larger).update(deepcopy(state))
    larger.policy_kwargs = policy_kwargs
    larger._setup_model()
    larger.policy.take_weights(model.policy)
    return larger


def _checked_catalogue(model: SlatePPO, env: VecEnv) -> Catalogue:
    """The environment's catalogue, if it can follow that of the agent.

    Raises:
        ConfigError: It cannot.
    """
    name, earlier = type(model).__name__, model.policy.catalogue
    larger = same_catalogue(env, None, name)
    if larger.changes != earlier.changes:
        kinds = ["fixed", "dynamic"]
        raise ConfigError(
            f"This {name} was trained on a {kinds[earlier.changes]} catalogue, and that of the new "
            f"environment is {kinds[larger.changes]}: give the option catalogue= that it had."
        )
    if larger.n_items < earlier.n_items:
        raise ConfigError(
            f"This {name} knows {earlier.n_items} items, and the new environment has "
            f"{larger.n_items}: it must have the same ones and further ones behind them."
        )
    before, after = _item_ids(model.env), _item_ids(env)
    if before is not None and after is not None:
        moved = np.flatnonzero(before[: earlier.n_items] != after[: earlier.n_items])
        if len(moved):
            at = moved[0]
            raise ConfigError(
                f"Item {before[at]} is at position {at} for this {name}, and item {after[at]} in "
                "the new environment: keep earlier items in their places, and put new ones behind."
            )
    return larger


def _check_states(model: SlatePPO, env: VecEnv) -> None:
    name = type(model).__name__
    state_dim, _ = check_item_spaces(name, env.observation_space, env.action_space)
    if state_dim != model.policy.state_dim:
        raise ConfigError(
            f"This {name} reads {model.policy.state_dim} numbers of a user, the new environment "
            f"shows {state_dim}: make it with the observation options that the agent had."
        )


def _item_ids(env: VecEnv | None) -> NDArray[Any] | None:
    """(n_all_items,) the ids of an environment's items; ``None`` where there are none."""
    try:
        ids: NDArray[Any] | None = None if env is None else env.get_attr("dataset")[0].item_ids
    except AttributeError:
        return None
    return ids


def _check_axes(earlier: Catalogue, larger: Catalogue) -> None:
    """Checks that columns of the embedding mean what they meant.

    Raises:
        ConfigError: One does not, or other items stand in the earlier ones' places.
    """
    before, after = earlier.item_embedding, larger.item_embedding[: earlier.n_items]
    advice = (
        "Earlier items must keep their places, and axes their meaning, as they do where rows of "
        "the log are as before and none is of a new item; or give the rows of the new items, "
        "embedding=, and an environment whose states are in the agent's coordinates."
    )
    if before.shape[1] != after.shape[1]:
        raise ConfigError(
            f"The embedding of the new environment's items has {after.shape[1]} columns, the "
            f"agent's {before.shape[1]}. {advice}"
        )
    if len(before) < 2 * before.shape[1]:
        raise ConfigError(
            f"The agent's {len(before)} items are too few to compare {before.shape[1]} columns of "
            "their embedding by: give the rows of the new ones, embedding=."
        )
    for column in np.flatnonzero(before.std(axis=0) > LEAST_SPREAD):
        agreement = _correlation(before[:, column], after[:, column])
        if agreement < LEAST_AGREEMENT:
            raise ConfigError(
                f"Column {column} of the new environment's embedding has a correlation of "
                f"{agreement:.2f} with the agent's over the {len(before)} earlier items, and "
                f"{LEAST_AGREEMENT} is the least that counts as the same axis. {advice}"
            )


def _correlation(before: FloatArray, after: FloatArray) -> float:
    """The correlation of two (n,) columns, 0 where one is constant."""
    first, second = (column - column.mean(dtype=np.float64) for column in (before, after))
    spread = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / spread) if spread > 0.0 else 0.0


def _mapped(earlier: Catalogue, larger: Catalogue) -> FloatArray:
    """(m, d) rows of the new items, by the affine map that fits the earlier ones best."""
    inputs = larger.item_embedding.astype(np.float64)
    inputs = np.column_stack([inputs, np.ones(len(inputs))])
    slopes = np.linalg.lstsq(
        inputs[: earlier.n_items], earlier.item_embedding.astype(np.float64), rcond=1e-6
    )[0]
    return np.asarray(inputs[earlier.n_items :] @ slopes, dtype=np.float32)


def _checked_rows(embedding: ArrayLike, earlier: Catalogue, larger: Catalogue) -> FloatArray:
    expected = (larger.n_items - earlier.n_items, earlier.embedding.shape[1])
    try:
        rows, got = np.asarray(embedding, dtype=np.float32), f"shape {np.shape(embedding)}"
    except (TypeError, ValueError):  # words, or rows of different lengths
        rows, got = np.empty(0, dtype=np.float32), repr(embedding)
    if rows.shape != expected or not np.isfinite(rows).all():
        raise ConfigError(
            f"embedding must be finite numbers of shape {expected}, a row for each new item in "
            f"the columns of the agent's embedding; got {got}."
        )
    return rows


def _check_option(name: str, before: Any, after: Any, catalogue: Catalogue) -> None:
    """Checks that an option that describes items one by one goes on for the new ones.

    Raises:
        ConfigError: It does not.
    """
    expected = None if before is None else (catalogue.n_items, *np.shape(before)[1:])
    if (before is None) != (after is None) or (expected and np.shape(after) != expected):
        had = "none" if before is None else f"one of shape {np.shape(before)}"
        needed = "leave it out" if expected is None else f"give {expected}"
        got = "none" if after is None else f"shape {np.shape(after)}"
        raise ConfigError(
            f"policy_kwargs: the agent was made with {name} of its items: {had}; {needed} for the "
            f"larger catalogue, got {got}."
        )
    if before is not None and not np.allclose(after[: len(before)], before, atol=1e-5):
        raise ConfigError(
            f"policy_kwargs: {name} of earlier items must be those that the agent was made with: "
            "compute them for all items, and train on the first rows."
        )


def _check_groups(policy: SlateActorCritic, names: tuple[str, ...]) -> None:
    if names != policy.groups.names:
        raise ConfigError(
            f"The agent balances the groups {', '.join(policy.groups.names)}, the new environment "
            f"has {', '.join(names)}: make it with the groups= that the agent had."
        )
