"""Distillation: a trained teacher's findings in labelled and unlabelled images, as datasets that a student trains on.

What the teacher finds is kept chunk by chunk, so that killed work goes on with what is missing.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from visiontune.data.dataset import Dataset
from visiontune.data.dataset_info import INFO_NAME, LeftOut, Provenance, read_info
from visiontune.data.images import read_header
from visiontune.data.objects import Objects, from_text, to_text
from visiontune.data.prepare import owned
from visiontune.data.pseudo_labels import (
    LabelledImage,
    Place,
    looked_at,
    places_in,
    places_of,
    to_leave_out,
    write_dataset,
)
from visiontune.data.sample import Images, ObjectPrediction, Sample
from visiontune.data.split import SPLITS
from visiontune.errors import DataError, RecipeError
from visiontune.files import full_disk_said, write_json, write_text
from visiontune.machine import cores
from visiontune.models.objects import nothing
from visiontune.progress import note, progress
from visiontune.training.class_lists import classes_of
from visiontune.training.distil_record import RECORD_NAME, UNLABELLED_NAME, by_class, counts_of, recorded, said_of
from visiontune.training.refusals import refuse_unseen
from visiontune.training.teacher import Teacher
from visiontune.training.teacher_targets import ClassThreshold, blend, choose_thresholds, label, matches

DISTIL_VERSION = 2
WORK_NAME = ".distil"
UNSEEN, UNSEEN_FIX = (
    "unseen-by-teacher",
    "cut off its longer side, or use a teacher with a larger data.image_longest_edge",
)
CHUNK_IMAGES = 64
IMAGES_FOR_WORKERS = 2000
_WRITTEN = re.compile(rf"labelled-\d+|{UNLABELLED_NAME}|\..*\.(part|old)")


def distil(
    teacher: Teacher,
    labelled: Sequence[Dataset],
    unlabelled: Sequence[Path],
    out: Path,
    *,
    teacher_key: str,
    share: float = 0.5,
    limit: int | None = None,
    workers: int | None = None,
) -> list[Dataset]:
    """Write the datasets of a distillation into the folder `out`, and return them in order.

    `labelled-1`, ...: the labelled datasets, rows and splits as they are, training rows with `blend`. `unlabelled`: the
    images in `unlabelled` (folders of images or prepared datasets) with `label`, all for training; those that are held
    out for validation or test in the labelled data (or look like them), that people labelled, that cannot be read, or
    whose size the teacher cannot see are left out. distillation.json: thresholds and counts.

    With a `limit`, so many rows of each labelled dataset's training and validation split, the first, and so many of the
    unlabelled images: the others are neither looked at by the teacher nor written.

    `teacher_key` names the teacher's weights: under another one everything is found anew. `share` in [0, 1] is the
    teacher's share in `blend`. `workers` processes look at the images first (None: as many as are worth it). Killed and
    run again, it goes on; run again when it is done, it only opens the datasets. Raises DataError for data that do not
    fit the teacher, and MachineError when the disk is full.
    """
    asked = _asked(teacher.classes, labelled, share)
    labelled = [dataset.among(teacher.classes) for dataset in labelled]
    encoder = teacher.detector.adapter.encoder
    refuse_unseen(encoder, labelled, ("train", "validation"), limit=limit, fix=UNSEEN_FIX)
    with owned(out, {RECORD_NAME, WORK_NAME}), full_disk_said(out):
        places, left_out = places_of(unlabelled)
        lists = [dataset.listed for dataset in labelled]
        fingerprint = _hash(
            [DISTIL_VERSION, teacher_key, teacher.facts, share, [dataset.info.content_hash for dataset in labelled]],
            [place.mark() for place in places],
            *([] if set(lists) == {teacher.classes} else [lists]),
            *([] if limit is None else [limit]),
        )
        names = [f"labelled-{number}" for number in range(1, len(labelled) + 1)] + [UNLABELLED_NAME] * bool(unlabelled)
        work = out / WORK_NAME
        if recorded(out) != fingerprint:
            work.mkdir(exist_ok=True)
            (out / RECORD_NAME).unlink(missing_ok=True)
            for path in out.iterdir():
                if path.name not in names and _WRITTEN.fullmatch(path.name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            keep = _Keep(work, [teacher_key, teacher.facts], teacher, out, fingerprint)
            workers = workers or _workers(len(places) + sum(map(len, labelled)))
            record = _distilled(keep, asked, labelled, places, left_out, share, limit, workers)
            write_json(
                out / RECORD_NAME, {"fingerprint": fingerprint, "teacher": teacher_key, "share": share, **record}
            )
        shutil.rmtree(work, ignore_errors=True)
        return [Dataset.open(out / name) for name in names]


@dataclass(frozen=True)
class _Keep:
    """Where the work of one distillation is kept, and what its results depend on."""

    work: Path
    key: list[object]
    teacher: Teacher
    out: Path
    fingerprint: str

    def found(
        self,
        title: str,
        places: Sequence[Place],
        sha256s: Sequence[str],
        looked_for: Sequence[NDArray[np.bool_] | None],
        made_with: object,
        make: Callable[[list[Sample]], list[Objects]],
    ) -> list[Objects]:
        """What `make` makes of each image, asked for the classes `looked_for`, read from disk where it was made before;
        `made_with` is what it depends on beside that, the teacher and the images."""
        classes, found = self.teacher.classes, []
        with progress(title, len(places), "images") as advance:
            for start in range(0, len(places), CHUNK_IMAGES):
                stop = min(start + CHUNK_IMAGES, len(places))
                lists = [None if one is None else one.tolist() for one in looked_for[start:stop]]
                some = [lists] if any(lists) else []
                name = _hash([DISTIL_VERSION, self.key, made_with], list(sha256s[start:stop]), *some)
                path = self.work / f"found-{name}.jsonl"
                if not path.is_file():
                    samples = [
                        Sample(place.id, Images((place.read(),)), replace(nothing(len(classes)), looked_for=wanted))
                        for place, wanted in zip(places[start:stop], looked_for[start:stop], strict=True)
                    ]
                    write_text(path, "".join(f"{to_text(one, classes)}\n" for one in make(samples)))
                lines = path.read_text(encoding="utf-8").split("\n")[:-1]
                found += [from_text(line, classes) for line in lines]
                advance(stop - start)
        return found

    def write(self, name: str, rows: Iterator[LabelledImage], count: int, **facts: Any) -> None:
        """Write the dataset `name` of this distillation, `count` rows, where it does not stand yet."""
        folder = self.out / name
        if (folder / INFO_NAME).is_file() and read_info(folder).provenance.fingerprint == self.fingerprint:
            return
        with progress(f"writing {name}", count, "images") as advance:

            def counted() -> Iterator[LabelledImage]:
                for row in rows:
                    yield row
                    advance(1)

            write_dataset(folder, counted(), self.teacher.classes, **facts)


def _distilled(
    keep: _Keep,
    asked: tuple[str, ...],
    labelled: Sequence[Dataset],
    places: list[Place],
    left_out: list[LeftOut],
    share: float,
    limit: int | None,
    workers: int,
) -> dict[str, Any]:
    """Label everything and write it; what distillation.json says of it."""
    teacher, classes = keep.teacher, keep.teacher.classes
    of = {split: [place for dataset in labelled for place in _first(dataset, split, limit)] for split in SPLITS}
    everything = looked_at([place for split in SPLITS for place in of[split]] + places, keep.work, workers)
    seen, start = {}, 0
    for split, some in of.items():
        seen[split] = everything.slice(start, len(some))
        start += len(some)
        if broken := [place.id for place, why in zip(some, seen[split]["error"].to_pylist(), strict=True) if why]:
            raise DataError("An image of a labelled dataset cannot be read.", where=broken[0], fix="prepare it anew")
    facts = everything.slice(start)
    held_out = of["validation"] + of["test"], pa.concat_tables([seen["validation"], seen["test"]])
    out_of_it = to_leave_out(places, facts, held_out=held_out, trained=(of["train"], seen["train"]))
    out_of_it |= _unseen(teacher, places, facts, out_of_it)
    left_out = left_out + [out_of_it[i] for i in sorted(out_of_it)]
    usable = [i for i in range(len(places)) if i not in out_of_it]
    taken = usable[:limit]
    if left_out and not taken:
        raise DataError(
            f"None of the {len(left_out)} unlabelled images can be used, the first: {left_out[0].found}",
            where=left_out[0].id,
            fix=left_out[0].fix,
        )

    if left_out:
        reasons = Counter(row.code for row in left_out)
        shown = ", ".join(f"{code} {count}" for code, count in sorted(reasons.items()))
        note(f"of {len(left_out) + len(usable)} unlabelled images {len(left_out)} are left out: {shown}")
    if len(taken) < len(usable):
        note(f"of {len(usable)} unlabelled images the first {len(taken)} are labelled: --limit")

    def found_in(split: str) -> list[Objects]:
        # Masks decide on nothing here; many of them would fill the disk.
        return keep.found(
            f"the teacher looks at the {split} images",
            of[split],
            _column(seen[split], "sha256"),
            [None if place.dataset is None else place.dataset.looked_for for place in of[split]],
            "boxes",
            lambda samples: [replace(one, masks=(None,) * len(one)) for one in teacher.find(samples)],
        )

    chosen = choose_thresholds(_predictions(labelled, classes, found_in("validation"), limit))
    thresholds = {name: chosen[name] for name in asked}
    for name, one in thresholds.items():
        note(f"threshold of {name}: {said_of(one)}")
    rows = iter(found_in("train"))
    counts = [
        _write_labelled(keep, f"labelled-{number}", dataset, rows, thresholds, share, limit)
        for number, dataset in enumerate(labelled, 1)
    ]
    record = {
        "classes": list(asked),
        "limit": limit,
        "validation_images": len(of["validation"]),
        "thresholds": {name: one.to_json() for name, one in thresholds.items()},
        "labelled": counts,
    }
    if not taken:
        return {**record, "unlabelled": None}

    def labels(samples: list[Sample]) -> list[Objects]:
        made = []
        for sample, found in zip(samples, teacher.find(samples), strict=True):
            assert isinstance(sample.seen, Images)
            header = read_header(sample.seen.files[0].data)
            made.append(label(found, thresholds, classes, (header.height, header.width)))
        return teacher.draw(samples, made)

    limits = [one.threshold for one in thresholds.values()]
    # Of a class of which no finding is taken, nobody knows whether these images show it.
    taught = [name for name in asked if thresholds[name].threshold is not None]
    wanted = None if len(taught) == len(classes) else np.array([name in taught for name in classes])
    some = [places[i] for i in taken]
    sha256s = _column(facts.take(pa.array(taken, pa.int64())), "sha256")
    found = keep.found("the teacher labels the unlabelled images", some, sha256s, [wanted] * len(some), limits, labels)
    pairs = zip(some, found, strict=True)
    sources = ", ".join(sorted({place.source for place in some}))
    keep.write(
        UNLABELLED_NAME,
        (LabelledImage(place.id, "train", place.read(), objects) for place, objects in pairs),
        len(some),
        looked_for=taught,
        provenance=_provenance(keep, sources, "images labelled by a teacher"),
        left_out=left_out,
    )
    return {**record, "unlabelled": counts_of(found, classes, asked, left_out)}


def _unseen(
    teacher: Teacher, places: Sequence[Place], facts: pa.Table, others: Mapping[int, LeftOut]
) -> dict[int, LeftOut]:
    """The images that the teacher cannot see, less those that are left out for `others` reasons."""
    unseen = teacher.detector.adapter.encoder.unseen
    sizes = zip(facts["height"].to_pylist(), facts["width"].to_pylist(), strict=True)
    why = {i: unseen(heights[0], widths[0]) for i, (heights, widths) in enumerate(sizes) if i not in others}
    return {
        i: LeftOut(id=places[i].id, code=UNSEEN, found=found, fix=UNSEEN_FIX)
        for i, found in why.items()
        if found is not None
    }


def _write_labelled(
    keep: _Keep,
    name: str,
    dataset: Dataset,
    found: Iterator[Objects],
    thresholds: dict[str, ClassThreshold],
    share: float,
    limit: int | None,
) -> dict[str, Any]:
    """Write a labelled dataset with blended training rows (`found` gives the findings of each, in order), and count."""
    classes = keep.teacher.classes
    index = dataset.index("train")
    blended, matched = [], np.zeros(len(classes), np.int64)
    for i in range(len(index.ids[:limit])):
        truth, sure = index.target(i), label(next(found), thresholds, classes, index.size(i))
        assert isinstance(truth, Objects)
        blended.append(blend(truth, sure, share))
        matched += np.bincount(truth.classes[matches(truth, sure) >= 0], minlength=len(classes))

    def rows() -> Iterator[LabelledImage]:
        for split in SPLITS:
            for i, place in enumerate(_first(dataset, split, limit)):
                target = blended[i] if split == "train" else dataset.sample(split, i).target
                assert isinstance(target, Objects)
                yield LabelledImage(place.id, split, place.read(), target)

    info, origin = dataset.info, dataset.info.provenance
    keep.write(
        name,
        rows(),
        sum(len(_first(dataset, split, limit)) for split in SPLITS),
        looked_for=dataset.listed,
        provenance=_provenance(keep, origin.source, f"{origin.format}, blended with a teacher", origin),
        split_seed=info.split_seed,
        limit=info.limit if limit is None else min(limit, info.limit or limit),
        left_out=info.left_out,
        faults=[fault for fault in info.faults if not fault.code.startswith("mended-")],  # these name a file there
    )
    drawn = [one.classes[~one.crowd] for one in blended]
    return {
        "folder": name,
        "made_from": info.content_hash,
        "images": len(blended),
        "objects": by_class(drawn, classes, dataset.listed),
        "found_by_the_teacher": {name: int(matched[classes.index(name)]) for name in dataset.listed},
    }


def _asked(classes: tuple[str, ...], labelled: Sequence[Dataset], share: float) -> tuple[str, ...]:
    """The classes that the teacher is asked for: those of the labelled data, which decide what is learned."""
    if not 0 <= share <= 1:
        raise RecipeError(f"The teacher's share is {share}.", fix="use a number from 0 to 1")
    asked = classes_of(labelled)
    for dataset in labelled:
        if unknown := [name for name in dataset.listed if name not in classes]:
            raise DataError(
                f"The teacher finds {', '.join(classes)}; this dataset has {', '.join(unknown)} too.",
                where=str(dataset.path),
                fix="use data whose classes the teacher was trained on",
            )
    if not any(dataset.count("validation") for dataset in labelled):
        raise DataError(
            "No labelled image is held out for validation, so that no threshold can be chosen.",
            where=", ".join(str(dataset.path) for dataset in labelled) or None,
            fix="give a labelled dataset with a validation split",
        )
    return asked


def _first(dataset: Dataset, split: str, limit: int | None) -> list[Place]:
    """The images of a split that are looked at and written: of the test split all, which no teacher sees."""
    places = places_in(dataset, split)
    return places if split == "test" else places[:limit]


def _predictions(
    labelled: Sequence[Dataset], classes: tuple[str, ...], found: Sequence[Objects], limit: int | None
) -> list[ObjectPrediction]:
    """The teacher's findings in the validation images beside what people drew."""
    indexes = [dataset.index("validation") for dataset in labelled]
    rows = [(index, i) for index in indexes for i in range(len(index.ids[:limit]))]
    made = []
    for (index, i), one in zip(rows, found, strict=True):
        truth = index.target(i)
        assert isinstance(truth, Objects)
        made.append(ObjectPrediction(index.ids[i], (index.ids[i],), one, classes, index.size(i), truth))
    return made


def _provenance(keep: _Keep, source: str, kind: str, origin: Provenance | None = None) -> Provenance:
    return Provenance(
        source=source,
        sources={} if origin is None else origin.sources,
        corpora=() if origin is None else origin.corpora,
        hub=() if origin is None else origin.hub,
        format=kind,
        created_by=f"visiontune {version('visiontune')}",
        fingerprint=keep.fingerprint,
    )


def _column(table: pa.Table, name: str) -> list[str]:
    """A column of `scan.SCHEMA` with one entry for each image that could be read."""
    return table[name].combine_chunks().flatten().to_pylist()


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def _workers(images: int) -> int:
    """How many processes look at so many images: all cores, or one where that is done sooner."""
    return cores() if images >= IMAGES_FOR_WORKERS else 1
