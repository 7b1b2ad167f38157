"""Videos of which every pixel is known, made by ffmpeg."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tools.fakes.video_server import ffmpeg


def write_video(file: Path, frames: np.ndarray, fps: float = 25) -> Path:
    """A video of these frames, (N, H, W, 3) uint8 in the order red, green, blue; without any loss."""
    _, height, width, _ = frames.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    ffmpeg(*raw, "-c:v", "ffv1", "-pix_fmt", "bgr0", str(file), given=frames.tobytes())
    return file


def numbered(n: int, height: int = 16, width: int = 24) -> np.ndarray:
    """Frames that differ from each other and within: (N, H, W, 3)."""
    return np.random.default_rng(3).integers(0, 256, (n, height, width, 3), np.uint8)
