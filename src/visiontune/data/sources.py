"""Several sources as one: each with a name of its own, the rows of all under ids that say where they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from visiontune.data import formats
from visiontune.data.format_names import Format
from visiontune.data.formats.rows import Listing, SourceRow
from visiontune.errors import DataError


@dataclass(frozen=True)
class Source:
    """A folder or file to read, and the names of its columns where the user gave some.

    `called` is what people call it, such as the name of a corpus; else it is called as its file or folder is.
    `format`: read it as that. `hub` names the dataset of the hub that was fetched there, with its commit.
    """

    path: Path
    columns: Mapping[str, str] | None = None
    called: str | None = None
    repair: bool = False
    format: Format | None = None
    hub: str | None = None


def names(sources: Sequence[Source]) -> list[str]:
    """A name for each source: that of its file or folder, with as many folders above it as tell it from the others.

    Raises DataError where there is no source, or one is given twice.
    """
    if not sources:
        raise DataError("no data were given", fix="visiontune prepare DATA --out FOLDER")
    parts = [source.path.resolve().parts for source in sources]
    if twice := [source for source, own in zip(sources, parts, strict=True) if parts.count(own) > 1]:
        raise DataError("this source was given twice", where=str(twice[0].path), fix="give it once")
    found = [source.called or own[-1] for source, own in zip(sources, parts, strict=True)]
    depth = 1
    while len(set(found)) < len(found):
        depth += 1
        again = {name for name in found if found.count(name) > 1}
        found = ["/".join(own[-depth:]) if name in again else name for name, own in zip(found, parts, strict=True)]
    return found


def read(sources: Sequence[Source]) -> Listing:
    """The rows of all sources as one listing; in which order the sources are given does not matter.

    With more than one, a row's id, its images' names and the places of faults start with the source's name. Raises
    DataError where a source cannot be read or gives no row, and where some are images and others texts.
    """
    listings = {
        name: (source, formats.read(source.path, source.columns, source.repair, source.format))
        for name, source in sorted(zip(names(sources), sources, strict=True), key=lambda pair: pair[0])
    }
    if len(listings) == 1:
        ((_, listing),) = listings.values()
        return listing
    for source, listing in listings.values():
        if not listing.rows:
            first = listing.faults[0] if listing.faults else None
            raise DataError(
                "this source gives no row" + (f": {first.where}: {first.found}" if first else ""),
                where=str(source.path),
                fix=first.fix if first else "add rows, or leave the source out",
            )
    if any(listing.classes is not None for _, listing in listings.values()):
        raise DataError(
            "boxes and masks are prepared from one source at a time",
            where=", ".join(str(source.path) for source, _ in listings.values()),
            fix="merge the annotation files, or prepare each into a folder of its own and name them all to train",
        )
    seen = {listing.seen: source for source, listing in listings.values()}
    if len(seen) > 1:
        raise DataError(
            "some of the sources are images, others are texts",
            where=f"{seen['images'].path}; {seen['documents'].path}",
            fix="prepare them apart, each kind into a folder of its own",
        )
    rows = [_row_of(name, row) for name, (_, listing) in listings.items() for row in listing.rows]
    faults = [
        replace(fault, where=f"{name}: {fault.where}")
        for name, (_, listing) in listings.items()
        for fault in listing.faults
    ]
    return Listing(
        format=", ".join(sorted({listing.format for _, listing in listings.values()})),
        rows=sorted(rows, key=lambda row: row.id),
        faults=faults,
        seen=next(listing.seen for _, listing in listings.values()),
    )


def _row_of(name: str, row: SourceRow) -> SourceRow:
    shown = tuple(f"{name}/{path}" for path in row.names)
    return replace(row, id=f"{name}/{row.id}", names=shown, source=name)
