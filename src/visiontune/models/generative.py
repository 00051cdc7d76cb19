"""What models that read images and answer in text share: loading, the loss, packing, the answers.

What becomes of a sample before them is in `generative_encoder.py`.
"""

import warnings
from abc import abstractmethod
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from visiontune.errors import ModelError, RecipeError
from visiontune.models.adapter import Batch
from visiontune.models.generative_encoder import GenerativeEncoder
from visiontune.models.labels import LabelTree
from visiontune.models.segments import attend_within, bounds
from visiontune.models.text import TextAdapter, Trace
from visiontune.models.token_loss import token_losses


def load_network(folder: str, revision: str | None) -> Any:
    """The transformers model of a checkpoint, weights in float32."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(
        folder, revision=revision, dtype=torch.float32, use_safetensors=True
    )


def refuse_device(name: str) -> NoReturn:
    """Raise ModelError: what llama.cpp does with this family's pictures is not known here."""
    raise ModelError(
        "Models of this family are not made for a device.",
        where=name,
        fix="train without a device profile, or choose a SmolVLM for the device",
    )


class GenerativeAdapter(TextAdapter):
    """A transformers model of the shape `model` + `lm_head` for the training loop."""

    terms = ("text",)
    feature_parts = ("vision_encoder",)
    packs = False  # whether samples in one row are proven not to see each other
    packing = False
    token_tensors: tuple[str, ...] = ("input_ids",)  # the inputs with a value for each token, but the mask

    def __init__(self, network: Any, encoder: GenerativeEncoder) -> None:
        self.network = network
        self.encoder = self._encoder = encoder

    @abstractmethod
    def images_of(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The images of a batch as the network wants them; nothing where there are none."""

    def projected(self, features: torch.Tensor) -> list[torch.Tensor]:
        """What the projector makes of the vision encoder's features (views, features a view, width), view by view:
        (image tokens, width of the language model). ModelError for a model without `feature_parts`."""
        raise ModelError(f"The vision encoder's work is not kept for models of the family {self.family}.")

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the network is called with: tokens and images, or features in place of the images."""
        inputs: dict[str, Any] = {name: batch.tensors[name] for name in ("input_ids", "attention_mask")}
        if "features" not in batch.tensors:
            return inputs | self.images_of(batch)
        features, views = batch.tensors["features"], batch.tensors["views"]
        stands = torch.arange(features.shape[1], device=views.device) < views[:, None]
        if not stands.any():  # a piece of a batch may have no image
            return inputs
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        seen: Any = self.projected(features[stands])
        return inputs | {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=seen)}}

    def places(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The places of a batch's tokens, (..., batch, length), and of the token behind each sample, (batch, 1)."""
        mask = inputs["attention_mask"]
        return (mask.cumsum(-1) - 1).clamp(min=0), mask.sum(-1, keepdim=True)

    @torch.no_grad()
    def vision_features(self, batch: Batch) -> list[torch.Tensor]:
        network: Any = self.network
        images = self.images_of(batch)
        if not images:
            return [torch.zeros(0) for _ in batch.ids]
        seen = network.model.get_image_features(**images, return_dict=True).last_hidden_state
        return list(seen.split(batch.tensors["views"].tolist()))

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        network: Any = self.network
        hidden = self._hidden(batch)
        # Only the positions that predict a supervised token go through the vocabulary.
        rows, columns = batch.tensors["supervised"][:, 1:].nonzero(as_tuple=True)
        if self.packing:
            lengths = batch.tensors["attention_mask"].sum(-1)
            hidden = hidden[0, (lengths.cumsum(0) - lengths)[rows] + columns]
        else:
            hidden = hidden[rows, columns]
        targets = batch.tensors["input_ids"][rows, columns + 1]
        found = token_losses(network.lm_head, hidden, targets, network.config.text_config.vocab_size)
        return {"text": torch.zeros(len(batch.ids), device=found.device).index_add(0, rows, found)}

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """The last hidden states: (batch, length, width), of packed samples (1, all tokens, width)."""
        network: Any = self.network
        inputs = self.inputs(batch)
        if self.packing:
            inputs = self._packed(inputs)
        return network.model(**inputs, use_cache=False).last_hidden_state

    def _packed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a right-padded batch as one row without padding; no token sees one of another sample."""
        places, _ = self.places(inputs)
        stands = inputs["attention_mask"].bool()
        row = {name: inputs[name][stands][None] for name in self.token_tensors if name in inputs}
        whole = {name: value for name, value in inputs.items() if name not in (*row, "attention_mask")}
        within = bounds(inputs["attention_mask"].sum(-1))
        return row | whole | {"position_ids": places[..., stands].unsqueeze(-2), "attention_mask": within}

    def pack(self) -> None:
        if not self.packs:
            raise RecipeError(
                f"Samples of this {self.family} are not packed: they would see each other.",
                where="batch.packing",
                fix="set batch.packing to false",
            )
        network: Any = self.network
        attend_within(network.config.text_config)
        self.packing = self._encoder.packing = True

    @torch.no_grad()
    def trace(self, batch: Batch, max_new_tokens: int) -> list[Trace]:
        network: Any = self.network
        tokenizer = self._encoder.tokenizer
        with warnings.catch_warnings():
            # sampling fields of the checkpoint's own config, unused when greedy
            warnings.simplefilter("ignore", UserWarning)
            made = network.generate(
                **self.inputs(batch),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                eos_token_id=self._encoder.end_token_id,
                pad_token_id=tokenizer.pad_token_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
        new = made.sequences[:, batch.tensors["input_ids"].shape[1] :]
        logs = torch.stack([step.float().log_softmax(-1) for step in made.logits], dim=1)
        best = logs.topk(2, dim=-1).values.cpu()
        picked = logs.gather(-1, new[..., None])[..., 0].cpu()
        end_token = self._encoder.end_token_id
        ends = [row.index(end_token) + 1 if end_token in row else len(row) for row in new.tolist()]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        return [
            Trace(
                text.strip(),
                tuple(new[row, :end].tolist()),
                tuple(picked[row, :end].tolist()),
                tuple((best[row, :end, 0] - best[row, :end, 1]).tolist()),
                bool(new[row, end - 1] == end_token),
            )
            for row, (text, end) in enumerate(zip(texts, ends, strict=True))
        ]

    @torch.no_grad()
    def score_labels(self, batch: Batch, tree: LabelTree) -> NDArray[np.float64]:
        network: Any = self.network
        inputs = self.inputs(batch)
        mask = inputs["attention_mask"]
        positions, behind_it = self.places(inputs)
        # The prompt is read once; what follows a branching is read behind it, from the cache.
        read = network(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1)
        read.past_key_values.activate_past_recording()  # or layers of a sliding window could not go back
        at_branches = {}
        for prefix, followers in tree.branches.items():
            logits = read.logits[:, -1]
            if prefix:
                behind = torch.tensor([prefix], device=mask.device).expand(len(mask), -1)
                places = behind_it + torch.arange(len(prefix), device=mask.device)
                places = places.expand(*positions.shape[:-2], -1, -1)
                logits = network(
                    input_ids=behind,
                    attention_mask=torch.cat([mask, torch.ones_like(behind)], dim=1),
                    position_ids=places,
                    past_key_values=read.past_key_values,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
                read.past_key_values.crop(-len(prefix))
            at_branches[prefix] = logits[:, list(followers)].double().cpu().numpy()
        if not at_branches:  # a single label
            return np.zeros((len(mask), len(tree.labels)))
        return tree.log_probabilities(at_branches)
