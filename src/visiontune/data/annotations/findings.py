"""What is wrong with annotations: each finding with its image, its annotation and its fix."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.table import Table
from visiontune.data.faults import Fault

Severity = Literal["error", "drop", "repair", "warning"]
_ORDER: tuple[Severity, ...] = ("error", "drop", "repair", "warning")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, in `file`. `place` says where in it, as people find it.

    `error`: nothing mends it for certain, and training refuses. `drop`: an annotation, image or line that `repair`
    takes out, and counts. `repair`: `repair` mends it; `fix` says how. `warning`: said, and left as it is.
    """

    code: str
    severity: Severity
    file: str
    image_id: int | None
    annotation_id: int | None
    found: str
    fix: str
    place: str = ""

    def to_json(self) -> dict[str, Any]:
        """The finding as plain JSON."""
        return asdict(self)

    def to_fault(self) -> Fault:
        """The finding among the faults of all data. What `repair` would mend is a warning there."""
        severity = "warning" if self.severity == "repair" else self.severity
        return Fault(self.code, severity, ", ".join(filter(None, (self.file, self.place))), self.found, self.fix)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, then by code, image and annotation."""
    return sorted(
        findings,
        key=lambda f: (_ORDER.index(f.severity), f.code, f.file, _number(f.image_id), _number(f.annotation_id)),
    )


def on_annotations(
    table: Table,
    rows: NDArray[np.bool_] | NDArray[np.int64],
    code: str,
    severity: Severity | Callable[[int], Severity],
    found: str | Callable[[int], str],
    fix: str | Callable[[int], str],
) -> list[Finding]:
    """A finding for each of these annotations: rows, or (n,) bool. What differs from row to row is a function of it."""
    listed = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
    image_ids, ids = table.annotations.image_ids, table.annotations.ids
    return [
        Finding(
            code,
            severity(row) if callable(severity) else severity,
            table.name,
            _id(image_ids[row]),
            _id(ids[row]),
            found(row) if callable(found) else found,
            fix(row) if callable(fix) else fix,
            table.annotation_place(row),
        )
        for row in listed.tolist()
    ]


def on_image(table: Table, row: int, code: str, severity: Severity, found: str, fix: str) -> Finding:
    """A finding about one image."""
    number = _id(table.images.ids[row])
    return Finding(code, severity, table.name, number, None, found, fix, table.image_place(row))


def on_file(table: Table, code: str, severity: Severity, found: str, fix: str, place: str = "") -> Finding:
    """A finding about a whole file, about its classes, or about an entry of its lists that `place` names."""
    return Finding(code, severity, table.name, None, None, found, fix, place)


def shown(value: Any, most: int = 60) -> str:
    """A value as people can read it in one line."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def pixels(numbers: Iterable[float]) -> str:
    """Numbers in short: [12, 7.5, 3, 40]."""
    return "[" + ", ".join(f"{number:.6g}" for number in numbers) + "]"


def _id(number: np.int64) -> int | None:
    return None if number < 0 else int(number)


def _number(number: int | None) -> int:
    return -1 if number is None else number
