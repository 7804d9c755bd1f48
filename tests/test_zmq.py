"""Tests of ``fitwire.transport.zmq``: real sockets, over a Unix socket and over loopback."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from fitwire.errors import AddressInUse, LinkError
from fitwire.protocol.blocks import decode_block
from fitwire.transport.address import Address, resolve
from fitwire.transport.zmq import MAX_FRAME_BYTES, PEER_OUT, ZERO_COPY_BYTES, Dealer, Router, Sent
from helpers import free_port, picture, records, until


@pytest.fixture(params=["ipc", "tcp"])
def address(request: pytest.FixtureRequest, fitwire_dir: Path) -> Address:
    """An address nobody listens at, of either kind."""
    if request.param == "ipc":
        return resolve(f"ipc://{fitwire_dir}/hub")
    return resolve(f"tcp://127.0.0.1:{free_port()}")


@pytest.fixture
def ends(address: Address) -> Iterator[tuple[Dealer, Router]]:
    """A connected pair."""
    with closing(Router(address)) as router, closing(Dealer(address)) as dealer:
        until(lambda: True in dealer.changes(), what="connected")
        yield dealer, router


def heard(end: Any) -> Any:
    """The next message, waited for."""

    def arrived() -> Any:
        end.wait(0.05)
        return end.receive()

    return until(arrived, what="a message")


def test_messages_cross_both_ways_frame_by_frame(ends: tuple[Dealer, Router]) -> None:
    """What is sent as frames arrives as those frames, empty ones too, with the sender's name at the hub."""
    dealer, router = ends
    assert dealer.send([b"one", b"", b"three"])
    peer, frames = heard(router)
    assert router.send(peer, [b"back", b""]) is Sent.YES

    assert frames == [b"one", b"", b"three"]
    assert heard(dealer) == [b"back", b""]
    assert (router.receive(), dealer.receive()) == (None, None)


def test_blocks_cross_whole_and_in_order(ends: tuple[Dealer, Router]) -> None:
    """Small frames are copied, large ones lent: both arrive bit for bit, in the order of sending."""
    dealer, router = ends
    sent = [records(1, 3), picture(1, 500_000), records(4, 200)]
    for block in sent:
        dealer.send(block.frames)

    got = [decode_block(heard(router)[1])[0] for _ in sent]

    assert [(b.lane, b.first, b.count) for b in got] == [(b.lane, b.first, b.count) for b in sent]
    assert [list(map(bytes, b.frames)) for b in got] == [list(map(bytes, b.frames)) for b in sent]


def test_two_connectors_have_two_names(ends: tuple[Dealer, Router], address: Address) -> None:
    """Each answer reaches the one that asked."""
    dealer, router = ends
    with closing(Dealer(address)) as other:
        until(lambda: True in other.changes())
        dealer.send([b"a"])
        first, _ = heard(router)
        other.send([b"b"])
        second, _ = heard(router)
        router.send(second, [b"to b"])
        router.send(first, [b"to a"])

        assert first != second
        assert (heard(dealer), heard(other)) == ([b"to a"], [b"to b"])


def test_nothing_is_queued_for_a_hub_that_is_not_there(address: Address) -> None:
    """Sending without a connection says so at once, and waiting ends when asked to."""
    with closing(Dealer(address)) as dealer:
        assert dealer.send([b"x"]) is False
        assert dealer.wait(0.01) in (True, False)
        assert dealer.receive() is None
        assert True not in dealer.changes()


def test_a_hub_that_comes_later_is_found(address: Address) -> None:
    """The connector dials for as long as it takes."""
    with closing(Dealer(address)) as dealer:
        dealer.wait(0.2)
        with closing(Router(address)) as router:
            until(lambda: True in dealer.changes())
            assert dealer.send([b"x"])
            assert heard(router)[1] == [b"x"]


def test_a_hub_that_went_and_came_back_is_found_again(address: Address) -> None:
    """Down, then up, are told in order; what is sent in between is refused, not kept."""
    with closing(Dealer(address)) as dealer:
        for number in range(3):
            with closing(Router(address)) as router:
                until(lambda: True in dealer.changes())
                assert dealer.send([b"%d" % number])
                assert heard(router)[1] == [b"%d" % number]
            until(lambda: False in dealer.changes())
            until(lambda: dealer.send([b"into the void"]) is False)


def test_a_peer_that_left_is_gone(ends: tuple[Dealer, Router], address: Address) -> None:
    """The hub learns it by sending, as by a name that never was; it raises nothing."""
    _, router = ends
    with closing(Dealer(address)) as other:
        until(lambda: True in other.changes())
        other.send([b"x"])
        peer, _ = heard(router)
        assert router.send(peer, [b"y"]) is Sent.YES

    assert until(lambda: router.send(peer, [b"y"]) is Sent.GONE)
    assert router.send(b"nobody", [b"y"]) is Sent.GONE


def test_a_peer_that_does_not_read_is_full(address: Address) -> None:
    """The hub keeps a bounded number of messages for it, and others are served on."""
    context: zmq.Context[Any] = zmq.Context()
    stuck = context.socket(zmq.DEALER)
    stuck.setsockopt(zmq.RCVHWM, 1)
    stuck.setsockopt(zmq.LINGER, 0)
    try:
        with closing(Router(address)) as router, closing(Dealer(address)) as other:
            stuck.connect(address.text)
            stuck.send(b"x")
            peer, _ = heard(router)
            outcomes = [router.send(peer, [bytes(1000)]) for _ in range(PEER_OUT * 3)]
            until(lambda: True in other.changes())
            other.send([b"y"])
            name, _ = heard(router)

            assert outcomes[0] is Sent.YES
            assert outcomes[-1] is Sent.FULL
            assert router.send(name, [b"z"]) is Sent.YES
            assert heard(other) == [b"z"]
    finally:
        stuck.close()
        context.term()


def test_a_frame_that_is_too_long_cuts_off_its_sender_only(ends: tuple[Dealer, Router], address: Address) -> None:
    """It never reaches memory; the hub serves the others."""
    dealer, router = ends
    with closing(Dealer(address)) as giant:
        until(lambda: True in giant.changes())
        giant.send([bytes(MAX_FRAME_BYTES + 1)])
        until(lambda: False in giant.changes())
        dealer.send([b"still here"])

        assert heard(router)[1] == [b"still here"]
        assert router.receive() is None


def test_bytes_that_are_not_zmq_do_no_harm(ends: tuple[Dealer, Router], address: Address) -> None:
    """A stranger that talks something else at the port is dropped."""
    dealer, router = ends
    port = int(address.text.rpartition(":")[2]) if address.path is None else 0
    family, where = (socket.AF_UNIX, str(address.path)) if address.path else (socket.AF_INET, ("127.0.0.1", port))
    with socket.socket(family, socket.SOCK_STREAM) as stranger:
        stranger.connect(where)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        dealer.send([b"fine"])

        assert heard(router)[1] == [b"fine"]


def test_lent_memory_is_not_needed_after_it_has_left(ends: tuple[Dealer, Router]) -> None:
    """A large frame is lent to libzmq; dropping the array right after sending does not spoil it."""
    dealer, router = ends
    for value in range(5):
        dealer.send([np.full(ZERO_COPY_BYTES * 4, value, np.uint8).data])

    assert [set(heard(router)[1][0]) for _ in range(5)] == [{value} for value in range(5)]


def test_a_taken_port_is_one_clear_sentence() -> None:
    """It names the address, and what to do."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = resolve(f"127.0.0.1:{holder.getsockname()[1]}")
        with pytest.raises(AddressInUse, match="is taken: another program listens there") as caught:
            Router(address)

    assert caught.value.address == address.text
    assert isinstance(caught.value.__cause__, zmq.ZMQError)


def test_a_folder_that_is_not_there_is_a_link_error(fitwire_dir: Path) -> None:
    """Foreign errors come out as our own, the cause kept."""
    with pytest.raises(LinkError, match="cannot listen at"):
        Router(resolve(f"ipc://{fitwire_dir}/nowhere/hub"))


def test_only_its_owner_may_dial_a_unix_socket(fitwire_dir: Path) -> None:
    """Wherever it lies and whatever the umask is."""
    before = os.umask(0)
    try:
        with closing(Router(resolve(f"ipc://{fitwire_dir}/hub"))):
            mode = (fitwire_dir / "hub").stat().st_mode
    finally:
        os.umask(before)

    assert stat.S_IMODE(mode) == 0o600


def test_a_socket_left_by_a_killed_hub_is_taken_over(fitwire_dir: Path) -> None:
    """The path of a dead hub is in nobody's way."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{fitwire_dir}/hub")
    assert (fitwire_dir / "hub").exists()
    address = resolve(f"ipc://{fitwire_dir}/hub")

    with closing(Router(address)), closing(Dealer(address)) as dealer:
        assert until(lambda: True in dealer.changes())


def test_ipv6_loopback_is_an_address_too() -> None:
    """Written with brackets, as everywhere."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
            port = probe.getsockname()[1]
    except OSError:
        pytest.skip("no IPv6 loopback here")
    address = resolve(f"[::1]:{port}")

    with closing(Router(address)), closing(Dealer(address)) as dealer:
        assert until(lambda: True in dealer.changes())


def test_closing_waits_for_nobody(address: Address) -> None:
    """With megabytes on the way to a peer that does not read, and with no peer at all."""
    router, dealer = Router(address), Dealer(address)
    until(lambda: True in dealer.changes())
    for _ in range(50):
        dealer.send([bytes(2**20)])
    dealer.close()
    router.close()

    Dealer(address).close()
