"""Tests of ``fitwire.transport.memory``."""

from __future__ import annotations

from fitwire.transport.memory import LossyLink


def carried(link: LossyLink, count: int = 1000, until: float = 1e9) -> list[list[bytes]]:
    """Send ``count`` messages at time 0 and read what has arrived by ``until``."""
    for number in range(count):
        link.send([b"head", number.to_bytes(2, "little")], 0.0)
    return list(link.receive(until))


def test_a_perfect_link_carries_everything_in_order() -> None:
    """Nothing is lost, doubled, moved or changed without being asked for."""
    link = LossyLink()

    assert [int.from_bytes(frames[1], "little") for frames in carried(link, 100)] == list(range(100))
    assert (link.sent, link.dropped) == (100, 0)


def test_about_the_asked_share_is_lost() -> None:
    """Shares are of messages, and what was lost is counted."""
    link = LossyLink(lost=0.3)
    arrived = carried(link)

    assert 600 < len(arrived) < 800
    assert link.dropped == 1000 - len(arrived)


def test_about_the_asked_share_comes_twice() -> None:
    """A doubled message is the same bytes again."""
    arrived = carried(LossyLink(doubled=0.5))

    assert 1400 < len(arrived) < 1600
    assert len({frames[1] for frames in arrived}) == 1000


def test_delayed_messages_overtake_each_other() -> None:
    """Each draws its own delay: not before its time, in another order, and all of them in the end."""
    link = LossyLink(delay=1.0)
    early = carried(link, until=0.5)
    at = link.next_arrival
    late = list(link.receive(1.0))

    assert 400 < len(early) < 600
    assert at is not None and 0.5 < at <= 1.0
    assert early != sorted(early)
    assert len(early) + len(late) == 1000
    assert link.next_arrival is None


def test_a_flip_changes_one_bit_of_one_frame() -> None:
    """The rest of the message is as it was, and an empty frame has no bit to flip."""
    link = LossyLink(flipped=1.0)
    link.send([bytes(8), bytes(8)], 0.0)
    link.send([b"", b""], 0.0)

    [spoilt, empty] = link.receive(0.0)

    assert sum(frame.count(0) for frame in spoilt) == 15
    assert sum(byte.bit_count() for frame in spoilt for byte in frame) == 1
    assert empty == [b"", b""]


def test_the_first_messages_can_be_lost_on_purpose() -> None:
    """For the case that a test is about."""
    link = LossyLink(lost_first=2)

    assert [frames[1] for frames in carried(link, 3)] == [b"\x02\x00"]


def test_the_same_seed_gives_the_same_chances() -> None:
    """A failing case can be run again."""
    options = {"lost": 0.2, "doubled": 0.2, "delay": 1.0, "flipped": 0.2}

    assert carried(LossyLink(**options, seed=3)) == carried(LossyLink(**options, seed=3))
    assert carried(LossyLink(**options, seed=3)) != carried(LossyLink(**options, seed=4))


def test_what_is_on_the_way_does_not_change_with_the_senders_memory() -> None:
    """Frames are copied when they are sent, as a network does."""
    link, frame = LossyLink(), bytearray(b"a")
    link.send([memoryview(frame)], 0.0)
    frame[0] = ord("b")

    assert list(link.receive(0.0)) == [[b"a"]]
