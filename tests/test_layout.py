"""Tests of ``fitwire.journal.layout``: whose a journal is, whether its trainer lives, and folders that lie."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fitwire.errors import JournalError
from fitwire.journal.layout import (
    ABOUT,
    CLOSED,
    HAVE,
    POINTER,
    SILENT,
    About,
    age,
    close,
    create,
    encode_have,
    find_journals,
    folder_name,
    is_orphan,
    journals_folder,
    keeper_of,
    life_of,
    read_about,
    read_have,
    remove,
    segments,
)
from fitwire.protocol.blocks import Identity
from fitwire.transport.process import host_key, started_at
from helpers import ME
from journals import GONE, hello_of


def made(**more: object) -> Path:
    return create(About(ME, hello_of(), **more))  # type: ignore[arg-type]


def test_a_journal_is_for_its_user_alone() -> None:
    """Folder and files, whatever the umask says."""
    former = os.umask(0)
    try:
        path = made()
    finally:
        os.umask(former)

    assert path == journals_folder() / folder_name(ME)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / ABOUT).stat().st_mode) == 0o600


def test_what_a_journal_says_of_itself_is_read_back() -> None:
    """Identity, hello, durability and keeper."""
    about = About(ME, hello_of(name="fox"), "process", (123, 45.5))

    assert read_about(create(about)) == about


def test_a_second_one_of_the_same_name_is_refused() -> None:
    """Two processes that took the same incarnation must not write into each other's journal."""
    made()

    with pytest.raises(FileExistsError):
        made()


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"hello": 3, "keeper": [1], "durability": "diamond"}',
     b'{"keeper": ["x", "y"]}', b'{"keeper": [0, 1]}', b'{"hello": null}', b"{" * 100_000],
)  # fmt: skip
def test_an_about_that_is_spoilt_leaves_the_identity(text: bytes) -> None:
    """The folder's name says whose it is; nobody is believed to keep it."""
    path = made()
    (path / ABOUT).write_bytes(text)

    about = read_about(path)
    assert (about.sender, about.hello, about.durability, about.keeper) == (ME, {}, "memory", None)


@pytest.mark.parametrize("name", [ABOUT, HAVE])
def test_a_pipe_in_a_files_place_is_not_waited_for(name: str) -> None:
    """Somebody's joke, or a backup's; it would hang whoever looks."""
    path = made()
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)

    assert read_about(path).sender == ME
    assert read_have(path) == (0, 0)


@pytest.mark.parametrize("name", ["journal", "x" * 32 + "-0-1", "0" * 32 + "-0", "0" * 32 + "-0-1-2"])
def test_another_folder_is_no_journal(name: str, tmp_path: Path) -> None:
    """By its name."""
    (tmp_path / name).mkdir()

    with pytest.raises(JournalError, match="no journal"):
        read_about(tmp_path / name)


def test_a_journal_that_went_is_said_to_be_gone() -> None:
    """Delivered meanwhile by somebody else."""
    path = made()
    remove(path)

    with pytest.raises(JournalError, match="not there"):
        read_about(path)


def test_have_is_believed_only_whole() -> None:
    """Half-written, spoilt or absurd, it is not known."""
    path = made()

    assert read_have(path) == (0, 0)
    (path / HAVE).write_bytes(encode_have((7, 3)))
    assert read_have(path) == (7, 3)
    (path / HAVE).write_bytes(encode_have((7, 3))[:-1])
    assert read_have(path) == (0, 0)
    (path / HAVE).write_bytes(b"\1" + encode_have((7, 3))[1:])
    assert read_have(path) == (0, 0)
    (path / HAVE).write_bytes(encode_have((2**63, 3)))
    assert read_have(path) == (0, 0)


def test_segments_are_ordered_by_number_and_nothing_else_is_one() -> None:
    """Also beyond a million, where names no longer sort as text."""
    path = made()
    for name in (
        "0-1000000.fwj",
        "0-000002.fwj",
        "0-000010.fwj",
        "1-000001.fwj",
        "0-000003.fwj~",
        "2-000001.fwj",
        "have",
    ):
        (path / name).touch()

    assert [number for number, _ in segments(path, 0)] == [2, 10, 1000000]
    assert [number for number, _ in segments(path, 1)] == [1]
    assert segments(path / "nowhere", 0) == []


def test_journals_are_found_wherever_they_were_put(tmp_path: Path) -> None:
    """By the training's folder, the folder of journals, a copy under any name, one journal; and by pointer."""
    path = create(About(ME, hello_of()), tmp_path / "runs")
    (tmp_path / "runs" / "journals" / "notes.txt").touch()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / path.name).mkdir()

    assert list(find_journals(tmp_path / "runs")) == [path]
    assert list(find_journals(path.parent)) == [path]
    assert list(find_journals(path)) == [path]
    assert list(find_journals(copy)) == [copy / path.name]
    assert list(find_journals()) == [path]
    assert list(find_journals(tmp_path)) == []


def test_incarnations_are_found_oldest_first() -> None:
    """So that a hub hears of a run's lives in the order in which they were lived."""
    lives = [Identity(ME.run, number, 0) for number in (9, 10, 100)]
    for sender in reversed(lives):
        create(About(sender, hello_of()))

    assert [read_about(path).sender for path in find_journals()] == lives


def test_a_pointer_goes_with_its_journal_and_stays_while_the_disk_is_away(tmp_path: Path) -> None:
    """A folder that is not mounted now comes back."""
    path = create(About(ME, hello_of()), tmp_path / "disk" / "runs")
    pointer = journals_folder() / (path.name + POINTER)
    assert pointer.exists()
    (tmp_path / "disk").rename(tmp_path / "away")
    assert list(find_journals()) == [] and pointer.exists()
    (tmp_path / "away").rename(tmp_path / "disk")

    assert list(find_journals()) == [path]
    remove(path)
    assert not pointer.exists() and not path.exists()


def test_a_pointer_whose_journal_was_deleted_by_hand_goes(tmp_path: Path) -> None:
    """The folder around it is there, the journal is not."""
    path = create(About(ME, hello_of()), tmp_path / "runs")
    (path / ABOUT).unlink()
    path.rmdir()

    assert list(find_journals()) == []
    assert list(journals_folder().iterdir()) == []


@pytest.mark.parametrize("target", [b"", b"relative/path", b"/etc", b"\0", b"x" * 10_000])
def test_a_pointer_leads_only_to_a_journal_of_its_name(target: bytes) -> None:
    """Whatever stands in it."""
    (journals_folder()).mkdir(parents=True)
    (journals_folder() / (folder_name(ME) + POINTER)).write_bytes(target)

    assert list(find_journals()) == []


def test_who_is_behind_a_journal() -> None:
    """A pid alone is nobody: it may have been given to another process since."""
    me = os.getpid()
    born = started_at(me)
    assert born is not None

    assert life_of(About(ME, hello_of(me))).trainer is True
    assert life_of(About(ME, hello_of(me) | {"pid_started": born - 100})).trainer is False
    assert life_of(About(ME, hello_of())).trainer is False
    assert life_of(About(ME, hello_of() | {"host_key": "elsewhere"})).trainer is None
    assert life_of(About(ME, {})).trainer is None
    assert life_of(About(ME, hello_of() | {"pid": "1"})).trainer is None
    assert life_of(About(ME, hello_of(), keeper=(me, born))).keeper
    assert not life_of(About(ME, hello_of(), keeper=(GONE, 1.0))).keeper


def test_an_orphan_has_neither_trainer_nor_keeper() -> None:
    """What was closed is one although its process, a notebook's, lives on."""
    me = os.getpid()
    living, keeper = About(ME, hello_of(me)), (me, started_at(me))
    path = create(living)

    assert not is_orphan(path, living)
    assert is_orphan(path, About(ME, hello_of()))
    assert not is_orphan(path, About(ME, hello_of(), keeper=keeper))
    close(path)
    assert (path / CLOSED).exists()
    assert is_orphan(path, living)
    assert not is_orphan(path, About(ME, hello_of(me), keeper=keeper))


def test_a_trainer_of_an_earlier_boot_is_gone_once_it_is_silent() -> None:
    """Another host may go by this one's name, so a moment's silence proves nothing."""
    host, boot, *rest = host_key().split("/")
    about = About(ME, hello_of() | {"host_key": "/".join([host, "0" + boot[1:-1] + "x", *rest])})
    other = About(ME, hello_of() | {"host_key": "/".join(["other", boot, *rest])})
    path = create(about)
    assert not is_orphan(path, about)
    then = time.time() - SILENT - 60
    os.utime(path / ABOUT, (then, then))

    assert age(path) > SILENT
    assert is_orphan(path, about)
    assert not is_orphan(path, other)


@pytest.mark.parametrize(
    ("text", "keeper"),
    [("12:3.5", (12, 3.5)), ("12", (12, None)), ("12:", (12, None)), ("", None), (None, None), ("x:1", None),
     ("-4:1", None), ("1:x", None)],
)  # fmt: skip
def test_the_keeper_that_the_environment_names(text: str | None, keeper: object) -> None:
    """Or nobody."""
    assert keeper_of(text) == keeper


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_journal_is_refused() -> None:
    """What it says would be delivered as ours."""
    path = made()
    os.chown(path, 12345, 12345)
    try:
        with pytest.raises(JournalError, match="another user"):
            read_about(path)
    finally:
        os.chown(path, os.getuid(), os.getgid())


def test_a_hello_is_plain_json_for_whoever_looks_in_with_other_tools() -> None:
    """``cat about.json`` says whose it is."""
    found = json.loads((made() / ABOUT).read_text())

    assert found["run"] == ME.run.hex() and found["hello"]["name"] == "calm-fox"


def test_a_zombie_is_no_trainer() -> None:
    """A killed child whose parent does not ask after it would keep its journal for ever."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    about = About(ME, hello_of(child.pid))
    assert life_of(about).trainer is True
    child.kill()
    while Path(f"/proc/{child.pid}/stat").exists() and ") Z " not in Path(f"/proc/{child.pid}/stat").read_text():
        time.sleep(0.01)

    assert life_of(about).trainer is False
    child.wait()
