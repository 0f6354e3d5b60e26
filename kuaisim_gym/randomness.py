"""Counter-based random numbers: a session's draws are a pure function of its coordinates.

A generator object per session costs tens of microseconds at each reset. Philox4x32-10
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns the counter
(draw, step, episode, stream) and the key (seed) into uniforms, for all sessions in one pass.
The same seed therefore gives the same session in any environment, batch size or process, and two
agents that run under one seed face common random numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

USER_STREAM = 0  # who arrives
RESPONSE_STREAM = 1  # how the user answers
POLICY_STREAM = 2  # what a stochastic reference policy draws
RETURN_STREAM = 3  # when the user comes back

_LOW32 = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
_ROUNDS = 10

Words = NDArray[np.uint64]


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> Words:
    """Philox4x32-10.

    Args:
        counter: Four arrays of 32-bit words held in uint64, broadcastable together.
        key: Two arrays of 32-bit words held in uint64, broadcastable with the counter.

    Returns:
        (..., 4) uint64, each holding a random 32-bit word.
    """
    shape = np.broadcast_shapes(*(np.shape(word) for word in (*counter, *key)))
    # Words 0 and 2 are worked on as one array, and so are words 1 and 3: few passes, in place.
    even, odd = np.empty((2, *shape), dtype=np.uint64), np.empty((2, *shape), dtype=np.uint64)
    keys = np.empty((2, *np.broadcast_shapes(*map(np.shape, key))), dtype=np.uint64)
    even[0], odd[0], even[1], odd[1] = counter
    keys[0], keys[1] = key
    weyl, multipliers = (pair.reshape(2, *(1,) * len(shape)) for pair in (_WEYL, _MULTIPLIERS))
    spare = np.empty_like(even)
    turns = np.arange(_ROUNDS, dtype=np.uint64).reshape(_ROUNDS, *(1,) * keys.ndim)
    for of_round in (keys + turns * weyl) & _LOW32:
        np.multiply(even, multipliers, out=even)
        np.right_shift(even[::-1], _SHIFT, out=spare)
        np.bitwise_xor(spare, odd, out=spare)
        np.bitwise_xor(spare, of_round, out=spare)
        np.bitwise_and(even[::-1], _LOW32, out=odd)
        even, spare = spare, even
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=-1)


def uniform(
    seed: NDArray[np.uint64],
    episode: NDArray[np.int64],
    step: NDArray[np.int64],
    draws: int,
    stream: int,
) -> NDArray[np.float64]:
    """Uniforms on the open interval (0, 1), one row per session.

    Args:
        seed: (N,) uint64, the session slot's seed.
        episode: (N,) int64, how many resets the slot has seen since it was seeded.
        step: (N,) int64, steps made in the session.
        draws: Numbers wanted per session.
        stream: Which purpose the numbers serve; streams never overlap.

    Returns:
        (N, draws) float64.
    """
    block = np.arange((draws + 3) // 4, dtype=np.uint64)[None, :]
    seed = seed[:, None]
    counter = (
        block,
        step.astype(np.uint64)[:, None],
        episode.astype(np.uint64)[:, None],
        np.full((1, 1), stream, dtype=np.uint64),
    )
    words = philox4x32(counter, (seed & _LOW32, seed >> _SHIFT))
    words = words.reshape(len(seed), 4 * block.shape[1])[:, :draws]
    return (words.astype(np.float64) + 0.5) * 2.0**-32
