"""The node's end of the socket: nobody waits who asks, and no frame is torn."""

import os
import socket
import threading

import pytest

from vla_policy_node.worker import wire
from vla_policy_node.worker.channel import Channel

FIRST = wire.pack({"do": "load", "id": 0})
LONG = "x" * 3_000_000  # a socket holds some hundred thousand bytes


@pytest.fixture
def ends():
    channel, (ours, theirs) = Channel(), socket.socketpair()
    with ours, theirs, channel.over(ours, FIRST):
        yield channel, theirs
    channel.close()


def hear(theirs, count):
    """A process that reads so many frames; where they will be."""
    heard = []
    thread = threading.Thread(target=lambda: heard.extend(wire.receive(theirs) for _ in range(count)), daemon=True)
    thread.start()
    return heard, thread


def test_what_fits_is_sent_at_once(ends):
    channel, theirs = ends
    assert channel.ask({"do": "reset"}) == 1 and list(channel.asked) == [(1, "reset")]
    assert wire.receive(theirs) == {"do": "load", "id": 0}
    assert wire.receive(theirs) == {"do": "reset", "id": 1}


def test_what_does_not_fit_is_sent_on_in_order_while_answers_are_waited_for(ends):
    channel, theirs = ends
    for number in range(1, 5):
        assert channel.ask({"do": "infer", "instruction": LONG * (number % 2)}) == number
    heard, thread = hear(theirs, 5)
    while thread.is_alive():
        assert channel.receive(0.05) is None
    assert [message["id"] for message in heard] == [0, 1, 2, 3, 4]
    assert [len(message["instruction"]) for message in heard[1:]] == [len(LONG), 0, len(LONG), 0]


def test_an_answer_that_stops_half_way_keeps_nobody(ends):
    channel, theirs = ends
    raw = wire.pack({"id": 1, "path": LONG}) + wire.pack({"id": 2})
    theirs.sendall(raw[:1000])
    assert channel.receive(30.0) is None
    assert channel.receive(0.0) is None
    threading.Thread(target=theirs.sendall, args=(raw[1000:],), daemon=True).start()
    answers = []
    while len(answers) < 2:
        if (answer := channel.receive(30.0)) is not None:
            answers.append(answer)
    assert [answer["id"] for answer in answers] == [1, 2] and answers[0]["path"] == LONG


@pytest.mark.parametrize("said", [0, 10])
def test_the_end_of_the_process_is_heard(ends, said):
    channel, theirs = ends
    theirs.sendall(wire.pack({"id": 1})[:said])
    theirs.close()  # with a request unread
    channel.ask({"do": "infer", "instruction": LONG})
    with pytest.raises(EOFError):
        while True:
            channel.receive(30.0)


def test_the_next_process_hears_nothing_of_what_was_for_the_last(ends):
    channel = Channel()
    for _ in range(2):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            with channel.over(ours, FIRST):
                channel.ask({"do": "infer", "instruction": LONG})
                assert channel.inferring and channel.asked
                theirs.sendall(b"\4\0\0")
                assert channel.receive(30.0) is None
                heard, thread = hear(theirs, 1)
                thread.join(30.0)
                assert heard == [{"do": "load", "id": 0}]
            assert not channel.inferring and not channel.asked
        channel.ask({"do": "reset"})  # there is nobody
    channel.close()


def test_whoever_waits_is_woken(ends):
    channel, _ = ends
    assert channel.wait(0.0) == (False, True)
    channel.wake()
    assert channel.wait(None) == (False, False)


def test_a_closed_channel_wakes_nobody_and_touches_no_other_file(ends):
    channel = Channel()
    channel.close()
    other = os.eventfd(0, os.EFD_NONBLOCK)  # gets the number that has become free
    try:
        channel.wake()
        channel.ask({"do": "reset"})
        channel.close()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(other)
    finally:
        os.close(other)
