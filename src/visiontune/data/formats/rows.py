"""What every format's reader yields: plain rows and what is wrong with the files."""

from dataclasses import dataclass, field
from typing import Literal

from visiontune.data.annotations.changes import Change
from visiontune.data.faults import Fault
from visiontune.data.image_places import ImagePlace
from visiontune.data.turns import Turns


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One sample as its author wrote it. `is_label`: the answer is a class name of a closed set.

    `images` are the places of the images, and `names` their paths for people: relative to the source, with forward
    slashes. `turns` are those of `sample.Text`. `document` is the text
    that is seen instead of images. Where objects are the target, `answer` holds them (`objects.to_text`), and
    `of_classes` the names of their classes, each once. `source` names the one of several sources that the row is from:
    the id starts with it; with one source it is empty.
    """

    id: str
    images: tuple[ImagePlace, ...]
    names: tuple[str, ...]
    prompt: str | None
    answer: str
    is_label: bool
    split: str | None
    document: str | None = None
    source: str = ""
    of_classes: tuple[str, ...] | None = None
    turns: Turns = ()

    @property
    def own_id(self) -> str:
        """The id that the row has in its source, whatever other sources are prepared with it."""
        return self.id.removeprefix(f"{self.source}/") if self.source else self.id


class RowError(Exception):
    """Why a row cannot be taken: the code of a fault and what was found."""

    def __init__(self, code: str, found: str) -> None:
        super().__init__(found)
        self.code = code
        self.found = found


@dataclass(frozen=True)
class Listing:
    """All rows of a source, of one kind, sorted by id, and the faults that were seen while listing them.

    Of objects: `classes` are the names of the classes in order, `changes` what mending takes, and `unmended` counts by
    code the findings that nobody agreed to mend.
    """

    format: str
    rows: list[SourceRow]
    faults: list[Fault] = field(default_factory=list)
    seen: Literal["images", "documents"] = "images"
    classes: tuple[str, ...] | None = None
    changes: list[Change] = field(default_factory=list)
    unmended: dict[str, int] = field(default_factory=dict)
