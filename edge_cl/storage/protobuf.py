"""What is needed of ONNX's bytes without importing onnx: add metadata, notice external data, read the weights.

Knows the protobuf wire format and the field numbers of onnx.proto3, nothing of models.

    message = field*      field = tag varint (number << 3 | wire type), then by wire type
        0  varint      1  8 bytes      2  length varint, that many bytes      5  4 bytes
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_METADATA_PROPS = 14  # ModelProto; an entry has key = 1, value = 2
_DATA_TYPE, _RAW_DATA, _FLOAT = 2, 9, 1  # TensorProto, and the value of its type for float32
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # TensorProto

# Every road from a ModelProto to a TensorProto: message → {field: message it holds}.
_ROADS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}


def metadata_props(metadata: Mapping[str, str]) -> bytes:
    """The entries in the wire format, to be put behind a serialised ModelProto that has none of these keys.

    Putting them behind is a legal merge: fields may come in any order, and the elements of a repeated field need not
    stand together; the parser appends each one it meets to the list (protobuf's encoding guide, "Last One Wins":
    parsing two encodings one behind the other equals parsing each and merging, and merging concatenates repeated
    fields).
    """
    entries = (_bytes_field(1, key.encode()) + _bytes_field(2, value.encode()) for key, value in metadata.items())
    return b"".join(_bytes_field(_METADATA_PROPS, entry) for entry in entries)


def has_external_data(model: bytes) -> bool:
    """Whether any tensor of a serialised ModelProto says that its values are in another file.

    Looks into initialisers, attributes, subgraphs, functions and sparse tensors.
    Raises ValueError if the bytes are no protobuf.
    """
    waiting = [("model", memoryview(model))]
    while waiting:  # a list and not recursion: nesting is the sender's choice, the stack is ours
        kind, message = waiting.pop()
        for number, value in _fields(message):
            if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
                return True
            held = _ROADS[kind].get(number)
            if held is not None:
                if not isinstance(value, memoryview):
                    raise ValueError(f"field {number} of a {kind} is no message")
                waiting.append((held, value))
    return False


def initializers(model: bytes) -> dict[str, np.ndarray]:
    """The float32 weights of a serialised ModelProto's graph, each by its name and of its shape; views of the bytes.

    Others are passed over. Raises ValueError if the bytes are no protobuf, or a weight's are not as many as its shape.
    """
    found = {}
    for graph in _messages(memoryview(model), 7):
        for tensor in _messages(graph, 5):
            fields = list(_fields(tensor))
            raw = next((value for number, value in fields if number == _RAW_DATA), None)
            if (_DATA_TYPE, _FLOAT) in fields and isinstance(raw, memoryview):
                name = next(bytes(value).decode() for number, value in fields if number == 8)
                found[name] = np.frombuffer(raw, "<f4").reshape(_dimensions(fields))
    return found


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in _fields(message):
        if number == wanted:
            if not isinstance(value, memoryview):
                raise ValueError(f"field {number} is no message")
            yield value


def _dimensions(fields: Sequence[tuple[int, int | memoryview]]) -> list[int]:
    sizes: list[int] = []
    for number, value in fields:
        if number == 1 and isinstance(value, int):
            sizes.append(value)
        elif number == 1 and isinstance(value, memoryview):  # packed
            at = 0
            while at < len(value):
                size, at = _read_varint(value, at)
                sizes.append(size)
    return sizes


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        wire = tag & 7
        value: int | memoryview
        if wire == _VARINT:
            value, at = _read_varint(message, at)
        else:
            if wire == _BYTES:
                size, at = _read_varint(message, at)
            elif wire in (_FIXED32, _FIXED64):
                size = 4 if wire == _FIXED32 else 8
            else:
                raise ValueError(f"wire type {wire} is not in use")
            value, at = message[at : at + size], at + size
            if at > len(message):
                raise ValueError("a field is longer than its message")
        yield tag >> 3, value


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at == len(message):
            raise ValueError("a number ends with its message")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is longer than 64 bits")


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
