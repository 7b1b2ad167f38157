"""Answers samples with the model beside this file; needs numpy and onnxruntime, nothing else.

python consumer.py [FILE]     a sample a line, as CSV or a JSON list, or a .npy file; without FILE, standard input
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # newer ones send usage data to their maker
import onnxruntime

HERE = Path(__file__).parent


def main() -> None:
    """Print label and probability of each sample, or its anomaly score where there are no classes."""
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    model = (HERE / "model.onnx").read_bytes()
    if hashlib.sha256(model).hexdigest() != manifest["sha256"]:
        sys.exit("model.onnx is not the one that manifest.json names: copy the folder again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    shape = manifest["input"]["shape"][1:]  # of a sample: raw values, as the sensor gives them
    for sample in samples(sys.argv[1] if len(sys.argv) > 1 else "-"):
        outputs = session.run(None, {"input": np.asarray(sample, np.float32).reshape(1, *shape)})
        if manifest["labels"]:
            best = int(outputs[0].argmax())
            print(manifest["labels"][best], f"{outputs[0][0, best]:.4f}", flush=True)
        else:
            print("score", f"{outputs[1].item():.6g}", flush=True)


def samples(source: str) -> Iterator[object]:
    """One sample after another, in the shape that the model takes or flat."""
    if source.endswith(".npy"):
        yield from np.load(source, allow_pickle=False)
        return
    with sys.stdin if source == "-" else Path(source).open(encoding="utf-8") as lines:
        for line in filter(str.strip, lines):
            yield json.loads(line if line.lstrip().startswith("[") else f"[{line}]")


if __name__ == "__main__":
    main()
