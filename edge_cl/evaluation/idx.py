"""Images and labels in the IDX format of MNIST, as they are or compressed by gzip. Knows files and arrays only.

    bytes 0, 1      zero
    byte 2          type of a value: 08 uint8, 09 int8, 0B int16, 0C int32, 0D float32, 0E float64
    byte 3          number of dimensions
    4 bytes each    the dimensions; these and all values are big-endian

LeCun, Cortes, Burges: The MNIST database of handwritten digits (1998).
"""

from __future__ import annotations

import gzip
import zlib
from io import BufferedIOBase
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import OperatorError

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_HINT = "MNIST's files are train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k, also as .gz"


class IdxFiles(NamedTuple):
    """Which files make one set: images and labels to train on and, where there are any, to test on."""

    images: Path
    labels: Path
    test_images: Path | None
    test_labels: Path | None


def is_idx(path: Path) -> bool:
    """Whether the file begins as an IDX file does."""
    try:
        with _opened(path) as file:
            return file.read(2) == b"\0\0"
    except (OSError, EOFError, zlib.error):
        return False


def idx_files(path: Path) -> IdxFiles:
    """The set in a folder, or the one that a file of training images belongs to, by their names.

    Raises OperatorError if a folder holds none or several, or a file of the set is missing.
    """
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if _role(file, "images") and "train" in file.name)
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise OperatorError(f"{path}: must hold one file of training images (got {names})", hint=_HINT)
        path = found[0]
    if not _role(path, "images"):
        raise OperatorError(f"{path}: name the file of the images, or the folder (got {path.name})", hint=_HINT)
    labels = _labels_of(path)
    others = (_beside(path, path.name.replace("train", test)) for test in ("t10k", "test") if "train" in path.name)
    test_images = next((other for other in others if other is not None), None)
    return IdxFiles(path, labels, test_images, None if test_images is None else _labels_of(test_images))


def read_pair(images: Path, labels: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """x (N, *shape) in the file's type, float64 narrowed to float32, and y (N,).

    Raises OperatorError, naming file, value and rule, if they are not IDX or do not belong together.
    """
    x, y = read_idx(images), read_idx(labels)
    if x.ndim < 2 or len(x) == 0:
        raise OperatorError(f"{images}: must hold at least one image (got shape {x.shape})", hint=_HINT)
    if y.shape != (len(x),):
        raise OperatorError(f"{labels}: must hold a label for each of {len(x)} images (got {y.shape})", hint=_HINT)
    with np.errstate(invalid="ignore"):
        bad = ~((y >= 0) & (y == np.floor(y)))
    if bad.any():
        raise OperatorError(f"{labels}: labels must be whole numbers from 0 (got {y[bad][0]})", hint=_HINT)
    with np.errstate(over="ignore"):  # what is too large for float32 becomes Inf, and is dropped as such
        return (x.astype(np.float32) if x.dtype == np.float64 else x), y.astype(np.int64)


def read_idx(path: Path) -> NDArray[Any]:
    """The array of an IDX file in this machine's byte order. Raises OperatorError if it is not one, or cut short."""
    try:
        with _opened(path) as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES:
                raise OperatorError(f"{path}: not an IDX file (begins with {head.hex(' ')})", hint=_HINT)
            dtype, ndim = np.dtype(_TYPES[head[2]]), head[3]
            shape = tuple(int(size) for size in np.frombuffer(file.read(4 * ndim), ">u4"))
            promised = prod(shape) * dtype.itemsize
            values = file.read(promised + 1)  # one more, to see whether there is more; never more than that
    except (OSError, EOFError, zlib.error, ValueError, OverflowError, MemoryError) as exc:
        raise OperatorError(f"{path}: cannot be read ({exc})", hint=_HINT) from exc
    if len(shape) != ndim or len(values) != promised:
        got = "more" if len(values) > promised else f"{len(values)}"
        raise OperatorError(f"{path}: must hold {promised} bytes for shape {shape} (got {got})", hint=_HINT)
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _opened(path: Path) -> BufferedIOBase:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def _role(file: Path, role: str) -> bool:
    return file.is_file() and role in file.name and "idx" in file.name


def _labels_of(images: Path) -> Path:
    labels = _beside(images, images.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels is None:
        raise OperatorError(f"{images}: there are no labels beside it", hint=_HINT)
    return labels


def _beside(file: Path, name: str) -> Path | None:
    """The file of that name in the same folder, packed or not."""
    plain = file.with_name(name.removesuffix(".gz"))
    return next((path for path in (plain, plain.with_name(f"{plain.name}.gz")) if path.is_file()), None)
