"""Where a hub listens: ``ipc`` in a folder of one's own by default, TCP when asked.

This module turns what a person writes into an address that is safe to use, or a sentence saying why it is not.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path

from fitwire.errors import AddressError, StoreError
from fitwire.transport.process import private_folder

__all__ = ["Address", "data_folder", "default_address", "is_listened_at", "resolve", "two_ports"]

MAX_IPC_PATH = 107
"""Bytes of a Unix socket's path, the system's limit without the closing zero."""
TCP_PORT = 9010
"""By habit; 9000 to 9002 belong to SLEAP and to ``fitwire.message``."""


@dataclass(frozen=True, slots=True)
class Address:
    """One address, checked.

    Attributes:
        text: As ZeroMQ takes it.
        path: Of the Unix socket; None for TCP.
        local: Whether a hub may be started there by whoever finds none.
    """

    text: str
    path: Path | None
    local: bool

    def __str__(self) -> str:
        return self.text


def data_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Where stores lie: ``folder``, else ``FITWIRE_DIR``, else the user's data folder; made when it is not there.

    Raises:
        StoreError: It cannot be made, or belongs to somebody else.
    """
    chosen = folder or os.environ.get("FITWIRE_DIR")
    try:
        if chosen:
            return _chosen_folder(chosen)
        import platformdirs

        return private_folder(platformdirs.user_data_path("fitwire"))
    except OSError as error:
        raise StoreError(f"no folder for the store: {error}; set FITWIRE_DIR to one that you can write to") from error


def _chosen_folder(chosen: str | os.PathLike[str]) -> Path:
    # One that was there keeps its mode: it may be a project's, shared on purpose.
    path = Path(chosen).expanduser().absolute()
    return path if path.is_dir() else private_folder(path)


def _runtime_folder() -> Path:
    chosen = os.environ.get("FITWIRE_DIR")
    if chosen:
        # A folder shared between hosts must not make one host's hub look like another's.
        host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
        return private_folder(_chosen_folder(chosen) / f"run-{host}")
    import platformdirs

    try:
        with warnings.catch_warnings():  # that XDG_RUNTIME_DIR is not set: under Slurm and cron it never is
            warnings.simplefilter("ignore")
            folder = platformdirs.user_runtime_path("fitwire")
        return private_folder(folder)
    except OSError:
        import tempfile  # here, because it loads compressors into every training

        user = os.getuid() if hasattr(os, "getuid") else 0
        return private_folder(Path(tempfile.gettempdir()) / f"fitwire-{user}")


def default_address() -> Address:
    """The user's own hub on this machine.

    Raises:
        AddressError: No folder can be made for its socket, or its path would be too long.
    """
    try:
        folder = _runtime_folder()
    except OSError as error:
        raise AddressError(
            f"no folder for the hub's socket: {error}; set FITWIRE_DIR to one that you can write to"
        ) from error
    return _ipc(folder / "hub")


def _ipc(path: Path) -> Address:
    size = len(os.fsencode(path))
    if size > MAX_IPC_PATH:
        raise AddressError(
            f"the socket's path takes {size} bytes, the system allows {MAX_IPC_PATH}: {path}; "
            "set FITWIRE_DIR to a shorter folder"
        )
    if path.is_dir():
        raise AddressError(f"{path} is a folder: name a file in it, e.g. ipc://{path / 'hub'}")
    return Address(f"ipc://{path}", path, local=True)


def is_listened_at(path: Path) -> bool:
    """Whether somebody answers at a Unix socket: a hub, or what forwards to one on another machine."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def two_ports(text: str, wire: str, ports: tuple[int, int], forwards: str) -> tuple[str, str]:
    """The two addresses of a wire that takes a port for each direction, as ZeroMQ writes them.

    Args:
        text: ``tcp://host:first,second``; empty for ``ports`` of this machine.
        wire: What it is called, for the sentences.
        ports: Those that are meant where none are given.
        forwards: How ssh forwards each of the two, ``"-L -R"`` say.

    Raises:
        AddressError: Malformed, or beyond this machine: these sockets know no keys.
    """
    usual = "127.0.0.1:{},{}".format(*ports)
    match = re.fullmatch(r"(?:tcp://)?([A-Za-z0-9._-]+):(\d{1,5}),(\d{1,5})", text or usual)
    if match is None or not all(0 < int(port) < 65536 for port in match.groups()[1:]) or match[2] == match[3]:
        raise AddressError(f'{text[:80]!r} is no address of wire="{wire}": write tcp://{usual}')
    host = "127.0.0.1" if match[1] == "localhost" else match[1]
    if not re.fullmatch(r"127\.\d{1,3}\.\d{1,3}\.\d{1,3}", host):
        ssh = " ".join(
            f"{how} {port}:127.0.0.1:{port}" for how, port in zip(forwards.split(), match.groups()[1:], strict=True)
        )
        raise AddressError(
            f'{text[:80]}: wire="{wire}" knows no keys and stays on this machine; forward its ports over ssh instead, '
            f"`ssh {ssh} HOST`"
        )
    return f"tcp://{host}:{match[2]}", f"tcp://{host}:{match[3]}"


def resolve(address: str | Address | None = None) -> Address:
    """Turn what a person wrote into an address.

    Args:
        address: ``ipc:///path``, a path, ``tcp://host:port``, ``host:port`` or ``host``; None for
            ``FITWIRE_ADDRESS``, else the user's own hub on this machine.

    Raises:
        AddressError: Malformed, too long, or TCP off loopback, which needs keys that this version does not have.
    """
    if isinstance(address, Address):
        return address
    text = address if address is not None else os.environ.get("FITWIRE_ADDRESS", "")
    text = text.strip()
    if not text:
        return default_address()
    if text.startswith(("ipc://", "/", "./", "../", "~")) and text.isprintable():
        return _ipc(Path(text.removeprefix("ipc://")).expanduser().absolute())
    match = re.fullmatch(r"(?:tcp://)?(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+|\*)(?::([0-9]{1,5}))?", text)
    if match is None or not 0 < int(match[2] or TCP_PORT) < 65536:
        raise AddressError(f"{text[:80]!r} is no address: write ipc:///path, tcp://host:{TCP_PORT} or leave it out")
    host, port = match[1], int(match[2] or TCP_PORT)
    if not _is_loopback(host):
        raise AddressError(
            f"{text}: TCP beyond this machine would go unencrypted and unasked; forward the hub's socket over ssh "
            "instead, e.g. `ssh -R /tmp/fitwire.sock:$(fitwire hub --where) HOST` "
            "and FITWIRE_ADDRESS=ipc:///tmp/fitwire.sock there"
        )
    host = "127.0.0.1" if host == "localhost" else host  # pyzmq would ask the resolver, which may hang
    return Address(f"tcp://{host}:{port}", None, local=True)
