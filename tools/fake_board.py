#!/usr/bin/env python3
"""A board on a pseudo-terminal, TCP, UDP or MQTT, with faults on request; says where it is, and in the end what it did.

    python tools/fake_board.py --link pty --samples 10000 --rate 1000 --bit-error-rate 0.001 --reboot-every 2000 --json

It begins when it is asked for HELLO, on MQTT at once, and after its last sample ends when the bridge hangs up. The
first line has url, what to give the bridge as its source. The last line has generated, of which sent, dropped (its
FIFO was full, or it restarted) and in_flight (never left the FIFO); labels, boots, acknowledged, bits_flipped and
bytes_dropped. What the bridge did not hand out it must have counted, so that
generated = handed out + wire_lost + restart_lost + away + in_flight.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from firmware_bridge.auth import key_option
from firmware_bridge.options import part, patience, whole
from tools.fakes.board import Habits, StreamingBoard
from tools.fakes.far_ends import FarEnd, PtyEnd, TcpEnd, UdpEnd
from tools.fakes.faults import BadLine
from tools.fakes.signals import NAMES, signals


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, tell."""
    options = _parser().parse_args(arguments)
    end = _end(options)
    bad = BadLine(options.seed, options.bit_error_rate, options.drop_rate, is_stream=end.is_stream)
    habits = Habits(
        options.samples,
        rate_hz=options.rate,
        burst=options.burst,
        reboot_every=options.reboot_every,
        drift_ppm=options.drift,
        silence_s=options.silence,
        label_delay=options.label_delay,
        linger_s=options.linger,
        first_boot=options.boot,
        secret=options.key,
    )
    names = options.streams or [options.signal]
    schemas, samples = signals(names, options.seed, options.rate)
    board = StreamingBoard(end, schemas, samples, habits, bad)
    _tell({"url": end.url, "boot": options.boot, "signal": ",".join(names)}, as_json=options.json)
    try:
        board.run()
    except KeyboardInterrupt:
        pass
    finally:
        end.close()
    _tell(board.told(), as_json=options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--link", choices=("pty", "tcp", "udp", "mqtt"), default="pty", help="the line (pty)")
    add(
        "--port",
        type=whole(0, 65535),
        default=0,
        help="of TCP, where it listens (any); of UDP, where it sends to; of the broker (1883)",
    )
    add("--host", default="127.0.0.1", help="of the broker (127.0.0.1)")
    add("--topic", default="board", help="of MQTT (board)")
    add("--framing", choices=("length", "cobs"), default="length", help="of TCP (length)")
    add("--signal", choices=NAMES, default="imu", help="what it measures (imu)")
    add(
        "--streams",
        type=_signals,
        metavar="A,B@HZ",
        help="several streams, each a signal with a rate if it has its own",
    )
    add("--samples", type=whole(1), required=True, help="how many it makes, of all streams together")
    add("--seed", type=whole(0), default=0, help="of samples and faults (0)")
    add("--boot", type=whole(0, 0xFFFF), default=1, help="its first boot id (1)")
    add("--rate", type=_number, help="samples a second; it then never waits (as fast as the line takes them)")
    add("--burst", type=whole(1), default=1, help="samples that come at once (1)")
    add("--bit-error-rate", type=part, default=0.0, metavar="R", help="chance that a byte has a bit flipped (0)")
    add("--drop-rate", type=part, default=0.0, metavar="R", help="chance that a byte, or a datagram, is dropped (0)")
    add("--reboot-every", type=whole(1), default=0, metavar="N", help="it restarts after so many samples (never)")
    add("--drift", type=float, default=0.0, metavar="PPM", help="its clock is faster by so much (0)")
    add("--silence", type=patience, default=0.0, metavar="S", help="half way it makes nothing for so many seconds (0)")
    add("--label-delay", type=whole(0), default=0, metavar="N", help="labels come so many samples later (with them)")
    add("--key", type=key_option, metavar="@FILE", help="sign with the key in this file, in hex (unsigned)")
    add("--linger", type=patience, default=10.0, metavar="S", help="how long it waits for a bridge that is gone (10)")
    add("--json", action="store_true", help="both lines are one JSON object each")
    return parser


def _end(options: argparse.Namespace) -> FarEnd:
    port, secret = options.port, options.key
    if options.link == "tcp":
        return TcpEnd(port, options.framing, secret)
    if options.link == "pty":
        return PtyEnd(secret)
    if options.link == "mqtt":
        from tools.fakes.mqtt_end import MqttEnd  # the extra edge-cl[mqtt]

        return MqttEnd(options.host, port or 1883, options.topic)
    if not port:
        raise SystemExit("--link udp sends to a port: give it with --port")
    return UdpEnd(port, secret)


def _signals(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        which, _, own = name.partition("@")
        if which not in NAMES or (own and (which == "motor" or _number(own) <= 0)):
            raise ValueError("must be signals with commas between, imu with or without a rate, or motor")
    return names


def _number(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError("must be a number above 0")
    return value


def _tell(what: dict[str, object] | dict[str, int], *, as_json: bool) -> None:
    print(json.dumps(what) if as_json else "  ".join(f"{key} {value}" for key, value in what.items()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
