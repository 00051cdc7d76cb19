"""Windows of the order cut into steps and micro-batches, and the loader that reads them ahead.

A window is cut by lengths that are known before anything is decoded, and the cut depends on nothing but the window: not
on ranks, workers or where a run was resumed.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from visiontune.data.augment import augmentation_key
from visiontune.data.dataset import Dataset
from visiontune.data.order import Draws, Order, key, permute
from visiontune.errors import VisiontuneError
from visiontune.models.adapter import Batch, Encoder
from visiontune.recipe_sections import Batch as BatchRecipe

if TYPE_CHECKING:
    from visiontune.training.features import FeatureStore

DRAWN_AT_ONCE = 65536
SHORTEST_SHARE = 0.8  # a sample shorter than this share of the longest one starts a new micro-batch
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

SampleRef = tuple[int, int, int]  # dataset, index in its training split, epoch


@dataclass(frozen=True)
class MicroBatch:
    """The samples that go through the model at once: the `number`-th of a step."""

    step: int
    number: int
    samples: tuple[SampleRef, ...]


def plan_window(
    order: Order, lengths: Sequence[NDArray[np.int64]], batch: BatchRecipe, window: int
) -> list[list[MicroBatch]]:
    """The steps of a window, each a list of micro-batches; every step has exactly `batch.samples` samples.

    The window's samples are sorted by length and cut into groups of neighbours, four to a step; the groups are shuffled
    and dealt to the steps. So neighbours in length stand side by side, and which lengths share a step is left to
    chance. Each step is then cut where the padded size would pass `batch.tokens`, or where a sample is much shorter
    than the longest (packed, where all tokens together would): that cut decides speed and memory, and not the step's
    result.
    """
    draws = order.draw(window * batch.window, (window + 1) * batch.window)
    length = np.array([lengths[d][i] for d, i in zip(draws.dataset, draws.index, strict=True)], dtype=np.int64)
    quarter = max(1, batch.samples // 4)
    group_size = max(size for size in range(1, quarter + 1) if batch.samples % size == 0)
    groups = np.argsort(length, kind="stable").reshape(-1, group_size)
    count = np.full(len(groups), len(groups), dtype=np.uint64)
    keys = np.full(len(groups), key(order.seed, 3, window), dtype=np.uint64)
    groups = groups[permute(np.arange(len(groups), dtype=np.uint64), count, keys).astype(np.int64)]
    steps = []
    for number, members in enumerate(groups.reshape(-1, batch.samples)):
        step = window * (batch.window // batch.samples) + number
        longest_first = members[np.argsort(-length[members], kind="stable")]
        micro_batches: list[MicroBatch] = []
        for start, stop in (_packs if batch.packing else _cuts)(length[longest_first], batch.tokens):
            samples = [
                (int(draws.dataset[p]), int(draws.index[p]), int(draws.epoch[p])) for p in longest_first[start:stop]
            ]
            micro_batches.append(MicroBatch(step, len(micro_batches), tuple(samples)))
        steps.append(micro_batches)
    return steps


def _cuts(descending: NDArray[np.int64], tokens: int) -> Iterator[tuple[int, int]]:
    """Where to cut samples of descending lengths into micro-batches."""
    start = 0
    while start < len(descending):
        longest = int(descending[start])
        stop = min(len(descending), start + max(1, tokens // max(1, longest)))
        long_enough = int(np.searchsorted(-descending, -SHORTEST_SHARE * longest, side="right"))
        stop = min(stop, max(start + 1, long_enough))
        yield start, stop
        start = stop


def _packs(lengths: NDArray[np.int64], tokens: int) -> Iterator[tuple[int, int]]:
    """Where to cut samples that stand one behind the other into micro-batches of so many tokens."""
    start = 0
    while start < len(lengths):
        together = lengths[start:].cumsum()
        stop = start + max(1, int(np.searchsorted(together, tokens, side="right")))
        yield start, stop
        start = stop


def plan_steps(
    order: Order, lengths: Sequence[NDArray[np.int64]], batch: BatchRecipe, start: int, stop: int
) -> Iterator[list[MicroBatch]]:
    """The micro-batches of the steps start..stop-1."""
    steps_per_window = batch.window // batch.samples
    for window in range(start // steps_per_window, -(-stop // steps_per_window)):
        for micro_batches in plan_window(order, lengths, batch, window):
            if start <= micro_batches[0].step < stop:
                yield micro_batches


def promised(
    order: Order, lengths: Sequence[NDArray[np.int64]], batch: BatchRecipe, steps: int
) -> tuple[dict[int, int], int]:
    """What a run of so many steps must see: samples of each dataset, and the digest of all of them (`Draws.digest`).

    Whole windows follow from the order alone; of the last one, the steps that were taken.
    """
    windows, rest = divmod(steps, batch.window // batch.samples)
    whole = windows * batch.window
    digest = sum(order.draw(a, min(whole, a + DRAWN_AT_ONCE)).digest() for a in range(0, whole, DRAWN_AT_ONCE))
    counts = order.seen(whole)
    if rest:
        taken = plan_window(order, lengths, batch, windows)[:rest]
        last = np.array([ref for step in taken for micro_batch in step for ref in micro_batch.samples], dtype=np.int64)
        counts = counts + np.bincount(last[:, 0], minlength=len(counts))
        digest += Draws(*last.T).digest()
    return {d: int(count) for d, count in enumerate(counts) if count}, digest % 2**64


@dataclass(frozen=True)
class _Work:
    """What a loader's worker is asked for. An idle rank gets a micro-batch without samples, so that it keeps step."""

    micro_batch: MicroBatch
    last_of_step: bool


@dataclass(frozen=True)
class Reading:
    """How samples become batches: from which split, with their answers (to learn) or without (to be asked).

    With a seed, images are augmented, the same sample otherwise in each epoch, or in `augmented_views` ways in turn.
    With `features`, those are read instead of images.
    """

    datasets: Sequence[Dataset]
    encoder: Encoder[Any]
    split: str = "train"
    with_answer: bool = True
    augment_seed: int | None = None
    augmented_views: int | None = None
    features: "FeatureStore | None" = None

    def batch(self, refs: Sequence[SampleRef]) -> Batch:
        """The samples as one batch; padded on the left when they are to be answered. Raises DataError."""
        encoded = []
        for ref in refs:
            dataset, index, epoch = ref
            if self.features is None:
                sample, features = self.datasets[dataset].sample(self.split, index), None
            else:
                sample, features = self.features.sample(ref)
            seed = self.augment_seed
            view = epoch if self.augmented_views is None else epoch % self.augmented_views
            number = None if seed is None else augmentation_key(seed, sample.id, view)
            how = {"with_answer": self.with_answer, "augmentation": number}
            encoded.append(self.encoder.encode(sample, features=features, **how))
        batch = self.encoder.collate(encoded, pad_left=not self.with_answer)
        batch.origins = list(refs)
        return batch


class _Loaded(torch.utils.data.Dataset[tuple[_Work, Batch | VisiontuneError | None]]):
    """Reads micro-batches in the loader's workers."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def __getitem__(self, work: _Work) -> tuple[_Work, Batch | VisiontuneError | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not work.micro_batch.samples:
            return work, None
        try:
            return work, self.reading.batch(work.micro_batch.samples)
        except VisiontuneError as error:
            return work, error  # raised again in the main process, without the loader's own traceback around it


def _works(plan: Iterable[list[MicroBatch]], rank: int, ranks: int) -> Iterator[_Work]:
    for micro_batches in plan:
        own = [m for m in micro_batches if m.number % ranks == rank]
        own = own or [MicroBatch(micro_batches[0].step, 0, ())]
        yield from (_Work(m, m is own[-1]) for m in own)


def load_steps(
    plan: Iterable[list[MicroBatch]], reading: Reading, *, rank: int = 0, ranks: int = 1, workers: int = 0
) -> Generator[tuple[int, list[tuple[int, Batch]]], None, None]:
    """Read a plan: for each step its number and this rank's micro-batches, as (number in the step, batch).

    Ranks take the micro-batches of a step in turn; a rank may get none. With workers, decoding runs ahead of the
    training. Raises what reading and encoding a sample raises.
    """
    loader = DataLoader(
        _Loaded(reading),
        sampler=_works(plan, rank, ranks),  # pyright: ignore[reportArgumentType]  # any iterable of keys will do
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader would draw from the global generator
        worker_init_fn=_live_with_trainer,
    )
    batches: list[tuple[int, Batch]] = []
    for work, batch in loader:
        if isinstance(batch, VisiontuneError):
            raise batch
        if batch is not None:
            batches.append((work.micro_batch.number, batch))
        if work.last_of_step:
            yield work.micro_batch.step, batches
            batches = []


def _live_with_trainer(worker: int) -> None:
    """Leave signals to the trainer, which wants this worker's batches until its step is done, and end when it ends.

    A worker that outlived a killed trainer would hold the run folder's lock for seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
