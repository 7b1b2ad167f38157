"""Boards on TCP: connected to or let in, gone and back, refused with a reason, and only with the right key."""

import socket
import threading
import time

import numpy as np
import pytest
from boards import far_end, free_port, streaming_board

from firmware_bridge.errors import BadSourceUrl, EndOfSource, SourceLost, SourceUnavailable
from firmware_bridge.frame import CTRL_END, Control, encode
from firmware_bridge.hello import Hello
from firmware_bridge.packet import encode_packet
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Sample, Schema
from tools.fakes.far_ends import TcpEnd

ENDLESS = 1 << 30


def sample(seq, boot=1):
    return Sample(0, boot, seq, 0, np.ones(2, np.uint8))


def until(source, done, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        item = source.read(0.05)
        if done(item):
            return item
    pytest.fail(f"not so in {timeout_s} s; the source said {source.said!r}")


def seqs_of(source):
    seqs = []
    try:
        while (item := source.read(10.0)) is not None:
            seqs.append(item.seq)
    except EndOfSource:
        return seqs
    pytest.fail("nothing came in 10 s")


def test_a_board_that_closed_and_listens_again_is_back(tmp_path):
    port = free_port()
    with (
        streaming_board(TcpEnd(port, "length"), ENDLESS, rate_hz=200.0) as board,
        make_source(f"tcp://127.0.0.1:{port}") as source,
    ):
        until(source, lambda item: item is not None)
        board.unplug()
        until(source, lambda item: item is None and source.said.startswith("gone"))
        assert source.said.startswith(
            f"gone: tcp://127.0.0.1:{port}: "
        )  # closed, or reset where bytes were on their way
        assert source.read(0.3) is None
        with streaming_board(TcpEnd(port, "length"), ENDLESS, rate_hz=200.0, first_boot=2):
            assert until(source, lambda item: item is not None and item.boot == 2).gap
        assert source.said.startswith("back after ")
        assert (source.counters["reconnects"], source.counters["wire_lost"]) == (1, 0)


def test_a_connection_that_broke_costs_nothing_of_a_board_that_goes_on():
    """The board stays and so does its boot: what it made meanwhile is away, and all else is there."""
    with streaming_board(far_end("tcp"), 400, rate_hz=400.0) as board:
        with make_source(board.url) as source:
            first = [source.read(10.0).seq for _ in range(20)]
            source._line._socket.shutdown(socket.SHUT_RDWR)
            rest = seqs_of(source)
        told, counters = board.told(), source.counters
    assert [*first, *rest] == sorted({*first, *rest})
    assert told["generated"] == len(first) + len(rest) + counters["away"] + counters["wire_lost"]
    assert (counters["reconnects"], counters["restarts"]) == (1, 0)


def test_one_that_lets_in_and_hangs_up_at_once_is_not_back():
    with streaming_board(far_end("tcp"), ENDLESS, rate_hz=200.0) as board:
        port = int(board.url.rpartition(":")[2])
        with make_source(board.url) as source:
            until(source, lambda item: item is not None)
            board.unplug()
            until(source, lambda item: item is None and source.said.startswith("gone"))
            with socket.create_server(("127.0.0.1", port)) as door:
                for _ in range(3):
                    thread = threading.Thread(target=lambda: door.accept()[0].close(), daemon=True)
                    thread.start()
                    while thread.is_alive():
                        assert source.read(0.05) is None
            assert source.said.startswith("gone")
            assert source.counters["reconnects"] == 0


def test_nobody_at_the_port_is_told_from_a_board_that_is_silent():
    url = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(SourceUnavailable, match="Connection refused") as caught:
        make_source(url).open()
    assert "nothing listens at that port" in caught.value.hint
    with socket.create_server(("127.0.0.1", 0)) as door:
        silent = f"tcp://127.0.0.1:{door.getsockname()[1]}?wait=0.2"
        with pytest.raises(SourceUnavailable, match=r"nothing came in 0\.2 s"):
            make_source(silent).open()


def test_the_wrong_framing_is_asked_for():
    """Of a board that talks unasked: one that must be asked does not understand the question."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        source = make_source(f"tcp://127.0.0.1:{door.getsockname()[1]}?wait=1")

        def talk():
            with door.accept()[0] as connection:
                connection.sendall(20 * encode(sample(0)))
                while connection.recv(4096):
                    pass

        talker = threading.Thread(target=talk, daemon=True)
        talker.start()
        with pytest.raises(SourceUnavailable, match="bytes came, but no frame") as caught:
            source.open()
        assert caught.value.hint == "are its frames set apart otherwise? try ?framing=cobs"
        talker.join()


@pytest.mark.parametrize("target", ["nowhere", "host:", "host:0", "host:65536", ":7000", "host:7e3"])
def test_an_address_needs_a_host_and_a_port(target):
    with pytest.raises(BadSourceUrl, match="must be HOST:PORT"):
        make_source(f"tcp://{target}")


def test_a_board_that_connects_to_us_is_let_in_and_so_is_the_next_one():
    port = free_port()
    schema = Schema(name="a", dtype="uint8", shape=(2,))

    def board(boot, *, ends):
        for _ in range(200):  # it tries until the door is open, as boards do
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=5.0)
                break
            except OSError:
                time.sleep(0.05)
        with connection:
            messages = [Hello("d", "f", boot, {0: schema})]
            messages += [sample(seq, boot) for seq in range(3)]
            messages += [Control(0, boot, 3, CTRL_END)] if ends else []
            connection.sendall(b"".join(map(encode_packet, messages)))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass

    first = threading.Thread(target=board, args=(1,), kwargs={"ends": False})
    first.start()
    with make_source(f"tcp-listen://127.0.0.1:{port}?wait=20") as source:
        assert [source.read(10.0).id for _ in range(3)] == [(0, 1, 0), (0, 1, 1), (0, 1, 2)]
        until(source, lambda item: item is None and source.said.startswith("gone"))
        second = threading.Thread(target=board, args=(2,), kwargs={"ends": True})
        second.start()
        assert seqs_of(source) == [0, 1, 2]
        assert source.counters["reconnects"] == 1
    first.join()
    second.join()


def test_a_port_that_is_taken_cannot_be_listened_at():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(SourceUnavailable, match="Address already in use") as caught:
            make_source(f"tcp-listen://127.0.0.1:{taken.getsockname()[1]}").open()
        assert "a free port" in caught.value.hint


@pytest.mark.parametrize("link", ["pty", "tcp", "cobs", "udp"])
def test_a_board_with_a_key_is_heard_by_who_has_it_and_only_by_him(link, tmp_path):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("00112233445566778899aabbccddeeff")
    wrong.write_text("ff112233445566778899aabbccddeeff")

    def asked_with(board, key):
        return make_source(f"{board.url}{'&' if '?' in board.url else '?'}wait=1&key=@{key}")

    ends = far_end(link, bytes.fromhex(right.read_text()))
    habits = {"rate_hz": 2000.0, "reboot_every": 70, "secret": bytes.fromhex(right.read_text())}
    with streaming_board(ends, 200, **habits) as board, pytest.raises(SourceUnavailable, match="auth"):
        asked_with(board, wrong).open()
    ends = far_end(link, bytes.fromhex(right.read_text()))
    with streaming_board(ends, 200, **habits) as board, asked_with(board, right) as source:
        assert len(seqs_of(source)) == 200
        assert source.counters["auth"] == source.counters["replay"] == 0
        assert source.counters["restarts"] == 2


def test_a_source_that_was_closed_is_not_read():
    with streaming_board(far_end("tcp"), 5) as board:
        source = make_source(board.url)
        with pytest.raises(SourceLost, match="not open"):
            source.read(0.0)
