"""Parsers for the options of a source URL; each raises ValueError with the rule in words. Knows no source."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path


def whole(minimum: int, maximum: int = 2**63 - 1) -> Callable[[str], int]:
    """Parser of a whole number in [minimum, maximum]."""
    rule = f"must be a whole number from {minimum} to {maximum}" if maximum < 2**63 - 1 else ""
    rule = rule or f"must be a whole number of at least {minimum}"

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not minimum <= int(text) <= maximum:
            raise ValueError(rule)
        return int(text)

    return parse


def streams(text: str) -> tuple[int, ...]:
    """Parse different stream numbers separated by commas, such as 0 or 0,2."""
    parse, parsed = whole(0, 0xFFFF), tuple(text.split(","))
    if len(set(parsed)) < len(parsed):
        raise ValueError("must be different stream numbers separated by commas, such as 0,2")
    return tuple(map(parse, parsed))


def one_of(*names: str) -> Callable[[str], str]:
    """Parser of one of the names."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return text

    return parse


def part(text: str) -> float:
    """Parse a part of a whole, between 0 and 1."""
    value = _positive(text, "must be a number between 0 and 1")
    if value >= 1:
        raise ValueError("must be a number between 0 and 1")
    return value


def name(text: str) -> str:
    """Parse the name of an array."""
    if not text.isidentifier():
        raise ValueError("must be the name of an array")
    return text


def names(text: str) -> tuple[str, ...]:
    """Parse names separated by commas."""
    parsed = tuple(name.strip() for name in text.split(","))
    if not all(parsed) or len(set(parsed)) < len(parsed):
        raise ValueError("must be different names separated by commas")
    return parsed


def shape(text: str) -> tuple[int, ...]:
    """Parse a shape of one to four dimensions, such as 3 or 32x3."""
    sizes = text.split("x")
    if len(sizes) > 4 or not all(size.isascii() and size.isdecimal() and 0 < int(size) < 65536 for size in sizes):
        raise ValueError("must be up to four whole numbers with x between them, such as 32x3")
    return tuple(map(int, sizes))


def seconds(text: str) -> float:
    """Parse a time in seconds, more than 0."""
    return _positive(text, "must be a number of seconds above 0")


def patience(text: str) -> float:
    """Parse a time in seconds, 0 or more."""
    return 0.0 if text == "0" else _positive(text, "must be a number of seconds, 0 or more")


def speed(text: str) -> float:
    """Parse a speed: 1 is real time, 20 twenty times as fast, max (inf) as fast as it goes."""
    return math.inf if text == "max" else _positive(text, "must be max or a number above 0 (1 is real time)")


def flag(text: str) -> bool:
    """Parse a switch: 1 is on, 0 is off."""
    if text not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return text == "1"


def words(text: str) -> str:
    """Parse printable text."""
    if not text or not text.isprintable():
        raise ValueError("must be printable text")
    return text


def in_file(text: str) -> Path:
    """Parse @FILE, the file that holds a secret: what stands in a URL is seen in logs and lists of processes."""
    if not text.startswith("@") or text == "@":
        raise ValueError("must be @ and the path of a file that holds it")
    return Path(text[1:])


def _positive(text: str, rule: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(rule) from None
    if not (math.isfinite(value) and value > 0):
        raise ValueError(rule)
    return value
