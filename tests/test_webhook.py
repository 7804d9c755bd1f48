"""Alarms posted to a web address on this machine: their form, how often, and what a fault there costs."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fitwire.errors import UsageError
from fitwire.watch.alerts import Alarm
from fitwire.watch.webhook import Webhook
from helpers import until


class Room(ThreadingHTTPServer):
    """Keeps what is posted, and answers what it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.answers: list[int] = []
        self.posted: list[tuple[dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/secret"


class Answers(BaseHTTPRequestHandler):
    server: Room

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append((dict(self.headers.items()), body))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def room() -> Iterator[Room]:
    made = Room()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def alarm(text: str = "loss is nan", name: str = "fox") -> Alarm:
    return Alarm("ab", name, "nan", text)


def test_it_is_posted_as_slack_takes_it(room: Room) -> None:
    """Control characters of a peer are not."""
    hook = Webhook(room.url, pause=0.01)
    hook.tell(alarm(name="fox\x1b[2J\n"))
    hook.close()
    ((headers, body),) = room.posted

    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"text": "fox [2J : loss is nan (nan)"}


def test_one_of_ntfy_gets_text(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would show JSON as it is."""
    hook = Webhook("http://ntfy.localhost/topic", pause=0.01)
    monkeypatch.setattr(hook, "_url", room.url)
    hook.tell(alarm())
    hook.close()
    ((headers, body),) = room.posted

    assert (headers["Title"], body) == ("fitwire", b"fox: loss is nan (nan)")


def test_what_comes_meanwhile_goes_together(room: Room) -> None:
    """A hundred runs that fail at once are a message or two, with a count of those that do not fit."""
    hook = Webhook(room.url, pause=0.3)
    hook.tell(alarm("first"))
    until(lambda: len(room.posted) == 1)
    for number in range(100):
        hook.tell(alarm(f"number {number}"))
    hook.close()

    assert len(room.posted) == 2
    lines = json.loads(room.posted[1][1])["text"].splitlines()
    assert len(lines) == 21 and lines[-1] == "and 80 more"


@pytest.mark.parametrize(
    ("answers", "posts", "warned"), [([500, 200], 2, 0), ([500] * 3, 3, 1), ([404], 1, 1), ([302], 3, 1)]
)
def test_a_fault_there_is_tried_again_and_then_said(
    room: Room, caplog: pytest.LogCaptureFixture, answers: list[int], posts: int, warned: int
) -> None:
    """Without the path, which may be the secret; nobody is led elsewhere."""
    room.answers = list(answers) * (3 if answers == [302] else 1)
    with caplog.at_level(logging.WARNING):
        hook = Webhook(room.url, pause=0.01)
        hook.tell(alarm())
        hook.close()

    assert len(room.posted) == posts
    assert len(caplog.messages) == warned and "secret" not in caplog.text


def test_nobody_there_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    """It is said once it was given up."""
    with caplog.at_level(logging.WARNING):
        hook = Webhook("http://127.0.0.1:9/x", pause=0.01)
        hook.tell(alarm())
        hook.close()

    assert "could not be posted to http://127.0.0.1: ConnectionError" in caplog.text


@pytest.mark.parametrize("url", ["", "ntfy.sh/topic", "file:///etc/passwd", "ftp://here/x", "https://"])
def test_what_is_no_address_is_refused(url: str) -> None:
    """Before anything is watched."""
    with pytest.raises(UsageError, match="write https"):
        Webhook(url)
