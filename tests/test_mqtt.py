"""MQTT against a real broker: what is not acknowledged comes again, once; and a broker may go as often as it likes."""

import json
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest
from brokers import broker
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.keeping.cursor import Cursor
from firmware_bridge.auth import board_key
from firmware_bridge.errors import BadSourceUrl, EndOfSource, SourceLost, SourceUnavailable
from firmware_bridge.hello import Hello, hello_json
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Label, Sample, SampleId, Schema
from firmware_bridge.sequence import REACH
from firmware_bridge.sources.deliveries import GONE, Deliveries
from firmware_bridge.sources.mqtt import Mqtt
from firmware_bridge.sources.mqtt_payload import MAX_JSON_BYTES, PayloadDecoder
from firmware_bridge.wire import CTRL_END, Control, encode_body

HELLO = hello_json(Hello("d", "f", 7, {0: Schema(name="a", dtype="int16", shape=(2,))}))
QUIET_S = 0.25  # nothing more comes
N_LABELS = 1500  # half as much again as the broker may send unacknowledged
PATIENCE_S = 20.0


def sample(seq, boot=7, **more):
    value = seq % 30_000
    return json.dumps({"values": [value, -value], "boot": boot, "seq": seq, "time_us": 10 * seq, **more})


def samples(*seqs):
    return [sample(seq) for seq in seqs]


def introduce(mosquitto, query=""):
    """A URL whose messages the broker keeps from now on, and whose HELLO it retains."""
    mosquitto.send("motor", [HELLO], retain=True)
    url = mosquitto.url("motor", query)
    with make_source(url):
        return url


def take(source, n):
    """The next n items."""
    items = []
    for _ in range(n):
        item = next((item for _ in range(60) if (item := source.read(0.1)) is not None), None)
        assert item is not None, f"{len(items)} of {n} came; {source.said}; {source.counters}"
        items.append(item)
    return items


def take_all(source):
    """What comes until nothing does."""
    items = []
    while (item := source.read(QUIET_S)) is not None:
        items.append(item)
    return items


def seqs(items):
    return [item.seq for item in items]


def wait_until(source, begins, ends=""):
    """Read nothing until the source says that."""
    deadline = time.monotonic() + PATIENCE_S
    while not (source.said.startswith(begins) and source.said.endswith(ends)):
        assert source.read(0.05) is None
        assert time.monotonic() < deadline, source.said


def is_quiet(source):
    return source.read(QUIET_S) is None


def faults(source):
    return {name: count for name, count in source.counters.items() if count}


@pytest.fixture
def mosquitto(tmp_path):
    with broker(tmp_path) as found:
        yield found


@pytest.fixture
def stream(mosquitto):
    """A source that was opened by a HELLO, and its broker."""
    with make_source(introduce(mosquitto)) as source:
        yield mosquitto, source


def test_values_labels_and_times_come_as_they_were_announced(stream):
    mosquitto, source = stream
    assert source.schema == Schema(name="a", dtype="int16", shape=(2,))
    sent = Sample(0, 7, 1, 5, np.array([300, -300], np.int16), label=2)
    mosquitto.send("motor", [sample(0, label=4), encode_body(sent)])
    first, second = take(source, 2)
    assert (first.id, first.time_us, first.label, first.values.dtype) == ((0, 7, 0), 0, 4, np.int16)
    assert not first.values.flags.writeable
    np.testing.assert_array_equal(first.values, [0, 0])
    assert (second.id, second.time_us, second.label) == (sent.id, 5, 2)
    np.testing.assert_array_equal(second.values, sent.values)
    assert faults(source) == {}


READER = """
import sys
from firmware_bridge.registry import make_source
source = make_source(sys.argv[1])
source.open()
items = []
while len(items) < 10:
    item = source.read(0.1)
    if item is not None:
        items.append(item)
        print(item.seq, flush=True)
        if len(items) <= int(sys.argv[2]):
            source.acknowledge(len(items))
while True:
    source.read(0.1)
    print("safe", flush=True)
"""


def killed_reader(url, n_safe):
    """What a process read before it was killed; it had so many of it safe."""
    command = [sys.executable, "-c", READER, url, str(n_safe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline().strip() for _ in range(12)]
        process.send_signal(signal.SIGKILL)
    return [int(line) for line in lines if line.isdigit()]


@pytest.mark.parametrize(("n_safe", "again"), [(0, range(10)), (4, range(4, 10)), (10, range(0))])
def test_who_is_killed_gets_again_what_was_not_safe_and_nothing_else(mosquitto, n_safe, again):
    """The last row is a reader that acknowledges at once: it loses all ten, and this test would see it."""
    url = introduce(mosquitto, "client=one")
    mosquitto.send("motor", samples(*range(10)))
    assert killed_reader(url, n_safe) == list(range(10))
    mosquitto.send("motor", samples(10))
    with make_source(url) as source:
        assert seqs(take(source, len(again) + 1)) == [*again, 10]
        assert is_quiet(source)


def test_what_was_learnt_and_not_yet_acknowledged_is_dropped_by_its_id(mosquitto):
    url = introduce(mosquitto, "client=one")
    mosquitto.send("motor", samples(*range(10)))
    killed_reader(url, 4)
    with make_source(url, after=[SampleId(0, 7, 6)]) as source:
        assert seqs(take(source, 3)) == [7, 8, 9]
        assert faults(source) == {"duplicate": 3}
        source.acknowledge(3)
    with make_source(url) as source:
        assert is_quiet(source)


# A board that restarts while messages of its old boot may come again

OLD, NEW = 7, 8
SEAM = [(OLD, 0), (NEW, 0), (OLD, 1), (NEW, 1), (NEW, 2)]


def across_a_restart(*places):
    return [sample(seq, boot) for boot, seq in places]


def places(items):
    return [(item.boot, item.seq) for item in items]


@pytest.mark.parametrize("n_learnt", [2, 3, 5])
def test_who_is_killed_behind_a_restart_of_the_board_gets_nothing_twice(mosquitto, n_learnt):
    """All of it comes again, and the last sample that was learnt may be of either boot."""
    url = introduce(mosquitto, "client=one")
    mosquitto.send("motor", across_a_restart(*SEAM, *((NEW, seq) for seq in range(3, 8))))
    assert len(killed_reader(url, 0)) == 10
    cursor = Cursor()
    for boot, seq in SEAM[:n_learnt]:
        cursor.take(SampleId(0, boot, seq))
    with make_source(url, after=list(cursor.positions.values())) as source:
        expected = [*SEAM[n_learnt:], *((NEW, seq) for seq in range(3, 8))]
        assert places(take(source, len(expected))) == expected
        assert is_quiet(source)
        assert source.counters["duplicate"] == n_learnt
        source.acknowledge(len(expected))
    with make_source(url) as source:
        assert is_quiet(source)


def test_what_its_sender_sends_again_over_a_restart_of_the_board_is_known(stream):
    mosquitto, source = stream
    mosquitto.send("motor", across_a_restart(*SEAM))
    assert places(take(source, 5)) == SEAM
    restarts = source.counters["restarts"]
    mosquitto.kill()  # which forgets them, and their sender does not
    mosquitto.start()
    wait_until(source, "back")
    mosquitto.send("motor", across_a_restart(*SEAM, (NEW, 3)))
    assert places(take(source, 1)) == [(NEW, 3)]
    assert source.counters["duplicate"] == 5
    assert source.counters["restarts"] == restarts


def test_a_board_may_use_the_number_of_a_boot_once_more(stream):
    mosquitto, source = stream
    sent = [(OLD, REACH), (OLD, REACH + 1), (NEW, 0), (OLD, 0), (OLD, 1)]  # within REACH they would be known
    for n_safe, place in enumerate(sent, 1):
        mosquitto.send("motor", across_a_restart(place))
        assert places(take(source, 1)) == [place]
        source.acknowledge(n_safe)
    assert faults(source) == {"restarts": 2}


def test_a_sender_that_does_not_count_is_counted_and_what_comes_again_is_known(stream):
    mosquitto, source = stream
    mosquitto.send("motor", ['{"values": [1, 2]}', '{"values": [3, 4]}'])
    assert seqs(take(source, 2)) == [0, 1]
    mosquitto.stop()
    mosquitto.start()
    mosquitto.send("motor", ['{"values": [5, 6]}'])
    assert seqs(take(source, 1)) == [2]
    assert faults(source) == {"duplicate": 2, "reconnects": 1}


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_broker_may_be_killed_again_and_again(stream):
    mosquitto, source = stream
    before = None
    for turn in range(3):
        mosquitto.send("motor", samples(3 * turn, 3 * turn + 1, 3 * turn + 2))
        assert seqs(take(source, 3)) == [3 * turn, 3 * turn + 1, 3 * turn + 2]
        source.acknowledge(3 * turn + 3)
        mosquitto.kill()
        wait_until(source, "gone: mqtt://127.0.0.1")
        mosquitto.start()
        wait_until(source, "back after")
        before = before or (descriptors(), threading.active_count())
    assert (descriptors(), threading.active_count()) == before
    assert source.counters["reconnects"] == 3
    assert source.counters["wire_lost"] == source.counters["duplicate"] == 0


def test_a_broker_that_restarts_in_the_middle_costs_nothing_and_doubles_nothing(stream):
    mosquitto, source = stream
    mosquitto.send("motor", samples(*range(20)))
    got = take(source, 12)
    source.acknowledge(5)
    got += take(source, 1)
    mosquitto.stop()
    source.acknowledge(8)  # while nobody listens
    mosquitto.start()
    mosquitto.send("motor", samples(20, 21))
    got += take(source, 9)
    assert seqs(got) == list(range(22))
    assert faults(source)["duplicate"] >= 4
    source.acknowledge(len(got))
    assert is_quiet(source)
    mosquitto.send("motor", samples(22))
    assert seqs(take(source, 1)) == [22]


def test_a_broker_that_forgot_its_sessions_is_not_told_of_the_old_ones(stream):
    """Packet ids begin anew with the session: an old one acknowledged now would be another message's."""
    mosquitto, source = stream
    mosquitto.send("motor", samples(0, 1, 2))
    assert seqs(take(source, 3)) == [0, 1, 2]
    mosquitto.kill()
    wait_until(source, "gone")
    mosquitto.start()
    wait_until(source, "back")
    mosquitto.send("motor", samples(3, 4, 5))
    assert seqs(take(source, 3)) == [3, 4, 5]
    source.acknowledge(3)
    assert is_quiet(source)
    source.close()
    mosquitto.send("motor", [HELLO], retain=True)
    with make_source(mosquitto.url("motor")) as again:
        assert seqs(take(again, 3)) == [3, 4, 5]


def test_what_its_sender_sends_again_is_not_acknowledged_before_it_is_safe(stream):
    """A broker that lost its memory has the sample from its sender once more, and we have it, but not on disk yet."""
    mosquitto, source = stream
    mosquitto.send("motor", samples(0))
    take(source, 1)
    mosquitto.kill()
    mosquitto.start()
    wait_until(source, "back")
    mosquitto.send("motor", samples(0))
    assert is_quiet(source)
    assert source.counters["duplicate"] == 1
    source.close()
    mosquitto.send("motor", [HELLO], retain=True)
    with make_source(mosquitto.url("motor")) as again:
        assert seqs(take(again, 1)) == [0]


def test_the_broker_waits_when_too_much_is_not_safe(mosquitto):
    url = introduce(mosquitto, "unacknowledged=5")
    mosquitto.send("motor", samples(*range(12)))
    with make_source(url) as source:
        got = take_all(source)
        assert 5 <= len(got) <= 6  # mosquitto 2.0 takes the limit for a lower one when it resumes a session
        source.acknowledge(3)
        got += take_all(source)
        assert seqs(got) in (list(range(8)), list(range(9)))
        assert source.can_wait


def test_labels_come_on_their_own_topic_and_are_safe_by_themselves(stream):
    mosquitto, source = stream
    mosquitto.send("motor", samples(0))
    mosquitto.send("motor/labels", ['{"boot": 7, "seq": 0, "label": 3, "confidence": 0.5}'])
    mosquitto.send("motor", [encode_body(Label(0, 7, 0, 2)), sample(1)])
    got = take(source, 4)
    assert [type(item) for item in got] == [Sample, Label, Label, Sample]
    assert got[1:3] == [Label(0, 7, 0, 3, confidence=0.5), Label(0, 7, 0, 2)]
    source.acknowledge(2)
    assert is_quiet(source)
    mosquitto.stop()
    mosquitto.start()
    assert is_quiet(source)
    mosquitto.send("motor", samples(2))
    assert seqs(take(source, 1)) == [2]
    assert faults(source) == {"duplicate": 2, "reconnects": 1}


def test_labels_without_a_sample_between_never_stall_the_topic(tmp_path):
    """More of them than the broker sends unacknowledged, and no sample by whose number they could be safe."""
    with broker(tmp_path, "allow_anonymous true", "max_queued_messages 0") as mosquitto:
        url = introduce(mosquitto)
        mosquitto.send("motor/labels", [f'{{"boot": 7, "seq": {seq}, "label": 1}}' for seq in range(N_LABELS)])
        with make_source(url) as source:
            for number in range(N_LABELS):
                assert seqs(take(source, 1)) == [number]
                source.acknowledge(number + 1)
        with make_source(url) as source:
            assert is_quiet(source)


def test_bad_messages_are_counted_and_do_not_come_again(stream):
    mosquitto, source = stream
    bad = [b"\x01garbage" * 9, "{", "[1]", '{"values": "a"}', '{"values": [1, 2, 3], "seq": 0}', '{"values": [NaN, 1]}']
    other = sample(0, stream=3)
    mosquitto.send("motor", [*bad, other, sample(0)])
    assert seqs(take(source, 1)) == [0]
    source.acknowledge(1)
    assert faults(source) == {"crc": 1, "json": 1, "schema": 3, "nonfinite": 1, "other_stream": 1}
    source.close()
    mosquitto.send("motor", samples(1))
    with make_source(mosquitto.url("motor")) as again:
        assert seqs(take(again, 1)) == [1]
        assert set(faults(again)) == set()


def test_a_retained_hello_is_known_and_a_retained_sample_is_too_old(mosquitto):
    mosquitto.send("motor", [HELLO], retain=True)
    mosquitto.send("motor/labels", ['{"boot": 7, "seq": 0, "label": 3}'], retain=True)
    with make_source(mosquitto.url("motor")) as source:
        mosquitto.send("motor", samples(1))
        assert seqs(take(source, 1)) == [1]
        assert faults(source) == {"retained": 1}


def test_without_a_session_nothing_is_kept_and_nothing_is_told(mosquitto):
    mosquitto.send("motor", [HELLO], retain=True)
    url = mosquitto.url("motor", "session=0&unacknowledged=2")
    with make_source(url) as source:
        assert not source.can_wait
        mosquitto.send("motor", samples(*range(10)))
        assert seqs(take(source, 10)) == list(range(10))
    mosquitto.send("motor", samples(10))
    with make_source(url) as source:
        assert is_quiet(source)


def make_session(mosquitto):
    """The broker keeps messages only for a client that it has seen."""
    with pytest.raises(SourceUnavailable, match=r"nothing came in 0\.01 s"):
        make_source(mosquitto.url("motor", "wait=0.01")).open()


def test_without_a_hello_the_first_sample_tells_the_schema(mosquitto):
    make_session(mosquitto)
    mosquitto.send("motor", [sample(0, stream=4), sample(1, stream=4)])
    with make_source(mosquitto.url("motor")) as source:
        assert source.schema == Schema(name="stream 4", dtype="float32", shape=(2,))
        assert seqs(take(source, 2)) == [0, 1]
        source.acknowledge(2)
    make_session(mosquitto)


def test_what_came_before_the_schema_was_known_is_understood_by_it_and_not_safe_yet(mosquitto):
    make_session(mosquitto)
    mosquitto.send("motor", [*samples(0, 1), "{", HELLO])
    with make_source(mosquitto.url("motor")) as source:
        assert source.schema.name == "a"
    mosquitto.send("motor", [HELLO], retain=True)
    with make_source(mosquitto.url("motor")) as source:
        got = take_all(source)
        assert (seqs(got), got[0].values.dtype, faults(source)) == ([0, 1], np.int16, {"json": 1})


def test_a_board_may_end_its_stream(stream):
    mosquitto, source = stream
    mosquitto.send("motor", [sample(0), encode_body(Control(0, 7, 3, CTRL_END))])
    assert seqs(take(source, 1)) == [0]
    with pytest.raises(EndOfSource):
        source.read(PATIENCE_S)
    assert faults(source) == {"wire_lost": 2}


def test_two_clients_that_quarrel_about_one_id_are_named(mosquitto):
    mosquitto.send("motor", [HELLO], retain=True)
    url = mosquitto.url("motor", "client=one")
    with make_source(url) as first, make_source(url):
        wait_until(first, "gone: ", "does another client use the id 'one'?")
        wait_until(first, "back after")


def test_a_broker_that_is_not_waited_for_is_a_lost_source(mosquitto):
    mosquitto.send("motor", [HELLO], retain=True)
    with make_source(mosquitto.url("motor", "reconnect=0")) as source:
        mosquitto.kill()
        with pytest.raises(SourceLost, match="the broker is gone"):
            source.read(PATIENCE_S)
        mosquitto.start()


def test_messages_that_are_no_samples_are_told_from_silence(mosquitto):
    make_session(mosquitto)
    mosquitto.send("motor", ["hello"])
    with pytest.raises(SourceUnavailable, match=r"messages came, but no sample \(1 length\)") as caught:
        make_source(mosquitto.url("motor", "wait=0.3")).open()
    assert "docs/WIRE.md" in caught.value.hint


def test_where_no_broker_is_that_is_said_with_a_hint():
    with pytest.raises(SourceUnavailable, match=r"mqtt://127\.0\.0\.1:1/motor: Connection refused") as caught:
        make_source("mqtt://127.0.0.1:1/motor").open()
    assert "mosquitto_sub" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mqtt://host", "a host and a topic"),
        ("mqtt:///topic", "a host and a topic"),
        ("mqtt://host:many/topic", "[Pp]ort"),
        ("mqtt://me:secret@host/topic", "user=NAME"),
        ("mqtt://host/motors/%2B", "one topic is one device"),
        ("mqtt://host/topic?password=secret", "must be @ and the path"),
        ("mqtt://host/topic?password=@file", "password needs user"),
        ("mqtt://host/topic?ca=file", "ca needs tls=1"),
        ("mqtt://host/topic?tls=yes", "must be 0 or 1"),
        ("mqtt://host/topic?unacknowledged=0", "from 1 to 65535"),
        ("mqtt://host/topic?key=00112233445566778899aabbccddeeff", "key: must be @ and the path of a file"),
        ("mqtt://host/topic?key=@/none", "key: cannot read the key: No such file"),
        ("mqtt://host/topic?key=@/dev/null", "key: a key has 16 to 64 bytes \\(got 0\\)"),
    ],
)
def test_a_bad_url_is_refused_before_anything_is_opened(url, message):
    with pytest.raises(BadSourceUrl, match=message) as caught:
        make_source(url)
    assert caught.value.hint


# Tags

SECRET = bytes(range(32))
HELLO_EVENT = Hello("d", "f", 7, {0: Schema(name="a", dtype="int16", shape=(2,))})


def signed(event, time_us=0, secret=SECRET):
    return encode_body(event, time_us=time_us, key=board_key(secret))


def signed_samples(*seqs):
    return [signed(Sample(0, 7, seq, 10 * seq, np.array([seq, -seq], np.int16))) for seq in seqs]


def introduce_with_key(mosquitto, tmp_path):
    """As introduce, and signed."""
    (tmp_path / "key").write_text(SECRET.hex())
    mosquitto.send("motor", [signed(HELLO_EVENT, 5)], retain=True)
    url = mosquitto.url("motor", f"client=one&key=@{tmp_path}/key")
    with make_source(url):
        return url


def resumed(mosquitto, **place):
    """The source of introduce_with_key, as a learner with that place resumes it."""
    return Mqtt(mosquitto.url("motor").removeprefix("mqtt://"), client="one", key=SECRET, **place)


def test_with_a_key_only_what_carries_its_tag_is_taken_and_once(mosquitto, tmp_path):
    with make_source(introduce_with_key(mosquitto, tmp_path)) as source:
        assert source.schema.name == "a"
        (mine,) = signed_samples(0)
        forged = signed(Sample(0, 7, 5, 0, np.zeros(2, np.int16)), secret=bytes(32))
        mosquitto.send("motor", [sample(0), HELLO, encode_body(Label(0, 7, 0, 1)), forged, mine, mine])
        mosquitto.send("motor", signed_samples(9), retain=True)  # it is a new one, and so no retained one
        assert seqs(take(source, 2)) == [0, 9]
        assert faults(source) == {"auth": 4, "replay": 1, "wire_lost": 8}


def test_a_retained_sample_does_not_raise_the_floor(mosquitto, tmp_path):
    url = introduce_with_key(mosquitto, tmp_path)
    mosquitto.send("motor/labels", signed_samples(9), retain=True)
    with make_source(url.replace("client=one&", "")) as source:
        mosquitto.send("motor", signed_samples(1))
        assert seqs(take(source, 1)) == [1]
        assert faults(source) == {"retained": 1}


def test_the_floor_of_a_learner_that_was_killed_refuses_what_it_had_and_nothing_else(mosquitto, tmp_path):
    url = introduce_with_key(mosquitto, tmp_path)
    mosquitto.send("motor", signed_samples(*range(10)))
    assert killed_reader(url, 4) == list(range(10))
    with resumed(mosquitto, after=[SampleId(0, 7, 6)], floor={"0:0": [7, 5], "1:0": [7, 6]}) as source:
        assert source.schema.name == "a"  # by a HELLO that is as old as the floor
        assert seqs(take(source, 3)) == [7, 8, 9]
        assert is_quiet(source)
        assert faults(source) == {"replay": 3}
    with make_source(url) as source:
        assert seqs(take(source, 3)) == [7, 8, 9]  # for nobody said that they are safe
        source.acknowledge(3)
    with make_source(url) as source:
        assert is_quiet(source)


def test_what_the_floor_refuses_is_not_acknowledged_before_the_first_of_it_is_safe(mosquitto, tmp_path):
    """A broker that lost its memory has the sample from its sender once more, and we have it, but not on disk yet."""
    url = introduce_with_key(mosquitto, tmp_path)
    with make_source(url) as source:
        mosquitto.send("motor", signed_samples(0))
        take(source, 1)
        mosquitto.kill()
        mosquitto.start()
        wait_until(source, "back")
        mosquitto.send("motor", signed_samples(0))
        assert is_quiet(source)
        assert source.counters["replay"] == 1
    mosquitto.send("motor", [signed(HELLO_EVENT, 5)], retain=True)
    with make_source(url) as again:
        assert seqs(take(again, 1)) == [0]


def test_the_floor_to_keep_with_a_sample_never_lies_above_the_label_behind_it(mosquitto, tmp_path):
    url = introduce_with_key(mosquitto, tmp_path)
    mosquitto.send("motor", [*signed_samples(0), signed(Label(0, 7, 0, 3), 50)])
    with make_source(url) as source:
        take(source, 2)
        floor = source.floor_at(1)
        assert "2:0" not in floor
    with resumed(mosquitto, after=[SampleId(0, 7, 0)], floor={**floor, "1:0": [7, 0]}) as source:
        assert take(source, 1) == [Label(0, 7, 0, 3)]
        heights = {"0:0": [7, 5], "1:0": [7, 0], "2:0": [7, 50]}
        assert source.floor_at(1) == {**heights, "key": board_key(SECRET).name}


@pytest.mark.parametrize(("query", "fault"), [("", "tagged"), ("key=@{}/key", "JSON"), ("key=@{}/other", "tagged")])
def test_a_key_that_is_not_the_senders_is_named_as_what_may_be_wrong(mosquitto, tmp_path, query, fault):
    (tmp_path / "key").write_text(SECRET.hex())
    (tmp_path / "other").write_text(bytes(32).hex())
    make_session(mosquitto)
    mosquitto.send("motor", signed_samples(0) if fault == "tagged" else samples(0))
    with pytest.raises(SourceUnavailable, match=r"messages came, but no sample \(1 auth\)") as caught:
        make_source(mosquitto.url("motor", f"wait=0.3&{query.format(tmp_path)}".rstrip("&"))).open()
    assert "key=@FILE" in caught.value.hint


# TLS and passwords


def certificates(folder, host):
    """An authority, and a certificate of that host by it: ca.pem, server.pem, server.key."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
    now = datetime.now(timezone.utc)

    def made(subject, public_key, extension, usage):
        key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(ca).public_key(public_key)
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical=usage)
        builder = builder.add_extension(key_id, critical=False)
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        if usage:
            signs = dict.fromkeys(("key_cert_sign", "crl_sign"), True)
            rest = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
            rest += ("key_agreement", "encipher_only", "decipher_only")
            builder = builder.add_extension(x509.KeyUsage(**signs, **dict.fromkeys(rest, False)), critical=True)
            subject_id = x509.SubjectKeyIdentifier.from_public_key(public_key)
            builder = builder.add_extension(subject_id, critical=False)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    (folder / "ca.pem").write_bytes(made(ca, ca_key.public_key(), x509.BasicConstraints(True, None), True))
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))])
    (folder / "server.pem").write_bytes(made(name, key.public_key(), names, False))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.key").write_bytes(key.private_bytes(*form))
    return [f"cafile {folder}/ca.pem", f"certfile {folder}/server.pem", f"keyfile {folder}/server.key"]


@pytest.mark.filterwarnings("ignore:unclosed <ssl")  # paho leaves a socket whose handshake failed to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the same
@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])
def test_tls_is_checked_against_the_authority_and_the_name(tmp_path, host):
    with broker(tmp_path, *certificates(tmp_path, host), "allow_anonymous true") as found:
        trusted, untrusted = f"tls=1&wait=0.3&ca={tmp_path}/ca.pem", "tls=1&wait=0.3"
        with pytest.raises(SourceUnavailable, match="its certificate is not trusted") as caught:
            make_source(found.url("motor", untrusted)).open()
        assert "ca=FILE" in caught.value.hint
        expected = "nothing came" if host == "127.0.0.1" else "its certificate is not trusted: IP address mismatch"
        with pytest.raises(SourceUnavailable, match=expected):
            make_source(found.url("motor", trusted)).open()
        with pytest.raises(SourceUnavailable, match="No such file") as caught:
            make_source(found.url("motor", f"tls=1&ca={tmp_path}/none.pem")).open()
        assert "ca=" in caught.value.hint


def test_a_user_needs_the_password_in_the_file(tmp_path):
    subprocess.run(["mosquitto_passwd", "-b", "-c", tmp_path / "users", "me", "secret"], check=True)
    (tmp_path / "right").write_text("secret\n")
    (tmp_path / "wrong").write_text("guess\n")
    with broker(tmp_path, "allow_anonymous false", f"password_file {tmp_path}/users") as found:
        for query in ("", "user=me", f"user=me&password=@{tmp_path}/wrong"):
            with pytest.raises(SourceUnavailable, match="the broker refuses: Not authorized") as caught:
                make_source(found.url("motor", query)).open()
            assert "user=NAME" in caught.value.hint
        with pytest.raises(SourceUnavailable, match="nothing came"):
            make_source(found.url("motor", f"user=me&password=@{tmp_path}/right&wait=0.1")).open()


def test_without_the_extra_it_is_named(tmp_path):
    code = (
        "import sys; sys.modules['paho'] = None; import pytest;"
        "from firmware_bridge.errors import SourceUnavailable; from firmware_bridge.registry import make_source\n"
        "with pytest.raises(SourceUnavailable, match='paho-mqtt is not installed') as caught:"
        "    make_source('mqtt://127.0.0.1:1/x').open()\n"
        "assert 'edge-cl[mqtt]' in caught.value.hint"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What is in a message, without a broker


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "length"),
        (b"\x01", "length"),
        (b"x" * 40, "crc"),
        (b"{", "json"),
        (b"{'values': [1]}", "json"),
        (b"[" * 100_000, "json"),
        (b'{"values": ' + b"[" * 70 + b"1" + b"]" * 70 + b"}", "schema"),
        (b"[]", "schema"),
        (b"{}", "schema"),
        (b'{"values": []}', "schema"),
        (b'{"values": 1}', "schema"),
        (b'{"values": [[1], [1, 2]]}', "schema"),
        (b'{"values": [true]}', "schema"),
        (b'{"values": [null]}', "schema"),
        (b'{"values": [1' + b"0" * 400 + b"]}", "schema"),
        (b'{"values": [1e39]}', "nonfinite"),
        (b'{"values": [Infinity]}', "nonfinite"),
        (b'{"values": [1], "seq": -1}', "schema"),
        (b'{"values": [1], "seq": 1.0}', "schema"),
        (b'{"values": [1], "seq": 4294967296}', "schema"),
        (b'{"values": [1], "boot": "a"}', "schema"),
        (b'{"values": [1], "stream": 65536}', "schema"),
        (b'{"seq": 1, "label": -1}', "label"),
        (b'{"seq": 1, "label": "a"}', "label"),
        (b'{"seq": 1, "label": true}', "label"),
        (b'{"seq": 1, "label": 1, "confidence": 1.5}', "label"),
        (b'{"seq": 1, "label": 1, "confidence": NaN}', "label"),
        (b'{"label": 1}', "schema"),
        (b'{"streams": {}}', "schema"),
        (b'{"values": [' + b"1," * MAX_JSON_BYTES + b"1]}", "oversize"),
    ],
)
def test_each_fault_has_its_reason(payload, reason):
    decoder = PayloadDecoder()
    assert decoder.feed(payload) == []
    assert {name: count for name, count in decoder.counters.items() if count} == {reason: 1}


def test_a_bad_label_costs_the_label_and_not_the_sample():
    decoder = PayloadDecoder()
    (item,) = decoder.feed(b'{"values": [1], "seq": 3, "label": "a"}')
    assert (item.seq, item.label, decoder.counters["label"]) == (3, None, 1)


@pytest.mark.parametrize(
    ("dtype", "values", "fits"),
    [
        ("uint8", [0, 255], True),
        ("uint8", [0, 256], False),
        ("uint8", [-1, 0], False),
        ("int16", [1.0, 2], True),
        ("int16", [1.5, 2], False),
        ("int32", [2**31, 0], False),
        ("float16", [1.5, 2], True),
    ],
)
def test_values_become_the_announced_dtype_or_are_refused(dtype, values, fits):
    decoder = PayloadDecoder()
    decoder.feed(hello_json(Hello("d", "f", 1, {0: Schema(name="a", dtype=dtype, shape=(2,))})))
    events = decoder.feed(json.dumps({"values": values}).encode())
    assert (len(events), decoder.counters["schema"]) == ((1, 0) if fits else (0, 1))
    if fits:
        assert events[0].values.dtype == dtype
        np.testing.assert_array_equal(events[0].values, values)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["values", "seq", "label", "streams", "0"]), inner),
    max_leaves=12,
)


@given(st.binary() | JSON.map(lambda document: json.dumps(document).encode()))
def test_nothing_that_arrives_raises_and_all_of_it_is_counted(payload):
    decoder = PayloadDecoder()
    events = decoder.feed(payload)
    assert len(events) + sum(decoder.counters.values()) - decoder.counters["label"] * bool(events) == 1


# What may be acknowledged, without a broker


@given(st.data())
def test_nothing_is_acknowledged_before_it_is_safe_and_everything_in_the_end(data):
    """A broker that keeps its session sends again, under the same ids, all that was not acknowledged."""
    deliveries, n_handed_out, n_safe = Deliveries(), 0, 0
    waiting, n_sent = {}, 0  # at the broker: packet id to the number of the item in the message, 0 if there is none
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["new", "bad", "safe", "again"])):
            case "new" | "bad" as kind:
                n_sent += 1
                n_handed_out += kind == "new"
                waiting[n_sent] = n_handed_out if kind == "new" else 0
                deliveries.note(n_sent, n_handed_out, waiting[n_sent] or None)
            case "safe":
                n_safe = max(n_safe, data.draw(st.integers(0, n_handed_out)))
                deliveries.safe(n_safe)
            case "again":
                deliveries.connected_again(resumed=True)
                assert all(deliveries.is_again(packet) for packet in waiting)
        for packet in deliveries.due():
            assert packet == min(waiting)
            assert waiting.pop(packet) <= n_safe
        assert all(deliveries.holds(number) == (number > n_safe) for number in range(1, n_handed_out + 1))
    deliveries.safe(n_handed_out)
    assert deliveries.due() == list(waiting)
    assert deliveries.n_pending == 0


def test_a_message_waits_for_all_before_it():
    deliveries = Deliveries()
    deliveries.note(1, 1, "a")
    deliveries.note(2, 1, None)
    assert deliveries.due() == []
    deliveries.safe(1)
    assert deliveries.due() == [1, 2]


def test_packet_ids_of_a_session_that_is_gone_mean_nothing():
    deliveries = Deliveries()
    deliveries.note(1, 1, "a")
    deliveries.connected_again(resumed=False)
    deliveries.note(1, 2, "b")
    assert not deliveries.is_again(1)
    deliveries.safe(1)
    assert deliveries.due() == []
    deliveries.safe(2)
    assert deliveries.due() == [1]


def test_what_came_over_a_connection_that_is_gone_is_held_until_it_is_safe():
    deliveries = Deliveries()
    deliveries.note(GONE, 1, "a")
    assert deliveries.holds("a")
    assert deliveries.due() == []
    deliveries.note(5, 1, None)  # the broker sends it again
    assert deliveries.due() == []
    deliveries.safe(1)
    assert not deliveries.holds("a")
    assert deliveries.due() == [5]
