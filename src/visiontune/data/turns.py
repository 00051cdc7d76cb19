"""What was said before an answer, turn by turn, with the places of the images: as values and as the `messages` that
chat templates and other trainers take."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: who speaks, and what is said in order; None stands where the next of the sample's images is shown."""

    role: Role
    content: tuple[str | None, ...]

    @property
    def text(self) -> str:
        """What is said, without the images."""
        return "".join(part for part in self.content if part is not None)

    @property
    def images(self) -> int:
        """How many images are shown."""
        return sum(part is None for part in self.content)


Turns = tuple[Turn, ...]


def question(prompt: str, images: int) -> Turns:
    """The usual question: all images, then the text."""
    return (Turn("user", (*(None for _ in range(images)), prompt)),)


def to_messages(turns: Iterable[Turn]) -> list[dict[str, Any]]:
    """Turns as `messages`: {"role": ..., "content": [{"type": "image"}, {"type": "text", "text": ...}]}."""
    return [
        {
            "role": turn.role,
            "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in turn.content],
        }
        for turn in turns
    ]


def from_messages(messages: Sequence[dict[str, Any]]) -> Turns:
    """What `to_messages` made."""
    return tuple(
        Turn(one["role"], tuple(part["text"] if part["type"] == "text" else None for part in one["content"]))
        for one in messages
    )


def to_text(turns: Turns) -> str | None:
    """Turns as they are stored: JSON, or None for none."""
    return json.dumps(to_messages(turns), ensure_ascii=False) if turns else None


def from_text(text: str | None) -> Turns:
    """What `to_text` stored."""
    return from_messages(json.loads(text)) if text else ()
