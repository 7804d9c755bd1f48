"""The seed's classes within one process: what they promise beyond the bytes and the handshake."""

from __future__ import annotations

import gc
import inspect
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import zmq

from fitwire.errors import AddressError, AddressInUse, EncodeError, NotOpenError, UsageError
from fitwire.message import (
    BaseMessageParticipant,
    PairedMessageParticipant,
    PairedReceiver,
    PairedSender,
    Receiver,
    Sender,
)
from fitwire.protocol import plain
from helpers import free_port, until
from message_end import AWKWARD, EXPECTED, SeedReceiver, fingerprint, summary, tell
from test_message_bytes import BAD


@pytest.fixture
def address() -> str:
    """A TCP address of loopback that nobody holds."""
    return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
def ports() -> tuple[int, int]:
    """Where the receiver listens, and where the sender does."""
    return free_port(), free_port()


@contextmanager
def raw_publisher(address: str) -> Iterator[zmq.Socket[bytes]]:
    """A bare socket that is heard by whoever is bound there, to say anything at all."""
    context = zmq.Context()
    out = context.socket(zmq.XPUB)
    out.connect(address)
    assert out.poll(30_000)
    out.recv()
    try:
        yield out
    finally:
        out.close(linger=5000)
        context.term()


def parameters(function: Any) -> list[tuple[str, object]]:
    found = inspect.signature(function).parameters.values()
    return [(one.name, "required" if one.default is inspect.Parameter.empty else one.default) for one in found]


def test_names_order_and_defaults_are_the_originals() -> None:
    """Whatever was called by place or by name still is; what is new comes after."""
    address = ("address", "tcp://127.0.0.1:9001")
    paired = [("sender_address", "required"), ("receiver_address", "required"), ("context", None), ("connected", False)]

    assert parameters(Sender) == [address, ("context", None), ("socket", None)]
    assert [name for name, _ in parameters(Receiver)] == ["address", "context", "socket", "message_queue"]
    assert parameters(PairedSender) == parameters(PairedReceiver) == paired
    assert parameters(PairedSender.from_tcp_ports) == [("send_port", "required"), ("rec_port", "required")]
    assert parameters(Receiver("x").check_message) == [("timeout", 10), ("fresh", False)]
    assert parameters(Receiver("x").check_messages) == [("timeout", 10), ("times_to_check", 10)]
    assert parameters(PairedReceiver("x", "y").check_messages)[0] == ("ack_handshakes", True)
    assert parameters(PairedReceiver("x", "y").receive_handshake) == [("timeout_sec", 30)]
    assert parameters(PairedSender("x", "y").send_handshake) == [("timeout_sec", 30)]
    sent = [("header_data", "required"), ("A", "required"), ("flags", 0), ("copy", True), ("track", False)]
    assert parameters(Sender("x").send_array) == parameters(PairedSender("x", "y").send_array) == sent
    assert issubclass(Sender, BaseMessageParticipant)
    assert issubclass(PairedSender, PairedMessageParticipant)


def test_the_usual_addresses_are_the_originals() -> None:
    """The receiver listens at 9001, the sender at 9002."""
    assert PairedSender.from_defaults() == PairedSender("tcp://127.0.0.1:9001", "tcp://127.0.0.1:9002")
    assert PairedReceiver.from_defaults() == PairedReceiver("tcp://127.0.0.1:9002", "tcp://127.0.0.1:9001")
    assert Sender().address == Receiver().address == "tcp://127.0.0.1:9001"


def test_equality_is_by_value_and_so_nothing_is_hashable() -> None:
    """As in the original, two with the same fields are equal."""
    assert Sender("a") == Sender("a")
    assert Sender("a") != Sender("b")
    assert Sender("a") != Receiver("a")
    assert Receiver("a", message_queue=[{"x": 1}]) != Receiver("a")
    assert PairedSender("a", "b", connected=True) != PairedSender("a", "b")
    for one in (Sender("a"), Receiver("a"), PairedSender("a", "b"), PairedReceiver("a", "b")):
        with pytest.raises(TypeError, match="unhashable"):
            hash(one)


def test_plain_ends_open_when_first_used(address: str) -> None:
    """Neither needs ``setup()``; what is sent before anybody is there is held for whoever comes."""
    sender, receiver = Sender(address), Receiver(address)
    tell(sender)
    messages = receiver.check_messages(timeout=5000, times_to_check=len(EXPECTED["numbers"]) + len(AWKWARD))

    assert summary(messages) == EXPECTED
    sender.close()
    receiver.close()


def test_an_array_can_be_written_to_and_comes_with_its_header(address: str) -> None:
    """The header's keys, ``dtype`` and ``shape`` as a list, and the array under ``ndarray``."""
    with Receiver(address) as receiver, Sender(address) as sender:
        assert sender.send_array({"name": "mask"}, AWKWARD["fortran"]) is None
        message = receiver.check_message(5000)
        assert message is not None
        array = message.pop("ndarray")
        array[:] = 0

        assert message == {"name": "mask", "dtype": "int32", "shape": [3, 4]}


def test_nan_and_numpy_numbers_arrive_as_floats(address: str) -> None:
    """A Keras log of any number type is what it says."""
    with Receiver(address) as receiver, Sender(address) as sender:
        sender.send_dict({"loss": np.float32(0.5), "n": np.int64(3), "nan": np.float64("nan"), "inf": math.inf})
        message = receiver.check_message(5000)
        assert message is not None

        assert math.isnan(message.pop("nan"))
        assert message == {"loss": 0.5, "n": 3, "inf": math.inf}


def test_a_failed_array_does_not_poison_the_stream(address: str) -> None:
    """Nothing of a refused message is sent, and the next one arrives as itself."""
    header = {"name": "mask"}
    with Receiver(address) as receiver, Sender(address) as sender:
        for bad in (np.array([object()]), np.ma.masked_array([1], [True]), np.zeros(1, [("a", "f4")])):
            with pytest.raises(EncodeError):
                sender.send_array(header, bad)
        with pytest.raises(EncodeError):
            sender.send_dict({"dtype": "f4", "shape": [1]})
        sender.send_dict({"next": True})

        assert receiver.check_message(5000) == {"next": True}
        assert header == {"name": "mask"}
        assert not sender.dropped


def test_a_buffer_may_be_reused_even_with_copy_false(address: str) -> None:
    """What was accepted is a copy; a tracker that is asked for is done."""
    buffer = np.zeros(300_000)
    with Receiver(address) as receiver, Sender(address) as sender:
        for number in range(10):
            buffer[:] = number
            tracker = sender.send_array({}, buffer, copy=False, track=True)
            assert tracker is not None
            assert tracker.done
        received = [receiver.check_message(5000) for _ in range(10)]

        values = [np.unique(message["ndarray"]).tolist() for message in received if message is not None]
        assert values == [[number] for number in range(10)]


def test_a_flag_that_would_glue_messages_is_refused(address: str) -> None:
    """SNDMORE would make the next message part of this one; DONTWAIT changes nothing."""
    with Sender(address) as sender:
        sender.send_array({}, np.zeros(1), zmq.DONTWAIT)
        with pytest.raises(UsageError, match="glue"):
            sender.send_array({}, np.zeros(1), flags=zmq.SNDMORE)
        sender.close(linger=0)


def test_bad_bytes_of_every_kind_are_counted_and_cost_no_good_message(address: str) -> None:
    """Between good messages all the bad ones are sent; every good one arrives, in order, in one call."""
    with Receiver(address) as receiver, raw_publisher(address) as out:
        for number, (_, frames) in enumerate(BAD.values()):
            out.send_multipart(frames)
            out.send_json({"number": number})
        messages = receiver.check_messages(timeout=1000, times_to_check=len(BAD))

        assert messages == [{"number": number} for number in range(len(BAD))]
        assert receiver.dropped.total() == len(BAD)
        assert set(receiver.dropped) == {kind for kind, _ in BAD.values()}


def test_bad_bytes_reach_no_one_through_a_pair_either(ports: tuple[int, int]) -> None:
    """The same at a ``PairedReceiver``: nothing raises, the good message arrives."""
    receiver = PairedReceiver.from_tcp_ports(*ports[::-1])
    with receiver, raw_publisher(receiver.receiver_address) as out:
        for _, frames in BAD.values():
            out.send_multipart(frames)
        out.send_json({"good": True})
        messages = receiver.check_messages(timeout=1000, times_to_check=1)

        assert messages == [{"good": True}]
        assert receiver.dropped.total() == len(BAD)


def test_only_bad_messages_are_as_good_as_none(address: str) -> None:
    """A flood of them does not keep a check from ending, nor makes it raise."""
    with Receiver(address) as receiver, raw_publisher(address) as out:
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                out.send(b"junk")

        flooding = threading.Thread(target=flood)
        flooding.start()
        until(lambda: receiver.dropped["json"] > 100 or receiver.check_message(1) is not None)
        result = receiver.check_message(10)
        stop.set()
        flooding.join()

        assert result is None
        assert set(receiver.dropped) <= {"json", "full"}


def test_what_an_original_glued_to_a_failed_array_is_found(address: str) -> None:
    """Its header went out alone and took the next message along: the dict arrives, the header is counted."""
    orphan = json.dumps({"dtype": "float64", "shape": [2, 2]}).encode()
    with Receiver(address) as receiver, raw_publisher(address) as out:
        out.send_multipart([orphan, b'{"loss": 0.5}'])
        out.send_multipart([orphan, *plain.encode_array({"name": "next"}, np.arange(3))])

        assert receiver.check_message(5000) == {"loss": 0.5}
        message = receiver.check_message(5000)
        assert message is not None
        assert message["name"] == "next"
        assert fingerprint(message["ndarray"]) == fingerprint(np.arange(3))
        assert receiver.dropped == {"size": 1, "frames": 1}


def test_a_message_pushed_back_is_the_next_one(address: str) -> None:
    """It comes before all others, and ``fresh`` passes it by."""
    with Receiver(address, message_queue=[{"queued": 1}]) as receiver, Sender(address) as sender:
        sender.send_dict({"fresh": 1})
        receiver.push_back_message({"first": 1})
        assert receiver.check_message(5000, fresh=True) == {"fresh": 1}
        first = receiver.check_message()
        assert first == {"first": 1}
        receiver.push_back_message(first)

        assert receiver.check_messages() == [{"first": 1}, {"queued": 1}]


@pytest.mark.parametrize(("times", "expected"), [(-5, 0), (0, 0), (1, 1), (3, 3), (10, 10), (99, 20)])
def test_times_to_check_is_the_most_that_is_taken(address: str, times: int, expected: int) -> None:
    """n means at most n, and none when it is not positive; the rest stays for the next call."""
    with Receiver(address) as receiver, Sender(address) as sender:
        for number in range(20):
            sender.send_dict({"number": number})
        first = receiver.check_message(5000)
        assert first is not None
        receiver.push_back_message(first)

        assert len(receiver.check_messages(200, times)) == expected
        rest = receiver.check_messages(200, 20)
        assert [message["number"] for message in rest] == list(range(expected, 20))


def test_a_negative_timeout_waits_as_long_as_it_takes(address: str) -> None:
    """As ZeroMQ's own poll does."""
    with Receiver(address) as receiver, Sender(address) as sender:
        threading.Timer(0.1, sender.send_dict, [{"late": True}]).start()

        assert receiver.check_message(-1) == {"late": True}


def test_has_peer_follows_the_other_end(ports: tuple[int, int]) -> None:
    """True once it has come, False once it has gone, on both sides."""
    sender, receiver = PairedSender.from_tcp_ports(*ports), PairedReceiver.from_tcp_ports(*ports[::-1])
    assert not sender.has_peer
    assert not receiver.has_peer
    sender.setup()
    receiver.setup()
    until(lambda: sender.has_peer and receiver.has_peer)
    receiver.close()
    until(lambda: not sender.has_peer)
    receiver.setup()
    until(lambda: sender.has_peer and receiver.has_peer)
    sender.close()

    until(lambda: not receiver.has_peer)
    receiver.close()


def test_a_single_ends_has_peer_follows_the_other(address: str) -> None:
    """The same for a sender and a receiver alone."""
    sender, receiver = Sender(address), Receiver(address)
    assert not sender.has_peer
    assert not receiver.has_peer
    with receiver:
        with sender:
            until(lambda: sender.has_peer and receiver.has_peer)
        until(lambda: not receiver.has_peer)
    assert not sender.has_peer


def test_what_is_sent_to_nobody_is_counted(address: str) -> None:
    """A receiver that left is not waited for; the count is where the caller can read it."""
    sender = Sender(address)
    with Receiver(address) as receiver, sender:
        sender.send_dict({"heard": True})
        assert receiver.check_message(5000) == {"heard": True}
        receiver.close()
        until(lambda: not sender.has_peer)
        for _ in range(3):
            sender.send_dict({"heard": False})

        assert sender.dropped == {"no receiver": 3}


def test_a_pair_is_used_only_while_it_is_open(ports: tuple[int, int]) -> None:
    """Before ``setup()`` and after ``close()`` every call says what to do; opening again is allowed."""
    sender, receiver = PairedSender.from_tcp_ports(*ports), PairedReceiver.from_tcp_ports(*ports[::-1])
    calls = (
        lambda: sender.send_dict({}),
        lambda: sender.send_array({}, np.zeros(1)),
        lambda: sender.send_handshake(0),
        lambda: receiver.receive_handshake(0),
        lambda: receiver.check_messages(),
    )
    for state in ("not open yet", "closed"):
        for call in calls:
            with pytest.raises(NotOpenError, match=state + r": call setup\(\)"):
                call()
        sender.setup()
        receiver.setup()
        sender.setup()  # harmless
        sender.send_dict({"state": state})
        assert receiver.check_messages(timeout=2000, times_to_check=1) == [{"state": state}]
        for end in (sender, receiver):
            end.close()
            end.close()


def test_a_plain_end_is_not_reopened_by_accident(address: str) -> None:
    """After ``close()`` a use is an error until ``setup()`` is called."""
    sender, receiver = Sender(address), Receiver(address)
    receiver.close()  # never open: harmless
    sender.close()
    with pytest.raises(NotOpenError, match="this Sender is closed"):
        sender.send_dict({})
    with pytest.raises(NotOpenError, match="this Receiver is closed"):
        receiver.check_message()
    with receiver, sender:
        sender.send_dict({"again": True})

        assert receiver.check_message(5000) == {"again": True}


def test_a_taken_port_is_one_sentence_and_leaves_nothing_half_open(ports: tuple[int, int]) -> None:
    """The second to bind learns what to do; its other socket is not left behind, and it can try again."""
    before = threading.active_count()
    first, second = PairedSender.from_tcp_ports(*ports), PairedSender.from_tcp_ports(*ports)
    first.setup()
    during = threading.active_count()
    with pytest.raises(AddressInUse, match=rf"^tcp://127.0.0.1:{ports[1]} is taken: .*use another port$"):
        second.setup()
    assert threading.active_count() == during
    with pytest.raises(NotOpenError):
        second.send_dict({})
    first.close()
    second.setup()
    second.close()

    assert threading.active_count() == before


@pytest.mark.parametrize("kind", [PairedSender, PairedReceiver])
def test_a_wrong_address_leaves_nothing_half_open(kind: type[PairedSender] | type[PairedReceiver]) -> None:
    """When one socket cannot be made the other's port is free again."""
    good = f"tcp://127.0.0.1:{free_port()}"
    broken = kind("nonsense", good)
    with pytest.raises(AddressError, match="nonsense"):
        broken.setup()

    with Receiver(good) as receiver:
        assert receiver.check_message(0) is None


def test_a_port_taken_by_another_program_is_told_by_a_plain_receiver(address: str) -> None:
    """Also when it opens by its first check, and also when the other is no ZeroMQ."""
    other = SeedReceiver(free_port(), int(address.rpartition(":")[2]))
    with pytest.raises(AddressInUse, match="is taken"):
        Receiver(address).check_message()
    other.close()


def test_dropping_an_end_frees_its_port(ports: tuple[int, int]) -> None:
    """As in the original, where it is how a pair is closed; what was sent is still delivered."""
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
        for number in range(3):
            sender = PairedSender.from_tcp_ports(*ports)
            sender.setup()
            sender.send_dict({"number": number})
            del sender
            gc.collect()
            assert receiver.check_messages(timeout=5000, times_to_check=1) == [{"number": number}]


def test_a_users_context_is_used_and_may_be_terminated(ports: tuple[int, int]) -> None:
    """``term()`` returns with everything open, and again after ``close()``; later calls are clear errors."""
    context = zmq.Context()
    sender = PairedSender(f"tcp://127.0.0.1:{ports[0]}", f"tcp://127.0.0.1:{ports[1]}", context)
    receiver = PairedReceiver(sender.receiver_address, sender.sender_address, context)
    sender.setup()
    receiver.setup()
    sender.send_dict({"before": True})
    until(lambda: sender.has_peer)
    assert receiver.check_messages(timeout=5000, times_to_check=1) == [{"before": True}]
    ending = threading.Thread(target=context.term)
    ending.start()
    ending.join(30.0)

    assert not ending.is_alive()
    with pytest.raises(NotOpenError, match="terminated"):
        sender.send_dict({})
    with pytest.raises(NotOpenError, match="terminated"):
        until(lambda: receiver.check_messages())
    for end in (sender, receiver):
        with pytest.raises(NotOpenError, match="terminated"):
            end.setup()
        end.close()


def test_closing_lets_go_of_a_users_context() -> None:
    """After ``close()`` nothing of ours is left in it: it ends at once although the objects live on."""
    context = zmq.Context()
    sender, receiver = Sender(f"tcp://127.0.0.1:{free_port()}", context), Receiver("tcp://127.0.0.1:*", context)
    with sender, receiver:
        pass
    ending = threading.Thread(target=context.term)
    ending.start()
    ending.join(30.0)

    assert not ending.is_alive()
    assert context.closed


def test_a_socket_passed_in_is_used_once_and_closed(address: str) -> None:
    """It takes the place of our own; opening again makes one of our own."""
    context = zmq.Context()
    own = context.socket(zmq.SUB)
    own.subscribe("")
    own.bind(address)
    receiver = Receiver(address, None, own)
    with Sender(address) as sender:
        sender.send_dict({"number": 1})
        assert receiver.check_message(5000) == {"number": 1}
        receiver.close()
        assert own.closed
        until(lambda: not sender.has_peer)
        receiver.setup()
        until(lambda: sender.has_peer)
        sender.send_dict({"number": 2})

        assert receiver.check_message(5000) == {"number": 2}
    receiver.close()
    context.term()


def test_several_threads_may_send_at_once(address: str) -> None:
    """Each one's messages arrive whole and in its order."""
    with Receiver(address) as receiver, Sender(address) as sender:

        def work(name: int) -> None:
            for number in range(200):
                sender.send_array({"name": name, "number": number}, np.full(10, number))

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        messages = receiver.check_messages(5000, 800)
        for thread in threads:
            thread.join()

        for name in range(4):
            mine = [message for message in messages if message["name"] == name]
            assert [message["number"] for message in mine] == list(range(200))
            assert all((message["ndarray"] == message["number"]).all() for message in mine)


def test_a_busy_receiver_loses_nothing(ports: tuple[int, int]) -> None:
    """It is open and does not look: everything waits for it, read from the moment it was bound."""
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
        with PairedSender.from_tcp_ports(*ports) as sender:
            tell(sender)
            begun = time.monotonic()
        assert time.monotonic() - begun < 30.0  # the sender is not held up

        messages = receiver.check_messages(timeout=5000, times_to_check=len(EXPECTED["numbers"]) + len(AWKWARD))
        assert summary(messages) == EXPECTED
