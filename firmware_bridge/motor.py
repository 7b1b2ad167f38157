"""A motor on its bearings as a 3-axis accelerometer sees it: the physics behind the fake board.

One shaft at about 25 Hz on a 6205 bearing; an accelerometer like an ADXL345 (3200 Hz, int16 counts of 3.9 mg) is fixed
to the bearing house, a little askew. All states share rotation harmonics, residual unbalance, misalignment, the fan's
blade passing, the hum of the magnetic field, friction noise, and slow drift of speed and load. On top of that:

    normal       nothing
    unbalance    a force turning with the shaft (1x), proportional to speed²
    looseness    the foot lifts and lands: subharmonics, many harmonics, one side of the swing cut off, a knock a turn
    outer race   an impact at each pass of a ball over a dent that stands still:   f = 3.585 shaft turns
    inner race   the same, the dent turning with the shaft through the load zone:  f = 5.415 shaft turns

An impact rings the bearing house, x(t) = exp(-ζωt) sin(ωt); the balls slip, so intervals scatter by 1-2 %
(Randall & Antoni, Rolling element bearing diagnostics: a tutorial, MSSP 25, 2011; kinematics of the 6205 as at the Case
Western Reserve bearing data centre).

The same seed gives the same sample at the same seq, whether reached or jumped to: speed, load and phase are closed
formulas of time, everything random is drawn anew per stretch or per block. Knows no wire and no process.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from firmware_bridge.sample import Sample, Schema, Values

STATES = ("normal", "unbalance", "looseness", "outer race", "inner race")
RATE_HZ = 3200
FRAME_ROWS = 32  # 10 ms; 228 bytes on the wire, 22.8 kB/s in real time
SCALE_G = 0.0039  # g per count, ADXL345 in full resolution
STRETCH_FRAMES = 2000  # one state lasts 20 s, 250 windows of 256 rows
LABELLED_SHARE = 0.6

_BLOCK_FRAMES = 100  # noise is drawn per block: one second of board time; divides STRETCH_FRAMES
_BLOCK_ROWS = _BLOCK_FRAMES * FRAME_ROWS
_STRETCH_S = STRETCH_FRAMES * FRAME_ROWS / RATE_HZ
_FULL_SCALE = 4095  # ±16 g at 13 bits: beyond it the sensor clips
_NORMAL, _UNBALANCE, _LOOSENESS, _OUTER, _INNER = range(5)
_IMPACTS_PER_TURN = {_LOOSENESS: 1.0, _OUTER: 3.585, _INNER: 5.415}
_SLIP = {_LOOSENESS: 0.03, _OUTER: 0.015, _INNER: 0.015}  # scatter of one interval between impacts
_RESONANCE_HZ, _DAMPING = 1050.0, 0.05
_RING_ROWS = 48  # 15 ms: exp(-0.05 · 2π · 1050 · 0.015) = 0.7 %
_ASKEW = np.array([[0.98, 0.06, -0.08], [-0.05, 0.99, 0.05], [0.09, -0.04, 0.97]])  # sensor axes from machine axes
_GRAVITY = np.array([0.0, 0.0, 1.0])


def boot_of(seed: int) -> int:
    """Boot id of the simulated board, 16 bits: one seed is one board that was switched on once."""
    return zlib.crc32(f"motor {seed}".encode()) & 0xFFFF


def schema() -> Schema:
    """What the simulated board announces."""
    return Schema(
        name="motor",
        dtype="int16",
        shape=(FRAME_ROWS, 3),
        channels=("x", "y", "z"),
        unit="g",
        rate_hz=float(RATE_HZ),
        scale=SCALE_G,
        label_names=STATES,
        window=(256, 256),
    )


@dataclass(frozen=True)
class _Drift:
    """mean + Σ aᵢ sin(2πfᵢt + φᵢ), and its integral from 0 to t in closed form."""

    mean: float
    amplitudes: Values
    frequencies_hz: Values
    phases: Values

    def at(self, time_s: Values) -> Values:
        angle = 2 * np.pi * np.multiply.outer(time_s, self.frequencies_hz) + self.phases
        value: Values = self.mean + np.sin(angle) @ self.amplitudes
        return value

    def integral(self, time_s: Values) -> Values:
        omega = 2 * np.pi * self.frequencies_hz
        angle = np.multiply.outer(time_s, omega) + self.phases
        area: Values = self.mean * time_s + (np.cos(self.phases) - np.cos(angle)) @ (self.amplitudes / omega)
        return area


@dataclass(frozen=True)
class _Stretch:
    """One state for 20 s: speed in Hz, load in 0..1, how bad the fault is, and when the impacts come."""

    state: int
    speed: _Drift
    load: _Drift
    severity: float
    impact_s: Values
    impact_turn: Values
    impact_size: Values


class Motor:
    """The scenario, endless: five states in order, the same five at another speed and load, then rounds at random.

    The pretend operator labels the first 60 % of a stretch; from the second round on every other stretch has no label.
    state() is the truth and never goes over the wire.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._block_rows = lru_cache(maxsize=2)(self._make_block)
        self._stretch = lru_cache(maxsize=2)(self._make_stretch)
        self._order = lru_cache(maxsize=2)(self._make_order)

    def state(self, seq: int) -> int:
        """True state of frame seq, an index into STATES."""
        round_, place = divmod(seq // STRETCH_FRAMES, len(STATES))
        return self._order(round_)[place]

    def label(self, seq: int) -> int | None:
        """What the operator says about frame seq, None if nothing."""
        stretch, frame = divmod(seq, STRETCH_FRAMES)
        round_, place = divmod(stretch, len(STATES))
        away = round_ > 0 and place % 2 == 1
        return None if away or frame >= LABELLED_SHARE * STRETCH_FRAMES else self.state(seq)

    def rows(self, block: int) -> Values:
        """Counts of one second of board time, int16 (3200, 3), read-only."""
        return self._block_rows(block)

    def samples(self, start: int = 0) -> Iterator[Sample]:
        """Frames from seq `start` on, without end."""
        boot, frame_us = boot_of(self.seed), 1_000_000 * FRAME_ROWS // RATE_HZ
        seq = start
        while True:
            block, frame = divmod(seq, _BLOCK_FRAMES)
            values = self.rows(block)[frame * FRAME_ROWS : (frame + 1) * FRAME_ROWS]
            yield Sample(0, boot, seq, seq * frame_us, values, self.label(seq))
            seq += 1

    def _rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *what))

    def _make_order(self, round_: int) -> list[int]:
        return list(range(len(STATES))) if round_ < 2 else self._rng(1, round_).permutation(len(STATES)).tolist()

    def _make_stretch(self, index: int) -> _Stretch:
        round_, rng = index // len(STATES), self._rng(2, index)
        speed_hz, load_mean = self._conditions(round_)
        load = _Drift(load_mean, np.array([0.18, 0.07]), rng.uniform(0.04, 0.2, 2), rng.uniform(0, 2 * np.pi, 2))
        # An induction motor slips behind its field as the load rises; the supply drifts as well.
        speed = _Drift(
            speed_hz * rng.uniform(0.985, 1.015) * (1 - 0.03 * load_mean),
            speed_hz * np.array([-0.03 * 0.18, -0.03 * 0.07, 0.008]),
            np.append(load.frequencies_hz, rng.uniform(0.1, 0.3)),
            np.append(load.phases, rng.uniform(0, 2 * np.pi)),
        )
        state = self.state(index * STRETCH_FRAMES)
        return _Stretch(state, speed, load, rng.uniform(0.85, 1.15), *_impacts(state, speed, rng))

    def _conditions(self, round_: int) -> tuple[float, float]:
        if round_ == 0:
            return 25.0, 0.5
        rng = self._rng(3, round_)
        # Never the first round's speed again: at least 6 % beside it.
        return 25.0 * (1 + rng.choice((-1, 1)) * rng.uniform(0.06, 0.14)), rng.uniform(0.35, 0.65)

    def _make_block(self, index: int) -> Values:
        stretch_index, block = divmod(index, STRETCH_FRAMES // _BLOCK_FRAMES)
        stretch, rng = self._stretch(stretch_index), self._rng(4, index)
        time_s = (block * _BLOCK_ROWS + np.arange(_BLOCK_ROWS)) / RATE_HZ
        vibration = _machine(stretch, time_s, rng) + _fault(stretch, time_s)
        return _measured(vibration, index + np.arange(_BLOCK_ROWS) / _BLOCK_ROWS, rng)


def _impacts(state: int, speed: _Drift, rng: np.random.Generator) -> tuple[Values, Values, Values]:
    """Times (s), shaft turns and relative sizes of all impacts of a stretch: a random walk of turns, mapped to time."""
    if state not in _IMPACTS_PER_TURN:
        return np.empty(0), np.empty(0), np.empty(0)
    per_turn = _IMPACTS_PER_TURN[state]
    grid_s = np.linspace(0, _STRETCH_S, 4001)
    grid_turns = speed.integral(grid_s)
    steps = rng.normal(1.0, _SLIP[state], int(grid_turns[-1] * per_turn)) / per_turn
    turns = np.cumsum(steps)
    turns = turns[turns < grid_turns[-1]]
    return np.interp(turns, grid_turns, grid_s), turns, rng.lognormal(0.0, 0.15, len(turns))


def _machine(stretch: _Stretch, time_s: Values, rng: np.random.Generator) -> Values:
    """What every state has, in g, (rows, 3): horizontal, axial, vertical."""
    turn, load = 2 * np.pi * stretch.speed.integral(time_s), stretch.load.at(time_s)
    force = (stretch.speed.at(time_s) / 25.0) ** 2
    hum = 2 * np.pi * 100.0 * time_s  # twice the 50 Hz supply
    horizontal = 0.05 * force * np.cos(turn) + 0.03 * load * np.cos(2 * turn + 0.4) + 0.02 * np.cos(3 * turn)
    axial = 0.06 * load * np.cos(2 * turn + 1.1) + 0.015 * np.cos(turn + 2.0)
    vertical = 0.04 * force * np.sin(turn) + 0.025 * load * np.cos(2 * turn + 1.9) + 0.02 * np.cos(3 * turn + 0.7)
    blades = (0.02 + 0.03 * load) * np.cos(7 * turn + 0.3)
    field = (0.03 + 0.05 * load) * np.cos(hum)
    friction = rng.normal(0.0, 1.0, (len(time_s), 3)) * (0.03 + 0.03 * load)[:, None]
    return np.stack((horizontal + field, axial + 0.5 * blades, vertical + blades + 0.7 * field), axis=1) + friction


def _fault(stretch: _Stretch, time_s: Values) -> Values:
    """What the state adds, in g, (rows, 3): horizontal, axial, vertical."""
    turn = 2 * np.pi * stretch.speed.integral(time_s)
    if stretch.state == _UNBALANCE:
        force = 0.24 * stretch.severity * (stretch.speed.at(time_s) / 25.0) ** 2
        return np.stack((force * np.cos(turn), 0.1 * force * np.cos(turn), 0.8 * force * np.sin(turn)), axis=1)
    if stretch.state == _LOOSENESS:
        return _rattle(stretch, turn) + _rings(stretch, time_s)
    if stretch.state in (_OUTER, _INNER):
        return _rings(stretch, time_s)
    return np.zeros((len(time_s), 3))


def _rattle(stretch: _Stretch, turn: Values) -> Values:
    orders = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0])
    sizes = stretch.severity * np.array([0.10, 0.10, 0.08, 0.08, 0.06, 0.06, 0.05, 0.04, 0.03])
    swing = np.cos(np.multiply.outer(turn, orders) + 1.3 * orders) @ sizes
    cut = np.where(swing < 0, 0.12 * np.tanh(swing / 0.12), swing)  # the floor stops it on the way down
    return np.stack((0.5 * cut, 0.25 * cut, cut), axis=1)


def _rings(stretch: _Stretch, time_s: Values) -> Values:
    """The bearing house ringing after each impact, spread over the axes by where the impact is."""
    first, last = np.searchsorted(stretch.impact_s, (time_s[0] - _RING_ROWS / RATE_HZ, time_s[-1]))
    hit_s, turn = stretch.impact_s[first:last], 2 * np.pi * stretch.impact_turn[first:last]
    size = stretch.impact_size[first:last] * stretch.severity * (0.5 + stretch.load.at(hit_s))
    directions = _directions(stretch.state, turn) * size[:, None]
    start = np.ceil((hit_s - time_s[0]) * RATE_HZ).astype(np.int64)
    rows = start[:, None] + np.arange(_RING_ROWS)  # (impacts, ring)
    since_s = rows / RATE_HZ - (hit_s - time_s[0])[:, None]
    omega = 2 * np.pi * _RESONANCE_HZ
    ring = np.exp(-_DAMPING * omega * since_s) * np.sin(omega * np.sqrt(1 - _DAMPING**2) * since_s)
    inside = (rows >= 0) & (rows < len(time_s))
    return np.stack(
        [np.bincount(rows[inside], (ring * axis[:, None])[inside], len(time_s)) for axis in directions.T], axis=1
    )


def _directions(state: int, turn: Values) -> Values:
    if state == _INNER:  # the dent turns with the shaft: strong in the load zone below, weak above
        zone = 0.9 * (0.25 + 0.75 * (0.5 + 0.5 * np.cos(turn)) ** 1.5)
        return np.stack((zone * np.sin(turn), 0.2 * zone, zone * np.cos(turn)), axis=1)
    strength = 0.55 if state == _OUTER else 0.35
    return np.tile(strength * np.array([0.35, 0.25, 1.0]), (len(turn), 1))


def _measured(vibration: Values, board_s: Values, rng: np.random.Generator) -> Values:
    """Counts of the sensor: askew, with gravity, offset drifting with temperature, noise, rounding and clipping."""
    offset_g = 0.01 * np.sin(2 * np.pi * board_s / 400.0)[:, None] * np.array([1.0, -0.6, 0.8])
    noise = rng.normal(0.0, 4.0, vibration.shape)  # counts; at 3200 Hz the sensor's full bandwidth is open
    counts = ((vibration + _GRAVITY) @ _ASKEW.T + offset_g) / SCALE_G + noise
    result: Values = np.clip(np.rint(counts), -_FULL_SCALE, _FULL_SCALE).astype(np.int16)
    result.setflags(write=False)
    return result
