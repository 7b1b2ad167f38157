"""The layers of docs/ARCHITECTURE.md, held: imports point down only, and a few things happen in one place only.

Each rule is a function of one module's source, so that it can be shown a violation: a checker that cannot fail proves
nothing.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the cellar to the roof. A room may import rooms of the floors below it and itself, never its neighbours.
FLOORS = [
    ["firmware_bridge", "edge_cl.deployment"],
    ["edge_cl.errors", "edge_cl.units", "edge_cl.yaml_lines", "edge_cl.heap", "edge_cl.accounts"],
    ["edge_cl.settings"],
    ["edge_cl.config", "edge_cl.console", "edge_cl.intake"],
    ["edge_cl.learning", "edge_cl.storage", "edge_cl.service", "edge_cl.signals"],
    ["edge_cl.running", "edge_cl.deploy", "edge_cl.recorder"],
    ["edge_cl.budget", "edge_cl.governor", "edge_cl.exits", "edge_cl.modules", "edge_cl.backbone_file"],
    ["edge_cl.assembly", "edge_cl.module_export"],
    ["edge_cl.publishing", "edge_cl.keeping", "edge_cl.evaluation", "edge_cl.estimator"],
    ["edge_cl.sklearn", "edge_cl.river"],
    ["edge_cl.report", "edge_cl.observer"],
    ["edge_cl.daemon", "edge_cl.export"],
    ["edge_cl.check"],
    [
        *("edge_cl.cli_bridge", "edge_cl.cli_check", "edge_cl.cli_evaluate", "edge_cl.cli_export"),
        *("edge_cl.cli_label", "edge_cl.cli_snapshots", "edge_cl.cli_state"),
    ],
    ["edge_cl.cli"],
    ["edge_cl.__main__"],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# A wing is closed against more than the rooms above it. Everything named here, and all below that name.
FORBIDDEN = {
    "firmware_bridge": ["torch", "edge_cl", "pydantic", "typer", "rich"],
    "edge_cl.learning": [
        "pathlib", "os", "io", "time", "datetime", "threading", "multiprocessing", "subprocess", "socket", "signal",
        "sqlite3", "logging", "json", "yaml", "pydantic", "firmware_bridge", "edge_cl.config", "edge_cl.settings",
    ],
    "edge_cl.storage": ["torch", "yaml", "pydantic", "firmware_bridge", "edge_cl.config", "edge_cl.settings"],
    "edge_cl.service": ["torch", "firmware_bridge", "edge_cl.config", "edge_cl.settings"],
    "edge_cl.signals": ["torch", "numpy"],
}  # fmt: skip

# What the command line is made of.
COMMANDS = [
    "edge_cl.cli",
    "edge_cl.cli_evaluate",
    "edge_cl.cli_check",
    "edge_cl.cli_snapshots",
    "edge_cl.cli_bridge",
    "edge_cl.cli_label",
    "edge_cl.cli_state",
    "edge_cl.cli_export",
    "edge_cl.console",
]

# Who alone may import it.
ONLY_IN = {
    "onnx": [
        "edge_cl.storage.template_child",
        "edge_cl.storage.backbone_graph",
        "edge_cl.module_export",
        "edge_cl.storage.variants_child",
    ],
    "typer": COMMANDS,
    "rich": [*COMMANDS, "edge_cl.service"],
    "cryptography": ["edge_cl.storage.signature"],
    "jinja2": ["edge_cl.evaluation.report"],
    "matplotlib": ["edge_cl.evaluation.plots"],
    "sklearn": ["edge_cl.sklearn", "edge_cl.evaluation.data"],
    "river": ["edge_cl.river"],
    "serialx": ["firmware_bridge.sources.serial_port", "firmware_bridge.devices"],
    "paho": ["firmware_bridge.sources.mqtt_link"],
    "cv2": ["firmware_bridge.sources.camera_frames"],
}

# The command line prints. The others are programs of their own: their standard output is a wire to their parent.
MAY_PRINT = [
    "edge_cl.cli",
    "edge_cl.cli_evaluate",
    "edge_cl.cli_export",
    "edge_cl.cli_snapshots",
    "edge_cl.cli_state",
    "edge_cl.console",
    "edge_cl.deployment.consumer",
    "firmware_bridge.fake_board",
    "firmware_bridge.sources.camera_child",
    "edge_cl.storage.template_child",
    "edge_cl.storage.variants_child",
]

RUNS_WHAT_IT_READS = ["pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"]
# Of torch: load and save are pickle, the others bring pickle or code in.
TORCH_RUNS_WHAT_IT_READS = ("load", "save", "package", "hub", "jit")


def sources(*folders: str) -> dict[str, str]:
    """Module name to source text, of all files below the folders."""
    found = {}
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.read_text(encoding="utf-8")
    return found


OURS = sources("edge_cl", "firmware_bridge")


def imports(source: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and module of each import, lazy ones and those for types included; relative ones begin with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                yield node.lineno, deeper if deeper in known else base


def is_in(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


def room(module: str) -> str | None:
    return next((name for name in FLOOR_OF if is_in(module, name)), None)


def layer_faults(module: str, source: str) -> Iterator[str]:
    """Imports that do not point down, and those a wing or a single importer forbids."""
    own = room(module)
    for line, target in imports(source, set(OURS)):
        where = f"{module}:{line}: imports {target}"
        if target.startswith("."):
            yield f"{where}: write the whole name"
        above = room(target)
        if target.split(".")[0] in ("edge_cl", "firmware_bridge"):
            if above is None:
                yield f"{where}: which has no floor yet, see FLOORS"
            elif own is not None and above != own and FLOOR_OF[above] >= FLOOR_OF[own]:
                yield f"{where}: up or sideways"
        if any(is_in(target, name) for wing, names in FORBIDDEN.items() if is_in(module, wing) for name in names):
            yield f"{where}: forbidden in this wing"
        for name, places in ONLY_IN.items():
            if is_in(target, name) and not any(is_in(module, place) for place in places):
                yield f"{where}: only in {', '.join(places)}"


def printing_faults(module: str, source: str) -> Iterator[str]:
    """Prints, and touches of the standard streams, outside the programs that own them."""
    if module in MAY_PRINT:
        return
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("print", "pprint", "input")
        ):
            yield f"{module}:{node.lineno}: {node.func.id}(): only cli.py talks to a person"
        if _is_attribute(node, "sys", ("stdin", "stdout", "stderr", "__stdout__", "__stderr__")):
            yield f"{module}:{node.lineno}: a standard stream: only cli.py talks to a person"


def pickle_faults(module: str, source: str) -> Iterator[str]:
    """Every way to run code by reading data that we know of."""
    for line, target in imports(source, set()):
        if target.split(".")[0] in RUNS_WHAT_IT_READS:
            yield f"{module}:{line}: {target} runs what it reads"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and _is_attribute(node, "torch", TORCH_RUNS_WHAT_IT_READS):
            yield f"{module}:{node.lineno}: torch.{node.attr} runs what it reads"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
            if names & {*TORCH_RUNS_WHAT_IT_READS}:
                yield f"{module}:{node.lineno}: from torch imports what runs what it reads"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not _is_false(node.value):
            yield f"{module}:{node.lineno}: allow_pickle may only be False"


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _is_attribute(node: ast.AST, owner: str, names: tuple[str, ...]) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr in names
        and isinstance(node.value, ast.Name)
        and node.value.id == owner
    )


@pytest.mark.parametrize("module", OURS)
def test_every_module_has_its_floor(module: str) -> None:
    assert room(module) or module in ("edge_cl", "firmware_bridge"), f"{module}: give it a place in FLOORS"


@pytest.mark.parametrize("module", OURS)
def test_imports_point_down(module: str) -> None:
    assert list(layer_faults(module, OURS[module])) == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: {target for _, target in imports(text, set(OURS)) if target in OURS} for name, text in OURS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        pytest.fail(f"import cycle: {' → '.join(exc.args[1])}")


@pytest.mark.parametrize("module", OURS)
def test_only_the_command_line_prints(module: str) -> None:
    assert list(printing_faults(module, OURS[module])) == []


def test_nothing_runs_what_it_reads() -> None:
    everything = {**OURS, **sources("tests", "tools")}
    assert [fault for module, text in everything.items() for fault in pickle_faults(module, text)] == []


# The checkers themselves


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("edge_cl.learning.x", "import edge_cl.storage.atomic", "sideways"),
        ("edge_cl.storage.x", "from edge_cl.learning import arena", "sideways"),
        ("edge_cl.storage.x", "def f():\n    from edge_cl.learning.arena import Arena", "x:2: imports"),
        ("edge_cl.service.x", "from edge_cl import daemon", "up or sideways"),
        ("edge_cl.daemon", "from edge_cl.cli import main", "up or sideways"),
        ("edge_cl.errors", "if TYPE_CHECKING:\n    from edge_cl.config import Config", "up or sideways"),
        ("edge_cl.learning.x", "import os.path", "forbidden"),
        ("edge_cl.learning.x", "from pathlib import Path", "forbidden"),
        ("edge_cl.learning.x", "import time, math", "forbidden"),
        ("edge_cl.learning.x", "from edge_cl.config import Config", "forbidden"),
        ("edge_cl.learning.x", "from firmware_bridge.sample import Sample", "forbidden"),
        ("edge_cl.storage.x", "from torch import nn", "forbidden"),
        ("firmware_bridge.x", "import torch", "forbidden"),
        ("firmware_bridge.x", "from edge_cl.errors import EdgeError", "up or sideways"),
        ("edge_cl.daemon", "import onnx", "only in edge_cl.storage.template_child"),
        ("edge_cl.daemon", "from rich.console import Console", "only in edge_cl.cli, edge_cl.cli_evaluate"),
        ("edge_cl.daemon", "from . import config", "whole name"),
        ("edge_cl.daemon", "from edge_cl.nowhere import x", "no floor"),
    ],
)  # fmt: skip
def test_a_planted_import_is_found(module: str, source: str, said: str) -> None:
    assert any(said in fault for fault in layer_faults(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edge_cl.learning.x", "import math\nimport torch\nfrom edge_cl.learning.arena import Arena"),
        ("edge_cl.storage.x", "import onnxruntime\nfrom edge_cl.errors import IOFault"),
        ("edge_cl.storage.template_child", "import onnx"),
        ("edge_cl.cli", "from edge_cl import config\nfrom edge_cl.daemon import Daemon"),
    ],
)
def test_a_good_import_is_not(module: str, source: str) -> None:
    assert list(layer_faults(module, source)) == []


@pytest.mark.parametrize("source", ["print(1)", "def f():\n    sys.stdout.write('x')", "a = sys.stderr", "input()"])
def test_a_planted_print_is_found(source: str) -> None:
    assert list(printing_faults("edge_cl.daemon", source))
    assert not list(printing_faults("edge_cl.cli", source))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "torch.load(f)",
        "f = torch.save",
        "from torch import load",
        "from torch.serialization import load as read",
        "torch.hub.load('x', 'y')",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=x)",
    ],
)
def test_a_planted_pickle_is_found(source: str) -> None:
    assert list(pickle_faults("tools.x", source))
    assert not list(pickle_faults("tools.x", "np.load(f, allow_pickle=False)\nimport json"))


@pytest.mark.parametrize("place", ["edge_cl/storage/x.py", "firmware_bridge/x.py", "tools/x.py", "tests/test_x.py"])
def test_the_linter_finds_it_too(place: str) -> None:
    """While it is typed, and in a file that no test has read yet: the rules are switched on, everywhere."""
    planted = [
        *("import pickle", "import dill", "import joblib", "from shelve import open", "import marshal"),
        *("from torch import load", "torch.load('f')", "torch.jit.load('f')", "pickle.loads(b'')"),
        *("eval(text)", "yaml.load('f', Loader=yaml.Loader)"),
    ]
    source = "import torch, yaml\n" + "\n".join(planted)
    options = ("--output-format=concise", "--no-cache", "--stdin-filename", place)
    command = [sys.executable, "-m", "ruff", "check", *options, "-"]
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True)
    rules = ("TID251", "S301", "S307", "S506")
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if any(f" {rule} " in line for rule in rules)}
    assert found == set(range(2, len(planted) + 2)), done.stdout + done.stderr
