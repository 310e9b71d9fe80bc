"""Frames between node and worker: what is sent arrives, what is not ours is refused."""

import socket
import struct

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_contract.chunk import ActionChunk
from vla_contract.interpolation import Trajectory
from vla_policy_node.worker import wire


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@given(arrays(np.float64, (3, 2), elements=st.floats(allow_nan=False)), st.text(), st.integers(-(2**62), 2**62))
def test_round_trip(values, text, number):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(wire.pack({"values": values, "text": text, "number": number, "none": None, "bytes": b"x"}))
        message = wire.receive(theirs)
    np.testing.assert_array_equal(message["values"], values)
    assert (message["text"], message["number"], message["none"], message["bytes"]) == (text, number, None, b"x")


def test_chunks(pair):
    chunk = ActionChunk(
        7, ("a",), Trajectory([0.1, 0.2], [[1.0], [2.0]], [[0.0], [1.0]]), confidence=0.5, progress=0.25
    )
    pair[0].sendall(wire.pack(wire.chunk_map(chunk)))
    back = wire.chunk_of(wire.receive(pair[1]))
    assert back.stamp_ns == 7 and back.joint_names == ("a",) and (back.confidence, back.progress) == (0.5, 0.25)
    np.testing.assert_array_equal(back.trajectory.velocities, chunk.trajectory.velocities)
    assert back.trajectory.accelerations is None


def test_the_end(pair):
    pair[0].close()
    assert wire.receive(pair[1]) is None


def test_an_end_in_the_middle(pair):
    pair[0].sendall(struct.pack("<I", 100) + b"part")
    pair[0].close()
    assert wire.receive(pair[1]) is None


def frame(payload):
    return struct.pack("<I", len(payload)) + payload


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (struct.pack("<I", 2**31), "frame of 2147483648 bytes"),
        (frame(b"\xc1"), "not msgpack"),
        (frame(msgpack.packb([1])), "holds list"),
        (frame(msgpack.packb({"a": msgpack.ExtType(5, b"")})), "extension 5"),
        (frame(msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(("|O", [1], b"12345678")))})), "is not accepted"),
    ],
)
def test_what_is_not_ours(pair, raw, words):
    pair[0].sendall(raw)
    with pytest.raises(wire.WireError, match=words):
        wire.receive(pair[1])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "it holds a object"),
        (np.array([object()]), "it holds a ndarray"),
        (np.array(["text"]), "it holds a ndarray"),
        (np.array([1j]), "it holds a ndarray"),
        (2**70, f"it holds the number {2**70}; use numbers of 64 bits"),
        ("\ud800", "surrogates not allowed"),
        (bytes(wire.LONGEST), f"it has 67108[0-9]+ bytes .> {wire.LONGEST}.; say less"),
    ],
)
def test_what_cannot_be_sent(pair, value, words):
    with pytest.raises(wire.WireError, match=f"cannot be sent: .*{words}"):
        pair[0].sendall(wire.pack({"value": value}))


@given(st.lists(st.text()), st.integers(1, 50))
def test_frames_are_taken_whole_however_they_come(texts, part):
    raw = b"".join(wire.pack({"text": text}) for text in texts)
    read, taken = bytearray(), []
    for start in range(0, len(raw), part):
        read += raw[start : start + part]
        while (message := wire.take(read)) is not None:
            taken.append(message["text"])
    assert taken == texts and not read
