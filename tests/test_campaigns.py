"""The fault campaigns in short, as a person types them; and each of them notices a fault that was planted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_cl.storage import record
from tools.faults.flips import Damage, Tally, Target, Verdict, damages, harmed

ROOT = Path(__file__).parent.parent
MEMORY = Path("/dev/shm")  # a kill leaves there what it leaves on a disk, and sooner
DAEMON = ["--level", "daemon", "--samples", "400"]
IN_MEMORY = ["--folder", str(MEMORY)] if MEMORY.is_dir() else []


def figures(tool: str, *options: str, ends_with: int = 0) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tools" / tool), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == ends_with, done.stdout[-2000:] + done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def kills(n: int, *options: str, ends_with: int = 0) -> dict[str, Any]:
    return figures("kill_campaign.py", "--kills", str(n), *IN_MEMORY, *options, ends_with=ends_with)


def assert_nothing_happened(found: dict[str, Any], n: int) -> None:
    assert found["examples"] == []
    assert found["kills"] == n
    assert found["corrupt"] == found["acknowledged_lost"] == found["learnt_twice"] == 0
    assert found["bit_identical"] is True
    assert found["recovery_p99_s"] > 0


def test_three_hundred_kills_of_the_store_lose_nothing() -> None:
    found = kills(300)
    assert_nothing_happened(found, 300)
    assert found["acknowledged"] > 300
    assert found["other_slot"] > 0


@pytest.mark.parametrize(("broken", "seen_in"), [("ack-early", "acknowledged_lost"), ("replay-twice", "learnt_twice")])
def test_kills_notice_a_store_that_is_broken(broken: str, seen_in: str) -> None:
    assert kills(30, "--broken", broken, ends_with=1)[seen_in] > 0


def test_thirty_kills_of_the_daemon_lose_nothing() -> None:
    found = kills(30, *DAEMON)
    assert_nothing_happened(found, 30)
    assert found["acknowledged"] > 0
    assert found["replayed"] > 0


def test_kills_notice_a_daemon_that_is_broken() -> None:
    found = kills(6, *DAEMON, "--broken", "ack-early", "replay-twice", ends_with=1)
    assert found["acknowledged_lost"] > 0
    assert found["learnt_twice"] > 0
    assert found["bit_identical"] is False


def test_no_power_cut_during_three_commits_does_harm_and_each_broken_variant_is_caught() -> None:
    found = figures("powerloss_model.py", "--quick", "--most", "30")
    assert found["commits"] == 3
    assert found["states"] > 3000  # of checkpoints each and every one
    assert found["bad"] == found["journal"]["bad"] == 0
    variants = [found[name] for name in ("no_file_fsync", "no_folder_fsync", "in_place")]
    for broken in (*variants, found["journal"]["no_sync"]):
        assert 0 < broken["bad"] <= broken["states"]


def test_flips_and_truncations_are_noticed() -> None:
    found = figures("flip_campaign.py", "--sample", "40")
    kinds = found["by_kind"]
    assert kinds.keys() >= {"checkpoint", "journal_db", "journal_wal", "manifest", "model"}
    assert kinds["checkpoint"]["bytes"] >= 32 << 10
    assert kinds["checkpoint"]["said"] == kinds["checkpoint"]["flips"] + kinds["checkpoint"]["truncations"] == 80
    assert found["undetected"] == 0, [(kind, row["examples"]) for kind, row in kinds.items()]


def test_a_reader_that_checks_nothing_is_found_out(tmp_path: Path) -> None:
    """What safetensors alone would notice, without the SHA-256 behind it: next to nothing."""
    weights = np.arange(16, dtype=np.float32)
    content = record.pack({"weights": weights}, {"steps": 7})

    def look(folder: Path, damage: Damage) -> Verdict:
        try:
            arrays, plain = record.unpack((folder / "checkpoint.a").read_bytes())
            is_same = arrays["weights"].tobytes() == weights.tobytes() and plain == {"steps": 7}
        except Exception:
            return Verdict.SAID
        return Verdict.HARMLESS if is_same else Verdict.UNDETECTED

    target = Target({"checkpoint.a": content}, {"checkpoint.a": "checkpoint"}, look)
    tally = Tally()
    for damage, verdict in harmed(target, tmp_path, damages("checkpoint.a", content)):
        tally.note(damage, verdict)
    assert tally.flips == 8 * len(content)
    assert tally.verdicts["undetected"] > 8 * weights.nbytes * 0.9
    assert (tmp_path / "checkpoint.a").read_bytes() == content


def test_a_soak_tells_of_memory_descriptors_and_threads() -> None:
    found = figures("soak.py", "--minutes", "0.05")
    assert found["exit"] == 0
    assert found["samples"] > 0
    assert found["rss_peak_mb"] > 50
    assert {type(found[key]) for key in ("fd_delta", "thread_delta")} == {int}
    assert found["rss_slope_mb_per_h"] is not None
