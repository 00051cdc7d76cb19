"""The verbs, as Python functions. Torch and transformers are imported only by those that need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visiontune.errors import CertificateError, DataError, RecipeError, RequirementError, VisiontuneError
from visiontune.progress import note, warn

if TYPE_CHECKING:
    from visiontune.data.dataset import Dataset
    from visiontune.data.inspect import Inspection
    from visiontune.data.materialise import ImageFormat
    from visiontune.data.pages import PageSpec
    from visiontune.data.sample import Prediction
    from visiontune.data.workers import Engine
    from visiontune.exports.certificate import Check
    from visiontune.exports.weights import DataType
    from visiontune.machine import Device
    from visiontune.metrics.intervals import Metric
    from visiontune.metrics.text import TextScores
    from visiontune.run import Run

Source = str | Path


def inspect(
    source: Source,
    *,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    pages: PageSpec | Mapping[str, object] | None = None,
    fonts: Sequence[Source] | None = None,
    model: str | None = None,
) -> Inspection:
    """What the data are, what would be trained, and what is wrong with them. Raises DataError.

    `columns`, `pages` and `fonts` are those of `prepare`. `model` (hub id, folder, tiny/...) adds what that model makes
    of documents: the size at which it sees the letters, tokens, compression; raises ModelError.
    """
    from visiontune.data.dataset import Dataset
    from visiontune.data.inspect import inspect as inspect_data
    from visiontune.data.remote import is_url

    place = Dataset.open(source).path if is_url(source) else Path(source)
    found = inspect_data(place, limit=limit, columns=columns, pages=pages, fonts=_paths(fonts))
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
    pages: PageSpec | Mapping[str, object] | None = None,
    fonts: Sequence[Source] | None = None,
    max_pages: int | None = None,
    ratio: float | None = None,
    model: str | None = None,
    engine: Engine = "processes",
    materialise: ImageFormat | None = None,
    staging: Source | None = None,
    push: str | None = None,
    public: bool = False,
) -> Dataset:
    """One clean dataset on disk, split and hashed. Raises DataError; with `strict` also for a single unusable row.

    A source is a folder of images, a table of long texts (JSONL, CSV, Parquet), or a known corpus by its name
    (`visiontune.data.corpora.CORPORA`), which is fetched beside `out` first; several of one kind make one dataset, and
    the ids of rows then start with their source's name. `columns` names the tables' columns where their names do not
    say what they are: {"document": "body", "answer": "tldr"}.

    Documents are shown as `pages` says (a spec, or some of its fields: {"font_size": 24}), in `fonts`, in order of
    fallback. With `ratio`, the font size is the one at which they take so many times fewer vision tokens of `model`
    than text tokens. Documents of more than `max_pages` are left out, or cut to a window around the answer to a
    question about them. `materialise` also writes their pages as image files, "png" or "webp".

    `workers` are processes of this machine or, with the `engine` "ray", of a Ray cluster. Where `out` is a URL of a
    file system that fsspec knows ("s3://bucket/data"), the dataset is prepared in the local folder `staging` (by
    default one named after the URL, in the current folder) and copied; what is returned stands there. `push` uploads it
    to a hub repository, private unless `public`.
    """
    from visiontune.data.corpora import known_corpus, open_corpus
    from visiontune.data.prepare import prepare as prepare_data
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
    corpora = [None if Path(one).exists() else known_corpus(str(one)) for one in given]
    for one, corpus in zip(given, corpora, strict=True):
        if corpus is None and not Path(one).exists():
            fix = "check the path; `visiontune prepare --list` names the known corpora"
            raise DataError("there is no such folder, file or known corpus", where=str(one), fix=fix)
    fetched = folder.with_name(f"{folder.name}.corpora")
    sources = [
        Named(Path(one), columns) if corpus is None else Named(open_corpus(corpus, fetched, limit=limit), None, corpus)
        for one, corpus in zip(given, corpora, strict=True)
    ]
    options: dict[str, Any] = {"seed": seed, "limit": limit, "strict": strict, "workers": workers, "engine": engine}
    options |= {"pages": pages, "fonts": _paths(fonts), "max_pages": max_pages, "fit": fit, "materialise": materialise}
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


def _paths(sources: Sequence[Source] | None) -> list[Path] | None:
    return None if sources is None else [Path(source) for source in sources]


def train(
    *data: Source,
    model: str,
    out: Source,
    weights: Sequence[float] | None = None,
    preset: str | None = None,
    recipe: Source | None = None,
    epochs: float | None = None,
    limit: int | None = None,
    device_profile: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Run:
    """Train on one or several datasets (folders that are not prepared yet are prepared inside `out`).

    The recipe is derived from data, model and machine; `preset` (quick, standard, quality, low-memory), `recipe` (a
    YAML file, whole or partial) and `overrides` (`{"lora.rank": 8}`) change its fields, in this order. `device_profile`
    names the device that the model is for ("android-256"): training then sees the very pixels and prompts that the
    device will. Raises VisiontuneError.
    """
    from visiontune.machine import hardware
    from visiontune.models.load import is_tiny, read_config
    from visiontune.recipe import check_names, fragment_names, read_fragment, read_preset
    from visiontune.run import Run
    from visiontune.training.loop import train_run
    from visiontune.training.plan import derive, plan_run, refuse_taken
    from visiontune.training.ranks import Ranks

    run = Run(out)
    changes = dict(overrides or {})
    fragment = read_fragment(Path(recipe)) if recipe is not None else {}
    first, usual_epochs = read_preset(preset) if preset is not None else ({}, None)
    device: Device | None = changes.get("machine.device", fragment.get("machine", {}).get("device"))
    machine = hardware(device)
    ranks = Ranks(machine.device)
    if ranks.is_first:
        # What can be known to be wrong at once is said before hours are spent on preparing data.
        if not data:
            raise DataError("No data were given.", fix="visiontune train DATA --model NAME --out RUN")
        check_names([*changes, *fragment_names(fragment)])
        refuse_taken(run)
        if not is_tiny(model):
            read_config(model)
        names = [Path(s).name if len(data) == 1 else f"{i}-{Path(s).name}" for i, s in enumerate(data)]
        sources = zip(data, names, strict=True)
        datasets = [_dataset(source, run.path / "data" / name, limit) for source, name in sources]
        shares = list(weights) if weights is not None else [None] * len(datasets)
        if len(shares) != len(datasets):
            raise DataError(
                f"{len(datasets)} datasets need as many weights; there are {len(shares)}.", where="--weights"
            )
        planned = derive(
            datasets, shares, model, machine, ranks=ranks.count, limit=limit, profile=device_profile,
            epochs=usual_epochs if epochs is None else epochs,
        )  # fmt: skip
        planned = planned.overlaid(first).overlaid(fragment).changed(changes)
        plan_run(run, planned, datasets)
    ranks.wait()
    return _trained(train_run, run)


def _dataset(source: Source, prepared: Path, limit: int | None) -> Dataset:
    """The prepared dataset at `source`, or the folder there prepared; DataError where a fault forbids training.

    One at a URL is fetched into the folder `prepared`.
    """
    from visiontune.data.dataset import Dataset
    from visiontune.data.dataset_info import INFO_NAME
    from visiontune.data.remote import fetch, is_url

    if is_url(source):
        source = fetch(str(source), prepared)
    source = Path(source)
    dataset = Dataset.open(source) if (source / INFO_NAME).is_file() else prepare(source, prepared, limit=limit)
    if errors := [fault for fault in dataset.info.faults if fault.severity == "error"]:
        first = errors[0]
        raise DataError(
            f"The data have {len(errors)} errors, the first: {first.found}", where=first.where, fix=first.fix
        )
    return dataset


def _trained(train_run: Any, run: Run) -> Run:
    from visiontune.machine import is_first_process
    from visiontune.report import write_report

    try:
        return train_run(run)
    finally:
        if is_first_process() and run.recipe_path.exists():
            note(f"report: {write_report(run)}")


def resume(run: Source) -> Run:
    """Go on with a run from its latest checkpoint; only the folder is needed. Raises VisiontuneError."""
    from visiontune.run import Run
    from visiontune.training.loop import train_run

    return _trained(train_run, Run.open(run))


def pause(run: Source) -> Run:
    """Ask the trainer of a run to checkpoint and stop at its next step."""
    from visiontune.run import Run

    opened = Run.open(run)
    opened.ask_to_pause()
    return opened


def evaluate(
    run: Source,
    *,
    split: str = "test",
    require: str | Sequence[str] = (),
    limit: int | None = None,
    step: int | None = None,
    device: Device | None = None,
    ratios: Sequence[float] = (),
    bertscore: str | None = None,
    bertscore_layer: int | None = None,
) -> TextScores:
    """Answer a split with the best checkpoint (or that of `step`) and score the answers.

    `require` holds conditions like "accuracy>=0.85"; raises RequirementError where one does not hold. At `ratios` of
    text tokens to vision tokens documents are drawn and answered again (`training.ratios`). `bertscore` names an
    encoder (hub id or folder) for BERTScore, by its last layer or `bertscore_layer`.
    """
    from visiontune.metrics.bertscore import Embedder
    from visiontune.metrics.requirements import parse_requirements
    from visiontune.report import write_report
    from visiontune.run import Run
    from visiontune.training.evaluate import answered, evaluate_baselines, evaluate_split
    from visiontune.training.model import load_trained, open_datasets
    from visiontune.training.ranks import Ranks
    from visiontune.training.ratios import MOST_DOCUMENTS, check_ratios, evaluate_ratios

    requirements = parse_requirements(require) if require else ()
    opened = Run.open(run)
    recipe = _on_device(opened, device)
    check_ratios(ratios, recipe)
    if bertscore is None and bertscore_layer is not None:
        raise RecipeError("A layer is given, and no encoder.", where="--bertscore-layer", fix="--bertscore ENCODER")
    datasets = open_datasets(recipe)
    if sum(dataset.count(split) for dataset in datasets) == 0:
        raise DataError(f"Split '{split}' is empty.", where=str(run), fix="use another --split, or prepare more data")
    ranks = Ranks(recipe.machine.device)
    embedder = None if bertscore is None else Embedder(bertscore, layer=bertscore_layer, device=ranks.device)
    adapter, step = load_trained(opened, recipe, ranks.device, step)
    scores = evaluate_split(opened, adapter, datasets, split, recipe, ranks, step, limit=limit, embedder=embedder)
    if ranks.is_first and recipe.data.pages is not None:
        for one in evaluate_baselines(opened, adapter, datasets, split, recipe, ranks.device, step, limit=limit):
            ahead = _shown(one.ahead)
            note(f"beside it, {one.name}: ROUGE-L {_shown(one.metrics['rougeL'])}, the model ahead by {ahead}")
    if ranks.is_first and ratios:
        known = answered(opened, datasets, split, limit=limit, most=MOST_DOCUMENTS)
        points, unreachable = evaluate_ratios(opened, adapter, *known, split, ratios, recipe, ranks.device, step)
        for point in points:
            of = "own pages" if point.asked is None else f"{point.asked:g} asked for"
            note(f"ratio {point.ratio:.1f} ({of}, {point.font_size} px): ROUGE-L {_shown(point.metrics['rougeL'])}")
        for one in unreachable:
            note(f"ratio {one.asked:g} is not reached: {one.reason}")
    if ranks.is_first:
        note(f"report: {write_report(opened)}")
    if failed := [f"{r} (found {scores.metric(r.metric).value})" for r in requirements if not r.holds(scores)]:
        raise RequirementError(f"Required, and not so: {'; '.join(failed)}.", where=f"{run}, {split} split")
    return scores


def _shown(metric: Metric) -> str:
    return "–" if metric.value is None else f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})"


def predict(
    run: Source,
    images: Sequence[Source],
    *,
    prompt: str | None = None,
    limit: int | None = None,
    step: int | None = None,
    device: Device | None = None,
) -> list[Prediction]:
    """Answers about image files, or all images of folders, by a run or by the file of a shipped folder itself.

    A run that was trained on documents answers about text files. Raises DataError for a file that cannot be read.
    """
    from visiontune.data.images import SUFFIXES, TEXT_SUFFIXES, image_files
    from visiontune.exports.shipment import is_shipment, predict_shipped

    if absent := [source for source in images if not Path(source).exists()]:
        raise DataError("There is no such file or folder.", where=str(absent[0]), fix="check the path")
    if is_shipment(Path(run)):
        paths = [path for source in images for path in image_files(Path(source))][:limit]
        return predict_shipped(Path(run), paths, prompt=prompt)
    from visiontune.run import Run
    from visiontune.training.evaluate import predict_files
    from visiontune.training.model import load_trained
    from visiontune.training.ranks import Ranks

    opened = Run.open(run)
    recipe = _on_device(opened, device)
    suffixes = SUFFIXES if recipe.data.pages is None else TEXT_SUFFIXES
    paths = [path for source in images for path in image_files(Path(source), suffixes)][:limit]
    ranks = Ranks(recipe.machine.device)
    adapter, step = load_trained(opened, recipe, ranks.device, step)
    return predict_files(opened, adapter, paths, recipe, ranks.device, step, prompt)


def _on_device(run: Run, device: Device | None) -> Any:
    """The run's recipe on the device asked for, else on its own one where it is here, else on the best one here."""
    import torch

    from visiontune.machine import available_devices, hardware

    recipe = run.recipe
    if device is None and recipe.machine.device not in available_devices():
        warn(f"the run was trained on {recipe.machine.device}, which is not here; using {available_devices()[0]}")
        device = available_devices()[0]
    chosen = hardware(device or recipe.machine.device)
    torch.set_num_threads(recipe.machine.threads)
    precision = recipe.machine.precision if chosen.device == recipe.machine.device else "fp32"
    machine = recipe.machine.model_copy(update={"device": chosen.device, "precision": precision})
    return recipe.model_copy(update={"machine": machine})


FORMS = ("adapter", "merged", "gguf")


def export(
    run: Source,
    *,
    to: Sequence[str] | str,
    out: Source | None = None,
    quantisation: str = "q8_0",
    dtype: DataType | None = None,
    step: int | None = None,
    samples: int = 64,
    limit: int | None = None,
    with_inputs: bool = False,
    push: str | None = None,
    public: bool = False,
) -> dict[str, Path]:
    """Write the trained model as `adapter` (plain PEFT), `merged` (plain transformers), `gguf` (llama.cpp), or several.

    One form goes to `out` itself, several to folders of their names inside; without `out`, to the run's own folder
    `exports`. A GGUF export runs `samples` inputs through model and file and writes the certificate; CertificateError
    where they differ. `limit` shortens its evaluation, `with_inputs` puts the compared pictures beside. `push` uploads
    to a hub repository, private unless `public`. Returns the folders.
    """
    from visiontune.run import Run

    opened = Run.open(run)
    forms = [form.strip() for form in (to.split(",") if isinstance(to, str) else to)]
    if unknown := [form for form in forms if form not in FORMS] or [f for f in forms if forms.count(f) > 1]:
        raise VisiontuneError(
            f"'{unknown[0]}' is no export form, or asked for twice.", fix=f"forms: {', '.join(FORMS)}"
        )
    base = opened.path / "exports" if out is None else Path(out)
    folders = {form: base if out is not None and len(forms) == 1 else base / form for form in forms}
    if plain := [form for form in forms if form != "gguf"]:
        from visiontune.exports.weights import export_weights

        export_weights(opened, plain, [folders[form] for form in plain], step, dtype)
    if "gguf" in forms:
        from visiontune.exports.ship import ship
        from visiontune.report import write_report

        options: dict[str, Any] = {"samples": samples, "limit": limit, "with_inputs": with_inputs}
        try:
            ship(opened, folders["gguf"], quantisation, step=step, **options)
        finally:
            write_report(opened)
    if push is not None:
        from visiontune.exports.hub import push_folders

        push_folders(folders, push, private=not public)
    return folders


def verify(path: Source, *, run: Source | None = None, data: Source | None = None) -> list[Check]:
    """Run the certificate of a shipped folder again, or check that a run is what its folder says.

    `run` (the run that was shipped) or `data` (its prepared dataset) give what did not travel with the files. Raises
    CertificateError where a check fails.
    """
    from visiontune.data.dataset import Dataset
    from visiontune.exports.certificate import failures
    from visiontune.exports.shipment import is_shipment
    from visiontune.run import Run

    path = Path(path)
    if is_shipment(path) or not (path / "recipe.yaml").is_file():
        from visiontune.exports.verify import verify_shipment

        opened = None if run is None else Run.open(run)
        checks = verify_shipment(path, opened, None if data is None else Dataset.open(Path(data)))
    else:
        from visiontune.exports.verify_run import verify_run

        checks = verify_run(Run.open(path))
    if failed := failures(checks):
        for check in checks:
            note(f"{check.status:11} {check.name}: {check.found}")
        raise CertificateError(f"Not what it should be. {failed}", where=str(path), fix="export or train it again")
    return checks


def doctor() -> dict[str, Any]:
    """This machine: devices, memory, disk, versions, and what is missing for what."""
    from visiontune.machine import doctor as examine

    return examine()
