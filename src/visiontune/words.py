"""Words for people: a number with what it counts."""


def counted(number: int, thing: str, things: str | None = None) -> str:
    """`1 fault`, `2 faults`; `things` where the plural is not made with an s."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"
