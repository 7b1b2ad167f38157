"""Arrays and plain values as bytes, and back to the bit: a safetensors file with JSON in its metadata.

Must not know what the arrays mean, nor where the bytes lie. The reading is the library's; the writing is ours, a header
of names and offsets before the arrays' own memory, because the library copies everything twice and a checkpoint is
written beside a learner that has been promised its memory. A test has the library read what is written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from edge_cl.storage.atomic import Part

Arrays = dict[str, np.ndarray]

_METADATA_KEY = "edge_cl"
_NAMES = {  # of dtypes, as the format writes them
    **{"bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"},
    **{"uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64"},
    **{"float16": "F16", "float32": "F32", "float64": "F64", "complex64": "C64"},
}
_ALIGNMENT = 8  # of the first array, in bytes: the format asks for it


def parts(arrays: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> list[Part]:
    """A header, then each array's own memory: views, copied only where an array is not contiguous.

    arrays: any shape and order, dtypes bool, (u)int8–64, float16–64, complex64. plain: dicts with str keys, lists, str,
    int, float, bool, None, which come back equal, each float to the bit. Raises TypeError.
    """
    _check_jsonable(dict(plain), "meta")
    ordered = {name: _plain(name, array) for name, array in arrays.items()}
    # The library wants the arrays of a file by falling alignment.
    ordered = dict(sorted(ordered.items(), key=lambda item: (-item[1].itemsize, item[0])))
    described: dict[str, Any] = {"__metadata__": {_METADATA_KEY: json.dumps(dict(plain))}}
    offset = 0
    for name, array in ordered.items():
        end = offset + array.nbytes
        described[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    header = json.dumps(described, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    buffers: list[Part] = [len(header).to_bytes(8, "little") + header]
    return buffers + [array.reshape(-1).view(np.uint8).data for array in ordered.values() if array.nbytes]


def pack(arrays: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> bytes:
    """The same in one piece. Raises TypeError."""
    return b"".join(parts(arrays, plain))


def unpack(content: bytes) -> tuple[Arrays, dict[str, Any]]:
    """Writable arrays and plain values; the caller has made sure that the bytes are what was once packed."""
    plain = plain_of(content)
    # safetensors hands out read-only views of the bytes; copies are the caller's own, and free those bytes.
    return {name: array.copy() for name, array in safetensors.numpy.load(content).items()}, plain


def plain_of(content: bytes) -> dict[str, Any]:
    """The plain values alone."""
    length = int.from_bytes(content[:8], "little")
    plain: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_METADATA_KEY])
    return plain


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.name not in _NAMES:
        raise TypeError(f"arrays[{name!r}]: no dtype that a checkpoint can hold (got {array.dtype})")
    # What is written is the array's memory, blind to strides: a transposed view would be saved out of order.
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _check_jsonable(value: object, where: str) -> None:
    # json.dumps alone would turn a tuple into a list and the key 1 into "1": a resumed learner would differ silently.
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: keys must be str (got {key!r})")
            _check_jsonable(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_jsonable(item, f"{where}[{index}]")
    elif not (value is None or isinstance(value, str | int | float)):
        raise TypeError(f"{where}: not a JSON value (got {type(value).__name__})")
