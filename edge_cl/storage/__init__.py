"""Durable bytes: the locked state directory, checkpoints, ONNX snapshots and the shelf they are published on."""
