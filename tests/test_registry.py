"""Source URLs: what is wrong in one is said, with the nearest right word, before anything is opened."""

import subprocess
import sys

import pytest

from firmware_bridge.errors import BadSourceUrl
from firmware_bridge.registry import SOURCES, make_source


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "source '': no scheme"),
        ("data.npz", "source 'data.npz': no scheme"),
        ("serail:/dev/x", "source 'serail:/dev/x': unknown scheme 'serail'; did you mean 'serial'?"),
        (
            "zzz:x",
            "source 'zzz:x': unknown scheme 'zzz'; known: "
            "camera, mqtt, recording, serial, simulated, stdin, tcp, tcp-listen, udp",
        ),
        ("serial:", "source 'serial:': nothing behind serial:"),
        ("simulated:engine", "simulated:engine: no such model"),
        (
            "serial:///dev/x?baut=9600",
            "source 'serial:///dev/x?baut=9600': unknown option 'baut'; did you mean 'baud'?",
        ),
        (
            "serial:/dev/x?baud=fast",
            "source 'serial:/dev/x?baud=fast': baud: must be a whole number from 50 to 20000000 (got 'fast')",
        ),
        (
            "serial:/dev/x?baud",
            "source 'serial:/dev/x?baud': baud: must be a whole number from 50 to 20000000 (got '')",
        ),
        (
            "serial:/dev/x?wait=-1",
            "source 'serial:/dev/x?wait=-1': wait: must be a number of seconds above 0 (got '-1')",
        ),
        (
            "recording:a.npz?order=1st",
            "source 'recording:a.npz?order=1st': order: must be the name of an array (got '1st')",
        ),
        (
            "recording:a.npz?limit=0",
            "source 'recording:a.npz?limit=0': limit: must be a whole number of at least 1 (got '0')",
        ),
        (
            "simulated:motor?speed=nan",
            "source 'simulated:motor?speed=nan': speed: must be max or a number above 0 (1 is real time) (got 'nan')",
        ),
        (
            "simulated:motor?seed=1&seed=2",
            "source 'simulated:motor?seed=1&seed=2': option seed is given twice",
        ),
    ],
)
def test_a_bad_url_is_refused_with_what_is_wrong_and_a_hint(url, message):
    with pytest.raises(BadSourceUrl) as caught:
        make_source(url)
    assert str(caught.value) == message
    assert caught.value.hint


def test_a_source_is_imported_only_when_asked_for():
    code = (
        "import sys, firmware_bridge.registry as r; r.make_source('recording:x.npz');"
        "assert 'serialx' not in sys.modules;"
        "r.make_source('serial:/dev/x'); assert 'serialx' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_scheme_names_a_class_that_can_be_made():
    targets = {"serial": "/dev/x", "recording": "x.npz", "simulated": "motor", "stdin": "jsonl", "camera": "0"}
    targets |= dict.fromkeys(("tcp", "tcp-listen", "udp"), "127.0.0.1:1") | {"mqtt": "host/topic"}
    assert set(targets) == set(SOURCES)
    for scheme, target in targets.items():
        assert type(make_source(f"{scheme}:{target}")).__name__ == SOURCES[scheme][1]
