"""How the rows of an evaluation become batches."""

from hypothesis import given
from hypothesis import strategies as st

from visiontune.training.rows import batched


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200), st.integers(0, 10))
def test_each_row_is_in_one_batch_and_none_is_larger_than_the_room(lengths: list[int], room: int, extra: int) -> None:
    batches = batched(range(len(lengths)), lengths, room, extra)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * (longest + extra) <= room
    flat = [row for batch in batches for row in batch]
    assert flat == sorted(flat, key=lambda row: (-lengths[row], row))


def test_as_many_rows_stand_together_as_there_is_room_for() -> None:
    assert batched("abcde", [2, 2, 2, 2, 2], 6) == [["a", "b", "c"], ["d", "e"]]
    assert batched("abc", [5, 5, 5], 12, extra=1) == [["a", "b"], ["c"]]
