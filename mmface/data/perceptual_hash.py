"""Pictures that look the same, found among very many without comparing all pairs.

A hash has 64 bits: whether each of the lowest 64 frequencies of the grey picture (a discrete cosine
transform, without its mean) is above the median of the whole set. The median of the set, not zero,
because aligned faces have most signs in common. Hashes at most 3 bits apart agree in at least one
of four words of 16 bits, so that only pictures that share a word are compared (multi-index hashing,
arXiv 1307.2982); those that are near are confirmed on thumbnails.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt64

NUM_BITS = 64
MAX_BITS_APART = 3
"""Bits in which the hashes of near duplicates differ at most; one fewer than the words."""

MAX_THUMB_DIFFERENCE = 5.0
"""Mean difference of the thumbnails of near duplicates at most, of 255."""

_NUM_WORDS = MAX_BITS_APART + 1
_WORD_BITS = NUM_BITS // _NUM_WORDS
_BLOCK = 4096  # thumbnails that are compared at once


def lowest_frequencies(thumb: UInt8[np.ndarray, "side side 3"]) -> Float32[np.ndarray, "64"]:
    """The 64 lowest frequencies of brightness after the mean, lowest first (cosine transform)."""
    side = thumb.shape[0]
    grey = thumb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    place = np.arange(side, dtype=np.float32) + 0.5
    cosines = np.cos(np.pi / side * np.outer(np.arange(side), place)).astype(np.float32)
    frequencies = cosines @ grey @ cosines.T
    down, across = np.indices(frequencies.shape)
    order = np.lexsort((across.ravel(), (down + across).ravel()))
    return frequencies.ravel()[order[1 : NUM_BITS + 1]]


def hashes_of(
    frequencies: Float32[np.ndarray, "pictures 64"],
) -> UInt64[np.ndarray, " pictures"]:
    """Hash pictures of one set by their frequencies; hashes compare within the set alone."""
    bits = frequencies > np.median(frequencies, axis=0)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64).ravel()


def near_pairs(
    hashes: UInt64[np.ndarray, " pictures"], thumbs: UInt8[np.ndarray, "pictures side side 3"]
) -> Int64[np.ndarray, "pairs 2"]:
    """Find pairs of pictures that look the same, as many as it takes to connect all that do.

    Not all pairs, of which n equal pictures have n * (n - 1) / 2. A pair is two places, the smaller
    first, in order and each once.
    """
    group = np.arange(len(hashes))  # a number that connected pictures share
    found = [np.empty((0, 2), dtype=np.int64)]
    for word in range(_NUM_WORDS):
        shift = np.uint64(word * _WORD_BITS)
        words = (hashes >> shift) & np.uint64((1 << _WORD_BITS) - 1)
        order = np.argsort(words, kind="stable")
        starts = np.flatnonzero(np.diff(words[order])) + 1
        for alike in (each for each in np.split(order, starts) if len(each) > 1):
            found += _connected(alike, hashes, thumbs, group)
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs, axis=0)


def _connected(
    places: Int64[np.ndarray, " members"],
    hashes: UInt64[np.ndarray, " pictures"],
    thumbs: UInt8[np.ndarray, "pictures side side 3"],
    group: Int64[np.ndarray, " pictures"],
) -> Iterator[Int64[np.ndarray, "pairs 2"]]:
    """Compare one picture after another with those of other groups, and join theirs to its own.

    Those of the largest group come last: of two pictures of different groups one is outside it, so
    that once the others have been compared, nothing can be left to find.
    """
    waiting = places
    outside = waiting[group[waiting] != _largest(group[places])]
    while len(outside):
        one, outside = outside[0], outside[1:]
        waiting = waiting[waiting != one]
        others = places[group[places] != group[one]]
        close = others[np.bitwise_count(hashes[others] ^ hashes[one]) <= MAX_BITS_APART]
        close = close[_look_same(thumbs, one, close)]
        if len(close):
            yield np.stack([np.full_like(close, one), close], axis=1)
            group[np.isin(group, group[close])] = group[one]
            outside = waiting[group[waiting] != _largest(group[places])]


def _largest(groups: Int64[np.ndarray, " members"]) -> np.int64:
    numbers, sizes = np.unique(groups, return_counts=True)
    return numbers[sizes.argmax()]


def _look_same(
    thumbs: UInt8[np.ndarray, "pictures side side 3"],
    one: np.int64,
    others: Int64[np.ndarray, " others"],
) -> Bool[np.ndarray, " others"]:
    same = np.empty(len(others), dtype=bool)
    for first in range(0, len(others), _BLOCK):
        block = others[first : first + _BLOCK]
        apart = abs(thumbs[block].astype(np.int16) - thumbs[one].astype(np.int16))
        same[first : first + _BLOCK] = apart.mean((1, 2, 3)) <= MAX_THUMB_DIFFERENCE
    return same
