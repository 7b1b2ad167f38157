"""What a data set is made of, whatever file it comes from, and what is held out of it."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import LABELS, record, save

from edge_cl.errors import OperatorError
from edge_cl.evaluation.data import Dataset, load_dataset
from edge_cl.evaluation.idx import read_idx
from firmware_bridge.errors import BadRecording

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(values: np.ndarray) -> bytes:
    """The bytes of an IDX file, by the words of its specification."""
    sizes = b"".join(struct.pack(">i", size) for size in values.shape)
    return (
        bytes([0, 0, CODES[values.dtype.str[1:]], values.ndim])
        + sizes
        + values.astype(values.dtype.newbyteorder(">")).tobytes()
    )


def mnist(folder: Path, *, packed: bool = False, test: bool = True, dtype: str = "u1") -> tuple[np.ndarray, np.ndarray]:
    x, y = np.arange(10 * 4 * 3).reshape(10, 4, 3).astype(dtype), np.array([0, 1] * 5, dtype=np.uint8)
    ending, pack = (".gz", gzip.compress) if packed else ("", bytes)
    for split in ("train", "t10k") if test else ("train",):
        (folder / f"{split}-images-idx3-ubyte{ending}").write_bytes(pack(idx(x if split == "train" else x[:4])))
        (folder / f"{split}-labels-idx1-ubyte{ending}").write_bytes(pack(idx(y if split == "train" else y[:4])))
    return x, y


def assert_whole(data: Dataset) -> None:
    """What the contract of a data set says of any."""
    assert data.x.shape[1:] == data.test_x.shape[1:]
    assert data.x.dtype == data.test_x.dtype
    assert len(data.x) == len(data.y) > 0
    assert len(data.test_x) == len(data.test_y)
    assert data.y.dtype == data.test_y.dtype == np.int64
    assert max(data.y.max(), data.test_y.max(initial=0)) < len(data.label_names)
    assert all(len(mark) == len(data.y) for mark in data.marks.values())
    assert all(len(mark) == len(data.test_y) for mark in data.test_marks.values())


def test_a_recording_with_a_test_split_keeps_it(tmp_path: Path) -> None:
    subject = np.repeat([1, 2], 20)
    path = record(tmp_path / "motor.npz", 40, n_test=10, subject_train=subject)
    data = load_dataset(str(path))
    assert_whole(data)
    with np.load(path) as file:
        np.testing.assert_array_equal(data.x, file["x_train"])
        np.testing.assert_array_equal(data.test_y, file["y_test"])
    assert (data.name, data.label_names, data.x.dtype) == ("motor", LABELS, np.int16)
    assert data.marks["subject"].tolist() == subject.tolist()
    with pytest.raises(OperatorError, match=r"test: the file has a test split of its own"):
        load_dataset(str(path), test=0.2)


def test_marks_of_a_test_split_come_with_its_good_samples(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32)[:, None]
    x[4] = np.nan
    arrays = {"x_train": x[:3], "y_train": [0, 1, 0], "x_test": x[3:], "y_test": [0, 1, 1]}
    marks = {"load_train": [1, 1, 2], "load_test": [2, 3, 4]}
    data = load_dataset(str(save(tmp_path / "a.npz", **arrays, **marks)))
    assert_whole(data)
    assert (data.marks.keys(), data.marks["load"].tolist()) == ({"load"}, [1, 1, 2])
    assert (data.test_marks.keys(), data.test_marks["load"].tolist()) == ({"load"}, [2, 4])


def test_a_recording_without_one_holds_out_the_last_of_each_class(tmp_path: Path) -> None:
    x, y = np.arange(20, dtype=np.int16)[:, None], np.repeat([0, 1], 10)
    load = np.tile(np.repeat([0, 1], 5), 2)
    path = str(save(tmp_path / "a.npz", x=x, y=y, load=load))
    data = load_dataset(path)
    assert_whole(data)
    assert data.test_x[:, 0].tolist() == [7, 8, 9, 17, 18, 19]
    assert data.label_names == ("0", "1")
    by_load = load_dataset(path, test=0.2, within="load")
    assert by_load.test_x[:, 0].tolist() == [4, 9, 14, 19]
    assert by_load.test_marks["load"].tolist() == [0, 1, 0, 1]
    everything = load_dataset(path, test=0.0)
    assert (len(everything.y), len(everything.test_y)) == (20, 0)
    np.testing.assert_array_equal(everything.x, x)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_a_file_of_only_x_and_y_of_any_scale(tmp_path: Path, scale: float) -> None:
    x = np.random.default_rng(0).normal(size=(12, 3)) * scale
    data = load_dataset(str(save(tmp_path / "a.npz", x=x, y=np.arange(12) % 2)), test=0.0)
    assert_whole(data)
    np.testing.assert_allclose(data.x, x, rtol=1e-6)


def test_samples_that_are_not_finite_are_left_out_with_their_labels_and_marks(tmp_path: Path) -> None:
    x = np.arange(10, dtype=np.float32)[:, None].repeat(2, 1)
    x[3, 0], x[5, 1] = np.nan, np.inf
    path = save(tmp_path / "a.npz", x=x, y=np.zeros(10, int), place=np.arange(10))
    data = load_dataset(str(path), test=0.0)
    assert_whole(data)
    assert data.marks["place"].tolist() == data.x[:, 1].tolist() == [0, 1, 2, 4, 6, 7, 8, 9]
    x[:] = np.nan
    with pytest.raises(OperatorError, match="every sample holds NaN or Inf"):
        load_dataset(str(save(path, x=x, y=np.zeros(10, int))))


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_idx_files(tmp_path: Path, packed: bool) -> None:
    x, y = mnist(tmp_path, packed=packed)
    data = load_dataset(str(tmp_path))
    assert_whole(data)
    np.testing.assert_array_equal(data.x, x)
    np.testing.assert_array_equal(data.y, y)
    assert (len(data.test_y), data.label_names, data.x.dtype) == (4, ("0", "1"), np.uint8)
    by_file = load_dataset(str(tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"))
    np.testing.assert_array_equal(by_file.test_x, data.test_x)


def test_idx_files_without_a_test_split_hold_one_out(tmp_path: Path) -> None:
    mnist(tmp_path, test=False)
    data = load_dataset(str(tmp_path), test=0.4)
    assert (len(data.y), data.test_y.tolist()) == (6, [0, 1, 0, 1])


def test_images_that_are_not_finite_are_left_out_of_the_test_split_too(tmp_path: Path) -> None:
    x, _ = mnist(tmp_path, dtype="f4")
    x[2, 0, 0] = np.nan
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(x[:4]))
    data = load_dataset(str(tmp_path))
    assert_whole(data)
    assert (len(data.y), data.test_y.tolist()) == (10, [0, 1, 1])


@pytest.mark.parametrize("dtype", CODES)
def test_every_type_of_idx(tmp_path: Path, dtype: str) -> None:
    limits = np.iinfo(dtype) if dtype[0] in "ui" else np.finfo(dtype)
    values = np.array([[limits.min, 0], [7, limits.max]], dtype=dtype)
    (tmp_path / "a").write_bytes(idx(values))
    read = read_idx(tmp_path / "a")
    np.testing.assert_array_equal(read, values)
    assert read.dtype == np.dtype(dtype)


def test_double_images_become_single_precision(tmp_path: Path) -> None:
    x, _ = mnist(tmp_path, dtype="f8")
    data = load_dataset(str(tmp_path))
    assert data.x.dtype == np.float32
    np.testing.assert_array_equal(data.x, x)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train-labels-idx1-ubyte", None, "there are no labels beside it"),
        ("t10k-labels-idx1-ubyte", None, "t10k-images-idx3-ubyte: there are no labels beside it"),
        ("train-labels-idx1-ubyte", idx(np.zeros(9, np.uint8)), r"must hold a label for each of 10 .* \(got \(9,\)\)"),
        ("train-labels-idx1-ubyte", idx(np.full(10, -1, np.int8)), r"must be whole numbers from 0 \(got -1\)"),
        ("train-labels-idx1-ubyte", idx(np.full(10, 4096, np.int16)), r"labels must be below 4096 \(got 4096\)"),
        ("train-images-idx3-ubyte", idx(np.zeros((10, 4, 3), np.uint8))[:-1], r"must hold 120 bytes .* \(got 119\)"),
        ("train-images-idx3-ubyte", idx(np.zeros((10, 4, 3), np.uint8)) + b"x", r"must hold 120 bytes .* \(got more\)"),
        ("train-images-idx3-ubyte", bytes([0, 0, 0x0D, 3]) + b"\xff" * 12, "cannot be read|must hold"),
        ("train-images-idx3-ubyte", bytes([0, 0, 7, 1]), "not an IDX file"),
        ("train-images-idx3-ubyte", gzip.compress(idx(np.zeros((10, 4, 3), np.uint8)), mtime=0)[:-9], "cannot be read"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((4, 9, 9), np.uint8)), r"must be like .*, uint8 \(4, 3\)"),
        ("other-train-images-idx3-ubyte", idx(np.zeros((4, 9, 9), np.uint8)), r"must hold one file .* \(got other-"),
    ],
)  # fmt: skip
def test_idx_files_that_are_wrong_are_refused(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    mnist(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OperatorError, match=said):
        load_dataset(str(tmp_path))


def test_digits_are_images_split_by_time() -> None:
    data = load_dataset("digits")
    assert_whole(data)
    assert (data.x.shape[1:], data.x.dtype, data.x.max()) == ((8, 8, 1), np.uint8, 16)
    whole = load_dataset("digits", test=0.0)
    assert len(whole.y) == 1797 == len(data.y) + len(data.test_y)
    for digit in range(10):
        held = int(np.ceil(0.2 * (whole.y == digit).sum()))
        np.testing.assert_array_equal(data.test_x[data.test_y == digit], whole.x[whole.y == digit][-held:])


def test_digits_without_scikit_learn_are_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # what an import finds where it is not installed
    with pytest.raises(OperatorError, match="scikit-learn, which is not there") as caught:
        load_dataset("digits")
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        ({"y": None}, {}, "y: must be there to evaluate on"),
        ({"x": None}, {}, "x: must be there"),
        ({}, {"test": 1.0}, r"test: must be a part of each class, 0 up to 1 \(got 1.0\)"),
        ({}, {"within": "lode"}, r"there is no mark of this name \(got lode\)"),
        ({"y": np.arange(6)}, {}, "no class has two samples"),
        ({"y": np.full(6, 5000)}, {}, r"labels must be below 4096 \(got 5000\)"),
        ({"y": np.full(6, -1)}, {}, r"y: must be whole numbers from 0 \(got -1 at index 0\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_on_is_refused(
    tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    good = {"x": np.zeros((6, 2), np.int16), "y": np.arange(6) % 2, "load": np.zeros(6, int)}
    path = save(tmp_path / "a.npz", **(good | arrays))
    with pytest.raises((OperatorError, BadRecording), match=said) as caught:
        load_dataset(str(path), **options)
    assert caught.value.hint


def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecording, match="no such file"):
        load_dataset(str(tmp_path / "none.npz"))
    with pytest.raises(OperatorError, match=r"must hold one file of training images \(got none\)"):
        load_dataset(str(tmp_path))
