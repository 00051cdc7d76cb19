"""What is wrong with the data: one small function a fault, each with its place and its fix."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal
from unicodedata import normalize

from visiontune.words import counted, natural

Severity = Literal["error", "drop", "warning"]

SPLITTABLE = 3
IMBALANCE = 20  # times as many samples in one class as in another
DEEP = "of more than 8 bits"
# Modes of Pillow that are not what models are shown, and what they are called.
CONVERTED = {
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "LAB": "Lab",
    "P": "with a palette",
    "PA": "with a palette",
    "LA": "with transparency",
    "RGBA": "with transparency",
    "La": "with transparency",
    "RGBa": "with transparency",
    "I": DEEP,
    "F": DEEP,
    **{f"I;16{order}": DEEP for order in ("", "B", "L", "N")},
}
_SHOWN = 5
_ORDER = ("error", "drop", "warning")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `error`: training refuses; `drop`: the row is left out, and counted; `warning`: said."""

    code: str
    severity: Severity
    where: str
    found: str
    fix: str

    def to_json(self) -> dict[str, str]:
        """The fault as plain JSON."""
        return asdict(self)


def ordered(faults: Iterable[Fault]) -> list[Fault]:
    """The worst first, then by code and place: line 2 before line 10."""
    return sorted(faults, key=lambda fault: (_ORDER.index(fault.severity), fault.code, natural(fault.where)))


# Rows that are left out. `left_out` makes the fault from what dataset.json keeps: the row, the code and what was found.

_FIXES = {
    "unreadable-image": "repair the file, or take it out",
    "empty-file": "copy the file again, or take it out",
    "unknown-format": "save it as JPEG, PNG, WebP, BMP, TIFF or GIF, or take it out",
    "image-too-large": "make it smaller, or take it out",
    "broken-line": "correct the line",
    "no-class-folder": "move it into the folder of its class, or take it out",
    "missing-file": "add the file, or take out what points to it",
    "outside-folder": "copy the file into the folder",
    "empty-answer": "write the answer, or take the row out",
    "empty-document": "give the row its text, or take it out",
    "unknown-role": "name the speakers user and assistant",
    "unknown-content": "keep text and images, or take the row out",
    "turns-out-of-order": "let questions and answers take turns, after at most one system message",
    "empty-question": "write the question, or take the row out",
    "misplaced-image": "show images in questions alone",
    "placeholders-do-not-match": "write one <image> (or one entry of type image) for each image of the row",
    "image-inside": "write the table as .jsonl or .parquet, or the image as a file beside it",
    "remote-image": "download the image, and write the path of the file",
    "not-a-text": "write one text in this column, or name another column",
    "missing-glyphs": "add a font that has these characters",
    "too-many-pages": "allow more pages (--max-pages), use larger pages or a smaller font, or take the row out",
    "unreadable-document": "clean the text, or take the row out",
    "duplicate-id": "give each row an id of its own",
    "bridges-splits": "take it out, or prepare everything anew into another folder",
}


LEFT_OUT = frozenset(_FIXES)
# Of data with objects, those of whole images; a broken line there is one object.
OF_IMAGES = (LEFT_OUT - {"broken-line"}) | {
    "broken-file",
    "missing-image-file",
    "image-with-errors",
    "lost-all-objects",
}


def left_out(code: str, where: str, found: str, fix: str | None = None) -> Fault:
    """A row that cannot be taken, by the code of its fault; a duplicate id is an error, all else a dropped row."""
    return Fault(code, "error" if code == "duplicate-id" else "drop", where, found, fix or _FIXES[code])


def row_left_out(code: str, file: str, number: int, found: str) -> Fault:
    """A row of a table that cannot be taken; JSON and Parquet have rows, other files lines."""
    place = f"{'row' if file.lower().endswith(('.json', '.parquet')) else 'line'} {number}"
    return left_out(code, f"{file}, {place}", found, f"correct {place} of {file}" if code == "broken-line" else None)


def unreadable_image(code: str, row_id: str, path: str, reason: str) -> Fault:
    """An image that cannot be decoded; `code` is that of `images.ImageError`."""
    return left_out(code, row_id, reason if path == row_id else f"{path}: {reason}")


def broken_line(file: str, line: int, reason: str) -> Fault:
    """A line of a metadata file that does not say what it must."""
    return left_out("broken-line", f"{file}, line {line}", reason, "correct the line in the metadata file")


def missing_file(where: str, path: str) -> Fault:
    """A path that leads nowhere."""
    return left_out("missing-file", where, f"there is no file {path}")


def outside_folder(where: str, path: str) -> Fault:
    """A path or a link that leads out of the data's folder."""
    return left_out("outside-folder", where, f"{path} leads to no file inside the folder of the data")


def empty_answer(row_id: str) -> Fault:
    """A row whose answer is empty."""
    return left_out("empty-answer", row_id, "the answer is empty")


def duplicate_id(row_id: str) -> Fault:
    """A second row with an id that an earlier row has."""
    return left_out("duplicate-id", row_id, f"the id {row_id!r} was given to more than one row; the first is kept")


def bridges_splits(row_id: str) -> Fault:
    """A row whose duplicates stand in two splits already."""
    return left_out("bridges-splits", row_id, "it is a (near-)duplicate of samples that stand in two different splits")


# What is said about the whole; nothing is left out.


def no_training_samples(splits: Mapping[str, int]) -> list[Fault]:
    """All samples were given to other splits."""
    if splits["train"]:
        return []
    found = f"the train split is empty: {', '.join(f'{split} {count}' for split, count in splits.items())}"
    return [
        Fault("no-training-samples", "error", "train", found, "add a train folder, or leave the split to visiontune")
    ]


def nothing_usable() -> Fault:
    """Not one sample can be used."""
    found = "no sample can be used, so that nothing would be trained"
    return Fault("nothing-usable", "error", "all samples", found, "mend what is named besides, or give other data")


def no_label(paths: Sequence[str], why: str) -> list[Fault]:
    """Images that nothing says anything about."""
    if not paths:
        return []
    found = f"{_number(paths, 'image')} without a label: {why}"
    return [Fault("no-label", "warning", some(paths), found, "label them, or take them out")]


def stray_files(paths: Sequence[str]) -> list[Fault]:
    """Files that are no images and no metadata."""
    if not paths:
        return []
    return [
        Fault(
            "stray-files",
            "warning",
            some(paths),
            f"{_number(paths, 'file')} of a kind that is not read",
            "convert them if they are images; take them out otherwise",
        )
    ]


def empty_table(file: str) -> Fault:
    """A table without rows."""
    return Fault("empty-table", "warning", file, "there are no rows in this file", "add rows, or take the file out")


def unknown_columns(file: str, columns: Sequence[str], known: Sequence[str]) -> list[Fault]:
    """Columns of a metadata file that nothing reads."""
    if not columns:
        return []
    found = f"unknown columns, not read: {', '.join(column or 'those without a name' for column in columns)}"
    return [Fault("unknown-columns", "warning", file, found, f"the columns that are read: {', '.join(known)}")]


def longer_than_the_model_reads(ids: Sequence[str], limit: int, model: str) -> list[Fault]:
    """Samples whose question and images leave no room for an answer: training refuses them."""
    if not ids:
        return []
    found = f"{_number(ids, 'question')} of more than the {limit} tokens that {model} reads, images included"
    fix = "give these samples fewer images or less text, or lower data.image_longest_edge"
    return [Fault("longer-than-the-model-reads", "error", some(ids), found, fix)]


def shortened_answers(ids: Sequence[str], limit: int) -> list[Fault]:
    """Answers whose end will not be learned."""
    if not ids:
        return []
    found = f"{_number(ids, 'answer')} reaching beyond the {limit} tokens that the model reads: the rest is not learned"
    return [Fault("shortened-answers", "warning", some(ids), found, "shorten the answers, or show fewer images")]


def mixed_types(file: str, kinds: Mapping[str, Mapping[str, int]]) -> list[Fault]:
    """Columns that hold texts in some rows and something else in others. `kinds`: of each column, rows by kind."""
    return [
        Fault(
            "mixed-types",
            "warning",
            f"{file}, column {column}",
            ", ".join(
                f"{kind} in {counted(count, 'row')}" for kind, count in sorted(counts.items(), key=lambda one: -one[1])
            ),
            "write one type in every row: numbers are taken as they are printed, and other rows left out",
        )
        for column, counts in kinds.items()
        if len(counts) > 1
    ]


def placed_images(ids: Sequence[str]) -> list[Fault]:
    """Conversations that do not say where their images stand."""
    if not ids:
        return []
    found = f"{_number(ids, 'conversation')} without a place for the images: they stand before the first question"
    return [Fault("places-not-written", "warning", some(ids), found, "write <image> where each image belongs")]


def rows_without_image(ids: Sequence[str], rows: int) -> list[Fault]:
    """Rows whose cell for the image is empty, in a table of `rows` of which others show one."""
    if not ids:
        return []
    found = f"{len(ids)} of {counted(rows, 'row')} without an image: they are asked about nothing that is seen"
    fix = "name their images, or take them out; write an empty list where none is meant"
    return [Fault("rows-without-image", "warning", some(ids), found, fix)]


def rows_without_question(ids: Sequence[str], rows: int) -> list[Fault]:
    """Rows that ask nothing of their own, in a source of `rows` of which others do."""
    if not ids:
        return []
    found = f"{len(ids)} of {counted(rows, 'row')} without a question: they are asked the run's own, the others theirs"
    return [Fault("rows-without-question", "warning", some(ids), found, "write their questions, or take them out")]


def similar_class_names(labels: Iterable[str]) -> list[Fault]:
    """Classes whose names differ in case, spaces, underscores or how Unicode writes their letters alone."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        alike[" ".join(normalize("NFC", label).casefold().replace("_", " ").split())].append(label)
    found = "class names that differ only in case, spacing or how letters are encoded"
    fix = "give them one name if they are one class"
    return [
        Fault("similar-class-names", "warning", ", ".join(map(repr, names)), found, fix)
        for names in alike.values()
        if len(names) > 1
    ]


def small_classes(clusters_of: Mapping[str, int]) -> list[Fault]:
    """Classes with fewer different samples than there are splits. `clusters_of`: clusters in each class."""
    small = [label for label, count in clusters_of.items() if count < SPLITTABLE]
    if not small:
        return []
    found = f"{_number(small, 'class', 'classes')} with fewer than {SPLITTABLE} different samples"
    return [
        Fault("small-class", "warning", some(small), found, "add samples; not every split has one of these classes")
    ]


def imbalanced_classes(labels: Mapping[str, int]) -> list[Fault]:
    """One class with many times the samples of another. `labels`: samples in each class."""
    if len(labels) < 2:
        return []
    most, least = (choose(labels, key=lambda label: labels[label]) for choose in (max, min))
    if labels[most] < IMBALANCE * labels[least]:
        return []
    times = labels[most] / labels[least]
    found = f"{most!r} has {counted(labels[most], 'sample')}, {least!r} has {labels[least]}: {times:.0f} times as many"
    fix = "look at the scores of each class; add samples of the rare ones"
    return [Fault("imbalanced-classes", "warning", f"{most!r}, {least!r}", found, fix)]


def single_class(labels: Sequence[str]) -> list[Fault]:
    """A classification with nothing to tell apart."""
    if len(labels) != 1:
        return []
    return [
        Fault("single-class", "warning", repr(labels[0]), "there is one class only", "add samples of other classes")
    ]


def normalised_images(changed: Mapping[str, Sequence[str]], values: tuple[float, float] | None = None) -> list[Fault]:
    """Images that are made upright 8-bit RGB. `changed`: of each way the ids of the rows. `values`: the smallest and
    the largest value of images of more than 8 bits."""
    fix = "models see upright 8-bit RGB: look whether that shows what matters, or save them so yourself"
    found = []
    for how, ids in sorted(changed.items()):
        what, remedy = f"{_number(ids, 'sample')} with images {how}", fix
        if how == DEEP and values is not None:
            what += f": values from {values[0]:,.6g} to {values[1]:,.6g}"
            if 255 < values[1] < 65535 / 2:
                what += f", and 65,535 is white: they are seen as {values[0] / 257:.0f} to {values[1] / 257:.0f} of 255"
                remedy = "stretch the values to 0 .. 65,535, or save the images with 8 bits"
        found.append(Fault("normalised-images", "warning", some(ids), what, remedy))
    return found


def several_frames(ids: Sequence[str]) -> list[Fault]:
    """Pages of a TIFF, frames of animations: all but the first are lost."""
    if not ids:
        return []
    found = f"{_number(ids, 'sample')} with images of several frames or pages: the first alone is seen"
    return [Fault("several-frames", "warning", some(ids), found, "write each that matters as an image of its own")]


def duplicate_images(groups: Sequence[Sequence[str]]) -> list[Fault]:
    """Files with the same bytes. `groups`: the ids of each group."""
    fix = "take out the copies; they stay in one split"
    return _groups("duplicate-images", groups, "images with the same bytes", fix)


def near_duplicate_images(groups: Sequence[Sequence[str]]) -> list[Fault]:
    """Images that look the same. `groups`: the ids of each group."""
    fix = "look at them; they stay in one split"
    return _groups("near-duplicate-images", groups, "images that look nearly the same", fix)


def illegible_pages(x_height: float, least: float, seen: str, fix: str, severity: Severity = "warning") -> list[Fault]:
    """Letters too low to be told apart. `x_height` and `least` are in pixels; `seen` says when they are so."""
    if x_height >= least:
        return []
    found = f"letters have an x-height of {x_height:.1f} pixels {seen}; below {least:g} they run together"
    return [Fault("illegible-pages", severity, "the page spec", found, fix)]


def context_window(cut: int, most_pages: int | None) -> list[Fault]:
    """Questions about documents of too many pages, of which a part around the answer is shown."""
    if not cut:
        return []
    found = f"{counted(cut, 'document')} of more than {most_pages} pages: a window around the answer is shown instead"
    fix = "for scores on whole documents allow more pages (--max-pages)"
    return [Fault("context-window", "warning", "documents", found, fix)]


def duplicate_documents(groups: Sequence[Sequence[str]]) -> list[Fault]:
    """The same text with the same question and answer. `groups`: the ids of each group."""
    fix = "take out the copies; they stay in one split"
    return _groups("duplicate-documents", groups, "the same documents with the same answers", fix)


def near_duplicate_documents(groups: Sequence[Sequence[str]]) -> list[Fault]:
    """Texts that share most of their words. `groups`: the ids of each group."""
    fix = "look at them; they stay in one split"
    return _groups("near-duplicate-documents", groups, "documents that are nearly the same", fix)


def leak_across_splits(groups: Sequence[Sequence[str]], what: str = "images") -> list[Fault]:
    """(Near-)duplicates that the given splits part. `groups`: the ids of each group."""
    fix = "keep each group in one split: scores on the held-out splits are too good otherwise"
    return _groups("leak-across-splits", groups, f"(near-)duplicate {what} in several of the given splits", fix)


def different_answers(groups: Sequence[Sequence[str]], what: str = "image") -> list[Fault]:
    """The same image or document, asked the same, with different answers. `groups`: the ids of each group."""
    fix = "decide which answer is right"
    return _groups("different-answers", groups, f"the same {what} with different answers", fix)


def _groups(code: str, groups: Sequence[Sequence[str]], what: str, fix: str) -> list[Fault]:
    if not groups:
        return []
    largest = max(groups, key=len)
    shown = " | ".join(some(group, " = ") for group in groups[:_SHOWN])
    more = f" | and {counted(len(groups) - _SHOWN, 'group')} more" if len(groups) > _SHOWN else ""
    rows = sum(map(len, groups))
    found = f"{what}: {_number(groups, 'group')} of {rows} samples, the largest of {len(largest)}"
    return [Fault(code, "warning", shown + more, found, fix)]


def _number(things: Sequence[object], singular: str, plural: str | None = None) -> str:
    return counted(len(things), singular, plural)


def some(names: Sequence[str], between: str = ", ") -> str:
    """The first few names, and how many more there are."""
    more = f"{between}and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return between.join(names[:_SHOWN]) + more
