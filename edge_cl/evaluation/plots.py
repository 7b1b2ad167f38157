"""The figures of an evaluation: accuracy over time, the accuracy matrix, accuracy against bytes, prequential accuracy.

Each is drawn once and given twice: as PNG on white, and as SVG in the colours of the page around it, light or dark. The
only importer of matplotlib, and only when something is drawn. Knows no page and no file.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import OperatorError
from edge_cl.evaluation import theme
from edge_cl.evaluation.result import Result
from edge_cl.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN: Final = 7.2  # 720 px at 100 dots an inch, and every text is readable there
DPI: Final = 160  # of the PNG
MOST_NUMBERED: Final = 12  # experiences up to which a line or a cell carries its number

Curve = Sequence[tuple[int, Sequence[float | None]]]

MARKERS: Final = "osD^vP"
ON_DARK, ON_PALE = "#fdfdfd", "#020202"  # numbers on a painted cell, the same on every page
LUMINANCE: Final = np.array([0.299, 0.587, 0.114])  # of red, green and blue (ITU-R BT.601)

STYLE: Final[dict[Any, Any]] = {
    "font.size": 9,
    "text.color": theme.INK,
    "axes.labelcolor": theme.MUTED,
    "axes.edgecolor": theme.GRID,
    "axes.titlecolor": theme.INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": theme.GRID,
    "grid.linewidth": 0.6,
    "xtick.color": theme.MUTED,
    "ytick.color": theme.MUTED,
    "lines.linewidth": 1.6,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "svg.fonttype": "none",  # text stays text: smaller, and it can be found and copied
    "svg.hashsalt": "edge_cl",  # the same figure gives the same bytes
}


@dataclass(frozen=True)
class Drawing:
    """One figure: what it shows, how it is read, and itself as SVG (to stand in a page) and as PNG."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


def require() -> None:
    """Raise OperatorError unless matplotlib is there: asked before hours of work, not after them."""
    try:
        import matplotlib  # noqa: F401 - whether it can be imported is the question
    except ImportError as exc:
        raise OperatorError("a report needs matplotlib", hint="pip install 'edge-cl[evaluation]'") from exc


def draw(results: Sequence[Result]) -> list[Drawing]:
    """Every figure that these results of one stream have something to show in.

    Of a strategy with replay of several sizes only the figure against bytes shows all, the others show the largest.
    """
    require()
    figures, largest = [], _largest_of_each(results)
    with _style():
        if len(results[0].experiences) > 1 and all(result.average_accuracy.mean is not None for result in largest):
            figures += [accuracy_over_time(largest), accuracy_matrix(largest)]
        if len({result.replay_bytes for result in results}) > 1:
            figures.append(accuracy_against_bytes(results))
        if all(len(run.prequential_curve) > 1 for result in largest for run in result.runs):
            figures.append(prequential_accuracy(largest))
    return figures


def accuracy_over_time(results: Sequence[Result]) -> Drawing:
    """A panel a strategy, all on the same axes: a line for each experience from when it began, switches dotted."""
    figure, panels = _panels(len(results), height_in=2.75)
    lowest = min((line.min() for result in results for _, line in _lines(result)), default=0.0)
    panels[0].set_ylim(np.floor(lowest / 10) * 10 - 2, 102)
    for axes, result in zip(panels, results, strict=False):
        _experiences(axes, result)
        axes.set_title(_ending(result), pad=18)
    _outer_labels(figure, x="samples learnt", y="accuracy, %")
    return _drawing(
        figure,
        "accuracy-over-time",
        "Accuracy on each experience while the others are learnt",
        "A line is one experience, from the moment it began; the strip above tells which one was being learnt. The "
        "thick line is the mean of those already over: where it falls, something was forgotten. The dot is the mean of "
        "all at the end.",
    )


def accuracy_matrix(results: Sequence[Result]) -> Drawing:
    """R of each strategy as a heat map on one scale, every cell with its number."""
    many = len(results[0].experiences) > MOST_NUMBERED
    figure, panels = _panels(len(results), height_in=5.6 if many else 3.0, columns=1 if many else 2)
    for axes, result in zip(panels, results, strict=False):
        _heat_map(axes, result)
        axes.set_title(_ending(result))
    _outer_labels(figure, x="on experience", y="after learning")
    return _drawing(
        figure,
        "accuracy-matrix",
        "Accuracy on each experience after each was learnt, %",
        "Row i is the state after experience i. On the diagonal stands what has just been learnt, below it what was "
        "left of it later, above it what was known before it came. The last row is the end.",
    )


def accuracy_against_bytes(results: Sequence[Result]) -> Drawing:
    """Average accuracy against the bytes of replay, a line a strategy; those without replay are level lines."""
    figure, (axes,) = _panels(1, height_in=3.6)
    named = []
    for index, (strategy, group) in enumerate(_by_strategy(results).items()):
        colour, marker = theme.of_strategy(index), MARKERS[index % len(MARKERS)]
        points = sorted((result.replay_bytes, *_end(result)) for result in group)
        if points[-1][0] == 0:
            axes.axhline(points[0][1], color=colour, linestyle="--", linewidth=1.2)
        else:
            n_bytes, mean, std = np.array(points).T
            axes.errorbar(n_bytes, mean, std, color=colour, marker=marker, capsize=3, elinewidth=1)
        named.append((points[-1][1], strategy, colour))
    axes.set_xscale("log")
    sizes = sorted({result.replay_bytes for result in results} - {0})
    axes.set_xticks(sizes, [format_bytes(size) for size in sizes])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.08)
    _outer_labels(figure, x="bytes of replay", y="average accuracy, %")
    _name_lines(axes, named)
    return _drawing(
        figure,
        "accuracy-against-bytes",
        "Average accuracy against the bytes of replay",
        "Mean over the seeds with their standard deviation. Labels and stored logits are counted. A dashed line keeps "
        "no samples at all.",
    )


def prequential_accuracy(results: Sequence[Result]) -> Drawing:
    """Accuracy of the answers given before learning, over time, beside the baselines."""
    figure, (axes,) = _panels(1, height_in=3.4)
    named = []
    for index, result in enumerate(results):
        colour = theme.of_strategy(index)
        x, mean, std = _mean_curve([[(n, [right]) for n, right in run.prequential_curve] for run in result.runs])
        axes.plot(x, mean[:, 0], color=colour)
        axes.fill_between(x, (mean - std)[:, 0], (mean + std)[:, 0], color=colour, alpha=0.15, linewidth=0)
        named.append((mean[-1, 0], result.strategy, colour))
    first = results[0]
    for name, baseline, dashes in (("no change", first.no_change, (4, 2)), ("majority", first.majority, (1, 2))):
        if baseline.mean is not None:
            axes.axhline(100 * baseline.mean, color=theme.MUTED, linewidth=1.2, linestyle=(0, dashes))
            named.append((100 * baseline.mean, name, theme.MUTED))
    _switches(axes, first)
    _count_samples(axes)
    _outer_labels(figure, x="samples that came", y="accuracy, %")
    _name_lines(axes, named)
    return _drawing(
        figure,
        "prequential-accuracy",
        "Accuracy of the answers given before learning",
        "Every sample is answered when it comes and learnt afterwards; a line is the mean over the last window. No "
        "change answers with the last label it knows, majority with the most frequent one; both are over the whole "
        "stream.",
    )


def _experiences(axes: Axes, result: Result) -> None:
    """The lines of one result, the mean of what is over, and the strip that tells which experience was learnt when."""
    n, named = len(result.experiences), []
    x, mean, _ = _mean_curve([run.curve for run in result.runs])
    for j, (at, line) in enumerate(_lines(result)):
        axes.plot(at, line, color=theme.of_experience(j, n), linewidth=1.2)
        named.append((line[-1], str(j + 1), theme.of_experience(j, n)))
    for i, (start, end) in enumerate(pairwise(result.ends), 1):
        over = mean[:, :i].mean(1)
        there = (start <= x) & (x <= end) & np.isfinite(over)
        axes.plot(x[there], over[there], color=theme.INK, linewidth=2.4, alpha=0.85)
    axes.plot(result.ends[-1], _end(result)[0], "o", color=theme.INK, markersize=5, clip_on=False)
    _switches(axes, result)
    _count_samples(axes)
    axes.set_xlim(0, result.ends[-1])
    if n <= MOST_NUMBERED:
        _name_lines(axes, named)
    for j, (start, end) in enumerate(pairwise((0, *result.ends))):
        axes.plot(
            [start, end], [1.03, 1.03], color=theme.of_experience(j, n), linewidth=5, clip_on=False,
            solid_capstyle="butt", transform=axes.get_xaxis_transform(),
        )  # fmt: skip
        if n <= MOST_NUMBERED:
            axes.annotate(
                str(j + 1), ((start + end) / 2, 1.045), xycoords=axes.get_xaxis_transform(), ha="center",
                va="bottom", fontsize=8, color=theme.MUTED, annotation_clip=False,
            )  # fmt: skip


def _heat_map(axes: Axes, result: Result) -> None:
    matrix, n = 100 * result.accuracy_matrix, len(result.experiences)
    learnt = np.ma.masked_invalid(np.where(np.tri(n, dtype=bool), matrix, np.nan))
    image = axes.pcolormesh(learnt, cmap="cividis", vmin=0, vmax=100, edgecolors=theme.PAPER, linewidth=1)
    axes.set_ylim(n, 0)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    step = -(-n // 15)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(np.arange(0, n, step) + 0.5, [str(j + 1) for j in range(0, n, step)])
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            paint = image.to_rgba(np.array([value]))[0, :3] @ LUMINANCE
            colour = theme.MUTED if j > i else ON_DARK if paint < 0.55 else ON_PALE
            size = 8.5 if n <= 6 else 7 if n <= MOST_NUMBERED else 5
            axes.text(j + 0.5, i + 0.5, f"{value:.0f}", ha="center", va="center", fontsize=size, color=colour)


# Figures out of results


def _lines(result: Result) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """For each experience the samples so far and the accuracy on it in percent, from where it began."""
    x, mean, _ = _mean_curve([run.curve for run in result.runs])
    for j, start in enumerate((0, *result.ends[:-1])):
        there = (x > start) & np.isfinite(mean[:, j])
        if there.any():
            yield x[there], mean[there, j]


def _mean_curve(curves: Sequence[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Where the first seed was looked at (n,); there, mean and deviation (n, T) over all of them in percent."""
    x = np.array([at for at, _ in curves[0]], dtype=np.float64)
    values = 100 * np.array([_looked_up(curve, x) for curve in curves])  # (seeds, n, T)
    return x, values.mean(0), values.std(0, ddof=1 if len(curves) > 1 else 0)


def _looked_up(curve: Curve, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve's values (n, T) at x (n,), on the straight line between two looks, NaN before the first one."""
    at, values = np.array([at for at, _ in curve]), np.array([values for _, values in curve], dtype=np.float64)
    there = np.full((len(x), values.shape[1]), np.nan)
    for j, looks in enumerate(values.T):
        known = np.isfinite(looks)
        if known.any():
            there[:, j] = np.interp(x, at[known], looks[known], left=np.nan, right=np.nan)
    return there


def _end(result: Result) -> tuple[float, float]:
    """Average accuracy at the end and its deviation, in percent."""
    mean, std = result.average_accuracy.mean, result.average_accuracy.std
    return (np.nan, np.nan) if mean is None or std is None else (100 * mean, 100 * std)


def _ending(result: Result) -> str:
    mean = result.average_accuracy.mean
    return result.strategy if mean is None else f"{result.strategy}: {100 * mean:.1f} % at the end"


def _by_strategy(results: Iterable[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.strategy].append(result)
    return groups


def _largest_of_each(results: Iterable[Result]) -> list[Result]:
    return [max(group, key=lambda result: result.replay_bytes) for group in _by_strategy(results).values()]


# Paper and pen


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def _panels(n: int, *, height_in: float, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure with n panels on shared axes, two in a row where they fit."""
    from matplotlib.figure import Figure  # not pyplot: no window, no state, no canvas but the file's

    columns = min(n, columns)
    rows = -(-n // columns)
    figure = Figure(figsize=(WIDTH_IN, rows * height_in + 0.35), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in panels[n:]:
        axes.set_visible(False)
    return figure, list(panels)


def _outer_labels(figure: Figure, *, x: str, y: str) -> None:
    figure.supxlabel(x, fontsize=9, color=theme.MUTED)
    figure.supylabel(y, fontsize=9, color=theme.MUTED)


def _count_samples(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda n, _: f"{n / 1000:g}k" if n >= 1000 else f"{n:g}")
    axes.margins(x=0)


def _switches(axes: Axes, result: Result) -> None:
    for end in result.ends[:-1]:
        axes.axvline(end, color=theme.MUTED, linewidth=0.8, linestyle=":")


def _name_lines(axes: Axes, named: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name in its colour to the right of where it ends, (height, name, colour), none on another."""
    low, high = axes.get_ylim()
    gap = 9.5 * (high - low) / (72 * axes.bbox.height / axes.figure.dpi)  # of a line of text, in units of the axis
    places = _apart([height for height, *_ in sorted(named)], gap, low, high)
    for (_, name, colour), at in zip(sorted(named), places, strict=True):
        axes.annotate(
            name, (1, at), xycoords=axes.get_yaxis_transform(), xytext=(4, 0), textcoords="offset points",
            color=colour, va="center", fontsize=8.5, annotation_clip=False,
        )  # fmt: skip


def _apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending heights moved as little as it takes for neighbours to be `gap` apart, between low and high.

    Overlapping ones form blocks that stand around the mean of what they hold.

    >>> _apart([10.0, 11.0, 50.0], 4.0, 0.0, 100.0)
    [8.5, 12.5, 50.0]
    >>> _apart([0.0, 0.0, 0.0], 4.0, 0.0, 100.0)
    [0.0, 4.0, 8.0]
    """
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and _top(blocks[-2], gap) + gap > _bottom(blocks[-1], gap):
            last = blocks.pop()
            blocks[-1] += last
    places = [_bottom(block, gap) + index * gap for block in blocks for index in range(len(block))]
    highest = high - gap * (len(places) - 1)
    return [min(max(place, low + index * gap), highest + index * gap) for index, place in enumerate(places)]


def _bottom(block: Sequence[float], gap: float) -> float:
    return sum(block) / len(block) - gap * (len(block) - 1) / 2


def _top(block: Sequence[float], gap: float) -> float:
    return _bottom(block, gap) + gap * (len(block) - 1)


def _drawing(figure: Figure, name: str, title: str, caption: str) -> Drawing:
    """The figure as SVG, whose page says the title, and as PNG, which says it itself."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    figure.suptitle(title, x=0.01, ha="left")
    figure.savefig(png, format="png", dpi=DPI, facecolor=theme.PAPER)
    return Drawing(name, title, caption, theme.themed(svg.getvalue(), name, title), png.getvalue())
