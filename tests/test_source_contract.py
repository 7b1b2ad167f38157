"""One suite for every source: the same 300 motor frames out of lines, a pipe, files and a simulated board."""

import json
import os
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import quote

import brokers
import numpy as np
import pytest
from boards import fake_board, far_end, standard_input, streaming_board, talking_line
from videos import write_video

from firmware_bridge.errors import BadRecording, EndOfSource, SourceLost, SourceUnavailable
from firmware_bridge.frame import CTRL_END, Control, encode_control, encode_hello, encode_label, encode_sample
from firmware_bridge.hello import Hello
from firmware_bridge.motor import STATES, Motor, boot_of
from firmware_bridge.motor import schema as motor_schema
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Label, Sample, SampleId, Schema
from firmware_bridge.sources.serial_port import unavailable
from firmware_bridge.wire import encode_body

N = 300
TRUE = [sample for sample, _ in zip(Motor(5).samples(), range(N), strict=False)]


def picture(values):
    """The bytes of 32 rows of 3 counts as 32 rows of 2 pixels: low bytes, high bytes, an axis in each colour."""
    pixels = np.ascontiguousarray(values.view(np.uint8).reshape(32, 3, 2).swapaxes(1, 2))
    pixels.flags.writeable = False
    return pixels


PICTURES = [replace(sample, values=picture(sample.values), label=None) for sample in TRUE]


def serial(stack, _tmp_path):
    return f"serial://{stack.enter_context(fake_board('--speed', 'max', '--samples', str(N), '--seed', '5'))}"


def recording(_stack, tmp_path):
    path = tmp_path / "motor.npz"
    x = np.stack([sample.values for sample in TRUE])
    np.savez(path, x=x, y=np.array([sample.label for sample in TRUE]), label_names=np.array(STATES), fs_hz=3200)
    return f"recording:{path}"


def simulated(_stack, _tmp_path):
    return f"simulated:motor?speed=max&samples={N}"


def tcp(stack, _tmp_path):
    return stack.enter_context(streaming_board(far_end("tcp"), N, name="motor", first_boot=boot_of(5))).url


def tcp_cobs(stack, _tmp_path):
    return stack.enter_context(streaming_board(far_end("cobs"), N, name="motor", first_boot=boot_of(5))).url


def udp(stack, _tmp_path):
    # It cannot be slowed, but all 300 find room in the kernel.
    return stack.enter_context(
        streaming_board(far_end("udp"), N, name="motor", first_boot=boot_of(5), rate_hz=3000.0)
    ).url


def stdin(stack, _tmp_path):
    lines = [
        json.dumps({"values": s.values.tolist(), "label": s.label, "time_us": s.time_us, "seq": s.seq}) for s in TRUE
    ]
    stack.enter_context(standard_input("\n".join(lines).encode()))
    return f"stdin:jsonl?dtype=int16&rate=3200&labels={quote(','.join(STATES))}"


def mqtt(stack, tmp_path):
    broker = stack.enter_context(brokers.broker(Path(mkdtemp(dir=tmp_path))))
    url, boot = broker.url("motor", "client=learner"), boot_of(5)
    broker.send("motor", [encode_body(Hello("motor", "f", boot, {0: motor_schema()}))], retain=True)
    with make_source(url):  # the broker keeps messages for a client that it has seen
        pass
    broker.send("motor", [encode_body(event) for event in (*TRUE, Control(0, boot, N, CTRL_END))])
    return url


def camera(_stack, tmp_path):
    file = tmp_path.parent / "motor.mkv"  # the same for all tests
    if not file.exists():
        write_video(file, np.stack([sample.values for sample in PICTURES]), fps=100)
    return f"camera:{file}"


@dataclass(frozen=True)
class Kind:
    """A source to be made, and what it must then give; a camera knows no labels and no rate."""

    make: Any
    true: Any = tuple(TRUE)
    label_names: tuple[str, ...] = STATES
    rate_hz: float | None = 3200.0


EVERY = [Kind(make) for make in (serial, tcp, tcp_cobs, udp, mqtt, stdin, recording, simulated)]
EVERY += [Kind(camera, tuple(PICTURES), (), None)]


@pytest.fixture(params=EVERY, ids=lambda kind: kind.make.__name__)
def kind(request):
    return request.param


@pytest.fixture
def fresh(kind, tmp_path):
    """Makes the source anew, as a run after another run does."""
    with ExitStack() as stack:
        yield lambda *after: make_source(kind.make(stack, tmp_path), after=after, seed=5)


def read_all(source):
    """Samples up to EndOfSource; a source that falls silent instead fails here, not for ever."""
    samples = []
    with suppress(EndOfSource):
        while (item := source.read(10.0)) is not None:
            samples.append(item)
        pytest.fail("nothing came in 10 s")
    return samples


def test_all_samples_come_once_in_order_with_their_labels(fresh, kind):
    with fresh() as source:
        samples = read_all(source)
    assert [sample.seq for sample in samples] == list(range(N))
    assert len({(sample.stream, sample.boot) for sample in samples}) == 1
    assert [sample.label for sample in samples] == [sample.label for sample in kind.true]
    assert [sample.time_us for sample in samples] == [sample.time_us for sample in kind.true]
    for sample, true in zip(samples, kind.true, strict=True):
        np.testing.assert_array_equal(sample.values, true.values)


def test_the_schema_is_known_once_open_and_samples_keep_to_it(fresh, kind):
    form = (kind.true[0].values.dtype.name, kind.true[0].values.shape)
    with fresh() as source:
        schema, samples = source.schema, read_all(source)
    assert (schema.dtype, schema.shape) == form
    assert (schema.label_names, schema.rate_hz) == (kind.label_names, kind.rate_hz)
    for sample in samples:
        assert (sample.values.dtype.name, sample.values.shape, sample.gap) == (*form, False)
        assert not sample.values.flags.writeable


def test_a_healthy_source_counts_no_fault_and_names_its_counters_from_the_start(fresh):
    source = fresh()
    names = set(source.counters)
    with source:
        read_all(source)
        assert set(source.counters) == names
        assert set(source.counters.values()) == {0}


def test_the_end_is_raised_again_at_every_read(fresh):
    with fresh() as source:
        read_all(source)
        with pytest.raises(EndOfSource):
            source.read(0.0)


def test_a_resumed_source_goes_on_behind_the_last_sample_consumed(fresh, kind):
    with fresh() as source:
        first = [source.read(10.0) for _ in range(100)]
    with fresh(first[-1].id) as source:
        rest = read_all(source)
    assert [sample.seq for sample in rest] == list(range(100, N))
    np.testing.assert_array_equal(rest[0].values, kind.true[100].values)
    assert not any(sample.gap for sample in rest)


def test_a_source_of_another_identity_starts_from_the_beginning(fresh):
    other = SampleId(0, (boot_of(5) + 1) % 65536, 40)
    with fresh(other) as source:
        assert source.read(10.0).seq == 0


def test_closing_twice_is_fine_and_reading_afterwards_is_not(fresh):
    source = fresh()
    source.open()
    source.close()
    source.close()
    with pytest.raises(SourceLost):
        source.read(0.0)


def test_what_is_safe_can_be_acknowledged_at_any_time(fresh):
    with fresh() as source:
        first = source.read(10.0)
        assert first.seq == 0
        source.acknowledge(1)
        samples = read_all(source)
        source.acknowledge(1 + len(samples))
    assert [sample.seq for sample in samples] == list(range(1, N))
    source.acknowledge(1 + len(samples))


@pytest.mark.parametrize(
    "url",
    [
        "serial:///dev/ttyNone9",
        "recording:none.npz",
        "tcp://no.such.host.invalid:1",
        "udp://192.0.2.1:7",
        "camera:none.mkv",
    ],
)
def test_a_missing_source_is_an_operator_fault_with_a_hint(url):
    with pytest.raises((SourceUnavailable, BadRecording)) as caught:
        make_source(url).open()
    assert caught.value.hint


# What only some of them can do


def test_a_live_board_gives_none_when_nothing_comes_in_time():
    with fake_board("--samples", "1", "--seed", "5") as path, make_source(f"serial:{path}") as source:
        assert not source.can_wait
        assert source.read(0.0) is None
        assert source.read(10.0).seq == 0


def test_a_simulated_board_can_wait_only_faster_than_real_time():
    waits = {speed: make_source(f"simulated:motor?speed={speed}").can_wait for speed in ("0.5", "1", "2", "max")}
    assert waits == {"0.5": False, "1": False, "2": True, "max": True}


def test_a_simulated_board_ends_with_its_source():
    source = make_source("simulated:motor?speed=max")
    source.open()
    pid = source.pid
    source.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_simulated_board_that_does_not_listen_is_killed(monkeypatch):
    monkeypatch.setattr("firmware_bridge.sources.simulated._END_WAIT_S", 0.1)
    source = make_source("simulated:motor?speed=max")
    source.open()
    pid = source.pid
    os.kill(pid, signal.SIGSTOP)
    source.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_simulated_board_that_cannot_start_is_an_unavailable_source(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # an interpreter without its library
    with pytest.raises(SourceUnavailable, match=r"did not start \(exit 1\)"):
        make_source("simulated:motor").open()


def test_a_board_that_dies_is_a_lost_source():
    with make_source("simulated:motor?speed=max") as source:
        os.kill(source.pid, signal.SIGKILL)
        with pytest.raises(SourceLost, match="the board is gone") as caught:
            read_all(source)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_simulated_run_ends_at_the_same_sample_however_often_it_is_resumed():
    with make_source("simulated:motor?speed=max&samples=50", after=[SampleId(0, boot_of(0), 49)]) as source:
        assert read_all(source) == []


def test_a_real_board_resumed_later_flags_the_gap_and_calls_it_absence_not_loss():
    after, board = [SampleId(0, boot_of(0), 9)], fake_board("--speed", "max", "--samples", "50", "--start", "20")
    with board as path, make_source(f"serial:{path}", after=after) as source:
        samples = read_all(source)
        assert source.counters["away"] == 10
    assert [sample.gap for sample in samples] == [True] + 29 * [False]


def test_a_board_that_says_no_hello_is_known_by_its_first_sample():
    sent = Sample(4, 1, 7, 0, np.arange(6, dtype=np.uint8).reshape(3, 2), label=1)
    with talking_line(encode_sample(sent)) as path, make_source(f"serial:{path}?wait=0.6") as source:
        assert source.schema == Schema(name="stream 4", dtype="uint8", shape=(3, 2))
        assert source.read(1.0).id == sent.id


SCHEMA = Schema(name="a", dtype="uint8", shape=(2,))


def hello(**streams):
    return encode_hello(Hello("d", "f", 1, {int(name[1:]): schema for name, schema in streams.items()}))


def board_sample(stream, seq, n=2):
    return encode_sample(Sample(stream, 1, seq, 0, np.ones(n, np.uint8)))


def test_frames_of_other_streams_and_other_shapes_are_counted_and_late_labels_handed_out():
    wire = hello(s1=SCHEMA, s2=SCHEMA) + board_sample(1, 0) + board_sample(2, 0) + board_sample(1, 1, n=3)
    wire += encode_label(Label(1, 1, 0, 5)) + encode_label(Label(2, 1, 0, 5)) + board_sample(1, 2)
    with talking_line(wire) as path, make_source(f"serial:{path}") as source:
        items = [source.read(1.0) for _ in range(3)]
        assert [type(item) for item in items] == [Sample, Label, Sample]
        assert [item.seq for item in items] == [0, 0, 2]
        assert {name: count for name, count in source.counters.items() if count} == {
            "schema": 1,
            "other_stream": 2,
            "wire_lost": 1,
        }
        assert items[2].gap


def test_samples_missing_before_the_end_are_counted_as_lost():
    wire = hello(s1=SCHEMA) + board_sample(1, 0) + encode_control(Control(1, 1, 4, CTRL_END))
    with talking_line(wire) as path, make_source(f"serial:{path}") as source:
        assert len(read_all(source)) == 1
        assert source.counters["wire_lost"] == 3


def test_the_stream_can_be_chosen_and_must_exist():
    two = hello(s1=SCHEMA, s2=SCHEMA)
    wire = two + board_sample(1, 0) + board_sample(2, 9)
    with talking_line(wire) as path, make_source(f"serial:{path}?stream=2") as source:
        assert source.read(1.0).id == (2, 1, 9)
    with talking_line(two) as path, pytest.raises(SourceUnavailable, match="no stream 3") as caught:
        make_source(f"serial:{path}?stream=3").open()
    assert caught.value.hint == "it has: 1, 2"


def test_a_hello_may_be_repeated_but_not_changed():
    scaled = Schema(name="a", dtype="uint8", shape=(2,), scale=2.0)
    wire = hello(s1=SCHEMA) + board_sample(1, 0) + hello(s1=SCHEMA) + board_sample(1, 1) + hello(s1=scaled)
    with talking_line(wire) as path, pytest.raises(SourceLost, match="another schema"), make_source(f"serial:{path}"):
        pass


def test_a_silent_line_is_told_from_a_wrong_baud_rate():
    with talking_line(b"") as path, pytest.raises(SourceUnavailable, match=r"nothing came in 0\.2 s") as caught:
        make_source(f"serial:{path}?wait=0.2").open()
    assert "powered" in caught.value.hint
    noise = bytes(range(1, 200)) + b"\0"
    with talking_line(noise) as path, pytest.raises(SourceUnavailable, match="no frame") as caught:
        make_source(f"serial:{path}?wait=0.2").open()
    assert caught.value.hint == "is 115200 the board's baud rate? set it with ?baud=…"


def test_a_busy_port_and_a_thing_that_is_no_port_are_named():
    busy = pytest.raises(SourceUnavailable, match="another program uses it")
    with fake_board("--seed", "5") as path, make_source(f"serial:{path}"), busy:
        make_source(f"serial:{path}").open()
    with pytest.raises(SourceUnavailable, match="cannot be opened as a serial port"):
        make_source("serial:///dev/null").open()


def test_missing_permission_leads_to_the_dialout_group():
    error = unavailable("/dev/ttyUSB0", PermissionError(13, "Permission denied"))
    assert str(error) == "/dev/ttyUSB0: permission denied"
    assert "dialout" in error.hint
