"""Tiny models of the real classes as ONNX folders, for the tests of exports."""

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from visiontune.data.objects import Objects
from visiontune.data.sample import ImageFile, Images, ObjectPrediction, Sample
from visiontune.exports.onnx_certificate import HeldTo
from visiontune.exports.onnx_graph import plain_network, write_graphs
from visiontune.exports.onnx_ship import contract_of, see_base, see_trained
from visiontune.files import file_sha256
from visiontune.models import rf_detr, sam, sam_tiny
from visiontune.models.parts import apply_states
from visiontune.models.rf_detr_tiny import tiny_config
from visiontune.recipe import ObjectChoices
from visiontune.recipe_sections import Data, DatasetUse, Lora
from visiontune.training.evaluate_objects import prompts_of

SIDE = 64
LEAST_SCORE = 0.01  # fresh class heads are not sure of anything
CLASSES = ("disc", "square", "bar")


def sample(number: int, width: int = 90, height: int = 70) -> Sample:
    """Noise, and two objects that somebody drew in it."""
    generator = np.random.default_rng(number)
    small = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    packed = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(packed, "PNG")
    boxes = np.array([[5, 8, 30, 20], [40, 30, 25, 35]], np.float64)
    drawn = Objects(boxes, np.array([0, 2]), (None, None), np.zeros(2, bool), (1, 2))
    return Sample(f"image {number}", Images((ImageFile(packed.getvalue(), f"{number}.png"),)), drawn)


def scattered(network: torch.nn.Module, seed: int = 1) -> None:
    """Move every weight: fresh ones are so alike that much goes unnoticed, and adapters begin at nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def shallow_config(objects: ObjectChoices, image_size: int) -> Any:
    """That of a tiny RF-DETR with as few layers as show what happens between two: exporters are slow."""
    config = tiny_config(objects, image_size)
    backbone = config.backbone_config.to_dict() | {"num_hidden_layers": 2, "out_features": ["stage1", "stage2"]}
    del backbone["stage_names"], backbone["out_indices"]
    return type(config)(**config.to_dict() | {"backbone_config": backbone, "decoder_layers": 2})


def detector(folder: Path, *, masks: bool = True, lora: bool = False, seed: int = 1) -> Any:
    """RF-DETR with weights that depend on `seed`, with an adapter where `lora` asks for one."""
    objects = ObjectChoices(classes=CLASSES, masks=masks, mirror="none", queries=12, most=20)
    if not folder.exists():
        with patch.object(rf_detr, "tiny_config", shallow_config):
            rf_detr.build_tiny(folder, objects, 0, image_size=SIDE)
    data = Data(datasets=(DatasetUse(path="drawn", content_hash="0"),), image_longest_edge=SIDE)
    adapter = rf_detr.load(str(folder), None, data, objects, 0)
    if lora:
        states: Any = {part.name: "lora" if part.name == "vision_encoder" else "frozen" for part in adapter.parts}
        adapter.peft = apply_states(adapter.network, adapter.parts, states, Lora(rank=4, alpha=8, dropout=0.0), 0)
    scattered(adapter.trained_module, seed)
    adapter.trained_module.eval()
    return adapter


def segmenter(folder: Path) -> Any:
    """SAM with an adapter in its vision encoder."""
    objects = ObjectChoices(classes=CLASSES, masks=True, mirror="none")
    with patch.object(sam_tiny, "LAYERS", 2):  # one that looks at windows and one that looks at all
        sam.build_tiny(folder, objects, 0, image_size=SIDE)
    data = Data(datasets=(DatasetUse(path="drawn", content_hash="0"),), image_longest_edge=SIDE)
    adapter = sam.load(str(folder), None, data, objects, 0)
    states: Any = {part.name: "lora" if part.name == "vision_encoder" else "frozen" for part in adapter.parts}
    adapter.peft = apply_states(adapter.network, adapter.parts, states, Lora(rank=4, alpha=8, dropout=0.0), 0)
    scattered(adapter.trained_module)
    adapter.trained_module.eval()
    return adapter


def shipped(adapter: Any, folder: Path, network: Any = None) -> Path:
    """The folder with the graphs of the network (the adapter's own, merged) and the adapter's contract."""
    folder.mkdir(parents=True)
    names = write_graphs(adapter.family, network or plain_network(adapter), SIDE, folder)
    files = {name: file_sha256(folder / name) for name in names}
    contract_of(adapter, "tiny", "float32", LEAST_SCORE).model_copy(update={"files": files}).write(folder)
    return folder


def held_to(adapter: Any, samples: Sequence[Sample], dtype: str = "float32") -> HeldTo:
    """What a folder is held to, on these samples alone."""
    predictions = []
    for one in samples:
        encoded = adapter.encoder.encode(one, with_answer=adapter.prompted)
        (found,) = adapter.find(adapter.encoder.collate([encoded]))
        predictions.append(ObjectPrediction(one.id, (one.id,), found, CLASSES, encoded.size, one.target))
    return HeldTo(
        wanted=contract_of(adapter, "tiny", dtype, LEAST_SCORE),
        samples=samples,
        see=partial(see_trained, adapter),
        base=None if adapter.peft is None else partial(see_base, adapter),
        predictions=predictions,
        sample=lambda i: samples[i],
        prompts=prompts_of(adapter),
        threads=1,
    )
