"""The template's child process, for real: what it builds, where it can run, and how it fails."""

import copy
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from storage_models import GRAPH, PATIENCE_S, template

from edge_cl.storage.errors import TemplateError
from edge_cl.storage.template import CHILD, PendingTemplate, start_build
from edge_cl.storage.template_child import build, locate

REQUEST = json.dumps({"path": [], "graph": GRAPH}).encode()


def changed(**changes: Any) -> dict[str, Any]:
    graph = copy.deepcopy(GRAPH)
    graph.update(changes)
    return graph


def message_for(graph: dict[str, Any]) -> str:
    with pytest.raises(TemplateError) as caught:
        start_build(graph).result(PATIENCE_S)
    return str(caught.value)


def test_the_model_says_what_the_graph_says() -> None:
    model = onnx.load_from_string(template().model)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert [node.op_type for node in model.graph.node] == [node["op"] for node in GRAPH["nodes"]]
    shapes = [
        [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["batch", 8, 3], ["batch", 4]]
    assert not model.metadata_props
    flat = next(t for t in model.graph.initializer if t.name == "flat")
    np.testing.assert_array_equal(numpy_helper.to_array(flat), np.array([0, -1]), strict=True)


def test_each_offset_is_where_onnx_reads_that_weight() -> None:
    found = template()
    assert found.nbytes == len(found.model)
    assert found.offsets.keys() == GRAPH["weights"].keys()
    for tensor in onnx.load_from_string(found.model).graph.initializer:
        if tensor.name in found.offsets:
            offset, size = found.offsets[tensor.name]
            assert size == 4 * int(np.prod(GRAPH["weights"][tensor.name]))
            assert found.model[offset : offset + size] == numpy_helper.to_array(tensor).tobytes()
    ends = sorted((offset, offset + size) for offset, size in found.offsets.values())
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends))


def test_a_pattern_that_is_not_unique_is_not_a_place() -> None:
    assert locate(b"-abcd-abcd-", {"w": b"abcd"}) is None
    assert locate(b"-abab-", {"w": b"aba"}) == {"w": (1, 3)}
    assert locate(b"-aaa-", {"w": b"aa"}) is None  # overlapping counts, too
    assert locate(b"--", {"w": b"a"}) is None


def test_many_weights_of_one_element_are_all_found() -> None:
    n = 300
    nodes = [{"op": "Add", "inputs": [f"h{i}", f"w{i}"], "outputs": [f"h{i + 1}"], "attributes": {}} for i in range(n)]
    graph = {
        "opset": 17,
        "input": {"name": "h0", "shape": [4]},
        "outputs": {f"h{n}": [4]},
        "nodes": nodes,
        "weights": {f"w{i}": [1] for i in range(n)},
        "constants": {},
    }
    built = build(graph)
    assert len({offset for offset, _ in built.offsets.values()}) == n
    for tensor in onnx.load_from_string(built.model).graph.initializer:
        offset, size = built.offsets[tensor.name]
        assert built.model[offset : offset + size] == tensor.raw_data
        assert np.isfinite(numpy_helper.to_array(tensor)).all()


def test_a_wrong_graph_fails_with_the_childs_own_message() -> None:
    nodes = copy.deepcopy(GRAPH["nodes"])
    nodes[4]["op"] = "LeakyReLU"
    assert "LeakyReLU" in message_for(changed(nodes=nodes))
    assert "5" in message_for(changed(outputs={"probabilities": [5]}))  # shapes are inferred
    assert "unheard_of" in message_for(changed(outputs={"unheard_of": [4]}))
    assert message_for(changed(weights={**GRAPH["weights"], "void": [0, 3]})).endswith(
        "ValueError: weight void has no elements (shape [0, 3])"
    )
    without = changed()
    del without["opset"]
    assert message_for(without).endswith("KeyError: 'opset'")


def test_a_child_that_is_killed_is_named_by_its_signal() -> None:
    pending = start_build(GRAPH)
    pending._child.kill()
    with pytest.raises(TemplateError, match="ended by SIGKILL"):
        pending.result(PATIENCE_S)


def test_it_is_built_in_the_background_and_the_result_is_kept() -> None:
    pending = start_build(GRAPH)
    deadline = time.monotonic() + PATIENCE_S
    while not pending.ready:
        assert time.monotonic() < deadline
    first = pending.result(0)
    assert first == template()  # the same graph gives the same bytes
    assert pending.result(0) is first
    pending.close()
    assert pending.result(0) is first


def test_a_late_child_is_ended() -> None:
    pending = start_build(GRAPH)
    child = pending._child
    with pytest.raises(TemplateError, match=r"not ready within 0\.001 s"):
        pending.result(0.001)
    assert child.returncode == -9
    assert pending.ready
    with pytest.raises(TemplateError, match="given up"):
        pending.result(0.001)


@pytest.mark.parametrize("end", ["close", "drop"])
def test_giving_up_ends_the_child_and_leaks_no_descriptor(end: str) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    pending: PendingTemplate | None = start_build(GRAPH)
    assert pending is not None
    child = pending._child
    if end == "close":
        pending.close()
    pending = None
    assert child.returncode == -9
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_finished_build_leaks_no_descriptor() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    start_build(GRAPH).result(PATIENCE_S)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_folder_full_of_impostors_does_not_disturb_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json.py", "numpy.py", "onnx.py", "struct.py"):
        (tmp_path / name).write_text("raise SystemExit('an impostor ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert start_build(GRAPH).result(PATIENCE_S) == template()


def test_the_child_runs_with_an_empty_environment_and_from_the_root() -> None:
    command = [sys.executable, "-I", str(CHILD)]
    done = subprocess.run(command, input=REQUEST, capture_output=True, cwd="/", env={}, check=False)
    assert done.stderr == b""
    assert done.stdout.endswith(template().model)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_child_runs_for_a_user_without_a_passwd_entry() -> None:
    # The right to enter folders is kept, because an interpreter under /root is otherwise out of this user's reach.
    keep = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    as_nobody = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", *keep, sys.executable, "-I"]
    lookup = [*as_nobody, "-c", "import os, pwd; pwd.getpwuid(os.getuid())"]
    if b"uid not found: 54321" not in subprocess.run(lookup, capture_output=True, check=False).stderr:
        pytest.skip("becoming an unknown user is not allowed here")
    done = subprocess.run(
        [*as_nobody, str(CHILD)], input=REQUEST, capture_output=True, cwd="/", env={"PATH": os.defpath}, check=False
    )
    assert done.stderr == b""
    assert done.stdout.endswith(template().model)


def test_what_a_library_prints_does_not_get_into_the_answer(tmp_path: Path) -> None:
    package = tmp_path / "numpy"  # found first, because -I is left out here
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os, sys\nprint('a chatty library', flush=True)\nos.write(1, b'even so')\nraise ImportError('no numpy')"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, str(CHILD)], input=REQUEST, capture_output=True, env=env, check=False)
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"a chatty library" in done.stderr
    assert done.stderr.endswith(b"ImportError: no numpy\n")


def test_the_parent_imports_neither_onnx_nor_torch() -> None:
    script = """
import importlib, pkgutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import edge_cl.storage
for module in pkgutil.iter_modules(edge_cl.storage.__path__):
    importlib.import_module("edge_cl.storage." + module.name)
from storage_models import answers, samples, template, weights
from edge_cl.storage.snapshot import Deployed, fill, verify
model = fill(template(), weights(), {"a": "b"})
print(verify(Deployed(model), samples(5), answers(weights(), samples(5))) < 1e-5)
print(sorted({"onnx", "onnxscript", "torch"} & sys.modules.keys()))
"""
    tests = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", script, tests], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "True\n[]\n"
