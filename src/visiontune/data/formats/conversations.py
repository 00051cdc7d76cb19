"""Conversations as their authors write them, made turns: `messages`, LLaVA's `conversations`, questions and answers.

A place for an image is an entry {"type": "image"} of a message's content, or `<image>` in its text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from visiontune.data.formats.lines import kind_of
from visiontune.data.formats.rows import RowError
from visiontune.data.turns import Role, Turn, Turns, question
from visiontune.words import counted

PLACE = "<image>"
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
# What an entry of a message's content may call the image that it brings itself.
_BROUGHT = ("image", "image_url", "path", "url", "bytes", "base64")


Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Brought:
    """An image that a turn brings itself, as written; `keys` lead to it from the list of turns."""

    value: Any
    keys: Keys


@dataclass(frozen=True)
class Said:
    """One turn as it was read: who speaks, what in order (None: an image), and the images that it brings itself."""

    role: str
    content: list[str | None]
    brought: list[Brought]


@dataclass(frozen=True)
class Conversation:
    """One sample: `turns` before the answer, and what its images are, as written and in order.

    `prompt` is the text of the last question, None where nothing is asked. `placed`: of several questions nothing says
    which one the images belong to, so they stand before the first.
    """

    turns: Turns
    prompt: str | None
    answer: str
    images: tuple[Any | Brought, ...]
    placed: bool = False


def asked(prompt: str | None, answer: str, images: Sequence[Any]) -> Conversation:
    """A question about images, and its answer. Raises RowError as `conversation`."""
    if PLACE in answer:
        raise RowError("misplaced-image", f"the answer holds {PLACE}")
    if prompt is None or not prompt.strip():
        return Conversation((), None, answer, tuple(images))
    return conversation([Said("user", _split(prompt), []), Said("assistant", [answer], [])], images)


def said_in_messages(messages: Any) -> list[Said]:
    """The turns of `messages`; RowError for what is none."""
    entries = _entries(messages, "messages")
    return [Said(_text_of(one, "role"), *_content(one.get("content"), i)) for i, one in enumerate(entries)]


def said_in_llava(conversations: Any) -> list[Said]:
    """The turns of LLaVA's `conversations`: entries with `from` and `value`; RowError for what is none."""
    entries = _entries(conversations, "conversations")
    return [Said(_text_of(one, "from"), *_content(_text_of(one, "value"), i)) for i, one in enumerate(entries)]


def conversation(said: Sequence[Said], images: Sequence[Any]) -> Conversation:
    """Turns, held to what models can learn from, with the images given beside them in their places.

    RowError: `unknown-role`; `turns-out-of-order` unless questions and answers take turns behind at most one system
    message; `empty-answer` where an answer is blank or the last turn is none; `empty-question`; `misplaced-image` for
    an image outside a question; `placeholders-do-not-match` where there are not as many places as images.
    """
    turns: list[Turn] = []
    brought: list[Brought] = []
    for one in said:
        if one.role.casefold() not in ROLES:
            raise RowError("unknown-role", f"a turn by {one.role!r}; known are {', '.join(ROLES)}")
        turns.append(Turn(ROLES[one.role.casefold()], tuple(one.content)))
        brought += one.brought
    *before, last = _in_order(turns)
    places = sum(turn.images for turn in turns)
    placed = False
    if brought and images:
        raise RowError(
            "placeholders-do-not-match", f"{counted(len(brought), 'image')} in the turns and {len(images)} beside them"
        )
    shown = tuple(brought or images)
    if places == 0 and shown:
        first = next(i for i, turn in enumerate(before) if turn.role == "user")
        before[first] = replace(before[first], content=(*(None for _ in shown), *before[first].content))
        placed = len(before) > 2
    elif places != len(shown):
        raise RowError(
            "placeholders-do-not-match", f"{counted(places, 'place')} for images and {counted(len(shown), 'image')}"
        )
    prompt = before[-1].text
    if len(before) == 1 and shown and not prompt.strip():  # a caption: the run's own prompt is asked
        return Conversation((), None, last.text, shown, placed)
    if blank := [i for i, turn in enumerate(before) if turn.role == "user" and not turn.text.strip()]:
        raise RowError("empty-question", f"the question in turn {blank[0] + 1} is blank")
    simple = len(before) == 1 and tuple(before) == question(prompt, len(shown))
    return Conversation(() if simple else tuple(before), prompt, last.text, shown, placed)


def _in_order(turns: list[Turn]) -> list[Turn]:
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if not spoken:
        raise RowError("empty-answer", "there is no turn")
    for i, turn in enumerate(spoken):
        wanted = "assistant" if i % 2 else "user"
        if turn.role != wanted:
            raise RowError("turns-out-of-order", f"turn {i + 1} is by the {turn.role}, and should be by the {wanted}")
    if len(spoken) % 2:
        raise RowError("empty-answer", "the last turn is a question without an answer")
    for i, turn in enumerate(turns):
        if turn.images and turn.role != "user":
            raise RowError("misplaced-image", f"an image is shown by the {turn.role}")
        if turn.role == "assistant" and not turn.text.strip():
            raise RowError("empty-answer", f"the answer in turn {i + 1} is blank")
    return turns


def _entries(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise RowError("broken-line", f"{name} is {kind_of(value)}, not a list")
    if odd := [one for one in value if not isinstance(one, dict)]:
        raise RowError("broken-line", f"{name} holds {kind_of(odd[0])} where a turn should be")
    return value


def _text_of(entry: dict[str, Any], key: str) -> str:
    if not isinstance(value := entry.get(key), str):
        raise RowError("broken-line", f"a turn's {key} is {kind_of(value)}, not a text")
    return value


def _content(content: Any, turn: int) -> tuple[list[str | None], list[Brought]]:
    """What is said in order, None for an image, and the images that the turn brings itself."""
    if isinstance(content, str):
        return _split(content), []
    if not isinstance(content, list):
        raise RowError("broken-line", f"the content of a turn is {kind_of(content)}, not a text or a list")
    parts: list[str | None] = []
    brought: list[Brought] = []
    for number, entry in enumerate(content):
        kind = entry.get("type") if isinstance(entry, dict) else None
        if isinstance(entry, str):
            parts += _split(entry)
        elif kind == "text" and isinstance(entry.get("text"), str):
            parts += _split(entry["text"])
        elif kind in ("image", "image_url"):
            parts.append(None)
            brought += _brought(entry, (turn, "content", number))
        else:
            found = f"an entry of type {kind!r}" if isinstance(entry, dict) else kind_of(entry)
            raise RowError("unknown-content", f"{found} in the content of a turn; text and image are read")
    if brought and len(brought) != parts.count(None):
        raise RowError(
            "placeholders-do-not-match",
            f"{len(brought)} of {parts.count(None)} images of a turn are in the turn itself",
        )
    return parts, brought


def _brought(entry: dict[str, Any], keys: Keys) -> list[Brought]:
    """The image that an entry of a message's content brings, if any."""
    for key in _BROUGHT:
        value = entry.get(key)
        if isinstance(value, dict) and isinstance(value.get("url"), str):  # as OpenAI's clients write it
            return [Brought(value["url"], (*keys, key, "url"))]
        if value is not None:
            return [Brought(value, (*keys, key))]
    return []


def _split(text: str) -> list[str | None]:
    """A text with its places for images; a line break next to a place belongs to the place."""
    first, *rest = text.split(PLACE)
    parts: list[str | None] = [first.removesuffix("\n") if rest else first]
    for number, part in enumerate(rest):
        part = part.removeprefix("\n")
        parts += [None, part if number == len(rest) - 1 else part.removesuffix("\n")]
    return [part for part in parts if part != ""]
