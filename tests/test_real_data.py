"""The learner on real recordings, through the command line. docs/RESULTS.md has the figures; these are their floors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_cl.cli import main

DATA = Path(__file__).parents[2] / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs the real recordings beside the project")


def run(capsys: pytest.CaptureFixture[str], state: Path, source: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--once", "--json", "--state", str(state), "--source", f"recording:{DATA}/{source}"])
    assert caught.value.code == 0
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


@pytest.mark.parametrize(
    ("source", "floor"),
    [
        ("uci_har.npz", 0.91),
        ("uci_har.npz?order=class", 0.90),
        ("cwru_bearing.npz?order=class&test=0.3&within=load_hp", 0.93),
        ("cwru_bearing.npz?order=load_hp&test=0.3&within=load_hp", 0.93),
    ],
)
def test_one_pass_with_the_default_configuration(
    source: str, floor: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(capsys, tmp_path / "state", source)
    assert summary["test_accuracy"] >= floor
    shape = {"uci_har": 128 * 9, "cwru_bearing": 1024}[source.partition(".")[0]]
    assert summary["replay_bytes"] <= 300 * (2 * shape + 2)  # int16 values and a label each


@pytest.mark.parametrize("source", ["gtsrb_tracks.npz", "elec2.npz?limit=4000", "cifar10_10k.npz?limit=400"])
def test_every_recording_plays_as_it_is(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(capsys, tmp_path / "state", source)
    assert summary["steps"] > 0
    assert not any(summary["dropped"].values())
