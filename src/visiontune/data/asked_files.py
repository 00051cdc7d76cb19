"""The files that a trained model is asked about: those that can be read, and what is wrong with the others."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from visiontune.data.images import SUFFIXES, decode, image_files
from visiontune.errors import DataError, PartlyReadError

MOST_NAMED = 20
A = TypeVar("A")


@dataclass(frozen=True)
class AskedFiles:
    """Files in the order in which they are answered, and why others cannot be read."""

    paths: list[Path]
    unreadable: dict[Path, DataError]

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
            fix=next(iter(self.unreadable.values())).fix,
            answers=answers,
            unreadable={str(path): error.found for path, error in self.unreadable.items()},
        )


def asked_files(
    sources: Sequence[str | Path], suffixes: Collection[str] = SUFFIXES, limit: int | None = None
) -> AskedFiles:
    """The first `limit` files of these files and folders: images, or texts where `suffixes` are those of texts.

    Each is read once, before a model is loaded. Raises DataError where a folder holds none, or none can be read.
    """
    listed = [path for source in sources for path in image_files(Path(source), suffixes)][:limit]
    asked = AskedFiles([], {})
    for path in dict.fromkeys(listed):
        try:
            if suffixes is SUFFIXES:
                decode(path.read_bytes())
            else:
                read_document(path)
        except OSError as error:
            asked.unreadable[path] = DataError(error.strerror or str(error), fix="check whether you may read it")
        except DataError as error:
            asked.unreadable[path] = error
    asked.paths.extend(path for path in listed if path not in asked.unreadable)
    if not asked.paths and asked.unreadable:
        asked.answered([])
    return asked


def read_document(path: Path) -> str:
    """The text of a file; DataError where it is not in UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"this is no text in UTF-8: {error.reason} at byte {error.start}",
            where=str(path),
            fix="save it as UTF-8, or give a text file: the run was trained on documents",
        ) from error
