"""Logs that are made here: of simulated sessions, and of KuaiRand's published random exposures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.ope.checks import check_items
from dsrm_agents.ope.logged import Context, LoggedSessions, StochasticPolicy
from kuaisim_gym.config import check_whole
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError


def log_sessions(
    batch: SessionBatch, policy: StochasticPolicy, seed: int, observe: bool = False
) -> LoggedSessions:
    """Plays one session in each slot of a batch and logs it.

    Args:
        batch: n sessions of ``action_type="slate"`` or ``"discrete"``; they are seeded and reset.
        policy: Acts in them.
        seed: Of the sessions, slot i having ``seed + i``, and of the policy's draws; at least 0.
        observe: Whether the policy reads observations, which are then kept, too.

    Raises:
        ConfigError: The actions are of another type, rewards are vectors or about returns, or the
            policy is one of other items.
    """
    _check_played(batch, policy)
    check_whole("seed", seed, 0)
    n, longest, size = batch.n_sessions, batch.longest, batch.config.slate_size
    state, rng = batch.core.state, np.random.default_rng(seed)
    batch.seed([seed + slot for slot in range(n)])
    batch.reset()
    log_probs, patience = np.zeros((n, longest, size)), np.zeros((n, longest))
    observations: list[Any] = []
    slates: NDArray[np.int64] = np.zeros((n, size), dtype=np.int64)
    while state.active.any():
        slots = state.active.copy()
        rows = np.flatnonzero(slots)
        step = int(state.steps[rows[0]])
        observed = batch.observe() if observe else None
        if observe:
            observations.append(observed)
        shown = state.slates[rows, :step].reshape(len(rows), -1).astype(np.int64)
        context = Context(state.users[rows], shown, _rows(observed, rows))
        slates[rows], log_probs[rows, step] = policy.act(context, size, rng)
        patience[rows, step] = state.temper[rows]
        batch.step(slates if batch.action_type == "slate" else slates[:, 0], slots)
    sessions = batch.records(np.arange(n))
    return LoggedSessions(
        sessions.users, sessions.length, sessions.slates, sessions.rewards, log_probs,
        sessions.responses, patience, _stacked(observations, longest), batch.catalogue.n_items,
    )  # fmt: skip


def _check_played(batch: SessionBatch, policy: StochasticPolicy) -> None:
    """Checks that a policy's sessions in a batch can be logged."""
    if batch.action_type not in ("slate", "discrete"):
        raise ConfigError(
            f'log_sessions needs action_type="slate" or "discrete", got {batch.action_type!r}.'
        )
    if not batch.slate_rewards or batch.reward_space.shape:
        raise ConfigError(
            f"log_sessions needs one session an episode, and its steps one number each as reward; "
            f"the task {batch.task!r} with rewards of shape {batch.reward_space.shape} is another: "
            'take an id of whole sessions, such as KuaiRand-Fair-v0, and reward="response".'
        )
    catalogue = getattr(policy, "catalogue", None)
    check_items(sessions=batch.catalogue.n_items, policy=getattr(policy, "n_items", None))
    if catalogue is not None and not catalogue.is_of(batch.catalogue):
        raise ConfigError(
            "The policy was trained on other items than the sessions show: use the dataset that it "
            "was trained on."
        )


def _rows(observation: Any, rows: NDArray[np.int64]) -> Any:
    if isinstance(observation, dict):
        return {name: array[rows] for name, array in observation.items()}
    return None if observation is None else observation[rows]


def _stacked(observations: list[Any], longest: int) -> Any:
    """(n, T, ...) of the steps' (n, ...) observations; ``None`` of none."""
    if not observations:
        return None
    if isinstance(observations[0], dict):
        names = observations[0]
        return {
            name: _stacked([session[name] for session in observations], longest) for name in names
        }
    missing = [np.zeros_like(observations[0])] * (longest - len(observations))
    return np.stack([*observations, *missing], axis=1)


def random_log(dataset: Dataset) -> LoggedSessions:
    """The test rows of random exposures as sessions of one step and one item.

    KuaiRand's randomised log showed items drawn uniformly from its pool, the catalogue here, so
    that the propensity of every row is one over the number of items.

    Args:
        dataset: Whose test rows are draws of a random log, such as ``"kuairand-click"``.

    Raises:
        ConfigError: The data say of no random log, so that propensities are not known.
    """
    if dataset.randomised is None or dataset.test.is_draw or dataset.synthetic:
        raise ConfigError(
            f"{dataset.name} has no published random log: give kuairand-click with its files."
        )
    rows = dataset.test
    answers = rows.response.astype(np.float32)[:, None, None]
    return LoggedSessions(
        rows.users,
        np.ones(len(rows), dtype=np.int64),
        rows.items.astype(np.int32)[:, None, None],
        answers[:, 0].astype(np.float64),
        np.full(answers.shape, -np.log(dataset.n_items)),
        answers,
        n_items=dataset.n_items,
    )
