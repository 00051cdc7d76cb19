"""What only a CUDA device can show: precision, the memory receipt, resume. Skipped where there is none."""

from collections.abc import Callable

import pytest
import torch

from visiontune.errors import PausedError
from visiontune.run import Run
from visiontune.training.loop import train_run

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]

Plan = Callable[..., Run]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_cuda_equals_one_on_the_cpu_within_its_precision(plan: Plan, precision: str) -> None:
    cpu = train_run(plan("cpu"))
    gpu = train_run(plan("gpu", {"machine.device": "cuda", "machine.precision": precision, "machine.workers": 1}))
    tolerance = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02}[precision]
    losses = [[entry["loss"] for entry in run.metrics("step")] for run in (cpu, gpu)]
    assert losses[1] == pytest.approx(losses[0], abs=tolerance * max(losses[0]))
    assert all(entry["peak_memory_bytes"] > 0 for entry in gpu.metrics("step"))


def test_a_resumed_run_on_cuda_goes_on_where_it_was(plan: Plan) -> None:
    straight = train_run(plan("straight", {"machine.device": "cuda"}))
    run = plan("paused", {"machine.device": "cuda"})
    run.ask_to_pause()
    with pytest.raises(PausedError):
        train_run(run)
    train_run(run)
    ours, theirs = ([entry["loss"] for entry in r.metrics("step")] for r in (run, straight))
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_weights_in_four_bits_learn_and_rest(plan: Plan) -> None:
    pytest.importorskip("bitsandbytes")
    whole = train_run(plan("whole", {"machine.device": "cuda", "machine.precision": "bf16"}))
    changes = {"machine.device": "cuda", "machine.precision": "bf16", "model.four_bit": ["language_model"]}
    run = train_run(plan("four", changes))
    first, its = (one.metrics("step")[0]["loss"] for one in (run, whole))
    assert first != its and first == pytest.approx(its, rel=0.1)
    statuses = {receipt["name"]: receipt["status"] for receipt in run.receipts}
    assert statuses["frozen stayed frozen"] == statuses["trained moved"] == "passed"
