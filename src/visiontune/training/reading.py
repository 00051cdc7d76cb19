"""Documents as a named model would read them: its page, its tokens, and pages fitted to a wanted compression."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from visiontune.data import faults
from visiontune.data.documents import Fit
from visiontune.data.inspect import Inspection, Reading
from visiontune.data.pages import LEGIBLE_X_HEIGHT, Fonts, PageSpec, remedy, resize_scale, solve, x_height
from visiontune.errors import DataError, ModelError
from visiontune.models.load import is_tiny, page_tokens
from visiontune.progress import note
from visiontune.training.plan import page_side


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
    """The inspection with what the model makes of its documents; letters that it cannot tell apart are an error.

    Raises DataError for images, ModelError for a model that cannot be had.
    """
    if found.documents is None or found.rendering is None:
        raise DataError("A model's reading is told of documents, and there are none here.", fix="leave --model out")
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
