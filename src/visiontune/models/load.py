"""From a model's name to its adapter: a hub id, a local folder, or tiny/<family>."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visiontune.contract import DeviceContract
from visiontune.errors import ModelError
from visiontune.models.adapter import ModelAdapter
from visiontune.recipe import Data

# config.json's model_type -> the module that adapts it
FAMILIES = {
    "smolvlm": "visiontune.models.smolvlm",
    "idefics3": "visiontune.models.smolvlm",
    "unlimited_ocr": "visiontune.models.deepseek_ocr",
    "deepseek_ocr2": "visiontune.models.deepseek_ocr",
}
# name -> the module that adapts it, and its function that builds it
TINY = {
    "tiny/smolvlm": ("visiontune.models.smolvlm", "build_tiny"),
    "tiny/deepseek-ocr": ("visiontune.models.deepseek_ocr", "build_tiny"),
    "tiny/deepseek-ocr2": ("visiontune.models.deepseek_ocr", "build_tiny_2"),
}


def is_tiny(name: str) -> bool:
    """Whether the name asks for a small model with random weights; raises ModelError for an unknown tiny/."""
    if name.startswith("tiny/") and name not in TINY:
        raise ModelError(f"There is no '{name}'.", where="model.name", fix=f"tiny models: {', '.join(TINY)}")
    return name in TINY


def build_tiny(name: str, folder: Path, texts: Sequence[str], seed: int, image_size: int) -> None:
    """Write the tiny model `name` to `folder`."""
    _quiet()
    module, function = TINY[name]
    getattr(importlib.import_module(module), function)(folder, texts, seed, image_size=image_size)


def read_config(name: str, revision: str | None = None) -> Any:
    """The config of a checkpoint; raises ModelError if it cannot be had or its family is not trained here."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"Models of type '{config.model_type}' are not trained by visiontune.",
            where=name,
            fix=f"model types: {', '.join(FAMILIES)}",
        )
    return config


def native_image_size(config: Any) -> int:
    """Pixels a side of the square that the vision encoder of a checkpoint takes."""
    return importlib.import_module(FAMILIES[config.model_type]).native_image_size(config)


def tiny_image_size(name: str) -> int:
    """Pixels a side of the smallest square that the tiny model `name` is built for."""
    return importlib.import_module(TINY[name][0]).TINY_IMAGE_SIZE


def cuts_into_tiles(name: str) -> bool:
    """Whether large images may be cut into tiles beside the overview."""
    module = TINY[name][0] if is_tiny(name) else FAMILIES[read_config(name).model_type]
    return importlib.import_module(module).CUTS_INTO_TILES


def page_tokens(name: str, side: int) -> int:
    """How many image tokens stand for a page that is resized to `side` x `side` pixels and not cut into tiles."""
    if is_tiny(name):
        return importlib.import_module(TINY[name][0]).tiny_page_tokens(name, side)
    config = read_config(name)
    return importlib.import_module(FAMILIES[config.model_type]).page_tokens(config, side)


def longest_context(name: str) -> int:
    """How many tokens a model can read and write together."""
    if is_tiny(name):
        return importlib.import_module(TINY[name][0]).TINY_CONTEXT
    return int(read_config(name).text_config.max_position_embeddings)


def load_adapter(name: str, revision: str | None, data: Data, device: DeviceContract | None = None) -> ModelAdapter:
    """The model in float32 with its encoder (for a device, the one that does what the device does).

    Raises ModelError if it cannot be loaded.
    """
    _quiet()
    family = FAMILIES[read_config(name, revision).model_type]
    try:
        return importlib.import_module(family).load(name, revision, data, device)
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
        fix="give the path of a downloaded checkpoint, connect to the hub, or try --model tiny/smolvlm first",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
