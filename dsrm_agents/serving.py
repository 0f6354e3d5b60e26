"""Serving: recommendations of a trained agent for users of a dataset, or ones it has never seen.

    recommender = Recommender(agent, purifier, dataset)
    recommender.recommend(user_id, history=[(item_id, response), ...])
    recommender.recommend([user_id, other_id], [history, other_history])

A session is replayed through the environment's own core and encoder
(:mod:`kuaisim_gym.envs.replay`), so that a recommendation is the slate that the agent would show in
the environment, to the last bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from dsrm_agents.baselines.bands import Composition, Quota
from dsrm_agents.baselines.items import SlatePolicy
from dsrm_agents.baselines.reference import ReferencePolicy
from dsrm_agents.baselines.rules import RuleAgent
from dsrm_agents.baselines.slates import best_slates
from dsrm_agents.common.catalogue import state_and_exposed, state_and_unavailable
from dsrm_agents.common.item_scores import ItemScorer
from dsrm_agents.common.origin import check_origin, marked, of_dataset, origin_of, shapes
from dsrm_agents.dsrm.purifier import Purifier, load_purifier
from dsrm_agents.dsrm.wrappers import ObservationPurifier
from dsrm_agents.hrl.policies import HierarchicalPolicy
from kuaisim_gym.config import is_number
from kuaisim_gym.data import Dataset, check_dataset
from kuaisim_gym.data.coding import Positions
from kuaisim_gym.envs.actions import ScorerAction
from kuaisim_gym.envs.replay import History, ReplayedSessions, options_of
from kuaisim_gym.envs.shared import BatchView
from kuaisim_gym.errors import ConfigError, UnknownIdError
from kuaisim_gym.precision import single_precision

Event = tuple[Any, float]  # an item's id, and the response to it
Recommendation = list[tuple[Any, float]]  # of items' ids and scores, as the slate has them
Ranked = tuple[NDArray[np.int64], NDArray[np.float32]]  # (N, K) item positions and their scores
Hidden = NDArray[np.bool_]  # (N, n_items), items not to be shown

_INSIST = "Recommender(..., strict=False) serves it as it is"
_SIZES = 4  # numbers of users, and shares, for which sessions are kept ready


class Recommender:
    """Recommends items to users by a trained agent.

    Args:
        agent: A Stable-Baselines3 model on ``"state"`` or ``"dict"`` observations: with slates of
            items for actions, such as :class:`~dsrm_agents.HierarchicalPPO`, or with weights of
            them, as of ``action_type="shares"``, ``"scorer"`` or
            :class:`~dsrm_agents.ScorerVecEnv`; or a rule, such as
            :class:`~dsrm_agents.baselines.similarity.SimilarityPolicy` or a reference row.
        purifier: The purifier that the agent was trained behind, its file, or ``None``.
        dataset: The dataset that it was trained on.
        strict: Whether to refuse an agent of another dataset or purifier.
        **options: Options of the environment, where they differ from those that the agent was
            trained with.

    Attributes:
        dataset: The dataset.
        options: Options of the environment.

    Raises:
        ConfigError: The agent cannot be served, for the reason that is given.
        CheckpointError: ``strict``, and it was trained on another dataset.
    """

    @single_precision()
    def __init__(
        self,
        agent: Any,
        purifier: Purifier | str | Path | None,
        dataset: Dataset,
        *,
        strict: bool = True,
        **options: Any,
    ) -> None:
        self.dataset = check_dataset("Recommender(agent, purifier, dataset)", dataset)
        self._strict = strict
        self._server = _server(agent)
        self._purifier = _as_purifier(purifier)
        reads = {} if self._purifier is None else {"preference": self._purifier.reads}
        self.options = {**reads, **self._server.options(), **options}
        self._users = Positions(dataset.user_ids)
        self._items = Positions(dataset.item_ids)
        self._sessions = lru_cache(_SIZES)(self._new_sessions)
        self._server.check(self._sessions(1, None), strict)

    @single_precision()
    def recommend(
        self,
        user_id: Any,
        history: Sequence[Any] = (),
        exclude: Iterable[Any] = (),
        longtail_share: float | None = None,
    ) -> Any:
        """Recommends a slate of items to a user, or to each of several.

        Args:
            user_id: An id of ``dataset.user_ids``, or any other id for a user of whom nothing is
                known but the history; or a list of ids.
            history: The session so far, oldest event first: an item's id and the response to it, in
                [0, 1], as the environment's ``info["slate_responses"]`` gives it. Slates are K
                events each, in order, see :class:`~kuaisim_gym.envs.replay.ReplayedSessions`. Of a
                list of users a history each, or nothing.
            exclude: Ids of items not to be shown, beside those of the session. Of a list of users
                ids for each, or nothing.
            longtail_share: Share of the long tail in the session, in [0, 1]; ``None`` for what the
                agent does by itself.

        Returns:
            K pairs of an item's id and its score by the policy, in the order of the slate; of a
            list of users such a list for each.

        Raises:
            UnknownIdError: An item's id is not in the catalogue.
            ConfigError: A response is no number in [0, 1], too few items are left, or the agent
                cannot keep a share of the long tail.
        """
        if isinstance(user_id, np.ndarray):
            user_id = user_id.tolist()
        if not isinstance(user_id, (list, tuple)):
            return self._recommend([user_id], [history], [exclude], longtail_share)[0]
        ids = list(user_id)
        given = (("history", _listed("history", history)), ("exclude", _listed("exclude", exclude)))
        lists = [values or [()] * len(ids) for _, values in given]
        for (name, _), values in zip(given, lists, strict=True):
            if len(values) != len(ids):
                raise ConfigError(
                    f"{name} must be a list with an entry for each of the {len(ids)} users, or "
                    f"left out, got {len(values)} entries."
                )
        return self._recommend(ids, lists[0], lists[1], longtail_share) if ids else []

    def _recommend(
        self,
        user_ids: list[Any],
        histories: list[Any],
        excluded: list[Any],
        longtail_share: float | None,
    ) -> list[Recommendation]:
        share, server = _checked_share(longtail_share), self._server
        sessions = self._sessions(len(user_ids), server.target_share(share))
        users = self._positions_of_users(user_ids)
        events = [self._events(history) for history in histories]
        hidden = np.zeros((len(users), self.dataset.n_items), dtype=bool)
        for row, ids in enumerate(excluded):
            positions = self._catalogue_positions("exclude", _listed("exclude", ids))
            hidden[row, positions] = True
        memory = None
        for _ in sessions.replayed.replay(users, events):
            memory = server.recall(sessions, memory)
        sessions.check_enough(hidden)
        with server.dialled(share):
            slates, scores = server.best(sessions, hidden, memory)
        ids = self.dataset.item_ids[slates].tolist()
        return [list(zip(*pair, strict=True)) for pair in zip(ids, scores.tolist(), strict=True)]

    def _new_sessions(self, n: int, share: float | None) -> Sessions:
        options = dict(self.options)
        if share is not None:
            options["target"] = (share, 1.0 - share)
        return Sessions(
            n, self.dataset, self._purifier, self._server.believes, self._strict, options
        )

    def _positions_of_users(self, ids: list[Any]) -> NDArray[np.int32]:
        """(n,) int32 positions, one behind the last for users whom the dataset does not know.

        Raises:
            UnknownIdError: An id is no id of such a dataset at all.
        """
        users = np.full(len(ids), self.dataset.n_users, dtype=np.int32)
        rows = [row for row, user in enumerate(ids) if user is not None and not _is_huge(user)]
        if rows:
            positions = self._users(self._ids("user", [ids[row] for row in rows]))
            users[rows] = np.where(positions < 0, self.dataset.n_users, positions)
        return users

    def _ids(self, kind: str, ids: list[Any]) -> NDArray[Any]:
        """Ids as an array of the dataset's own type.

        Raises:
            UnknownIdError: They are of another type.
        """
        own = self.dataset.user_ids if kind == "user" else self.dataset.item_ids
        types, form = (
            ((str,), "strings") if own.dtype.kind == "U" else ((int, np.integer), "integers")
        )
        for one in ids:
            if not isinstance(one, types) or isinstance(one, bool):
                raise UnknownIdError(
                    f"{kind.capitalize()} ids of {self.dataset.name} are {form}, such as "
                    f"{own[0].item()!r}, got {one!r}: give the id as the dataset has it."
                )
            if _is_huge(one):
                raise UnknownIdError(
                    f"{kind.capitalize()} ids of {self.dataset.name} have 64 bits, got {one}."
                )
        return np.array(ids)

    def _events(self, history: Iterable[Event]) -> History:
        """(L,) positions and (L,) responses of a history."""
        events = _listed("history", history)
        try:
            ids, answers = [item for item, _ in events], [answer for _, answer in events]
            if any(isinstance(answer, str) for answer in answers):
                raise TypeError("a response is text")
            responses = np.array(answers, dtype=np.float32).reshape(len(events))
        except (OverflowError, TypeError, ValueError) as error:
            raise ConfigError(
                "A history must be a list of pairs (item_id, response), the response a number in "
                f"[0, 1], got {str(events)[:80]}: {error}"
            ) from error
        outside = ~((responses >= 0.0) & (responses <= 1.0))  # NaN, too
        if outside.any():
            raise ConfigError(
                f"A response must lie in [0, 1], got {responses[outside][0]} for item "
                f"{ids[int(outside.argmax())]!r}: give a share watched, or 1 for a click."
            )
        return self._catalogue_positions("history", ids), responses

    def _catalogue_positions(self, name: str, ids: list[Any]) -> NDArray[np.int64]:
        """(m,) int64 positions of items of the catalogue.

        Raises:
            UnknownIdError: An id is of no item, or of one that cannot be shown.
        """
        if not ids:
            return np.empty(0, dtype=np.int64)
        items = self._ids("item", ids)
        positions = self._items(items).astype(np.int64)
        wrong = (positions < 0) | (positions >= self.dataset.n_items)
        if wrong.any():
            item, position = items[wrong].tolist()[0], positions[wrong][0]
            problem = "occurs in its log alone" if position >= 0 else "is none of them"
            raise UnknownIdError(
                f"{name}: the catalogue of {self.dataset.name} has {self.dataset.n_items} items, "
                f"and {item!r} {problem}. Leave it out; dataset.item_ids[:dataset.n_items] lists "
                "them."
            )
        return positions


def _listed(name: str, values: Any) -> list[Any]:
    """A list of what was given, empty for ``None``.

    Raises:
        ConfigError: It is no collection.
    """
    if values is None:
        return []
    is_number = isinstance(values, np.ndarray) and not values.ndim  # iterable by name alone
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable) or is_number:
        raise ConfigError(
            f"{name} must be a list, or of a list of users a list for each, got {values!r}."
        )
    return list(values)


def _is_huge(one: object) -> bool:
    """Tells an integer beyond 64 bits, which no dataset has for an id."""
    return isinstance(one, int) and not -(2**63) <= one < 2**63


class Sessions(BatchView):
    """Replayed sessions behind a purifier, as a server observes them.

    Args:
        n: Number of users.
        dataset: The data.
        purifier: The purifier, or ``None``.
        believes: Whether the batch must have a belief.
        strict: As for :class:`~dsrm_agents.dsrm.wrappers.ObservationPurifier`.
        options: Of the environment.

    Attributes:
        replayed: The sessions.
        batch: Their batch.
        observation_space: Space of :meth:`observe`.
    """

    def __init__(
        self,
        n: int,
        dataset: Dataset,
        purifier: Purifier | None,
        believes: bool,
        strict: bool,
        options: dict[str, Any],
    ) -> None:
        self.replayed = ReplayedSessions(n, dataset, believes, **options)
        self.batch = self.replayed.batch
        self.observation_space = marked(self.batch.observation_space, **of_dataset(dataset))
        self._purify: ObservationPurifier | None = None
        if purifier is not None:
            self._purify = ObservationPurifier(purifier, lambda name: getattr(self, name), strict)
            self.observation_space = self._purify.space(self.observation_space)

    def observe(self) -> Any:
        """Observations of all users, purified."""
        observation = self.replayed.observe()
        return observation if self._purify is None else self._purify(observation)[0]

    def check_enough(self, hidden: Hidden) -> None:
        """Checks that each user has a slate of items left.

        Raises:
            ConfigError: One has not.
        """
        size, left = self.batch.config.slate_size, (self.replayed.unexposed() & ~hidden).sum(1)
        if (left < size).any():
            row = int(left.argmin())
            raise ConfigError(
                f"A slate has {size} items, but history and exclude leave {left[row]} of "
                f"{hidden.shape[1]} to user number {row} of the call: exclude fewer."
            )


class Server(ABC):
    """Recommendations of one kind of agent.

    Args:
        agent: The agent.

    Attributes:
        believes: Whether it needs a belief beside what it observes.
    """

    believes = False

    def __init__(self, agent: Any) -> None:
        self.agent = agent

    def options(self) -> dict[str, Any]:
        """Options of the environment that the agent was trained in, as far as it tells."""
        return dict(origin_of(self.agent.observation_space).get("options", {}))

    def check(self, sessions: Sessions, strict: bool) -> None:
        """Checks that the agent reads what the sessions show, and shows what they take.

        Raises:
            ConfigError: It does not.
            CheckpointError: ``strict``, and it was trained on another dataset.
        """
        name = type(self.agent).__name__
        if strict:
            check_origin(self.agent.observation_space, sessions.observation_space, _INSIST, name)
        read, shown = map(shapes, (self.agent.observation_space, sessions.observation_space))
        if read != shown:
            raise ConfigError(
                f"{name} was trained on observations {read}, these sessions show {shown}: give its "
                "purifier, and the options of its environment, such as preference=, "
                "observation_type=, max_len= or slate_size=."
            )
        acts, taken = map(shapes, (self.agent.action_space, sessions.batch.action_space))
        if acts != taken:
            raise ConfigError(
                f"{name} has actions {acts}, these sessions take {taken}: serve an agent that "
                "scores or chooses their items itself, with the slate_size that it was trained "
                "with."
            )

    def target_share(self, share: float | None) -> float | None:
        """The long-tail share that sessions must be made for, as the agent keeps their target.

        Raises:
            ConfigError: The agent can keep none.
        """
        if share is None:
            return None
        raise ConfigError(
            f"{type(self.agent).__name__} cannot keep a share of the long tail: leave out "
            "longtail_share, or serve a bounded HierarchicalPPO, a scorer behind "
            "ScorerVecEnv(quota=True), or a rule with +quota."
        )

    def dialled(self, share: float | None) -> AbstractContextManager[None]:
        """Keeps a share of the long tail for a while, where the agent does so by itself."""
        return nullcontext()

    def recall(self, sessions: Sessions, memory: Any) -> Any:
        """Memory of the agent about sessions as they stand, for :meth:`best`.

        Args:
            sessions: N sessions, at their start or after a step.
            memory: What this method returned for the last step; ``None`` at the start.
        """
        return None

    @abstractmethod
    def best(self, sessions: Sessions, hidden: Hidden, memory: Any) -> Ranked:
        """Ranks items for sessions as they stand.

        Args:
            sessions: N sessions.
            hidden: (N, n_items) bool, items not to be shown.
            memory: Of :meth:`recall`.
        """


class RuleServer(Server):
    """Recommendations of a rule, bound anew to the sessions that are served."""

    agent: RuleAgent
    believes = True

    def __init__(self, agent: RuleAgent) -> None:
        super().__init__(agent)
        if isinstance(agent, ReferencePolicy) and agent.knows_answers:
            raise ConfigError(
                "This reference row knows how users will answer, which nobody who serves them "
                "does: serve a row of the scores popularity, quality, random-rates or filter."
            )
        self._bound = lru_cache(_SIZES)(lambda sessions: agent.bound_to(sessions.batch))

    def options(self) -> dict[str, Any]:
        return options_of(self.agent.batch)

    def check(self, sessions: Sessions, strict: bool) -> None:
        trained = marked(spaces.Discrete(1), **of_dataset(self.agent.batch.dataset))
        shown = marked(spaces.Discrete(1), **of_dataset(sessions.batch.dataset))
        if strict:
            check_origin(trained, shown, _INSIST, type(self.agent).__name__)
        self._bound(sessions)

    def target_share(self, share: float | None) -> float | None:
        return share if self.agent.composition.keeps_target else super().target_share(share)

    def best(self, sessions: Sessions, hidden: Hidden, memory: Any) -> Ranked:
        agent = self._bound(sessions)
        scores = agent.item_scores(sessions.observe())
        sessions.replayed.hide(hidden)
        return _with_scores(agent.chosen(scores), scores)


class ScorerServer(Server):
    """Recommendations of an agent whose actions are linear scorers of items."""

    agent: BaseAlgorithm

    def __init__(self, agent: BaseAlgorithm) -> None:
        super().__init__(agent)
        self.quota: bool | None = origin_of(agent.action_space).get("quota")
        kind = Quota if self.quota else Composition
        self._composition = lru_cache(_SIZES)(lambda sessions: kind(sessions.batch))

    def options(self) -> dict[str, Any]:
        kind = {} if self.quota is None else {"action_type": ScorerAction.name}
        return super().options() | kind

    def check(self, sessions: Sessions, strict: bool) -> None:
        super().check(sessions, strict)
        sessions.batch.actions.scores(self._actions(sessions))  # refuses those that score nothing

    def target_share(self, share: float | None) -> float | None:
        return share if self.quota else super().target_share(share)

    def best(self, sessions: Sessions, hidden: Hidden, memory: Any) -> Ranked:
        batch = sessions.batch
        actions = self._actions(sessions)
        scores = batch.actions.scores(actions)
        if self.quota is None:
            sessions.replayed.allow_again()
        sessions.replayed.hide(hidden)
        if self.quota is None:
            return _with_scores(batch.actions.slates(actions).astype(np.int64), scores)
        counts = self._composition(sessions)(scores)
        return _with_scores(best_slates(batch, scores, counts), scores)

    def _actions(self, sessions: Sessions) -> NDArray[Any]:
        actions, _ = self.agent.predict(sessions.observe(), deterministic=True)
        return sessions.batch.actions.array(actions)


class SlateServer(Server):
    """Recommendations of an agent whose actions are slates, and whose policy scores items."""

    agent: BaseAlgorithm

    def options(self) -> dict[str, Any]:
        return {"observation_type": "dict", "action_type": "slate"} | super().options()

    def best(self, sessions: Sessions, hidden: Hidden, memory: Any) -> Ranked:
        policy: Any = self.agent.policy
        if policy.training:
            policy.set_training_mode(False)
        with torch.no_grad():
            obs, _ = policy.obs_to_tensor(sessions.observe())
            slates, scores = self.decided(_without(obs, hidden), sessions, memory)
        return _with_scores(slates.cpu().numpy(), scores.cpu().numpy())

    def decided(
        self, obs: dict[str, Tensor], sessions: Sessions, memory: Any
    ) -> tuple[Tensor, Tensor]:
        """(N, K) slates for N observations, and (N, n_items) scores of the catalogue."""
        policy: Any = self.agent.policy
        if isinstance(policy, SlatePolicy):
            shown = state_and_unavailable(obs, sessions.batch.catalogue.n_items)
            scores = policy.scores(*shown, deterministic=True)
        else:
            scores = policy.item_scores(obs)
        return policy._predict(obs, deterministic=True), scores


class HierarchicalServer(SlateServer):
    """Recommendations of a manager and a worker; the dial sets the share of the long tail.

    Their memory is (N, 2) the manager's draws, which hold for ``decision_period`` steps.
    """

    def target_share(self, share: float | None) -> float | None:
        return None

    @contextmanager
    def dialled(self, share: float | None) -> Iterator[None]:
        policy: Any = self.agent.policy
        before = policy.worker.group_shares.clone()
        try:
            if share is not None:
                policy.set_fairness(share)
            yield
        finally:
            policy.worker.group_shares.copy_(before)

    def recall(self, sessions: Sessions, memory: Any) -> Any:
        policy: Any = self.agent.policy
        if policy.decision_period == 1:
            return None
        with torch.no_grad():
            obs, _ = policy.obs_to_tensor(sessions.observe())
            return self._control(obs, sessions, memory)

    def decided(
        self, obs: dict[str, Tensor], sessions: Sessions, memory: Any
    ) -> tuple[Tensor, Tensor]:
        policy: Any = self.agent.policy
        slates, scores = policy.best(obs, self._control(obs, sessions, memory))
        return slates, scores

    def _control(self, obs: dict[str, Tensor], sessions: Sessions, memory: Any) -> Tensor:
        """(N, 2) the manager's best draws, new or held."""
        policy: Any = self.agent.policy
        control: Tensor = policy.manager(state_and_exposed(obs)[0])
        if memory is None:
            return control
        due = torch.as_tensor(sessions.batch.core.state.steps % policy.decision_period == 0)
        return torch.where(due[:, None].to(control.device), control, memory)


def _server(agent: Any) -> Server:
    """The server of an agent.

    Raises:
        ConfigError: No server can serve it; the message gives the reason.
    """
    if isinstance(agent, RuleAgent):
        return RuleServer(agent)
    name = type(agent).__name__
    if not isinstance(agent, BaseAlgorithm):
        raise ConfigError(
            "A Recommender serves Stable-Baselines3 models and rules such as SimilarityPolicy and "
            f"reference rows, got {name}: load the model, as by PPO.load(path)."
        )
    reason, origin = "", origin_of(agent.observation_space)
    normalised = agent.get_vec_normalize_env()
    if hasattr(agent, "_last_lstm_states"):
        reason = "remembers what it has seen in a form that a history does not give"
    elif "encoder" in origin:
        reason = "reads states of a history encoder, which is not served"
    elif normalised is not None and normalised.norm_obs:
        reason = "reads observations that VecNormalize has changed"
    elif isinstance(agent.observation_space, spaces.Dict) and (
        "state" not in agent.observation_space.spaces
    ):
        reason = f"reads no state, but {list(agent.observation_space.spaces)}"
    elif isinstance(agent.action_space, spaces.Box):
        return ScorerServer(agent)
    elif isinstance(agent.policy, HierarchicalPolicy):
        return HierarchicalServer(agent)
    elif isinstance(agent.policy, (ItemScorer, SlatePolicy)):
        return SlateServer(agent)
    else:
        reason = f"has actions {shapes(agent.action_space)}, and a policy that scores no items"
    raise ConfigError(
        f"{name} with {type(agent.policy).__name__} cannot be served: it {reason}. Agents that "
        'read observation_type="state" or "dict" and score or choose the items can be.'
    )


def _without(obs: dict[str, Tensor], hidden: Hidden) -> dict[str, Tensor]:
    """Observations whose pools lack some items, as policies over slates take them."""
    if not hidden.any():
        return obs
    pool = np.where(hidden, -1, np.arange(hidden.shape[1]))
    return {**obs, "pool": torch.from_numpy(pool).to(obs["exposed"].device)}


def _with_scores(slates: NDArray[np.int64], scores: NDArray[np.float32]) -> Ranked:
    return slates, np.take_along_axis(scores, slates, axis=1)


def _checked_share(share: float | None) -> float | None:
    if share is None or (is_number(share) and 0.0 <= share <= 1.0):
        return share
    raise ConfigError(f"longtail_share must lie in [0, 1] or be None, got {share!r}.")


def _as_purifier(purifier: Purifier | str | Path | None) -> Purifier | None:
    return load_purifier(purifier) if isinstance(purifier, (str, Path)) else purifier
