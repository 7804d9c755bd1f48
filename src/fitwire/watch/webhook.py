"""Tell an alarm to a web address, in the form that Slack or ntfy takes: at most a message every few seconds.

A thread of its own posts, so nothing that watches waits for a network. What comes meanwhile goes together into the next
message. It is the watcher's machine that posts, never the trainer's.
"""

from __future__ import annotations

import logging
import queue
import time
from typing import Any
from urllib.parse import urlsplit

from fitwire.errors import UsageError
from fitwire.transport.process import spawn
from fitwire.watch.alerts import Alarm

__all__ = ["Webhook"]

logger = logging.getLogger(__name__)

PAUSE = 5.0
"""Seconds between two messages."""
TIMEOUT = 10.0
TRIES = 3
MAX_LINES = 20
"""Of one message; how many more there are is said."""
MAX_TEXT = 300


class Webhook:
    """Where alarms are posted.

    Args:
        url: ``https://`` or ``http://``; one of ntfy, by its host's name, gets text, any other ``{"text": …}`` as Slack
            does.
        pause: Seconds between two messages.

    Raises:
        UsageError: No such address, or ``requests`` is not installed.
    """

    def __init__(self, url: str, pause: float = PAUSE) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url[:80]!r} is no address to post to: write https://…")
        try:
            import requests
        except ModuleNotFoundError as error:
            raise UsageError("posting needs requests: pip install 'fitwire[alerts]'") from error
        self._requests: Any = requests
        self._url, self._pause = url, pause
        self._plain = "ntfy" in parts.hostname
        self._shown = f"{parts.scheme}://{parts.hostname}"  # a path may be the secret
        self._alarms: queue.SimpleQueue[Alarm | None] = queue.SimpleQueue()
        self._thread = spawn("webhook", self._post_all)

    def tell(self, alarm: Alarm) -> None:
        """Post it soon; returns at once."""
        self._alarms.put(alarm)

    def close(self, timeout: float = 2 * TIMEOUT) -> None:
        """Post what waits, at most ``timeout`` seconds long."""
        self._alarms.put(None)
        self._thread.join(timeout)

    def _post_all(self) -> None:
        going = True
        while going:
            batch: list[Alarm] = []
            alarm = self._alarms.get()
            while True:
                if alarm is None:
                    going = False
                else:
                    batch.append(alarm)
                try:
                    alarm = self._alarms.get_nowait()
                except queue.Empty:
                    break
            if batch:
                self._post(batch)
            if going:
                time.sleep(self._pause)

    def _post(self, batch: list[Alarm]) -> None:
        lines = [f"{_line(alarm.name)}: {_line(alarm.text)} ({alarm.when})" for alarm in batch[:MAX_LINES]]
        if len(batch) > MAX_LINES:
            lines.append(f"and {len(batch) - MAX_LINES} more")
        text = "\n".join(lines)
        body: dict[str, Any] = {"json": {"text": text}}
        if self._plain:
            body = {"data": text.encode(), "headers": {"Title": "fitwire"}}
        why = ""
        for attempt in range(TRIES):
            try:
                answer = self._requests.post(self._url, timeout=TIMEOUT, allow_redirects=False, **body)
            except self._requests.RequestException as error:
                why = type(error).__name__
            else:
                if 200 <= answer.status_code < 300:
                    return
                why = f"it answered {answer.status_code}"
                if 400 <= answer.status_code < 500 and answer.status_code != 429:
                    break
            if attempt + 1 < TRIES:
                time.sleep(self._pause * (attempt + 1))
        logger.warning("fitwire: %d alerts could not be posted to %s: %s", len(batch), self._shown, why)


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT])
