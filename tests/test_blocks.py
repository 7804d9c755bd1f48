"""Tests of ``fitwire.protocol.blocks`` and ``strict_json``."""

from __future__ import annotations

import importlib.util
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.errors import DecodeError, EncodeError
from fitwire.events import decode_events
from fitwire.protocol.arrays import encode_array
from fitwire.protocol.blocks import (
    BULK,
    CHUNK_BYTES,
    HEAD,
    MAX_BUFFERS,
    MAX_HEADER_BYTES,
    MAX_RECORDS,
    RECORDS,
    Block,
    Identity,
    Kind,
    Message,
    decode_block,
    decode_json,
    decode_message,
    decode_packed,
    encode_block,
    encode_chunk,
    encode_json,
    encode_message,
    pack_frames,
    packed_size,
    slice_frames,
    sum_of_buffers,
    unpack_frames,
)
from helpers import ME, frames_of, picture, records

_spec = importlib.util.spec_from_file_location("golden_make", Path(__file__).parent / "golden" / "make.py")
assert _spec is not None and _spec.loader is not None
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)
GOLDEN = golden.messages()


def stored(name: str) -> bytes:
    return bytes.fromhex(golden.path_of(name).read_text().replace("\n", ""))


# -- golden


def test_every_kind_has_a_golden_message() -> None:
    """A kind that is added is written down, and nothing written down is forgotten."""
    decoded = {decode_message(unpack_frames(stored(name))).kind for name in GOLDEN}

    assert decoded == set(Kind)
    assert {path.stem for path in golden.FOLDER.iterdir()} == set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_written_is_the_golden_bytes(name: str) -> None:
    """The same message gives the same bytes, for as long as the version is the same."""
    assert pack_frames(GOLDEN[name]).hex() == stored(name).hex()


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_read_back_as_what_they_say(name: str) -> None:
    """Every field of every golden message survives; written again, it is the same bytes."""
    message = decode_message(unpack_frames(stored(name)))

    assert message.sender == golden.ME
    assert pack_frames(encode_message(message)) == stored(name)
    if message.kind in golden.BODIES:
        assert message.body == golden.BODIES[Kind(message.kind)]
        assert message.wall_ns == golden.WALL_NS


@pytest.mark.parametrize("name", golden.EVENTS)
def test_golden_events_read_back_equal(name: str) -> None:
    """An event of every type comes out of its golden block as it went in."""
    block, message = decode_block(unpack_frames(stored(f"block_{name}")))
    said = golden.EVENTS[name]

    [(seq, heard)] = decode_events(message)

    assert (seq, block.first, block.lane) == (5, 5, BULK if name == "sample" else RECORDS)
    for key in said.__dataclass_fields__:
        if key != "arrays":
            assert getattr(heard, key) == getattr(said, key)
    for key, array in getattr(said, "arrays", {}).items():
        assert heard.arrays[key].dtype == array.dtype
        assert heard.arrays[key].shape == array.shape
        assert heard.arrays[key].tobytes() == array.tobytes()


def test_golden_metrics_read_back_to_the_last_bit() -> None:
    """NaN, infinity and minus zero are what they were."""
    [(seq, rows)] = decode_events(decode_block(unpack_frames(stored("block_metrics")))[1])

    assert (seq, rows.names, rows.per, rows.rank) == (257, ("loss", "acc"), "batch", 3)
    assert rows.columns[4:].T.tobytes() == np.array(golden.VALUES).tobytes()
    np.testing.assert_array_equal(rows.columns[:4].T, np.array(golden.ROWS))


# -- messages


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
U32 = st.integers(0, 2**32 - 1)
IDENTITIES = st.builds(Identity, st.binary(min_size=16, max_size=16), U32, U32)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
MESSAGES = st.builds(
    Message,
    st.integers(0, 255), IDENTITIES, st.sampled_from([RECORDS, BULK]), st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.dictionaries(WORDS.filter("crc".__ne__), PLAIN, max_size=4),
    st.lists(st.binary(max_size=20), max_size=4).map(tuple),
)  # fmt: skip


@given(MESSAGES)
def test_any_message_reads_back_equal(message: Message) -> None:
    """Whatever can be said is heard the same, through the packed form too."""
    frames = encode_message(message)

    assert decode_message(frames) == message
    assert decode_message(unpack_frames(pack_frames(frames))) == message


@given(MESSAGES, st.data())
def test_one_flipped_bit_is_always_found(message: Message, data: st.DataObject) -> None:
    """A CRC32 over all frames lets no single bit pass."""
    frames = [bytearray(frame) for frame in encode_message(message)]
    index = data.draw(st.sampled_from([i for i, frame in enumerate(frames) if frame]))
    at = data.draw(st.integers(0, len(frames[index]) * 8 - 1))
    frames[index][at // 8] ^= 1 << at % 8

    with pytest.raises(DecodeError):
        decode_message([bytes(frame) for frame in frames])


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_arbitrary_frames_are_refused(frames: list[bytes]) -> None:
    """Bytes that nobody encoded raise DecodeError and nothing else."""
    for decode in (decode_message, decode_block):
        with pytest.raises(DecodeError):
            decode(frames)


@given(st.sampled_from(sorted(GOLDEN)), st.data())
def test_mutated_messages_decode_or_are_refused(name: str, data: st.DataObject) -> None:
    """A good message with a body of somebody else's making, its checksum right, raises nothing but DecodeError."""
    good = decode_message(GOLDEN[name])
    body = dict(good.body)
    for key in data.draw(st.lists(st.sampled_from([*sorted(body), "n", "parts", "buffers"]), max_size=3)):
        body[key] = data.draw(PLAIN | st.lists(st.dictionaries(st.sampled_from(["n", "t", "b", "dtype"]), PLAIN)))
    buffers = data.draw(
        st.just(tuple(map(bytes, good.buffers))) | st.lists(st.binary(max_size=9), max_size=3).map(tuple)
    )
    frames = encode_message(Message(Kind.BLOCK, good.sender, good.lane, good.seq, 0, body, buffers))

    try:
        block, message = decode_block(frames)
        heard = list(decode_events(message)) + list(decode_events(message, arrays=False))
    except DecodeError:
        return

    assert 1 <= block.count <= MAX_RECORDS
    assert all(block.first <= seq <= block.last for seq, _ in heard)


def spoilt(**changes: Any) -> list[bytes]:
    """A ping whose first frame says something else, its checksum made right again."""
    import zlib

    frame, body = (bytes(f) for f in frames_of(Kind.PING, {"id": 1}))
    fields = dict(
        zip(
            ["magic", "version", "kind", "lane", "count", "rank", "incarnation", "run", "seq", "wall"],
            HEAD.unpack(frame),
            strict=True,
        )
    )
    head = HEAD.pack(*(fields | changes).values())
    rest = body[17:]
    return [head, b'{"crc":"%08x"' % zlib.crc32(rest, zlib.crc32(head)) + rest]


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        ([], "frames"),
        ([b""], "frames"),
        ([b""] * (MAX_BUFFERS + 3), "frames"),
        ([b"x" * 47, b"{}"], "head"),
        (spoilt(magic=b"ZZ"), "magic"),
        (spoilt(version=2), "version"),
        (spoilt(lane=2), "frames"),
        (spoilt(count=1), "frames"),
        (spoilt(seq=2**63), "head"),
        (spoilt(wall=2**63), "head"),
        ([spoilt()[0], b"{" + b" " * MAX_HEADER_BYTES], "size"),
        ([spoilt()[0], b"{}"], "crc"),
        ([spoilt()[0], b'{"crc":"00000000"}'], "crc"),
    ],
)
def test_each_fault_of_a_message_has_its_word(frames: list[bytes], kind: str) -> None:
    """Faults are counted by kind, so each is told apart."""
    with pytest.raises(DecodeError) as caught:
        decode_message(frames)

    assert caught.value.kind == kind


def test_a_kind_from_the_future_still_reads() -> None:
    """An unknown kind is a number to pass over, not a fault."""
    assert decode_message(spoilt(kind=200)).kind == 200


@pytest.mark.parametrize(
    "message",
    [
        Message(Kind.PING, body={"x": float("nan")}),
        Message(Kind.PING, body={"x": "\ud800"}),
        Message(Kind.PING, body={"x": object()}),
        Message(Kind.PING, body={"x": "y" * MAX_HEADER_BYTES}),
        Message(Kind.PING, buffers=(b"",) * (MAX_BUFFERS + 1)),
        Message(Kind.PING, Identity(rank=-1)),
        Message(Kind.PING, seq=2**64),
        Message(Kind.PING, wall_ns=-1),
    ],
)
def test_what_cannot_be_said_is_refused_before_it_is_sent(message: Message) -> None:
    """A fault of ours is EncodeError, at the call."""
    with pytest.raises(EncodeError):
        encode_message(message)


# -- blocks


def test_a_block_knows_its_place() -> None:
    """First, last, number of records, lane and size are those of the frames."""
    block = records(7, 5)

    again, _ = decode_block(block.frames)

    assert (again.first, again.last, again.count, again.lane, again.sender) == (7, 11, 5, RECORDS, ME)
    assert again.nbytes == len(pack_frames(block.frames)) == packed_size(block.frames)


ROW = {"t": "metrics", "n": 1, "per": "batch", "names": []}


@pytest.mark.parametrize(
    ("first", "parts", "buffers"),
    [
        (0, [ROW], []),
        (2**63, [ROW], []),
        (1, [], []),
        (1, [ROW | {"n": 0}], []),
        (1, [ROW | {"n": MAX_RECORDS + 1}], []),
        (1, [ROW], [({"dtype": "<f8", "shape": [2]}, bytes(8))]),
        (1, [ROW], [({"dtype": "|O", "shape": [1]}, bytes(8))]),
    ],
)
def test_a_block_that_would_be_refused_there_is_refused_here(first: int, parts: Any, buffers: Any) -> None:
    """Else the hub would ask for it again and again, and the run would never end."""
    with pytest.raises(EncodeError):
        encode_block(ME, RECORDS, first, 0, parts, buffers)


def test_many_arrays_that_pass_the_size_of_a_block_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each array may be within its limit and the whole not within the block's."""
    monkeypatch.setattr("fitwire.protocol.blocks.MAX_BLOCK_BYTES", 1000)
    header, data = encode_array(np.zeros(600, np.uint8))

    with pytest.raises(EncodeError, match="a block of"):
        encode_block(ME, BULK, 1, 0, [{"t": "sample", "b": 2}], [(header, data), (header, data)])


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"n": 2}, "count"),
        ({"n": 0}, "count"),
        ({"n": True}, "count"),
        ({"n": MAX_RECORDS + 1}, "count"),
        ({"parts": {}}, "parts"),
        ({"parts": [1]}, "parts"),
        ({"parts": [{"n": 0}, {"n": 1}]}, "parts"),
        ({"parts": [{"n": -1}, {"n": 2}]}, "parts"),
        ({"buffers": None}, "parts"),
        ({"buffers": []}, "parts"),
        ({"buffers": [3]}, "parts"),
        ({"buffers": [{"dtype": "<f8", "shape": [2]}]}, "size"),
    ],
)
def test_counts_and_sizes_that_disagree_are_refused(change: dict[str, Any], kind: str) -> None:
    """A block whose parts, records and buffers do not add up reaches no store."""
    message = decode_message(records(1).frames)
    frames = encode_message(Message(Kind.BLOCK, ME, RECORDS, 1, 0, message.body | change, message.buffers))

    with pytest.raises(DecodeError) as caught:
        decode_block(frames)

    assert caught.value.kind == kind


def test_another_kind_is_no_block() -> None:
    """Only BLOCK holds records."""
    with pytest.raises(DecodeError, match="not a block"):
        decode_block(frames_of(Kind.ACK, {}))


# -- packed


@given(st.lists(st.binary(max_size=30), min_size=2, max_size=6), st.integers(0, 40), st.integers(1, 60))
def test_a_slice_is_what_packing_would_give(frames: list[bytes], start: int, size: int) -> None:
    """Chunks are cut out of the packed form without making it."""
    whole = pack_frames(frames)

    assert b"".join(slice_frames(frames, start, size)) == whole[start : start + size]
    assert packed_size(frames) == len(whole)


def test_a_slice_does_not_copy_a_large_frame() -> None:
    """A chunk of a picture is a view of the picture's own memory."""
    block = picture(1, 300_000)
    [piece] = slice_frames(block.frames, block.nbytes - 1000, 1000)

    assert isinstance(piece, memoryview)
    assert np.shares_memory(np.frombuffer(piece, np.uint8), np.frombuffer(block.frames[-1], np.uint8))


BLOBS = st.builds(lambda n, rest: n.to_bytes(4, "little") + rest, st.integers(0, 70), st.binary(max_size=99))


@given(BLOBS | st.binary(max_size=100))
def test_any_blob_unpacks_or_is_refused(blob: bytes) -> None:
    """A blob gives frames that add up to it, or DecodeError."""
    try:
        frames = unpack_frames(blob)
    except DecodeError:
        return

    assert pack_frames(frames) == blob


@pytest.mark.parametrize(
    "blob",
    [b"", b"\0\0", pack_frames([b"a"]), pack_frames([b"a", b"b"])[:-1], pack_frames([b"a", b"b"]) + b"x", b"\xff" * 8],
)
def test_a_blob_that_does_not_add_up_is_refused(blob: bytes) -> None:
    """Too short, too long, one frame, or billions of them."""
    with pytest.raises(DecodeError):
        unpack_frames(blob)


# -- JSON


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), PLAIN, max_size=4))
def test_plain_values_read_back_equal(body: dict[str, Any]) -> None:
    """Floats to the last bit, text of any script, integers of 64 bits."""
    assert decode_json(encode_json(body)) == body


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"1", b"null", b'"x"', b"{", b"{}x", b"{'a':1}", b"\xff{}", b"\xef\xbb\xbf{}",
        b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":1e999}', b'{"a":123456789012345678901}',
        b'{"a":1,"a":2}', b'{"b":{"a":1,"a":2}}', b'{"a":1,"\\u0061":2}', b'{"a":"\\ud800"}', b'{"\\udfff":1}',
        b'{"a":' + b"[" * 16 + b"]" * 16 + b"}", b'{"a":' + b"[" * 60_000,
    ],
)  # fmt: skip
def test_json_that_could_be_read_in_two_ways_is_refused(text: bytes) -> None:
    """Not an object, not UTF-8, a key twice, a number that overflows, a lone surrogate, too deep."""
    with pytest.raises(DecodeError) as caught:
        decode_json(text)

    assert caught.value.kind == "json"


def test_json_of_just_the_allowed_depth_reads() -> None:
    """Sixteen levels, the object's own included."""
    text = b'{"a":' + b"[" * 15 + b"]" * 15 + b"}"

    assert decode_json(text)["a"]


def test_json_over_its_limit_is_refused_unread() -> None:
    """The size is looked at first."""
    with pytest.raises(DecodeError) as caught:
        decode_json(b'{"a":1}', limit=6)

    assert caught.value.kind == "size"


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode) | PLAIN.map(lambda v: json.dumps(v).encode()))
def test_any_text_reads_or_is_refused(text: bytes) -> None:
    """Nothing but DecodeError comes out, and what is read can be written."""
    try:
        body = decode_json(text)
    except DecodeError:
        return

    assert decode_json(encode_json(body)) == body


def test_a_circle_or_a_tower_is_refused_by_the_writer() -> None:
    """What never ends, or ends too deep for the parser, is EncodeError."""
    circle: dict[str, Any] = {}
    circle["self"] = circle
    tower: Any = 1
    for _ in range(100_000):
        tower = [tower]

    for body in (circle, {"a": tower}):
        with pytest.raises(EncodeError):
            encode_json(body)
    while isinstance(tower, list):  # taken down by hand: its own destructor may go too deep
        tower = tower.pop()


# -- large blocks: walked once


@pytest.mark.parametrize("sizes", [[CHUNK_BYTES + 1], [3 * CHUNK_BYTES], [700_000, 0, 900_001, 2_000_003]])
def test_a_large_blocks_checksums_are_those_of_its_bytes(sizes: list[int]) -> None:
    """Of the whole in frame 1, and of each MiB of the packed form beside it, though every byte is walked once."""
    block = large(*sizes)
    packed = pack_frames(block.frames)

    assert decode_block(block.frames)[0] == block
    assert block.sums == tuple(zlib.crc32(packed[at : at + CHUNK_BYTES]) for at in range(0, len(packed), CHUNK_BYTES))


def test_chunks_are_good_wherever_they_are_cut() -> None:
    """At the places whose checksums are known, over several of them, and anywhere else."""
    block = large(2_000_000, 1_500_000)
    packed = pack_frames(block.frames)
    for at, size in ((0, CHUNK_BYTES), (CHUNK_BYTES, 2 * CHUNK_BYTES), (2 * CHUNK_BYTES, len(packed) - 2 * CHUNK_BYTES),
                     (0, len(packed)), (5, 100), (CHUNK_BYTES, 7), (1_999_999, 600_000)):  # fmt: skip
        frames = encode_chunk(block, at, size)
        message = decode_message(frames)

        assert b"".join(map(bytes, message.buffers)) == packed[at : at + size]
        assert sum_of_buffers(frames) == zlib.crc32(packed[at : at + size])


def test_a_packed_block_is_checked_by_the_checksum_of_its_bytes() -> None:
    """The one that was computed as they came says whether they are those that left."""
    packed = bytearray(pack_frames(large(1_500_000).frames))
    good = zlib.crc32(packed)
    assert decode_packed(packed, good)[0].first == 1
    packed[1_000_000] ^= 4

    with pytest.raises(DecodeError, match="checksum"):
        decode_packed(packed, zlib.crc32(packed))


def large(*sizes: int) -> Block:
    """One record with arrays of so many bytes, none of them alike."""
    chance = np.random.default_rng(0)
    buffers = [encode_array(chance.integers(0, 255, size, np.uint8)) for size in sizes]
    return encode_block(Identity(bytes(range(16)), 7, 1), BULK, 1, 5, [{"t": "x", "b": len(sizes)}], buffers)


def test_a_flipped_byte_is_found_also_where_the_text_is_known() -> None:
    """What blocks have in common is read once; each of them is checked whole all the same."""
    frames = [bytes(frame) for frame in records(1).frames]
    decode_block(frames)
    for number, frame in enumerate(frames):
        for at in range(len(frame)):
            changed = bytearray(frame)
            changed[at] ^= 1
            with pytest.raises(DecodeError):
                decode_block([*frames[:number], bytes(changed), *frames[number + 1 :]])
