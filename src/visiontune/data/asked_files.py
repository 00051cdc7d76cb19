"""The files that a trained model is asked about: those that can be read, and what is wrong with the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from visiontune.data.dataset import Index
from visiontune.data.documents import Rendering
from visiontune.data.images import SUFFIXES, TEXT_SUFFIXES, decode_with_facts, image_files
from visiontune.data.pages import lay_out
from visiontune.errors import DataError, PartlyReadError

MOST_NAMED = 20
A = TypeVar("A")


@dataclass(frozen=True)
class AskedFiles:
    """Files in the order in which they are answered, and why others cannot be read.

    `sizes` are the (height, width) of images in pixels, upright; `pages` how many pages a text takes.
    """

    paths: list[Path]
    unreadable: dict[Path, DataError]
    sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)
    pages: dict[Path, int] = field(default_factory=dict)

    def index(self, prompt: str | None) -> Index:
        """The files as rows of which `prompt` is asked, for an encoder to say how long they are."""
        sizes = [self.sizes.get(path) for path in self.paths]
        return Index(
            ids=[str(path) for path in self.paths],
            prompts=[prompt] * len(self.paths),
            answers=[""] * len(self.paths),
            widths=[[] if size is None else [size[1]] for size in sizes],
            heights=[[] if size is None else [size[0]] for size in sizes],
            contents=[""] * len(self.paths),
            pages=[self.pages[path] for path in self.paths if path in self.pages],
        )

    def without(self, refused: Mapping[Path, DataError]) -> "AskedFiles":
        """The same, where these cannot be read either. Raises DataError where none is left."""
        left = [path for path in self.paths if path not in refused]
        rest = AskedFiles(left, {**self.unreadable, **refused}, self.sizes, self.pages)
        if not left and rest.unreadable:
            rest.answered([])
        return rest

    def answered(self, answers: list[A]) -> list[A]:
        """The answers about `paths`; PartlyReadError, which holds them, where there are files that cannot be read."""
        if self.unreadable:
            raise self._error(answers)
        return answers

    def _error(self, answers: Sequence[object]) -> PartlyReadError:
        named = [f"{path}: {error.found}" for path, error in list(self.unreadable.items())[:MOST_NAMED]]
        more = [f"and {len(self.unreadable) - len(named)} more"] if len(self.unreadable) > len(named) else []
        count = len(self.paths) + len(self.unreadable)
        of = "The file" if count == 1 else f"{len(self.unreadable)} of {count} files"
        others = "; the others are answered" if self.paths else ""
        return PartlyReadError(
            f"{of} cannot be read{others}.",
            where="; ".join([*named, *more]),
            fix="; ".join(dict.fromkeys(error.fix for error in self.unreadable.values() if error.fix)) or None,
            answers=answers,
            unreadable={str(path): error.found for path, error in self.unreadable.items()},
        )


def asked_files(
    sources: Sequence[str | Path], limit: int | None = None, rendering: Rendering | None = None
) -> AskedFiles:
    """The first `limit` files of these files and folders: images, or texts where `rendering` makes pages of them.

    Each is read once, before a model is loaded. Raises DataError where a folder holds none, or none can be read.
    """
    suffixes = SUFFIXES if rendering is None else TEXT_SUFFIXES
    listed = [path for source in sources for path in image_files(Path(source), suffixes)][:limit]
    asked = AskedFiles(listed, {})
    refused: dict[Path, DataError] = {}
    for path in dict.fromkeys(listed):
        try:
            if rendering is None:
                facts, _ = decode_with_facts(path.read_bytes())
                asked.sizes[path] = facts.height, facts.width
            else:
                asked.pages[path] = _pages(read_document(path), rendering)
        except OSError as error:
            refused[path] = DataError(error.strerror or str(error), fix="check whether you may read it")
        except DataError as error:
            refused[path] = error
    return asked.without(refused)


def _pages(text: str, rendering: Rendering) -> int:
    """How many pages a text takes; DataError where it cannot be laid out."""
    fonts = rendering.fonts()
    try:
        return len(lay_out(text, rendering.spec, fonts))
    except DataError as error:
        # The fonts of a run stand: the fix of a preparation, another font, is none here.
        fix = "ask about texts in the scripts that the run was trained on: its pages and fonts stand"
        raise DataError(error.found, fix=fix) from error


def read_document(path: Path) -> str:
    """The text of a file; DataError where it is not in UTF-8, or nothing but blanks."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"this is no text in UTF-8: {error.reason} at byte {error.start}",
            where=str(path),
            fix="save it as UTF-8, or give a text file: the run was trained on documents",
        ) from error
    if not text.strip():
        raise DataError(
            "the file is empty" if not text else "there are only blanks in it",
            where=str(path),
            fix="give a file with a text in it",
        )
    return text
