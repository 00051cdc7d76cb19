"""Clips computed at once beside one window for each predicted bin, the same network and the same bins.

First the floating point operations at the shape of the field's large model (51x51 pixels), counted by torch; then the
processor's time on one core at a smaller shape, forward and backward, with the largest difference of the features.
Windows are as short as they can be: with recurrence 33 frames, else those that the convolutions see.

    python bench/dense.py [--repeats 3]
"""

import argparse
import platform
import time
from collections.abc import Callable

import torch

from visiontune.models.cortex_network import Cortex, CortexConfig

LARGE = CortexConfig(
    height=51,
    width=51,
    stimulus_mean=127,
    stimulus_std=50,
    temporal_taps=16,
    temporal_channels=4,
    channels=(8, 64, 128),
    kernels=(7, 9, 5),
    temporal_kernels=(1, 3, 3),
    strides=(1, 1, 1),
    pools=(1, 2, 2),
    activation="split_relu",
    recurrence="convgru",
    recurrent_channels=128,
    sessions=("a",),
    units=("a/0",),
)
WINDOW = 33
SMALL = CortexConfig(
    height=20,
    width=20,
    stimulus_mean=127,
    stimulus_std=50,
    temporal_taps=8,
    channels=(8, 16, 16),
    kernels=(7, 5, 3),
    temporal_kernels=(1, 3, 3),
    strides=(2, 1, 1),
    pools=(1, 1, 1),
    sessions=("a",),
    units=tuple(f"a/{i}" for i in range(20)),
)


def best_of(repeats: int, work: Callable[[], None]) -> float:
    """Seconds of one core in the fastest repeat: the processor's own count, as others may use this machine."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def flops(cortex: Cortex, frames: int) -> int:
    """Operations of the features of one clip of so many frames, forwards, counted without computing anything."""
    from torch.utils.flop_counter import FlopCounterMode

    clip = torch.zeros(1, frames, cortex.config.height, cortex.config.width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cortex.features(clip, torch.zeros(1, dtype=torch.int64, device="meta"))
    return counter.get_total_flops()


def count() -> None:
    """Print the operations for each predicted bin at the large shape; with recurrence and without."""
    for config in (LARGE, LARGE.model_copy(update={"recurrence": "none", "recurrent_channels": 0})):
        cortex = Cortex(config).to("meta")
        core = sum(w.numel() for part in (cortex.frontend, cortex.core, cortex.recurrence) for w in part.parameters())
        frames = WINDOW if config.recurrence == "convgru" else cortex.memory + 1
        windowed = flops(cortex, frames)
        print(
            f"51x51, recurrence {config.recurrence}: {core / 1e6:.2f} M weights, features of "
            f"{config.feature_size[0]}x{config.feature_size[1]}, "
            f"{windowed / 1e9:.2f} GFLOP a bin in windows of {frames} frames"
        )
        for bins in (64, 128, 256):
            dense = flops(cortex, bins + frames - 1) / bins
            print(f"  clips of {bins:3} bins: {dense / 1e9:.2f} GFLOP a bin, {windowed / dense:.1f} times fewer")


def race(repeats: int) -> None:
    """Print seconds for the same bins, as a clip and as windows."""
    cortex, bins = Cortex(SMALL), 64
    memory = cortex.memory
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 256, (1, bins + memory, 20, 20), generator=generator).to(torch.uint8)
    windows = clip[0].unfold(0, memory + 1, 1).permute(0, 3, 1, 2).contiguous()
    session, units = torch.zeros(1, dtype=torch.int64), torch.arange(20)[None]

    def step(frames: torch.Tensor) -> None:
        cortex.zero_grad()
        rates = cortex(frames, session.expand(len(frames)), units.expand(len(frames), -1))
        (rates - rates.log()).sum().backward()

    for frames in (clip, windows):
        step(frames)  # the first call makes what later ones reuse
    dense, windowed = best_of(repeats, lambda: step(clip)), best_of(repeats, lambda: step(windows))
    with torch.no_grad():
        at_once = cortex.features(clip, session)[0].transpose(0, 1)
        one_by_one = cortex.features(windows, session.expand(bins))[:, :, 0]
        single = (at_once - one_by_one).abs().max().item()
        cortex.double()
        at_once = cortex.features(clip, session)[0].transpose(0, 1)
        double = (at_once - cortex.features(windows, session.expand(bins))[:, :, 0]).abs().max().item()
    print(
        f"20x20, {bins} bins, {memory + 1} frames seen by each, forward and backward on one core "
        f"({platform.machine()}): clip {1e3 * dense:.0f} ms, windows {1e3 * windowed:.0f} ms, "
        f"{windowed / dense:.1f} times; largest difference of the features {single:.1e} in float32, {double} in float64"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    count()
    race(options.repeats)


if __name__ == "__main__":
    main()
