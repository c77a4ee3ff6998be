"""Pictures that look the same, found among very many without comparing all pairs.

A hash has 64 bits: whether each of the lowest 64 frequencies of the grey picture (a discrete
cosine transform, without its mean) is above the median of the whole set. The median of the set,
not zero, because aligned faces have most signs in common. Hashes at most 3 bits apart agree in
at least one of four words of 16 bits, so that only pictures that share a word are compared
(multi-index hashing, arXiv 1307.2982); those that are near are confirmed on thumbnails.
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
_BLOCK = 1 << 20  # pairs that are compared at once


def lowest_frequencies(thumb: UInt8[np.ndarray, "side side 3"]) -> Float32[np.ndarray, "64"]:
    """Transform a picture's brightness.

    Args:
        thumb: A small picture, of 16 pixels or more.

    Returns:
        The 64 lowest frequencies of its cosine transform after the mean, lowest first.
    """
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
    """Hash pictures of one set.

    Args:
        frequencies: What `lowest_frequencies` gives of each.

    Returns:
        The hashes; they compare within the set alone.
    """
    bits = frequencies > np.median(frequencies, axis=0)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64).ravel()


def near_pairs(
    hashes: UInt64[np.ndarray, " pictures"], thumbs: UInt8[np.ndarray, "pictures side side 3"]
) -> Int64[np.ndarray, "pairs 2"]:
    """Find the pairs of pictures that look the same.

    Args:
        hashes: Of `hashes_of`.
        thumbs: Thumbnails of the same pictures.

    Returns:
        Pairs of places, the smaller first, in order and each once.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    for word in range(_NUM_WORDS):
        shift = np.uint64(word * _WORD_BITS)
        words = (hashes >> shift) & np.uint64((1 << _WORD_BITS) - 1)
        order = np.argsort(words, kind="stable")
        starts = np.flatnonzero(np.diff(words[order])) + 1
        for group in np.split(order, starts):
            for pairs in _pairs_within(group):
                apart = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
                close = pairs[apart <= MAX_BITS_APART]
                found.append(close[_look_same(thumbs, close)])
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs, axis=0)


def _pairs_within(group: Int64[np.ndarray, " members"]) -> Iterator[Int64[np.ndarray, "pairs 2"]]:
    """Give all pairs of a group, a block at a time."""
    rows = max(1, _BLOCK // max(1, len(group)))
    for first in range(0, len(group) - 1, rows):
        above = np.arange(first, min(first + rows, len(group)))
        one, other = np.nonzero(above[:, None] < np.arange(len(group)))
        yield np.stack([group[above[one]], group[other]], axis=1)


def _look_same(
    thumbs: UInt8[np.ndarray, "pictures side side 3"], pairs: Int64[np.ndarray, "pairs 2"]
) -> Bool[np.ndarray, " pairs"]:
    same = np.empty(len(pairs), dtype=bool)
    for first in range(0, len(pairs), 4096):
        block = pairs[first : first + 4096]
        one, other = (thumbs[block[:, column]].astype(np.int16) for column in (0, 1))
        same[first : first + 4096] = abs(one - other).mean((1, 2, 3)) <= MAX_THUMB_DIFFERENCE
    return same
