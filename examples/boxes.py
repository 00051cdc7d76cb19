"""Boxes in images: train a small detector, and draw what it finds.

    python examples/boxes.py [ANNOTATIONS [OUT]]

ANNOTATIONS is a COCO file, a YOLO folder or a folder of Pascal VOC. Without it shapes on scikit-learn's photographs are
drawn. The same at the command line, for annotations without faults:
visiontune train ANNOTATIONS --model tiny/rf-detr --recipe examples/boxes.yaml --out OUT/run
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import visiontune
from visiontune.demo_shapes import draw_source, photographs

MODEL = "tiny/rf-detr"  # small and random; a published one: "Roboflow/rf-detr-nano"
LIMIT: int | None = None  # take so many samples, for a first look at large data
IMAGES = 240


def main(data: Path | None = None, out: Path | None = None, *, overrides: dict[str, Any] | None = None) -> None:
    """`overrides` are fields of the recipe, on top of those in boxes.yaml."""
    out = out or Path(tempfile.mkdtemp(prefix="boxes-"))
    data = data or draw_source(out / "source", IMAGES, most=6, masks=False, grounds=photographs())
    # `repair` mends what is wrong for certain, and lists each change in repairs.jsonl.
    dataset = visiontune.prepare(data, out / "data", limit=LIMIT, repair=True)
    run = visiontune.train(
        dataset.path, model=MODEL, out=out / "run", recipe=Path(__file__).with_suffix(".yaml"), overrides=overrides
    )
    scores = visiontune.evaluate(run.path, split="test")
    print(f"AP50 of boxes on the test split: {scores.metric('box_ap50').value:.3f}")
    images = data.parent if data.is_file() else data
    for found in visiontune.predict(run.path, [images], limit=4, pictures=out / "pictures"):
        print(found.source[0], found.to_json()["objects"][:1])
    print(f"pictures: {out / 'pictures'}; all of it on one page: {out / 'run/report.html'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
