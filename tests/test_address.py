"""Tests of ``fitwire.transport.address``."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fitwire.errors import AddressError, StoreError
from fitwire.transport.address import (
    MAX_IPC_PATH,
    TCP_PORT,
    Address,
    data_folder,
    default_address,
    is_listened_at,
    resolve,
)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("tcp://127.0.0.1:9123", "tcp://127.0.0.1:9123"),
        ("127.0.0.1:9123", "tcp://127.0.0.1:9123"),
        ("127.0.0.1", f"tcp://127.0.0.1:{TCP_PORT}"),
        ("127.0.0.5:1", "tcp://127.0.0.5:1"),
        ("localhost", f"tcp://127.0.0.1:{TCP_PORT}"),
        ("localhost:65535", "tcp://127.0.0.1:65535"),
        ("tcp://localhost:9123", "tcp://127.0.0.1:9123"),
        ("[::1]:9123", "tcp://[::1]:9123"),
        ("tcp://[::1]", f"tcp://[::1]:{TCP_PORT}"),
        ("  localhost:9123 \n", "tcp://127.0.0.1:9123"),
    ],
)
def test_every_form_of_tcp_on_this_machine(written: str, text: str) -> None:
    """With and without scheme, port and numbers; a name that is not asked of a resolver."""
    address = resolve(written)

    assert (address.text, address.path, address.local) == (text, None, True)
    assert str(address) == text


@pytest.mark.parametrize(
    "written", ["ipc:///tmp/x/hub", "/tmp/x/hub", "ipc:///tmp/x/a b", "./hub", "../hub", "~/hub", "ipc://hub"]
)
def test_every_form_of_a_path(written: str, monkeypatch: pytest.MonkeyPatch, fitwire_dir: Path) -> None:
    """Absolute, relative, of the home folder: the address is absolute, whoever reads it."""
    monkeypatch.chdir(fitwire_dir)
    monkeypatch.setenv("HOME", str(fitwire_dir))
    path = Path(written.removeprefix("ipc://")).expanduser().absolute()

    assert resolve(written) == Address(f"ipc://{path}", path, local=True)


def test_an_address_is_not_resolved_twice() -> None:
    """What is one already comes back as it is."""
    address = resolve("localhost:9123")

    assert resolve(address) is address


def test_nothing_said_is_the_users_own_hub(fitwire_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No argument, no FITWIRE_ADDRESS: a socket in a private folder, the same for everybody on this host."""
    address = resolve()

    assert address == default_address() == resolve("")
    assert address.path is not None and address.path.parent.parent == fitwire_dir
    assert address.path.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr("socket.gethostname", lambda: "another-host")
    assert resolve() != address, "a folder that hosts share must not make one's hub look like another's"


def test_the_environment_names_the_hub_unless_the_caller_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument before FITWIRE_ADDRESS before the default."""
    monkeypatch.setenv("FITWIRE_ADDRESS", "localhost:9555")

    assert resolve().text == "tcp://127.0.0.1:9555"
    assert resolve("localhost:9556").text == "tcp://127.0.0.1:9556"


def test_without_a_chosen_folder_the_users_own_are_used(monkeypatch: pytest.MonkeyPatch, fitwire_dir: Path) -> None:
    """The runtime folder for the socket, the data folder for the store, by the system's own conventions."""
    monkeypatch.delenv("FITWIRE_DIR")
    monkeypatch.setattr("platformdirs.user_runtime_path", lambda name: fitwire_dir / "run" / name)
    monkeypatch.setattr("platformdirs.user_data_path", lambda name: fitwire_dir / "data" / name)

    assert default_address().path == fitwire_dir / "run" / "fitwire" / "hub"
    assert data_folder() == fitwire_dir / "data" / "fitwire"
    assert data_folder().stat().st_mode & 0o777 == 0o700


def test_a_runtime_folder_that_cannot_be_made_has_a_stand_in(
    monkeypatch: pytest.MonkeyPatch, fitwire_dir: Path
) -> None:
    """A machine without a login session still has a folder for temporary files."""
    (fitwire_dir / "file").touch()
    monkeypatch.delenv("FITWIRE_DIR")
    monkeypatch.setattr("platformdirs.user_runtime_path", lambda name: fitwire_dir / "file" / name)
    monkeypatch.setattr("tempfile.tempdir", str(fitwire_dir))
    path = default_address().path

    assert path is not None and path.parent.parent == fitwire_dir
    assert path.parent.name.startswith("fitwire-")


def test_a_chosen_folder_that_is_there_keeps_its_mode(fitwire_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FITWIRE_DIR may be a project's folder, shared on purpose: only what lies in it is closed."""
    shared = fitwire_dir / "project"
    shared.mkdir()
    shared.chmod(0o755)
    monkeypatch.setenv("FITWIRE_DIR", str(shared))
    hub = default_address().path

    assert data_folder() == shared
    assert shared.stat().st_mode & 0o777 == 0o755
    assert hub is not None and hub.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_given_goes_before_the_environment(fitwire_dir: Path) -> None:
    """And is made, closed to others, when it is not there."""
    folder = data_folder(fitwire_dir / "mine")

    assert folder == fitwire_dir / "mine"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_folders_that_cannot_be_made_are_sentences(fitwire_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to set instead is said, for the socket and for the store."""
    (fitwire_dir / "file").touch()
    monkeypatch.setenv("FITWIRE_DIR", str(fitwire_dir / "file" / "below"))

    with pytest.raises(AddressError, match="set FITWIRE_DIR to one that you can write to"):
        resolve()
    with pytest.raises(StoreError, match="set FITWIRE_DIR to one that you can write to"):
        data_folder()


@pytest.mark.parametrize(
    "written",
    [
        "tcp://", "tcp://:9010", "localhost:0", "localhost:65536", "localhost:99999999", "localhost:port", "localhost:",
        "http://localhost:9010", "udp://127.0.0.1:9010", "local host", "127.0.0.1:9010/x", "::1", "[::1", "tcp://*:*",
        "127.0.0.1:٩٠١٠", "a@b:9010", "ipc:///tmp/a\nb", "ipc:///tmp/a\x00b", "-", "x" * 5000 + ":::",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_the_forms_there_are(written: str) -> None:
    """The message says what was written, cut short, and what to write."""
    with pytest.raises(AddressError) as caught:
        resolve(written)

    assert len(str(caught.value)) < 400
    assert "write ipc:///path" in str(caught.value) or "beyond this machine" in str(caught.value)


@pytest.mark.parametrize(
    "written",
    ["0.0.0.0:9010", "*:9010", "tcp://*", "192.168.1.7", "gpu-node:9010", "[::]:9010", "[2001:db8::1]", "8.8.8.8"],
)
def test_tcp_beyond_this_machine_is_refused_with_the_way_that_is_safe(written: str) -> None:
    """Without keys nobody else's packet may reach a hub: the message shows the ssh line."""
    with pytest.raises(AddressError, match=r"unencrypted.*ssh -R"):
        resolve(written)


def test_a_path_of_just_the_allowed_length_binds_and_one_more_is_refused(fitwire_dir: Path) -> None:
    """107 bytes, counted as the system counts: a character may take several."""
    room = MAX_IPC_PATH - len(os.fsencode(fitwire_dir)) - 1
    assert resolve(str(fitwire_dir / ("x" * room))).path is not None

    for name in ("x" * (room + 1), "ü" * (room // 2 + 1)):
        with pytest.raises(AddressError, match=f"the system allows {MAX_IPC_PATH}.*set FITWIRE_DIR to a shorter"):
            resolve(str(fitwire_dir / name))


def test_the_longest_allowed_path_really_works(fitwire_dir: Path) -> None:
    """The limit is the system's, not a guess."""
    from fitwire.transport.zmq import Router

    room = MAX_IPC_PATH - len(os.fsencode(fitwire_dir)) - 1
    router = Router(resolve(str(fitwire_dir / ("x" * room))))
    router.close()


def test_a_socket_is_listened_at_only_while_somebody_answers(fitwire_dir: Path) -> None:
    """Neither a path without a file, nor a file that a dead hub left."""
    path = fitwire_dir / "hub"
    assert not is_listened_at(path)
    with socket.socket(socket.AF_UNIX) as hub:
        hub.bind(str(path))
        hub.listen()
        assert is_listened_at(path)

    assert path.exists()
    assert not is_listened_at(path)


def test_a_folder_is_no_address(fitwire_dir: Path) -> None:
    """Nor is a scheme without a path."""
    for written in (str(fitwire_dir), f"ipc://{fitwire_dir}/", "ipc://"):
        with pytest.raises(AddressError, match="is a folder: name a file in it"):
            resolve(written)
