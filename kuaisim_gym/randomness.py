"""Counter-based random numbers: a session's draws are a pure function of its coordinates.

A generator object per session costs tens of microseconds at each reset. Philox4x32-10
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns the counter
(draw, step, episode, stream) and the key (seed) into uniforms, for all sessions in one pass.
The same seed therefore gives the same session in any environment, batch size or process, and two
agents that run under one seed face common random numbers.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

USER_STREAM = 0  # who arrives
RESPONSE_STREAM = 1  # how the user answers
POLICY_STREAM = 2  # what a stochastic reference policy draws
RETURN_STREAM = 3  # when the user comes back

_LOW32 = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint32)
_ROUNDS = 10
_AT_ONCE = 4096  # counters, whose words stay in the processor's cache
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)  # halves of a word in memory

Words = NDArray[np.uint64]


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> Words:
    """Philox4x32-10.

    Args:
        counter: Four arrays of 32-bit words held in uint64, broadcastable together.
        key: Two arrays of 32-bit words held in uint64, broadcastable with the counter.

    Returns:
        (..., 4) uint64, each holding a random 32-bit word.
    """
    shape = np.broadcast(*counter, *key).shape
    size = math.prod(shape)

    def pair(first: Words, second: Words, dtype: type[np.unsignedinteger]) -> NDArray[Any]:
        joined = np.empty(2 * size, dtype=dtype)
        joined[:size].reshape(shape)[...] = first
        joined[::-1][:size].reshape(shape)[...] = second
        return joined

    # Words 0 and 2 are worked on as one vector, and so are words 1 and 3, the second of each from
    # its end: a vector backwards has them exchanged. The halves of a product are seen as such,
    # without a pass. So there are few passes, over vectors, in place.
    even, odd = pair(counter[0], counter[2], np.uint64), pair(counter[1], counter[3], np.uint32)
    keys = pair(key[0], key[1], np.uint32)
    weyl, multipliers = np.repeat(_WEYL, size), np.repeat(_MULTIPLIERS, size)
    of_even, products = _half(even, _LOW), np.empty((2, 2 * size), dtype=np.uint64)
    views = [(one, _half(one, _HIGH)[::-1], _half(one, _LOW)[::-1]) for one in products]
    for number in range(_ROUNDS):
        product, high, low = views[number % 2]
        np.multiply(even, multipliers, out=product)
        np.bitwise_xor(high, odd, out=of_even)  # above it even stays zero
        np.bitwise_xor(of_even, keys, out=of_even)
        np.add(keys, weyl, out=keys)
        odd = low
    words = np.empty((*shape, 4), dtype=np.uint64)
    for place, word in enumerate((of_even, odd)):
        words[..., place] = word[:size].reshape(shape)
        words[..., place + 2] = word[::-1][:size].reshape(shape)
    return words


def _half(words: Words, which: int) -> NDArray[np.uint32]:
    """A view of halves of (n,) 64-bit words, by their place in memory."""
    return words.view(np.uint32)[which::2]


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
    n_blocks, key = (draws + 3) // 4, (seed & _LOW32, seed >> _SHIFT)
    place = step.astype(np.uint64), episode.astype(np.uint64), np.array(stream, dtype=np.uint64)
    stride = max(1, _AT_ONCE // max(len(seed), 1))
    words = np.empty((len(seed), n_blocks, 4), dtype=np.uint64)
    for start in range(0, n_blocks, stride):
        # Blocks in front, so that passes run along the sessions.
        block = np.arange(start, min(start + stride, n_blocks), dtype=np.uint64)[:, None]
        words[:, start : start + stride] = philox4x32((block, *place), key).swapaxes(0, 1)
    words = words.reshape(len(seed), 4 * n_blocks)[:, :draws]
    return (words.astype(np.float64) + 0.5) * 2.0**-32
