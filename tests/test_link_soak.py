"""The tools that look at links from both ends, in short, as a person types them; and each notices a fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from boards import far_end, free_port, streaming_board
from brokers import broker

from firmware_bridge.errors import EndOfSource
from firmware_bridge.frame import encode
from firmware_bridge.hello import Hello
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Label, Sample
from firmware_bridge.sources.board_source import BoardSource
from firmware_bridge.sources.camera import Camera
from firmware_bridge.wire import encode_body
from tools import replug
from tools.fakes.mqtt_end import MqttEnd
from tools.fakes.process import board_process
from tools.fakes.signals import imu_schema

ROOT = Path(__file__).parent.parent
SHORT = ["--minutes", "0.03", "--rate", "2500", "--reboot-every", "437", "--bit-error-rate", "0.001"]


def figures(tool: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tools" / tool), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("link", ["pty", "tcp"])
def test_generated_is_handed_out_or_counted_over_a_bad_line_with_restarts(link: str) -> None:
    found = figures("link_soak.py", "--link", link, *SHORT)
    assert found["generated"] == 4500
    assert found["unexplained"] == found["wrong"] == found["duplicate"] == 0
    assert found["restarts"] == 10
    assert found["wire_lost"] > 0
    assert found["bits_flipped"] > 100


@pytest.mark.parametrize(
    ("link", "times", "restarts"), [("pty", 10, 10), ("tcp", 10, 10), ("mqtt", 2, 2), ("camera", 2, 0)]
)
def test_a_cable_pulled_again_and_again_is_back_each_time_and_leaves_nothing_behind(
    link: str, times: int, restarts: int
) -> None:
    found = figures("replug.py", "--link", link, "--times", str(times))
    assert (found["times"], found["reconnects"], found["restarts"]) == (times, times, restarts)
    assert found["threads"][0] == found["threads"][1]
    assert found["descriptors"][0] == found["descriptors"][1]
    assert found["queue_oldest"] == 0


@pytest.mark.parametrize(("link", "kind", "lose"), [("tcp", BoardSource, "_gone"), ("camera", Camera, "_lose")])
def test_a_bridge_that_leaves_something_open_is_noticed(
    link: str, kind: type, lose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_open: list[int] = []
    as_it_is = getattr(kind, lose)

    def forgetful(source: Any, why: Any) -> None:
        left_open.append(os.dup(0))
        as_it_is(source, why)

    monkeypatch.setattr(kind, lose, forgetful)
    found = replug.replug(link, 2)
    for descriptor in left_open:
        os.close(descriptor)
    assert found["reconnects"] == 2
    assert not replug.is_well(found)


def test_a_program_that_is_needed_and_not_installed_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "replug.py"), "--link", "camera", "--times", "1"]
    here = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=here)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ffmpeg is needed and not installed: apt-get install ffmpeg\n"


@pytest.mark.parametrize("link", ["pty", "tcp"])
def test_tail_follows_a_board_of_six_axes_at_1_khz_without_loss(link: str) -> None:
    found = figures("follow.py", "--link", link, "--seconds", "2")
    assert found["generated"] == found["shown"] == 2000
    assert found["lost"] == found["wire_lost"] == found["in_flight"] == found["unexplained"] == 0


def test_what_tail_did_not_show_is_noticed_with_its_reason() -> None:
    command = [sys.executable, str(ROOT / "tools" / "follow.py"), "--json", "--link", "tcp", "--seconds", "1"]
    done = subprocess.run([*command, "--bit-error-rate", "0.001"], capture_output=True, text=True, timeout=60)
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1
    assert found["lost"] == found["wire_lost"] == found["generated"] - found["shown"] > 0
    assert found["unexplained"] == 0


# The fake board itself, seen from the other end


def everything(url: str) -> tuple[list[Sample], list[Label], dict[str, int]]:
    samples: list[Sample] = []
    labels: list[Label] = []
    with make_source(url) as source:
        try:
            while (item := source.read(20.0)) is not None:
                (samples if isinstance(item, Sample) else labels).append(item)  # type: ignore[arg-type]
        except EndOfSource:
            return samples, labels, dict(source.counters)
    pytest.fail("nothing came in 20 s")


def test_the_tool_says_where_it_is_and_what_it_made() -> None:
    with board_process("--link", "tcp", "--samples", "700", "--reboot-every", "300", "--label-delay", "5") as board:
        samples, labels, counters = everything(board.url)
        told = board.told()
    assert {"generated", "sent", "dropped", "in_flight", "labels", "boots"} <= set(told)
    assert (told["generated"], told["sent"], told["boots"], told["labels"]) == (700, 700, 3, 700)
    assert len(samples) == len({label.id for label in labels}) == 700
    assert {sample.id for sample in samples} == {label.id for label in labels}
    assert counters["restarts"] == 2


def test_a_board_that_never_waits_drops_what_its_fifo_does_not_take_and_its_numbers_tell() -> None:
    """A reader that pauses: 300 frames and more wait, then nothing fits."""
    with streaming_board(far_end("pty"), 3000, rate_hz=6000.0) as board:
        n = 0
        with make_source(board.url) as source:
            while board.board.account.dropped < 100:
                assert board.board.account.generated < 3000
                time.sleep(0.01)
            try:
                while source.read(20.0) is not None:
                    n += 1
            except EndOfSource:
                pass
        told, counters = board.told(), source.counters
    assert told["generated"] == told["sent"] + told["dropped"]
    assert counters["wire_lost"] == told["dropped"] >= 100
    assert n == told["sent"]


def test_a_clock_that_drifts_and_bursts_are_as_asked() -> None:
    with streaming_board(far_end("tcp"), 200, rate_hz=1000.0, burst=50, drift_ppm=1000.0) as board:
        samples, _, _ = everything(board.url)
    assert [sample.time_us for sample in samples] == [int(seq * 1000 * 1.001) for seq in range(200)]


def test_the_boards_clock_is_told_in_the_hosts_time() -> None:
    """On one machine both are the same clock, but for where they begin."""
    with streaming_board(far_end("tcp"), 600, rate_hz=500.0) as board, make_source(board.url) as source:
        offsets = set()
        while (item := source.read(20.0)) is not None and item.seq < 590:
            host_us = source.host_us(item)
            if host_us is not None:
                offsets.add(host_us - item.time_us)
        assert item is not None
        assert max(offsets) - min(offsets) < 10_000_000
        assert abs(time.time() * 1e6 - source.host_us(item)) < 60_000_000


def test_a_board_on_mqtt_publishes_all_of_it_and_says_so(tmp_path: Path) -> None:
    with broker(tmp_path) as mosquitto:
        end = MqttEnd("127.0.0.1", mosquitto.port, "imu")
        mosquitto.send("imu", [encode_body(Hello("d", "f", 1, {0: imu_schema(None)}))], retain=True)
        with make_source(end.url):
            pass  # from now on the broker keeps what comes
        with streaming_board(end, 500, reboot_every=200) as board:
            told = board.told()
            samples, _, counters = everything(end.url)
    assert told["generated"] == told["sent"] + told["dropped"] == len(samples) + counters["restart_lost"] == 500
    assert 1 <= counters["restarts"] <= 2  # of a boot that was lost in the FIFO as a whole only the sum is known


def test_dropped_bytes_are_accounted_for_too() -> None:
    with streaming_board(far_end("cobs"), 3000, drops=0.0005, reboot_every=437) as board:
        samples, _, counters = everything(board.url)
        told = board.told()
    assert told["bytes_dropped"] > 20
    lost = sum(counters[name] for name in ("wire_lost", "restart_lost", "away"))
    assert told["generated"] == len(samples) + lost


def test_udp_needs_a_port_to_send_to() -> None:
    command = [sys.executable, str(ROOT / "tools" / "fake_board.py"), "--link", "udp", "--samples", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "--port" in done.stderr) == (1, True)
    with board_process("--link", "udp", "--samples", "100", "--rate", "1000", "--port", str(free_port())) as board:
        assert len(everything(board.url)[0]) == 100


def test_a_line_that_is_good_changes_nothing() -> None:
    with streaming_board(far_end("pty"), 10) as board:
        wire = encode(Label(0, 1, 2, 3))
        assert board.board._bad.pass_on(wire) is wire
