"""Boards that send datagrams: one at a port, only this machine's unless said otherwise, and strangers are left out."""

import socket
import time
from contextlib import suppress

import numpy as np
import pytest
from boards import far_end, free_port, streaming_board

from firmware_bridge.errors import EndOfSource, SourceUnavailable
from firmware_bridge.frame import CTRL_END, Control
from firmware_bridge.hello import Hello
from firmware_bridge.packet import encode_datagram
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Sample, Schema
from firmware_bridge.sources import udp

SCHEMA = Schema(name="a", dtype="uint8", shape=(2,))


def sample(seq, boot=1):
    return Sample(0, boot, seq, 0, np.ones(2, np.uint8))


class Sender:
    """A board that sends from an address of loopback."""

    def __init__(self, port, address="127.0.0.1"):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 0))
        self.socket.connect(("127.0.0.1", port))

    def say(self, *messages):
        for message in messages:
            self.socket.send(message if isinstance(message, bytes) else encode_datagram(message))

    def __del__(self):
        self.socket.close()


@pytest.fixture
def port():
    return free_port(socket.SOCK_DGRAM)


def opened(port, *senders):
    """A source that has met the first of them; a port takes what comes before it is read."""
    source = make_source(f"udp://:{port}")
    source._udp.connect(0.0)
    senders[0].say(Hello("d", "f", 1, {0: SCHEMA}))
    source._udp.connect = lambda timeout_s: True
    source.open()
    return source


def test_a_board_is_heard_and_answered_and_a_lost_datagram_is_counted(port):
    board = Sender(port)
    source = opened(port, board)
    board.say(sample(0), sample(2), Control(0, 1, 4, CTRL_END))
    assert [source.read(5.0).seq for _ in range(2)] == [0, 2]
    with pytest.raises(EndOfSource):
        source.read(5.0)
    assert source.counters["wire_lost"] == 2
    board.socket.settimeout(5.0)
    assert board.socket.recv(4096)
    source.close()


def test_a_datagram_that_is_no_frame_is_counted_and_who_sent_it_is_not_the_board(port):
    board, noise = Sender(port), Sender(port, "127.0.0.2")
    source = make_source(f"udp://:{port}?wait=5")
    source._udp.connect(0.0)
    source._udp.connect = lambda timeout_s: True
    noise.say(b"GET / HTTP/1.1", b"\0" * 60)
    board.say(Hello("d", "f", 1, {0: SCHEMA}), sample(0))
    source.open()
    assert source.read(5.0).seq == 0
    assert source.counters["crc"] + source.counters["length"] == 2
    assert source.counters["stranger"] == 0
    source.close()


def test_a_stranger_is_left_out_while_the_board_speaks_and_may_be_the_board_later(port, monkeypatch):
    board, other = Sender(port), Sender(port, "127.0.0.2")
    source = opened(port, board)
    board.say(sample(0))
    assert source.read(5.0).seq == 0
    other.say(sample(1))
    assert source.read(0.3) is None
    assert source.counters["stranger"] == 1
    monkeypatch.setattr(udp, "_SILENT_S", 0.1)
    time.sleep(0.2)
    other.say(sample(2))
    assert source.read(5.0).seq == 2
    source.close()


def test_a_board_that_restarts_sends_from_another_port_of_its_own(port):
    board = Sender(port)
    source = opened(port, board)
    board.say(sample(0))
    again = Sender(port)
    again.say(Hello("d", "f", 2, {0: SCHEMA}), sample(0, boot=2))
    assert [source.read(5.0).id for _ in range(2)] == [(0, 1, 0), (0, 2, 0)]
    assert source.counters["restarts"] == 1
    source.close()


def test_it_listens_on_this_machine_alone_unless_told_otherwise(port):
    assert make_source(f"udp://:{port}")._udp.name == f"udp://127.0.0.1:{port}"
    assert make_source(f"udp://0.0.0.0:{port}")._udp.name == f"udp://0.0.0.0:{port}"


def test_a_port_that_is_taken_is_named():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(SourceUnavailable, match="Address already in use"):
            make_source(f"udp://:{taken.getsockname()[1]}").open()


def test_dropped_and_damaged_datagrams_are_all_accounted_for():
    flaws = {"flips": 0.001, "drops": 0.05, "rate_hz": 3000.0, "reboot_every": 437}
    with streaming_board(far_end("udp"), 2000, **flaws) as board:
        n = 0
        with make_source(board.url) as source, suppress(EndOfSource):
            while source.read(10.0) is not None:
                n += 1
        told, counters = board.told(), source.counters
    assert told["bytes_dropped"] > 50
    assert told["generated"] == n + counters["wire_lost"] + counters["restart_lost"] + counters["away"]
