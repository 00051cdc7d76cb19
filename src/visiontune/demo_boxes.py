"""The demonstration of boxes: shapes drawn on photographs, learned by a small real-time detector, shipped as ONNX.

It takes about ten minutes on two CPU cores.
"""

import json
import time
from pathlib import Path
from typing import Any

from visiontune import api
from visiontune.data.sample import ObjectPrediction
from visiontune.demo_shapes import CLASSES, draw_source, photographs
from visiontune.exports.certificate import CERTIFICATE_NAME
from visiontune.progress import note
from visiontune.run import Run
from visiontune.words import counted

IMAGES, SIZE = 600, (128, 128)
REQUIRED = "box_ap50>=0.9"
PREDICTED, LEAST = 4, 0.5


def boxes(out: Path) -> tuple[dict[str, Any], str]:
    """Inspect, prepare, train, evaluate, export and predict in `out`; what stands there is used again.

    Returns the result as plain values and as text. Raises RequirementError where the model is worse than promised,
    CertificateError where the exported file is not the trained model.
    """
    started = time.monotonic()
    source, data, run, shipped = out / "shapes", out / "data", Run(out / "run"), out / "ship"
    if not source.exists():
        draw_source(source, IMAGES, size=SIZE, classes=CLASSES[:3], masks=False, grounds=photographs())
    inspection = api.inspect(source / "annotations.json").to_json()
    note(f"{source}: {inspection['samples']} images, {counted(len(inspection['faults']), 'fault')}")
    api.prepare(source / "annotations.json", data)
    if run.recipe_path.exists():
        api.resume(run.path)
    else:
        api.train(data, model="tiny/rf-detr", out=run.path)
    scores = api.evaluate(run.path, split="test", require=REQUIRED)
    if not (shipped / CERTIFICATE_NAME).is_file():
        api.export(run.path, to="onnx", out=shipped)
    certificate = json.loads((shipped / CERTIFICATE_NAME).read_text(encoding="utf-8"))
    pictures = sorted((source / "images").glob("*.png"))[:PREDICTED]
    predictions = api.predict(shipped, pictures, pictures=out / "pictures")
    figures = {name: scores.metric(name).to_json() for name in ("box_ap", "box_ap50")}
    seconds = time.monotonic() - started
    lines = [f"receipt {receipt['name']}: {receipt['status']} ({receipt['reason']})" for receipt in run.receipts]
    lines += [f"certificate {check['name']}: {check['status']} ({check['found']})" for check in certificate["checks"]]
    lines += [f"{p.source[0]}: {_found(p)}" for p in predictions if isinstance(p, ObjectPrediction)]
    lines += [
        f"{name} on the test split: {one['value']:.4f} (95 % interval {one['low']:.4f} to {one['high']:.4f}, "
        f"n = {one['n']})"
        for name, one in figures.items()
    ]
    lines.append(f"shipped: {shipped}, after {seconds:.0f} s; pictures with what it finds: {out / 'pictures'}")
    lines.append(f"report: {run.report_path}")
    value = {
        **figures,
        "receipts": {receipt["name"]: receipt["status"] for receipt in run.receipts},
        "certificate": {check["name"]: check["status"] for check in certificate["checks"]},
        "shipped": str(shipped),
        "report": str(run.report_path),
        "seconds": round(seconds, 1),
    }
    return value, "\n".join(lines)


def _found(prediction: ObjectPrediction) -> str:
    target = prediction.target
    scores = [] if target.scores is None else target.scores.tolist()
    pairs = zip(target.classes.tolist(), scores, strict=True)
    return ", ".join(f"{prediction.classes[c]} {score:.2f}" for c, score in pairs if score >= LEAST) or "nothing found"
