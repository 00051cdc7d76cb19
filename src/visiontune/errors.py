"""The errors a user may meet. Each says what was found, where, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


class VisiontuneError(Exception):
    """An error with its place and its fix; the command line prints these three parts instead of a traceback.

    `found` is one sentence about what is wrong, `where` the file, row or field, `fix` what the user can type or change.
    """

    exit_code = 1

    def __init__(self, found: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.found = found
        self.where = where
        self.fix = fix
        super().__init__(found)

    def __str__(self) -> str:
        parts = [self.found]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.fix:
            parts.append(f"  fix:   {self.fix}")
        return "\n".join(parts)


class DataError(VisiontuneError):
    """The user's data cannot be used as they are."""


class PartlyReadError(DataError):
    """Some of the files that a model was asked about cannot be read.

    `answers` are those about the others, `unreadable` says of each file what is wrong with it.
    """

    def __init__(
        self, found: str, *, where: str, fix: str | None, answers: Sequence[Any], unreadable: Mapping[str, str]
    ) -> None:
        super().__init__(found, where=where, fix=fix)
        self.answers = list(answers)
        self.unreadable = dict(unreadable)


class RecipeError(VisiontuneError):
    """A recipe, or an option that changes one, is not valid."""


class RunError(VisiontuneError):
    """A run folder is not in the state that the command needs."""


class ModelError(VisiontuneError):
    """A model cannot be loaded, or is not of a kind that visiontune trains."""


class MachineError(VisiontuneError):
    """This machine lacks what was asked for: a device, memory, disk space, a package."""


class ReceiptError(VisiontuneError):
    """A receipt failed: the run did not train what it says."""


class CertificateError(VisiontuneError):
    """An exported model is not the model that was trained, or is no longer the one that was certified."""

    exit_code = 4


class RequirementError(VisiontuneError):
    """A `--require` condition does not hold."""

    exit_code = 3


class PausedError(VisiontuneError):
    """The run was asked to pause; it wrote a checkpoint. Exit code 75, as sysexits.h's EX_TEMPFAIL."""

    exit_code = 75
