"""Conversations as token ids, through a checkpoint's own chat template: what is learned, and where images stand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from visiontune.data.turns import Turn, Turns, to_messages
from visiontune.errors import DataError, ModelError


@dataclass(frozen=True)
class Tokens:
    """The ids of a conversation, which of them are learned (those of the answers and their ends), and how many stand
    before the last answer."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    prompt: int

    @property
    def answer(self) -> tuple[int, ...]:
        """The ids of the last answer, its end token the last."""
        return self.ids[self.prompt :]


def tokenise(
    processor: Any,
    turns: Turns,
    answer: str,
    images: int,
    *,
    ids_of: Callable[[str], list[int]],
    placeholder: Callable[[int], str],
    end: int,
) -> Tokens:
    """Token ids of what was said before, and of the answer with its end token.

    Questions and answers are tokenised apart, so that training sees the very ids that the model gets when it is asked.
    Where the chat template does not close the last answer, the end token is added: a model that never learns it never
    stops. `placeholder(i)` is the text that stands for image i, of `images`; `end` is the end token. Raises ModelError
    where the template does not keep what was said before, DataError where it refuses the conversation, the places of
    images do not fit, or an answer holds the end token.
    """
    said = (*turns, Turn("assistant", (answer,)))
    messages = to_messages(said)
    ids: list[int] = []
    learned: list[bool] = []
    before, shown, prompt = "", 0, 0
    for i, turn in enumerate(said):
        if turn.role != "assistant":
            continue
        asked = _template(processor, messages[:i], turns, add_generation_prompt=True)
        answered = _template(processor, messages[: i + 1], turns)
        if not asked.startswith(before) or not answered.startswith(asked):
            raise ModelError(
                "The chat template rewrites the question once it is answered, so the answer's place is unknown."
                if asked.startswith(before)
                else "The chat template rewrites what was said before, so no turn has a place of its own.",
                fix="use a checkpoint whose template keeps what was said unchanged",
            )
        first, *rest = asked[len(before) :].split(processor.image_token)
        images_here = (placeholder(i) if i < images else "" for i in range(shown, shown + len(rest)))
        text = first + "".join(image + piece for image, piece in zip(images_here, rest, strict=True))
        shown += len(rest)
        ids += ids_of(text)
        learned += [False] * (len(ids) - len(learned))
        prompt = len(ids)
        own = ids_of(answered[len(asked) :])
        if end in own and end in ids_of(turn.text):
            raise DataError(
                "An answer holds the token that ends an answer: what follows it would not be learned.",
                where=turn.text[:80],
                fix="remove the token from the text",
            )
        stop = own.index(end) + 1 if end in own else None
        last = i == len(said) - 1
        if last:
            own = [*(own if stop is None else own[: stop - 1]), end]
            stop = len(own)
        ids += own
        learned += [True] * (len(own) if stop is None else stop)
        learned += [False] * (len(ids) - len(learned))
        before = answered
    if shown != images:
        raise DataError(
            f"The question holds {shown} image placeholders for {images} images.",
            where=turns[-1].text[:80],
            fix=f"remove '{processor.image_token}' from the text",
        )
    if any(processor.image_token in turn.text for turn in said if turn.role == "assistant"):
        raise DataError("An answer holds an image placeholder.", where=answer[:80], fix="remove it from the text")
    return Tokens(tuple(ids), tuple(learned), prompt)


def _template(processor: Any, messages: list[dict[str, Any]], turns: Turns, **options: bool) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return processor.apply_chat_template(messages, **options)
    except TemplateError as error:
        roles = ", ".join(turn.role for turn in turns)
        raise DataError(
            f"The model's chat template refuses this conversation ({roles}): {error}",
            where=turns[-1].text[:80],
            fix="take such rows out, or train a model whose template has these roles",
        ) from error
