"""Tests of ``fitwire.journal.index``: of entries for the same records the later one holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fitwire.journal.index import LaneIndex, Place


def index_of(*ranges: tuple[int, int]) -> LaneIndex:
    index = LaneIndex()
    for number, (first, last) in enumerate(ranges):
        index.add(Place(first, last - first + 1, 1, number * 100, 50))
    return index


def ranges_of(index: LaneIndex) -> list[tuple[int, int, int]]:
    """First, last, and which of those added it is."""
    return [(index[at].first, index[at].last, index[at].start // 100) for at in range(len(index))]


def test_in_order_nothing_is_replaced() -> None:
    """Holes stay holes."""
    index = index_of((1, 2), (3, 3), (7, 9))
    index.settle()

    assert ranges_of(index) == [(1, 2, 0), (3, 3, 1), (7, 9, 2)]
    assert (index.head, index.replaced) == (9, 0)


def test_a_later_one_takes_the_place_of_an_earlier_one() -> None:
    """A tombstone's of its victim, a moved sample's of itself, a merged block's of the small ones."""
    index = index_of((1, 2), (3, 3), (4, 5), (6, 6), (3, 3), (4, 6), (1, 2), (7, 7))
    index.settle()

    assert ranges_of(index) == [(1, 2, 6), (3, 3, 4), (4, 6, 5), (7, 7, 7)]
    assert index.replaced == 4


def test_entries_beyond_the_last_mark_do_not_count() -> None:
    """Nor do they replace what is before it."""
    index = index_of((1, 2), (3, 4), (3, 6))
    index.settle(upto=4)

    assert ranges_of(index) == [(1, 2, 0), (3, 4, 1)]
    assert index.head == 4


def test_a_record_is_found_by_its_number() -> None:
    """The last entry that begins at or before it; what is behind counts its bytes."""
    index = index_of((3, 4), (5, 5), (9, 12))
    index.settle()

    assert [index.before(seq) for seq in (2, 3, 4, 5, 8, 9, 99)] == [-1, 0, 0, 1, 1, 2, 2]
    assert [index.bytes_after(seq) for seq in (0, 3, 5, 99)] == [150, 100, 50, 0]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 8)), max_size=40))
def test_what_is_left_is_in_order_and_was_touched_by_none_that_came_later(made: list[tuple[int, int]]) -> None:
    """Whatever the ranges are: the plain rule, said pair by pair, gives the same."""
    ranges = [(first, first + more) for first, more in made]
    index = index_of(*ranges)
    index.settle()

    expected = [
        (a, b, age)
        for age, (a, b) in enumerate(ranges)
        if not any(c <= b and a <= d for c, d in ranges[age + 1 :])
    ]  # fmt: skip
    assert ranges_of(index) == sorted(expected)


def test_a_great_many_replaced_entries_take_no_great_time() -> None:
    """Each of a hundred thousand is replaced, out of order: a walk for each would take minutes."""
    count = 100_000
    index = LaneIndex()
    for first in [*range(1, count + 1), *range(count, 0, -1)]:
        index.add(Place(first, 1, 1, 0, 1))
    index.settle()

    assert (len(index), index.replaced) == (count, count)
