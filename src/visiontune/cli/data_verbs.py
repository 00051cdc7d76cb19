"""`inspect` and `prepare` at the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import CycloptsError, Parameter

import visiontune
from visiontune.cli.answer import Answer, Limit, counts
from visiontune.data.format_names import Format
from visiontune.errors import DataError, RecipeError
from visiontune.words import counted

if TYPE_CHECKING:
    from visiontune.data.dataset import Dataset

Named = Annotated[
    Format | None, Parameter(name="--format", help="what the data are, where they look like something else")
]
Columns = Annotated[str | None, Parameter(help="columns of a table, as document=body,answer=tldr")]
PageSize = Annotated[str | None, Parameter(help="pixels of a page for documents, as 1024x1024")]
FontSize = Annotated[int | None, Parameter(help="pixels of the font for documents")]
LineSpacing = Annotated[float | None, Parameter(help="distance of lines for documents, in font sizes")]
MaxPages = Annotated[int | None, Parameter(help="leave longer documents out, or cut them around the answer")]
Ratio = Annotated[float | None, Parameter(help="choose the font size for so many text tokens a vision token")]
FontFiles = Annotated[list[Path] | None, Parameter(help="font for documents; several in order of fallback")]


def inspect(
    data: str,
    *,
    limit: Limit = None,
    columns: Columns = None,
    called: Named = None,
    page: PageSize = None,
    font_size: FontSize = None,
    line_spacing: LineSpacing = None,
    font: FontFiles = None,
    model: Annotated[
        str | None, Parameter(help="tell what this model would make of documents, or of images and texts")
    ] = None,
) -> Answer:
    """What the data are, what would be trained, what is wrong.

    Parameters
    ----------
    data
        a folder of images, a table of images and texts (messages, LLaVA's conversations, Roboflow's pairs,
        prompts and answers; JSONL, JSON, CSV, Parquet), a table of long texts, annotations of objects (COCO,
        YOLO, Pascal VOC), recordings of neurons (a session or a folder of them), a dataset of the hub
        (hub:OWNER/NAME, hub:OWNER/NAME:CONFIG@REVISION), or a prepared dataset, also at a URL
    """
    from visiontune.data.recordings.inspect import RecordingsInspection

    pages = _pages(page, font_size, line_spacing)
    options: dict[str, Any] = {"limit": limit, "columns": _columns(columns), "pages": pages, "fonts": font}
    inspection = visiontune.inspect(data, format=called, model=model, **options)
    found = inspection.to_json()
    if isinstance(inspection, RecordingsInspection):
        return Answer(found, "\n".join([inspection.table(), *_recording_lines(found), *_fault_lines(found["faults"])]))
    lines = [
        f"{counted(found['samples'], 'sample')}; " + ", ".join(f"{split} {n}" for split, n in found["splits"].items())
    ]
    for target, facts in found["targets"].items():
        labels = facts.get("labels")
        lines.append(
            f"target: {target}" + (f", {counted(len(labels), 'class', 'classes')}: {counts(labels)}" if labels else "")
        )
    if (seen := found.get("model")) is not None:
        lines.append(
            f"{seen['model']}: images of {seen['image_longest_edge']} px"
            f"{' cut into tiles' if seen['image_splitting'] else ''}, {_range(seen['tokens'])} tokens a sample, "
            f"{_range(seen['image_tokens'])} of them its images; room for {seen['max_tokens']:,}"
        )
    lines += _document_lines(found["documents"]) + _object_lines(found["targets"].get("objects"))
    lines.append("trains: " + ("; ".join(f"{t['kind']} ({t['target']})" for t in found["trains"]) or "nothing yet"))
    return Answer(found, "\n".join([*lines, *_fault_lines(found["faults"]), counted(len(found["faults"]), "fault")]))


def _recording_lines(found: dict[str, Any]) -> list[str]:
    sessions, seconds = len(found["sessions"]), ", ".join(f"{s} {n:,.0f}" for s, n in found["splits"].items())
    return [
        f"{counted(sessions, 'session')}, {counted(found['units'], 'unit')}, "
        f"{counted(found['seconds'], 'second', form=',.0f')} ({seconds})",
        f"trains: {'; '.join(t['kind'] for t in found['trains']) or 'nothing yet'}",
        counted(len(found["faults"]), "fault"),
    ]


def _fault_lines(found: list[dict[str, str]], shown: int = 3) -> list[str]:
    """The faults of each kind together, the first few in full; --json and dataset.json have all of them."""
    kinds: dict[str, list[dict[str, str]]] = {}
    for fault in found:
        kinds.setdefault(fault["code"], []).append(fault)
    lines = []
    for kind in kinds.values():
        lines += [f"{f['severity']}: {f['found']}\n  where: {f['where']}\n  fix:   {f['fix']}" for f in kind[:shown]]
        if rest := kind[shown:]:
            where = ", ".join(f["where"] for f in rest[:10]) + (", ..." if len(rest) > 10 else "")
            lines.append(f"{rest[0]['severity']}: {len(rest)} more of this kind: {where}")
    return lines


def _object_lines(facts: dict[str, Any] | None) -> list[str]:
    if facts is None:
        return []
    sides = "" if facts["sides"] is None else f", square root of the area {_range(facts['sides'])} px"
    return [
        f"objects: {facts['count']:,}, {facts['masks']:,} with a mask, {facts['crowds']:,} crowds{sides}",
        f"images: {_range(facts['on_an_image'])} objects each, {facts['negatives']:,} without any",
        f"{counted(len(facts['classes']), 'class', 'classes')}: {counts(facts['classes'])}",
    ]


def _document_lines(facts: dict[str, Any] | None) -> list[str]:
    if facts is None:
        return []
    page, letters, missing = facts["page"], facts["x_height"], facts["missing_glyphs"]
    resized = ", ".join(
        f"{height:.1f} at {side}{' (illegible)' if int(side) in letters['illegible'] else ''}"
        for side, height in letters["resized"].items()
    )
    lines = [
        f"documents: {_range(facts['characters'])} characters, {_range(facts['pages'])} pages each",
        f"pages: {facts['total_pages']:,} of {page['width']} x {page['height']} px, font size {page['font_size']} px, "
        f"{facts['characters_a_page']:,.0f} characters on each",
        f"scripts: {counts(facts['scripts'])}; {missing:,} characters without a glyph",
        f"x-height: {letters['drawn']:.1f} px as drawn" + (f"; resized: {resized}" if resized else ""),
    ]
    if (model := facts["model"]) is not None:
        lines.append(
            f"{model['model']}: pages of {model['side']} px, {model['page_tokens']} vision tokens each, x-height "
            f"{model['x_height']:.1f} px, {model['characters_a_token']:.1f} characters a vision token"
        )
        lines.append(
            f"{model['text_tokens']:,} text tokens / {model['vision_tokens']:,} vision tokens = "
            f"{model['ratio']:.1f} (of {model['sampled']} documents)"
            if model["ratio"] is not None
            else "text tokens are not known: a tiny model has no tokenizer before it is built"
        )
    return lines


def _range(values: dict[str, float]) -> str:
    return f"{values['min']:,} to {values['max']:,} (median {values['median']:,.10g})"


def _pages(page: str | None, font_size: int | None, line_spacing: float | None) -> dict[str, Any] | None:
    """The fields of a page spec that were given, None where none was."""
    fields: dict[str, Any] = {}
    if page is not None:
        width, by, height = page.lower().partition("x")
        if not (by and width.strip().isdecimal() and height.strip().isdecimal()):
            raise RecipeError(f"'{page}' is no size of a page.", where="--page", fix="--page 1024x1024")
        fields |= {"width": int(width), "height": int(height)}
    if font_size is not None:
        fields["font_size"] = font_size
    if line_spacing is not None:
        fields["line_spacing"] = line_spacing
    return fields or None


def _columns(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    if wrong := [name for name, equals, column in pairs if not (name.strip() and equals and column.strip())]:
        raise RecipeError(
            f"'{wrong[0]}' names no column.", where="--columns", fix="--columns document=body,answer=tldr"
        )
    return {name.strip(): column.strip() for name, _, column in pairs}


def prepare(
    *data: Path,
    out: str | None = None,
    listed: Annotated[bool, Parameter(name="--list", negative="", help="show the known corpora instead")] = False,
    seed: int = 0,
    limit: Limit = None,
    strict: bool = False,
    rate: Annotated[float | None, Parameter(help="bins a second of recordings: whole bins are put together")] = None,
    repair: Annotated[bool, Parameter(help="mend boxes and masks; repairs.jsonl lists every change")] = False,
    workers: int | None = None,
    columns: Columns = None,
    called: Named = None,
    page: PageSize = None,
    font_size: FontSize = None,
    line_spacing: LineSpacing = None,
    font: FontFiles = None,
    max_pages: MaxPages = None,
    ratio: Ratio = None,
    model: Annotated[str | None, Parameter(help="the model that --ratio is for: hub id or folder")] = None,
    engine: Annotated[
        Literal["processes", "ray"], Parameter(help="whose processes: this machine's, or Ray's (extra [ray])")
    ] = "processes",
    materialise: Annotated[
        Literal["png", "webp"] | None, Parameter(help="also write the pages of documents as image files")
    ] = None,
    messages: Annotated[
        Literal["parquet", "jsonl"] | None, Parameter(help="also write images with texts as `messages`")
    ] = None,
    staging: Annotated[Path | None, Parameter(help="local folder to prepare in, where --out is a URL")] = None,
    push: Annotated[str | None, Parameter(help="hub repository ORG/NAME to upload the dataset to, private")] = None,
    public: Annotated[bool, Parameter(help="make the hub repository public")] = False,
) -> Answer:
    """One clean dataset on disk: split, hashed, with what was left out and why.

    Parameters
    ----------
    data
        a folder of images, a table of images and texts or one of long texts (JSONL, JSON, CSV, Parquet; a file
        or a folder of them), annotations of objects (COCO, YOLO, Pascal VOC), a dataset of the hub
        (hub:OWNER/NAME, hub:OWNER/NAME:CONFIG@REVISION), or the name of a known corpus, such as mlsum:fr or
        cnn_dailymail (both need the extra [corpora] and a connection); or several of them; or
        recordings of neurons (sessions, or folders of them), which become a dataset each inside --out
    out
        folder of the dataset, or a URL such as s3://bucket/data (not for recordings); an earlier one there is extended,
        its rows keep their split
    seed
        seed of the split
    strict
        refuse the whole folder if one sample cannot be used
    workers
        processes; as many as cores where not given
    """
    from visiontune.data.recordings.readers import is_recordings

    if listed:
        return _corpora()
    if not data or out is None:
        raise CycloptsError(msg="`prepare` needs data and --out FOLDER, or --list.")
    pages = _pages(page, font_size, line_spacing)
    if all(map(is_recordings, data)):
        others = {"--limit": limit, "--workers": workers, "--columns": columns, "--page": pages, "--font": font}
        others |= {"--max-pages": max_pages, "--ratio": ratio, "--model": model, "--materialise": materialise}
        others |= {"--format": called, "--messages": messages}
        others |= {"--staging": staging, "--push": push, "--repair": repair or None, "--public": public or None}
        others |= {"--engine": engine if engine != "processes" else None}
        if unfit := [name for name, value in others.items() if value is not None]:
            raise DataError("This option is not for recordings.", where=unfit[0], fix="leave it out")
        return _sessions(visiontune.prepare_recordings(data, out, seed=seed, rate=rate, strict=strict))
    if rate is not None:
        raise DataError("Only recordings are converted to a rate.", where="--rate", fix="leave it out")
    options: dict[str, Any] = {"seed": seed, "limit": limit, "strict": strict, "workers": workers}
    options |= {"pages": pages, "fonts": font, "max_pages": max_pages, "ratio": ratio, "model": model}
    options |= {"engine": engine, "materialise": materialise, "staging": staging, "push": push, "public": public}
    options |= {"format": called, "messages": messages}
    from visiontune.data.prepare import left_out_of

    dataset = visiontune.prepare(data, out, columns=_columns(columns), repair=repair, **options)
    info = dataset.info.model_dump(mode="json")
    splits = ", ".join(f"{split} {count}" for split, count in dataset.info.splits.items())
    cut = f", {dataset.info.windows} cut to a window" if dataset.info.windows else ""
    left_out = f", {left_out_of(dataset.info)} left out" if dataset.info.left_out else ""
    text = f"{counted(len(dataset), 'sample')} ({splits}){cut}{left_out}: {dataset.path}"
    return Answer({"path": str(dataset.path), **info}, text)


def _sessions(datasets: "list[Dataset]") -> Answer:
    """What was made of recordings, a line a session."""
    value = [{"path": str(dataset.path), **dataset.info.model_dump(mode="json")} for dataset in datasets]
    lines = []
    for dataset in datasets:
        found = dataset.info.recording
        assert found is not None
        seconds = ", ".join(f"{split} {n:,.0f} s" for split, n in found.seconds.items())
        left_out = f", {counted(len(dataset.info.left_out), 'trial')} left out" if dataset.info.left_out else ""
        lines.append(f"{found.name}: {counted(len(found.units), 'unit')} ({seconds}){left_out}: {dataset.path}")
    return Answer({"datasets": value}, "\n".join(lines))


def _corpora() -> Answer:
    from visiontune.data.corpora import CORPORA

    value = [{"name": name, **corpus.to_json()} for name, corpus in CORPORA.items()]
    wide = max(len(name) for name in CORPORA)
    lines = [
        f"{one['name']:{wide}}  {one['hub']} {one['config'] or '-'}, {one['language']}; "
        f"{', '.join(f'{role}: {place}' for role, place in one['columns'].items())}; {one['licence']}"
        for one in value
    ]
    return Answer({"corpora": value}, "\n".join(lines))
