"""A publisher that sees and a subscriber that always reads, against each other and plain PUB and SUB sockets."""

from __future__ import annotations

import gc
import itertools
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq

from fitwire.errors import AddressError, AddressInUse, NotOpenError
from fitwire.transport.outbox import release_with
from fitwire.transport.pubsub import Publisher, Subscriber
from fitwire.transport.socket_thread import ContextShare
from helpers import free_port, until

_names = itertools.count()


@pytest.fixture
def address() -> str:
    """A TCP address of loopback that nobody holds."""
    return f"tcp://127.0.0.1:{free_port()}"


@contextmanager
def plain_sub(address: str) -> Iterator[zmq.Socket[bytes]]:
    """A SUB socket as anybody makes it: bound, subscribed, read by its own thread only."""
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.subscribe("")
    sub.bind(address)
    try:
        yield sub
    finally:
        sub.close(linger=0)
        context.term()


def drain(subscriber: Subscriber, count: int) -> list[bytes]:
    """The first frames of ``count`` messages."""
    arrivals = [subscriber.receive(30.0) for _ in range(count)]
    return [arrival.frames[0] for arrival in arrivals if arrival is not None]


def numbers(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


def test_what_is_sent_before_anybody_listens_is_held_for_the_first_who_does(address: str) -> None:
    """A message sent long before the receiver binds arrives, in order."""
    publisher = Publisher(address, ContextShare())
    tickets = [publisher.send([text]) for text in numbers(500)]
    assert publisher.is_pending(tickets[0])
    assert publisher.receiver == 0
    subscriber = Subscriber(address, ContextShare())

    assert drain(subscriber, 500) == numbers(500)
    until(lambda: not publisher.is_pending(tickets[-1]))
    assert publisher.receiver == 1
    assert not publisher.dropped
    publisher.close()
    subscriber.close()


def test_a_bound_receiver_that_does_not_read_yet_loses_nothing(address: str) -> None:
    """A frozen window's SUB subscribes only when it is next polled: the publisher waits for that."""
    with plain_sub(address) as sub:
        publisher = Publisher(address, ContextShare())
        for text in numbers(300):
            publisher.send([text])
        time.sleep(0.3)  # what a blind PUB would send is gone by now
        received = [sub.recv() for _ in range(300) if sub.poll(30_000)]

        assert received == numbers(300)
        publisher.close()


def test_sending_never_blocks_and_what_does_not_fit_is_counted(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """With nobody to take them, messages beyond the limit are dropped, said once and counted."""
    publisher = Publisher(address, ContextShare(), limit_bytes=10 * (512 + 100))
    with caplog.at_level(logging.WARNING):
        tickets = [publisher.send([bytes(100)]) for _ in range(15)]

    assert tickets == [*range(1, 11), 0, 0, 0, 0, 0]
    assert publisher.dropped == {"full": 5}
    assert len(caplog.records) == 1
    publisher.close(linger=0)
    assert publisher.dropped == {"full": 5, "linger": 10}


def test_one_message_larger_than_the_limit_still_goes(address: str) -> None:
    """The limit bounds a queue; it is not a limit on a message."""
    publisher, subscriber = Publisher(address, ContextShare(), limit_bytes=10), Subscriber(address, ContextShare())
    publisher.send([b"head", bytes(100_000)])
    arrival = subscriber.receive(30.0)

    assert arrival is not None
    assert [len(frame) for frame in arrival.frames] == [4, 100_000]
    publisher.close()
    subscriber.close()


def test_a_receiver_that_reads_too_slowly_gets_everything_in_order(address: str) -> None:
    """Back-pressure holds messages here, where they are counted, and not in a socket that drops them."""
    with plain_sub(address) as sub:
        publisher = Publisher(address, ContextShare())
        sub.poll(1)
        for text in numbers(5000):
            publisher.send([text, bytes(2000)])
        received = [sub.recv_multipart()[0] for _ in range(5000) if sub.poll(30_000)]

        assert received == numbers(5000)
        assert not publisher.dropped
        publisher.close()


def test_the_next_receiver_is_not_shown_the_past(address: str) -> None:
    """What is sent between two receivers is dropped and counted; only what was asked to be kept waits."""
    publisher, first = Publisher(address, ContextShare()), Subscriber(address, ContextShare())
    until(lambda: publisher.receiver == 1)
    first.close()
    until(lambda: publisher.receiver == 0)
    assert [publisher.send([b"past"]) for _ in range(100)] == [0] * 100
    assert publisher.send([b"kept"], keep=True) > 0
    second = Subscriber(address, ContextShare())
    until(lambda: publisher.receiver == 2)
    publisher.send([b"present"])

    assert drain(second, 2) == [b"kept", b"present"]
    assert publisher.dropped == {"no receiver": 100}
    publisher.close()
    second.close()


def test_a_receiver_that_dies_takes_what_waited_for_it_along(address: str) -> None:
    """Messages that wait when their receiver goes are counted as lost, and are not shown to the next."""
    with plain_sub(address) as sub:
        publisher = Publisher(address, ContextShare())
        until(lambda: sub.poll(1) == 0 and publisher.is_heard)
        for text in numbers(20_000):
            publisher.send([text, bytes(2000)])
    until(lambda: not publisher.is_heard)
    lost = publisher.dropped["no receiver"]

    assert lost > 0
    publisher.close()


def test_a_receiver_of_part_of_the_messages_is_a_receiver_until_its_last_topic_goes(address: str) -> None:
    """Taking back one of two subscriptions is not leaving."""
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.bind(address)
    sub.subscribe("a")
    sub.subscribe("b")
    publisher = Publisher(address, ContextShare())
    until(lambda: sub.poll(1) == 0 and publisher.is_heard)
    sub.unsubscribe("a")
    publisher.send([b"b1"])

    assert sub.recv() == b"b1"
    sub.unsubscribe("b")
    until(lambda: sub.poll(1) == 0 and not publisher.is_heard)
    publisher.close()
    sub.close(linger=0)
    context.term()


def test_closing_delivers_what_was_accepted(address: str) -> None:
    """A close right after the last of 60 arrays of 256 kB returns, and all of them arrive."""
    subscriber, publisher = Subscriber(address, ContextShare()), Publisher(address, ContextShare())
    for text in numbers(60):
        publisher.send([text, bytes(262_144)])
    publisher.close()

    assert drain(subscriber, 60) == numbers(60)
    assert not publisher.dropped
    subscriber.close()


def test_closing_does_not_wait_for_a_receiver_that_has_gone(address: str) -> None:
    """A message kept for a receiver that left does not hold up the end: the linger is not spent."""
    publisher, subscriber = Publisher(address, ContextShare(), linger=60.0), Subscriber(address, ContextShare())
    until(lambda: publisher.is_heard)
    subscriber.close()
    until(lambda: not publisher.is_heard)
    publisher.send([b"kept"], keep=True)
    begun = time.monotonic()
    publisher.close()

    assert time.monotonic() - begun < 30.0
    assert publisher.dropped == {"linger": 1}


def test_closing_twice_is_harmless_and_sending_after_it_is_an_error(address: str) -> None:
    """The second close does nothing; a send says what to do."""
    publisher, subscriber = Publisher(address, ContextShare()), Subscriber(address, ContextShare())
    for end in (publisher, subscriber):
        end.close()
        end.close()

    with pytest.raises(NotOpenError, match=r"setup\(\)"):
        publisher.send([b"late"])
    assert subscriber.receive(0.0) is None


def test_closing_wakes_whoever_waits_for_a_message(address: str) -> None:
    """A thread that waits for ever is let go."""
    subscriber = Subscriber(address, ContextShare())
    got: list[object] = []
    waiter = threading.Thread(target=lambda: got.append(subscriber.receive(None)))
    waiter.start()
    subscriber.close()
    waiter.join(30.0)

    assert got == [None]


def test_a_receivers_queue_is_bounded_and_what_does_not_fit_is_counted(address: str) -> None:
    """Nobody takes messages: the first ones are kept, the rest are counted."""
    subscriber = Subscriber(address, ContextShare(), limit_bytes=10 * (512 + 1))
    publisher = Publisher(address, ContextShare())
    for number in range(9, -1, -1):
        publisher.send([b"%d" % number])
    for _ in range(7):
        publisher.send([b"x"])
    until(lambda: subscriber.dropped["full"] == 7)

    assert drain(subscriber, 10) == numbers(10)[::-1]
    publisher.close()
    subscriber.close()


def test_a_taken_address_is_one_error_and_leaves_nothing_open(address: str) -> None:
    """The second to bind is told so in a sentence, and nothing of it lives on."""
    before = threading.active_count()
    first = Subscriber(address, ContextShare())
    share = ContextShare()

    with pytest.raises(AddressInUse, match=r"is taken: another program .* is bound there"):
        Subscriber(address, share)
    first.close()
    until(lambda: threading.active_count() == before)
    Subscriber(address, share).close()


@pytest.mark.parametrize("wrong", ["nonsense", "tcp://127.0.0.1:99999", "tcp://127.0.0.1:http", "carrier://pigeon"])
def test_an_address_that_cannot_be_is_named(wrong: str) -> None:
    """Both ends say which address and why."""
    with pytest.raises(AddressError, match=wrong):
        Publisher(wrong, ContextShare())
    with pytest.raises(AddressError, match=wrong):
        Subscriber(wrong, ContextShare())


def test_a_port_scanner_is_no_sender_and_does_no_harm(address: str) -> None:
    """Bytes that are no ZeroMQ reach nobody; messages go on arriving."""
    subscriber = Subscriber(address, ContextShare())
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as scanner:
        scanner.sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)
        assert not subscriber.is_linked(0.0)
        assert subscriber.links == 0
        publisher = Publisher(address, ContextShare())
        publisher.send([b"good"])

        assert drain(subscriber, 1) == [b"good"]
    assert subscriber.is_linked(0.0)
    publisher.close()
    until(lambda: subscriber.links == 0)
    subscriber.close()


def test_inproc_works_within_one_context() -> None:
    """Neither end can see connections there, and says so."""
    context = zmq.Context()
    name = f"inproc://fitwire-test-{next(_names)}"
    subscriber, publisher = Subscriber(name, ContextShare(context)), Publisher(name, ContextShare(context))
    publisher.send([b"near"])

    assert drain(subscriber, 1) == [b"near"]
    assert subscriber.is_linked(0.0)
    assert subscriber.links == 0
    publisher.close()
    subscriber.close()
    context.term()


def test_a_users_context_may_be_terminated_with_both_ends_open(address: str) -> None:
    """``term()`` returns, accepted messages are delivered or counted, and a later send is a clear error."""
    context = zmq.Context()
    publisher, subscriber = Publisher(address, ContextShare(context)), Subscriber(address, ContextShare(context))
    publisher.send([b"one"])
    assert drain(subscriber, 1) == [b"one"]
    ended = threading.Thread(target=context.term)
    ended.start()
    ended.join(30.0)

    assert not ended.is_alive()
    assert not publisher.is_open
    assert not subscriber.is_open
    with pytest.raises(NotOpenError, match="context terminated"):
        publisher.send([b"late"])
    with pytest.raises(NotOpenError, match="has been terminated"):
        Publisher(address, ContextShare(context))


def test_terminating_a_users_context_counts_what_could_not_go(address: str) -> None:
    """Messages that nobody came for are not lost in silence."""
    context = zmq.Context()
    publisher = Publisher(address, ContextShare(context))
    for text in numbers(5):
        publisher.send([text])
    context.term()

    until(lambda: publisher.dropped == {"linger": 5})


def test_sockets_passed_in_are_used_and_closed_at_the_end(address: str) -> None:
    """A bound PUB and a connected SUB of the caller's serve as well."""
    context = zmq.Context()
    pub, sub = context.socket(zmq.PUB), context.socket(zmq.SUB)
    pub.bind(address)
    sub.subscribe("")
    sub.connect(address)
    publisher, subscriber = Publisher("", None, socket=pub), Subscriber("", None, socket=sub)

    def heard() -> bool:
        publisher.send([b"again"])  # a PUB is blind: until it is heard
        return subscriber.receive(0.02) is not None

    until(heard)
    publisher.close()
    subscriber.close()

    assert pub.closed
    assert sub.closed
    context.term()


def test_one_shared_context_ends_with_the_last_who_uses_it(address: str) -> None:
    """Nothing is left of it: neither the context nor a thread."""
    before = threading.active_count()
    share = ContextShare()
    publisher, subscriber = Publisher(address, share), Subscriber(address, share)
    context = share.join()
    share.leave()
    publisher.close()
    assert not context.closed
    subscriber.close()

    assert context.closed
    assert threading.active_count() == before


def test_a_counter_passed_in_goes_on_counting(address: str) -> None:
    """An end that is opened again adds to what it had lost before."""
    dropped = Counter({"linger": 2})
    publisher = Publisher(address, ContextShare(), dropped=dropped)
    publisher.send([b"lost"])
    publisher.close(linger=0)

    assert dropped == {"linger": 3}


class Owner:
    """Somebody who opened ends and forgot them."""


def test_a_dropped_owner_frees_its_port_and_still_delivers(address: str) -> None:
    """Garbage collection of the owner closes both: the port can be bound again at once."""
    reader = Subscriber(address, ContextShare())
    owner: Any = Owner()
    other = f"tcp://127.0.0.1:{free_port()}"
    publisher, subscriber = Publisher(address, ContextShare()), Subscriber(other, ContextShare())
    release_with(owner, publisher, subscriber)
    publisher.send([b"last words"])
    del owner
    gc.collect()

    Subscriber(other, ContextShare()).close()
    assert drain(reader, 1) == [b"last words"]
    until(lambda: not publisher.is_open)
    reader.close()
