"""certificate.html: the certificate as a page, for a person who must decide whether to ship.

It is made of certificate.json and of what stands beside it, so it can be made again from the folder alone.
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import numpy as np
from markupsafe import Markup

from visiontune.contract import DeviceContract
from visiontune.data.images import decode
from visiontune.data.sample import Prediction
from visiontune.errors import DataError
from visiontune.exports.certificate import INPUTS_FOLDER
from visiontune.exports.interval_chart import Row, around, interval_chart
from visiontune.exports.reference import REFERENCE_NAME, Reference, pixels_sha256, read_references
from visiontune.exports.shipment import Shipment
from visiontune.files import write_text
from visiontune.metric_names import NAMES
from visiontune.page import fact, fill, thousands

PAGE_NAME = "certificate.html"
PREDICTIONS = "evaluation/validation/predictions.jsonl"
STATUS_ORDER = ("failed", "not checked", "passed")
SAMPLES_SHOWN = 20
PICTURES_SHOWN = 64
LABELS_SHOWN = 50
SHOWN_PIXELS = 128
STORED_EXACTLY = 128  # larger pictures are stored as JPEG

Entry = dict[str, Any]


def write_page(folder: Path, value: dict[str, Any]) -> None:
    """Write certificate.html into a shipped folder; `value` is what certificate.json says.

    An export that failed early has neither speed nor runtime: the page says so.
    """
    checks = sorted(value["checks"], key=lambda check: STATUS_ORDER.index(check["status"]))
    shipment = Shipment.model_validate(value["contract"])
    answers = _answers(folder, shipment)
    pictures, left_out = _pictures(folder, shipment, answers)
    facts = {
        "value": value,
        "tally": Counter(check["status"] for check in checks),
        "status_order": STATUS_ORDER,
        "checks": [(check, limit_of(check, value["limits"])) for check in checks],
        "base_model": _without_folder(value["trained"]["base_model"]),
        "trained": _trained(value),
        "shipped": _shipped(value),
        "metric": _metric(value),
        "files": _files(value),
        "contract": _contract(shipment),
        "shipment": shipment,
        "compared_answers": any(check["name"] == "tokens" and check["numbers"] for check in checks),
        "others": _others(value, answers),
        "samples_shown": SAMPLES_SHOWN,
        "pictures": pictures,
        "pictures_shown": PICTURES_SHOWN,
        "left_out": left_out,
    }
    write_text(folder / PAGE_NAME, fill("certificate.html", facts, shown_pixels=SHOWN_PIXELS))


def limit_of(check: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    """What a check may find and still pass, in words."""
    numbers = check["numbers"]
    match check["name"]:
        case "log-probabilities":
            return f"a mean distance of at most {limits['log_probability']:g}"
        case "tokens" | "labels":
            beyond = f"{_percent(limits['disagreement'])} of the samples"
            if "allowed" in numbers:
                beyond = f"{numbers['allowed']} of {numbers['inputs']} samples"
            return f"another one where the lead was at most {limits['near_tie']:g}; beyond that in {beyond}"
        case "metric":
            return f"lower by at most {_percent(limits['drop'])}; by one right answer always"
        case "weights":
            return "the rounding of each tensor's type"
    return "no difference"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _trained(value: Entry) -> list[tuple[str, str]]:
    trained = value["trained"]
    base = _without_folder(trained["base_model"])
    return [
        ("Run", value["name"]),
        ("Step", thousands(trained["step"])),
        ("Base model", f"{base} at {trained['revision']}" if trained["revision"] else base),
        *[("Data, content hash", content_hash) for content_hash in trained["data"]],
        ("Recipe, SHA-256", trained["recipe_sha256"]),
        ("Receipts", "; ".join(f"{name}: {status}" for name, status in trained["receipts"].items()) or "none"),
    ]


def _shipped(value: Entry) -> list[tuple[str, str]]:
    inputs, speed, asked = value["inputs"], value["speed"], bool(value["runtime"])
    metric, limit = _metric_numbers(value), inputs["evaluation_limit"]
    part = "the whole validation split" if limit is None else f"the first {thousands(limit)} rows of validation at most"
    return [
        ("Quantisation", value["quantisation"]),
        ("Runtime", value["runtime"] or "not known: the files could not be asked"),
        ("Machine", f"{speed['machine']}, {speed['threads']} threads" if speed else "not known"),
        ("Compared by tokens", f"{thousands(inputs['compared'])} validation samples" if asked else "nothing"),
        ("Evaluated", f"{part}: {thousands(metric['trained']['n'])} samples" if metric else "nothing"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in value["versions"].items())),
    ]


def _without_folder(name: str) -> str:
    """A model's name; of a folder of some computer only its last part, for the page goes elsewhere."""
    is_folder = name[:1] in "/.~" or PureWindowsPath(name).is_absolute()
    return PureWindowsPath(name).name if is_folder and "\\" in name else PurePath(name).name if is_folder else name


def _metric(value: Entry) -> Entry | None:
    """The task metric of both and the difference, with the charts; None where it was not compared."""
    found = _metric_numbers(value)
    if found is None:
        return None
    title = NAMES.get(found["name"], found["name"])
    both: list[Row] = [(name, *_ends(found[name])) for name in ("trained", "shipped")]
    difference: list[Row] = [("difference", *_ends(found["difference"]))]
    _, _, low, high = difference[0]
    farthest = around([("", 0, -max(-low, high, 0.0), max(-low, high, 0.005))], -1.0, 1.0)[1]
    words = "the interval holds zero: these samples show no difference"
    if low > 0 or high < 0:
        words = f"the shipped files are {'better' if low > 0 else 'worse'} on these samples, beyond chance"
    return {
        "title": title,
        "numbers": found,
        "words": words,
        "both": Markup(interval_chart(both, around(both, 0.0, 1.0), name=f"{title}: {_in_words(both)}")),
        "difference": Markup(
            interval_chart(
                difference,
                (-farthest, farthest),
                zero=True,
                name=f"{title}, shipped minus trained: {_in_words(difference)}",
            )
        ),
    }


def _metric_numbers(value: Entry) -> Entry | None:
    found = next((check["numbers"] for check in value["checks"] if check["name"] == "metric"), {})
    return found if found and found["difference"]["value"] is not None else None


def _ends(metric: Entry) -> tuple[float, float, float]:
    return metric["value"], metric["low"], metric["high"]


def _in_words(rows: Sequence[Row]) -> str:
    return "; ".join(f"{name} {at:.4g}, 95 % interval {low:.4g} to {high:.4g}" for name, at, low, high in rows)


def _files(value: Entry) -> list[Entry]:
    """The shipped files: size beside the predicted one, types of the tensors."""
    rows = []
    for name, file in value["files"].items():
        predicted = value["predicted_bytes"].get(name)
        rows.append(
            {
                "name": name,
                "bytes": file["bytes"],
                "predicted": predicted,
                "more": None if predicted is None else file["bytes"] - predicted,
                "types": ", ".join(f"{count} {kind}" for kind, count in file["types"].items()),
                "sha256": file["sha256"],
            }
        )
    return rows


def _contract(shipment: Shipment) -> list[tuple[str, str, str]]:
    """(field, value, what it is) of contract.json; prompts stand by themselves."""
    rows = []
    for model, left_out in (
        (shipment, {"device", "example_prompt", "labels", "schema_version"}),
        (shipment.device, {"prompt"}),
    ):
        for name, field in type(model).model_fields.items():
            if name not in left_out:
                found = getattr(model, name)
                shown = "none" if found is None else str(found) if isinstance(found, int) else fact(found)
                rows.append((name.replace("_", " "), shown, field.description or ""))
    if shipment.labels is not None:
        names = [label.label for label in shipment.labels]
        more = f" … ({thousands(len(names))} in all)" if len(names) > LABELS_SHOWN else ""
        rows.append(("labels", ", ".join(names[:LABELS_SHOWN]) + more, "the labels to score"))
    return rows


@dataclass(frozen=True)
class Answer:
    """One compared sample; `shipped` is None where the shipped file's answer is not known."""

    reference: Reference
    trained: str
    shipped: str | None

    @property
    def mood(self) -> str:
        """What to look at: "other" answer than the trained model, "wrong" like it, or "right"."""
        if self.shipped is not None and self.shipped.strip() != self.trained.strip():
            return "other"
        return "right" if self.trained.strip() == self.reference.truth.strip() else "wrong"


def _answers(folder: Path, shipment: Shipment) -> dict[str, Answer]:
    """The compared samples by id, as far as the folder knows them; an id that two samples have stays out."""
    if not (folder / REFERENCE_NAME).is_file():
        return {}
    references = read_references(folder / REFERENCE_NAME)
    shipped: dict[str, str] = {}
    seen: Counter[str] = Counter()
    path = folder / PREDICTIONS
    for line in path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else ():
        prediction = Prediction.from_json(json.loads(line))
        seen[prediction.id] += 1
        shipped[prediction.id] = prediction.target.answer
    twice = {name for name, count in (Counter(r.id for r in references) | seen).items() if count > 1}
    return {r.id: Answer(r, _trained_answer(r, shipment), shipped.get(r.id)) for r in references if r.id not in twice}


def _trained_answer(reference: Reference, shipment: Shipment) -> str:
    """The most probable label where labels are scored, as the shipped file answers too; else the greedy answer."""
    if reference.labels is None or shipment.labels is None:
        return reference.text
    return shipment.labels[int(np.argmax(reference.labels))].label


def _others(value: Entry, answers: Mapping[str, Answer]) -> list[Entry]:
    """The samples that the tokens' and the labels' checks name, the largest lead first."""
    near = value["limits"]["near_tie"]
    rows = []
    for check in value["checks"]:
        numbers = check["numbers"]
        if check["name"] == "tokens":
            found = [
                (entry, entry["margin"], f"token {entry['place']}") for entry in _listed(numbers, "near_ties", "beyond")
            ]
        elif check["name"] == "labels":
            found = [(entry, entry["lead"], "label") for entry in _listed(numbers, "other")]
        else:
            continue
        for entry, lead, place in found:
            known = answers.get(entry["id"])
            rows.append({"id": entry["id"], "place": place, "lead": lead, "beyond": lead > near, "known": known})
    return sorted(rows, key=lambda row: -row["lead"])


def _listed(numbers: Entry, *names: str) -> list[Entry]:
    return [entry for name in names for entry in numbers.get(name, [])]


def _pictures(folder: Path, shipment: Shipment, answers: Mapping[str, Answer]) -> tuple[list[tuple[Answer, str]], int]:
    """(sample, picture as a data URI) of the inputs that travel with it, and how many there are beyond those.

    Other answers come first, then wrong ones. A file whose picture is not the compared one is left out.
    """
    place = folder / INPUTS_FOLDER
    if not place.is_dir():
        return [], 0
    order = ("other", "wrong", "right")
    shown = []
    for answer in sorted(answers.values(), key=lambda answer: order.index(answer.mood)):
        path = place / answer.reference.image_sha256
        uri = _as_seen(path.read_bytes(), answer.reference, shipment.device) if path.is_file() else None
        if uri is not None:
            shown.append((answer, uri))
    return shown[:PICTURES_SHOWN], len(shown[PICTURES_SHOWN:])


def _as_seen(data: bytes, reference: Reference, device: DeviceContract) -> str | None:
    """The picture that the model saw, as a data URI; None where the file does not give that picture."""
    try:
        picture = device.picture(decode(data))
    except DataError:
        return None
    if pixels_sha256(np.asarray(picture)) != reference.pixels_sha256:
        return None
    buffer, kind = io.BytesIO(), "png" if device.image_size <= STORED_EXACTLY else "jpeg"
    picture.save(buffer, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
