"""A cable pulled while it is read: said once, tried again, and found under whatever name the board has now."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from boards import streaming_board

from firmware_bridge.errors import SourceLost, SourceUnavailable
from firmware_bridge.inlet import Inlet
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Sample
from firmware_bridge.sources import board_source, serial_port
from tools.fakes.far_ends import PtyEnd


def at(path, end):
    """That end under a name of our own, as udev gives one."""
    path.unlink(missing_ok=True)
    path.symlink_to(end.url.removeprefix("serial://"))
    return end


def until(source, done, timeout_s=20.0):
    """Read until `done` holds of a sample or of None."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        item = source.read(0.05)
        if done(item):
            return item
    pytest.fail(f"not so in {timeout_s} s; the source said {source.said!r}")


def of_boot(boot):
    return lambda item: isinstance(item, Sample) and item.boot == boot


def is_gone(source):
    return lambda item: item is None and source.said.startswith("gone")


ENDLESS = 1 << 30


def test_a_cable_pulled_is_said_once_and_nothing_comes_until_it_is_back(tmp_path):
    port = tmp_path / "port"
    with streaming_board(at(port, PtyEnd()), ENDLESS, rate_hz=200.0) as board, make_source(f"serial:{port}") as source:
        assert source.said == ""
        until(source, of_boot(1))
        board.unplug()
        until(source, is_gone(source))
        said = source.said
        assert source.read(0.6) is None
        assert source.said == said
        assert source.counters["reconnects"] == 0
        with streaming_board(at(port, PtyEnd()), ENDLESS, rate_hz=200.0, first_boot=2):
            first = until(source, of_boot(2))
            assert first.gap
            assert source.said.startswith("back after ")
            assert (source.counters["reconnects"], source.counters["restarts"]) == (1, 1)
            assert source.counters["wire_lost"] == 0
    assert f"gone: {port}: " in said


def test_without_reconnect_a_cable_pulled_is_the_end(tmp_path):
    port = tmp_path / "port"
    with (
        streaming_board(at(port, PtyEnd()), ENDLESS, rate_hz=200.0) as board,
        make_source(f"serial:{port}?reconnect=0") as source,
    ):
        until(source, of_boot(1))
        board.unplug()
        with pytest.raises(SourceLost, match="the board is gone") as caught:
            until(source, lambda item: False)
        assert isinstance(caught.value.__cause__, OSError)


def test_patience_ends_when_it_is_said_to(tmp_path):
    port = tmp_path / "port"
    with (
        streaming_board(at(port, PtyEnd()), ENDLESS, rate_hz=200.0) as board,
        make_source(f"serial:{port}?reconnect=0.5") as source,
    ):
        until(source, of_boot(1))
        board.unplug()
        port.unlink()
        started = time.monotonic()
        with pytest.raises(SourceLost, match=r"no such serial port; tried for 0\.5 s") as caught:
            until(source, lambda item: False)
        assert time.monotonic() - started >= 0.5
        assert caught.value.hint


def test_an_inlet_lives_through_it(tmp_path):
    port = tmp_path / "port"
    with streaming_board(at(port, PtyEnd()), ENDLESS, rate_hz=200.0) as board, make_source(f"serial:{port}") as source:
        inlet = Inlet(source, 1 << 20)
        assert inlet.get(10.0).boot == 1
        board.unplug()
        with streaming_board(at(port, PtyEnd()), ENDLESS, rate_hz=200.0, first_boot=2):
            while (item := inlet.get(10.0)) is not None and item.boot == 1:
                pass
            assert item.boot == 2
        inlet.close()


@pytest.fixture
def usb(monkeypatch):
    """Serial numbers by path, as the kernel would list them: no pseudo-terminal is a USB device."""
    plugged: dict[str, str] = {}
    ports = lambda: [SimpleNamespace(device=path, serial_number=number) for path, number in plugged.items()]  # noqa: E731
    monkeypatch.setattr(serial_port.serialx, "list_serial_ports", ports)
    return plugged


def test_a_board_is_found_by_its_serial_number_under_another_name(usb):
    first, second = PtyEnd(), PtyEnd()
    path, moved = (end.url.removeprefix("serial://") for end in (first, second))
    usb[path] = "A50285BI"
    with streaming_board(first, ENDLESS, rate_hz=200.0) as board, make_source(f"serial:{path}") as source:
        until(source, of_boot(1))
        board.unplug()
        usb.clear()
        until(source, is_gone(source))
        usb[moved] = "A50285BI"
        with streaming_board(second, ENDLESS, rate_hz=200.0, first_boot=2):
            until(source, of_boot(2))
            assert source.counters["reconnects"] == 1


def test_another_board_at_the_same_name_is_left_alone(usb, tmp_path):
    port = tmp_path / "port"
    end = at(port, PtyEnd())
    usb[os.path.realpath(port)] = "A50285BI"
    with streaming_board(end, ENDLESS, rate_hz=200.0) as board, make_source(f"serial:{port}?reconnect=1") as source:
        until(source, of_boot(1))
        board.unplug()
        usb.clear()
        with streaming_board(at(port, PtyEnd()), ENDLESS, rate_hz=200.0, first_boot=2):
            usb[os.path.realpath(port)] = "ANOTHER"
            lost = pytest.raises(SourceLost, match="no board with serial number A50285BI is plugged in; tried for 1 s")
            with lost as caught:
                until(source, of_boot(2))
    assert "USB serial ports that exist: /dev/pts/" in caught.value.hint


def test_a_board_that_comes_back_as_another_one_ends_the_source(tmp_path):
    port = tmp_path / "port"
    with streaming_board(at(port, PtyEnd()), ENDLESS, rate_hz=200.0) as board, make_source(f"serial:{port}") as source:
        until(source, of_boot(1))
        board.unplug()
        with (
            streaming_board(at(port, PtyEnd()), ENDLESS, name="motor", rate_hz=200.0, first_boot=2),
            pytest.raises(SourceLost, match="another schema"),
        ):
            until(source, of_boot(2))


def test_a_line_that_is_silent_is_asked_whether_its_board_restarted(monkeypatch):
    """A UART stays when its board restarts: nothing tells of it but silence, and the board may wait to be asked."""
    monkeypatch.setattr(board_source, "SILENT_S", 0.1)
    end, asked = PtyEnd(), []
    feed = end.decoder.feed
    monkeypatch.setattr(end.decoder, "feed", lambda data: asked.append(time.monotonic()) or feed(data))
    with streaming_board(end, 20, rate_hz=200.0, silence_s=1.0) as board, make_source(board.url) as source:
        samples = [until(source, lambda item: item is not None) for _ in range(20)]
    assert [sample.seq for sample in samples] == list(range(20))
    assert len(asked) >= 3  # once to begin, and in the silence


def test_a_port_that_is_busy_leaves_no_descriptor_behind(tmp_path):
    with streaming_board(PtyEnd(), ENDLESS, rate_hz=200.0) as board, make_source(board.url):
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            with pytest.raises(SourceUnavailable, match="another program uses it"):
                make_source(board.url).open()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
