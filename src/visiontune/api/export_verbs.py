"""`export` and `verify`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from visiontune.api.data_verbs import Source
from visiontune.api.options import check_limit, check_samples, refuse
from visiontune.data.format_names import ANNOTATIONS
from visiontune.errors import CertificateError, DataError, RunError, VisiontuneError
from visiontune.progress import note, warn
from visiontune.words import command, counted

if TYPE_CHECKING:
    from visiontune.data.format_names import Annotations
    from visiontune.exports.certificate import Check
    from visiontune.exports.weights import DataType


FORMS = ("adapter", "merged", "gguf", "onnx")


def export(
    source: Source,
    *,
    to: Sequence[str] | str,
    out: Source | None = None,
    quantisation: str | None = None,
    dtype: DataType | None = None,
    step: int | None = None,
    samples: int | None = None,
    limit: int | None = None,
    with_inputs: bool = False,
    push: str | None = None,
    public: bool = False,
) -> dict[str, Path]:
    """Write the trained model as `adapter` (plain PEFT), `merged` (plain transformers), `gguf` (llama.cpp; models that
    write text), `onnx` (onnxruntime; RF-DETR and SAM), or several; of a group of runs each to a folder of its role.
    Or write a prepared dataset of boxes and masks as `coco`, `yolo` or `voc`, images and annotations, split by split.

    `source` is a run, a group of runs, or a prepared dataset, of which `out` is needed and no other option taken; what
    a format cannot hold is said, and stands in `export.json` in the folder.

    `quantisation` is the type of a GGUF (q8_0 where not given), or int8 for ONNX (float32 where not given). One form
    goes to `out` itself, several to folders of their names inside; without `out`, to the run's own folder `exports`.
    GGUF and ONNX exports run `samples` inputs (64) through model and file and write the certificate; CertificateError
    where they differ. `limit` shortens its evaluation, `with_inputs` puts the compared pictures beside. `push` uploads
    to a hub repository, private unless `public`; of a group each form to ROLE/FORM in it. Returns the folders. Raises
    RecipeError for an option of other forms.
    """
    from visiontune.run_group import RunGroup, open_run

    forms = _forms(to)
    if _is_dataset(source) or set(forms) & set(ANNOTATIONS):
        options: dict[str, Any] = {"quant": quantisation, "dtype": dtype, "step": step, "samples": samples}
        options |= {"limit": limit, "with_inputs": with_inputs or None, "push": push, "public": public or None}
        return _export_dataset(source, forms, out, options)
    check_samples(samples)
    check_limit(limit)
    if push is None:
        refuse({"public": public or None}, "An export that is not pushed takes")
    opened, variants = open_run(source), _variants(quantisation, dtype, step)
    if isinstance(opened, RunGroup):
        given: dict[str, Any] = {"to": to, "quantisation": quantisation, "dtype": dtype, "step": step}
        given |= {"samples": samples, "limit": limit, "with_inputs": with_inputs}
        variant = "".join(dict.fromkeys(variants[form] for form in forms)) if out is None else ""
        base = opened.path / "exports" if out is None else Path(out)
        places = {role: base / f"{role}{variant}" for role in opened.runs}
        for role, member in opened.runs.items():
            _places(member.path, forms, places[role], variants)
        made = {role: export(member.path, out=places[role], **given) for role, member in opened.runs.items()}
        exported = {f"{role}/{form}": folder for role, folders in made.items() for form, folder in folders.items()}
        if push is not None:
            from visiontune.exports.hub import push_folders

            push_folders(exported, push, private=not public)
        return exported
    folders = _places(opened.path, forms, out, variants)
    if "onnx" in forms and quantisation not in (None, "int8"):
        raise VisiontuneError(
            f"'{quantisation}' is no type of an ONNX graph.", where="--quant", fix="int8, or leave it out"
        )
    these = f"An export to {', '.join(forms)} takes"
    if not {"gguf", "onnx"} & set(forms):
        refuse({"quant": quantisation, "samples": samples, "limit": limit}, these)
    if "gguf" not in forms:
        refuse({"with_inputs": with_inputs or None}, these)
    if "merged" not in forms:
        refuse({"dtype": dtype}, these)
    if opened.recipe.responses is not None:
        raise RunError(
            "A run on recordings has no form for other software.",
            where=str(opened.recipe_path),
            fix=f"{command('predict', opened.path, 'movie.npy')}, or train --from {quote(str(opened.path))}",
        )
    if failed := [receipt["name"] for receipt in opened.receipts if receipt["status"] == "failed"]:
        warn(f"receipts of this run failed: {', '.join(failed)}; its report says why. They go with the files.")
    compared: dict[str, Any] = {"limit": limit} | ({} if samples is None else {"samples": samples})
    from visiontune.exports.place import places_held

    with places_held(folders.values()):
        if plain := [form for form in forms if form in ("adapter", "merged")]:
            from visiontune.exports.weights import export_weights

            export_weights(opened, plain, [folders[form] for form in plain], step, dtype)
        if "gguf" in forms:
            from visiontune.exports.ship import ship
            from visiontune.report import write_report

            try:
                ship(opened, folders["gguf"], quantisation or "q8_0", step=step, with_inputs=with_inputs, **compared)
            finally:
                write_report(opened)
        if "onnx" in forms:
            from visiontune.exports.onnx_ship import ship_onnx
            from visiontune.report import write_report

            try:
                ship_onnx(opened, folders["onnx"], step=step, int8=quantisation == "int8", **compared)
            finally:
                write_report(opened)
    if push is not None:
        from visiontune.exports.hub import push_folders

        push_folders(folders, push, private=not public)
    return folders


def _forms(to: Sequence[str] | str) -> list[str]:
    forms = [form.strip() for form in (to.split(",") if isinstance(to, str) else to)]
    known = (*FORMS, *ANNOTATIONS)
    if unknown := [form for form in forms if form not in known] or [f for f in forms if forms.count(f) > 1]:
        raise VisiontuneError(
            f"'{unknown[0]}' is no export form, or asked for twice.",
            where="--to",
            fix=f"forms: of a run {', '.join(FORMS)}; of a prepared dataset {', '.join(ANNOTATIONS)}",
        )
    return forms


def _variants(quantisation: str | None, dtype: str | None, step: int | None) -> dict[str, str]:
    """What the default folder of each form is called after its name: exports with other settings stand side by side."""
    from visiontune.exports.place import of_step

    kinds = {"gguf": quantisation if quantisation != "q8_0" else None, "onnx": quantisation, "merged": dtype}
    return {form: (f"-{kinds[form]}" if kinds.get(form) else "") + of_step(step) for form in FORMS}


def _places(run: Path, forms: Sequence[str], out: Source | None, variants: Mapping[str, str]) -> dict[str, Path]:
    """The folder of each form; RunError where something stands in one that an export must not replace."""
    from visiontune.exports.place import check_place

    base = run / "exports" if out is None else Path(out)
    named = {form: form + variants[form] if out is None else form for form in forms}
    folders = {form: base if out is not None and len(forms) == 1 else base / named[form] for form in forms}
    for form, folder in folders.items():
        check_place(folder, form, run)
    return folders


def _is_dataset(source: Source) -> bool:
    from visiontune.data.dataset_info import INFO_NAME
    from visiontune.data.remote import is_url

    return is_url(source) or (Path(source) / INFO_NAME).is_file()


def _export_dataset(
    source: Source, forms: Sequence[str], out: Source | None, options: dict[str, Any]
) -> dict[str, Path]:
    """Write a prepared dataset in the forms of annotations, each to a folder of its own."""
    from visiontune.data.annotated_folder import check_annotated, write_annotated
    from visiontune.data.dataset import Dataset
    from visiontune.run_group import RunGroup

    if not _is_dataset(source):
        is_run = RunGroup.stands_at(source) or (Path(source) / "recipe.yaml").is_file()
        form = next(form for form in forms if form in ANNOTATIONS)
        raise DataError(
            f"'{form}' is a form of prepared datasets, and this is {'a run' if is_run else 'none'}.",
            where=str(source),
            fix=f"forms of a run: {', '.join(FORMS)}" if is_run else command("prepare", source, "--out", "data/"),
        )
    if of_runs := [form for form in forms if form in FORMS]:
        raise DataError(
            f"'{of_runs[0]}' is a form of runs, and this is a dataset.",
            where=str(source),
            fix=f"forms of a dataset: {', '.join(ANNOTATIONS)}; or give a run that was trained on it",
        )
    refuse(options, "An export of a dataset takes")
    if out is None:
        raise DataError("An export of a dataset needs a folder to go to.", where=str(source), fix="--out FOLDER")
    dataset = Dataset.open(source)
    wanted: list[Annotations] = [form for form in ANNOTATIONS if form in forms]
    folders: dict[Annotations, Path] = {form: Path(out) if len(wanted) == 1 else Path(out) / form for form in wanted}
    from visiontune.exports.place import places_held

    with places_held(folders.values()):
        for folder in folders.values():
            check_annotated(dataset, folder)
        return {form: write_annotated(dataset, form, folder) for form, folder in folders.items()}


def verify(path: Source, *, run: Source | None = None, data: Source | None = None) -> list[Check]:
    """Run the certificate of a shipped folder again, or check that a run is what its folder says.

    `run` (the run that was shipped) or `data` (its prepared dataset) give what did not travel with the files. Raises
    CertificateError where a check fails, or where the folder's own certificate says that one failed.
    """
    from visiontune.data.dataset import Dataset
    from visiontune.exports.certificate import certified_members, failed_before, failures, is_weights
    from visiontune.exports.onnx_runtime import is_onnx_shipment
    from visiontune.exports.shipment import is_shipment
    from visiontune.run import Run
    from visiontune.run_group import RunGroup

    path = Path(path)
    if not path.exists():
        raise DataError("There is no such folder.", where=str(path), fix="check the path")
    is_group, is_run = RunGroup.stands_at(path), (path / "recipe.yaml").is_file()
    if members := sorted(RunGroup.open(path).runs) if is_group else [] if is_run else certified_members(path):
        raise DataError(
            f"This folder is no model itself, but holds {counted(len(members), 'model')}.",
            where=str(path),
            fix=f"verify {'each: ' * (len(members) > 1)}{', '.join(members)}",
        )
    if is_weights(path):
        from visiontune.exports.weights import verify_weights

        refuse({"data": data}, "Weights are held to the run, --run, and take")
        checks = verify_weights(path, None if run is None else Run.open(run))
    elif is_onnx_shipment(path):
        from visiontune.exports.onnx_verify import verify_onnx

        opened = None if run is None else Run.open(run)
        checks = verify_onnx(path, opened, None if data is None else Dataset.open(Path(data)))
    elif is_shipment(path) or not (path / "recipe.yaml").is_file():
        from visiontune.exports.verify import verify_shipment

        opened = None if run is None else Run.open(run)
        checks = verify_shipment(path, opened, None if data is None else Dataset.open(Path(data)))
    else:
        from visiontune.exports.verify_run import verify_run

        refuse({"run": run, "data": data}, "A run knows its data, and takes")
        checks = verify_run(Run.open(path))
    if failed := failures(checks) or failed_before(path):
        for check in checks:
            note(f"{check.status:11} {check.name}: {check.found}")
        raise CertificateError(f"Not what it should be. {failed}", where=str(path), fix="export or train it again")
    return checks
