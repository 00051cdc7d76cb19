"""The card of a shipped ONNX folder: how an app uses it, and what its certificate says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from visiontune.exports.card import CARD_NAME, licence, plain, public_name
from visiontune.exports.onnx_runtime import OnnxContract
from visiontune.files import write_text
from visiontune.models.load import is_tiny
from visiontune.run import Run

FITS = {
    "stretch": "Stretch the upright picture to {side} x {side} pixels",
    "upper_left": "Resize the upright picture to a longer side of {side} pixels, and fill it up with zeros right and "
    "below after the next step",
}
FILTERS = {
    "bilinear": "by mixing the four nearest pixels, without rounding",
    "pillow_bilinear": "with Pillow's BILINEAR",
}
GRAPHS = {
    "rf_detr": "`model.onnx` takes `pixel_values` (batch, 3, {side}, {side}) and gives `logits` (batch, queries, "
    "classes), whose sigmoid is the score of each class, `boxes` (batch, queries, 4) as centre x, centre y, width and "
    "height in shares of the picture{masks}.",
    "sam": "`encoder.onnx` makes `embeddings` of `pixel_values` (batch, 3, {side}, {side}); `decoder.onnx` takes those "
    "of one picture and `boxes` (1, n, 4), left, top, right and bottom in pixels of the square, and gives `masks` (1, "
    "n, height, width), inside above 0, over the whole square, and `scores` (1, n), the overlaps that it expects.",
}
TASKS = {"rf_detr": "object-detection", "sam": "mask-generation"}

CARD = """---
{front}
---

# {name}

An ONNX export by visiontune of the run "{name}" (step {step}, upon {base}), in {dtype}. Certificate: **{verdict}**.

Classes, in the order of the numbers: {classes}. Scores from {threshold:g} on had the best F1 on the validation images.

## Use

1. {fit}, {filter}.
2. Divide by 255, take off {mean} and divide by {std} (red, green, blue).
3. {graphs}

`contract.json` says the same to programs. With visiontune, and without torch:

```python
from pathlib import Path
from visiontune.data.images import decode
from visiontune.exports.onnx_runtime import open_model

objects = open_model(Path(".")).find(decode(Path("photo.jpg").read_bytes()){told})
```

## Certificate

| check | status | found |
|---|---|---|
{checks}
"""


def write_onnx_card(run: Run, folder: Path, contract: OnnxContract, certificate: Mapping[str, Any]) -> None:
    """Write README.md; no folder of this computer is named in it."""
    model = run.recipe.model.name
    public = not is_tiny(model) and not Path(model).exists()
    masks = ", and `masks` (batch, queries, height, width), inside above 0, over the whole picture"
    task = "image-segmentation" if contract.family == "rf_detr" and contract.masks else TASKS[contract.family]
    front = {
        "library_name": "onnx",
        **({"base_model": model, "base_model_relation": "finetune"} if public else {}),
        **licence(run),
        "pipeline_tag": task,
        "tags": ["visiontune", "onnx"],
    }
    card = CARD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        name=plain(contract.name),
        step=certificate["trained"]["step"],
        base=plain(public_name(model)),
        dtype=contract.dtype,
        verdict=certificate["verdict"],
        classes=", ".join(plain(name) for name in contract.classes),
        threshold=contract.score_threshold,
        fit=FITS[contract.fit].format(side=contract.side),
        filter=FILTERS[contract.resize],
        mean=", ".join(f"{value:g}" for value in contract.mean),
        std=", ".join(f"{value:g}" for value in contract.std),
        graphs=GRAPHS[contract.family].format(side=contract.side, masks=masks if contract.masks else ""),
        told=", told=boxes" if contract.family == "sam" else "",
        checks="\n".join(f"| {c['name']} | {c['status']} | {plain(c['found'])} |" for c in certificate["checks"]),
    )
    write_text(folder / CARD_NAME, card)
