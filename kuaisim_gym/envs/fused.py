"""Steps, new sessions and observations by one compiled call, where all of it can be compiled."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine.types import (
    Arrivals,
    Beliefs,
    BoolArray,
    DoubleArray,
    FloatArray,
    Pooled,
    Rules,
    Scores,
    StepResult,
    no_outcome,
)
from kuaisim_gym.observation import ObservationEncoder
from kuaisim_gym.simulator.core import SessionCore

Fields = TypeVar("Fields", Arrivals, Beliefs, Pooled, Rules, Scores)


def find_fused(core: SessionCore, encoder: ObservationEncoder) -> FusedSteps | None:
    """Returns the compiled steps of some sessions, if they can be compiled.

    They cannot in NumPy; with rules of one's own; where sessions can run dry, which ends them, too;
    with histories; or with further columns of the context. Whatever is no factor model answers
    before the call.
    """
    arrays = encoder.arrays()
    standard = type(core) is SessionCore and type(encoder) is ObservationEncoder
    ruled = core.can_run_dry or core.own_rules is not None
    if not standard or core.engine.name != "numba" or ruled or arrays is None:
        return None
    return FusedSteps(core, encoder)


class FusedSteps:
    """Steps of N sessions, which change the same arrays as those of core and encoder do.

    Args:
        core: The sessions.
        encoder: Follows them, as it stands; another belief needs other steps.

    Attributes:
        result: Outcome of the latest step, as the next two overwritten by every call.
        vectors: (N, ...) float32 state vectors.
        measures: (4, N) float64 of the sessions so far.
    """

    def __init__(self, core: SessionCore, encoder: ObservationEncoder) -> None:
        from kuaisim_gym.engine.fused import StepArrays, play  # numba may be missing

        arrays, scores = encoder.arrays(), core.scores()
        assert arrays is not None
        pooled, beliefs = arrays
        self._play, self._core = play, core
        self._asks_model = scores is None
        n, k, b = core.n_sessions, core.config.slate_size, len(core.model.behaviours)
        self._slates = np.zeros((n, k), dtype=np.int64)  # of a call without a step
        self.result = StepResult(self._slates.copy(), *no_outcome(n, k, b))
        self.vectors = np.empty((n, encoder.context_slice.stop), dtype=np.float32)
        self.measures = np.empty((4, n))
        self._arrays = StepArrays(
            _frozen(_no_scores() if scores is None else scores),
            _frozen(core.rules),
            core.state,
            _frozen(core.arrivals(), ("answering",)),
            _frozen(pooled, ("total", "weight")),
            _frozen(beliefs, ("mean", "covariance")),
            self.result,
            self.vectors,
            self.measures,
        )
        self._nobody = np.zeros(0, dtype=bool)
        self._unknown = np.zeros((0, 0, 0), dtype=np.float32)

    def step(
        self, slates: NDArray[np.integer], slots: BoolArray | None
    ) -> tuple[StepResult, FloatArray, DoubleArray]:
        """Shows slates in some slots, and begins new sessions in the others.

        Args:
            slates: (N, K) integers.
            slots: (N,) bool, who is shown a slate; all sessions if ``None``.

        Returns:
            The outcome, as of :meth:`SessionCore.step`, (N, ...) float32 state vectors, and (4, N)
            float64 measures of the sessions so far.

        Raises:
            ResetNeededError: A session has not begun or is over.
            InvalidActionError: Wrong shape, dtype or item.
        """
        self.run(slates, slots)
        result = StepResult._make(array.copy() for array in self.result)
        return result, self.vectors.copy(), self.measures.copy()

    def run(self, slates: NDArray[np.integer], slots: BoolArray | None = None) -> None:
        """Does what :meth:`step` does, but leaves its results in the arrays of the next call."""
        core = self._core
        shown = core.conform(slates)
        acting, arriving, chances = core.everyone, self._nobody, self._unknown
        if slots is not None:
            acting, arriving = slots, ~slots
        if self._asks_model:
            shown = shown if slots is None else shown * slots[:, None]
            core.check(shown, acting)
            chances = np.require(core.chances(shown), requirements=["C", "W"])
        slot, position = self._play(shown, acting, arriving, chances, self._arrays)
        if slot >= 0:
            raise core.fault(shown, slot, position)
        if core.platform is not None:
            core.platform.show(core.state, shown, self.result.answered, acting)
            core.platform.arrive(core.state, np.flatnonzero(arriving))
        if self._asks_model:
            core.answers.observe(shown, self.result.feedback)
            if slots is not None:
                core.answers.reset(arriving, core.state.users[arriving])

    def begin(self, slots: BoolArray) -> tuple[FloatArray, DoubleArray]:
        """Begins new sessions in some slots; state vectors and measures of all."""
        core = self._core
        self._play(self._slates, self._nobody, slots, self._unknown, self._arrays)
        if core.platform is not None:
            core.platform.arrive(core.state, np.flatnonzero(slots))
        if self._asks_model:
            core.answers.reset(slots, core.state.users[slots])
        return self.vectors.copy(), self.measures.copy()


def _no_scores() -> Scores:
    """Arrays that stand where no factor model answers alone."""
    none = [np.zeros((0,) * ndim, dtype=np.float32) for ndim in (1, 1, 2, 2, 2, 2)]
    return Scores(False, *none)


def _frozen(fields: Fields, but: tuple[str, ...] = ()) -> Fields:
    """The same arrays, read-only but for some: compiled code is of one kind then."""
    views: dict[str, Any] = {}
    for name, field in fields._asdict().items():
        if isinstance(field, np.ndarray) and name not in but:
            field = views[name] = field.view()
            field.setflags(write=False)
    return fields._replace(**views)
