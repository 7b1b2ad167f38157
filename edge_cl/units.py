"""Sizes and durations as a person writes them, '8 MiB' or '50 ms', to numbers and back. Knows no key and no file."""

from __future__ import annotations

import re
from typing import Final

BYTES: Final = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SECONDS: Final = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}

_QUANTITY = re.compile(r"\s*([+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([^\s0-9.]*)\s*", re.ASCII)
_BYTES_RULE = "a number of bytes, or a number with B, KiB, MiB, GiB (powers of 1024) or kB, MB, GB (powers of 1000)"


def parse_bytes(value: object) -> int:
    """Whole bytes of a number of bytes or of a text such as '8 MiB'; 1 MiB is 1,048,576 and 1 MB is 1,000,000.

    Raises ValueError, naming the units, if it is neither or is not a whole number of bytes.

    >>> parse_bytes("8 MiB"), parse_bytes("64 MB"), parse_bytes(4096)
    (8388608, 64000000, 4096)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number, unit = _split(value, _BYTES_RULE)
    if unit and unit not in BYTES:
        raise ValueError(_wrong_byte_unit(unit))
    n_bytes = number * BYTES[unit or "B"]
    if n_bytes != int(n_bytes):
        raise ValueError("must be a whole number of bytes")
    return int(n_bytes)


def parse_duration(value: object, unit: str) -> float:
    """A duration in `unit` ('ms' or 's') of a number or of a text with that very unit.

    Another unit is refused rather than converted: a limit of 5 s where milliseconds are due is more often a slip than
    a wish. Raises ValueError with the right spelling.

    >>> parse_duration("50 ms", "ms"), parse_duration(30, "s")
    (50.0, 30.0)
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    number, given = _split(
        value, f"a number, or a number with the unit {unit}, such as '{50 if unit == 'ms' else 30} {unit}'"
    )
    if given in ("", unit):
        return number
    if given in SECONDS:
        right = number * SECONDS[given] / SECONDS[unit]
        raise ValueError(f"is given in {unit}, not in {given}: write '{right:.12g} {unit}'")
    raise ValueError(f"has no such unit as '{_cut(given)}': it is given in {unit}")


def parse_time(text: str) -> float:
    """Seconds of a text such as '500 ms' or '2 s'. Raises ValueError with the rule if it is none, or not above 0.

    >>> parse_time("500 ms"), parse_time("2 s")
    (0.5, 2.0)
    """
    rule = "a time above 0 with its unit, ms or s, such as '500 ms'"
    number, unit = _split(text, rule)
    if unit not in ("ms", "s") or number <= 0:
        raise ValueError(f"must be {rule}")
    return number * SECONDS[unit]


def format_bytes(n_bytes: float) -> str:
    """A size for a person, in powers of 1024, with three digits.

    >>> format_bytes(8388608), format_bytes(1000), format_bytes(0)
    ('8.00 MiB', '1000 B', '0 B')
    """
    unit = next((unit for unit in ("B", "KiB", "MiB") if abs(n_bytes) < 1024 * BYTES[unit]), "GiB")
    n_bytes /= BYTES[unit]
    digits = 0 if unit == "B" or abs(n_bytes) >= 100 else 1 if abs(n_bytes) >= 10 else 2
    return f"{n_bytes:.{digits}f} {unit}"


def _split(value: object, rule: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"must be {rule}")
    return float(match[1]), match[2]


def _wrong_byte_unit(unit: str) -> str:
    for meant in ("KiB", "MiB", "GiB"):
        if unit.lower() in (meant[0].lower(), meant.lower(), meant.lower().replace("i", ""), f"{meant[0].lower()}bit"):
            decimal = meant.replace("i", "")
            return (
                f"has no such unit as '{unit}': write {meant} ({BYTES[meant]:,} bytes) or {decimal} "
                f"({BYTES[decimal]:,} bytes)"
            )
    return f"has no such unit as '{_cut(unit)}': must be {_BYTES_RULE}"


def _cut(text: str) -> str:
    return text if len(text) <= 20 else text[:19] + "…"
