"""What models that read images and answer in text share: prompt and answer as tokens, the loss, the answers.

A family says how its images become tensors and how many tokens stand for one; the rest is here.
"""

import copy
import functools
import json
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import cycle, groupby, islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image, fromarray

from visiontune.data.augment import augmented, augmented_page
from visiontune.data.dataset import Index
from visiontune.data.images import decode
from visiontune.data.order import key
from visiontune.data.pages import Fonts, PageSpec
from visiontune.data.pages import pages as pages_of
from visiontune.data.sample import Document, Images, Sample, Text
from visiontune.data.turns import Turns, question
from visiontune.errors import DataError, ModelError, RecipeError
from visiontune.models.adapter import Batch, Features, Layout, Supervision
from visiontune.models.chat_tokens import Tokens, tokenise
from visiontune.models.labels import LabelTree
from visiontune.models.segments import attend_within, bounds
from visiontune.models.text import Encoded, TextAdapter, TextEncoder, Trace
from visiontune.models.token_loss import token_losses
from visiontune.recipe import Data

REMEMBERED_TEXTS = 65536


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


class GenerativeEncoder(TextEncoder):
    """Samples to tensors through the checkpoint's own processor and chat template."""

    def __init__(self, processor: Any, data: Data, end_token: str) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.data = data
        self.image_token_id: int = processor.image_token_id
        self.end_token_id: int = self.tokenizer.convert_tokens_to_ids(end_token)
        self.fonts: Fonts | None = None
        self.packing = False
        self._tokenised: dict[tuple[Turns, str, Layout], Tokens] = {}

    @abstractmethod
    def see(self, images: Sequence[Image]) -> tuple[dict[str, torch.Tensor], Layout]:
        """RGB images as tensors (`text.Encoded.images`), and the layout of each image."""

    @abstractmethod
    def layout(self, height: int, width: int) -> tuple[int, int]:
        """The layout of an image of this size in pixels."""

    @abstractmethod
    def placeholder(self, layout: Layout, image: int) -> str:
        """The text that stands for an image: its image tokens and what frames them."""

    @abstractmethod
    def features(self, views: int) -> int:
        """How many features the vision side delivers for so many views; worked out without the text."""

    def encode(
        self,
        sample: Sample,
        *,
        with_answer: bool = True,
        augmentation: int | None = None,
        features: Features | None = None,
    ) -> Encoded:
        seen: dict[str, torch.Tensor] = {}
        layout: Layout = ()
        if features is not None:
            layout = features.layout
        elif images := self.images(sample, augmentation):
            seen, layout = self.see(images)
        tokens = self._texts(sample.text, layout)
        room = self.data.max_tokens - tokens.prompt
        if room < 1:
            raise DataError(
                f"The question and its images take {tokens.prompt} tokens; {self.data.max_tokens} are allowed, and "
                "images are never cut.",
                where=sample.id,
                fix="raise data.max_tokens, lower data.image_longest_edge, or give a sample fewer images",
            )
        length = min(len(tokens.ids), self.data.max_tokens) if with_answer else tokens.prompt
        views = len(features.values) if features is not None else len(seen.get("pixel_values", ()))
        return Encoded(
            id=sample.id,
            input_ids=torch.tensor(tokens.ids[:length], dtype=torch.long),
            supervised=torch.tensor(tokens.learned[:length] if with_answer else [False] * length),
            images=seen,
            image_features=self.features(views),
            shortened=len(tokens.ids) - length if with_answer else 0,
            features=None if features is None else features.values,
        )

    def images(self, sample: Sample, augmentation: int | None = None) -> list[Image]:
        """What a sample shows, as RGB images in order, augmented by a number. Raises DataError for what is no image."""
        strength = 0.0 if augmentation is None else self.data.augment
        if isinstance(sample.seen, Images):
            images = [decode(file.data) for file in sample.seen.files]
            if augmentation is not None and strength:
                images = [augmented(image, strength, augmentation) for image in images]
            return images
        if not isinstance(sample.seen, Document):
            raise DataError("This is no image and no document.", where=sample.id, fix="train on images or texts")
        if self.data.pages is None or self.fonts is None:
            raise DataError("The run sees images, and this is a document.", where=sample.id, fix="train on documents")
        drawn = pages_of(sample.seen.text, self.data.pages, self.fonts)
        if augmentation is not None and strength:
            margins = self.data.pages.margins
            drawn = [augmented_page(page, margins, strength, key(augmentation, i)) for i, page in enumerate(drawn)]
        return [fromarray(page).convert("RGB") for page in drawn]

    def cut(self, text: str, tokens: int) -> str:
        return self.tokenizer.decode(self._ids(text)[:tokens])

    def count(self, text: str) -> int:
        return len(self._ids(text))

    def image_tokens(self, layout: Layout) -> int:
        return self.features(self.views(layout))

    def showing(self, pages: PageSpec) -> "GenerativeEncoder":
        other = copy.copy(self)  # tokenizer, fonts and remembered texts are shared
        other.data = self.data.model_copy(update={"pages": pages})
        return other

    def label_tokens(self, label: str) -> tuple[int, ...]:
        return self._texts(Text(label), ()).answer

    def _texts(self, text: Text, layout: Layout) -> Tokens:
        """`tokenise`, remembered: few questions, answers and layouts make up most datasets."""
        turns = text.turns or question(text.prompt or self.data.prompt, len(layout))
        asked = (turns, text.answer, layout)
        if asked not in self._tokenised:
            if len(self._tokenised) >= REMEMBERED_TEXTS:
                self._tokenised.clear()
            self._tokenised[asked] = self.tokenise(*asked)
        return self._tokenised[asked]

    def tokenise(self, turns: Turns, answer: str, layout: Layout) -> Tokens:
        """What was said before (with its image tokens) and the answer, as `chat_tokens.tokenise` has them."""
        return tokenise(
            self.processor,
            turns,
            answer,
            len(layout),
            ids_of=self._ids,
            placeholder=lambda image: self.placeholder(layout, image),
            end=self.end_token_id,
        )

    def views(self, layout: Layout) -> int:
        return len(layout)

    def preprocessing(self) -> dict[str, Any]:
        return json.loads(self.processor.image_processor.to_json_string())

    def _ids(self, text: str) -> list[int]:
        # A text longer than the context is no mistake here, and not worth the tokenizer's warning.
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def layouts(self, index: Index) -> Iterator[Layout]:
        layout_of = functools.lru_cache(maxsize=REMEMBERED_TEXTS)(self.layout)
        if index.pages and self.data.pages is not None:
            page = layout_of(self.data.pages.height, self.data.pages.width)
            yield from ((page,) * count for count in index.pages)
            return
        for heights, widths in zip(index.heights, index.widths, strict=True):
            yield tuple(layout_of(*size) for size in zip(heights, widths, strict=True))

    def lengths(self, index: Index) -> NDArray[np.int64]:
        lengths = np.empty(len(index.ids), dtype=np.int64)
        for i, layout in enumerate(self.layouts(index)):
            tokens = self._texts(index.text(i), layout)
            # A prompt that leaves no room is longer than what is allowed: such a sample is refused.
            lengths[i] = min(len(tokens.ids), max(self.data.max_tokens, tokens.prompt + 1))
        return lengths

    def collate(self, encoded: Sequence[Encoded], *, pad_left: bool = False) -> Batch:
        longest = max(len(one.input_ids) for one in encoded)
        ids = torch.full((len(encoded), longest), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(encoded), longest), dtype=torch.long)
        supervised = torch.zeros((len(encoded), longest), dtype=torch.bool)
        for row, one in enumerate(encoded):
            place = slice(longest - len(one.input_ids), None) if pad_left else slice(len(one.input_ids))
            ids[row, place], mask[row, place], supervised[row, place] = one.input_ids, 1, one.supervised
        tensors = {"input_ids": ids, "attention_mask": mask, "supervised": supervised}
        if any(one.views for one in encoded):
            tensors["views"] = torch.tensor([one.views for one in encoded])
            stored = [one.features for one in encoded if one.features is not None]
            tensors |= {"features": _stacked(encoded, stored[0])} if stored else _side_by_side(encoded)
        return Batch(
            ids=[one.id for one in encoded],
            tensors=tensors,
            weights={"text": int(supervised.sum())},
            tokens=int(mask.sum()),
            padded_tokens=int(mask.sum()) if self.packing else mask.numel(),
            image_tokens=int((ids == self.image_token_id).sum()),
            image_features=sum(one.image_features for one in encoded),
            tiles=sum(one.views for one in encoded),
            shortened=sum(one.shortened > 0 for one in encoded),
        )

    def segments(self, encoded: Encoded) -> list[tuple[str, bool]]:
        runs: list[tuple[str, bool]] = []
        tokens = zip(encoded.input_ids.tolist(), encoded.supervised.tolist(), strict=True)
        for (supervised, is_image), run in groupby(tokens, key=lambda t: (t[1], t[0] == self.image_token_id)):
            ids = [token for token, _ in run]
            text = f"<image>×{len(ids)}" if is_image else self.tokenizer.decode(ids, skip_special_tokens=False)
            if runs and runs[-1][1] == supervised:
                text = runs.pop()[0] + text
            runs.append((text, supervised))
        return runs

    def supervision(self, sample: Sample) -> Supervision:
        """The learned spans are the answers and their end tokens, and nothing else; the last may be shortened."""
        encoded, answers = self.encode(sample), [answer.strip() for answer in sample.text.answers]
        read = self.answers_of(encoded)
        shown = {"segments": [{"text": text, "supervised": learned} for text, learned in self.segments(encoded)]}
        whole = len(read) == len(answers) and read[:-1] == answers[:-1]
        if whole and answers[-1].startswith(read[-1]) and (read[-1] or not answers[-1]):
            return Supervision(shown, None)
        return Supervision(shown, f"{encoded.id}: learns {read} instead of {answers}")

    def exchanged(self, sample: Sample, other: Sample) -> Encoded:
        seen = other.seen
        if sample.text.turns and isinstance(seen, Images) and seen.files:  # which say where each image stands
            places = sum(turn.images for turn in sample.text.turns)
            seen = Images(tuple(islice(cycle(seen.files), places)))
        return self.encode(Sample(sample.id, seen, sample.target))

    def answers_of(self, encoded: Encoded) -> list[str]:
        tokens = zip(encoded.input_ids.tolist(), encoded.supervised.tolist(), strict=True)
        runs = [[token for token, _ in run] for learned, run in groupby(tokens, key=lambda t: t[1]) if learned]
        return [self.tokenizer.decode(ids[:-1] if ids[-1] == self.end_token_id else ids).strip() for ids in runs]

    def save(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)


def _side_by_side(encoded: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """The image tensors of a batch, the batch as their first dimension, as large as the largest; zeros where a sample
    has less."""
    stacked = {}
    for name in next(one.images for one in encoded if one.images):
        some = [(row, one.images[name]) for row, one in enumerate(encoded) if one.images]
        size = [max(sizes) for sizes in zip(*(values.shape for _, values in some), strict=True)]
        stacked[name] = some[0][1].new_zeros((len(encoded), *size))
        for row, values in some:
            stacked[name][(row, *map(slice, values.shape))] = values
    return stacked


def _stacked(encoded: Sequence[Encoded], like: torch.Tensor) -> torch.Tensor:
    """Features (batch, most views, features a view, width); zeros where a sample has fewer views."""
    stacked = like.new_zeros((len(encoded), max(one.views for one in encoded), *like.shape[1:]))
    for row, one in enumerate(encoded):
        if one.features is not None:
            stacked[row, : one.views] = one.features
    return stacked


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
