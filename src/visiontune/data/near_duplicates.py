"""Images that are the same to a person: a perceptual hash, and clusters of (near-)duplicates found with it.

The hash is the sign pattern of a picture's lowest frequencies (pHash: Zauner, "Implementation and benchmarking of
perceptual image hash functions", 2010). A candidate is kept only when its 16 x 16 thumbnail agrees as well.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

HASH_BITS = 64
HASH_DISTANCE = 4
# In grey levels of 255. `bench/` and docs say what was measured; see tests/data/test_near_duplicates.py.
MEAN_DIFFERENCE = 8.0
DETAIL_DIFFERENCE = 4.0

_HASH_SIDE = 32
_THUMBNAIL_SIDE = 16
# Two hashes that differ in at most 4 of 64 bits agree in at least one of these 5 bands.
_BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))
_LARGE_BUCKET = 512
_PAIRS_AT_ONCE = 1 << 16


def _cosines() -> np.ndarray:
    """The 8 lowest rows of the DCT-II of 32 samples: (8, 32)."""
    k, n = np.arange(8)[:, None], np.arange(_HASH_SIDE)[None, :]
    return np.cos(np.pi * k * (2 * n + 1) / (2 * _HASH_SIDE))


_COSINES = _cosines()


def perceptual_hash(image: Image.Image) -> tuple[np.uint64, np.ndarray]:
    """A 64-bit hash of what an image shows and its grey thumbnail: (16, 16), uint8."""
    grey = image.convert("L")
    small = np.asarray(grey.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BOX), dtype=np.float64)
    thumbnail = np.asarray(grey.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BOX))
    # Rounded, so that an even surface has zeros and not the noise of the arithmetic.
    frequencies = np.round(_COSINES @ small @ _COSINES.T, 3).ravel()
    bits = frequencies > np.median(frequencies[1:])
    return np.packbits(bits).view(">u8")[0].astype(np.uint64), thumbnail


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
            candidates = candidates[difference.mean(axis=1) <= MEAN_DIFFERENCE + DETAIL_DIFFERENCE]
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
    return (np.abs(mean) <= MEAN_DIFFERENCE) & (detail <= DETAIL_DIFFERENCE)
