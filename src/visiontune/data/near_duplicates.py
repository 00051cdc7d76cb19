"""Images that are the same to a person: a perceptual hash, and clusters of (near-)duplicates found with it.

The hash says which of a picture's lowest frequencies are strongly positive. It follows pHash (Zauner, "Implementation
and benchmarking of perceptual image hash functions", 2010) but for the threshold: pHash's median lies where most
frequencies of a smooth picture are, so that they flip with every encoding; ours lies above them. A candidate is kept
only when its 16 x 16 thumbnail agrees as well.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

HASH_DISTANCE = 4
# Grey levels of 255: how much two thumbnails of one picture may differ on average, and beside that average. The second
# is a share of the picture's own contrast (its standard deviation), inside bounds.
MEAN_DIFFERENCE = 8.0
DETAIL_SHARE = 0.15
DETAIL_BOUNDS = (1.0, 3.5)

_HASH_SIDE = 32
_THUMBNAIL_SIDE = 16
_LOWEST = 8
# A frequency counts when it is stronger than this share of the root mean square of them all, and than 0.1 grey levels.
_STRONG_SHARE = 0.3
_STRONG = 0.1 * (_HASH_SIDE / 2) ** 2
# (shift, width): two hashes that differ in at most 4 of 64 bits agree in at least one of these 5 bands.
_BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))
_LARGE_BUCKET = 512
_PAIRS_AT_ONCE = 1 << 16


def _cosines() -> np.ndarray:
    """The 8 lowest rows of the DCT-II of 32 samples: (8, 32)."""
    k, n = np.arange(_LOWEST)[:, None], np.arange(_HASH_SIDE)[None, :]
    return np.cos(np.pi * k * (2 * n + 1) / (2 * _HASH_SIDE))


def _bit_order() -> np.ndarray:
    """Which of the 64 frequencies each bit tells, the first bit first: every band gets low ones and high ones."""
    k = np.arange(_LOWEST)
    by_frequency = np.argsort((k[:, None] + k[None, :]).ravel(), kind="stable")
    bands = len(_BANDS)
    return np.concatenate([by_frequency[band::bands] for band in reversed(range(bands))])


_COSINES = _cosines()
_BIT_ORDER = _bit_order()


def perceptual_hash(image: Image.Image) -> tuple[np.uint64, np.ndarray]:
    """A 64-bit hash of what an image shows and its grey thumbnail: (16, 16), uint8."""
    grey = image.convert("L")
    small = np.asarray(grey.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    thumbnail = np.asarray(grey.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BILINEAR))
    frequencies = (_COSINES @ small @ _COSINES.T).ravel()
    frequencies[0] = 0  # the brightness
    bits = frequencies > max(_STRONG, _STRONG_SHARE * np.sqrt(np.mean(frequencies[1:] ** 2)))
    return np.packbits(bits[_BIT_ORDER]).view(">u8")[0].astype(np.uint64), thumbnail


def clusters(sha256s: Sequence[str], hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """The cluster of each image, named by its first image: same bytes or nearly the same look, same cluster.

    sha256s: n digests; hashes: (n,), uint64; thumbnails: (n, 16, 16) or (n, 256), uint8. Returns (n,), int64.
    """
    n = len(sha256s)
    if n == 0:
        return np.zeros(0, np.int64)
    flat = np.ascontiguousarray(thumbnails.reshape(n, -1))
    _, first_of_bytes, same_bytes = np.unique(np.asarray(sha256s), return_index=True, return_inverse=True)
    # Equal looks (blank frames above all) are one entry, so that they cost nothing below.
    looks = np.concatenate([hashes.astype(">u8")[:, None].view(np.uint8), flat], axis=1)
    _, first_of_look, same_look = np.unique(
        looks.view(np.dtype((np.void, looks.shape[1]))).ravel(), return_index=True, return_inverse=True
    )
    everyone = np.arange(n)
    edges = [
        np.stack([everyone, first_of_bytes[same_bytes]]),
        np.stack([everyone, first_of_look[same_look]]),
    ]
    for near in _near_pairs(hashes[first_of_look], flat[first_of_look]):
        edges.append(first_of_look[near])
    return connected(n, np.concatenate(edges, axis=1))


def connected(n: int, edges: np.ndarray) -> np.ndarray:
    """The connected components of a graph with n nodes: each node's component, named by its smallest node.

    edges: (2, m), int. Returns (n,), int64.
    """
    label = np.arange(n)
    while True:
        left, right = label[edges[0]], label[edges[1]]
        if np.array_equal(left, right):
            return label
        low = np.minimum(left, right)
        np.minimum.at(label, left, low)
        np.minimum.at(label, right, low)
        while not np.array_equal(label, label[label]):
            label = label[label]


def _near_pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of near-duplicates among distinct looks, in blocks of (2, m)."""
    for shift, width in _BANDS:
        band = ((hashes >> np.uint64(shift)) & np.uint64((1 << width) - 1)).astype(np.int64)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=-1))
        ends = np.append(starts[1:], len(order))
        large = ends - starts > _LARGE_BUCKET
        for start, end in zip(starts[large], ends[large], strict=True):
            yield from _grown(order[start:end], hashes, thumbnails)
        # How many places follow each place in its own (small) bucket.
        following = np.repeat(np.where(large, 0, ends - starts), ends - starts)
        following = np.where(following > 0, np.repeat(ends, ends - starts) - np.arange(len(order)) - 1, 0)
        yield from _compared(order, following, hashes, thumbnails)


def _compared(
    order: np.ndarray, following: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray
) -> Iterator[np.ndarray]:
    """Each place against the `following` places after it, at one offset after the other."""
    places = np.flatnonzero(following > 0)
    offset = 1
    while len(places):
        for block in range(0, len(places), _PAIRS_AT_ONCE):
            some = places[block : block + _PAIRS_AT_ONCE]
            left, right = order[some], order[some + offset]
            close = np.bitwise_count(hashes[left] ^ hashes[right]) <= HASH_DISTANCE
            left, right = left[close], right[close]
            alike = _alike(thumbnails[left], thumbnails[right])
            yield np.stack([left[alike], right[alike]])
        offset += 1
        places = places[following[places] >= offset]


def _grown(bucket: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray) -> Iterator[np.ndarray]:
    """The clusters of a large bucket, grown from one member after the other.

    A bucket of thousands is mostly one scene over and over: whoever joined a cluster is never compared again as a
    candidate, so that this costs little more than one comparison of each member.
    """
    # Means of 4 x 4 pixels differ on average by no more than the pixels do: a cheap look before the exact one.
    coarse = thumbnails[bucket].reshape(-1, 4, 4, 4, 4).mean(axis=(2, 4), dtype=np.float32).reshape(-1, 16)
    waiting = np.arange(len(bucket))
    while len(waiting):
        frontier, waiting = [waiting[0]], waiting[1:]
        while frontier and len(waiting):
            member = frontier.pop()
            near = np.bitwise_count(hashes[bucket[waiting]] ^ hashes[bucket[member]]) <= HASH_DISTANCE
            candidates = np.flatnonzero(near)
            difference = np.abs(coarse[waiting[candidates]] - coarse[member])
            candidates = candidates[difference.mean(axis=1) <= MEAN_DIFFERENCE + DETAIL_BOUNDS[1]]
            near[:] = False
            near[candidates] = _alike(thumbnails[bucket[waiting[candidates]]], thumbnails[bucket[member]][None])
            found = waiting[near]
            waiting = waiting[~near]
            frontier.extend(found)
            yield bucket[np.stack([np.full(len(found), member), found])]


def _alike(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether thumbnails agree, pair by pair. left: (m, 256), right: (m or 1, 256), uint8. Returns (m,), bool."""
    difference = left.astype(np.int16) - right
    mean = difference.mean(axis=1)
    detail = np.abs(difference - mean[:, None]).mean(axis=1)
    contrast = np.minimum(left.std(axis=1, dtype=np.float32), right.std(axis=1, dtype=np.float32))
    return (np.abs(mean) <= MEAN_DIFFERENCE) & (detail <= np.clip(DETAIL_SHARE * contrast, *DETAIL_BOUNDS))
