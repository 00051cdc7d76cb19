"""What the formats are called that `--format` takes."""

from typing import Literal, get_args

Annotations = Literal["coco", "yolo", "voc"]
Layout = Literal["messages", "llava", "roboflow", "prompt_answer"]
Format = Annotations | Layout | Literal["image_folder", "text_table"]

ANNOTATIONS: tuple[Annotations, ...] = get_args(Annotations)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
FORMATS: tuple[str, ...] = (*ANNOTATIONS, *LAYOUTS, "image_folder", "text_table")
