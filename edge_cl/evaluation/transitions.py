"""How a stream goes from one experience to the next: at a stroke, gradually, or back to what it has had before.

A sample is handed out once, whatever happens to the order. Knows experiences, not what is in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import OperatorError
from edge_cl.evaluation.stream import Experience, Stream, ends, generator


def recurring(stream: Sequence[Experience], again: int) -> Stream:
    """Each experience cut into again + 1 visits, as equal as may be: first visits one after another, then the next.

    Raises OperatorError if an experience has too few samples for that.
    """
    visits = again + 1
    shortest = min(len(experience.y) for experience in stream)
    if again < 1 or visits > shortest:
        rule = f"must be 1 up to {shortest - 1}, so that each visit has samples"
        raise OperatorError(f"recurring: {rule} (got {again})", hint="come back less often, or take more samples")
    return Stream([partial(_visit, stream, t, visit, visits) for visit in range(visits) for t in range(len(stream))])


def _visit(stream: Sequence[Experience], t: int, visit: int, visits: int) -> Experience:
    whole = stream[t]
    bounds = np.linspace(0, len(whole.y), visits + 1).astype(int)
    part = slice(bounds[visit], bounds[visit + 1])
    name = whole.name if visit == 0 else f"{whole.name}, visit {visit + 1}"
    return replace(whole, name=name, x=whole.x[part], y=whole.y[part])


def gradual(stream: Sequence[Experience], mixing: int, *, seed: int) -> Stream:
    """Around each change point, the probability to draw from the next experience rises linearly over `mixing` samples.

    Each experience keeps its own order, its length and its test samples; the change point is where the odds are even.
    Raises OperatorError if two transitions would overlap.
    """
    lengths = [len(experience.y) for experience in stream]
    if len(stream) < 2 or not 1 <= mixing <= min(lengths):
        rule = f"must be 1 up to {min(lengths)}, the samples of the shortest of at least two experiences"
        raise OperatorError(f"mixing: {rule} (got {mixing})", hint="mix over fewer samples")
    # A sample of position s, moved by a uniform jitter of ± mixing / 2, arrives anywhere around s with equal odds. So
    # the share of samples from before a change point falls linearly across it.
    jitter = generator(seed, "mixing").uniform(-mixing / 2, mixing / 2, sum(lengths))
    moved = np.argsort(np.arange(len(jitter)) + jitter, kind="stable")
    origin = np.repeat(np.arange(len(stream)), lengths)[moved]
    place = np.empty_like(origin)
    for t, length in enumerate(lengths):
        place[origin == t] = np.arange(length)  # which sample of its experience, in that experience's own order
    cuts = ends(stream)[:-1]
    parts = zip(np.split(origin, cuts), np.split(place, cuts), strict=True)
    return Stream([partial(_mixed, stream, t, *part) for t, part in enumerate(parts)])


def _mixed(stream: Sequence[Experience], t: int, origin: NDArray[np.int64], place: NDArray[np.int64]) -> Experience:
    own = stream[t]
    x, y, classes = np.empty_like(own.x), np.empty_like(own.y), set(own.classes)
    for source in np.unique(origin):
        here, whole = origin == source, stream[int(source)]
        x[here], y[here] = whole.x[place[here]], whole.y[place[here]]
        classes.update(whole.classes)
    return replace(own, x=x, y=y, classes=tuple(sorted(classes)))
