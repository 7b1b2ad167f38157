"""Authentic frames: an 8-byte tag under a shared key, and a floor below which no frame is taken a second time.

    tag = HMAC-SHA256(key, sender ‖ body without tag and CRC)[:8]      sender: "B" from the board, "H" from the host

The sender's letter keeps a frame from being thrown back at the one who sent it. 64 bits are guessed once in 2^64 tries
(a 3 Mbaud line takes 6,000 a second), and a wrong guess changes nothing. Knows no frame: bytes and integers only.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

TAG_BYTES = 8
MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 64  # 64 is a block of SHA-256: a longer key would only be hashed down

NO_FLOOR: Mapping[str, Any] = MappingProxyType({})  # of before the first frame, or without a key
_BOARD, _HOST = b"B", b"H"
_KEY = "key"
_U16, _U64 = 1 << 16, 1 << 64


class Key:
    """Tags of one direction under one secret of 16 to 64 bytes; see board_key and host_key. name: of this key alone."""

    def __init__(self, secret: bytes, sender: bytes) -> None:
        """Raise ValueError if the secret's length is outside the rule."""
        if not MIN_KEY_BYTES <= len(secret) <= MAX_KEY_BYTES:
            raise ValueError(f"a key has {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes (got {len(secret)})")
        self._start = hmac.new(secret, sender, "sha256")
        self.name = self.tag(b"name").hex()  # which tells nothing of the secret, and is the tag of no frame

    def tag(self, content: bytes) -> bytes:
        """Tag of a body's bytes up to where the tag stands."""
        state = self._start.copy()
        state.update(content)
        return state.digest()[:TAG_BYTES]

    def is_right(self, content: bytes, tag: bytes) -> bool:
        """Whether this tag belongs to this content; takes the same time wherever they differ."""
        return hmac.compare_digest(self.tag(content), tag)


def board_key(secret: bytes) -> Key:
    """Key of what the board sends. Raises ValueError if the secret is too short or too long."""
    return Key(secret, _BOARD)


def host_key(secret: bytes) -> Key:
    """Key of what the host sends. Raises ValueError if the secret is too short or too long."""
    return Key(secret, _HOST)


def key_option(text: str) -> bytes:
    """Secret in the file that a URL's option key=@FILE names, as hex. Raises ValueError with the rule in words."""
    if not text.startswith("@") or len(text) == 1:
        raise ValueError("must be @ and the path of a file that holds the key as hex")
    path = Path(text[1:])
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except OSError as exc:
        raise ValueError(f"cannot read the key: {exc.strerror}: {path}") from None
    except ValueError:  # what it holds is not repeated: it may be a key all the same
        raise ValueError(f"must name a file that holds the key as hex digits: {path}") from None
    Key(secret, _BOARD)
    return secret


class ReplayFloor:
    """The highest (boot, count) seen of each kind of frame and stream; a frame must rise above it.

    count is seq for samples and t_us for everything else, both of which rise within a boot; boots of a board with a key
    rise, too. Only frames whose tag was right may be shown to it. key: its name; under another key boots begin anew.
    """

    def __init__(self, key: str | None = None) -> None:
        self._key = key
        self._highest: dict[tuple[int, int], tuple[int, int]] = {}

    def rises(self, kind: int, stream: int, boot: int, count: int) -> bool:
        """Whether this frame is above the floor; if so it is the new floor."""
        place, height = (kind, stream), (boot, count)
        if height <= self._highest.get(place, (-1, -1)):
            return False
        self._highest[place] = height
        return True

    def state(self) -> dict[str, Any]:
        """All of it, for JSON: {"kind:stream": [boot, count], "key": name}; {} before the first frame."""
        named = {_KEY: self._key} if self._key and self._highest else {}
        heights = {f"{kind}:{stream}": list(height) for (kind, stream), height in sorted(list(self._highest.items()))}
        return {**heights, **named}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of before, unless of another key; never lowers. Raises ValueError if it is not one."""
        restored = dict(_entry(name, height) for name, height in state.items() if name != _KEY)
        if self._key and state.get(_KEY, self._key) != self._key:
            return
        for place, height in restored.items():
            self._highest[place] = max(height, self._highest.get(place, height))


def raised(floor: Mapping[str, Any], kind: int, taken: Iterable[tuple[int, int, int]]) -> Mapping[str, Any]:
    """The floor, of frames of that kind not below the last (stream, boot, count) taken; {} stays: there was no key.

    What was taken is known of each item, the floor only of what was safe a while ago.
    """
    if not floor:
        return floor
    whole = dict(floor)
    for stream, boot, count in taken:
        place, height = f"{kind}:{stream}", [boot, count]
        whole[place] = max(height, whole.get(place, height))
    return whole


def _entry(name: str, height: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    kind, _, stream = name.partition(":")
    numbers = [int(kind, 10), int(stream, 10), *height] if kind.isdecimal() and stream.isdecimal() else []
    limits = (256, _U16, _U16, _U64)
    if len(numbers) != 4 or not all(type(n) is int and 0 <= n < top for n, top in zip(numbers, limits, strict=True)):
        raise ValueError(f"replay floor: {name!r}: must be 'kind:stream' with [boot, count] (got {height!r})")
    return (numbers[0], numbers[1]), (numbers[2], numbers[3])
