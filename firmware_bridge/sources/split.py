"""Which samples of a recording are played, in which order, and which are held out as its test split.

Only indices: it knows labels and groups, no samples and no file.
"""

from __future__ import annotations

import numpy as np

from firmware_bridge.sample import Values


def split_by_time(groups: list[Values], test: float) -> tuple[Values, Values]:
    """Rows to play and rows to hold out: of each group the last `test` part, 0 < test < 1, in the order of the file.

    groups: arrays (N,); rows that agree in all of them are one group. A random split would put neighbours in time on
    both sides, which for a sensor are nearly the same sample. A group of one row is played.
    """
    _, group = np.unique(np.stack(groups, axis=1), axis=0, return_inverse=True)
    group = group.reshape(-1)
    sizes = np.bincount(group)
    held = np.minimum(np.ceil(test * sizes).astype(np.int64), sizes - 1)
    by_group = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    place = np.empty(len(group), dtype=np.int64)
    place[by_group] = np.arange(len(group)) - starts[group[by_group]]  # place of each row within its group
    out = place >= (sizes - held)[group]
    return np.flatnonzero(~out), np.flatnonzero(out)


def ordered(rows: Values, key: Values | None) -> Values:
    """The rows sorted by the key (N,), the file's order kept where keys are equal; None keeps it everywhere."""
    return rows if key is None else rows[np.argsort(key[rows], kind="stable")]
