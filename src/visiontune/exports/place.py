"""Where an export may go: it takes the place of what stands there, which must be nothing or an earlier one."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from visiontune.errors import CertificateError, RunError
from visiontune.exports.card import CARD_NAME
from visiontune.exports.certificate import CERTIFICATE_NAME, INPUTS_FOLDER, read_certificate
from visiontune.exports.certificate_page import PAGE_NAME
from visiontune.exports.reference import REFERENCE_NAME
from visiontune.exports.shipment import CONTRACT_NAME
from visiontune.lock import held

# What stands beside the files that a certificate lists.
_BESIDE = {
    "gguf": {CONTRACT_NAME, REFERENCE_NAME, PAGE_NAME, "Modelfile", "evaluation", INPUTS_FOLDER},
    "onnx": {CONTRACT_NAME, REFERENCE_NAME},
}
# What transformers and PEFT write: certificates of weights once listed the tensors alone.
_OF_WEIGHTS = {
    "adapter_config.json", "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json",
    "device.json", "generation_config.json", "merges.txt", "model.safetensors.index.json", "preprocessor_config.json",
    "processor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "video_preprocessor_config.json", "vocab.json", "vocab.txt",
}  # fmt: skip


def check_place(out: Path, form: str, run: Path) -> None:
    """Raise RunError where an export of this form may not take the place of `out`: the run, a folder around it or
    around where one stands, or anything but an empty folder and an earlier export of the form."""
    place, fix = out.resolve(), "choose another --out"
    if run.resolve().is_relative_to(place):
        raise RunError("An export would take the place of the run.", where=str(out), fix=fix)
    if Path.cwd().is_relative_to(place):
        found = "An export takes the place of its folder, and this is the one you are in, or one around it."
        raise RunError(found, where=str(out), fix=fix)
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    try:
        value = read_certificate(place)
    except CertificateError:
        value = {}
    if _form(value) != form:
        raise RunError("This folder holds something else.", where=str(out), fix=fix)
    listed = {Path(name).parts[0] for name in value.get("files", {})}
    known = listed | {CERTIFICATE_NAME, CARD_NAME} | _BESIDE.get(form, _OF_WEIGHTS)
    if others := sorted({path.name for path in place.iterdir()} - known):
        raise RunError(f"This folder holds something else: {', '.join(others[:5])}.", where=str(out), fix=fix)


def of_step(step: int | None) -> str:
    """What the name of an export ends with that is not of the run's best checkpoint."""
    return "" if step is None else f"-step-{step}"


@contextmanager
def places_held(places: Iterable[Path]) -> Iterator[None]:
    """Hold the places that an export goes to, so that no other one goes there meanwhile; RunError where one does.

    The locks stand among the temporary files of this machine: beside a place they would be taken for the user's own.
    """
    with ExitStack() as stack:
        for place in sorted(place.resolve() for place in places):
            name = hashlib.sha256(str(place).encode("utf-8", "surrogateescape")).hexdigest()[:32]
            lock = Path(tempfile.gettempdir()) / f"visiontune-export-{os.getuid()}-{name}.lock"
            fix = "wait for it, or choose another --out"
            stack.enter_context(held(lock, "is exporting to this place.", place, fix))
        yield


def _form(value: dict[str, Any]) -> str | None:
    """The form that a certificate is of; that of GGUF files names their type instead."""
    return value.get("form", "gguf" if "quantisation" in value else None)
