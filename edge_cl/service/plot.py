"""Bars and curves out of block characters. Knows numbers and widths only: no status, no terminal.

Full and empty differ by character and not only by colour, so that they read the same under NO_COLOR.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from rich.text import Text

_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
_PARTIAL: Final = " ▏▎▍▌▋▊▉█"
_SHADES: Final = "█▓▒"
PALETTE: Final = ("cyan", "blue", "magenta", "green", "yellow", "bright_blue", "bright_magenta", "bright_cyan")


def grade(accuracy: float) -> str:
    """The colour of an accuracy in [0, 1]."""
    return "green" if accuracy >= 0.8 else "yellow" if accuracy >= 0.5 else "red"


def load(fraction: float) -> str:
    """The colour of a share of a limit: 1 is the limit."""
    return "green" if fraction < 0.75 else "yellow" if fraction <= 1 else "bold red"


def bar(fraction: float, width: int, style: str) -> Text:
    """A bar of `width` cells, filled to an eighth of a cell; below 0 and above 1 it is empty and full."""
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    filled = "█" * full + (_PARTIAL[rest] if rest else "")
    return Text(filled, style) + Text("░" * (width - len(filled)), "bright_black")


def stacked(parts: Sequence[float], whole: float, width: int) -> Text:
    """Parts of a whole in one bar of `width` cells, each in its colour and shade, then what is free."""
    drawn = Text()
    done, cells = 0.0, 0
    for index, part in enumerate(parts):
        done += part
        upto = min(width, round(done / whole * width)) if whole > 0 else 0
        drawn.append(_SHADES[index % len(_SHADES)] * (upto - cells), shade(index))
        cells = max(cells, upto)
    return drawn.append("░" * (width - cells), "bright_black")


def shade(index: int) -> str:
    """The colour of the index-th part of a stacked bar."""
    return PALETTE[index % len(PALETTE)]


def key(index: int) -> Text:
    """The sample of the index-th part that stands in a legend."""
    return Text(_SHADES[index % len(_SHADES)] * 2, shade(index))


def curve(values: Sequence[float], width: int, height: int) -> list[Text]:
    """Values in [0, 1], oldest first, as `height` lines of `width` cells, the top line first; 1 fills all of them."""
    columns = resample(values, width)
    return [_row(columns, width, height - 1 - line, height) for line in range(height)]


def sparkline(values: Sequence[float | None], width: int) -> Text:
    """The last `width` values in [0, 1] as one line, one cell each, each in its grade; '·' where there is none."""
    drawn = Text()
    for value in values[max(0, len(values) - width) :]:
        if value is None:
            drawn.append("·", "bright_black")
        else:
            drawn.append(_EIGHTHS[max(1, round(min(max(value, 0.0), 1.0) * 8))], grade(value))
    return drawn


def resample(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values of the same course: each the mean of an equal stretch.

    >>> resample([0, 1, 1, 1], 2)
    [0.5, 1.0]
    """
    n = len(values)
    if n <= width:
        return list(values)
    edges = [index * n // width for index in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def _row(columns: Sequence[float], width: int, below: int, height: int) -> Text:
    drawn = Text()
    for value in columns:
        eighths = min(8, max(0, round(value * height * 8) - below * 8))
        eighths = max(eighths, 1) if below == 0 else eighths  # a zero is a value too
        drawn.append(_EIGHTHS[eighths], grade(value))
    return drawn.append(" " * (width - len(columns)))
