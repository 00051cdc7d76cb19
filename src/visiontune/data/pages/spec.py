"""PageSpec: everything that decides how a text becomes pages."""

# pyright: reportAttributeAccessIssue=false
# uharfbuzz takes its names from a compiled module that has no types.

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Self

import uharfbuzz as hb
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from visiontune.data.pages.fonts import FontRef, Fonts
from visiontune.data.pages.properties import unicode_version
from visiontune.errors import DataError

LAYOUT_VERSION = 1  # raise it with every change that moves a pixel


Pixels = Annotated[int, Field(ge=0)]


def engine() -> dict[str, str]:
    """The versions that pixels depend on beside the spec: record them, since another HarfBuzz may move an edge."""
    return {"layout": str(LAYOUT_VERSION), "harfbuzz": hb.version_string(), "unicode": unicode_version()}


class PageSpec(BaseModel):
    """How text is laid out; lengths are pixels. `margins` are top, right, bottom, left.

    `line_spacing` is the distance of baselines and `paragraph_spacing` the height of an empty line, in font sizes and
    in lines. `fonts` are in order of fallback; `code_font` is the place among them of the one for code in Markdown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Annotated[int, Field(ge=32, le=16384)] = 1024
    height: Annotated[int, Field(ge=32, le=16384)] = 1024
    margins: tuple[Pixels, Pixels, Pixels, Pixels] = (32, 32, 32, 32)
    font_size: Annotated[int, Field(ge=4, le=512)] = 20
    line_spacing: Annotated[float, Field(ge=0.8, le=4)] = 1.25
    paragraph_spacing: Annotated[float, Field(ge=0, le=4)] = 0.6
    tab_spaces: Annotated[int, Field(ge=1, le=32)] = 4
    fonts: Annotated[tuple[FontRef, ...], Field(min_length=1)]
    markdown: bool = False
    code_font: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        width, height = self.room
        if width < 2 * self.font_size or height < 2 * self.font_size:
            raise ValueError(
                f"margins of {self.margins} leave {width} x {height} pixels of a page of {self.width} x {self.height}; "
                f"a font size of {self.font_size} needs at least {2 * self.font_size} each way"
            )
        if self.code_font is not None and self.code_font >= len(self.fonts):
            raise ValueError(f"code_font is {self.code_font}, and there are {len(self.fonts)} fonts")
        return self

    @property
    def room(self) -> tuple[int, int]:
        """(width, height) in pixels inside the margins."""
        top, right, bottom, left = self.margins
        return self.width - left - right, self.height - top - bottom

    @property
    def hash(self) -> str:
        """A SHA-256 over all fields and the layout version; of the fonts their contents count, not their names."""
        fields = self.model_dump(mode="json")
        fields["fonts"] = [(font.sha256, font.face) for font in self.fonts]
        fields["layout_version"] = LAYOUT_VERSION
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def with_changes(self, fields: Mapping[str, object]) -> "PageSpec":
        """The same spec with other values in some fields; DataError for a field or a value that no spec has."""
        try:
            return PageSpec(**{**self.model_dump(), **fields})  # pyright: ignore[reportArgumentType]  # checked by it
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise DataError(
                f"pages cannot be laid out so: {first['msg'].removeprefix('Value error, ')}",
                where=f"{name} = {first['input']}" if name else "the page spec",
                fix="use a larger page or a smaller font"
                if not name
                else f"fields: {', '.join(PageSpec.model_fields)}",
            ) from error

    def check(self, fonts: Fonts) -> None:
        """Raise DataError unless the loaded fonts are the ones that the spec names."""
        wanted = [(font.sha256, font.face) for font in self.fonts]
        given = [(font.sha256, font.face) for font in fonts.refs]
        if wanted != given:
            names = ", ".join(f"{font.name} ({font.sha256[:12]})" for font in self.fonts)
            other = ", ".join(f"{font.name} ({font.sha256[:12]})" for font in fonts.refs)
            raise DataError(
                f"The fonts are not those of the page spec: {other}.", fix=f"load these, in this order: {names}"
            )
