"""The board's side in C: compiled with sanitizers, held against the vectors, and talked to over a real terminal."""

from __future__ import annotations

import json
import os
import select
import shutil
import struct
import subprocess
import time
import tty
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cobs import cobs

from firmware_bridge.auth import Key, board_key, host_key
from firmware_bridge.decoder import BodyDecoder
from firmware_bridge.frame import (
    CTRL_AGREE,
    CTRL_BEFORE,
    CTRL_END,
    CTRL_NEXT,
    CTRL_SAY_HELLO,
    Ack,
    Control,
    Event,
    FrameDecoder,
    Stats,
    Time,
    agreement,
    encode,
)
from firmware_bridge.hello import Hello
from firmware_bridge.sample import Label, Sample
from tests.test_wire_vectors import SECRET, VECTORS

ROOT = Path(__file__).parent.parent
MCU = ROOT / "firmware_bridge" / "mcu"
CC = shutil.which("cc")
CXX = shutil.which("c++")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
SANITIZED = [*STRICT, "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
IMPLEMENTATION = '#define EDGE_FRAME_IMPLEMENTATION\n#include "edge_frame.h"\n'
# Nothing in what these look like is wrong to a board: it knows no NaN, and the host's own tag is the one it wants.
FINE_FOR_A_BOARD = ("nonfinite: NaN", "auth: the host's own frame thrown back")

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler")


def compiled(folder: Path, source: Path, *flags: str, include: Path = MCU) -> Path:
    program = folder / source.stem
    command = [str(CC), *flags, f"-I{include}", "-o", str(program), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("c"), ROOT / "tests" / "edge_frame_harness.c", *SANITIZED)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("c"), MCU / "example_board.c", *SANITIZED, "-DEDGE_FRAME_AUTH")


def obey(program: Path, *commands: str) -> list[str]:
    done = subprocess.run([str(program)], input="\n".join(commands) + "\n", capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


# Against the vectors


def begin(vector: dict[str, Any]) -> str:
    return f"begin {vector['header']['boot']} {vector['seed']} {VECTORS['key'] if vector['tagged'] else '-'}"


def encoding(vector: dict[str, Any]) -> str:
    """The harness's command that must give this vector's line."""
    head, event = vector["header"], vector["event"]
    at = head["t_us"]
    if event["kind"] == "Sample":
        shape = " ".join(map(str, head["shape"]))
        label = -1 if event["label"] is None else event["label"]
        return f"sample {head['stream']} {at} {head['dtype']} {label} {head['payload']} {head['ndim']} {shape}"
    if event["kind"] == "Label":
        return f"label {head['stream']} {head['seq']} {at} {event['label']} {event['source']} {event['confidence']}"
    if event["kind"] == "Stats":
        return f"stats {at} " + " ".join(str(event[n]) for n in ("generated", "dropped", "sent", "received", "crc"))
    if event["kind"] == "Control":
        return {
            CTRL_END: f"end {head['stream']} {at}",  # the number is the stream's own
            CTRL_NEXT: f"next {head['stream']} {at}",
            CTRL_BEFORE: f"before {head['stream']} {head['seq']} {at}",
        }.get(event["code"], f"control {head['stream']} {head['seq']} {at} {event['code']}")
    return {
        "Hello": f"hello {at}",
        "Time": f"time {at} {event.get('host_us')} {event.get('board_us')}",
        "Log": f"log {at} {head['payload']}",
        "Ack": f"ack {head['stream']} {head['seq']} {at}",
    }[event["kind"]]


def encoded(program: Path, vectors: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """By name: what the C side wrote, and what it should have."""
    commands = []
    for vector in vectors:
        head = vector["header"]
        dropped = "sample 0 1 1 -1 00 1 0" if head["cflags"] & 4 else "seq 0 0"  # a shape that cannot be sent
        commands += [begin(vector), dropped, f"seq {head['stream']} {head['seq']}", encoding(vector)]
    answers = obey(program, *commands)[3::4]
    # A HELLO has one more zero in front of it, which ends what was on the line before.
    return {v["name"]: (answer.removeprefix("00"), v["line"]) for v, answer in zip(vectors, answers, strict=True)}


def from_the_board() -> list[dict[str, Any]]:
    """All that ef_* can send: a board has no tag of a host."""
    return [vector for vector in VECTORS["frames"] if not (vector["tagged"] and vector["sender"] == "host")]


def test_the_board_writes_every_vector_byte_by_byte(harness: Path) -> None:
    for name, (wrote, should) in encoded(harness, from_the_board()).items():
        assert wrote == should, name


def test_the_board_reads_every_vector(harness: Path) -> None:
    for vector in VECTORS["frames"]:
        head = vector["header"]
        _, received, noted = obey(harness, begin(vector), f"receive {vector['line']}", "noted")
        shape = "x".join(map(str, head["shape"])) or "-"
        numbers = [head[name] for name in ("type", "cflags", "stream", "boot", "seq", "t_us", "dtype")]
        label = -1 if head["label"] is None else head["label"]
        fields = f"{' '.join(map(str, numbers))} {shape} {label} {head['payload']}; "
        if vector["tagged"] and vector["sender"] == "board":  # its own frames thrown back at it
            assert received == "answers ", vector["name"]
            assert noted.endswith("received 0 crc 1")
        else:
            assert received.startswith(fields), vector["name"]
            assert noted.endswith("received 1 crc 0")


def test_the_board_refuses_every_fault(harness: Path) -> None:
    for fault in VECTORS["faults"]:
        if fault["name"] in FINE_FOR_A_BOARD:
            continue
        key = VECTORS["key"] if fault["with_key"] else "-"
        _, received, noted = obey(harness, f"begin 513 0 {key}", f"receive {fault['line']}", "noted")
        assert (received, noted.partition(" received")[2]) == ("answers ", " 0 crc 1"), fault["name"]


@pytest.mark.parametrize(
    ("right", "broken"),
    [
        ("link->run == 255", "link->run == 254"),
        ("ef__raw(link, 1);", "ef__raw(link, 0);"),
        ("0x5C : 0x36", "0x36 : 0x5C"),
        ("= ~ef__seed(link, head->type)", "= ~(uint32_t)0"),
        ("link->overrun[stream] ? EF__OVERRUN : 0", "0"),
    ],
)
def test_the_vectors_notice_a_board_that_is_broken(tmp_path: Path, right: str, broken: str) -> None:
    text = (MCU / "edge_frame.h").read_text(encoding="utf-8")
    assert text.count(right) == 1
    (tmp_path / "edge_frame.h").write_text(text.replace(right, broken), encoding="utf-8")
    program = compiled(tmp_path, ROOT / "tests" / "edge_frame_harness.c", "-std=c99", include=tmp_path)
    assert any(wrote != should for wrote, should in encoded(program, from_the_board()).values())


# What a board does with what it hears


def told(harness: Path, *lines: bytes, key: str = "-") -> list[str]:
    """The harness's answers, the last is what these lines changed."""
    commands = [f"receive {line.hex()}" for line in lines]
    return obey(harness, f"begin 513 0 {key}", *commands, "noted")[1:]


def test_the_host_is_answered_agreed_with_and_believed(harness: Path) -> None:
    agree = encode(Control(0, 513, VECTORS["seed"], CTRL_AGREE))
    *_, answers, _, noted = told(
        harness,
        encode(Control(0, 0, 0, CTRL_SAY_HELLO)),
        agree,
        encode(Time(0, 513, 77, 0)),
        encode(Ack(0, 513, 9)),
    )
    assert noted == f"asked 1 seed {VECTORS['seed']} safe 10 received 4 crc 0"
    (time_of_board,) = FrameDecoder().feed(bytes.fromhex(answers.partition("answers ")[2]))
    assert time_of_board == Time(0, 513, 77, 4242)


def test_another_schema_and_another_boot_are_not_believed(harness: Path) -> None:
    agree = encode(Control(0, 513, VECTORS["seed"], CTRL_AGREE))
    other = encode(Control(0, 513, VECTORS["seed"] ^ 1, CTRL_AGREE))
    *_, noted = told(harness, agree, other, encode(Ack(0, 512, 9)))
    assert noted == "asked 0 seed 0 safe 0 received 3 crc 0"


def test_with_a_key_only_tags_count_and_none_counts_twice(harness: Path) -> None:
    key = host_key(SECRET)
    first, second = (encode(Ack(0, 513, seq), time_us=100 + seq, key=key) for seq in (5, 6))
    forged = encode(Ack(0, 513, 99), time_us=2**63, key=host_key(b"another key, but as long"))
    untagged, old_boot = encode(Ack(0, 513, 98)), encode(Ack(0, 512, 97), time_us=10**6, key=key)
    *_, noted = told(harness, first, forged, untagged, old_boot, second, first, second, key=VECTORS["key"])
    assert noted == "asked 0 seed 0 safe 7 received 2 crc 5"  # the forged one did not move the floor: second came
    *_, noted = told(harness, encode(Control(0, 0, 0, CTRL_SAY_HELLO)), key=VECTORS["key"])
    assert noted.startswith("asked 1")


def test_every_damaged_byte_is_noticed_by_the_board(harness: Path) -> None:
    rng = np.random.default_rng(0)
    for vector in VECTORS["frames"]:
        if vector["tagged"] or len(vector["line"]) > 400:
            continue
        line, commands = bytearray.fromhex(vector["line"]), [f"begin {vector['header']['boot']} {vector['seed']} -"]
        for at in range(len(line) - 1):
            damaged = bytearray(line)
            damaged[at] ^= int(rng.integers(1, 256))
            commands.append(f"receive {damaged.hex()}00")
        *received, noted = obey(harness, *commands, "noted")[1:]
        assert all(answer == "answers " for answer in received), vector["name"]
        assert " received 0 " in noted


def test_both_sides_take_and_refuse_the_same_of_what_has_a_right_crc(harness: Path) -> None:
    """Headers with wrong fields, the CRC made right: each is a frame to both, or to neither."""
    rng = np.random.default_rng(5)
    bodies = [bytes.fromhex(v["body"])[:-4] for v in VECTORS["frames"] if len(v["body"]) < 400 and not v["seed"]]
    lines, taken = [], []
    for _ in range(3000):
        content = bytearray(bodies[rng.integers(len(bodies))])
        for at in rng.integers(0, min(len(content), 30), rng.integers(1, 4)):
            content[at] = rng.choice([0, 1, 2, 3, 8, 255, content[at] ^ 1])
        body = bytes(content) + struct.pack("<I", zlib.crc32(content))
        lines.append(cobs.encode(body) + b"\0")
        decoder = BodyDecoder()
        event = decoder.decode_datagram(body)
        # Values and JSON are the host's to judge: to a board these are frames.
        no_hello = body[1] == 0 and body[20:22] == b"\1\1" and decoder.counters["schema"]
        taken.append(event is not None or bool(no_hello or decoder.counters["nonfinite"]))
    commands = [command for line in lines for command in ("begin 513 0 -", f"receive {line.hex()}")]
    answers = obey(harness, *commands)[1::2]
    took = [not answer.startswith("answers") for answer in answers]
    assert took == taken
    assert 300 < sum(took) < 2700


def test_noise_harms_nothing(harness: Path) -> None:
    assert obey(harness, "begin 1 0 -", "noise 1 3000000")[1] == "0"
    assert obey(harness, f"begin 1 0 {VECTORS['key']}", "noise 2 1000000")[1] == "0"


def test_generated_is_received_and_dropped_when_the_fifo_is_full(harness: Path) -> None:
    _, counts, wire, _, after = obey(harness, "begin 1 0 -", "fill 500", "take", "fill 1", "take")
    generated, dropped, overrun = map(int, counts.split())
    samples = FrameDecoder().feed(bytes.fromhex(wire) + bytes.fromhex(after))
    assert (generated, overrun) == (500, 1)
    assert len(samples) - 1 + dropped == 500
    assert 0 < dropped < 500
    *before, last = samples
    assert [event.seq for event in before if isinstance(event, Sample)] == list(range(500 - dropped))
    assert isinstance(last, Sample)
    assert (last.seq, last.gap) == (500, True)


def test_with_a_key_what_is_said_in_one_microsecond_is_no_replay(harness: Path) -> None:
    """The host takes of each type only what is later than the last: the header sees to that, whatever t_us it gets."""
    _, *lines, sample = obey(
        harness,
        f"begin 1 0 {VECTORS['key']}",
        "next 0 5",
        "before 0 70 5",
        "end 0 5",
        "next 0 1",
        "sample 0 5 1 -1 07 0",
    )
    decoder = FrameDecoder(board_key(SECRET))
    said = [event for line in lines for event in decoder.feed(bytes.fromhex(line))]
    assert [event.code for event in said if isinstance(event, Control)] == [CTRL_NEXT, CTRL_BEFORE, CTRL_END, CTRL_NEXT]
    (taken,) = decoder.feed(bytes.fromhex(sample))
    assert isinstance(taken, Sample)
    assert taken.time_us == 5
    assert not any(decoder.counters.values())


def test_no_next_of_a_stream_that_is_none(harness: Path) -> None:
    assert obey(harness, "begin 1 0 -", "next 4 5", "end 4 5")[1:] == ["-", "-"]


# Over a real terminal


class Far:
    """The host's end of a terminal: speaks and hears, with a key or without."""

    def __init__(self, line: int, secret: bytes | None = None) -> None:
        self._line = line
        self._key: Key | None = None if secret is None else host_key(secret)
        self.decoder = FrameDecoder(None if secret is None else board_key(secret))
        self.events: list[Event] = []

    def say(self, message: Event, *, tagged: bool = True) -> None:
        os.write(self._line, encode(message, time_us=time.time_ns() // 1000, key=self._key if tagged else None))

    def hear_until(self, enough: Callable[[list[Event]], bool]) -> list[Event]:
        deadline = time.monotonic() + 20
        while not enough(self.events) and time.monotonic() < deadline:
            if select.select([self._line], [], [], 0.2)[0]:
                self.events += self.decoder.feed(os.read(self._line, 4096))
        assert enough(self.events), (self.events[-3:], self.decoder.counters)
        return self.events

    def greet(self) -> Hello:
        """Ask for HELLO, agree, set the clock; the HELLO."""
        self.say(Control(0, 0, 0, CTRL_SAY_HELLO), tagged=False)
        (hello, *_) = self.hear_until(lambda events: any(isinstance(event, Hello) for event in events))
        assert isinstance(hello, Hello)
        self.say(agreement(hello))
        self.say(Time(0, hello.boot, 123, 0))
        return hello


def ended(events: list[Event]) -> bool:
    return any(isinstance(event, Control) and event.code == CTRL_END for event in events)


@contextmanager
def running(program: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([str(program), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as board:
        try:
            yield board
        finally:
            board.kill()


def told_at_the_end(board: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = board.communicate(timeout=20)
    assert (board.returncode, err) == (0, ""), err  # a sanitizer speaks there
    return dict(json.loads(out.splitlines()[-1]))


@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "with a key"])
def test_both_sides_understand_each_other_over_a_terminal(board: Path, secret: bytes | None) -> None:
    keyed = () if secret is None else ("--key", secret.hex())
    with running(board, "--samples", "60", "--rate", "200", "--boot", "9", *keyed) as process:
        assert process.stdout is not None
        line = os.open(process.stdout.readline().strip(), os.O_RDWR | os.O_NOCTTY)
        tty.setraw(line)
        far = Far(line, secret)
        hello = far.greet()
        events = far.hear_until(ended)
        far.say(Ack(0, 9, 59))
        far.hear_until(
            lambda events: any(isinstance(e, Stats) and e.generated == 60 and e.received == 4 for e in events)
        )
        os.close(line)
        counted = told_at_the_end(process)
    assert (hello.device, hello.boot, hello.streams[0].shape) == ("example board", 9, (32, 3))
    samples = [event for event in events if isinstance(event, Sample)]
    assert [sample.seq for sample in samples] == list(range(60))
    assert {sample.values.shape for sample in samples} == {(32, 3)}
    assert all(sample.label == (None if sample.seq % 10 == 9 else sample.seq // 50) for sample in samples)
    assert [e.id.seq for e in events if isinstance(e, Label)] == [9, 19, 29, 39, 49, 59]
    assert [e.host_us for e in events if isinstance(e, Time)] == [123]
    assert far.decoder.agreed
    assert not any(far.decoder.counters.values())
    assert counted == counted | {"generated": 60, "dropped": 0, "received": 4, "crc": 0, "safe": 60, "agreed": True}


def test_the_board_takes_a_port_that_is_there(board: Path) -> None:
    near, far_end = os.openpty()
    tty.setraw(far_end)
    with running(board, "--samples", "5", "--rate", "0", os.ttyname(far_end)) as process:
        far = Far(near)
        far.greet()
        events = far.hear_until(ended)
        os.close(near)
        os.close(far_end)
        assert told_at_the_end(process)["generated"] == 5
    assert len([event for event in events if isinstance(event, Sample)]) == 5


def test_forged_frames_and_noise_change_nothing_of_a_board_that_runs(board: Path) -> None:
    with running(board, "--samples", "20", "--rate", "200", "--boot", "9", "--key", SECRET.hex()) as process:
        assert process.stdout is not None
        line = os.open(process.stdout.readline().strip(), os.O_RDWR | os.O_NOCTTY)
        tty.setraw(line)
        far = Far(line, SECRET)
        far.greet()
        os.write(line, b"\0" + np.random.default_rng(1).integers(0, 256, 2000, dtype=np.uint8).tobytes() + b"\0")
        far.say(Ack(0, 9, 10**6), tagged=False)
        far.hear_until(ended)
        os.close(line)
        counted = told_at_the_end(process)
    assert (counted["safe"], counted["received"], counted["agreed"]) == (0, 3, True)
    assert counted["crc"] > 1


# Size


def lines_of(*command: str | Path) -> list[str]:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("size") is None, reason="no binutils")
@pytest.mark.parametrize(("tags", "ram"), [([], 300), (["-DEDGE_FRAME_AUTH"], 500)])
def test_code_and_ram_are_as_small_as_said(tmp_path: Path, tags: list[str], ram: int) -> None:
    """text of `size`: code and tables. A microcontroller's has no unwind tables; see docs/WIRE.md for its figures."""
    source, made = tmp_path / "edge.c", tmp_path / "edge.o"
    source.write_text(IMPLEMENTATION + "const char link_size[sizeof(ef_link)] = {0};\n", encoding="utf-8")
    flags = [*STRICT, "-Os", "-fno-asynchronous-unwind-tables", *tags, f"-I{MCU}"]
    lines_of(str(CC), *flags, "-c", "-o", made, source)
    text, data, bss = map(int, lines_of("size", made)[1].split()[:3])
    link_size = next(int(line.split()[1], 16) for line in lines_of("nm", "-S", made) if line.endswith("link_size"))
    assert text - link_size < 4096
    assert (data, bss) == (0, 0)
    assert link_size < ram
    assert {line.split()[-1] for line in lines_of("nm", "-u", made)} <= {"memcpy"}


CORTEX_M = [("arm-none-eabi-", ["-ffreestanding", f"-mcpu={cpu}", "-mthumb"]) for cpu in ("cortex-m0", "cortex-m4")]
HERE = [("", ["-fno-asynchronous-unwind-tables"])]
TARGETS = HERE + (CORTEX_M if shutil.which("arm-none-eabi-gcc") else [])  # no need to have that compiler


@pytest.mark.parametrize("tags", [[], ["-DEDGE_FRAME_AUTH"]], ids=["plain", "tags"])
@pytest.mark.parametrize(("prefix", "options"), TARGETS)
def test_the_code_is_below_4096_bytes(tmp_path: Path, prefix: str, options: list[str], tags: list[str]) -> None:
    source, made = tmp_path / "edge.c", tmp_path / "edge.o"
    source.write_text(IMPLEMENTATION, encoding="utf-8")
    (tmp_path / "string.h").write_text("#include <stddef.h>\nvoid *memcpy(void *, const void *, size_t);\n")
    lines_of(f"{prefix}gcc", *STRICT, "-Os", *options, *tags, f"-I{MCU}", f"-I{tmp_path}", "-c", "-o", made, source)
    assert int(lines_of(f"{prefix}size", made)[1].split()[0]) < 4096


@pytest.mark.skipif(CXX is None, reason="no C++ compiler")
def test_the_arduino_sketch_is_cpp_that_compiles(tmp_path: Path) -> None:
    """Against the few calls of Arduino's core that it makes; the rest of that core is not here."""
    (tmp_path / "Arduino.h").write_text(
        "#include <stddef.h>\n#include <stdint.h>\nenum { A0, A1, A2, A3, A4, A5 };\n"
        "unsigned long micros(); int analogRead(uint8_t); void randomSeed(unsigned long); long random(long, long);\n"
        "struct Port { void begin(unsigned long); int available(); int read(); int availableForWrite();\n"
        "  size_t write(const uint8_t *, size_t); };\nextern Port Serial;\n",
        encoding="utf-8",
    )
    (tmp_path / "EEPROM.h").write_text(
        "struct Memory { template <class T> T &get(int, T &); template <class T> const T &put(int, const T &); };\n"
        "extern Memory EEPROM;\n",
        encoding="utf-8",
    )
    sketch = MCU / "arduino" / "arduino.ino"
    flags = ["-x", "c++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-include", "Arduino.h", f"-I{tmp_path}"]
    lines_of(str(CXX), *flags, f"-I{MCU}", "-c", "-o", tmp_path / "sketch.o", sketch)
