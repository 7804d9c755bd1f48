"""The handshake: as a machine with time handed in, between two of ours, and with an end shaped like the original."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from fitwire.message import PairedReceiver, PairedSender
from fitwire.protocol.handshake import Asking, is_request, reply_to
from helpers import free_port, until
from message_end import SeedReceiver, SeedSender


@pytest.fixture
def ports() -> tuple[int, int]:
    """Where the receiver listens, and where the sender does."""
    return free_port(), free_port()


def in_thread(work: Callable[[], object]) -> Callable[[], object]:
    """Begin ``work`` in a thread; call what this gives to wait for its result."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def result() -> object:
        thread.join(60.0)
        return results[0] if results else "still going"

    return result


class Raw:
    """The bare sockets of one end, to say and hear exactly what a test wants."""

    def __init__(self, speak: int, listen: int) -> None:
        self.context = zmq.Context()
        self.out, self.heard = self.context.socket(zmq.XPUB), self.context.socket(zmq.SUB)
        self.heard.subscribe("")
        self.heard.bind(f"tcp://127.0.0.1:{listen}")
        self.out.connect(f"tcp://127.0.0.1:{speak}")

    def wait(self) -> None:
        """Until the other end has subscribed."""
        assert self.out.poll(30_000)
        self.out.recv()

    def hear(self) -> dict[str, Any]:
        assert self.heard.poll(30_000)
        message: dict[str, Any] = json.loads(self.heard.recv())
        return message

    def close(self) -> None:
        self.out.close(linger=0)
        self.heard.close(linger=0)
        self.context.term()


@pytest.fixture
def raw_receiver(ports: tuple[int, int]) -> Iterator[Raw]:
    """Bare sockets where a receiver would be."""
    raw = Raw(ports[1], ports[0])
    yield raw
    raw.close()


def test_nothing_is_asked_until_somebody_listens() -> None:
    """A request sent into the void would only be an older one when it arrives."""
    asking = Asking("tag")

    assert asking.due(0.0, receiver=0, is_linked=False) is None
    assert asking.due(10.0, receiver=0, is_linked=True) is None
    assert asking.due(10.1, receiver=1, is_linked=True) == {"type": "handshake request", "id": "tag"}


def test_a_request_waits_for_the_way_back_but_not_for_ever() -> None:
    """An original's single reply must find us subscribed; one that connects only when asked is asked at last."""
    asking = Asking("tag")
    asked = [now / 10 for now in range(12) if asking.due(now / 10, receiver=1, is_linked=False)]

    assert asked == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]


def test_requests_are_repeated_at_the_originals_pace() -> None:
    """Once every 0.1 s, however often it is looked."""
    asking = Asking("tag")
    asked = [now for now in range(300) if asking.due(now / 1000, receiver=1, is_linked=True)]

    assert asked == [0, 100, 200]


def test_only_an_answer_to_this_handshake_counts() -> None:
    """Not one that came before the first request, not one with another id, not another message."""
    asking = Asking("tag")
    assert not asking.is_answer({"type": "handshake reply"}, at=0.5)
    asking.due(1.0, receiver=1, is_linked=True)

    assert not asking.is_answer({"type": "handshake reply"}, at=0.9)
    assert not asking.is_answer({"type": "handshake reply", "id": "old"}, at=1.1)
    assert not asking.is_answer({"type": "handshake request", "id": "tag"}, at=1.1)
    assert not asking.is_answer({}, at=1.1)
    assert asking.is_answer({"type": "handshake reply"}, at=1.1)
    assert asking.is_answer({"type": "handshake reply", "id": "tag"}, at=1.1)


def test_another_receiver_is_asked_anew() -> None:
    """What the one before may still have answered does not speak for the next."""
    asking = Asking("tag")
    asking.due(1.0, receiver=1, is_linked=True)
    asking.due(1.05, receiver=2, is_linked=False)

    assert not asking.is_answer({"type": "handshake reply", "id": "tag"}, at=1.06)
    assert asking.due(1.07, receiver=2, is_linked=True) is not None
    assert asking.is_answer({"type": "handshake reply", "id": "tag"}, at=1.08)


def test_a_reply_gives_a_short_id_back_and_nothing_else() -> None:
    """An original's request has none; a hostile one is not echoed."""
    assert reply_to({"type": "handshake request"}) == {"type": "handshake reply"}
    assert reply_to({"type": "handshake request", "id": "7f", "more": 1}) == {"type": "handshake reply", "id": "7f"}
    assert reply_to({"type": "handshake request", "id": "x" * 65}) == {"type": "handshake reply"}
    assert reply_to({"type": "handshake request", "id": [1]}) == {"type": "handshake reply"}
    assert is_request({"type": "handshake request"})
    assert not is_request({"type": "handshake reply"})


def test_both_ends_are_connected_after_a_handshake(ports: tuple[int, int]) -> None:
    """``connected`` says so on the sender, too, until it is closed."""
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver, PairedSender.from_tcp_ports(*ports) as sender:
        assert not sender.connected
        heard = in_thread(receiver.receive_handshake)
        assert sender.send_handshake() is True
        assert heard() is True

        assert sender.connected
        assert receiver.connected
    assert not sender.connected
    assert not receiver.connected


def test_a_handshake_between_two_of_ours_is_faster_than_the_originals(ports: tuple[int, int]) -> None:
    """Our first request is answered; the original's first is lost, and the second comes 0.11 s later."""

    def median(kind: type[PairedSender] | type[SeedSender]) -> float:
        took: list[float] = []
        for _ in range(5):
            with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
                heard = in_thread(receiver.receive_handshake)
                begun = time.monotonic()
                if kind is SeedSender:
                    sender: Any = SeedSender(*ports)
                else:
                    sender = PairedSender.from_tcp_ports(*ports)
                    sender.setup()
                assert sender.send_handshake() is True
                took.append(time.monotonic() - begun)
                assert heard() is True
                sender.close()
        return statistics.median(took)

    assert median(PairedSender) < median(SeedSender)


def test_a_receiver_of_ours_that_goes_silent_does_not_fail_an_original_sender(ports: tuple[int, int]) -> None:
    """It calls ``receive_handshake()`` and nothing more; its one answer waits until the sender subscribes."""
    receiver = PairedReceiver.from_tcp_ports(*ports[::-1])
    receiver.setup()
    sender = SeedSender(*ports)
    answered = in_thread(sender.send_handshake)

    assert receiver.receive_handshake(30) is True
    assert answered() is True
    receiver.close()
    sender.close()


@pytest.mark.parametrize("receiver_first", [True, False])
def test_an_original_receiver_that_goes_silent_does_not_fail_our_sender(
    ports: tuple[int, int], receiver_first: bool
) -> None:
    """It answers once, blindly: so it is asked only when its answer will be heard."""
    sender = PairedSender.from_tcp_ports(*ports)
    if not receiver_first:
        sender.setup()
        answered = in_thread(lambda: sender.send_handshake(20))
        time.sleep(0.15)
        receiver = SeedReceiver(*ports[::-1])
    else:
        receiver = SeedReceiver(*ports[::-1])
        time.sleep(0.15)  # its socket for replies has failed to connect, and tries again only every 0.1 s
        sender.setup()
        answered = in_thread(lambda: sender.send_handshake(20))

    assert receiver.receive_handshake()
    assert answered() is True
    sender.close()
    receiver.close()


def test_stale_replies_do_not_fake_a_handshake(ports: tuple[int, int], raw_receiver: Raw) -> None:
    """Answers left over from an earlier handshake, with its id or as an original gives them, count for nothing."""
    with PairedSender.from_tcp_ports(*ports) as sender:
        answered = in_thread(sender.send_handshake)
        request = raw_receiver.hear()
        for _ in range(5):
            raw_receiver.out.send_json({"type": "handshake reply"})
            raw_receiver.out.send_json({"type": "handshake reply", "id": request["id"]})
        assert answered() is True
        time.sleep(0.1)  # those left over have come by now

        assert sender.send_handshake(0.3) is False
        assert sender.connected is False


def test_a_receiver_that_left_cannot_be_shaken_hands_with(ports: tuple[int, int]) -> None:
    """Its queued answers do not speak for it."""
    sender, receiver = PairedSender.from_tcp_ports(*ports), SeedReceiver(*ports[::-1])
    sender.setup()
    answered = in_thread(sender.send_handshake)
    until(lambda: receiver.check_message(10) is None and sender.connected)
    for _ in range(3):
        receiver.out.send(b'{"type": "handshake reply"}')
    assert answered() is True
    receiver.close()
    until(lambda: not sender.has_peer)

    assert sender.send_handshake(0.3) is False
    sender.close()


def test_junk_instead_of_a_reply_is_passed_over(ports: tuple[int, int], raw_receiver: Raw) -> None:
    """Bad bytes and other messages neither raise nor count."""
    with PairedSender.from_tcp_ports(*ports) as sender:
        answered = in_thread(sender.send_handshake)
        request = raw_receiver.hear()
        for junk in (b"junk", b"\xff", b"5", b"null", b"[]", b'{"type": "other"}', b'{"type": ["handshake reply"]}'):
            raw_receiver.out.send(junk)
        raw_receiver.out.send_json({"type": "handshake reply", "id": "somebody else's"})
        raw_receiver.out.send_json(reply_to(request))

        assert answered() is True


def test_short_attempts_go_on_where_the_last_one_stopped(ports: tuple[int, int], raw_receiver: Raw) -> None:
    """A caller may ask for a moment at a time; an answer that comes between two calls counts at the next."""
    with PairedSender.from_tcp_ports(*ports) as sender:
        until(lambda: sender.send_handshake(0.05) or raw_receiver.heard.poll(1))
        raw_receiver.out.send_json(reply_to(raw_receiver.hear()))
        time.sleep(0.1)

        assert sender.send_handshake(0.05) is True


def test_a_handshake_without_time_tries_once(ports: tuple[int, int]) -> None:
    """Zero is not never: with the other end ready, repeating it succeeds; alone, it returns False."""
    with PairedSender.from_tcp_ports(*ports) as sender:
        assert sender.send_handshake(0) is False
        with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:

            def both() -> bool:
                receiver.check_messages(timeout=1)
                return sender.send_handshake(0)

            until(both)
            assert receiver.connected


def test_waiting_in_vain_ends_in_false(ports: tuple[int, int]) -> None:
    """Nobody there: both say so, and neither is connected."""
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
        assert receiver.receive_handshake(0.05) is False
        assert receiver.receive_handshake(0) is False
        assert not receiver.connected
    with PairedSender.from_tcp_ports(*ports) as sender:
        assert sender.send_handshake(0.05) is False
        assert not sender.connected


def test_a_connected_receiver_says_true_at_once_and_still_answers(ports: tuple[int, int]) -> None:
    """A sender that was started again is answered by the very call; messages in between are kept, in order."""
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
        for run in range(2):
            with PairedSender.from_tcp_ports(*ports) as sender:
                answered = in_thread(sender.send_handshake)
                until(lambda: receiver.receive_handshake(0.01) and sender.connected)
                assert answered() is True
                sender.send_dict({"run": run})
                sender.send_dict({"run": run, "last": True})

        assert receiver.receive_handshake(30) is True
        assert receiver.check_messages(timeout=1000, times_to_check=4) == [
            {"run": 0},
            {"run": 0, "last": True},
            {"run": 1},
            {"run": 1, "last": True},
        ]


def test_another_message_ends_the_wait_and_is_kept(ports: tuple[int, int], raw_receiver: Raw) -> None:
    """A sender that never asks is there, too; what it said comes first at the next check, and a request is answered."""
    raw_receiver.close()
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
        sender = Raw(*ports)
        sender.wait()
        sender.out.send_json({"epoch": 0})
        assert receiver.receive_handshake(30) is True
        assert receiver.connected is False
        sender.out.send_json({"epoch": 1})
        sender.out.send_json({"type": "handshake request", "id": "7"})

        assert receiver.check_messages(timeout=500, times_to_check=3) == [{"epoch": 0}, {"epoch": 1}]
        assert receiver.connected is True
        assert sender.hear() == {"type": "handshake reply", "id": "7"}
        sender.close()


def test_requests_are_handed_out_raw_when_asked_to(ports: tuple[int, int]) -> None:
    """``ack_handshakes=False`` gives them like any message, and answers nothing."""
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
        sender = Raw(*ports)
        sender.wait()
        sender.out.send_json({"type": "handshake request"})

        assert receiver.check_messages(False, 30_000, 1) == [{"type": "handshake request"}]
        assert receiver.connected is False
        assert sender.heard.poll(100) == 0
        sender.close()


def test_several_requests_in_one_check_are_answered_once(ports: tuple[int, int]) -> None:
    """As in the original; the answer is to the latest."""
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
        sender = Raw(*ports)
        sender.wait()
        for tag in "abc":
            sender.out.send_json({"type": "handshake request", "id": tag})

        assert receiver.check_messages(timeout=500, times_to_check=3) == []
        assert sender.hear() == {"type": "handshake reply", "id": "c"}
        assert sender.heard.poll(100) == 0
        sender.close()


def test_an_answer_waits_for_a_sender_whose_socket_for_it_is_not_up_yet(ports: tuple[int, int]) -> None:
    """The second sender asks once, before it listens: the answer is kept although the first one's place is empty."""
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
        first = Raw(*ports)
        first.wait()
        first.out.send_json({"type": "handshake request", "id": "first"})
        assert receiver.receive_handshake() is True
        assert first.hear()["id"] == "first"
        first.close()
        until(lambda: not receiver.has_peer)
        time.sleep(0.1)  # its own socket for answers has noticed as well
        context = zmq.Context()
        speak, listen = context.socket(zmq.XPUB), context.socket(zmq.SUB)
        speak.connect(f"tcp://127.0.0.1:{ports[0]}")
        assert speak.poll(30_000)
        speak.send_json({"type": "handshake request", "id": "second"})
        assert receiver.check_messages(timeout=5000, times_to_check=1) == []
        listen.subscribe("")
        listen.bind(f"tcp://127.0.0.1:{ports[1]}")

        assert listen.poll(30_000)
        assert listen.recv_json() == {"type": "handshake reply", "id": "second"}
        context.destroy(linger=0)
