"""A network camera that is not there, over RTSP: ffmpeg makes and packs the pictures, this hands its packets on.

Only what a client needs that asks for RTP in the RTSP connection itself (RFC 2326, section 10.12), one at a time.
"""

from __future__ import annotations

import re
import select
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tools.fakes.loopback_server import LoopbackServer
from tools.fakes.programs import program

_LOOPBACK = "127.0.0.1"
_PATIENCE_S = 20.0
_LOOK_S = 0.05


class RtspServer(LoopbackServer):
    """A stream of H.264 at 25 frames a second, in one colour, to whoever plays it; n_clients: how many have."""

    def __init__(self, colour: str = "blue", size: str = "64x48") -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._rtp.bind((_LOOPBACK, 0))
        described = Path(self._folder.name) / "sdp"
        # A key frame five times a second: who comes late sees a picture soon.
        coding = ["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "5", "-pix_fmt", "yuv420p"]
        command = [program("ffmpeg", "ffmpeg"), "-v", "error", "-nostdin", "-re", "-f", "lavfi"]
        command += ["-i", f"color={colour}:size={size}:rate=25", *coding, "-f", "rtp", "-sdp_file", str(described)]
        self._ffmpeg = subprocess.Popen([*command, f"rtp://{_LOOPBACK}:{self._rtp.getsockname()[1]}"])
        self._sdp = _written(described)
        self.start()

    @property
    def url(self) -> str:
        """Source of the stream."""
        return f"camera:rtsp://{_LOOPBACK}:{self.port}/door"

    def close(self) -> None:
        """End it all; a stop alone leaves ffmpeg running, as a camera behind a broken network does."""
        self.stop()
        self._ffmpeg.terminate()
        self._ffmpeg.wait()
        self._rtp.close()
        self._folder.cleanup()

    def talk_to(self, client: socket.socket) -> None:
        """Answer what it asks, and hand packets on once it plays."""
        asked, is_playing = b"", False
        while not self.closing.is_set():
            ready, _, _ = select.select([client, self._rtp], [], [], _LOOK_S)
            if self._rtp in ready:
                packet = self._rtp.recv(65536)
                if is_playing:
                    client.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
            if client in ready:
                said = client.recv(65536)
                if not said:
                    return
                asked += said
                while b"\r\n\r\n" in asked:
                    request, _, asked = asked.partition(b"\r\n\r\n")
                    is_playing |= request.startswith(b"PLAY")
                    self.n_clients += request.startswith(b"PLAY")
                    client.sendall(self._answer(request.decode(errors="replace")))

    def _answer(self, request: str) -> bytes:
        verb, number = request.split(" ")[0], re.search(r"(?mi)^CSeq: *(\d+)", request)
        head = ["RTSP/1.0 200 OK", f"CSeq: {number[1] if number else 0}"]
        if verb == "OPTIONS":
            return _message([*head, "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"])
        if verb == "DESCRIBE":
            about = ["Content-Type: application/sdp", f"Content-Base: {self.url.removeprefix('camera:')}/"]
            return _message([*head, *about], self._sdp)
        if verb == "SETUP":
            head.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        return _message([*head, "Session: 1"])


def _message(head: list[str], body: str = "") -> bytes:
    if body:
        head.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


def _written(path: Path) -> str:
    """ffmpeg's description of the stream, with the name under which a client asks for its one track."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (path.exists() and "a=fmtp" in path.read_text()):
        assert time.monotonic() < deadline, "ffmpeg did not say what it sends"
        time.sleep(0.02)
    said = re.sub(r"m=video \d+", "m=video 0", path.read_text())
    return said.replace("\r\n", "\n").replace("\n", "\r\n").rstrip() + "\r\na=control:track1\r\n"
