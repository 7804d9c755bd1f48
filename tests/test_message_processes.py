"""The plain pair between two processes: start orders, awkward arrays, closing, freezing, dying, forking, exiting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fitwire.message import PairedReceiver, PairedSender, Receiver
from helpers import free_port, until
from message_end import EXPECTED, summary, tell

END = Path(__file__).with_name("message_end.py")


class Child:
    """An end in a process of its own, and what it says line by line."""

    def __init__(self, kind: str, role: str, ports: tuple[int, int], plan: str = "all") -> None:
        speak, listen = ports if role == "send" else ports[::-1]
        self.process = subprocess.Popen(
            [sys.executable, str(END), kind, role, str(speak), str(listen), plan],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=30)[1]
        return json.loads(line)

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """It ends by itself, well, and without a word on stderr."""
        _, errors = self.process.communicate(timeout=60)
        assert (self.process.returncode, errors) == (0, "")


@pytest.fixture
def ports() -> tuple[int, int]:
    """Where the receiver listens, and where the sender does."""
    return free_port(), free_port()


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Processes to be ended whatever happens."""
    started: list[Child] = []
    yield started
    for child in started:
        if child.process.poll() is None:
            child.process.kill()
        child.process.communicate()


def collect(receiver: PairedReceiver, seconds: float = 60.0) -> list[dict[str, Any]]:
    """Everything up to the message that says it is the last."""
    messages: list[dict[str, Any]] = []
    until(lambda: messages.extend(receiver.check_messages()) or (messages and "end" in messages[-1]), seconds)
    return messages


@pytest.mark.parametrize("kind", ["ours", "seed"])
@pytest.mark.parametrize("order", ["receiver first", "sender first", "together", "a receiver before"])
def test_everything_arrives_equal_in_order_whoever_starts_first(
    children: list[Child], ports: tuple[int, int], kind: str, order: str
) -> None:
    """A sender of ours or the original's in another process: dicts and thirteen kinds of array, writeable."""
    receiver = PairedReceiver.from_tcp_ports(*ports[::-1])
    if order in ("receiver first", "a receiver before"):
        receiver.setup()
    children.append(sender := Child(kind, "send", ports, "again" if order == "a receiver before" else "all"))
    if order != "together":
        assert sender.hear() == "up"
    if order == "a receiver before":
        assert receiver.receive_handshake()
        until(lambda: receiver.check_messages() == [] and not receiver.check_messages())
        assert sender.hear() is True
        receiver.close()
        sender.say("go on")
    receiver.setup()
    assert receiver.receive_handshake()
    messages = collect(receiver)

    assert summary(messages) == EXPECTED
    assert all(message["ndarray"].flags.writeable for message in messages if "ndarray" in message)
    assert receiver.connected
    assert not receiver.dropped
    sender.end()
    receiver.close()


@pytest.mark.parametrize("order", ["receiver first", "sender first", "together", "a receiver before"])
def test_an_original_receiver_gets_everything_from_ours(
    children: list[Child], ports: tuple[int, int], order: str
) -> None:
    """The other direction: the original in another process, ours here."""
    sender = PairedSender.from_tcp_ports(*ports)
    if order == "sender first":
        sender.setup()
        assert sender.send_handshake(0.05) is False
    if order == "a receiver before":
        sender.setup()
        children.append(first := Child("seed", "receive", ports, "handshake only"))
        assert sender.send_handshake() is True
        first.say("enough")
        first.end()
        until(lambda: not sender.has_peer)
    children.append(receiver := Child("seed", "receive", ports))
    if order == "receiver first":
        assert receiver.hear() == "up"
    sender.setup()
    assert sender.send_handshake() is True
    tell(sender)
    sender.close()
    said = [receiver.hear() for _ in range(2 if order == "receiver first" else 3)]

    assert said[-1] == EXPECTED
    assert not sender.dropped
    receiver.end()


def test_all_is_there_although_it_was_said_before_the_receiver_was_started(
    children: list[Child], ports: tuple[int, int]
) -> None:
    """A sender that shakes no hands, says everything and closes: its linger waits for the receiver."""
    children.append(sender := Child("ours", "send", ports, "blind"))
    assert sender.hear() == "up"
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
        messages = collect(receiver)

    assert summary(messages) == EXPECTED
    sender.end()


@pytest.mark.parametrize(("plan", "count"), [("dicts", 2000), ("arrays", 60), ("exit", 60)])
def test_a_close_right_after_the_last_message_costs_none(
    children: list[Child], ports: tuple[int, int], plan: str, count: int
) -> None:
    """2,000 dicts, or 60 arrays of 256 kB, then close, or the end of the process without one; the receiver is busy."""
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
        children.append(sender := Child("ours", "send", ports, plan))
        assert receiver.receive_handshake()
        sender.end()
        messages = receiver.check_messages(timeout=2000, times_to_check=count)

        assert [message["number"] for message in messages] == list(range(count))
        assert all((message["ndarray"] == message["number"]).all() for message in messages if plan != "dicts")


def test_a_frozen_receiver_holds_nothing_up_and_misses_nothing(children: list[Child], ports: tuple[int, int]) -> None:
    """While it is stopped by SIGSTOP sending returns; when it goes on, all is there."""
    children.append(receiver := Child("seed", "receive", ports))
    with PairedSender.from_tcp_ports(*ports) as sender:
        assert sender.send_handshake() is True
        os.kill(receiver.process.pid, signal.SIGSTOP)
        padding = np.zeros(32_768)
        for number in range(200):
            sender.send_array({"padding": number}, padding)
        tell(sender)
        assert sender.has_peer
        os.kill(receiver.process.pid, signal.SIGCONT)
        assert receiver.hear() == "up"
        assert receiver.hear() is True

        assert receiver.hear() == EXPECTED
        assert not sender.dropped
    receiver.end()


def test_closing_towards_a_frozen_receiver_ends_and_counts(children: list[Child], ports: tuple[int, int]) -> None:
    """The linger is the bound; what did not fit in the network by then is counted."""
    children.append(receiver := Child("seed", "receive", ports))
    sender = PairedSender.from_tcp_ports(*ports)
    sender.setup()
    assert sender.send_handshake() is True
    os.kill(receiver.process.pid, signal.SIGSTOP)
    for number in range(400):
        sender.send_array({"number": number}, np.zeros(32_768))
    begun = time.monotonic()
    sender.close(linger=0.3)

    assert time.monotonic() - begun < 30.0
    assert sender.dropped["linger"] > 0
    os.kill(receiver.process.pid, signal.SIGCONT)


def test_a_killed_end_is_noticed_by_the_other(children: list[Child], ports: tuple[int, int]) -> None:
    """``has_peer`` turns False; the sender counts what it says to nobody, the receiver takes the next sender."""
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
        children.append(first := Child("ours", "send", ports, "idle"))
        assert receiver.receive_handshake()
        until(lambda: receiver.has_peer)
        first.process.kill()
        until(lambda: not receiver.has_peer)
        children.append(second := Child("ours", "send", ports))
        assert summary(collect(receiver)) == EXPECTED
        second.end()
    with PairedSender.from_tcp_ports(*ports) as sender:
        children.append(third := Child("seed", "receive", ports))
        assert sender.send_handshake()
        third.process.kill()
        until(lambda: not sender.has_peer)
        sender.send_dict({"to": "nobody"})

        assert sender.dropped == {"no receiver": 1}


@pytest.mark.slow
def test_a_frozen_sender_is_noticed(children: list[Child], ports: tuple[int, int]) -> None:
    """An original one that is stopped answers no heartbeat: within 8 s ``has_peer`` says so, and True again after."""
    with PairedReceiver.from_tcp_ports(*ports[::-1]) as receiver:
        children.append(sender := Child("seed", "send", ports, "idle"))
        assert receiver.receive_handshake()
        until(lambda: receiver.has_peer)
        os.kill(sender.process.pid, signal.SIGSTOP)
        until(lambda: not receiver.has_peer, 80.0)
        os.kill(sender.process.pid, signal.SIGCONT)

        until(lambda: receiver.has_peer)


EXITS = {
    "unused": "PairedSender.from_defaults(); PairedReceiver.from_defaults(); Sender(); Receiver()",
    "open": "s.setup(); r.setup()",
    "connected": "s.setup(); r.setup(); t.start(); print(s.send_handshake(), flush=True); t.join()",
    "dropped": "s.setup(); r.setup(); del s, r, t",
    "in a cycle": "s.setup(); r.setup(); s.me = s; r.me = r; del s, r, t",
    "closed": "s.setup(); r.setup(); s.close(); r.close()",
    "single ends": "a, b = Sender(A), Receiver(A); b.check_message(); a.send_dict({}); print(b.check_message(9000))",
    "context": "c = zmq.Context(); s, r = PairedSender(A, B, c), PairedReceiver(B, A, c); s.setup(); r.setup()",
    "context terminated": "c = zmq.Context(); s = PairedSender(A, B, c); s.setup(); c.term()",
    "in use by a thread": "s.setup(); r.setup(); t.daemon = True; t.start()",
    "used by threads for ever": """s.setup(); r.setup()
def send():
    while True: s.send_dict({}); time.sleep(0.001)
def receive():
    while True: r.check_messages(True, 1)
for work in (send, receive): threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)""",
    "waiting for ever": """s.setup(); r.setup()
threading.Thread(target=Receiver('inproc://nobody').check_message, args=[-1], daemon=True).start()
time.sleep(0.1); sys.exit()""",
}


@pytest.mark.parametrize("name", EXITS)
def test_the_interpreter_ends_without_noise_or_delay(ports: tuple[int, int], name: str) -> None:
    """However an end is left behind, the process exits well and prints nothing, warnings shown."""
    code = (
        "import sys, threading, time, zmq\n"
        "from fitwire.message import *\n"
        f"A, B = 'tcp://127.0.0.1:{ports[0]}', 'tcp://127.0.0.1:{ports[1]}'\n"
        "s, r = PairedSender(A, B), PairedReceiver(B, A)\n"
        "t = threading.Thread(target=r.receive_handshake)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code + EXITS[name]], capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_what_was_sent_is_delivered_at_exit_also_when_the_sender_was_dropped(ports: tuple[int, int]) -> None:
    """A script that never closes loses nothing that somebody is there to take."""
    address = f"tcp://127.0.0.1:{ports[0]}"
    code = (
        "import sys, numpy\nfrom fitwire.message import Sender\n"
        "def work():\n    sender = Sender(sys.argv[1])\n"
        "    for i in range(50): sender.send_array({'number': i}, numpy.zeros(32768))\n"
        "work()\n"
    )
    with Receiver(address) as receiver:
        done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=60)
        messages = receiver.check_messages(2000, 50)

    assert (done.returncode, done.stderr) == (0, "")
    assert [message["number"] for message in messages] == list(range(50))


def test_at_exit_what_is_held_still_waits_a_moment_for_a_receiver(ports: tuple[int, int]) -> None:
    """A script that ends just before somebody listens is still heard: exit delivers, within its bound."""
    address = f"tcp://127.0.0.1:{ports[0]}"
    code = (
        "import sys, atexit\nfrom fitwire.message import Sender\n"
        "atexit.register(print, 'exiting', flush=True)\n"  # registered last, so run first
        "s = Sender(sys.argv[1]); s.send_dict({'last': 'words'})\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "exiting\n"
        with Receiver(address) as receiver:
            assert receiver.check_message(30_000) == {"last": "words"}


FORK = """
import os, sys
from fitwire.message import *
port, other = int(sys.argv[1]), int(sys.argv[2])
s, r = PairedSender.from_tcp_ports(port, other), PairedReceiver.from_tcp_ports(other, port)
s.setup(); r.setup()
a = Sender(s.sender_address); a.setup()
pid = os.fork()
if pid == 0:
    s.send_dict({"child": 1}); a.send_dict({"child": 2}); s.send_array({"child": 3}, [1])
    print([s.send_handshake(0.1), r.receive_handshake(0.1), r.check_messages()], flush=True)
    s.close(); r.close(); a.close()
    del s, r, a
    from multiprocessing import util  # and one that was forked can open its own
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0)); free = probe.getsockname()[1]
    with Receiver(f"tcp://127.0.0.1:{free}") as own, Sender(own.address) as speaker:
        speaker.send_dict({"own": 1})
        print(own.check_message(9000), flush=True)
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
s.send_dict({"parent": 1})
print(r.check_messages(True, 9000, 1), r.check_messages(), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_after_a_fork_the_childs_calls_do_nothing(ports: tuple[int, int]) -> None:
    """The child neither hangs nor sends nor harms the parent's; it may open its own, and says once why it is mute."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, *map(str, ports)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[False, False, []]", "{'own': 1}", "0", "[{'parent': 1}] []"]
    lines = done.stderr.splitlines()
    assert lines
    assert all("calls in the child process do nothing" in line for line in lines)


def test_importing_it_loads_no_framework() -> None:
    """A GUI that shows a training pays for numpy and ZeroMQ alone."""
    heavy = "torch", "keras", "tensorflow", "rich", "click"
    code = f"import sys, fitwire.message; print(sorted({set(heavy)} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.stdout == "[]\n"
