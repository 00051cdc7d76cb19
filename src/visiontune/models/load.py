"""From a model's name to its adapter: a hub id, a local folder, or tiny/<family>."""

import importlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from visiontune.contract import DeviceContract
from visiontune.errors import ModelError, RecipeError
from visiontune.models.adapter import ModelAdapter
from visiontune.models.text import TextEncoder
from visiontune.recipe import ObjectChoices, ResponseChoices
from visiontune.recipe_sections import Data

# config.json's model_type -> the module that adapts it
FAMILIES = {
    "smolvlm": "visiontune.models.smolvlm",
    "idefics3": "visiontune.models.smolvlm",
    "unlimited_ocr": "visiontune.models.deepseek_ocr",
    "deepseek_ocr2": "visiontune.models.deepseek_ocr",
    "qwen2_5_vl": "visiontune.models.image_text",
    "qwen3_vl": "visiontune.models.image_text",
    "gemma3": "visiontune.models.image_text",
}
# the same for models that find objects in images
OBJECT_FAMILIES = {
    "rf_detr": "visiontune.models.rf_detr",
    "grounding-dino": "visiontune.models.grounding_dino",
    "mm-grounding-dino": "visiontune.models.grounding_dino",
    "sam": "visiontune.models.sam",
    "sam2": "visiontune.models.sam",
    "sam2_video": "visiontune.models.sam",  # as SAM 2 is published
}
SIZED_BY_PROCESSOR = ("rf_detr", "grounding-dino", "mm-grounding-dino")  # they take images of any size
SEGMENTERS = ("sam", "sam2", "sam2_video")  # they draw masks in boxes that they are given
# name -> the module that adapts it, and its function that builds it
TINY = {
    "tiny/smolvlm": ("visiontune.models.smolvlm", "build_tiny"),
    "tiny/deepseek-ocr": ("visiontune.models.deepseek_ocr", "build_tiny"),
    "tiny/deepseek-ocr2": ("visiontune.models.deepseek_ocr", "build_tiny_2"),
    "tiny/qwen-vl": ("visiontune.models.image_text", "build_tiny_qwen2_5_vl"),
    "tiny/qwen3-vl": ("visiontune.models.image_text", "build_tiny_qwen3_vl"),
    "tiny/gemma3": ("visiontune.models.image_text", "build_tiny_gemma3"),
}
# the same; each function takes (folder, objects, seed, *, image_size)
TINY_OBJECTS = {
    "tiny/rf-detr": ("visiontune.models.rf_detr", "build_tiny"),
    "tiny/grounding-dino": ("visiontune.models.grounding_dino", "build_tiny_original"),
    "tiny/mm-grounding-dino": ("visiontune.models.grounding_dino", "build_tiny"),
    "tiny/sam": ("visiontune.models.sam", "build_tiny"),
    "tiny/sam2": ("visiontune.models.sam", "build_tiny_2"),
}


def is_tiny(name: str) -> bool:
    """Whether the name asks for a small model with random weights; raises ModelError for an unknown tiny/."""
    known = (*TINY, *TINY_OBJECTS)
    if name.startswith("tiny/") and name not in known:
        raise ModelError(f"There is no '{name}'.", where="model.name", fix=f"tiny models: {', '.join(known)}")
    return name in known


def finds_objects(name: str) -> bool:
    """Whether a model finds objects in images; the others write text. Raises ModelError as `read_config`."""
    if is_tiny(name):
        return name in TINY_OBJECTS
    return read_config(name).model_type in OBJECT_FAMILIES


def family_of(name: str) -> str:
    """The name of the family file of a model. Raises ModelError as `read_config`."""
    module = (
        (TINY | TINY_OBJECTS)[name][0] if is_tiny(name) else (FAMILIES | OBJECT_FAMILIES)[read_config(name).model_type]
    )
    return module.rpartition(".")[2]


def is_segmenter(name: str, revision: str | None = None) -> bool:
    """Whether a model draws masks in boxes that it is given."""
    if is_tiny(name):
        return name.removeprefix("tiny/") in SEGMENTERS
    return read_config(name, revision).model_type in SEGMENTERS


def places_for_objects(name: str, revision: str | None, objects: ObjectChoices, image_size: int) -> int | None:
    """How many objects a model has places for in an image of `image_size` pixels; None where it is told the boxes."""
    if is_segmenter(name, revision):
        return None
    if is_tiny(name):
        return importlib.import_module(f"visiontune.models.{family_of(name)}_tiny").places(objects, image_size)
    return int(read_config(name, revision).num_queries)


def build_tiny(name: str, folder: Path, texts: Sequence[str], seed: int, image_size: int) -> None:
    """Write the tiny model `name`, which writes text, to `folder`."""
    _quiet()
    module, function = TINY[name]
    getattr(importlib.import_module(module), function)(folder, texts, seed, image_size=image_size)


def build_tiny_finder(name: str, folder: Path, objects: ObjectChoices, seed: int, image_size: int) -> None:
    """Write the tiny model `name`, which finds objects, to `folder`."""
    _quiet()
    module, function = TINY_OBJECTS[name]
    getattr(importlib.import_module(module), function)(folder, objects, seed, image_size=image_size)


def read_config(name: str, revision: str | None = None) -> Any:
    """The config of a checkpoint, to be read and not changed; raises ModelError if it cannot be had, or is of a family
    that is not trained here."""
    file = Path(name) / "config.json"
    try:
        # A plan asks ten times, and transformers takes its time for each: what stands in a folder is made once.
        config = _kept_config(name, revision, file.read_bytes()) if file.is_file() else _new_config(name, revision)
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error
    if config.model_type not in FAMILIES | OBJECT_FAMILIES:
        raise ModelError(
            f"Models of type '{config.model_type}' are not trained by visiontune.",
            where=name,
            fix=f"model types: {', '.join(FAMILIES | OBJECT_FAMILIES)}",
        )
    return config


@lru_cache(maxsize=64)
def _kept_config(name: str, revision: str | None, written: bytes) -> Any:
    """The config of a folder whose config.json has these bytes."""
    return _new_config(name, revision)


def _new_config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name, revision=revision)


def _module_of(name: str) -> Any:
    """The family file of a model; raises ModelError as `read_config`."""
    return importlib.import_module(f"visiontune.models.{family_of(name)}")


def native_image_size(name: str) -> int:
    """Pixels of the longer side of the images that a checkpoint was made for, or last trained at. Raises ModelError as
    `read_config`."""
    config = read_config(name)
    settings = (read_image_settings(name),) if config.model_type in SIZED_BY_PROCESSOR else ()
    return _module_of(name).native_image_size(config, *settings)


def read_image_settings(name: str) -> dict[str, Any]:
    """What a checkpoint's image processor is set to; raises ModelError if it cannot be had."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return ImageProcessingMixin.get_image_processor_dict(name)[0]
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error


def tiny_image_size(name: str) -> int:
    """Pixels a side of the smallest square that the tiny model `name` is built for."""
    return _module_of(name).TINY_IMAGE_SIZE


def cuts_into_tiles(name: str) -> bool:
    """Whether large images may be cut into tiles beside the overview."""
    return _module_of(name).CUTS_INTO_TILES


def projector_takes_lora(name: str) -> bool:
    """Whether the projector of a checkpoint that writes text has linear layers. Raises ModelError as `read_config`."""
    return _module_of(name).projector_takes_lora(read_config(name))


def page_tokens(name: str, side: int) -> int:
    """How many image tokens stand for a page that is resized to `side` x `side` pixels and not cut into tiles."""
    if is_tiny(name):
        return _module_of(name).tiny_page_tokens(name, side)
    return _module_of(name).page_tokens(read_config(name), side)


def longest_context(name: str) -> int:
    """How many tokens a model can read and write together."""
    if is_tiny(name):
        return _module_of(name).TINY_CONTEXT
    return int(read_config(name).text_config.max_position_embeddings)


def load_adapter(
    name: str,
    revision: str | None,
    data: Data,
    device: DeviceContract | None = None,
    *,
    objects: ObjectChoices | None = None,
    responses: ResponseChoices | None = None,
    seed: int = 0,
) -> ModelAdapter:
    """The model in float32 with its encoder (for a device, the one that does what the device does).

    With `responses` it predicts those, and is a folder of our own. With `objects` it finds those; weights that their
    classes ask for anew follow from `seed`. Raises ModelError if it cannot be loaded, or is of the other
    kind, and RecipeError for a field that is of another family.
    """
    if responses is not None:
        return importlib.import_module("visiontune.models.cortex").load(Path(name), responses)
    _quiet()
    kind = read_config(name, revision).model_type
    families = FAMILIES if objects is None else OBJECT_FAMILIES
    if kind not in families:
        finds = "writes text" if objects is not None else "finds objects"
        raise ModelError(f"A model of type '{kind}' {finds}.", where=name, fix=f"for these data: {', '.join(families)}")
    family = families[kind]
    if objects is not None and objects.denoise and kind != "rf_detr":
        raise RecipeError(
            f"A model of type '{kind}' is trained without extra queries.", where="objects.denoise", fix="leave it at 0"
        )
    try:
        if objects is not None:
            return importlib.import_module(family).load(name, revision, data, objects, seed)
        return importlib.import_module(family).load(name, revision, data, device)
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error


def load_encoder(name: str, revision: str | None, data: Data) -> TextEncoder:
    """The encoder of a checkpoint that writes text, without its weights. Raises as `load_adapter`."""
    _quiet()
    kind = read_config(name, revision).model_type
    if kind not in FAMILIES:
        raise ModelError(f"A model of type '{kind}' finds objects.", where=name, fix=f"types: {', '.join(FAMILIES)}")
    try:
        return importlib.import_module(FAMILIES[kind]).load_encoder(name, revision, data)
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error


def chat_prompt(name: str, revision: str | None = None) -> str:
    """The prompt that the model's own chat template makes, with {marker} and {question} in their places."""
    if is_tiny(name):
        return importlib.import_module(TINY[name][0]).chat_prompt(None)
    family = FAMILIES[read_config(name, revision).model_type]
    try:
        return importlib.import_module(family).chat_prompt(name, revision)
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error


def _quiet() -> None:
    """Keep transformers from drawing bars of its own over ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _cannot_load(name: str, error: Exception) -> ModelError:
    if Path(name).is_dir():
        return ModelError(
            f"The folder is not a checkpoint that transformers loads: {_first_line(error)}",
            where=name,
            fix="give a folder with config.json, *.safetensors and the processor's files",
        )
    return ModelError(
        f"Model '{name}' is no folder here and could not be had from the hub: {_first_line(error)}",
        where="model.name",
        fix="give the path of a downloaded checkpoint, connect to the hub, or take a first look with a tiny model: "
        "tiny/smolvlm writes text, tiny/rf-detr finds objects",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
