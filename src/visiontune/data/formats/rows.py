"""What every format's reader yields: plain rows and what is wrong with the files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from visiontune.data.faults import Fault


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One sample as its author wrote it. `is_label`: the answer is a class name of a closed set.

    `names` are the paths of the images for people: relative to the source, with forward slashes. `document` is the text
    that is seen instead of images. `source` names the one of several sources that the row is from: the id starts with
    it; with one source it is empty.
    """

    id: str
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    prompt: str | None
    answer: str
    is_label: bool
    split: str | None
    document: str | None = None
    source: str = ""

    @property
    def own_id(self) -> str:
        """The id that the row has in its source, whatever other sources are prepared with it."""
        return self.id.removeprefix(f"{self.source}/") if self.source else self.id


@dataclass(frozen=True)
class Listing:
    """All rows of a source, of one kind, sorted by id, and the faults that were seen while listing them."""

    format: str
    rows: list[SourceRow]
    faults: list[Fault] = field(default_factory=list)
    seen: Literal["images", "documents"] = "images"
