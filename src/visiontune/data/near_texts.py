"""Documents that are nearly the same: MinHash signatures of their word shingles, and clusters found with them.

MinHash (Broder, "On the resemblance and containment of documents", 1997): the share of places at which two signatures
agree estimates the Jaccard resemblance of the sets of shingles (runs of five words) of two texts. Only pairs that agree
in a whole band of places are compared (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4).
"""

import re
from collections.abc import Iterator, Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from visiontune.data.near_duplicates import connected

SHINGLE = 5
PLACES = 128
BANDS = 32
# Of two texts that share half of their shingles, one was made from the other. One word in thirteen changed leaves about
# that. From 0.7 on (one word in thirty), the bands miss fewer than one pair in five thousand.
ALIKE = 0.5

# A word; in scripts that put no spaces between words, a character.
_WORD = re.compile(
    "[\u0e00-\u0edf\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    "|[^\\W\u0e00-\u0edf\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_SHINGLES_AT_ONCE = 256  # their hashes fit a core's cache
_LARGE_BUCKET = 256
_LEADERS = 64
_PAIRS_AT_ONCE = 1 << 15
_NONE = np.uint32(0xFFFFFFFF)


def _multipliers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    draw = np.random.default_rng(0x5EED)  # any numbers, but the same everywhere
    odd = draw.integers(0, 1 << 63, PLACES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return odd, draw.integers(0, 1 << 63, PLACES, dtype=np.uint64)


_TIMES, _PLUS = _multipliers()
_MIX = [np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)]


def signature(text: str) -> NDArray[np.uint32]:
    """The MinHash signature of a text: (128,) uint32. Case, spaces and punctuation do not count.

    A text of fewer than five words is one shingle. A text without words has a signature that is like no other.
    """
    words = _WORD.findall(text.casefold())
    if not words:
        return np.full(PLACES, _NONE)
    codes = np.fromiter((crc32(word.encode()) for word in words), np.uint64, len(words))
    length = min(SHINGLE, len(codes))
    shingles = np.zeros(len(codes) - length + 1, np.uint64)
    for start in range(length):
        shingles = _mixed(shingles + codes[start : start + len(shingles)])
    shingles = np.unique(shingles)
    lowest = np.full(PLACES, np.uint64(0xFFFFFFFFFFFFFFFF))
    for start in range(0, len(shingles), _SHINGLES_AT_ONCE):
        # Multiply, add, take the high half: a family of hash functions whose minima are as good as random.
        hashes = shingles[None, start : start + _SHINGLES_AT_ONCE] * _TIMES[:, None]
        hashes += _PLUS[:, None]
        np.minimum(lowest, hashes.min(axis=1), out=lowest)
    return (lowest >> np.uint64(32)).astype(np.uint32)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the value."""
    values = values + _MIX[0]
    values = (values ^ (values >> np.uint64(30))) * _MIX[1]
    values = (values ^ (values >> np.uint64(27))) * _MIX[2]
    return values ^ (values >> np.uint64(31))


def text_clusters(sha256s: Sequence[str], signatures: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The cluster of each text, named by its first text: the same characters or nearly the same words, same cluster.

    sha256s: n digests; signatures: (n, 128), uint32. Returns (n,), int64.
    """
    n = len(sha256s)
    if n == 0:
        return np.zeros(0, np.int64)
    _, first_of_text, same_text = np.unique(np.asarray(sha256s), return_index=True, return_inverse=True)
    edges = [np.stack([np.arange(n), first_of_text[same_text]])]
    # Equal signatures are one entry, so that thousands of copies cost nothing below.
    with_words = np.flatnonzero((signatures != _NONE).any(axis=1))
    if len(with_words):
        _, first, same = np.unique(_keys(signatures[with_words]), return_index=True, return_inverse=True)
        edges.append(np.stack([with_words, with_words[first[same]]]))
        distinct = with_words[first]
        edges += [distinct[near] for near in _near_pairs(signatures[distinct])]
    return connected(n, np.concatenate(edges, axis=1))


def _near_pairs(signatures: NDArray[np.uint32]) -> Iterator[NDArray[np.int64]]:
    """Pairs of texts that are alike among different signatures, in blocks of (2, m)."""
    width = PLACES // BANDS
    for band in range(BANDS):
        keys = _keys(signatures[:, band * width : (band + 1) * width])
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1]]))
        ends = np.append(starts[1:], len(order))
        several = ends - starts > 1
        starts, sizes = starts[several], (ends - starts)[several]
        for size in np.unique(sizes).tolist():  # buckets of one size together: most hold two, and there are many
            if size > _LARGE_BUCKET:
                for start in starts[sizes == size].tolist():
                    yield from _led(order[start : start + size], signatures)
                continue
            left, right = np.triu_indices(size, 1)
            members = order[starts[sizes == size][:, None] + np.arange(size)]
            at_once = max(1, _PAIRS_AT_ONCE // len(left))
            for first in range(0, len(members), at_once):
                some = members[first : first + at_once]
                yield _alike(np.stack([some[:, left].ravel(), some[:, right].ravel()]), signatures)


def _keys(rows: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row: (n, m) to (n,)."""
    keys = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        keys = _mixed(keys + column)
    return keys


def _led(members: NDArray[np.int64], signatures: NDArray[np.uint32]) -> Iterator[NDArray[np.int64]]:
    """A large bucket is one text over and over: all that are like its first member leave together, and so on.

    Or it is a form with different contents. Then the first members are like no other, and what is alike among the rest
    agrees in other bands as well.
    """
    for _ in range(_LEADERS):
        if len(members) < 2:
            return
        leader, members = members[0], members[1:]
        near = (signatures[members] == signatures[leader]).sum(axis=1) >= ALIKE * PLACES
        yield np.stack([np.full(int(near.sum()), leader), members[near]])
        members = members[~near]


def _alike(pairs: NDArray[np.int64], signatures: NDArray[np.uint32]) -> NDArray[np.int64]:
    agree = (signatures[pairs[0]] == signatures[pairs[1]]).sum(axis=1)
    return pairs[:, agree >= ALIKE * PLACES]
