"""Memory of a training step: how much it will take, worked out before the first one, and whether it ran out."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from visiontune.models.adapter import Batch, ModelAdapter
from visiontune.recipe_sections import Machine
from visiontune.training.precision import autocast

# What the CPU allocator and the MPS backend of torch say in a RuntimeError.
OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory")


def ran_out(error: RuntimeError) -> bool:
    """Whether torch says that a device's memory is used up; only CUDA has an exception of its own for it."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in said for words in OUT_OF_MEMORY)


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all tensors that live: those given, and whatever operations make while it is entered.

    `now` and `peak` are bytes. A storage counts once, however many tensors look into it, until nobody holds it. What a
    kernel uses inside itself is not seen.
    """

    def __init__(self, given: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in given:
            self._count(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):  # as most operations make; it spares a search for tensors
            self._count(made)
        else:
            tree_map_only(torch.Tensor, self._count, made)
        return made

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place not in self._alive:
            self._alive[place] = weakref.ref(storage, lambda _: self._gone(place, size))
            self.now += size
            self.peak = max(self.peak, self.now)
        return tensor

    def _gone(self, place: int, size: int) -> None:
        del self._alive[place]
        self.now -= size


def predicted_peak(
    adapter: ModelAdapter, largest: Batch, machine: Machine, device: torch.device, *, several: bool
) -> int:
    """Bytes that a step takes at most, from a forward and backward of its largest micro-batch, whose gradients are
    thrown away; to what lives then come the two moments of each trained weight.

    `several`: steps have more than one micro-batch, so that gradients live already when the largest one runs.
    """
    parameters = list(adapter.trained_module.parameters())
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    trained = sum(p.numel() * p.element_size() for p in learning)
    batch = largest.to(device)
    live = LiveBytes([*parameters, *adapter.trained_module.buffers(), *batch.tensors.values()])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), live:
        for parameter in learning if several else ():
            parameter.grad = torch.zeros_like(parameter)
        with autocast(device, machine.precision):
            loss = torch.stack([losses.sum() for losses in adapter.losses(batch).values()]).sum()
        if loss.requires_grad:
            loss.backward()
    for parameter in learning:  # a gradient of a frozen weight stays: a receipt looks for it
        parameter.grad = None
    return live.peak + 2 * trained
