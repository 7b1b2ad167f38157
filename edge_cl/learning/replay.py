"""A reservoir of past samples in the sensor's own integers, or in fewer bits, in a fixed number of bytes.

Knows samples, labels and which of them to keep. Must not know networks, losses or where the stream comes from.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.learning.draws import Draws
from edge_cl.learning.packing import packing_of

POLICIES = ("balanced", "reservoir")
LABEL_BYTES = 2
LOGIT_BYTES = 2
LARGEST_LOGIT = 65504.0  # of half precision
STRETCH = 1024  # rows looked over at once: enough to skip rejected ones cheaply, few enough to look over again
ALMOST_ONE = 1 - 1e-9  # no rounding may make the odds too small


class Reservoir:
    """At most `capacity` samples of a stream, uniform over the stream or balanced over its classes.

    reservoir: Algorithm R (Vitter 1985): after n samples each is held with probability capacity / n.
    balanced:  class-balancing reservoir sampling (Chrysakis & Moens 2020): a sample of a class that has not been the
               largest yet replaces one of the largest; within a class that has been, Algorithm R decides. So each class
               is held uniformly over its own stream, and rare classes are never lost.

    What is held does not depend on how the stream is cut into offers. Samples (*shape) keep the sensor's dtype, or are
    packed in `bits` bits a value (`Packing`, which needs their `layout`). With n_logits above 0, logits (n_logits,) are
    kept beside each sample in half precision. Everything is allocated at once: capacity · bytes_per_sample, beside
    the random numbers of `Draws`.
    `undecided`: how many bits serve is found out later, by who can tell; `repack` then makes room for more samples in
    the same bytes, up to `most`.
    Raises ValueError if the policy is unknown, capacity or n_logits below 0, or samples cannot be packed like that.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        n_classes: int,
        policy: str = "balanced",
        seed: int = 0,
        bits: int | None = None,
        layout: tuple[int, ...] | None = None,
        n_logits: int = 0,
        undecided: bool = False,
        most: int | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"replay.policy: must be one of {', '.join(POLICIES)} (got {policy})")
        for name, number in (("capacity", capacity), ("n_logits", n_logits)):
            if number < 0:
                raise ValueError(f"{name}: must be at least 0 (got {number})")
        self.policy = policy
        self.layout = shape if layout is None else layout
        self.shape, self.dtype = shape, dtype  # of one sample, as it is offered and taken
        self.n_logits, self.undecided = n_logits, undecided
        self._most = capacity if most is None and not undecided else most
        self._packing = packing_of(shape, dtype, bits, layout)
        self._carve(np.zeros(capacity * self.bytes_per_sample, np.uint8), capacity)
        self.size = 0
        self._seen = np.zeros(n_classes, dtype=np.int64)
        self._held = np.zeros(n_classes, dtype=np.int64)
        self._draws = Draws(seed)
        self._set_odds()

    @property
    def capacity(self) -> int:
        """Samples it can hold."""
        return len(self.labels)

    @property
    def bits(self) -> int | None:
        """Bits of a stored value; None: as the sensor made it."""
        return self._packing.bits if self._packing else None

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of one sample with its label and its logits."""
        return bytes_per_sample(self.shape, self.dtype, bits=self.bits, layout=self.layout, n_logits=self.n_logits)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for samples. `Draws` holds DRAWS_BYTES beside them."""
        return self._memory.nbytes

    @property
    def n_seen(self) -> list[int]:
        """Samples offered, by class."""
        return [int(n) for n in self._seen]

    @property
    def n_held(self) -> list[int]:
        """Samples held, by class."""
        return [int(n) for n in self._held]

    def draw(self, n: int) -> NDArray[np.int64]:
        """Places (n,) of samples held, each drawn uniformly and independently; none while none is held."""
        return (self._draws.take(n if self.size else 0) * self.size).astype(np.int64)

    def shuffled(self) -> NDArray[np.int64]:
        """Every place held once, in random order."""
        return self._draws.order(self.size)

    def take(self, places: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Samples (n, *shape) at those places, in the sensor's dtype; written into `out` where given."""
        if self._packing:
            return self._packing.decode(self.items.take(places, 0), out)
        return self.items.take(places, 0, out, mode="clip")  # numpy's other modes make a copy of `out` first

    def held(self) -> NDArray[Any]:
        """All samples held (size, *shape), in the order of `labels`."""
        return self.take(np.arange(self.size))

    def stored_logits(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits (n, n_logits) that came with the samples at those places; NaN if they came without."""
        return self.logits[places].astype(np.float32)

    def store_logits(self, places: NDArray[np.int64], logits: NDArray[np.floating[Any]]) -> None:
        """Put other logits (n, n_logits) beside the samples at those places."""
        self.logits[places] = logits.clip(-LARGEST_LOGIT, LARGEST_LOGIT)

    def offer(self, x: NDArray[Any], y: NDArray[np.int64], logits: NDArray[np.floating[Any]] | None = None) -> None:
        """Show it the samples x (B, *shape) with labels y (B,), in order; the policy decides what each replaces.

        Logits (B, n_logits) come with them if n_logits is above 0, and only then; half precision bounds them at ±65504.
        Raises ValueError if they do not, or have another shape.
        """
        n, n_logits = len(y), self.logits.shape[1]
        wanted, got = (n, n_logits) if n_logits else None, None if logits is None else logits.shape
        if wanted != got:
            raise ValueError(f"logits: must have shape {wanted} where n_logits is {n_logits} (got {got})")
        numbers = self._draws.take(2 * n)  # two for each sample, whether it needs them or not
        chances, choices = numbers[::2], numbers[1::2]
        rows, places = self._fill(y) if self.size < self.capacity else ([], [])
        row = len(rows)
        while row < n:
            labels = y[row : row + STRETCH]
            hopeful = (chances[row : row + STRETCH] < self._odds[labels]).nonzero()[0]
            n_looked = int(hopeful[0]) + 1 if len(hopeful) else len(labels)
            self._seen += np.bincount(labels[:n_looked], minlength=len(self._seen))
            row += n_looked
            if len(hopeful):
                label = int(y[row - 1])
                place = self._place_for(label, float(chances[row - 1]), float(choices[row - 1]))
                if place is not None:
                    self._hand_over(place, label)
                    rows.append(row - 1)
                    places.append(place)
                self._set_odds()
        if rows:
            self._write(places, x[rows], None if logits is None else logits[rows])

    def repack(self, bits: int | None) -> None:
        """Keep what is held in so many bits a value from now on, and as many samples as then fit into the same bytes.

        The rows are packed where they lie, from the first on: a row never grows. Raises ValueError if one would, or as
        `Packing`.
        """
        self.undecided = False
        if bits == self.bits:
            return
        packing = packing_of(self.shape, self.dtype, bits, self.layout)
        if packing is None or packing.nbytes > self.items[:1].nbytes:
            raise ValueError(f"bits: repacked samples must be smaller (got {bits} after {self.bits})")
        labels, logits = self.labels[: self.size].copy(), self.logits[: self.size].copy()
        packed = self._memory[: len(self.items) * packing.nbytes].reshape(-1, packing.nbytes)
        for start in range(0, self.size, STRETCH):
            places = np.arange(start, min(start + STRETCH, self.size))
            packed[places] = packing.encode(self.take(places))
        self._packing = packing
        room = self.nbytes // self.bytes_per_sample
        capacity = room if self._most is None else min(room, self._most)
        self._carve(self._memory[: capacity * self.bytes_per_sample].copy(), capacity)
        self.labels[: self.size], self.logits[: self.size] = labels, logits
        self._set_odds()

    def _carve(self, memory: NDArray[np.uint8], capacity: int) -> None:
        """Lay samples, then labels, then logits over the memory."""
        self._memory = memory
        each = self.bytes_per_sample - LABEL_BYTES - self.n_logits * LOGIT_BYTES
        first, second = capacity * each, capacity * (each + LABEL_BYTES)
        items = memory[:first]
        self.items = items.reshape(capacity, each) if self._packing else items.view(self.dtype).reshape(-1, *self.shape)
        self.labels = memory[first:second].view(np.int16)
        self.logits = memory[second : second + capacity * self.n_logits * LOGIT_BYTES].view(np.float16)
        self.logits = self.logits.reshape(capacity, self.n_logits)

    def _fill(self, y: NDArray[np.int64]) -> tuple[list[int], list[int]]:
        """Give the free places to the first samples with labels y (B,); their rows, and the places."""
        first, n = self.size, min(self.capacity - self.size, len(y))
        self.size += n
        self.labels[first : self.size] = y[:n]
        counts = np.bincount(y[:n], minlength=len(self._seen))
        self._seen += counts
        self._held += counts
        self._set_odds()
        return list(range(n)), list(range(first, self.size))

    def _place_for(self, label: int, chance: float, choice: float) -> int | None:
        """Where a sample of that class, counted already, goes; None if nowhere. Both numbers are uniform in [0, 1)."""
        n_seen = self._seen.sum() if self.policy == "reservoir" else self._seen[label]
        if chance * n_seen >= self._limits[label]:
            return None
        if self.policy == "reservoir":
            return int(choice * self.capacity)
        giving = np.array([label])
        if np.isinf(self._limits[label]):
            giving = (self._held == self._held.max()).nonzero()[0]
        among = choice * len(giving)
        places = (self.labels == giving[int(among)]).nonzero()[0]
        return int(places[int(among % 1 * len(places))])

    def _hand_over(self, place: int, label: int) -> None:
        """Count a place that was taken as one of that class."""
        self._held[self.labels[place]] -= 1
        self._held[label] += 1
        self.labels[place] = label

    def _set_odds(self) -> None:
        """Derive from the counts each class's limit and odds: a sample goes in if chance · n_seen < limit.

        Odds, limit / n_seen with the next sample counted, only fall while the limits stay: old ones miss no sample.
        reservoir: the limit is the capacity, of all classes together.
        balanced:  Algorithm R within a class that is the largest or has been, so its limit is what it holds; ∞ for one
                   that still grows. A class that has been the largest has lost samples since, but only while it was
                   the largest, so it is at most one behind; one further behind (policy or capacity were changed) grows.
        """
        if self.policy == "reservoir":
            self._limits = np.full(len(self._seen), float(self.capacity))
            self._odds = self._limits / (self._seen.sum() + ALMOST_ONE)
            return
        most = self._held.max()
        settled = (self._held == most) | ((self._held == most - 1) & (self._held < self._seen))
        self._limits = np.where(settled, self._held, np.inf)
        self._odds = self._limits / (self._seen + ALMOST_ONE)

    def _write(self, places: list[int], x: NDArray[Any], logits: NDArray[np.floating[Any]] | None) -> None:
        """Put samples x (n, *shape) where they go; of two for one place the later one stays, as numpy promises."""
        self.items[places] = self._packing.encode(x) if self._packing else x
        if logits is not None:
            self.logits[places] = logits.clip(-LARGEST_LOGIT, LARGEST_LOGIT)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and plain values from which `restore` makes the same reservoir."""
        arrays = {"items": self.items[: self.size], "labels": self.labels[: self.size]}
        if self.logits.shape[1]:
            arrays["logits"] = self.logits[: self.size]
        return arrays, {**self._draws.state(), "n_seen": self.n_seen, "bits": self.bits, "undecided": self.undecided}

    def restore(self, arrays: dict[str, NDArray[Any]], values: dict[str, Any]) -> None:
        """Take over a state; of one with more samples than fit, a random choice is kept (the budget was lowered).

        Samples packed otherwise are packed anew; if it was decided how, this one decides so. Logits that are missing,
        of new classes say, are NaN, and those that nobody keeps any more are let go.
        Raises ValueError, naming the array or value, if it is that of other samples, logits or classes.
        """
        if self.undecided and not values.get("undecided", False):
            self.repack(values.get("bits"))
        items, labels = self._repacked(arrays["items"], values.get("bits")), arrays["labels"]
        logits = self._rewidened(arrays.get("logits", np.empty((len(labels), 0), np.float16)))
        if (items.shape[1:], items.dtype) != (self.items.shape[1:], self.items.dtype):
            told = f"must hold {self.items.dtype} {self.items.shape[1:]} a sample (got {items.dtype} {items.shape[1:]})"
            raise ValueError(f"items: {told}")
        n_classes = len(values["n_seen"])
        if n_classes > len(self._seen):
            raise ValueError(f"n_seen: must count at most {len(self._seen)} classes (got {n_classes})")
        self._draws.restore(values)
        keep = self._fitting(labels) if len(labels) > self.capacity else slice(None)
        self.size = min(len(labels), self.capacity)
        self.items[: self.size] = items[keep]
        self.labels[: self.size] = labels[keep]
        self.logits[: self.size] = logits[keep]
        self._seen[:] = 0
        self._seen[:n_classes] = values["n_seen"]
        self._held[:] = np.bincount(self.labels[: self.size], minlength=len(self._held))
        self._set_odds()

    def _repacked(self, items: NDArray[Any], bits: int | None) -> NDArray[Any]:
        """Rows as this reservoir keeps them, of rows that one with `bits` kept."""
        if bits == self.bits:
            return items
        theirs = packing_of(self.shape, self.dtype, bits, self.layout)
        raw = theirs.decode(items) if theirs else items
        return self._packing.encode(raw) if self._packing else raw

    def _rewidened(self, logits: NDArray[Any]) -> NDArray[np.float16]:
        """Logits (n, n_logits) as this reservoir keeps them, of (n, m) from one with fewer classes or without any."""
        wide = np.full((len(logits), self.n_logits), np.nan, np.float16)
        if logits.dtype != wide.dtype or logits.shape[1] > self.n_logits > 0:
            told = f"must hold at most {self.n_logits} of float16 a sample (got {logits.shape[1]} of {logits.dtype})"
            raise ValueError(f"logits: {told}")
        if self.n_logits:
            wide[:, : logits.shape[1]] = logits
        return wide

    def _fitting(self, labels: NDArray[np.int16]) -> NDArray[np.int64]:
        """As many places as fit, of those with the labels (n,): at random, but balanced if that is the policy."""
        order = self._draws.order(len(labels))
        if self.policy == "balanced":  # the first of every class, then the second of every class, and so on
            among = [0] * len(self._held)
            ranks = []
            for label in labels[order].tolist():
                ranks.append(among[label])
                among[label] += 1
            order = order[np.argsort(ranks, kind="stable")]
        return order[: self.capacity]


def bytes_per_sample(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    bits: int | None = None,
    layout: tuple[int, ...] | None = None,
    n_logits: int = 0,
) -> int:
    """Bytes a reservoir needs for one sample, its label and its logits. Raises ValueError as `Packing`."""
    packing = packing_of(shape, dtype, bits, layout)
    return (packing.nbytes if packing else prod(shape) * dtype.itemsize) + LABEL_BYTES + n_logits * LOGIT_BYTES
