"""``sleap/words.py``: the messages of SLEAP's trainers and windows, and where they travel."""

from __future__ import annotations

import json
import math

import pytest

from fitwire.errors import AddressError, DecodeError, UsageError
from fitwire.sleap import Dialect, Order, parse_ports, read_order, read_word, write_order, write_word


@pytest.mark.parametrize(
    "address", [None, "", "tcp://127.0.0.1:9001,9000", "localhost:9001,9000", " 127.0.0.1:9001,9000 "]
)
def test_progress_stands_before_control(address: str | None) -> None:
    """SLEAP's own ports unless others are named."""
    assert parse_ports(address) == ("tcp://127.0.0.1:9001", "tcp://127.0.0.1:9000")


@pytest.mark.parametrize(
    ("address", "why"),
    [("tcp://127.0.0.1:9001", "write tcp"), ("127.0.0.1:1,1", "write tcp"), ("127.0.0.1:0,5", "write tcp"),
     ("127.0.0.1:70000,5", "write tcp"), ("ipc:///tmp/x", "write tcp"), ("10.0.0.1:9001,9000", "no keys"),
     ("example.org:9001,9000", "ssh -R")],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_said_so(address: str, why: str) -> None:
    """These sockets know no keys, so they stay on this machine."""
    with pytest.raises(AddressError, match=why):
        parse_ports(address)


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ('{"what": "not_set", "event": "train_begin", "logs": {}}', Dialect.KERAS),
        ('{"what": "", "event": "train_begin", "logs": null, "wandb_url": null}', Dialect.NN),
        ('{"what": "not_set", "event": "batch_begin", "batch": 0, "logs": {}}', Dialect.KERAS),
        ('{"what": "", "event": "batch_start", "logs": null, "batch": 0}', Dialect.NN),
        ('{"what": "not_set", "event": "batch_end", "batch": 0, "logs": {"loss": 1.0}}', Dialect.KERAS),
        ('{"what": "", "event": "batch_end", "logs": {"loss": 1.0}, "epoch": 0, "batch": 0}', Dialect.NN),
        ('{"what": "", "event": "epoch_end", "logs": {"val/loss": 1.0}, "epoch": 0}', Dialect.NN),
        ('{"what": "not_set", "event": "epoch_end", "epoch": 0, "logs": {"loss": 1.0}}', None),
        ('{"what": "", "event": "train_end", "logs": null}', None),
    ],
)
def test_who_speaks_is_known_by_the_marks_in_which_they_differ(text: str, dialect: Dialect | None) -> None:
    """Where both would say it so, nothing is guessed."""
    assert read_word(text.encode()).dialect is dialect


def test_of_logs_the_numbers_are_kept_and_the_rest_is_counted() -> None:
    """NaN is a number; text, null, an overlong name and half a character are none."""
    logs = {
        "loss": math.nan,
        "n": 3,
        "flag": True,
        "text": "x",
        "none": None,
        "n" * 257: 1.0,
        "\ud800": 1.0,
        "big": 10**400,
    }
    word = read_word(json.dumps({"event": "batch_end", "batch": 2, "logs": logs}).encode())

    assert set(word.logs) == {"loss", "n", "flag"} and math.isnan(word.logs["loss"]) and word.logs["n"] == 3.0
    assert (word.odd, word.batch, word.epoch) == (5, 2, None)


@pytest.mark.parametrize(
    ("field", "value"), [("epoch", -1), ("epoch", 1.5), ("epoch", True), ("epoch", "3"), ("epoch", 2**60)]
)
def test_an_epoch_that_is_no_index_is_none(field: str, value: object) -> None:
    """A view counts with it."""
    word = read_word(json.dumps({"event": "epoch_end", field: value, "logs": []}).encode())

    assert word.epoch is None and word.logs == {}


@pytest.mark.parametrize(
    "frame", [b"[]", b"null", b'{"type": "handshake request"}', b'{"event": []}', b'{"event": "x"}']
)
def test_what_no_trainer_says_is_refused(frame: bytes) -> None:
    """The seed's handshake comes to the same port."""
    with pytest.raises(DecodeError):
        read_word(frame)


def test_what_is_written_is_plain_and_read_back() -> None:
    """No tag of jsonpickle's, so that an original can read it, and a mark by which ours is known."""
    frame = write_word("batch_end", "centroid", {"loss": 0.5}, epoch=1, batch=2)
    word = read_word(frame)

    assert b"py/" not in frame
    assert (word.event, word.what, word.epoch, word.batch, word.logs) == ("batch_end", "centroid", 1, 2, {"loss": 0.5})
    assert word.dialect is Dialect.OURS


def test_an_order_is_what_the_original_trainers_read() -> None:
    """A dict with ``command``, plain, and nothing else can be made."""
    assert write_order(Order("stop")) == b'{"command": "stop"}'
    assert json.loads(write_order(Order("set_lr", 1e-4))) == {"command": "set_lr", "lr": 1e-4}


@pytest.mark.parametrize(
    "order",
    [
        Order("pause"),
        Order(""),
        Order("set_lr"),
        Order("set_lr", math.nan),
        Order("set_lr", math.inf),
        Order("set_lr", -1.0),
    ],
)
def test_what_could_end_a_trainer_is_never_written(order: Order) -> None:
    """It would raise in its callback, and the training with it."""
    with pytest.raises(UsageError):
        write_order(order)


def test_what_a_window_asks_is_read_in_any_encoding_of_the_number() -> None:
    """An integer is a learning rate too; a numpy scalar is translated."""
    f8 = '{"py/reduce": [{"py/type": "numpy.dtype"}, {"py/tuple": ["f8", false, true]}]}'
    call = '{"py/function": "numpy.core.multiarray.scalar"}'
    number = f'{{"py/reduce": [{call}, {{"py/tuple": [{f8}, {{"py/b64": "AAAAAAAAAEA="}}]}}]}}'

    assert read_order(b'{"command": "stop"}') == Order("stop")
    assert read_order(b'{"command": "set_lr", "lr": 1}') == Order("set_lr", 1.0)
    assert read_order(f'{{"command": "set_lr", "lr": {number}}}'.encode()) == Order("set_lr", 2.0)


@pytest.mark.parametrize(
    "frame",
    [b'{"command": "set_lr"}', b'{"command": "set_lr", "lr": "1"}', b'{"command": "set_lr", "lr": NaN}', b"[]", b"{}",
     b'{"command": "set_lr", "lr": -1}', b'{"command": "set_lr", "lr": true}',
     b'{"command": {"py/object": "x"}}', b"stop"],
)  # fmt: skip
def test_what_no_window_asks_is_refused(frame: bytes) -> None:
    """It is counted and changes nothing."""
    with pytest.raises(DecodeError):
        read_order(frame)
