"""Batches of sessions, which assemble dataset, simulator, core, observations and actions.

The environments (single, vectorised, Stable-Baselines3) share a :class:`SessionBatch` and add
only the interface of their library. A task is a subclass of it, see :mod:`kuaisim_gym.envs.tasks`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from operator import is_not
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from kuaisim_gym.config import SessionConfig, check_choice
from kuaisim_gym.data import Dataset
from kuaisim_gym.engine import find_engine
from kuaisim_gym.engine.types import BoolArray, DoubleArray, StepResult, no_outcome
from kuaisim_gym.envs.actions import ACTION_TYPES, as_actions
from kuaisim_gym.envs.fused import FusedSteps, find_fused
from kuaisim_gym.envs.options import (
    arriving_users,
    check_seed,
    find_dataset,
    preference_encoder,
    usual_slate_size,
    usual_window,
)
from kuaisim_gym.envs.rows import Info, info_of, row_of
from kuaisim_gym.errors import ConfigError, ResetNeededError, unexpected_option
from kuaisim_gym.metrics import (
    Audit,
    Merit,
    Sessions,
    log_rows,
    popular_taste,
    summarise,
    summarise_users,
    user_classes,
)
from kuaisim_gym.metrics.exposure import popular_flags
from kuaisim_gym.metrics.newcomers import summarise_newcomers
from kuaisim_gym.metrics.providers import summarise_providers
from kuaisim_gym.metrics.summaries import session_metrics
from kuaisim_gym.observation import (
    Observation,
    ObservationEncoder,
    shown_preference,
)
from kuaisim_gym.registry import register
from kuaisim_gym.rendering import SessionView
from kuaisim_gym.simulator import Simulator, build_simulator, load_catalogue
from kuaisim_gym.simulator.belief import Belief
from kuaisim_gym.simulator.build import load_preferences
from kuaisim_gym.simulator.core import SessionCore
from kuaisim_gym.simulator.groups import POPULARITY, Groups, GroupSpec, TargetSpec, find_groups
from kuaisim_gym.simulator.lifecycle import Lifecycle, before_first_day
from kuaisim_gym.simulator.platform import Platform
from kuaisim_gym.simulator.pools import find_pools
from kuaisim_gym.simulator.providers import find_ownership
from kuaisim_gym.simulator.rules import OwnRule, OwnRules, RuleWorld, find_reward
from kuaisim_gym.snapshots import Snapshot, check_alike, of_settings, under, within

_OPTIONS = (
    "dataset", "split", "users", "groups", "target", "dataset_seed", "response_model",
    "calibration", "catalogue", "observation_type", "preference", "history_len", "evidence",
    "action_type", "reward", "engine",
)  # fmt: skip
_SIZES = (
    "The number of sessions is n_envs= of make_vec_env, and num_envs= of gymnasium.make_vec; "
    "gymnasium.make makes one."
)
_HINTS = {
    "n_envs": _SIZES,
    "num_envs": _SIZES,
    "autoreset_mode": (
        "With vectorization_mode='sync' or 'async' it is an option of Gymnasium's vector "
        "environment: vector_kwargs={'autoreset_mode': ...}; the native one takes it as it is."
    ),
}
_STEPPING = ("step", "reset", "observe")  # what compiled steps stand for
_SESSION_OPTIONS = tuple(option.name for option in fields(SessionConfig))


class SessionBatch:
    """N sessions with their spaces, which every environment is a view of: the whole-session task.

    ``class MyBatch(SessionBatch, task="mine")`` makes another task of the same dynamics, which
    overrides what differs and is found in :data:`TASKS` by its name.

    Args:
        n_sessions: N.
        name: Dataset name, such as ``"kuairec"``; ``None`` for the task's usual one.
        dataset: A loaded dataset, a folder of published files, or ``None`` for the synthetic
            world.
        split: ``"train"`` or ``"test"``: which simulator answers, and whose sessions they are.
        users: Positions of some of the split's users, whose sessions alone are played, in any
            order; ``None`` for all of them. It changes nothing else: the simulator, the catalogue
            and the preference encoder are the split's.
        groups: Groups of items, between which exposures are balanced: ``"popularity"``, the popular
            fifth and the rest; a column of the dataset, such as ``"category"`` or ``"author_id"``;
            a column cut at quantiles, such as ``{"upload_dt": (0.25, 0.5, 0.75)}``; or (n_items,)
            labels. See :func:`~kuaisim_gym.simulator.groups.find_groups`.
        target: The share of the exposures that is due to each group: ``"uniform"``,
            ``"catalogue"``, in proportion to their items, or numbers that sum to one.
        dataset_seed: Seed of the synthetic world.
        response_model: As for :func:`~kuaisim_gym.simulator.build.build_simulator`.
        calibration: As for the same function.
        catalogue: ``"fixed"``; ``"dynamic"``, whose items are born and leave; or how they do, see
            :class:`~kuaisim_gym.simulator.lifecycle.Lifecycle`.
        observation_type: As for :class:`~kuaisim_gym.observation.ObservationEncoder`.
        preference: As for the same class.
        history_len: As for the same class.
        evidence: What a belief that is observed rests on: ``"log"`` or ``"session"``, beside the
            user's features; ``None`` for both.
        action_type: A key of :data:`~kuaisim_gym.envs.actions.ACTION_TYPES`; ``None`` for the
            task's usual one.
        reward: ``"response"``, the mean response of a slate; ``"vector"``, utility and fairness; or
            a rule of one's own, see :class:`~kuaisim_gym.simulator.rules.Rule`.
        engine: ``"numba"``, ``"numpy"``, or ``"auto"`` for the faster one that is installed; the
            sessions are the same.
        **session_options: Fields of :class:`~kuaisim_gym.config.SessionConfig`; ``abandonment``
            may be a rule of one's own, too.

    Attributes:
        task: Name of the task.
        usual_dataset: Name of the dataset that it is about.
        usual_actions: Name of its actions where nobody says.
        defaults: Session options of the task, where they differ from ``SessionConfig``'s.
        extra_options: Names of the arguments that a subclass adds.
        extra_context: Names of the context columns that it adds, see
            :meth:`~kuaisim_gym.observation.ObservationEncoder.set_context`.
        slate_rewards: Whether a step's reward is about the slate that the step has shown.
        columns: Metrics of a result table, of those that :meth:`summarise` gives, and their titles.
        headline: Metric by which agents are compared, of :meth:`finished` and :meth:`summarise`
            alike, and its name in words.

    Raises:
        ConfigError: An unknown option or value.
    """

    task: ClassVar[str] = "session"
    usual_dataset: ClassVar[str] = "kuairec"
    usual_actions: ClassVar[str] = "shares"
    defaults: ClassVar[dict[str, Any]] = {}
    extra_options: ClassVar[tuple[str, ...]] = ()
    extra_context: ClassVar[tuple[str, ...]] = ()
    slate_rewards: ClassVar[bool] = True
    columns: ClassVar[dict[str, str]] = {
        "len": "Len", "r_each": "R_each", "r_cum": "R_cum", "q": "q", "ad": "AD",
        "slate_ad": "slate AD", "longtail_share": "long tail", "gini": "Gini",
        "coverage": "coverage",
    }  # fmt: skip
    headline: ClassVar[tuple[str, str]] = ("len", "session length (steps)")

    def __init_subclass__(cls, *, task: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(TASKS, task, cls)
        cls.task = task

    def __init__(
        self,
        n_sessions: int,
        name: str | None = None,
        *,
        dataset: Dataset | str | Path | None = None,
        split: str = "train",
        users: ArrayLike | None = None,
        groups: GroupSpec = POPULARITY,
        target: TargetSpec = "uniform",
        dataset_seed: int = 0,
        response_model: str = "factor",
        calibration: str | None = None,
        catalogue: str | Mapping[str, Any] | Lifecycle = "fixed",
        observation_type: str = "state",
        preference: str | None = None,
        history_len: int | None = None,
        evidence: str | None = None,
        action_type: str | None = None,
        reward: str | OwnRule = "response",
        engine: str = "auto",
        **session_options: Any,
    ) -> None:
        allowed = (*_OPTIONS, *self.extra_options, *_SESSION_OPTIONS)
        for option in session_options:
            if option not in allowed:
                hint = _HINTS.get(option, "")
                raise unexpected_option("An environment option", option, allowed, hint)
        action_type = self.usual_actions if action_type is None else action_type
        self.action_type = check_choice("action_type", action_type, ACTION_TYPES)
        single = {"slate_size": 1} if action_type == "discrete" else {}
        chosen = {**self.defaults, **single, **session_options}
        abandonment = _take_rule(chosen)
        self.config = SessionConfig(**chosen)
        self.dataset = find_dataset(name or self.usual_dataset, dataset, dataset_seed)
        if "slate_size" not in chosen:
            usual = usual_slate_size(self.dataset.n_items)
            window = chosen.get("window") or usual_window(usual, self.config.longest)
            self.config = replace(self.config, slate_size=usual, window=window)
        self.simulator: Simulator = build_simulator(
            self.dataset, split, response_model, calibration
        )
        self.platform = self._open_platform(Lifecycle.of(catalogue), n_sessions, engine)
        self.catalogue = load_catalogue(self.dataset)
        grouping = find_groups(groups, target, self.dataset, self.catalogue)
        popular = self.catalogue.popular
        if self.platform is not None:
            self.catalogue, popular = self.platform.catalogue(), self.platform.popular
            grouping = self.platform.following(grouping)
        self.core = SessionCore(
            self.simulator.model,
            grouping,
            arriving_users(users, self.simulator),
            self.config,
            n_sessions,
            find_engine(engine),
            self.catalogue.standardised,
            find_pools(self.dataset, split),
            popular,
            self.platform,
            self._own_rules(n_sessions, grouping, find_reward(reward), abandonment),
        )
        self.encoder = self._make_encoder(observation_type, preference, history_len, evidence)
        kind = ACTION_TYPES[self.action_type]
        self.actions = kind(self.core, self.catalogue, self.simulator)
        self._calibration = calibration
        # Whether a task tells more than play_alone puts together.
        self._adds_info = type(self).session is not SessionBatch.session
        self._today: tuple[int, ...] = ()
        self._fused_parts: tuple[Any, ...] | None = None
        self._fused_steps: FusedSteps | None = None
        self._world = self.simulator.world
        ids = self.dataset.item_ids[: self.catalogue.n_items]
        nothing = -1 if ids.dtype.kind == "i" else ""
        self._ids = np.append(ids, np.array([nothing], dtype=ids.dtype))  # the last for no item

    def _open_platform(
        self, lifecycle: Lifecycle | None, n_sessions: int, engine: str
    ) -> Platform | None:
        """The platform of a catalogue that changes, of which states and agents know the past."""
        if lifecycle is None:
            return None
        self.dataset, timetable = before_first_day(self.dataset, lifecycle)
        known, providers = load_catalogue(self.dataset), lifecycle.providers
        ownership = find_ownership(self.dataset, providers, lifecycle.seed) if providers else None
        counter = find_engine(engine)
        return Platform(timetable, lifecycle, known, n_sessions, self.config, counter, ownership)

    def _make_encoder(
        self,
        observation_type: str,
        preference: str | None,
        history_len: int | None,
        evidence: str | None,
    ) -> ObservationEncoder:
        believes = shown_preference(observation_type, preference)[1] == "belief"
        if evidence is not None and not believes:
            raise ConfigError('evidence is for observation_type="belief" or preference="belief".')
        preferences = load_preferences(self.dataset) if believes else None
        return ObservationEncoder(
            self.dataset.training,
            preference_encoder(self.dataset),
            self.core,
            observation_type,
            preference,
            history_len,
            self.extra_context,
            None if preferences is None else Belief(preferences, self.core, evidence or "both"),
        )

    def _own_rules(
        self, n_sessions: int, groups: Groups, reward: OwnRule | None, abandonment: OwnRule | None
    ) -> OwnRules | None:
        if reward is None and abandonment is None:
            return None
        world = RuleWorld(
            n_sessions,
            self.config.slate_size,
            self.config.max_len,
            self.simulator.model.behaviours,
            groups,
            self._categories,
            self.catalogue,
            self.dataset,
        )
        return OwnRules(world, reward, abandonment)

    @property
    def n_sessions(self) -> int:
        """N."""
        return self.core.n_sessions

    @property
    def groups(self) -> Groups:
        """Groups of items, between which exposures are balanced."""
        return self.core.groups

    @property
    def longest(self) -> int:
        """Largest number of steps of an episode."""
        return self.config.longest

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Observation space of one session."""
        return self.encoder.space()

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Action space of one session."""
        return self.actions.space

    @property
    def reward_space(self) -> spaces.Box:
        """Rewards of one session: of shape (), or (D,) where they are vectors."""
        own_rules = self.core.own_rules
        if own_rules is None or own_rules.reward is None:
            return spaces.Box(0.0, 1.0, (), np.float64)
        return spaces.Box(own_rules.reward.low, own_rules.reward.high, dtype=np.float64)

    @classmethod
    def limited(cls, options: dict[str, Any], steps: int) -> dict[str, Any]:
        """Options of the same sessions, cut after so many steps.

        Raises:
            ConfigError: A cut would be no end of the task's episodes.
        """
        limit = options.get("max_steps")
        return {**options, "max_steps": steps if limit is None else min(steps, limit)}

    def seed(
        self, seeds: Sequence[int] | NDArray[np.uint64], slots: BoolArray | None = None
    ) -> None:
        """Restarts the random sequence of some slots, one seed a slot, as the core's does.

        Raises:
            ConfigError: A seed is not in [0, 2**64).
        """
        for seed in seeds:
            check_seed(seed)
        self.core.seed(np.asarray(seeds, dtype=np.uint64), slots)
        if self.platform is not None and (slots is None or slots.all()):
            self.platform.open()

    def reset(self, slots: BoolArray | None = None) -> None:
        """Begins new sessions in some slots, all if ``None``."""
        slots = np.ones(self.n_sessions, dtype=bool) if slots is None else slots
        self.core.reset(slots)
        self._follow_platform()
        self.encoder.reset(slots)

    def step(self, actions: Any, slots: BoolArray | None = None) -> StepResult:
        """Acts in some sessions.

        Args:
            actions: (N, ...) one action a session, of :attr:`action_space`; an array, or nested
                lists.
            slots: (N,) bool, the sessions that act, all if ``None``.

        Returns:
            The outcome of the step, as of :meth:`SessionCore.step`.

        Raises:
            InvalidActionError: An action is not of the action space.
            ResetNeededError: A session has not begun or is over.
        """
        result = self.core.step(self.actions.slates(self.actions.array(actions)), slots)
        self.encoder.update(result)
        return result

    def play(
        self, actions: Any, slots: BoolArray | None = None
    ) -> tuple[StepResult, Observation, Info]:
        """Acts in some sessions, begins new ones in the other slots, and observes all.

        That is :meth:`step`, :meth:`reset`, :meth:`observe` and :meth:`info`, in one compiled call
        where they can be compiled.

        Args:
            actions: As for :meth:`step`, which the results and errors are of, too.
            slots: (N,) bool, the sessions that act, all if ``None``.

        Returns:
            The outcome of the step, observations, and infos.
        """
        fused = self._fused()
        if fused is not None:
            slates = self.actions.slates(self.actions.array(actions))
            result, vectors, measures = fused.step(slates, slots)
            self._follow_platform()
            return result, self.encoder.completed(vectors), self.info(result, slots, measures)
        result = self.step(actions, slots)
        if slots is not None:
            self.reset(~slots)
        return result, self.observe(), self.info(result, slots)

    def play_alone(self, action: Any) -> tuple[Observation, Any, bool, bool, Info]:
        """Acts in the only session, as :meth:`play` does, and gives Python's numbers.

        Args:
            action: Of :attr:`action_space`; an array, or nested lists.

        Returns:
            Observation, reward (a (D,) float64 array where it is a vector), whether the session was
            terminated and truncated, and the info.
        """
        actions = as_actions(action, self.action_space.shape or ())[None]
        fused = self._fused()
        if fused is None or self._adds_info or self.platform is not None:
            result, observation, info = self.play(actions)
            return row_of(observation, 0), *_ends_of(result), info_of(info, 0)
        fused.run(self.actions.slates(actions))
        observation, result = self.encoder.completed(fused.vectors.copy()), fused.result
        r_each, r_cum, q, popular_share = fused.measures[:, 0].tolist()
        info = {
            "user_id": self.dataset.user_ids.item(self.core.state.users.item()),
            "slate": self._ids.take(result.slates[0]),
            "slate_responses": result.responses[0].copy(),
            "penalised": result.penalised.item(),
            "session": {
                "len": self.core.state.steps.item(),
                "r_each": r_each,
                "r_cum": r_cum,
                "q": q,
                "popular_share": popular_share,
            },
        }
        if result.feedback.shape[2] > 1:
            info["feedback"] = result.feedback[0].copy()
        return row_of(observation, 0), *_ends_of(result), info

    def renew(self, slots: BoolArray) -> tuple[Observation, Info]:
        """Begins new sessions in some slots, and observes all, in one call as :meth:`play`.

        Args:
            slots: (N,) bool.

        Returns:
            Observations, and infos: as after a reset, in the other slots too, but that their
            sessions go on.
        """
        fused = self._fused()
        if fused is not None:
            vectors, measures = fused.begin(slots)
            self._follow_platform()
            return self.encoder.completed(vectors), self.info(measures=measures)
        self.reset(slots)
        return self.observe(), self.info()

    def _follow_platform(self) -> None:
        """Takes over the catalogue of a new day."""
        platform = self.platform
        if platform is not None and self._today != platform.today:
            self._today = platform.today
            self.catalogue = platform.catalogue()
            self.actions.follow(self.catalogue)

    def _fused(self) -> FusedSteps | None:
        """Compiled steps of the parts as they are now; ``None`` where a task has steps of its own.

        They are found again when a part was replaced.
        """
        core, encoder, known = self.core, self.encoder, self._fused_parts
        parts = (core, core.engine, core.answers, encoder, encoder.belief)
        if known is None or any(map(is_not, parts, known)):
            task, usual = type(self), SessionBatch
            differs = any(getattr(task, name) is not getattr(usual, name) for name in _STEPPING)
            self._fused_steps = None if differs else find_fused(core, encoder)
            self._fused_parts = parts
        return self._fused_steps

    def __getstate__(self) -> dict[str, Any]:
        # Views of arrays would become arrays of their own.
        return {**self.__dict__, "_fused_parts": None, "_fused_steps": None}

    def belief(self) -> Belief:
        """The belief about the users, which steps update from now on, whatever is observed.

        Raises:
            ConfigError: It is wanted for the first time while sessions are under way.
        """
        if self.encoder.belief is None:
            if (self.core.state.active & (self.core.state.steps > 0)).any():
                raise ConfigError(
                    "A belief follows sessions from their start, and some are under way: ask for "
                    "it before the first step."
                )
            self.encoder.belief = Belief(load_preferences(self.dataset), self.core)
        return self.encoder.belief

    def observe(self) -> Observation:
        """Observations of all sessions."""
        return self.encoder.observe()

    def snapshot(self) -> Snapshot:
        """Copies of the arrays that change in the sessions, by name, see the module ``snapshots``.

        The memory of action kinds is a function of them and left out.
        """
        return {
            **of_settings(self._settings()),
            **under("core", self.core.snapshot()),
            **under("encoder", self.encoder.snapshot()),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot: from there on, the same actions do the same.

        Args:
            snapshot: Of :meth:`snapshot`, of this batch or of a batch of the same options, in any
                process and on any engine.

        Raises:
            ConfigError: It is no snapshot of a batch with these options; nothing has changed then.
        """
        check_alike(self.snapshot(), snapshot)
        self.core.restore(within("core", snapshot))
        self._today = ()
        self._follow_platform()
        self.encoder.restore(within("encoder", snapshot))

    def _settings(self) -> dict[str, Any]:
        """The settings that determine a trajectory.

        The engine is not among them: all engines give the same numbers. Groups are, if they are of
        one's own.
        """
        belief = self.encoder.belief
        evidence = {} if belief is None else {"evidence": belief.evidence}
        platform = self.platform
        lifecycle = {} if platform is None else {"catalogue": platform.lifecycle.settings}
        grouping = {} if self.groups.is_default else {"groups": self.groups.fingerprint}
        return {
            "task": type(self).__name__,
            "dataset": self.dataset.fingerprint,
            "n_sessions": self.n_sessions,
            "split": self.simulator.split,
            "users": zlib.crc32(self.core.session_users.tobytes()),
            "response_model": self.simulator.response_model,
            "calibration": self._calibration,
            "observation_type": self.encoder.observation_type,
            "preference": self.encoder.preference,
            **evidence,
            "action_type": self.action_type,
            **grouping,
            **lifecycle,
            **{name: getattr(self.config, name) for name in _SESSION_OPTIONS},
            **({} if self.core.own_rules is None else self.core.own_rules.settings),
        }

    def info(
        self,
        result: StepResult | None = None,
        slots: BoolArray | None = None,
        measures: DoubleArray | None = None,
    ) -> Info:
        """Tells what has just happened, by the same keys after a step and a reset.

        Args:
            result: The step; ``None`` after a reset.
            slots: (N,) bool, the sessions that made it, all if ``None``.
            measures: (4, N) float64 of the sessions so far, if they are known.

        Returns:
            ``"user_id"`` (N,), whose session it is; ``"slate"`` (N, K), ids of the items shown;
            ``"slate_responses"`` (N, K) float32; ``"feedback"`` (N, K, B) float32 where a response
            has several behaviours; ``"penalised"`` (N,) bool; and ``"session"``, see
            :meth:`session`. Where no step was made they are -1 (or empty, where ids are strings), 0
            and false.
        """
        if result is None:
            n, k, b = self.n_sessions, self.config.slate_size, len(self.core.model.behaviours)
            result = StepResult(np.zeros((n, k), dtype=np.int64), *no_outcome(n, k, b))
            slots = np.zeros(n, dtype=bool)
        slates = self._ids.take(result.slates)
        if slots is not None:
            slates[~slots] = self._ids[-1]
        info = {
            "user_id": self.dataset.user_ids.take(self.core.state.users),
            "slate": slates,
            "slate_responses": result.responses,
            "penalised": result.penalised,
            "session": self.session(measures),
        }
        if result.feedback.shape[2] > 1:
            info["feedback"] = result.feedback
        if self.platform is not None:
            n = self.n_sessions
            info["day"] = np.full(n, self.platform.day)
            assert self.catalogue.available is not None
            info["available"] = _of_all(self.catalogue.available.copy(), n)
        return info

    def session(self, measures: DoubleArray | None = None) -> dict[str, NDArray[Any]]:
        """Metrics of the sessions so far, an array of all slots each; a task may add others.

        Those of finished sessions are those of :func:`~kuaisim_gym.metrics.each_session`.

        Args:
            measures: (4, N) float64, all but ``"len"``, if they are known.
        """
        state = self.core.state
        if measures is not None:
            r_each, r_cum, q, popular_share = measures
            return {
                "len": state.steps.copy(),
                "r_each": r_each,
                "r_cum": r_cum,
                "q": q,
                "popular_share": popular_share,
            }
        return session_metrics(
            state.steps.copy(),
            state.reward_sum.copy(),
            state.penalties,
            state.popular,
            self.config.slate_size,
        )

    def summarise(self, sessions: Sessions) -> dict[str, float]:
        """The metrics of finished sessions of this task, by their names in result files."""
        metrics = summarise(sessions, self.catalogue.popular)
        if self.platform is None:
            return metrics
        metrics |= summarise_newcomers(sessions, self.platform.timetable)
        providers = self.platform.providers
        return metrics if providers is None else metrics | summarise_providers(providers.days)

    def audit(self, sessions: Sessions, **options: Any) -> Audit:
        """Audit of finished sessions of this task: how fair and how even their exposure was.

        Args:
            sessions: Finished sessions.
            **options: As for :meth:`kuaisim_gym.metrics.Audit.of`; by default the groups and their
                target are the sessions' own, and merit is what this split's simulator expects of
                the sessions' users, (users, items) float32 in memory.
        """
        users = np.unique(sessions.users)
        if "labels" not in options:
            options = {"labels": self.groups.labels, "target": self.groups.target, **options}
        if "merit" not in options:
            items = np.arange(self.catalogue.n_items)
            expected = self.simulator.expected.probability(users[:, None], items[None, :])
            options["merit"] = Merit(users, np.asarray(expected))
        return Audit.of(sessions, popularity=self.catalogue.exposures, **options)

    def summarise_users(self, sessions: Sessions) -> dict[str, float]:
        """Len and R_each by class of users, and of the worst tenth of sessions.

        Classes are thirds of the split's users: ``"activity"`` by their rows in the log, and
        ``"taste"`` by the popular share of these rows.
        """
        return summarise_users(sessions, self._user_classes)

    def records(self, rows: NDArray[np.int64]) -> Sessions:
        """The sessions in some slots as they stand, for :mod:`kuaisim_gym.metrics`."""
        return self._running(rows)

    def _running(self, rows: NDArray[np.int64]) -> Sessions:
        state = self.core.state
        sessions = Sessions(
            state.steps[rows],
            state.rewards[rows],
            state.penalised[rows],
            state.slates[rows],
            state.responses[rows],
            state.users[rows],
        )
        if self.platform is None:
            return sessions
        popular = self.platform.shown_popular[rows] & (sessions.slates >= 0)
        ages = self.platform.ages(rows, sessions.slates)
        return replace(sessions, popular=popular, ages=ages)

    def view(self, slot: int) -> SessionView:
        """The session in one slot as it stands, for :mod:`kuaisim_gym.rendering`.

        Raises:
            ResetNeededError: It has not begun.
        """
        state, row = self.core.state, np.array([slot])
        if state.episodes[slot] < 0:
            raise ResetNeededError(f"Session {slot} has not begun: call reset() before render().")
        return self._view(slot, self._running(row), over=not state.active[slot])

    def _view(self, slot: int, session: Sessions, over: bool) -> SessionView:
        """View of a session of the user in one slot, the latest that made steps."""
        state, config = self.core.state, self.config
        steps = int(session.length[0])
        slates = session.slates[0, :steps]
        return SessionView(
            dataset=self._world,
            user_id=self.dataset.user_ids[state.users[slot]].item(),
            max_len=config.max_len,
            item_ids=self.dataset.item_ids[slates],
            categories=self._categories[slates],
            popular=popular_flags(session, self.catalogue)[0][0, :steps],
            responses=session.responses[0, :steps],
            rewards=session.rewards[0, :steps],
            temper=np.concatenate([[float(config.max_len)], state.tempers[slot, :steps]]),
            popular_share=state.shares[slot, :steps],
            penalised=session.penalised[0, :steps],
            over=bool(over),
            bounds=self.core.unpenalised,
            measure=self.groups.measure.replace("_", " "),
        )

    @cached_property
    def _user_classes(self) -> dict[str, NDArray[np.integer]]:
        """Classes of the split's users by their logs, by name."""
        log, n_users = self.dataset.log, self.dataset.n_users
        popular = load_catalogue(self.dataset).popular  # of the log, whatever day it is
        values = {
            "activity": log_rows(log.users, n_users),
            "taste": popular_taste(log.users, log.items, popular, n_users),
        }
        users = self.simulator.users
        return {name: user_classes(value, users) for name, value in values.items()}

    @cached_property
    def _categories(self) -> NDArray[np.int32]:
        """(n_items,) int32, the first category or tag of each item, -1 where it has none."""
        codes = self.dataset.item_features.codes
        for field in ("category", "tag"):
            if field in codes:
                return codes[field][: self.catalogue.n_items, 0] - 1
        return np.full(self.catalogue.n_items, -1, dtype=np.int32)


def _of_all(row: BoolArray, n: int) -> BoolArray:
    """(n, ...) bool, one row seen n times: what np.broadcast_to gives, ten times faster."""
    row.setflags(write=False)
    return np.ndarray((n, row.size), row.dtype, row, strides=(0, row.itemsize))


def _ends_of(result: StepResult) -> tuple[Any, bool, bool]:
    reward = result.reward.item() if result.reward.ndim == 1 else result.reward[0]
    return reward, result.terminated.item(), result.truncated.item()


def _take_rule(options: dict[str, Any]) -> OwnRule | None:
    """A rule of abandonment of one's own, in whose place options name no built-in one then."""
    rule: OwnRule | str | None = options.get("abandonment")
    if not callable(rule):
        return None
    options["abandonment"] = "none"
    return rule


TASKS: dict[str, type[SessionBatch]] = {SessionBatch.task: SessionBatch}
