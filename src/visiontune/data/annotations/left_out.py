"""Images that are not taken though their files are sound: with an error, or with objects that a repair took away.

An image that has lost all of its objects would be learned as one without any. So it is left out, and where nobody knows
which image lost objects, training is refused.
"""

from collections import Counter, defaultdict

from visiontune.data.annotations.examine import Examined
from visiontune.data.annotations.findings import Finding, on_file, on_image
from visiontune.data.annotations.table import Table

# The objects of these say what another one says, which stays.
_DOUBLES = ("duplicate-annotation",)
# Where more objects than this share name images that are not listed, ids were mixed up.
_STRAYS = 0.5
_SHOWN = 3


def left_out(written: Table, found: Examined) -> tuple[set[int], list[Finding]]:
    """The rows of images of `found.mended` that are not taken, and a finding for each; and errors that follow.

    `written` is the table before it was mended.
    """
    table, findings = found.mended, []
    wrong: dict[int, list[Finding]] = defaultdict(list)
    for finding in found.findings:
        if finding.severity == "error" and finding.image_id is not None:
            wrong[finding.image_id].append(finding)
    gone: dict[int | None, list[str]] = defaultdict(list)
    for change in found.changes:
        if change.field == "annotation" and change.why not in _DOUBLES:
            gone[change.image_id].append(change.why)
    number_of = dict(zip(table.images.file_names, table.images.ids.tolist(), strict=True))
    for unread in written.unread:
        gone[number_of.get(unread.image or "")].append("broken-line")
    rows: set[int] = set()
    empty = 0
    for row, number in enumerate(table.images.ids.tolist()):
        bare = not len(table.annotation_rows(row))
        if number < 0 or number in wrong:
            errors = wrong[number]
            said = "; ".join(dict.fromkeys(error.found for error in errors[:_SHOWN])) or "it has no usable id"
            fix = errors[0].fix if errors else "give each image a whole number from 0 as its id"
            findings.append(on_image(table, row, "image-with-errors", "drop", f"it has an error: {said}", fix))
            rows.add(row)
        elif bare and number in gone:
            codes = ", ".join(f"{code} {count}" for code, count in Counter(gone[number]).items())
            what = f"all of its objects were taken out ({codes}): it would be learned as an image without any"
            findings.append(on_image(table, row, "lost-all-objects", "drop", what, "correct them, or take it out"))
            rows.add(row)
        else:
            empty += bare
    return rows, findings + _unknown(written, found, empty)


def _unknown(written: Table, found: Examined, empty: int) -> list[Finding]:
    """An error where objects of nobody knows which image were taken out and images without objects stay."""
    lost = Counter(change.why for change in found.changes if change.field == "annotation")
    nowhere, strays = lost["bad-image-reference"], lost["unknown-image"]
    if not empty or not (nowhere or strays > _STRAYS * len(written.annotations)):
        return []
    what = (
        f"{nowhere + strays} annotations name no image that is listed, and {empty} images have no object: "
        "they would be learned as images without any"
    )
    fix = "correct image_id, or take those annotations out of the file"
    return [on_file(found.mended, "objects-of-no-image", "error", what, fix)]
