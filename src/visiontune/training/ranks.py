"""The processes of a run: which one this is, its device, and what they agree on. Built on Accelerate."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

# How long ranks wait for each other. The first one prepares data, and lets a teacher label them, while the others wait:
# that takes hours, and NCCL's own limit is ten minutes, gloo's thirty. A rank that ends is still noticed at once, by
# torchrun, which stops the others, and by gloo, whose connection breaks; only one that hangs is waited for longer.
LONGEST_WAIT = timedelta(days=1)
BUCKET_NUMBERS = 1 << 24  # gradients are summed over ranks in pieces of about 64 MB


class Ranks:
    """The ranks of a run, as launched by torchrun or `accelerate launch`; a plain process is the only rank."""

    def __init__(self, device: str) -> None:
        patient = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
        self._accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[patient])
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Return once every rank is here."""
        self._accelerator.wait_for_everyone()

    def total(self, values: list[float]) -> list[float]:
        """The sums of numbers over the ranks, in float64."""
        if self.count == 1:
            return values
        # MPS has no float64, but there is only one rank there.
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        return self._accelerator.reduce(tensor, "sum").tolist()  # pyright: ignore[reportAttributeAccessIssue]

    def any(self, flag: bool) -> bool:
        """Whether the flag is raised on any rank."""
        return self.total([float(flag)])[0] > 0

    def gathered(self, values: list[Any]) -> list[Any]:
        """The lists of all ranks, one after the other, on every rank."""
        return values if self.count == 1 else gather_object(values)

    def from_first(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        return value if self.count == 1 else broadcast_object_list([value])[0]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum gradients over the ranks, in place; a rank without one contributes zeros."""
        if self.count == 1:
            return
        bucket: list[torch.nn.Parameter] = []
        size = 0
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter)
            size += parameter.numel()
            if size >= BUCKET_NUMBERS:
                self._sum_bucket(bucket)
                bucket, size = [], 0
        if bucket:
            self._sum_bucket(bucket)

    def _sum_bucket(self, bucket: list[torch.nn.Parameter]) -> None:
        gradients = [p.grad for p in bucket if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        summed = self._accelerator.reduce(flat, "sum")
        for gradient, piece in zip(gradients, summed.split([g.numel() for g in gradients]), strict=True):  # pyright: ignore[reportAttributeAccessIssue]
            gradient.copy_(piece.view_as(gradient))
