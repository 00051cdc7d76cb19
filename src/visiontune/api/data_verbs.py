"""`inspect` and `prepare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visiontune.errors import DataError
from visiontune.progress import note

if TYPE_CHECKING:
    from visiontune.data.dataset import Dataset
    from visiontune.data.format_names import Format
    from visiontune.data.inspect import Inspection
    from visiontune.data.materialise import ImageFormat
    from visiontune.data.messages import MessagesFormat
    from visiontune.data.pages import PageSpec
    from visiontune.data.recordings.inspect import RecordingsInspection
    from visiontune.data.workers import Engine

Source = str | Path

_LEAVE = "leave it out"


def inspect(
    source: Source,
    *,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    format: Format | None = None,
    pages: PageSpec | Mapping[str, object] | None = None,
    fonts: Sequence[Source] | None = None,
    model: str | None = None,
) -> Inspection | RecordingsInspection:
    """What the data are, what would be trained, and what is wrong with them. Raises DataError.

    `columns`, `format`, `pages` and `fonts` are those of `prepare`. `model` (hub id, folder, tiny/...) adds what
    that model makes of documents (the size at which it sees the letters, tokens, compression) or of images with
    texts (tokens; samples longer than it reads); raises ModelError. Recordings of neurons, raw or prepared, take none
    of these options.
    """
    from visiontune.data.dataset import Dataset
    from visiontune.data.hub_source import fetch as fetch_hub
    from visiontune.data.hub_source import is_hub, parse
    from visiontune.data.inspect import inspect as inspect_data
    from visiontune.data.recordings.inspect import inspect_recordings
    from visiontune.data.recordings.prepare import holds_recordings
    from visiontune.data.remote import is_url

    if is_hub(source):
        place, _ = fetch_hub(parse(str(source)), limit)
    else:
        place = Dataset.open(source).path if is_url(source) else Path(source)
    if holds_recordings(place):
        if not limit is columns is format is pages is fonts is model is None:
            raise DataError("these are recordings; this option is for images and texts", where=str(place), fix=_LEAVE)
        return inspect_recordings(place)
    found = inspect_data(place, limit=limit, columns=columns, format=format, pages=pages, fonts=_paths(fonts))
    if model is None:
        return found
    from visiontune.training.reading import read_by

    return read_by(model, found)


def prepare(
    source: Source | Sequence[Source],
    out: Source,
    *,
    seed: int = 0,
    limit: int | None = None,
    strict: bool = False,
    workers: int | None = None,
    columns: Mapping[str, str] | None = None,
    repair: bool = False,
    format: Format | None = None,
    pages: PageSpec | Mapping[str, object] | None = None,
    fonts: Sequence[Source] | None = None,
    max_pages: int | None = None,
    ratio: float | None = None,
    model: str | None = None,
    engine: Engine = "processes",
    materialise: ImageFormat | None = None,
    messages: MessagesFormat | None = None,
    staging: Source | None = None,
    push: str | None = None,
    public: bool = False,
) -> Dataset:
    """One clean dataset on disk, split and hashed. Raises DataError; with `strict` also for a single unusable row.

    A source is a folder of images, a table of images and texts (`messages`, LLaVA's `conversations`, Roboflow's pairs,
    columns of prompts and answers), a table of long texts (JSONL, CSV, Parquet), or a known corpus by its name
    (`visiontune.data.corpora.CORPORA`), which is fetched beside `out` first, or a dataset of the hub
    (hub:OWNER/NAME, hub:OWNER/NAME:CONFIG@REVISION), which is fetched into the hub's cache; several of one kind make
    one dataset, and the ids of rows then start with their source's name. `columns` names the tables' columns where
    their names do not say what they are: {"document": "body", "answer": "tldr"}. Or it holds boxes and masks (COCO,
    YOLO, Pascal VOC):
    their faults are refused, or mended with `repair`, each change listed in repairs.jsonl. `format`, one of
    `visiontune.data.format_names.FORMATS`, reads a source as that, whatever it looks like.

    Documents are shown as `pages` says (a spec, or some of its fields: {"font_size": 24}), in `fonts`, in order of
    fallback. With `ratio`, the font size is the one at which they take so many times fewer vision tokens of `model`
    than text tokens. Documents of more than `max_pages` are left out, or cut to a window around the answer to a
    question about them. `materialise` also writes their pages as image files, "png" or "webp".
    Images with texts are also written as `messages`, "parquet" or "jsonl", into the dataset's folder `messages`.

    `workers` are processes of this machine or, with the `engine` "ray", of a Ray cluster. Where `out` is a URL of a
    file system that fsspec knows ("s3://bucket/data"), the dataset is prepared in the local folder `staging` (by
    default one named after the URL, in the current folder) and copied; what is returned stands there. `push` uploads it
    to a hub repository, private unless `public`. Recordings of neurons are for `prepare_recordings`.
    """
    from visiontune.data.corpora import known_corpus, open_corpus
    from visiontune.data.hub_source import fetch as fetch_hub
    from visiontune.data.hub_source import is_hub, parse
    from visiontune.data.prepare import prepare as prepare_data
    from visiontune.data.recordings.readers import is_recordings
    from visiontune.data.remote import fetch_earlier, is_url, local_name, send, without_password
    from visiontune.data.sources import Source as Named

    url = str(out) if is_url(out) else None
    if url is None and staging is not None:
        raise DataError("A staging folder is for an --out that is a URL.", where="--staging", fix="leave it out")
    if push is None and public:
        raise DataError("Only what is pushed can be public.", where="--public", fix="--push ORG/NAME --public")
    folder = Path(out) if url is None else Path(staging or local_name(url))
    fit = None
    if ratio is not None or model is not None:
        if ratio is None or model is None:
            raise DataError(
                "Pages are fitted to a ratio for a model: one is given without the other.", fix="--ratio 8 --model NAME"
            )
        if isinstance(pages, Mapping) and "font_size" in pages:
            raise DataError("A ratio decides the font size, and one is given.", fix="give one of the two")
        from visiontune.training.reading import fitted

        fit = fitted(model, ratio)
    given = [source] if isinstance(source, str | Path) else list(source)
    if recordings := [one for one in given if is_recordings(Path(one))]:
        raise DataError(
            "this is a recording, and recordings become a dataset each",
            where=str(recordings[0]),
            fix="visiontune.prepare_recordings(source, out), without other data beside it",
        )
    on_hub = [parse(str(one)) if is_hub(one) else None for one in given]
    corpora = [None if is_hub(one) or Path(one).exists() else known_corpus(str(one)) for one in given]
    for one, corpus in zip(given, corpora, strict=True):
        if corpus is None and not is_hub(one) and not Path(one).exists():
            fix = "check the path; known corpora: `visiontune prepare --list`; datasets of the hub: hub:OWNER/NAME"
            raise DataError("there is no such folder, file or known corpus", where=str(one), fix=fix)
    fetched = folder.with_name(f"{folder.name}.corpora")
    sources = []
    for one, corpus, dataset_id in zip(given, corpora, on_hub, strict=True):
        if dataset_id is not None:
            path, commit = fetch_hub(dataset_id, limit)
            called, hub = commit.name, str(commit)
            sources.append(Named(path, columns, called=called, repair=repair, format=format, hub=hub))
        elif corpus is not None:
            sources.append(Named(open_corpus(corpus, fetched, limit=limit), called=corpus))
        else:
            sources.append(Named(Path(one), columns, repair=repair, format=format))
    options: dict[str, Any] = {"seed": seed, "limit": limit, "strict": strict, "workers": workers, "engine": engine}
    options |= {"pages": pages, "fonts": _paths(fonts), "max_pages": max_pages, "fit": fit, "materialise": materialise}
    options |= {"messages": messages}
    if url is not None:
        note(f"preparing in {folder}, then copying to {without_password(url)}")
        fetch_earlier(url, folder)
    dataset = prepare_data(sources, folder, **options)
    if url is not None:
        send(folder, url)
    if push is not None:
        from visiontune.exports.hub import push_dataset

        push_dataset(dataset, push, private=not public)
    return dataset


def prepare_recordings(
    source: Source | Sequence[Source], out: Source, *, seed: int = 0, rate: float | None = None, strict: bool = False
) -> list[Dataset]:
    """Recordings of neurons on disk, split and hashed, one dataset a session: `out`/NAME. Raises DataError.

    A source is a session (a folder of arrays, an NPZ, HDF5 or NWB file, a folder of SENSORIUM's layout) or a folder of
    sessions. `out` is a local folder. `rate`, in bins a second, puts whole bins together: counts are summed. With
    `strict`, a trial that would be left out is an error.
    """
    from visiontune.data.dataset import Dataset
    from visiontune.data.recordings.prepare import prepare_recordings as prepare_sessions
    from visiontune.data.remote import is_url, without_password

    if is_url(out):
        fix = "prepare into a local folder, and copy that folder there"
        raise DataError("recordings are not prepared at a URL", where=without_password(str(out)), fix=fix)
    given = [source] if isinstance(source, str | Path) else source
    paths = prepare_sessions([Path(one) for one in given], Path(out), seed=seed, rate=rate, strict=strict)
    return [Dataset.open(path) for path in paths]


def _paths(sources: Sequence[Source] | None) -> list[Path] | None:
    return None if sources is None else [Path(source) for source in sources]
