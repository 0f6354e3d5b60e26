"""Sessions that are told instead of simulated: what was shown, and how it was answered.

They go through the very core and encoder of the environments, so that an agent that serves users
reads what it read in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.engine import bits
from kuaisim_gym.engine.types import StepResult
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.envs.options import preference_encoder
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import Observation, ObservationEncoder
from kuaisim_gym.simulator.belief import Belief
from kuaisim_gym.simulator.build import load_preferences
from kuaisim_gym.simulator.lifecycle import Lifecycle
from kuaisim_gym.simulator.response import SessionAnswers
from kuaisim_gym.snapshots import Snapshot

History = tuple[NDArray[np.int64], NDArray[np.float32]]

# Arrays of a session that count whole slates, not items.
_COUNTS = ("steps", "temper", "share", "last_reward", "reward_sum", "recent", "rewards",
           "penalised")  # fmt: skip
# Nobody draws answers, and those that are told are what the reward is the mean of.
_TOLD = {"stochastic_response": False, "correlation": 0.0, "reward_weights": None}


def options_of(batch: SessionBatch) -> dict[str, Any]:
    """Options that make sessions with the observations, actions and rules of a batch's."""
    groups, encoder = batch.groups, batch.encoder
    believes = encoder.preference == "belief" and encoder.belief is not None
    return {
        **asdict(batch.config),
        "observation_type": encoder.observation_type,
        "preference": encoder.preference,
        "action_type": batch.action_type,
        **({} if batch.platform is None else {"catalogue": batch.platform.lifecycle.settings}),
        **({"evidence": encoder.belief.evidence} if believes and encoder.belief else {}),
        **({} if groups.by_popularity else {"groups": groups.labels}),
        **({} if groups.is_default else {"target": tuple(groups.target.tolist())}),
    }


class ToldAnswers(SessionAnswers):
    """Answers that are told before each step.

    Attributes:
        answers: (N, K, B) float32 in [0, 1], of the next slates.
    """

    def __init__(self, n_sessions: int, slate_size: int, n_behaviours: int) -> None:
        self.answers = np.zeros((n_sessions, slate_size, n_behaviours), dtype=np.float32)

    def reset(self, slots: NDArray[np.bool_], users: NDArray[np.integer]) -> None:
        pass  # nothing is remembered of users

    def feedback(self, slates: NDArray[np.integer]) -> NDArray[np.float32]:
        return self.answers.copy()

    def observe(self, slates: NDArray[np.integer], feedback: NDArray[np.float32]) -> None:
        pass

    def snapshot(self) -> Snapshot:
        return {"answers": self.answers.copy()}

    def restore(self, snapshot: Snapshot) -> None:
        self.answers[...] = snapshot["answers"]


class ReplayedSessions:
    """Sessions of N users, in the log or not, as an agent would observe them.

    A history is read in slates of K items, in order; items of a last slate that is not full count
    for preference and exposure, but make no step. Users who are still here have not left, whatever
    their temper; after the longest session that there can be a new one begins: progress and
    exposures start anew, the preference stays. No row of the test source is read.

    Args:
        n_sessions: N.
        dataset: The data.
        believes: Whether :attr:`batch` has a belief, observed or not.
        **options: Of the environment; its split and its draws do not matter.

    Attributes:
        batch: The sessions.
        stranger: Position of a user whom the dataset does not know.

    Raises:
        ConfigError: An unknown option or value, or a catalogue that changes.
    """

    def __init__(
        self, n_sessions: int, dataset: Dataset, believes: bool = False, **options: Any
    ) -> None:
        if Lifecycle.of(options.get("catalogue", "fixed")) is not None:
            raise ConfigError(
                "Sessions that are told know no day, and the agent is of a catalogue that changes "
                "from day to day: it acts in its environment alone. Serve one that was trained "
                'with catalogue="fixed".'
            )
        options = {**options, **_TOLD, "dataset": dataset, "split": "train"}
        self.batch = batch = SessionBatch(n_sessions, dataset.source, **options)
        self.stranger = dataset.n_users
        core, encoder = batch.core, batch.encoder
        self._repeats = core.config.allow_repeats
        # Answers follow the rules; whatever is hidden stays hidden.
        core.config = replace(core.config, allow_repeats=False)
        if core.pools is not None:  # of train users, who can be shown every item
            starts = np.append(core.pools.starts, core.pools.starts[-1])
            core.pools = replace(core.pools, starts=starts)
        self.answers = ToldAnswers(n_sessions, core.config.slate_size, len(core.model.behaviours))
        core.answers = self.answers
        belief = None
        if believes or encoder.belief is not None:
            model = load_preferences(dataset).with_stranger(dataset.train_users)
            belief = Belief(model, core, options.get("evidence") or "both")
        batch.encoder = ObservationEncoder(
            dataset.training,
            preference_encoder(dataset).with_stranger(),
            core,
            encoder.observation_type,
            encoder.preference,
            options.get("history_len"),
            batch.extra_context,
            belief,
        )

    def observe(self) -> Observation:
        """Observations of all sessions as they stand."""
        return self.batch.observe()

    def unexposed(self) -> NDArray[np.bool_]:
        """(N, n_items) bool: items that the sessions can still show."""
        return self.batch.core.unexposed()

    def hide(self, items: NDArray[np.bool_]) -> None:
        """Treats (N, n_items) bool items as shown, for the next slates; observations stay."""
        self.batch.core.state.exposed[...] |= bits.pack(items)

    def allow_again(self) -> None:
        """Lets actions show again what was shown, if the environment's may."""
        if self._repeats:
            self.batch.core.state.exposed[...] = 0

    def replay(
        self, users: NDArray[np.int32], histories: Sequence[History]
    ) -> Iterator[NDArray[np.int64]]:
        """Replays histories step by step.

        Args:
            users: (N,) positions; :attr:`stranger` for a user whom the dataset does not know.
            histories: Of each user, (L,) positions of items of the catalogue, and (L,) responses
                in [0, 1].

        Yields:
            (N,) steps that the sessions have made: at the start, then after every change.
        """
        core, state = self.batch.core, self.batch.core.state
        # A reset clears what a session's steps have shown: not what was hidden, nor half a slate.
        state.exposed[...], state.slates[...], state.responses[...] = 0, -1, 0.0
        core.reset(core.everyone, users)
        self.batch.encoder.reset(core.everyone)
        yield core.state.steps
        size = core.config.slate_size
        lengths = np.array([len(items) for items, _ in histories])
        for start in range(0, int(lengths.max(initial=0)), size):
            self._show(histories, start, lengths >= start + size)
            full = core.state.steps >= core.config.longest
            core.reset(full, users[full])
            yield core.state.steps
        self._show_rest(histories, lengths)

    def _show(self, histories: Sequence[History], start: int, slots: NDArray[np.bool_]) -> None:
        """Makes a step of some sessions, whose slates begin at some event."""
        slates = np.zeros(self.answers.answers.shape[:2], dtype=np.int64)
        self.answers.answers[...] = 0.0
        for row in np.flatnonzero(slots).tolist():
            items, responses = histories[row]
            events = slice(start, start + slates.shape[1])
            slates[row], self.answers.answers[row, :, 0] = items[events], responses[events]
        self.batch.encoder.update(self._step(slates, slots))

    def _show_rest(self, histories: Sequence[History], lengths: NDArray[np.int64]) -> None:
        """Adds the items of slates that are not full."""
        core, size = self.batch.core, self.answers.answers.shape[1]
        rest = lengths % size
        rows = np.flatnonzero(rest).tolist()
        if not rows:
            return
        state, numbers = core.state, np.arange(size)
        slates = np.zeros((len(lengths), size), dtype=np.int64)
        self.answers.answers[...] = 0.0
        for row in rows:
            items, responses = (column[-rest[row] :] for column in histories[row])
            slates[row] = items[0]  # an item twice in a slate is answered once
            slates[row, : rest[row]] = items
            self.answers.answers[row, : rest[row], 0] = responses
        counts = {name: getattr(state, name).copy() for name in _COUNTS}
        result = self._step(slates, rest > 0)
        shown = numbers < rest[:, None]
        self.batch.encoder.update(result._replace(answered=result.answered & shown))
        for name, values in counts.items():
            getattr(state, name)[...] = values
        for row in rows:
            state.slates[row, state.steps[row], rest[row] :] = -1

    def _step(self, slates: NDArray[np.int64], slots: NDArray[np.bool_]) -> StepResult:
        core = self.batch.core
        result = core.step(slates, slots)
        core.state.active[:] = True
        return result
