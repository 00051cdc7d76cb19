"""What training really takes, by the allocator's own account: the measure that forecasts are held to."""

from typing import Any

import torch

from visiontune.models.parts import set_training_mode
from visiontune.training import loop
from visiontune.training.batches import load_steps, plan_steps
from visiontune.training.session import Session


def peak_of_steps(session: Session, steps: int) -> int:
    """Bytes that the first steps of a run take at most, by the account of the device's allocator."""
    recipe, module = session.recipe, session.module
    set_training_mode(module, session.adapter.network, session.adapter.parts, recipe.parts)
    on_cuda = session.ranks.device.type == "cuda"
    held = sum(tensor.numel() * tensor.element_size() for tensor in [*module.parameters(), *module.buffers()])
    highest = 0
    plan = plan_steps(session.order, session.lengths, recipe.batch, 0, steps)
    for step, batches in load_steps(plan, session.reading):
        if on_cuda:
            loop._step(session, step, batches)
            highest = max(highest, torch.cuda.max_memory_allocated())
            continue
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
            loop._step(session, step, batches)
        results: Any = profiled.profiler
        events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
        now = held + sum(t.numel() * t.element_size() for _, batch in batches for t in batch.tensors.values())
        for event in sorted(events, key=lambda e: e.start_ns()):
            now += event.nbytes()
            highest = max(highest, now)
        held += sum(event.nbytes() for event in events)
    return highest
