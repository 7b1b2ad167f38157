"""tools/fuzz_frames.py in short, as a person types it; and it notices decoders that are broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from firmware_bridge import auth, decoder, packet
from firmware_bridge.auth import ReplayFloor
from firmware_bridge.decoder import FAULTS
from firmware_bridge.packet import MAX_PACKET_BYTES
from tools.fuzz_frames import fuzz

ROOT = Path(__file__).parent.parent


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "fuzz_frames.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_fifty_thousand_frames_raise_nothing_and_none_is_believed() -> None:
    done = run("--frames", "50000", "--seed", "7", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["frames"] >= 50_000
    assert found["exceptions"] == found["wrong_accepted"] == found["over_cap"] == 0
    assert found["examples"] == []
    assert 8192 < found["peak_buffer_bytes"] <= MAX_PACKET_BYTES + 4
    assert found["accepted"] > 1000
    assert min(found["frames_per_s"], found["valid_bytes_per_s"], found["valid_frames_per_s"]) > 0
    assert found["line_ratio"] == pytest.approx(found["valid_bytes_per_s"] / 300_000, rel=0.01)
    # A tag is wrong or right; what is replayed is not damaged, and tests/test_auth.py has it.
    assert all(found["by_reason"][reason] for reason in set(FAULTS) - {"replay"})


def test_the_same_seed_finds_the_same() -> None:
    first, second, other = fuzz(1000, 3), fuzz(1000, 3), fuzz(1000, 4)
    assert (first.by_reason, first.accepted) == (second.by_reason, second.accepted)
    assert first.by_reason != other.by_reason


def test_less_than_one_frame_is_no_run() -> None:
    assert run("--frames", "0").returncode == 2


def test_a_decoder_that_skips_the_crc_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "crc32", lambda *_: decoder._RESIDUE)
    assert fuzz(1000, 0).wrong_accepted > 0


def test_a_decoder_that_skips_the_tag_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth.Key, "is_right", lambda *_: True)
    assert fuzz(1000, 0).wrong_accepted > 0


def test_a_floor_that_moves_before_the_tag_was_checked_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = decoder.BodyDecoder._check_tag

    def early(self: decoder.BodyDecoder, content: bytes, *rest: int) -> None:
        self._floor.rises(1, 0, content[6], content[8])
        checked(self, content, *rest)

    monkeypatch.setattr(decoder.BodyDecoder, "_check_tag", early)
    found = fuzz(1000, 0)
    assert any("state changed" in example for example in found.examples)


def test_a_decoder_that_raises_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(_: ReplayFloor, *__: int) -> bool:
        raise KeyError("planted")

    monkeypatch.setattr(ReplayFloor, "rises", raising)
    found = fuzz(1000, 0)
    assert found.exceptions > 0
    assert found.examples == ["KeyError: 'planted'"] * len(found.examples)


def test_a_buffer_without_a_cap_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet, "MAX_PACKET_BYTES", 1000)  # what the tool knows stays what the tests say it is
    assert fuzz(1000, 0).peak_buffer_bytes < 9000
    monkeypatch.setattr("firmware_bridge.frame.MAX_FRAME_BYTES", 1 << 30)
    assert fuzz(1000, 0).over_cap > 0
