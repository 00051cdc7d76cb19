"""Samples of families that read images and write text as tensors: prompt and answer as tokens, images side by side.

A family says how its images become tensors and how many tokens stand for one; the rest is here.
"""

import copy
import functools
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import cycle, groupby, islice
from pathlib import Path
from typing import Any

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
from visiontune.errors import DataError
from visiontune.models.adapter import Batch, Features, Layout, Supervision
from visiontune.models.chat_tokens import Tokens, tokenise
from visiontune.models.text import Encoded, TextEncoder
from visiontune.recipe_sections import Data

REMEMBERED_TEXTS = 65536


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
        ids = self._ids(text)
        return self.tokenizer.decode(ids) if len(ids) <= tokens else _whole(self.tokenizer.decode(ids[:tokens]))

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

    def asked_lengths(self, index: Index) -> NDArray[np.int64]:
        asked = [self._texts(index.text(i), layout).prompt for i, layout in enumerate(self.layouts(index))]
        return np.array(asked, dtype=np.int64)

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
        if whole and answers[-1].startswith(read[-1]) and (read[-1] or encoded.shortened or not answers[-1]):
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
        read = [self.tokenizer.decode(ids[:-1] if ids[-1] == self.end_token_id else ids) for ids in runs]
        if encoded.shortened and read:
            read[-1] = _whole(read[-1])
        return [text.strip() for text in read]

    def save(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)


def _whole(text: str) -> str:
    """A shortened text without what its last token began and no other finishes: a character of several bytes."""
    return text.rstrip("\ufffd")


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
