"""The journal's files: written to their end, read back, deleted when nothing in them is needed, refused with care."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitwire.protocol.blocks import BULK, RECORDS
from fitwire.train.segments import FIRST, Segments


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    (tmp_path / "journal").mkdir()
    return Segments(lambda: tmp_path / "journal")


def files(segments: Segments) -> list[str]:
    assert segments.path is not None
    return sorted(path.name for path in segments.path.iterdir())


def refusing(code: int, after: int = 0) -> Callable[..., Any]:
    """Stands for a system call that fails from the ``after``-th call on."""
    calls = iter(range(10**6))
    original = os.pwritev

    def call(*arguments: Any) -> int:
        if next(calls) >= after:
            raise OSError(code, os.strerror(code))
        return original(*arguments)

    return call


def test_what_was_written_is_read_back_from_where_it_was_said_to_be(segments: Segments) -> None:
    """Small pieces are joined and large ones are not: the bytes are the same."""
    entries = [[b"head", bytes([i]) * (10 ** (i + 1))] for i in range(5)]
    places = segments.write(RECORDS, entries)

    assert len(places) == 5
    for entry, (segment, at) in zip(entries, places, strict=True):
        assert segments.read(segment, at, sum(map(len, entry))) == b"".join(entry)
    assert files(segments) == ["0-000001.fwj"]


def test_no_file_is_made_before_there_is_something_to_write(tmp_path: Path) -> None:
    """A run that is watched from its first moment to its last may need none."""
    made: list[int] = []
    Segments(lambda: made.append(1) or tmp_path)

    assert made == [] and list(tmp_path.iterdir()) == []


def test_a_full_segment_is_followed_by_one_of_twice_its_size(segments: Segments) -> None:
    """An entry is never cut in two; one that is larger than a segment gets one of its own size."""
    big = [b"x" * (FIRST[RECORDS] - 100)]
    (first, _), (second, at), (third, _) = [segments.write(RECORDS, [big])[0] for _ in range(3)]
    ((huge, _),) = segments.write(BULK, [[b"y" * (2 * FIRST[BULK])]])

    assert (first.size, second.size, at) == (FIRST[RECORDS], 2 * FIRST[RECORDS], 0)
    assert third is second
    assert huge.size == 2 * FIRST[BULK]


def test_space_is_promised_before_it_is_written(segments: Segments) -> None:
    """A disk that is full says so when a segment begins, not in its middle."""
    ((segment, _),) = segments.write(RECORDS, [[b"small"]])

    assert os.stat(segment.path).st_size == FIRST[RECORDS]
    assert os.stat(segment.path).st_blocks * 512 >= FIRST[RECORDS]
    assert os.stat(segment.path).st_mode & 0o777 == 0o600


def test_a_disk_with_little_room_gets_a_smaller_segment(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits is taken: half, and half again."""
    original = os.posix_fallocate

    def little(handle: int, at: int, size: int) -> None:
        if size > 2**17:
            raise OSError(errno.ENOSPC, "full")
        original(handle, at, size)

    monkeypatch.setattr(os, "posix_fallocate", little)
    ((segment, _),) = segments.write(RECORDS, [[b"x" * 1000]])

    assert segment.size == 2**17 == os.stat(segment.path).st_size


def test_a_disk_without_any_leaves_no_file_behind(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next try begins anew."""

    def full(handle: int, at: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="full"):
        segments.write(RECORDS, [[b"x"]])
    assert files(segments) == []
    monkeypatch.undo()

    assert segments.write(RECORDS, [[b"x"]])[0][1] == 0


def test_a_file_system_that_promises_nothing_is_written_all_the_same(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network folders and Android's know no such call."""

    def unknown(handle: int, at: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    ((segment, at),) = segments.write(RECORDS, [[b"words"]])

    assert segments.read(segment, at, 5) == b"words"


def test_a_refused_write_does_not_count_and_the_next_overwrites_it(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before stays good."""
    ((segment, at),) = segments.write(RECORDS, [[b"first"]])
    monkeypatch.setattr(os, "pwritev", lambda handle, pieces, at: 2)  # as a disk that fills up in the middle
    with pytest.raises(OSError, match="No space left"):
        segments.write(RECORDS, [[b"second"]])
    monkeypatch.undo()
    ((same, after),) = segments.write(RECORDS, [[b"third"]])

    assert (same, after) == (segment, 5)
    assert segments.read(segment, at, 10) == b"firstthird"
    assert segment.live == 2


def test_a_segment_goes_when_nothing_in_it_is_needed_and_another_is_written(segments: Segments) -> None:
    """The one being written stays, however empty."""
    big = [b"x" * (FIRST[RECORDS] // 2 + 1)]
    ((first, _),) = segments.write(RECORDS, [big])
    segments.release(first)
    assert files(segments) == ["0-000001.fwj"]
    ((second, _),) = segments.write(RECORDS, [big])
    assert files(segments) == ["0-000002.fwj"]
    ((third, _),) = segments.write(RECORDS, [big])
    assert third is second
    segments.write(RECORDS, [[b"x" * 2 * FIRST[RECORDS]]])
    segments.release(second)
    assert "0-000002.fwj" in files(segments)
    segments.release(third)

    assert files(segments) == ["0-000003.fwj"]


def test_files_that_somebody_deletes_are_missed(segments: Segments) -> None:
    """Writing to a deleted file succeeds, and is in vain."""
    ((segment, _),) = segments.write(RECORDS, [[b"x"]])
    assert not segments.vanished()
    segment.path.unlink()
    assert segments.vanished()
    segments.start_anew()
    ((other, at),) = segments.write(RECORDS, [[b"y"]])

    assert not segments.vanished()
    assert files(segments) == ["0-000002.fwj"]
    assert (other, segments.read(segment, 0, 1), segments.read(other, at, 1)) == (segment, b"x", b"y")
    assert segment.path.read_bytes()[:2] == b"xy"


def test_what_cannot_be_written_again_can_be_read_to_the_end(segments: Segments, tmp_path: Path) -> None:
    """Its process has the file open, and sends from it; what comes next waits for a disk that takes it."""
    ((segment, _),) = segments.write(RECORDS, [[b"x"]])
    shutil.rmtree(segment.path.parent)
    (tmp_path / "journal").touch()
    segments.start_anew()

    assert segment.lost and segments.read(segment, 0, 1) == b"x"
    with pytest.raises(OSError):
        segments.write(RECORDS, [[b"y"]])
    (tmp_path / "journal").unlink()
    (tmp_path / "journal").mkdir()
    segments.write(RECORDS, [[b"y"]])
    assert len(files(segments)) == 1


def test_closing_keeps_what_was_written_and_gives_back_the_rest(segments: Segments) -> None:
    """A short run's journal does not take a megabyte until it is delivered."""
    ((segment, _),) = segments.write(RECORDS, [[b"words"]])
    segments.note_have((3, 0))
    segments.close(delete=False)

    assert segment.path.read_bytes() == b"words"
    assert files(segments) == ["0-000001.fwj", "closed", "have"]


def test_closing_with_delete_removes_the_folder(segments: Segments, tmp_path: Path) -> None:
    """Delivered journals go."""
    segments.write(RECORDS, [[b"words"]])
    segments.close(delete=True)

    assert not (tmp_path / "journal").exists()


def test_an_error_in_the_middle_of_many_entries_leaves_those_before_it(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More entries than one call takes are several calls, each good by itself."""
    monkeypatch.setattr(os, "pwritev", refusing(errno.EIO, after=1))
    entries = [[b"x" * 2**15, b"y"]] * 600
    places = segments.write(RECORDS, entries)

    assert 0 < len(places) < 600
    with pytest.raises(OSError):
        segments.write(RECORDS, entries[len(places) :])
    assert segments.read(*places[0], 2**15 + 1) == b"x" * 2**15 + b"y"
