"""Parsers for the options of a source URL; each raises ValueError with the rule in words. Knows no source."""

from __future__ import annotations

import math
from collections.abc import Callable


def whole(minimum: int, maximum: int = 2**63 - 1) -> Callable[[str], int]:
    """Parser of a whole number in [minimum, maximum]."""
    rule = f"must be a whole number from {minimum} to {maximum}" if maximum < 2**63 - 1 else ""
    rule = rule or f"must be a whole number of at least {minimum}"

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not minimum <= int(text) <= maximum:
            raise ValueError(rule)
        return int(text)

    return parse


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


def seconds(text: str) -> float:
    """Parse a time in seconds, more than 0."""
    return _positive(text, "must be a number of seconds above 0")


def speed(text: str) -> float:
    """Parse a speed: 1 is real time, 20 twenty times as fast, max (inf) as fast as it goes."""
    return math.inf if text == "max" else _positive(text, "must be max or a number above 0 (1 is real time)")


def _positive(text: str, rule: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(rule) from None
    if not (math.isfinite(value) and value > 0):
        raise ValueError(rule)
    return value
