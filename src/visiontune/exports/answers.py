"""What a model in memory answers, and whether an exported folder, loaded by plain libraries, answers the same."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visiontune.data.sample import Sample
from visiontune.exports.certificate import Check, Limits, check_answers
from visiontune.exports.reference import Reference, pixels_sha256, seen_sha256
from visiontune.models.labels import LabelTree
from visiontune.models.parts import without_cpu_kernels
from visiontune.models.text import Encoded, TextAdapter
from visiontune.recipe import Recipe
from visiontune.training.precision import autocast

CPU = torch.device("cpu")


def references(
    adapter: TextAdapter, samples: Iterable[Sample], recipe: Recipe, tree: LabelTree | None
) -> Iterator[Reference]:
    """What a model makes of each sample, one at a time, on the CPU in the precision of the recipe."""
    encoder: Any = adapter.encoder
    adapter.trained_module.eval()
    for sample in samples:
        encoded = encoder.encode(sample, with_answer=False)
        batch = encoder.collate([encoded], pad_left=True)
        with autocast(CPU, recipe.machine.precision):
            (made,) = adapter.trace(batch, recipe.evaluation.max_new_tokens)
            scores = None if tree is None else adapter.score_labels(batch, tree)[0]
        ids = encoded.input_ids.tolist()
        yield Reference(
            id=sample.id,
            image_sha256=seen_sha256(sample),
            pixels_sha256=pixels_sha256(encoder.pixels_of(encoded) if recipe.device else _pixels(encoded)),
            question=sample.text.prompt or recipe.data.prompt,
            prompt_ids=tuple(token for token in ids if token != encoder.image_token_id),
            image_tokens=ids.count(encoder.image_token_id),
            text=made.text,
            tokens=made.tokens,
            log_probabilities=made.log_probabilities,
            margins=made.margins,
            labels=None if scores is None else tuple(scores.tolist()),
            truth=sample.text.answer,
        )


def _pixels(encoded: Encoded) -> np.ndarray:
    """The tiles or patches of all images of a sample; none where it shows no image."""
    return np.zeros(0, np.float32) if encoded.pixel_values is None else encoded.pixel_values.numpy()


def check_reloaded(
    folder: Path, base: str | None, adapter: TextAdapter, recipe: Recipe, samples: Sequence[Sample],
    tree: LabelTree | None, trained: Sequence[Reference], limits: Limits,
) -> list[Check]:  # fmt: skip
    """Load an exported folder with plain transformers (with `base`: with PEFT upon that model) and compare its answers.

    `adapter` lends its encoder and its way of asking; its own network is put back.
    """
    from transformers import AutoModelForImageTextToText

    dtype = torch.float32 if base is not None else "auto"
    network: Any = AutoModelForImageTextToText.from_pretrained(base or folder, dtype=dtype)
    if base is not None:
        without_cpu_kernels()
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, str(folder)).base_model.model
    own, peft = adapter.network, adapter.peft
    adapter.network, adapter.peft = network.eval(), None
    try:
        again = list(references(adapter, samples, recipe, tree))
    finally:
        adapter.network, adapter.peft = own, peft
    return check_answers(list(zip(trained, again, strict=True)), limits)
