"""Tests of ``fitwire.protocol.digest``: two ends that have the same blocks agree, and no others."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from fitwire.protocol.blocks import RECORDS, Block, Kind, checksum_of, decode_block
from fitwire.protocol.digest import RollingSum, fold
from fitwire.transport.memory import LossyLink
from helpers import Ends, MemoryHub, history, records


def rolled(blocks: Sequence[Block], value: int = 0) -> int:
    for block in blocks:
        value = fold(value, block.first, block.count, checksum_of(block))
    return value


def nothing(seq: int) -> None:
    raise AssertionError(f"block {seq} was read again, though it was sent a moment ago")


def test_a_blocks_own_checksum_is_taken_from_what_is_checked() -> None:
    """The CRC32 of head, text and buffers, as whoever decodes the block works it out anew."""
    block = records(1, 3)
    head, text, *buffers = map(bytes, block.frames)
    crc = zlib.crc32(b"".join(buffers), zlib.crc32(text[17:], zlib.crc32(head)))

    assert checksum_of(block) == crc
    assert decode_block(block.frames)[0] == block


def test_order_number_and_content_all_tell() -> None:
    """Two blocks in another order, one that lacks, and one that differs give another sum."""
    a, b, c = history([2, 2, 3])

    assert len({rolled([a, b, c]), rolled([b, a, c]), rolled([a, b]), rolled([a, b, records(5, 2)]), 0}) == 5


@given(st.lists(st.integers(1, 4), min_size=1, max_size=10), st.data())
def test_it_is_the_same_however_it_was_acknowledged(lengths: list[int], data: st.DataObject) -> None:
    """Block by block or all at once, and whatever was sent twice."""
    blocks = history(lengths)
    one = RollingSum()
    for block in blocks:
        for again in blocks[: blocks.index(block) + 1][-data.draw(st.integers(1, 3)) :]:
            one.add(again)
        if data.draw(st.booleans()):
            one.settle(block.last, nothing)  # type: ignore[arg-type]

    assert one.to_come() == (0, rolled(blocks))
    one.settle(blocks[-1].last, nothing)  # type: ignore[arg-type]
    assert (one.since, one.upto, one.value) == (0, blocks[-1].last, rolled(blocks))


def test_what_another_process_sent_is_read_once_more() -> None:
    """A courier that goes on where the last one was killed, and hears that the hub has more than that one knew."""
    blocks = history([2, 3, 1])
    held = {block.first: block for block in blocks}
    one = RollingSum()
    one.settle(6, held.get)

    assert (one.since, one.value) == (0, rolled(blocks))


def test_it_begins_behind_what_another_store_has() -> None:
    """What is not here any more cannot be summed; from where is said with it."""
    blocks = history([2, 3, 1])
    one = RollingSum()
    one.settle(2, lambda seq: None)
    one.add(blocks[1])
    one.add(blocks[2])

    assert one.to_come() == (2, rolled(blocks[1:]))


def test_a_hub_that_has_a_block_in_part_is_not_summed_wrongly() -> None:
    """It begins anew where it stands."""
    one = RollingSum()
    one.settle(3, {1: records(1, 5)}.get)

    assert (one.since, one.value) == (3, 0)


@given(st.integers(0, 2**32 - 1))
def test_the_goodbye_says_what_the_store_has(seed: int) -> None:
    """Over a link that loses, doubles and delays, and a hub that is started again in between."""
    blocks = history([3, 1, 4, 1, 5, 9, 2, 6])
    ends = Ends(blocks, there=LossyLink(0.2, 0.2, seed=seed), back=LossyLink(0.2, seed=seed + 1))
    ends.run_until(lambda: ends.source.have[RECORDS] > 8)
    ends.hub.restart()
    ends.finish()
    stored = [ends.hub.store[key] for key in sorted(ends.hub.store)]

    assert ends.hub.sink is not None
    assert ends.hub.sink.digest == [rolled(stored), 0]
    assert ends.hub.sink.since == [0, 0]


def test_a_second_store_gets_a_sum_of_its_own() -> None:
    """A hub with an empty store is told a gap, and the sum of what comes behind it."""
    ends = Ends(history([2, 2]))
    ends.run_until(lambda: ends.source.have[RECORDS] == 4)
    ends.hub = MemoryHub()
    for block in history([2, 2, 3])[2:]:
        ends.backlog.append(block)
    ends.source.connected(ends.clock())
    ends.finish()

    assert ends.hub.sink is not None
    assert ends.hub.sink.since == [4, 0]
    assert ends.hub.sink.digest == [rolled(history([2, 2, 3])[2:]), 0]
    assert [message.kind for _, message in ends.said(Kind.GAP)] == [Kind.GAP]
