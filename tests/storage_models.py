"""A small network in numpy and as a graph, for the tests of template, snapshot and shelf; no torch, no learner."""

import functools
from typing import Any

import numpy as np

from edge_cl.storage.template import Template, start_build

# How long a loaded machine may take to start Python, import onnx and build a graph.
PATIENCE_S = 60.0

GRAPH: dict[str, Any] = {
    "opset": 17,
    "input": {"name": "input", "shape": [8, 3]},
    "outputs": {"probabilities": [4]},
    "nodes": [
        {"op": "Sub", "inputs": ["input", "standardise.mean"], "outputs": ["centred"], "attributes": {}},
        {"op": "Mul", "inputs": ["centred", "standardise.scale"], "outputs": ["scaled"], "attributes": {}},
        {"op": "Reshape", "inputs": ["scaled", "flat"], "outputs": ["row"], "attributes": {}},
        {"op": "Gemm", "inputs": ["row", "fc.weight", "fc.bias"], "outputs": ["z"], "attributes": {"transB": 1}},
        {"op": "LeakyRelu", "inputs": ["z"], "outputs": ["a"], "attributes": {"alpha": 0.5}},
        {"op": "Mul", "inputs": ["a", "gain"], "outputs": ["b"], "attributes": {}},
        {"op": "Gemm", "inputs": ["b", "head.weight", "head.bias"], "outputs": ["logits"], "attributes": {"transB": 1}},
        {"op": "Softmax", "inputs": ["logits"], "outputs": ["probabilities"], "attributes": {"axis": -1}},
    ],
    "weights": {
        "standardise.mean": [3],
        "standardise.scale": [3],
        "fc.weight": [16, 24],
        "fc.bias": [16],
        "gain": [],  # one element: 4 bytes to be found by value
        "head.weight": [4, 16],
        "head.bias": [4],
    },
    "constants": {"flat": {"dtype": "int64", "values": [0, -1]}},
}


@functools.cache
def template() -> Template:
    """The template of GRAPH, built once for all tests of a session."""
    return start_build(GRAPH).result(PATIENCE_S)


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights for GRAPH."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape) / 2, dtype=np.float32) for name, shape in GRAPH["weights"].items()}


def samples(n: int, seed: int = 1) -> np.ndarray:
    """n inputs for GRAPH: (n, 8, 3)."""
    return np.random.default_rng(seed).normal(size=(n, 8, 3)).astype(np.float32)


def answers(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """What GRAPH computes, in float64: (n, 4) probabilities."""
    w64 = {name: values.astype(np.float64) for name, values in w.items()}
    row = ((x - w64["standardise.mean"]) * w64["standardise.scale"]).reshape(len(x), -1)
    z = row @ w64["fc.weight"].T + w64["fc.bias"]
    logits = np.where(z < 0, 0.5 * z, z) * w64["gain"] @ w64["head.weight"].T + w64["head.bias"]
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))
