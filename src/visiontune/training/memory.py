"""Memory of a training step: how much it will take, worked out before the first one, and whether it ran out."""

import torch

from visiontune.models.adapter import Batch, ModelAdapter
from visiontune.recipe import Machine
from visiontune.training.precision import autocast

# What the CPU allocator and the MPS backend of torch say in a RuntimeError.
OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory")


def ran_out(error: RuntimeError) -> bool:
    """Whether torch says that a device's memory is used up; only CUDA has an exception of its own for it."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in said for words in OUT_OF_MEMORY)


def predicted_peak(adapter: ModelAdapter, largest: Batch, machine: Machine, device: torch.device) -> int:
    """Bytes: weights, gradients and two moments of what is trained, and what a forward of the largest batch keeps.

    What the forward keeps for the backward is counted by letting it run once, each storage once; the largest of
    them counts twice more, for the gradients that are under way with it.
    """
    module = adapter.trained_module
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in module.parameters()}
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = largest.to(device)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        autocast(device, machine.precision),
    ):
        losses = adapter.losses(batch)
    inputs = sum(tensor.numel() * tensor.element_size() for tensor in batch.tensors.values())
    del losses
    return sum(weights.values()) + 3 * trained + sum(kept.values()) + 2 * max(kept.values(), default=0) + inputs
