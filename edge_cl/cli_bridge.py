"""`edge-cl bridge`: what is plugged in, what comes from it, and a recording of that. Learns nothing, needs no torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from edge_cl import config as configuration
from edge_cl.console import AsJson, ConfigFile, SourceUrl, data, draw, say
from edge_cl.errors import Exit, NoSample
from edge_cl.intake import named, source_of, urls_of
from edge_cl.recorder import write_recording
from firmware_bridge.devices import devices
from firmware_bridge.errors import EndOfSource, SourceLost
from firmware_bridge.inlet import ITEM_BYTES, Inlet
from firmware_bridge.sample import Label, Sample, Schema

bridge_app = typer.Typer(help="See what is plugged in, watch its samples, record them.", no_args_is_help=True)

QUEUE_BYTES = 4 * 2**20  # of samples that wait for the terminal
POLL_S = 0.1
RATE_OVER = 50  # samples that the shown rate is taken over
SHOWN = 6  # values of a sample in a line for a person

Count = Annotated[int | None, typer.Option("-n", "--samples", min=1, metavar="N", help="End after N samples.")]
Timeout = Annotated[float | None, typer.Option(min=0.0, metavar="S", help="End when no sample has come for S seconds.")]


@bridge_app.command("list")
def list_devices(as_json: AsJson = False) -> None:
    """List serial ports and cameras, and what stands in the way of using each."""
    found = devices()
    if as_json:
        data([asdict(device) for device in found])
    elif not found:
        say("no serial port and no camera is here; is the board plugged in?")
    else:
        drawn = Table("device", "what it is", "source", "")
        for device in found:
            drawn.add_row(device.path, device.name, device.source, device.problem or "ready", style=None)
        draw(drawn)
        for device in found:
            if device.problem:
                say(f"{device.path}: {device.problem}\nhint: {device.hint}")


@bridge_app.command()
def tail(
    source: SourceUrl = None,
    config: ConfigFile = None,
    samples: Count = None,
    timeout: Timeout = None,
    values: Annotated[bool, typer.Option("--values", help="All values of each sample.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show samples as they come, with their rate and what was lost; exit 20 if none came before the timeout.

    With --json a line for each sample, and a last one with the counters.
    """
    came: deque[float] = deque(maxlen=RATE_OVER)
    told: dict[str, int] = {}
    with _Tap(source, config, samples, timeout) as tap:
        for sample in tap:
            came.append(time.monotonic())
            if as_json:
                data(_described(sample, tap.schema.dtype, values=values))
            else:
                counters = {name: count for name, count in tap.counters.items() if count}
                if counters != told:
                    told = counters
                    say(", ".join(f"{name} {count:,}" for name, count in counters.items()))
                typer.echo(_line(sample, tap.schema, came, values=values, several=tap.n_streams > 1))
    if not as_json:
        tap.check()
        return
    data({"counters": dict(tap.counters)})  # the last line, also where nothing came
    if tap.taken == 0:
        say(f"error: {tap.silence}")
        raise typer.Exit(Exit.NO_SAMPLE)


@bridge_app.command()
def record(
    out: Annotated[Path, typer.Argument(metavar="OUT.npz", help="The recording; replaced if it is there.")],
    source: SourceUrl = None,
    config: ConfigFile = None,
    samples: Count = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Record samples until there are N, none comes any more, or Ctrl-C; `run` and `evaluate` play the file back.

    A label that comes later finds its sample while the recording lasts.
    """
    kept: dict[tuple[int, int, int], Sample] = {}
    lost: SourceLost | None = None
    with _Tap(source, config, samples, timeout) as tap:
        try:
            for sample in tap:
                kept[sample.id] = sample
        except KeyboardInterrupt:
            pass
        except SourceLost as exc:
            lost = exc  # said once what came is safe
    for label in tap.labels:
        if label.id in kept and kept[label.id].label is None:
            kept[label.id] = replace(kept[label.id], label=label.label)
    tap.check()
    write_recording(out, tap.schema, list(kept.values()))
    labelled = sum(sample.label is not None for sample in kept.values())
    if as_json:
        told: dict[str, Any] = {"out": str(out), "samples": len(kept), "labelled": labelled}
        data({**told, "counters": dict(tap.counters)})
    else:
        say(f"{out}: {len(kept):,} samples, {labelled:,} labelled\nhint: edge-cl run --once --source recording:{out}")
    if lost is not None:
        raise lost


class _Tap:
    """An open source behind its inlet, read until enough samples came, none comes any more, or Ctrl-C."""

    def __init__(
        self, source: Sequence[str] | None, config: Path | None, most: int | None, timeout_s: float | None
    ) -> None:
        settings = configuration.resolve(configuration.chosen(config), ()).config
        self._urls = [_as_guest(url) for url in urls_of(source or settings.source)]
        self._most, self._timeout_s = most, timeout_s
        self._source = source_of(settings, self._urls)
        self._final: dict[str, int] | None = None
        self.labels: list[Label] = []
        self.taken = 0

    def __enter__(self) -> _Tap:
        self._source.open()
        self.schema: Schema = self._source.schema
        self.n_streams = len(self._source.streams)
        try:
            self._inlet = Inlet(self._source, max(QUEUE_BYTES, 4 * (self.schema.nbytes + ITEM_BYTES)))
        except BaseException:
            self._source.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._final = dict(self._inlet.counters)
        self._inlet.close()
        self._source.close()

    @property
    def counters(self) -> dict[str, int]:
        """Drops and faults by reason, up to now or to the end."""
        return dict(self._inlet.counters) if self._final is None else self._final

    def __iter__(self) -> Iterator[Sample]:
        waited_since = time.monotonic()
        try:
            while self._most is None or self.taken < self._most:
                item = self._inlet.get(POLL_S)
                if isinstance(item, Sample):
                    self.taken += 1
                    waited_since = time.monotonic()
                    yield item
                elif isinstance(item, Label):
                    self.labels.append(item)
                elif self._timeout_s is not None and time.monotonic() - waited_since >= self._timeout_s:
                    return
        except (EndOfSource, KeyboardInterrupt):
            return

    @property
    def silence(self) -> str:
        """What there is to say if none came."""
        return f"{named(self._urls)}: no sample came"

    def check(self) -> None:
        """Raise NoSample if none came."""
        if self.taken == 0:
            raise NoSample(self.silence, hint="edge-cl bridge list shows what is plugged in")


def _as_guest(url: str) -> str:
    """The source to look at; a broker as a guest, so that a daemon keeps its session and what waits for it."""
    if not url.startswith(("mqtt:", "mqtts:")) or "session=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}session=0"


def _described(sample: Sample, dtype: str, *, values: bool) -> dict[str, Any]:
    told = {
        "stream": sample.stream,
        "boot": sample.boot,
        "seq": sample.seq,
        "time_us": sample.time_us,
        "shape": list(sample.values.shape),
        "dtype": dtype,
        "label": sample.label,
    }
    return told | ({"values": sample.values.tolist()} if values else {})


def _line(sample: Sample, schema: Schema, came: deque[float], *, values: bool, several: bool) -> str:
    """A sample in a line for a person."""
    span = came[-1] - came[0]
    rate = f"{(len(came) - 1) / span:8.1f}/s" if span > 0 else " " * 10
    flat = sample.values.reshape(-1)
    shown = ", ".join(f"{value:g}" for value in (flat if values else flat[:SHOWN]).tolist())
    more = "" if values or len(flat) <= SHOWN else f" … ({'×'.join(map(str, sample.values.shape))})"
    names = schema.label_names
    label = sample.label
    called = "" if label is None else f"  {names[label] if label < len(names) else label}"
    gap = "  gap" if sample.gap else ""
    stream = f"{sample.stream:>3}" if several else ""
    return f"{sample.time_us / 1e6:12.3f} s {stream} #{sample.seq:<8} {rate}  {shown}{more}{called}{gap}"
