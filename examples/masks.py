"""Masks in images: train a segmenter that draws the mask in a box that it is given.

    python examples/masks.py [ANNOTATIONS [OUT]]

ANNOTATIONS is a COCO file with segmentations, or a YOLO folder of polygons. Without it shapes on scikit-learn's
photographs are drawn. The same at the command line, for annotations without faults:
visiontune train ANNOTATIONS --model tiny/sam --recipe examples/masks.yaml --out OUT/run
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import visiontune
from visiontune.demo_shapes import draw_source, photographs

MODEL = "tiny/sam"  # small and random; a published one: "facebook/sam-vit-base"
LIMIT: int | None = None  # take so many samples, for a first look at large data
IMAGES = 240


def main(data: Path | None = None, out: Path | None = None, *, overrides: dict[str, Any] | None = None) -> None:
    """`overrides` are fields of the recipe, on top of those in masks.yaml."""
    out = out or Path(tempfile.mkdtemp(prefix="masks-"))
    data = data or draw_source(out / "source", IMAGES, grounds=photographs())
    # `repair` mends what is wrong for certain, and lists each change in repairs.jsonl.
    dataset = visiontune.prepare(data, out / "data", limit=LIMIT, repair=True)
    run = visiontune.train(
        dataset.path, model=MODEL, out=out / "run", recipe=Path(__file__).with_suffix(".yaml"), overrides=overrides
    )
    # The segmenter is told the boxes that people drew; with a detector beside it (two models, separated by a comma) it
    # is told those that the detector found: docs/objects.md.
    scores = visiontune.evaluate(run.path, split="test")
    print(f"AP of masks in boxes that people drew, on the test split: {scores.metric('prompted_mask_ap').value:.3f}")
    print(f"all of it on one page: {out / 'run/report.html'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
