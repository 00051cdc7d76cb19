"""Which split each sample stands in: a pure function of contents, clusters of duplicates, classes and the seed."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

SPLITS = ("train", "validation", "test")
# What people call them, in small letters.
SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}
SPLIT_NAMES |= {"dev": "validation", "test": "test"}
SHARES = (0.70, 0.15, 0.15)

# With few clusters of a class, the splits get one each in this order.
_FIRST_SERVED = ("train", "test", "validation")
# Steps of the golden ratio spread the rounding of many classes evenly over the splits.
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class _Cluster:
    """Rows that may not be parted: their order among others, their number, their positions."""

    key: bytes
    rows: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.rows)


def keyed(seed: int, text: str) -> bytes:
    """A pseudo-random 16-byte key of a text under a seed: sorting by it shuffles, the same way each time."""
    return hashlib.blake2b(text.encode("utf-8"), key=str(seed).encode(), digest_size=16).digest()


def assign(
    contents: Sequence[str],
    clusters: Sequence[int],
    classes: Sequence[str],
    *,
    given: Sequence[str | None],
    earlier: Mapping[str, str],
    seed: int,
    shares: tuple[float, float, float] = SHARES,
) -> list[str | None]:
    """The split of each row, or None for a row that is to be left out because its duplicates stand in two splits.

    All sequences have one entry a row: its content hash, its cluster of duplicates, its class ("" for free text), and
    the split that the data's author gave it. `earlier` maps contents to the splits of a dataset that stands already:
    those rows stay. Given splits are kept as they are; a split that nobody gave is taken from the train rows. All other
    clusters are placed whole, each class as near to the shares (train, validation, test) as its clusters allow.
    """
    open_splits = _open_splits(given)
    result: list[str | None] = [
        _standing(name, earlier.get(content), open_splits) for name, content in zip(given, contents, strict=True)
    ]
    anchors: dict[int, set[str]] = defaultdict(set)
    for cluster, split in zip(clusters, result, strict=True):
        if split is not None:
            anchors[cluster].add(split)

    free: dict[int, list[int]] = defaultdict(list)
    for row, cluster in enumerate(clusters):
        if result[row] is not None:
            continue
        found = anchors.get(cluster, set())
        if given[row] is not None:
            found = found & set(open_splits)
        if len(found) == 1:
            (result[row],) = found
        elif not found:
            free[cluster].append(row)

    standing: dict[str, Counter[str]] = defaultdict(Counter)
    standing_clusters: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for row, split in enumerate(result):
        if split in open_splits:
            standing[classes[row]][split] += 1
            standing_clusters[classes[row]].add((split, clusters[row]))

    strata: dict[str, list[_Cluster]] = defaultdict(list)
    for rows in free.values():
        counts = Counter(classes[row] for row in rows)
        stratum = min(counts, key=lambda name: (-counts[name], name))
        strata[stratum].append(_Cluster(min(keyed(seed, contents[row]) for row in rows), tuple(rows)))

    share: dict[str, float] = dict(zip(SPLITS, shares, strict=True))
    for rank, name in enumerate(sorted({*strata, *standing})):
        served = Counter(split for split, _ in standing_clusters[name])
        offset = (0.5 + rank * _GOLDEN) % 1
        wanted = {split: share[split] for split in _FIRST_SERVED if split in open_splits}
        for split, cluster in _placed(strata[name], standing[name], served, wanted, offset):
            for row in cluster.rows:
                result[row] = split
    _fill_empty_splits(result, clusters, [one for own in strata.values() for one in own], classes, open_splits, share)
    return result


def spread(classes: Sequence[str], ids: Sequence[str], count: int, seed: int) -> list[int]:
    """The positions, ascending, of `count` rows for a first look: one of each class in turn, by keyed hash of id."""
    members: dict[str, list[int]] = defaultdict(list)
    for row in sorted(range(len(ids)), key=lambda row: keyed(seed, ids[row])):
        members[classes[row]].append(row)
    turns = sorted((turn, name, row) for name, rows in members.items() for turn, row in enumerate(rows[:count]))
    return sorted(row for _, _, row in turns[:count])


def _open_splits(given: Sequence[str | None]) -> tuple[str, ...]:
    """The splits that we may place rows in: train, and those that nobody gave."""
    named = set(given)
    return tuple(split for split in SPLITS if split == "train" or split not in named)


def _standing(given: str | None, earlier: str | None, open_splits: tuple[str, ...]) -> str | None:
    """The split that a row has before anything is placed."""
    if given is not None and (given != "train" or len(open_splits) == 1):
        return given
    if earlier is not None and (given is None or earlier in open_splits):
        return earlier
    return None


def _placed(
    clusters: list[_Cluster],
    standing: Counter[str],
    served: Counter[str],
    shares: dict[str, float],
    offset: float,
) -> list[tuple[str, _Cluster]]:
    """The free clusters of one class with their splits.

    `standing` and `served` count the rows and the clusters that stand in each split already; `shares` lists the splits
    in the order in which they are served.
    """
    required = list(shares)[: len(clusters) + served.total()]
    rows = sum(cluster.size for cluster in clusters)
    quota = _quotas(rows + standing.total(), {split: shares[split] for split in required}, offset)
    room = _scaled({split: max(0, quota[split] - standing[split]) for split in required}, rows)

    # In the order of the keys: whoever fits goes to a held-out split until it is full, the rest trains.
    clusters = sorted(clusters, key=lambda cluster: cluster.key)
    held_out = [split for split in required if split != "train"]
    placed: list[str] = ["train"] * len(clusters)
    for tolerance in (1, 2):
        # The second time, a cluster may overfill a split by less than it would leave empty.
        for i, cluster in enumerate(clusters):
            for split in held_out if placed[i] == "train" else ():
                if cluster.size <= room[split] or cluster.size < tolerance * room[split]:
                    placed[i] = split
                    room[split] -= cluster.size
                    break

    counts = served + Counter(placed)
    for split in required:
        if counts[split] == 0:
            donors = [i for i in range(len(clusters)) if counts[placed[i]] > 1]
            if donors:
                i = min(donors, key=lambda i: (clusters[i].size, -counts[placed[i]], clusters[i].key))
                counts[placed[i]] -= 1
                counts[split] += 1
                placed[i] = split
    return list(zip(placed, clusters, strict=True))


def _fill_empty_splits(
    result: list[str | None],
    clusters: Sequence[int],
    free: Sequence[_Cluster],
    classes: Sequence[str],
    open_splits: Sequence[str],
    shares: Mapping[str, float],
) -> None:
    """Fill, in `result`, splits that no row came to though there are as many clusters as splits.

    It happens where nearly every class has fewer clusters than there are splits. The split gets its share of clusters
    from the split that has most beyond its own; those whose class stays there too go first.
    """
    while True:
        of_split = {split: {c for c, s in zip(clusters, result, strict=True) if s == split} for split in open_splits}
        total = sum(map(len, of_split.values()))
        empty = [split for split in _FIRST_SERVED if split in open_splits and not of_split[split]]
        donors = [split for split in open_splits if len(of_split[split]) > 1]
        if not empty or not donors or total < len(SPLITS):
            return
        donor = max(donors, key=lambda split: len(of_split[split]) - shares[split] * total)
        movable = [cluster for cluster in free if result[cluster.rows[0]] == donor]
        if not movable:
            return
        stay = Counter(classes[one.rows[0]] for one in movable)
        movable.sort(key=lambda one: (stay[classes[one.rows[0]]] < 2, one.key))
        for cluster in movable[: max(1, min(round(shares[empty[0]] * total), len(of_split[donor]) - 1))]:
            for row in cluster.rows:
                result[row] = empty[0]


def _quotas(total: int, shares: dict[str, float], offset: float) -> dict[str, int]:
    """Whole numbers near `total` times the shares, at least 1 each where `total` allows; their sum is `total`."""
    whole = sum(shares.values())
    quota = {}
    cumulative, before = 0.0, 0
    for split in reversed(shares):
        cumulative += shares[split]
        boundary = math.floor(round(total * cumulative / whole, 9) + offset) if split != "train" else total
        quota[split] = boundary - before
        before = boundary
    for split in shares:
        largest = max(quota, key=lambda name: quota[name])
        if quota[split] == 0 and quota[largest] > 1:
            quota[split] += 1
            quota[largest] -= 1
    return quota


def _scaled(wanted: dict[str, int], total: int) -> dict[str, int]:
    """`wanted` scaled down to the sum `total` by largest remainders; as it is where its sum is no larger."""
    whole = sum(wanted.values())
    if whole <= total:
        return dict(wanted)
    exact = {split: Fraction(count * total, whole) for split, count in wanted.items()}
    scaled = {split: math.floor(value) for split, value in exact.items()}
    by_remainder = sorted(wanted, key=lambda split: scaled[split] - exact[split])
    for split in by_remainder[: total - sum(scaled.values())]:
        scaled[split] += 1
    return scaled
