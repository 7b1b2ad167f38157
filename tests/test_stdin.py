"""A shell pipe as a source: JSON lines and CSV; a bad line is counted by reason and the rest goes on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from boards import standard_input

from firmware_bridge.errors import BadSourceUrl, EndOfSource, SourceUnavailable
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Label, SampleId
from firmware_bridge.sources import stdin as stdin_module


def read_all(source):
    items = []
    try:
        while (item := source.read(10.0)) is not None:
            items.append(item)
    except EndOfSource:
        return items
    pytest.fail("nothing came in 10 s")


def played(text, url, *after):
    with standard_input(text.encode()), make_source(url, after=after) as source:
        return read_all(source), source


def seen(source):
    return {name: count for name, count in source.counters.items() if count}


def test_csv_has_channels_of_its_header_and_labels_by_name():
    items, source = played("x,y,label\n1,2,off\n3.5,-4e1,on\n5,6,\n", "stdin:csv?labels=off,on")
    assert (source.schema.dtype, source.schema.shape) == ("float32", (2,))
    assert (source.schema.channels, source.schema.label_names) == (("x", "y"), ("off", "on"))
    assert [item.values.tolist() for item in items] == [[1, 2], [3.5, -40], [5, 6]]
    assert [item.label for item in items] == [0, 1, None]
    assert [item.seq for item in items] == [0, 1, 2]
    assert all(not item.gap and not item.values.flags.writeable for item in items)


def test_csv_may_tell_time_and_number_anywhere_in_its_columns():
    items, source = played("seq,a,time_us,b\n7,1,700,2\n9,3,900,4\n9,5,901,6\n", "stdin:csv")
    assert source.schema.channels == ("a", "b")
    assert [(item.seq, item.time_us, item.gap) for item in items] == [(7, 700, False), (9, 900, True)]
    assert seen(source) == {"wire_lost": 1, "duplicate": 1}


def test_json_lines_may_hold_values_of_any_shape_and_late_labels():
    lines = [{"values": [[1, 2], [3, 4]], "seq": 0, "time_us": 5}, {"seq": 0, "label": 3}]
    items, source = played("\n".join(map(json.dumps, lines)), "stdin:jsonl?dtype=int16")
    assert source.schema.shape == (2, 2)
    assert items[0].values.dtype == np.int16
    assert items[1] == Label(0, 0, 0, 3)


BAD = [
    ("nonsense", "text"),
    ("[1, 2]", "text"),
    ('{"value": [1, 2]}', "text"),
    ('{"values": [1, 2], "seq": -1}', "text"),
    ('{"values": [1, 2], "time_us": 1.5}', "text"),
    ('{"values": [1, 2, 3]}', "schema"),
    ('{"values": [1, [2]]}', "schema"),
    ('{"values": ["1", "2"]}', "schema"),
    ('{"values": [true, false]}', "schema"),
    ('{"values": []}', "schema"),
    ('{"values": [1, NaN]}', "nonfinite"),
    ('{"values": [1, 1e400]}', "nonfinite"),
    ('{"values": [1, 300]}', "range"),
    ('{"values": [1, 1.5]}', "range"),
    ('{"values": [1, ' + "9" * 400 + "]}", "schema"),
    ("[" * 100_000, "text"),
    ('{"values": [1, "' + "9" * (1 << 20) + '"]}', "oversize"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[f"{reason}-{at}" for at, (_, reason) in enumerate(BAD)])
def test_a_bad_line_is_counted_by_its_reason_and_leaves_a_gap(line, reason):
    good = '{"values": [1, 2]}'
    items, source = played(f"{good}\n{line}\n\n{good}\n", "stdin:jsonl?dtype=uint8")
    assert [(item.seq, item.gap) for item in items] == [(0, False), (2, True)]
    assert seen(source) == {reason: 1}


@pytest.mark.parametrize("label", ['"unknown"', "-1", "2", "true", "[1]"])
def test_a_label_that_is_none_is_left_out_and_the_sample_is_not(label):
    items, source = played('{"values": [1], "label": ' + label + "}", "stdin:jsonl?labels=off,on")
    assert [item.label for item in items] == [None]
    assert seen(source) == {"label": 1}


def test_a_csv_line_with_other_cells_is_counted():
    items, source = played('a,b\n1,2\n1\n1,2,3\n1,x\n"1,2\n3,4\n', "stdin:csv")
    assert [item.values.tolist() for item in items] == [[1, 2], [3, 4]]
    assert seen(source) == {"schema": 3, "text": 1}


def test_numbered_lines_are_resumed_and_others_begin_anew():
    lines = "\n".join(json.dumps({"values": [seq], "seq": seq}) for seq in range(5))
    items, source = played(lines, "stdin:jsonl", SampleId(0, 0, 2))
    assert [item.seq for item in items] == [3, 4]
    assert seen(source) == {"duplicate": 3}
    items, source = played('{"values": [1]}\n', "stdin:jsonl", SampleId(0, 0, 2))
    assert [item.id for item in items] == [(0, 1, 0)]


def test_with_the_schema_given_nothing_is_waited_for_and_a_rate_makes_the_time():
    with standard_input() as writing, make_source("stdin:jsonl?shape=2&rate=100") as source:
        assert source.read(0.0) is None
        os.write(writing, b'{"values": [1, 2]}\n{"values": [3, ')
        assert source.read(10.0).time_us == 0
        assert source.read(0.05) is None
        os.write(writing, b"4]}\n")
        assert source.read(10.0).time_us == 10_000
        os.close(writing)
        with pytest.raises(EndOfSource):
            source.read(10.0)


def test_the_last_line_needs_no_end():
    items, _ = played('{"values": [1]}\n{"values": [2]}', "stdin:jsonl")
    assert len(items) == 2


def test_an_empty_pipe_and_a_pipe_of_something_else_are_told_apart():
    for text, message in (("\n", "it is empty"), ("hello\nworld\n", r"no line of it can be used \(2 text\)")):
        with standard_input(text.encode()), pytest.raises(SourceUnavailable, match=message) as caught:
            make_source("stdin:jsonl").open()
        assert caught.value.hint
    with standard_input(), pytest.raises(SourceUnavailable, match=r"no line came in 0\.1 s"):
        make_source("stdin:jsonl?wait=0.1").open()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("stdin:xml", "no such form"),
        ("stdin:csv?shape=0", "up to four whole numbers"),
        ("stdin:csv?labels=a,,b", "different names"),
        ("stdin:csv?dtype=float64", "must be one of"),
    ],
)
def test_a_bad_url_is_refused(url, message):
    with pytest.raises(BadSourceUrl, match=message):
        make_source(url)


def test_a_writer_that_is_faster_is_held_back():
    """Megabytes wait in the pipe and not in here."""
    line = json.dumps({"values": [1.0] * 100}).encode() + b"\n"
    with standard_input(line * 5000), make_source("stdin:jsonl") as source:
        source.read(10.0)
        assert len(source._ready) * len(line) <= 2 * stdin_module._READ_BYTES
        assert 1 + len(read_all(source)) == 5000


def test_a_shell_pipe_is_a_source():
    code = (
        "from firmware_bridge.registry import make_source\n"
        "from firmware_bridge.errors import EndOfSource\n"
        "with make_source('stdin:csv') as source:\n"
        "    try:\n"
        "        while True: print(source.read(10.0).values.sum())\n"
        "    except EndOfSource: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"a,b\n1,2\n3,4\n", capture_output=True, timeout=60, check=True
    )
    assert done.stdout.split() == [b"3.0", b"7.0"]
