"""Which rows are played and which held out, against the sentence that defines it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.errors import BadRecording, EndOfSource
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Sample
from firmware_bridge.sources.split import ordered, split_by_time


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_the_last_part_of_each_group_is_held_out(rows: list[tuple[int, int]], test: float) -> None:
    labels, marks = np.array(rows, dtype=np.int64).T
    played, held = split_by_time([labels, marks], test)
    assert sorted([*played, *held]) == list(range(len(rows)))
    for group in set(rows):
        members = [index for index, row in enumerate(rows) if row == group]
        count = min(int(np.ceil(test * len(members))), len(members) - 1)
        assert [index for index in held if index in members] == members[len(members) - count :]


def test_order_is_stable() -> None:
    rows = np.array([0, 2, 3, 5, 6])
    key = np.array([1, 9, 0, 1, 9, 0, 0])
    assert ordered(rows, key).tolist() == [2, 5, 6, 0, 3]
    assert ordered(rows, None).tolist() == rows.tolist()


def recording(folder: Path, **more: np.ndarray) -> Path:
    x = np.arange(24, dtype=np.int16).reshape(12, 2)
    arrays = {"x": x, "y": np.repeat([0, 1], 6), "load": np.tile(np.repeat([0, 1], 3), 2), **more}
    path = folder / "loads.npz"
    np.savez(path, **arrays)
    return path


def played(url: str) -> tuple[list[int], list[int] | None]:
    with make_source(url) as source:
        rows: list[int] = []
        try:
            while isinstance(sample := source.read(0.1), Sample):
                rows.append(int(sample.values[0]) // 2)
        except EndOfSource:
            pass
        held = source.held_out
        return rows, None if held is None else (held.x[:, 0] // 2).tolist()


def test_recording_is_played_load_after_load_and_split_by_time(tmp_path: Path) -> None:
    path = recording(tmp_path)
    assert played(f"recording:{path}?order=load") == ([0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11], None)
    assert played(f"recording:{path}?order=class&test=0.3&within=load") == ([0, 1, 3, 4, 6, 7, 9, 10], [2, 5, 8, 11])
    assert played(f"recording:{path}?test=0.5") == ([0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("order=lode", r"loads\.npz: order: no such array of whole numbers, one a sample \(got lode\)"),
        ("test=0.3&within=subject", r"loads\.npz: within: no such array .* \(got subject\)"),
        ("test=1.5", r"test: must be a number between 0 and 1 \(got '1\.5'\)"),
    ],
)
def test_options_that_do_not_fit_the_file_are_refused(tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        played(f"recording:{recording(tmp_path)}?{options}")


def test_a_file_with_a_test_split_keeps_it(tmp_path: Path) -> None:
    own = {"x_test": np.zeros((1, 2), np.int16), "y_test": np.zeros(1, np.int64)}
    with pytest.raises(BadRecording, match="has a test split of its own"):
        played(f"recording:{recording(tmp_path, **own)}?test=0.3")
