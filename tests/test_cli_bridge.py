"""`edge-cl bridge`: what is plugged in, what comes, and a recording that is played back as it came."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import record

from edge_cl.cli import main
from edge_cl.recorder import write_recording
from firmware_bridge import devices as found
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Sample, Schema

COUNTED = {"wire_lost", "crc", "cobs", "version", "incompat", "schema", "length", "oversize", "nonfinite"}


def bridge(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> list[Any]:
    with pytest.raises(SystemExit) as caught:
        main(["bridge", *words, "--json"])
    assert (caught.value.code or 0) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_tail_is_a_line_for_each_sample_and_then_the_counters(capsys: pytest.CaptureFixture[str]) -> None:
    *samples, last = bridge(capsys, "tail", "--source", "simulated:motor?speed=max", "-n", "5")
    assert [sample["seq"] for sample in samples] == [0, 1, 2, 3, 4]
    assert set(samples[0]) == {"stream", "boot", "seq", "time_us", "shape", "dtype", "label"}
    assert (samples[0]["shape"], samples[0]["dtype"]) == ([32, 3], "int16")
    assert list(last) == ["counters"]
    assert last["counters"].keys() >= COUNTED
    assert last["counters"]["wire_lost"] == 0


def test_tail_gives_the_values_to_who_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record(tmp_path / "r.npz", 6)
    lines = bridge(capsys, "tail", "--source", f"recording:{path}", "--values")
    np.testing.assert_array_equal([line["values"] for line in lines[:-1]], np.load(path)["x_train"])


def test_tail_ends_with_20_if_nothing_comes(capsys: pytest.CaptureFixture[str]) -> None:
    _, slave = os.openpty()
    url = f"serial://{os.ttyname(slave)}?wait=0.2"
    assert bridge(capsys, "tail", "--source", url, "--timeout", "0.3", code=78)  # not even a schema
    told = bridge(capsys, "tail", "--source", "simulated:motor?samples=1&speed=0.0001", "--timeout", "0.5", code=20)
    assert told[-1]["counters"]["wire_lost"] == 0


def test_what_is_recorded_is_played_back_as_it_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.npz"
    url = "simulated:motor?speed=max&samples=40"
    (told,) = bridge(capsys, "record", str(out), "--source", url)
    assert (told["samples"], told["out"]) == (40, str(out))
    with make_source(url) as live, make_source(f"recording:{out}") as played:
        assert (played.schema.shape, played.schema.dtype, played.schema.window, played.schema.label_names) == (
            (live.schema.shape, live.schema.dtype, live.schema.window, live.schema.label_names)
        )
        count = 0
        while count < 40:
            came, again = live.read(5.0), played.read(5.0)
            if came is None:
                continue
            assert isinstance(came, Sample)
            assert isinstance(again, Sample)
            np.testing.assert_array_equal(came.values, again.values)
            assert came.label == again.label
            count += 1


def test_samples_without_a_label_stay_without_one(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.int16).reshape(4, 3)
    labels = [None, 1, None, 0]
    samples = [Sample(0, 5, n, 1000 * n, values[n], label) for n, label in enumerate(labels)]
    write_recording(tmp_path / "r.npz", Schema("s", "int16", (3,)), samples)
    with make_source(f"recording:{tmp_path / 'r.npz'}") as played:
        again = [played.read(1.0) for _ in labels]
    assert [sample.label for sample in again if isinstance(sample, Sample)] == labels


def test_time_goes_on_over_a_reboot(tmp_path: Path) -> None:
    values = np.zeros(2, np.uint8)
    times = [(1, 0), (1, 1_000_000), (2, 500_000), (2, 1_500_000)]
    samples = [Sample(0, boot, n, us, values) for n, (boot, us) in enumerate(times)]
    write_recording(tmp_path / "r.npz", Schema("s", "uint8", (2,)), samples)
    assert np.load(tmp_path / "r.npz")["time_s"].tolist() == [0.0, 1.0, 1.0, 2.0]


def test_nothing_recorded_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record(tmp_path / "r.npz", 6)
    np.savez(path, x=np.full((3, 4), np.nan, np.float32))
    out = tmp_path / "out.npz"
    told = bridge(capsys, "record", str(out), "--source", f"recording:{path}", code=20)
    assert told[-1]["exit_code"] == 20
    assert not out.exists()


def test_list_says_what_stands_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = bridge(capsys, "list")
    assert all(set(device) >= {"kind", "path", "source", "problem", "hint"} for device in listed[0])
    _, slave = os.openpty()
    assert found._problem(os.ttyname(slave))[0] == f"busy: process {os.getpid()} has it open"
    plain = tmp_path / "file"
    plain.touch()
    assert found._problem(str(plain))[0] == "is no device"
    assert found._problem(str(tmp_path / "gone"))[0].startswith("cannot be looked at")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may open everything
    problem, hint = found._problem(os.ttyname(slave))
    assert problem.startswith("permission denied (group ")
    assert "usermod -aG" in hint


def test_several_streams_are_recorded_in_turn_and_can_be_played_apart(tmp_path: Path) -> None:
    """Each has a clock of its own, and one starts anew on the way: time never goes back and none is invented."""
    told = [
        (0, 1, 0, 5_000_000),
        (1, 7, 0, 0),
        (0, 1, 1, 6_000_000),
        (1, 7, 1, 1_500_000),
        (1, 8, 0, 100),
        (0, 1, 2, 7),
    ]
    samples = [Sample(*place, np.full(2, n, np.int16)) for n, place in enumerate(told)]
    write_recording(tmp_path / "two.npz", Schema("two", "int16", (2,)), samples)
    with np.load(tmp_path / "two.npz") as file:
        assert file["stream"].tolist() == [0, 1, 0, 1, 1, 0]
        np.testing.assert_allclose(file["time_s"], [0, 0, 1, 1.5, 1.5, 1.5])
    with make_source(f"recording:{tmp_path / 'two.npz'}?order=stream") as source:
        assert [source.read(1.0).values[0] for _ in samples] == [0, 2, 5, 1, 3, 4]
