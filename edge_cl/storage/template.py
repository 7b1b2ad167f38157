"""The ONNX graph of a model, built once by a child process, and where in its bytes each weight lies.

Must not import onnx (37 MB that a daemon would never give back) and does not know what a weight means. The child,
template_child.py, gets the graph as JSON and answers with one line of JSON and the model's bytes:

    {"model_bytes": n, "offsets": {weight: [offset, nbytes], …}, "unused": [weight, …], "opset": k} LF
    <n bytes of protobuf>

Both directions and stderr are anonymous memory files: no pipe can fill up and stall either side, so no thread is
needed to empty one, and a read-only or full /tmp does not matter.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

from edge_cl.storage.errors import TemplateError

CHILD = Path(__file__).with_name("template_child.py")

_OWN_WORDS = "\0"  # begins what the child says itself, behind what libraries said

# The message of a protobuf parser can repeat the graph; its end holds the reason.
_MESSAGE_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Template:
    """A serialised ONNX model whose float32 weights are placeholders; offsets: name → (offset, nbytes) in `model`.

    `unused` weights have no part in any answer, and so no place in the model. `opset` is that of ONNX's own operators.
    """

    model: bytes
    offsets: Mapping[str, tuple[int, int]]
    unused: frozenset[str] = frozenset()
    opset: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes held, for the budget."""
        return len(self.model)


class PendingTemplate:
    """A template being built; dropping it, or `close`, ends the child."""

    def __init__(self, graph: Mapping[str, Any], builder: str | None = None) -> None:
        self._request, self._answer, self._complaint = (_memory_file(n) for n in ("request", "answer", "complaint"))
        self._request.write(json.dumps({"path": sys.path, "builder": builder, "graph": graph}).encode())
        self._request.flush()
        self._request.seek(0)
        # -I: neither the folder it is started in nor PYTHON* variables can lay another json.py or onnx/ in its way.
        self._child = subprocess.Popen(
            [sys.executable, "-I", str(CHILD)], stdin=self._request, stdout=self._answer, stderr=self._complaint
        )
        self._hint = "docs/MODELS.md says what can be exported" if builder else "the graph's description is at fault"
        self._result: Template | None = None
        self._end = weakref.finalize(self, _end, self._child, self._request, self._answer, self._complaint)

    @property
    def ready(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return not self._end.alive or self._child.poll() is not None

    def result(self, timeout_s: float) -> Template:
        """The finished template, waited for at most `timeout_s`; the same one each time.

        Raises TemplateError with the child's own message, or if it was late; a late child is ended.
        """
        if self._result is None:
            if not self._end.alive:
                raise TemplateError("the template was given up", hint="start another build")
            try:
                self._result = self._wait(timeout_s)
            finally:
                self.close()
        return self._result

    def close(self) -> None:
        """End the child if it still runs, and free what it wrote; a result already fetched stays."""
        self._end()

    def _wait(self, timeout_s: float) -> Template:
        try:
            status = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TemplateError(
                f"the ONNX template was not ready within {timeout_s:g} s", hint="give a loaded machine more time"
            ) from None
        if status != 0:
            raise TemplateError(f"no ONNX template: {self._why(status)}", hint=self._hint)
        self._answer.seek(0)
        return _parse(self._answer.read())

    def _why(self, status: int) -> str:
        self._complaint.seek(0)
        said = self._complaint.read().decode(errors="replace")
        message = said.rpartition(_OWN_WORDS)[2].strip()[-_MESSAGE_CHARACTERS:]
        if status < 0:
            return f"the child was ended by {signal.Signals(-status).name} {message}".rstrip()
        return message or f"the child ended with status {status} and no message"


def start_build(graph: Mapping[str, Any], builder: str | None = None) -> PendingTemplate:
    """Start building the template of `graph` (see template_child.py for its keys) and return at once.

    `builder` names a module that the child imports for it, whose build(graph) knows more kinds of graphs.
    """
    return PendingTemplate(graph, builder)


def _memory_file(name: str) -> BufferedRandom:
    return os.fdopen(os.memfd_create(f"edge_cl-template-{name}"), "w+b")


def _end(child: subprocess.Popen[bytes], *files: BufferedRandom) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.kill()  # by its own pid, and only if it was not waited for yet: Popen sees to both
    child.wait()
    for file in files:
        file.close()


def _parse(answer: bytes) -> Template:
    line, _, model = answer.partition(b"\n")
    header = json.loads(line)
    if len(model) != header["model_bytes"]:
        raise TemplateError(f"the child sent {len(model)} of {header['model_bytes']} bytes", hint="start again")
    offsets = {name: (offset, size) for name, (offset, size) in header["offsets"].items()}
    return Template(model, offsets, frozenset(header["unused"]), header["opset"])
