"""The demonstration: scikit-learn's scanned handwritten digits as PNG files in class folders, through every verb."""

from pathlib import Path
from typing import Any

from visiontune.errors import MachineError
from visiontune.files import folder_written_whole

if TYPE_CHECKING:
    pass

REQUIRED = "accuracy>=0.96"


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
    """Prepare, train, evaluate and predict in `out`; what stands there from an earlier call is used again.

    Returns the result as plain values and as text.
    Raises RequirementError where the trained model is worse than the demo promises.
    """
    started = time.monotonic()
    photos, data, run = out / "photos", out / "data", Run(out / "run")
    if not photos.exists():
        write_digits(photos)
    note(f"pictures: {photos}")
    inspection = visiontune.inspect(photos).to_json()
    note(f"{inspection['samples']} samples, {len(inspection['faults'])} faults")
    visiontune.prepare(photos, data)
    if run.recipe_path.exists():
        visiontune.resume(run.path)
    else:
        visiontune.train(data, model="tiny/smolvlm", out=run.path)
    scores = visiontune.evaluate(run.path, split="test", require=REQUIRED)
    pictures = sorted(photos.glob("*/*.png"))[:: len(list(photos.glob("*/*.png"))) // 5]
    predictions = visiontune.predict(run.path, pictures)
    accuracy = scores.metric("accuracy")
    lines = [f"receipt {receipt['name']}: {receipt['status']} ({receipt['reason']})" for receipt in run.receipts]
    lines += [f"{p.source[0]}: {p.target.answer} ({p.scores['confidence']:.2f})" for p in predictions]
    lines.append(
        f"accuracy on the test split: {accuracy.value:.4f} (95 % interval {accuracy.low:.4f} to {accuracy.high:.4f}, "
        f"n = {accuracy.n}), after {time.monotonic() - started:.0f} s"
    )
    lines.append(f"report: {run.report_path}")
    value = {
        "accuracy": accuracy.to_json(),
        "receipts": {receipt["name"]: receipt["status"] for receipt in run.receipts},
        "predictions": [prediction.to_json() for prediction in predictions],
        "report": str(run.report_path),
        "seconds": round(time.monotonic() - started, 1),
    }
    return value, "\n".join(lines)
