"""Documents as a named model would read them: its page, its tokens, and pages fitted to a wanted compression."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from visiontune.data import faults
from visiontune.data.dataset_info import Range
from visiontune.data.documents import Fit
from visiontune.data.inspect import Inspection, Reading, TextReading
from visiontune.data.pages import LEGIBLE_X_HEIGHT, Fonts, PageSpec, remedy, resize_scale, solve, x_height
from visiontune.errors import DataError, ModelError
from visiontune.models.load import is_tiny, load_encoder, page_tokens
from visiontune.progress import note
from visiontune.recipe_sections import Data, DatasetUse
from visiontune.training.plan import bytes_of, image_choice, longest_sequence, page_side, question


def token_counter(model: str) -> Callable[[str], int]:
    """How many tokens a text has in the model's own tokenizer. Raises ModelError where that cannot be had."""
    if is_tiny(model):
        raise ModelError(
            "A tiny model has no tokenizer before it is built.", where=model, fix="name a published model, or a folder"
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        found = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"The tokenizer cannot be loaded: {found[0]}", where=model, fix="give a folder with the tokenizer's files"
        ) from error
    # verbose: a text longer than the model's context is no mistake here.
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def read_by(model: str, found: Inspection) -> Inspection:
    """The inspection with what the model makes of its documents, or of its images and texts.

    Letters that it cannot tell apart, and samples longer than it reads, are errors; answers that would be shortened are
    told. Raises DataError for objects, ModelError for a model that cannot be had.
    """
    if found.objects is not None:
        raise DataError("A model's reading is told of texts, and here are objects.", fix="leave --model out")
    if found.documents is None or found.rendering is None:
        return _images_read_by(model, found)
    spec, fonts = found.rendering.spec, found.rendering.fonts()
    side = page_side(model, spec, fonts)
    tokens = page_tokens(model, side)
    seen = x_height(spec, fonts) * resize_scale(spec, side)
    reading = Reading(model, side, seen, tokens, found.documents.characters_a_page / tokens)
    if not is_tiny(model):
        count = token_counter(model)
        reading = replace(
            reading,
            sampled=len(found.some),
            text_tokens=sum(count(text) for text, _ in found.some),
            vision_tokens=tokens * sum(pages for _, pages in found.some),
        )
    code = "illegible-pages"
    illegible = faults.illegible_pages(
        seen, LEGIBLE_X_HEIGHT, f"on the {side} pixels that {model} sees", remedy(spec, fonts, side), "error"
    )
    others = [fault for fault in found.faults if fault.code != code]
    return replace(found, reading=reading, faults=faults.ordered([*others, *illegible]))


def _images_read_by(model: str, found: Inspection) -> Inspection:
    if is_tiny(model):
        raise ModelError(
            "A tiny model has no tokenizer before it is built, so nobody knows how long these samples will be.",
            where=model,
            fix="name a published model, or a folder",
        )
    index = found.index()
    texts = [index.text(i) for i in range(len(index.ids))]
    median = int(np.median(np.maximum(found.widths, found.heights))) if len(found.widths) else 0
    edge, splitting = image_choice(model, median, found.labels is not None)
    longest_text = max((bytes_of(text) for text in texts), default=0)
    needed, context = longest_sequence(model, max(found.images_each, default=0), longest_text, edge, splitting)
    use = DatasetUse(path="data", content_hash="")
    data = Data(
        datasets=(use,),
        prompt=question(found.labels, pages=False),
        image_longest_edge=edge,
        image_splitting=splitting,
        max_tokens=max(needed, context),  # nothing is cut, so that all lengths are known
    )
    encoder = load_encoder(model, None, data)
    layouts = list(encoder.layouts(index))
    images = np.array([encoder.image_tokens(layout) for layout in layouts])
    tokens = encoder.lengths(index)
    answers = np.array([encoder.count(text.answer) for text in texts])
    limit = min(needed, context)
    # What is cut is the end of the last answer; a question with its images that leaves no room is refused.
    too_long = [index.ids[i] for i in np.flatnonzero(tokens - answers > limit)]
    shortened = [index.ids[i] for i in np.flatnonzero((tokens > limit) & (tokens - answers <= limit))]
    reading = TextReading(model, edge, splitting, limit, Range.of(tokens), Range.of(images))
    told = [*faults.longer_than_the_model_reads(too_long, limit, model), *faults.shortened_answers(shortened, limit)]
    return replace(found, text_reading=reading, faults=faults.ordered([*found.faults, *told]))


def fitted(model: str, ratio: float) -> Fit:
    """A choice of the font size at which texts take `ratio` times fewer vision tokens than text tokens of the model.

    What it chose is said. It raises DataError where no legible size reaches the ratio; this, ModelError.
    """
    count = token_counter(model)

    def fit(spec: PageSpec, fonts: Fonts, texts: Sequence[str]) -> PageSpec:
        side = page_side(model, spec, fonts)
        found = solve(texts, count, page_tokens(model, side), ratio, spec, fonts, side)
        note(
            f"pages for {model}: font size {found.spec.font_size} px, x-height {found.x_height:.1f} px as it sees it, "
            f"{sum(found.pages)} pages for {len(texts)} documents looked at; {found.text_tokens} text tokens / "
            f"{found.vision_tokens} vision tokens = {found.ratio:.1f}"
        )
        return found.spec

    return fit
