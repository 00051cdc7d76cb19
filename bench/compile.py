"""A training step of the network for responses by torch.compile with static shapes, beside the same uncompiled.

Clips of sessions with different numbers of units follow each other. Batches are filled up to the largest number of
units, as static shapes call for, so that one compilation of each direction serves all; without that, each number of
units that a batch holds at most brings its own. Prints compilations, steps a second and the largest difference of a
gradient.

    python bench/compile.py [--steps 30] [--device cpu]
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from visiontune.models.cortex_network import Cortex, CortexConfig

UNITS = (100, 80, 120, 95)  # of each session
CLIPS, BINS, SIDE = 8, 32, 24
CONFIG = CortexConfig(
    height=SIDE,
    width=SIDE,
    stimulus_mean=127,
    stimulus_std=50,
    temporal_taps=12,
    temporal_channels=4,
    channels=(64, 64),
    kernels=(11, 3),
    temporal_kernels=(1, 1),
    strides=(2, 1),
    pools=(1, 1),
    modulation="film",
    behaviour=2,
    recurrence="none",
    recurrent_channels=0,
    sessions=tuple(f"s{number}" for number in range(len(UNITS))),
    units=tuple(f"s{number}/{unit}" for number, units in enumerate(UNITS) for unit in range(units)),
)
Batch = tuple[Tensor, Tensor, Tensor, Tensor]
Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def batches(count: int, memory: int, fill_up: bool, device: str) -> list[Batch]:
    """Frames, sessions, units and behaviour of clips of which each batch holds some sessions, drawn anew."""
    generator = torch.Generator().manual_seed(0)
    firsts = [sum(UNITS[:number]) for number in range(len(UNITS))]
    made = []
    for _ in range(count):
        sessions = torch.randint(len(UNITS), (CLIPS,), generator=generator)
        most = max(UNITS) if fill_up else max(UNITS[number] for number in sessions.tolist())
        units = torch.zeros(CLIPS, most, dtype=torch.int64)
        for row, number in enumerate(sessions.tolist()):
            units[row, : UNITS[number]] = firsts[number] + torch.arange(UNITS[number])
        frames = torch.randint(256, (CLIPS, memory + BINS, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        behaviour = torch.randn(CLIPS, memory + BINS, 2, generator=generator)
        made.append((frames.to(device), sessions.to(device), units.to(device), behaviour.to(device)))
    return made


def step(network: Network, batch: Batch) -> None:
    network(*batch).mean().backward()


def speed(network: Network, given: list[Batch], device: str) -> float:
    """Steps a second after a first one."""
    step(network, given[0])
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for batch in given:
        step(network, batch)
    if device != "cpu":
        torch.cuda.synchronize()
    return len(given) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    cortex = Cortex(CONFIG).to(arguments.device)
    print(f"{CLIPS} clips of {BINS} bins, {SIDE} x {SIDE} px, sessions of {UNITS} units; {torch.get_num_threads()} "
          f"threads, {arguments.device}", flush=True)  # fmt: skip
    for fill_up in (True, False):
        given = batches(arguments.steps, cortex.memory, fill_up, arguments.device)
        plain = speed(cortex, given, arguments.device)
        cortex.zero_grad()
        step(cortex, given[0])
        expected = {name: one.grad.clone() for name, one in cortex.named_parameters() if one.grad is not None}
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("inductor")
        compiled: Network = torch.compile(cortex, backend=counter, dynamic=False)
        started = time.perf_counter()
        for batch in given:
            step(compiled, batch)
        compiling = time.perf_counter() - started - arguments.steps / plain
        fast = speed(compiled, given, arguments.device)
        cortex.zero_grad()
        step(compiled, given[0])
        apart = max(
            float((one.grad - expected[name]).abs().max() / expected[name].abs().max().clamp_min(1e-12))
            for name, one in cortex.named_parameters()
            if one.grad is not None
        )
        shapes = "filled up to one shape" if fill_up else "as large as each batch needs"
        print(f"{shapes}: {counter.frame_count} graphs compiled, about {compiling:.0f} s; {fast:.1f} steps/s, "
              f"uncompiled {plain:.1f}, {fast / plain:.2f}x; gradients differ by {apart:.1e}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
