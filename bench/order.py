"""What it costs to ask which samples come at a far position, and how well the datasets' shares hold.

Ours: `Order.draw`. Beside it, how loaders usually do it with numpy: a weighted draw of the dataset for each sample from
one generator, and a permutation of the epoch of each dataset. To stand at position k it must have made the k draws
before; its permutations are seeded by epoch, in its favour, so that only the current ones are made. Its k draws are
timed on a million and multiplied: those rows say "extrapolated".

    python bench/order.py
"""

import platform
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from visiontune.data.order import Order

DATASETS = 30
ROWS = 100_000
STEP = 256
WINDOW = 10_000
SKIP_TIMED = 1_000_000
WEIGHTS = np.arange(1.0, DATASETS + 1)
SHARES = WEIGHTS / WEIGHTS.sum()


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def skip(generator: np.random.Generator, draws: int) -> NDArray[np.int64]:
    """The usual weighted draw of datasets, in one vectorised call."""
    return generator.choice(DATASETS, size=draws, p=SHARES)


def permutations(epoch: int) -> list[NDArray[np.int64]]:
    """One epoch of each dataset."""
    return [np.random.default_rng([0, d, epoch]).permutation(ROWS) for d in range(DATASETS)]


def share_error(dataset: NDArray[np.int64]) -> float:
    """The largest error of any dataset's share over every window of 10,000 consecutive samples."""
    drawn = np.concatenate([np.zeros((1, DATASETS)), np.cumsum(dataset[:, None] == np.arange(DATASETS), axis=0)])
    return float(np.abs((drawn[WINDOW:] - drawn[:-WINDOW]) / WINDOW - SHARES).max())


def main() -> None:
    order = Order(0, [ROWS] * DATASETS, WEIGHTS.tolist())
    made = milliseconds(lambda: Order(0, [ROWS] * DATASETS, WEIGHTS.tolist()), 5)
    million = milliseconds(lambda: skip(np.random.default_rng(0), SKIP_TIMED), 3)
    shuffling = milliseconds(lambda: permutations(3), 3)

    machine = f"{platform.processor() or platform.machine()}, numpy {np.__version__}"
    print(f"{DATASETS} datasets of {ROWS:,} rows, weights 1 to {DATASETS}; {machine}")
    print(f"the order is set up in {made:.1f} ms, once\n")
    print(f"{STEP} samples at position     ours, ms       numpy, ms")
    for position in (0, 10**9, 10**12):
        ours = milliseconds(lambda position=position: order.draw(position, position + STEP), 50)
        numpys = shuffling + million * (position + STEP) / SKIP_TIMED
        print(f"{position:>23,} {ours:>12.2f} {numpys:>15,.1f}{'  extrapolated' if position else ''}")
    print(f"\nlargest share error in any {WINDOW:,} consecutive samples, of 100,000 from each position")
    for position in (0, 10**9):
        print(f"{position:>23,} {share_error(order.draw(position, position + 100_000).dataset):>12.5f}", end="")
        print(f" {share_error(skip(np.random.default_rng(position), 100_000)):>15.5f}")


if __name__ == "__main__":
    main()
