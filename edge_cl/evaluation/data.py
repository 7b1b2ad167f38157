"""A set of labelled samples to evaluate on: a recording, MNIST-style IDX files, or scikit-learn's digits.

Knows files and what is held out of them. Must not know streams, learners or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import OperatorError
from edge_cl.evaluation.idx import idx_files, is_idx, read_pair
from firmware_bridge.sources.recording_file import RecordingFile, load
from firmware_bridge.sources.split import split_by_time

HELD_OUT = 0.3  # of each class, where a file has no test split
DIGITS_HELD_OUT = 0.2
MOST_CLASSES = 4096  # as model.max_classes

Labels = NDArray[np.int64]
Marks = Mapping[str, Labels]


@dataclass(frozen=True)
class Dataset:
    """Samples x (N, *shape) in the sensor's dtype with labels y (N,), in the file's order, and a test split.

    test_x (M, *shape) and test_y (M,) may be empty. Marks are what else is known of each sample, such as its subject:
    whole numbers (N,) and (M,) by name. label_names are the numbers themselves where the file has no names.
    """

    name: str
    x: NDArray[Any]
    y: Labels
    test_x: NDArray[Any]
    test_y: Labels
    label_names: tuple[str, ...]
    marks: Marks
    test_marks: Marks


def load_dataset(source: str, *, test: float | None = None, within: str | None = None) -> Dataset:
    """The data named by the path of a recording (.npz), of an IDX file or a folder of them, or by the word `digits`.

    A file without a test split of its own holds out the last part `test` of each class in the order of the file, or
    of each class within each value of the mark `within`; None: 0.3 (digits 0.2), 0: nothing. A random split would put
    neighbours in time on both sides. Samples with NaN or Inf are left out, as the daemon drops them.
    Raises OperatorError, and BadRecording for what is wrong in a recording.
    """
    if test is not None and not 0 <= test < 1:
        raise OperatorError(f"test: must be a part of each class, 0 up to 1 (got {test})", hint="leave it out")
    whole = _read(source)
    if len(whole.test_y):
        if test:
            raise OperatorError(f"{source}: test: the file has a test split of its own", hint="leave test out")
        return whole
    if test is None:
        test = DIGITS_HELD_OUT if source == "digits" else HELD_OUT
    return _split(whole, test, within) if test else whole


def mark_of(data: Dataset, name: str) -> Labels:
    """The mark (N,) of that name. Raises OperatorError, naming those there are."""
    if name not in data.marks:
        known = f"it has {', '.join(sorted(data.marks))}" if data.marks else "it has none"
        raise OperatorError(f"{data.name}: there is no mark of this name (got {name})", hint=known)
    return data.marks[name]


def _read(source: str) -> Dataset:
    if source == "digits":
        return _digits()
    path = Path(source).expanduser()
    if path.is_dir() or is_idx(path):
        return _idx(path)
    return _recording(path.stem, source, load(source))


def _recording(name: str, source: str, file: RecordingFile) -> Dataset:
    if file.y is None:
        raise OperatorError(f"{source}: y: must be there to evaluate on", hint="add labels y (N,), or y_train")
    held, labelled = file.held_out, file.y >= 0
    test_x, test_y = (file.x[:0], file.y[:0]) if held is None else (held.x, held.y)
    marks = {mark.removesuffix("_train"): values[labelled] for mark, values in file.marks.items()}
    x, y, names = file.x[labelled], file.y[labelled], file.schema.label_names
    whole = _dataset(name, x, y, test_x, test_y, label_names=names, marks=marks)
    return replace(whole, test_marks=file.held_out_marks)


def _idx(path: Path) -> Dataset:
    files = idx_files(path)
    x, y = read_pair(files.images, files.labels)
    test_x, test_y = x[:0], y[:0]
    if files.test_images is not None and files.test_labels is not None:
        test_x, test_y = read_pair(files.test_images, files.test_labels)
        if (test_x.shape[1:], test_x.dtype) != (x.shape[1:], x.dtype):
            raise OperatorError(
                f"{files.test_images}: must be like {files.images.name}, {x.dtype} {x.shape[1:]} "
                f"(got {test_x.dtype} {test_x.shape[1:]})"
            )
    folder = path if path.is_dir() else path.parent
    return _dataset(folder.resolve().name, x, y, test_x, test_y)


def _digits() -> Dataset:
    """1,797 handwritten digits of 8x8 pixels, 0 to 16; with an axis for the one channel, so that they are images."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as exc:
        hint = "install scikit-learn: pip install 'edge-cl[evaluation]'"
        raise OperatorError("digits: they come with scikit-learn, which is not there", hint=hint) from exc
    bunch = load_digits()
    x, y = bunch.images[..., None].astype(np.uint8), bunch.target.astype(np.int64)
    return _dataset("digits", x, y, x[:0], y[:0])


def _dataset(
    name: str,
    x: NDArray[Any],
    y: Labels,
    test_x: NDArray[Any],
    test_y: Labels,
    *,
    label_names: tuple[str, ...] = (),
    marks: Marks | None = None,
) -> Dataset:
    good, test_good = _finite(x), _finite(test_x)
    if not good.all():
        x, y, marks = x[good], y[good], {mark: values[good] for mark, values in (marks or {}).items()}
    if len(y) == 0:
        raise OperatorError(f"{name}: every sample holds NaN or Inf", hint="look at what wrote the file")
    highest = max(int(labels.max(initial=0)) for labels in (y, test_y))
    if highest >= MOST_CLASSES:
        raise OperatorError(f"{name}: labels must be below {MOST_CLASSES} (got {highest})", hint="number them from 0")
    names = label_names or tuple(str(label) for label in range(highest + 1))
    return Dataset(name, x, y, test_x[test_good], test_y[test_good], names, marks or {}, {})


def _split(whole: Dataset, test: float, within: str | None) -> Dataset:
    groups = [whole.y] if within is None else [whole.y, mark_of(whole, within)]
    kept, held = split_by_time(groups, test)
    if len(held) == 0:
        raise OperatorError(f"{whole.name}: test: no class has two samples (got {test})", hint="hold nothing out: 0")
    return Dataset(
        name=whole.name,
        x=whole.x[kept],
        y=whole.y[kept],
        test_x=whole.x[held],
        test_y=whole.y[held],
        label_names=whole.label_names,
        marks={mark: values[kept] for mark, values in whole.marks.items()},
        test_marks={mark: values[held] for mark, values in whole.marks.items()},
    )


def _finite(x: NDArray[Any]) -> NDArray[np.bool_]:
    if x.dtype.kind != "f":
        return np.ones(len(x), dtype=bool)
    finite: NDArray[np.bool_] = np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    return finite
