"""YAML text to plain values, with the line of every key and every fault. Knows no key of ours; see config.py for those.

A subset on purpose, because a device's configuration is read by people in a hurry: no anchors or aliases (271 bytes of
them can unfold into 43 million values), no tags, no second document, no key twice (PyYAML keeps the last, silently),
and nothing that YAML 1.1 reads as something else than it looks like (`no` is false, 12:30:45 is 45045, 010 is 8).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

MAX_BYTES: Final = 1 << 20  # a configuration is a few KiB; the parser needs some 100 times the text in memory
MAX_DEPTH: Final = 16  # ours has two; PyYAML's composer recurses, so the depth is checked before it starts

Path = tuple[str | int, ...]

_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")  # what an escape such as "\ud800" leaves
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in the text that may not be there: line from 1, path of keys, what is wrong, the text found."""

    line: int
    path: Path
    what: str
    got: str = ""


@dataclass(slots=True)
class Document:
    """What the text says: nested dicts and lists, the line of each path, and the faults. Wrong values are left out."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Path, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def read(text: str) -> Document:
    """The document of a text whose top is a mapping, or which is empty; never raises, faults are in the result."""
    document = Document()
    root = _compose(text, document)
    if isinstance(root, yaml.MappingNode):
        document.values = _value(root, (), document)
    elif root is not None and (root.value or not root.tag.endswith(":null")):  # a lone '---' says nothing either
        found = "a list" if isinstance(root, yaml.SequenceNode) else _shorten(root.value)
        document.faults.append(Fault(_line(root), (), "must be keys with values, such as 'source: …'", found))
    return document


def read_value(text: str) -> tuple[Any, list[Fault]]:
    """One value, as it may stand behind `key: `, with its faults (their paths begin below the value)."""
    document = Document()
    node = _compose(text, document)
    value = None if node is None else _value(node, (), document)
    return value, document.faults


def _compose(text: str, document: Document) -> yaml.Node | None:
    try:
        document.faults.extend(_forbidden(text))
        return None if document.faults else yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as exc:
        document.faults.append(_syntax_fault(exc, text))
    except (ValueError, OverflowError):  # PyYAML lets chr() fail on "\\UFFFFFFFF"
        document.faults.append(Fault(1, (), "not valid YAML: an escape that is no character"))
    return None


def _forbidden(text: str) -> Iterator[Fault]:
    documents, depth = 0, 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            yield Fault(line, (), "aliases are not allowed: write the value again", f"*{event.anchor}")
        elif isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            yield Fault(line, (), "anchors are not allowed: write the value where it is used", f"&{event.anchor}")
        tag = getattr(event, "tag", None)
        if tag is not None:
            yield Fault(line, (), "tags are not allowed: write the plain value", str(tag))
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents == 2:
                yield Fault(line, (), "a second document is not allowed: remove the line '---'")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            yield Fault(line, (), f"nested deeper than {MAX_DEPTH} levels")
            return


def _value(node: yaml.Node, path: Path, document: Document) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document)
    if not isinstance(node, yaml.ScalarNode):
        return [_value(item, (*path, index), document) for index, item in enumerate(node.value)]
    try:
        return _scalar(node)
    except ValueError as exc:
        document.faults.append(Fault(_line(node), path, str(exc), _shorten(node.value)))
        return None


def _mapping(node: yaml.MappingNode, path: Path, document: Document) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or _SURROGATE.search(key_node.value):
            document.faults.append(Fault(_line(key_node), path, "a key must be a word"))
            continue
        key, here = key_node.value, (*path, key_node.value)
        if here in document.lines:
            first = document.lines[here]
            document.faults.append(Fault(_line(key_node), here, f"is there twice, first in line {first}: keep one"))
            continue
        document.lines[here] = _line(key_node)
        n_faults = len(document.faults)
        value = _value(value_node, here, document)
        if len(document.faults) == n_faults or isinstance(value, dict):  # nobody need complain a second time
            values[key] = value
    return values


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    """The value of a scalar if YAML 1.1, YAML 1.2 and a reader's eye agree on it. Raises ValueError if they do not."""
    text, kind = node.value, node.tag.rpartition(":")[2]
    if _SURROGATE.search(text):
        raise ValueError("half a character: nothing could print this")
    if node.style in ("'", '"', "|", ">"):
        return str(text)
    if kind == "bool" and text.lower() in ("true", "false"):
        return bool(text.lower() == "true")
    if kind == "null":
        return None
    if kind == "int" and _DECIMAL.fullmatch(text):
        return int(text)
    if kind in ("float", "str") and _FLOAT.fullmatch(
        text
    ):  # 1e-3 is a text in YAML 1.1; nobody who writes it means one
        return _finite(float(text))
    if kind == "float" and _NOT_FINITE.fullmatch(text):
        raise ValueError("must be a finite number")
    if kind == "str":
        return str(text)
    raise ValueError(_trap(text, kind))


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    return number


def _trap(text: str, kind: str) -> str:
    if kind == "bool":
        meant = "true" if text.lower() in ("yes", "on") else "false"
        return f"YAML reads this word as {meant}: write {meant}, or put it in quotes if the text is meant"
    if kind in ("int", "float"):
        return "not a plain decimal number: write it with digits only, or in quotes if the text is meant"
    return f"YAML reads this as a {kind}: put it in quotes if the text is meant"


def _syntax_fault(exc: yaml.YAMLError, text: str) -> Fault:
    if isinstance(exc, yaml.reader.ReaderError):
        line = text.count("\n", 0, exc.position) + 1
        return Fault(line, (), "not text: a character that YAML does not allow", f"U+{exc.character:04X}")
    mark = getattr(exc, "problem_mark", None) or getattr(exc, "context_mark", None)
    what = str(getattr(exc, "problem", None) or getattr(exc, "context", None) or exc)
    if "\\t" in what:
        what = "a tab: YAML indents with spaces"
    return Fault(mark.line + 1 if mark else 1, (), f"not valid YAML: {what}")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _shorten(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else text[:59] + "…"
