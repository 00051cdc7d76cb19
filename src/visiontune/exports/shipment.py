"""A shipped folder: the GGUF files, and contract.json, which tells the app and us how to use them. No torch here."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from visiontune.contract import DeviceContract
from visiontune.data.images import decode
from visiontune.data.sample import LabelProbabilities, Prediction, Text
from visiontune.errors import CertificateError, ModelError
from visiontune.exports.llama_server import check_package
from visiontune.exports.reference import REFERENCE_NAME, read_lines
from visiontune.exports.runtime import Runtime
from visiontune.files import write_text
from visiontune.machine import cores
from visiontune.metrics.calibration import tempered
from visiontune.models.labels import LabelTree
from visiontune.progress import progress, warn

CONTRACT_NAME = "contract.json"
SCHEMA_VERSION = 1
CONTEXT = 2048


class LabelTokens(BaseModel):
    """A label and its token ids behind the prompt, the end token included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    tokens: tuple[int, ...]


class Shipment(BaseModel):
    """What contract.json says. Read it with `read_shipment`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    text_model: str = Field(description="file name of the text model")
    projector: str = Field(description="file name of the projector")
    quantisation: str
    device: DeviceContract
    question: str = Field(description="what the model was trained to be asked")
    example_prompt: str = Field(description="the prompt that the app must build for that question")
    context: int = Field(description="tokens of context that the runtime must hold")
    labels: tuple[LabelTokens, ...] | None = Field(description="the labels to score; null: answers are free text")
    temperature: float = Field(default=1.0, description="divides the labels' log-probabilities")
    abstain_below: float | None = Field(default=None, description="confidence below which to answer nothing")

    @property
    def tree(self) -> LabelTree | None:
        """The labels, ready to be scored."""
        if self.labels is None:
            return None
        return LabelTree(tuple(label.label for label in self.labels), tuple(label.tokens for label in self.labels))

    def differences(self, other: "Shipment") -> list[str]:
        """What the other shipment does otherwise, field by field: "field: mine became its"."""
        found = self.device.differences(other.device)
        for name in type(self).model_fields:
            mine, its = getattr(self, name), getattr(other, name)
            if name != "device" and mine != its:
                shown = "" if name == "labels" else f": {mine!r} became {its!r}"
                found.append(f"{name}{shown}" if shown else "labels: other labels or other tokens")
        return found

    def write(self, folder: Path) -> None:
        """Write contract.json."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        write_text(folder / CONTRACT_NAME, text + "\n")


def is_shipment(path: Path) -> bool:
    """Whether a folder holds a shipped model."""
    return (path / CONTRACT_NAME).is_file()


def shipped_members(path: Path) -> list[str]:
    """The names of the folders in a folder that is no shipped model itself, and holds some."""
    if not path.is_dir() or is_shipment(path):
        return []
    return sorted(child.name for child in path.iterdir() if child.is_dir() and is_shipment(child))


def read_shipment(folder: Path) -> Shipment:
    """What contract.json of a shipped folder says; ModelError with what is wrong in it."""
    path = folder / CONTRACT_NAME
    try:
        return Shipment.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError("There is no contract.json here.", where=str(folder), fix="export the run again") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']} (found {f['input']!r})" for f in error.errors())
        raise ModelError(
            f"contract.json is not valid: {faults}", where=str(path), fix="export the run again"
        ) from error


def open_runtime(folder: Path, shipment: Shipment, threads: int) -> Runtime:
    """llama.cpp on the shipped files.

    Raises CertificateError for a missing file, MachineError without the extra or with an older one.
    """
    for name in (shipment.text_model, shipment.projector):
        if not (folder / name).is_file():
            raise CertificateError(
                f"The shipped file {name} is missing.", where=str(folder), fix="export the run again, or copy it here"
            )
    check_package(shipment.device.runtime_version)
    text_model, projector = folder / shipment.text_model, folder / shipment.projector
    return Runtime(text_model, projector, threads=threads, context=shipment.context)


def png(image: Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


Answered = tuple[str, float, LabelProbabilities | None]


def answer(runtime: Runtime, shipment: Shipment, tree: LabelTree | None, picture: bytes, question: str) -> Answered:
    """(text, confidence, probabilities of the labels) about a PNG picture, by the shipped file.

    Labels' probabilities are those of the model, before the temperature.
    """
    device = shipment.device
    prompt = device.prompt_for(question)
    if tree is None:
        made = runtime.answer(prompt, picture, marker=device.marker, max_new_tokens=device.max_new_tokens)
        # A token that ends inside a letter has no probability told: the others speak for it.
        return made.text.strip(), float(np.exp(np.nansum(made.log_probabilities))), None
    probabilities = np.exp(runtime.score_labels(prompt, picture, marker=device.marker, tree=tree))
    best = int(probabilities.argmax())
    return tree.labels[best], float(probabilities[best]), LabelProbabilities(tree.labels, probabilities)


def predict_shipped(
    folder: Path, paths: Sequence[Path], *, prompt: str | None = None, threads: int | None = None
) -> list[Prediction]:
    """Answers about image files by the shipped file itself, in their order; another `prompt` is answered in free text.

    Raises DataError for a file that is no readable image, CertificateError for a missing file.
    """
    shipment = read_shipment(folder)
    tree = shipment.tree if prompt is None else None
    predictions = []
    shown = progress("answering", len(paths), "images")
    with open_runtime(folder, shipment, threads or cores()) as runtime, shown as advance:
        for path in paths:
            picture = png(shipment.device.picture(decode(path.read_bytes())))
            answered = answer(runtime, shipment, tree, picture, prompt or shipment.question)
            predictions.append(prediction(shipment, str(path), answered, Text("", prompt)))
            advance(1)
    return predictions


def tell_shipped_question(folder: Path) -> None:
    """Say which question will be asked where the samples that the folder was compared on did not all ask just that."""
    question, path = read_shipment(folder).question, folder / REFERENCE_NAME
    if not path.is_file() or {line["question"] for line in read_lines(path)} != {question}:
        warn(
            f"the samples that this model was trained on may have brought other questions, and none is given now: "
            f"{question!r} is asked; ask yours with --prompt"
        )


def prediction(shipment: Shipment, source: str, answered: Answered, asked: Text, *, known: bool = False) -> Prediction:
    """An answer as a Prediction, the confidence calibrated; `known`: the truth stands in `asked`."""
    text, confidence, labels = answered
    abstained = None
    if labels is not None:
        values = tempered(labels.values, shipment.temperature)
        labels, confidence = LabelProbabilities(labels.names, values), float(values.max())
        abstained = None if shipment.abstain_below is None else confidence < shipment.abstain_below
    truth = asked if known else None
    return Prediction(source, (source,), Text(text, asked.prompt), {"confidence": confidence}, truth, labels, abstained)
