"""What a source's rows come to: which are usable, which belong together, where each goes, and what is wrong."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from visiontune.data import faults
from visiontune.data.dataset import Index
from visiontune.data.dataset_info import DocumentSummary, ImageSummary, ObjectSummary, Range
from visiontune.data.documents import Rendering, as_shown, document_summary, scan_documents
from visiontune.data.faults import Fault
from visiontune.data.formats.rows import Listing, SourceRow
from visiontune.data.near_duplicates import clusters, connected
from visiontune.data.near_texts import PLACES, text_clusters
from visiontune.data.objects import from_text
from visiontune.data.pages import LEGIBLE_X_HEIGHT, remedy, x_height
from visiontune.data.scan import Mark, scan
from visiontune.data.split import SPLITS, assign, spread
from visiontune.data.stored_rows import content_of
from visiontune.data.turns import Turns
from visiontune.data.workers import Engine
from visiontune.errors import DataError
from visiontune.words import natural


@dataclass(frozen=True)
class Earlier:
    """The splits of a dataset that stands already."""

    indexes: dict[str, Index] = field(default_factory=dict)

    def splits(
        self, rows: Sequence[SourceRow], sha256s: Sequence[list[str]], contents: Sequence[str]
    ) -> dict[str, str]:
        """The split of each content that stands there, or stood under the same id before its text was corrected.

        Of a question about a document the id, the question and the answer do: which part of it is shown may change.
        """
        by_content: dict[str, str] = {}
        by_id: dict[str, tuple[str, int]] = {}
        for split, index in self.indexes.items():
            for i, (row_id, content) in enumerate(zip(index.ids, index.contents, strict=True)):
                by_content[content] = split
                by_id[row_id] = (split, i)
        found = {}
        for row, images, content in zip(rows, sha256s, contents, strict=True):
            if content in by_content:
                found[content] = by_content[content]
            elif stood_as := by_id.get(row.id) or by_id.get(row.own_id):
                split, i = stood_as
                index = self.indexes[split]
                prompt, answer, turns = index.prompts[i], index.answers[i], index.turns[i] if index.turns else ()
                same_question = row.document is not None and row.prompt is not None
                same_question = same_question and (row.prompt, row.answer) == (prompt, answer)
                if same_question or content_of(images, prompt, answer, turns) == index.contents[i]:
                    found[content] = split
        return found


@dataclass(frozen=True)
class Survey:
    """The rows that are usable, with their splits, facts (a table of scan.SCHEMA or documents.SCHEMA) and contents.

    `labels` counts the classes (None for free text), `faults` lists everything found, `stood` counts the rows that an
    earlier dataset held.
    """

    rows: list[SourceRow]
    splits: list[str]
    facts: pa.Table
    contents: list[str]
    labels: dict[str, int] | None
    images: ImageSummary | None
    documents: DocumentSummary | None
    faults: list[Fault]
    stood: int


def usable(listing: Listing, limit: int | None, seed: int) -> Listing:
    """The rows with an answer and an id of their own; of these at most `limit`, spread over the classes."""
    rows, found, seen = [], list(listing.faults), set()
    for row in listing.rows:
        if row.id in seen:
            found.append(faults.duplicate_id(row.id))
        elif not row.answer.strip():
            found.append(faults.empty_answer(row.id))
        else:
            rows.append(row)
        seen.add(row.id)
    if limit is not None:
        if limit < 1:
            raise DataError(f"a limit of {limit} samples leaves nothing", where="--limit", fix="use 1 or more")
        chosen = spread(_strata(rows), [row.id for row in rows], limit, seed)
        rows = [rows[i] for i in chosen]
    return replace(listing, rows=rows, faults=[*found, *_without_question(rows)])


def _without_question(rows: Sequence[SourceRow]) -> Iterator[Fault]:
    """Of each source where some rows ask a question of their own, those that ask none."""
    sources: dict[str, list[SourceRow]] = defaultdict(list)
    for row in rows:
        sources[row.source].append(row)
    for some in sources.values():
        lacking = [row.id for row in some if row.prompt is None]
        if len(lacking) < len(some):
            yield from faults.rows_without_question(lacking, len(some))


def survey(
    listing: Listing,
    marks: Sequence[Mark],
    *,
    seed: int,
    earlier: Earlier,
    workers: int,
    store: Path | None,
    rendering: Rendering | None = None,
    engine: Engine = "processes",
) -> Survey:
    """Look at all images or documents of the (usable) rows and decide about each row.

    `marks` are the fingerprints of rows with images; `rendering` says how documents become pages, None for images.
    """
    found = list(listing.faults)
    if rendering is None:
        facts = scan(listing.rows, marks, workers, store, engine)
        bad = _unreadable_images(listing.rows, facts)
    else:
        facts = scan_documents(listing.rows, rendering, workers, store, seed, engine)
        bad = _unreadable_documents(listing.rows, facts)
    found += bad.values()
    readable = [i for i in range(len(listing.rows)) if i not in bad]
    rows = [listing.rows[i] for i in readable]
    facts = facts.take(pa.array(readable, pa.int64())).combine_chunks()
    if rendering is not None:
        rows = as_shown(rows, facts)
    sha256s = _sha256s(facts)
    contents = [content_of(shas, row.prompt, row.answer, row.turns) for shas, row in zip(sha256s, rows, strict=True)]
    together = _clusters(facts, contents) if rendering is None else _text_clusters(facts)
    known = earlier.splits(rows, sha256s, contents)
    splits = assign(
        contents,
        together.tolist(),
        _strata(rows),
        given=[row.split for row in rows],
        earlier=known,
        seed=seed,
    )

    kept = [i for i, split in enumerate(splits) if split is not None]
    found += [faults.bridges_splits(row.id) for row, split in zip(rows, splits, strict=True) if split is None]
    rows = [rows[i] for i in kept]
    together = together[kept]
    labels = _labels(rows)
    chosen = [split for split in splits if split is not None]
    facts = facts.take(pa.array(kept, pa.int64())).combine_chunks()
    # Two windows of one document are that document.
    whole = _sha256s(facts) if rendering is None else [[sha256] for sha256 in facts["whole"].to_pylist()]
    found += _whole_faults(rows, chosen, whole, together.tolist(), labels)
    if rendering is None:
        found += faults.normalised_images(_changed_images(rows, facts), _values(facts))
        framed = zip(rows, facts["frames"].to_pylist(), strict=True)
        found += faults.several_frames([row.id for row, frames in framed if any(n > 1 for n in frames)])
    else:
        spec, fonts = rendering.spec, rendering.fonts()
        drawn = x_height(spec, fonts), LEGIBLE_X_HEIGHT
        found += faults.illegible_pages(*drawn, "as drawn", remedy(spec, fonts, max(spec.width, spec.height)))
        found += faults.context_window(len(rows) - facts["start"].null_count, rendering.most_pages)
    return Survey(
        rows=rows,
        splits=chosen,
        facts=facts,
        contents=[contents[i] for i in kept],
        labels=labels,
        images=_image_summary(facts) if rendering is None else None,
        documents=None if rendering is None else document_summary(facts),
        faults=faults.ordered(found),
        stood=sum(contents[i] in known for i in kept),
    )


def _unreadable_images(rows: Sequence[SourceRow], facts: pa.Table) -> dict[int, Fault]:
    """The fault of each row with an image that cannot be read."""
    errors = zip(rows, *(facts[name].to_pylist() for name in ("code", "path", "error")), strict=True)
    return {
        i: faults.unreadable_image(code, row.id, path, error)
        for i, (row, code, path, error) in enumerate(errors)
        if error is not None
    }


def _changed_images(rows: Sequence[SourceRow], facts: pa.Table) -> dict[str, list[str]]:
    """Of each way in which images are made upright 8-bit RGB the ids of their rows."""
    found: dict[str, list[str]] = defaultdict(list)
    for row, modes, turns in zip(rows, facts["mode"].to_pylist(), facts["orientation"].to_pylist(), strict=True):
        told = {name for mode in modes if (name := faults.CONVERTED.get(mode))}
        for name in sorted(told | ({"turned as EXIF says"} if any(turn != 1 for turn in turns) else set())):
            found[name].append(row.id)
    return found


def _values(facts: pa.Table) -> tuple[float, float] | None:
    """The smallest and the largest grey value of all images of more than 8 bits, None without any."""
    lowest, highest = (_flat(facts, name).drop_null().to_numpy() for name in ("lowest", "highest"))
    return (float(lowest.min()), float(highest.max())) if len(lowest) else None


def _unreadable_documents(rows: Sequence[SourceRow], facts: pa.Table) -> dict[int, Fault]:
    """The fault of each row with a document that cannot be shown."""
    columns = [facts[name].to_pylist() for name in ("code", "error", "fix")]
    return {
        i: faults.left_out(code, row.id, error, fix)
        for i, (row, code, error, fix) in enumerate(zip(rows, *columns, strict=True))
        if code is not None
    }


def _sha256s(facts: pa.Table) -> list[list[str]]:
    """The hashes of what each row shows: of its images, or of its one document."""
    values = facts["sha256"].to_pylist()
    return [[value] if isinstance(value, str) else value for value in values]


def _image_summary(facts: pa.Table) -> ImageSummary | None:
    return image_summary(*image_sizes(facts), _flat(facts, "bytes").to_numpy(), _flat(facts, "format").to_pylist())


def image_summary(
    widths: np.ndarray, heights: np.ndarray, sizes: np.ndarray, formats: Iterable[str]
) -> ImageSummary | None:
    """Summarise images, None where there are none; widths and heights in pixels, sizes in bytes, all (images,)."""
    if not len(widths):
        return None
    return ImageSummary(
        count=len(widths),
        bytes=int(sizes.sum()),
        formats=dict(sorted(Counter(formats).items())),
        width=Range.of(widths),
        height=Range.of(heights),
    )


def image_sizes(facts: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The widths and the heights of all images of scanned rows, in pixels: (images,), int32."""
    return _flat(facts, "width").to_numpy(), _flat(facts, "height").to_numpy()


def counted(answers: Iterable[str]) -> dict[str, int]:
    """How often each class occurs, in natural order."""
    counts = Counter(answers)
    return {label: counts[label] for label in sorted(counts, key=natural)}


def object_summary(answers: Iterable[str], classes: Sequence[str] | None) -> ObjectSummary | None:
    """What the objects of all rows are, as they are stored; None where the target is a text."""
    return None if classes is None else ObjectSummary.of([from_text(answer, classes) for answer in answers], classes)


def _strata(rows: Sequence[SourceRow]) -> list[str]:
    """The class by which each row is spread over splits: its label, "" for free text; of objects the rarest class that
    the image shows, so that the classes with the fewest images are shared out first (Sechidis et al. 2011)."""
    images = Counter(name for row in rows for name in row.of_classes or ())
    return [
        row.answer if row.is_label else min(row.of_classes or ("",), key=lambda name: (images[name], name))
        for row in rows
    ]


def _labels(rows: Sequence[SourceRow]) -> dict[str, int] | None:
    if not rows or not all(row.is_label for row in rows):
        return None
    return counted(row.answer for row in rows)


def _flat(facts: pa.Table, column: str) -> pa.Array:
    """One entry an image."""
    return facts[column].combine_chunks().flatten()


def _clusters(facts: pa.Table, contents: Sequence[str]) -> np.ndarray:
    """The cluster of each row: rows that share a (near-)duplicate image, or hold the same, belong together. (rows,),
    int64."""
    n = facts.num_rows
    if n == 0:
        return np.zeros(0, np.int64)
    counts = np.array([len(shas) for shas in facts["sha256"]], np.int64)
    row_of_image = np.repeat(np.arange(n), counts)
    thumbnails = np.frombuffer(b"".join(_flat(facts, "thumbnail").to_pylist()), np.uint8).reshape(-1, 16, 16)
    images = clusters(_flat(facts, "sha256").to_pylist(), _flat(facts, "hash").to_numpy(), thumbnails)
    first = {content: i for i, content in reversed(list(enumerate(contents)))}
    same = np.array([[i, first[content]] for i, content in enumerate(contents)]).T
    return connected(n, np.concatenate([np.stack([row_of_image, row_of_image[images]]), same], axis=1))


def _text_clusters(facts: pa.Table) -> np.ndarray:
    """The cluster of each row: rows with (nearly) the same document belong together. (rows,), int64."""
    signatures = np.frombuffer(b"".join(facts["signature"].to_pylist()), np.uint32).reshape(-1, PLACES)
    return text_clusters(facts["whole"].to_pylist(), signatures)


def _whole_faults(
    rows: Sequence[SourceRow],
    splits: Sequence[str],
    sha256s: Sequence[list[str]],
    together: Sequence[int],
    labels: dict[str, int] | None,
) -> list[Fault]:
    if not rows:
        return [faults.nothing_usable()]
    of_documents = rows[0].document is not None
    members: dict[int, list[int]] = defaultdict(list)
    same_seen: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, cluster in enumerate(together):
        members[cluster].append(i)
        same_seen[tuple(sha256s[i])].append(i)

    def ids(groups: Iterable[list[int]]) -> list[list[str]]:
        return [[rows[i].id for i in group] for group in groups]

    alike = [group for group in members.values() if len({tuple(sha256s[i]) for i in group}) > 1]
    leaks = [group for group in members.values() if len({splits[i] for i in group if rows[i].split is not None}) > 1]
    # An image may well have several captions, but only one class, and one answer to one question; a document has one
    # summary.
    asked: dict[tuple[tuple[str, ...], str | None, Turns], list[int]] = defaultdict(list)
    for seen, group in same_seen.items():
        for i in group:
            if seen and (of_documents or rows[i].is_label or rows[i].prompt is not None):
                asked[seen, rows[i].prompt, rows[i].turns].append(i)
    contradictions = ids(group for group in asked.values() if len({rows[i].answer for i in group}) > 1)
    if of_documents:
        same_answer: dict[tuple[tuple[str, ...], str | None, str], list[int]] = defaultdict(list)
        for (seen, prompt, _), group in asked.items():
            for i in group:
                same_answer[seen, prompt, rows[i].answer].append(i)
        found = [
            *faults.duplicate_documents(ids(group for group in same_answer.values() if len(group) > 1)),
            *faults.near_duplicate_documents(ids(alike)),
            *faults.leak_across_splits(ids(leaks), "documents"),
            *faults.different_answers(contradictions, "document"),
        ]
    else:
        # One file with several questions is no copy of itself.
        copies = [group for group in same_seen.values() if len({rows[i].names for i in group}) > 1]
        found = [
            *faults.duplicate_images(ids(copies)),
            *faults.near_duplicate_images(ids(alike)),
            *faults.leak_across_splits(ids(leaks)),
            *faults.different_answers(contradictions),
        ]
    found = [
        *found,
        *faults.no_training_samples({split: splits.count(split) for split in SPLITS}),
    ]
    if labels is not None:
        different: dict[str, set[int]] = {label: set() for label in labels}
        for row, cluster in zip(rows, together, strict=True):
            different[row.answer].add(cluster)
        found += [
            *faults.similar_class_names(labels),
            *faults.small_classes({label: len(clusters_) for label, clusters_ in different.items()}),
            *faults.single_class(list(labels)),
            *faults.imbalanced_classes(labels),
        ]
    return found
