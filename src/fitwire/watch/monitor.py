"""``Monitor``: the client that a person scripts.

A monitor joins the hub at its address, or is the hub if there is none; what it shows is the same. It takes the hub's
place when that leaves. It knows no view.
"""

from __future__ import annotations

import logging
import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from fitwire.errors import AddressInUse, LinkError, UnknownRun, UsageError, WaitTimeout
from fitwire.sleap.words import parse_ports
from fitwire.transport.address import Address, resolve
from fitwire.transport.process import spawn
from fitwire.watch.desk import Backend, Desk, Local, local_hub, local_store
from fitwire.watch.follow import Follower
from fitwire.watch.watched import WatchedRun

if TYPE_CHECKING:
    from fitwire.watch.sleapbridge import Bridge

__all__ = ["Monitor", "WatchedRun"]

logger = logging.getLogger("fitwire")

TAKE_OVER_AFTER = 0.5
"""Seconds without the hub after which a monitor tries to take its place, and before it tries again."""
PATIENCE = 10.0
"""Seconds for which a monitor tries to join a hub that holds its address and does not answer yet, or to be it."""
LEAST_PREFIX = 4
"""Characters of an id that say which run is meant."""


class Monitor:
    """All runs at one address: joins the hub there, or is the hub if the address is local and none answers.

    A context manager. While it is the hub, trainers may send to it; others may join it. When the hub it joined leaves,
    it takes its place.

    Args:
        address: As ``fitwire.init`` takes it; None for the user's own hub on this machine.
        store: Path of the database to keep runs in when it is the hub; None for the user's own.
        wire: ``"fw"``; ``"sleap"`` to hear SLEAP's own trainings too, in place of its LossViewer: each is a run like
            any other.
        listen: With ``wire="sleap"``, where those trainings send to and listen; None for ``tcp://127.0.0.1:9001,9000``.
        serve: Whether it may be the hub; without, and with none there, it shows what the store holds.

    Raises:
        AddressInUse: Another program listens there, and it is no hub; or at SLEAP's ports.
        LinkError: The address is not local, or ``serve`` is false, and no hub answers.

    Example:
        >>> import fitwire, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with Monitor(f"{folder}/hub", store=f"{folder}/store.sqlite3") as monitor:
        ...     with fitwire.init(f"{folder}/hub", name="example", wait=5) as run:
        ...         run.log({"loss": 0.5})
        ...     watched = monitor.wait_for_run("example")
        ...     _ = watched.wait(timeout=10)
        ...     watched.state, watched.curve("loss").values
        (<State.FINISHED: 'finished'>, array([0.5]))
    """

    def __init__(
        self,
        address: str | Address | None = None,
        *,
        store: str | os.PathLike[str] | None = None,
        wire: Literal["fw", "sleap"] = "fw",
        listen: str | None = None,
        serve: bool = True,
    ) -> None:
        if wire not in ("fw", "sleap"):
            raise UsageError(f"wire={wire!r}: a Monitor watches 'fw' and 'sleap'; a PairedReceiver reads 'pair'")
        if listen is not None and wire == "fw":
            raise UsageError("listen= says where SLEAP's trainings report: pass it with wire='sleap'")
        if wire == "sleap":
            parse_ports(listen)
        self._address = resolve(address)
        self._path, self._serve = store, serve
        self._desk = Desk(self._open())
        self._keeper = spawn("monitor", self._keep) if isinstance(self._desk.backend, Follower) and serve else None
        self._bridge: Bridge | None = None
        if wire == "sleap":
            self._hear_sleap(listen)

    def _hear_sleap(self, listen: str | None) -> None:
        from fitwire.watch.sleapbridge import Bridge

        try:
            self._bridge = Bridge(listen, self._address)
        except BaseException:
            self.close()
            raise

    def _open(self) -> Backend:
        if not self._serve:
            return self._open_without_hub()
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return local_hub(self._address, self._path)
            except AddressInUse as taken:
                try:
                    return Follower(self._address)
                except LinkError as silent:
                    if self._address.path is None:
                        raise taken from None
                    # Whoever holds the lock may be about to open, or have just left.
                    if time.monotonic() > end:
                        raise silent from None

    def _open_without_hub(self) -> Backend:
        if self._address.path is None or self._address.path.exists():
            try:
                return Follower(self._address)
            except LinkError:
                pass
        return local_store(self._path)

    def _keep(self) -> None:
        """Take the hub's place when it leaves."""
        refused = ""
        while not self._desk.closing.wait(0.1):
            follower = self._desk.backend
            lost = follower.lost if isinstance(follower, Follower) else None
            if lost is None or time.monotonic() - lost < TAKE_OVER_AFTER:
                continue
            try:
                hub = local_hub(self._address, self._path)
            except AddressInUse:  # another was quicker; the follower finds it by itself
                self._desk.closing.wait(TAKE_OVER_AFTER)
                continue
            except Exception as error:  # of the store, which may be mended
                if str(error) != refused:
                    refused = str(error)
                    logger.warning(
                        "the hub at %s has gone, and this monitor cannot take its place: %s", self.address, error
                    )
                self._desk.closing.wait(TAKE_OVER_AFTER)
                continue
            self._desk.change(hub)
            return

    # -- the address

    @property
    def is_hub(self) -> bool:
        """Whether the hub runs in this process."""
        backend = self._desk.backend
        return isinstance(backend, Local) and backend.hub is not None

    @property
    def address(self) -> str:
        """Where trainers reach it."""
        return self._address.text

    @property
    def connected(self) -> bool:
        """Whether what is shown is kept up: it is the hub, or the hub is there."""
        backend = self._desk.backend
        return self.is_hub or (isinstance(backend, Follower) and backend.lost is None)

    def close(self) -> None:
        """Leave; trainers go on, and what was stored stays. Again, or in a forked child, does nothing."""
        if self._bridge is not None and not self._desk.forked:
            self._bridge.close()
        self._desk.closing.set()
        if self._keeper is not None and not self._desk.forked:
            self._keeper.join(10.0)
        self._desk.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- runs

    @property
    def runs(self) -> list[WatchedRun]:
        """All known runs, newest first."""
        return [WatchedRun(self._desk, bytes.fromhex(line["id"])) for line in self._desk.backend.summaries()]

    def run(self, ref: str = "last") -> WatchedRun:
        """One run.

        Args:
            ref: Its name (the newest of that name), the beginning of its id (4 characters at least), or ``"last"``.

        Raises:
            UnknownRun: None, or, by id, more than one goes by that.
        """
        lines = self._desk.backend.summaries()
        if not lines:
            raise UnknownRun("no run has been seen yet: start a training with a fitwire callback, then look again")
        if ref == "last":
            return WatchedRun(self._desk, bytes.fromhex(lines[0]["id"]))
        named = [line for line in lines if line["name"] == ref]
        if not named and len(ref) >= LEAST_PREFIX:
            named = [line for line in lines if line["id"].startswith(ref.replace("-", "").lower())]
            if len(named) > 1:
                raise UnknownRun(f"{len(named)} runs have ids that begin with {ref}: write more of it")
        if not named:
            known = ", ".join(dict.fromkeys(str(line["name"]) for line in lines[:8]))
            raise UnknownRun(f"no run {ref[:80]!r}; the newest are: {known}")
        return WatchedRun(self._desk, bytes.fromhex(named[0]["id"]))

    def wait_for_run(self, name: str | None = None, new: bool = False, timeout: float | None = 60.0) -> WatchedRun:
        """Wait until there is a run.

        Args:
            name: Only one of this name.
            new: Pass over runs that are known already.
            timeout: Seconds; None for ever.

        Returns:
            The newest known one, else (or with ``new``) the next to start.

        Raises:
            WaitTimeout: None came in time.
        """
        known = {line["id"] for line in self._desk.backend.summaries()} if new else set[str]()

        def found() -> str | None:
            lines = self._desk.backend.summaries()
            ids = [line["id"] for line in lines if name in (None, line["name"]) and line["id"] not in known]
            return ids[0] if ids else None

        which = self._desk.wait_for(found, timeout)
        if which is None:
            what = "no run" if name is None else f"no run {name!r}"
            raise WaitTimeout(
                f"{what} within {timeout or 0:g} s at {self.address}; is a training started with this address?"
            )
        return WatchedRun(self._desk, bytes.fromhex(which))

    # -- for views

    @property
    def revision(self) -> int:
        """Grows whenever anything changed."""
        return self._desk.revision

    def wait_for_change(self, revision: int, timeout: float | None = None) -> int:
        """Wait until :attr:`revision` is another than ``revision``, at most ``timeout`` seconds; returns it."""
        self._desk.wait_for(lambda: True if self.revision != revision else None, timeout)
        return self.revision
