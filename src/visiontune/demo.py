"""The demonstration: scikit-learn's scanned handwritten digits as PNG files in class folders, through every verb, to
the file that llama.cpp runs."""

import json
import time
from pathlib import Path
from typing import Any

from visiontune import api
from visiontune.data.sample import Prediction
from visiontune.errors import MachineError
from visiontune.exports.certificate import CERTIFICATE_NAME
from visiontune.exports.shipment import is_shipment
from visiontune.files import folder_written_whole
from visiontune.progress import note
from visiontune.run import Run
from visiontune.words import counted

REQUIRED = "accuracy>=0.96"
PREDICTED = 5


def write_digits(folder: Path) -> None:
    """Write the 1,797 scans (8x8 pixels, grey) as `folder/CLASS/NUMBER.png`. Needs scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MachineError(
            "The demo takes its scans from scikit-learn, which is not installed.", fix="pip install 'visiontune[demo]'"
        ) from error
    from PIL import Image

    scans, labels = load_digits(return_X_y=True)
    with folder_written_whole(folder) as aside:
        for number, (scan, label) in enumerate(zip(scans, labels, strict=True)):
            place = aside / str(label)
            place.mkdir(exist_ok=True)
            Image.fromarray((scan.reshape(8, 8) * 255 / 16).round().astype("uint8")).save(place / f"{number:04d}.png")


def digits(out: Path) -> tuple[dict[str, Any], str]:
    """Inspect, prepare, train for a device, evaluate, export and predict in `out`; what stands there is used again.

    Returns the result as plain values and as text. Raises RequirementError where the model is worse than promised,
    CertificateError where the exported file is not the trained model.
    """
    started = time.monotonic()
    photos, data, run, shipped = out / "photos", out / "data", Run(out / "run"), out / "ship"
    if not photos.exists():
        write_digits(photos)
    inspection = api.inspect(photos).to_json()
    note(f"{photos}: {inspection['samples']} samples, {counted(len(inspection['faults']), 'fault')}")
    api.prepare(photos, data)
    if run.recipe_path.exists():
        api.resume(run.path)
    else:
        api.train(data, model="tiny/smolvlm", out=run.path, device_profile="desktop-llama")
    scores = api.evaluate(run.path, split="test", require=REQUIRED)
    pictures = sorted(photos.glob("*/*.png"))
    if not is_shipment(shipped):
        api.export(run.path, to="gguf", quantisation="q8_0", out=shipped)
    certificate = json.loads((shipped / CERTIFICATE_NAME).read_text(encoding="utf-8"))
    predictions = api.predict(shipped, pictures[:: len(pictures) // PREDICTED])
    answers = [p for p in predictions if isinstance(p, Prediction)]
    accuracy = scores.metric("accuracy").to_json()
    seconds = time.monotonic() - started
    lines = [f"receipt {receipt['name']}: {receipt['status']} ({receipt['reason']})" for receipt in run.receipts]
    lines += [f"certificate {check['name']}: {check['status']} ({check['found']})" for check in certificate["checks"]]
    lines += [f"{p.source[0]}: {p.target.answer} ({p.scores['confidence']:.2f})" for p in answers]
    lines.append(
        f"accuracy on the test split: {accuracy['value']:.4f} "
        f"(95 % interval {accuracy['low']:.4f} to {accuracy['high']:.4f}, n = {accuracy['n']}), after {seconds:.0f} s"
    )
    size = sum(file["bytes"] for file in certificate["files"].values())
    lines.append(
        f"shipped: {shipped}, {size / 1e6:.2f} MB, {1000 * certificate['speed']['median_seconds']:.0f} ms a picture in "
        f"{certificate['runtime']}; the answers above are its own"
    )
    lines.append(f"report: {run.report_path}")
    value = {
        "accuracy": accuracy,
        "receipts": {receipt["name"]: receipt["status"] for receipt in run.receipts},
        "predictions": [prediction.to_json() for prediction in predictions],
        "certificate": {check["name"]: check["status"] for check in certificate["checks"]},
        "shipped": str(shipped),
        "report": str(run.report_path),
        "seconds": round(seconds, 1),
    }
    return value, "\n".join(lines)
