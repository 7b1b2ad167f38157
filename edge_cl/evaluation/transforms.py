"""The same samples as another sensor would have seen them: pixels in another order, images turned.

Each transform keeps shape and dtype. Knows arrays only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import affine_grid, grid_sample

from edge_cl.learning.model import choose_kind

CHUNK = 4096  # images turned at once


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape are images, (H, W) or (H, W, C)."""
    return choose_kind(shape) == "cnn2d"


def n_positions(shape: tuple[int, ...]) -> int:
    """Places that can change places: pixels of an image, rows of a signal, features of a vector.

    >>> [n_positions(shape) for shape in [(28, 28), (32, 32, 3), (128, 9), (1024,), (8,)]]
    [784, 1024, 128, 1024, 8]
    """
    has_channels = len(shape) == 3 or (len(shape) == 2 and not is_image(shape))
    return math.prod(shape[:-1] if has_channels else shape)


def permuted(x: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
    """x (N, *shape) with position p filled from order[p], all channels of a position together.

    Goodfellow et al. 2014, An empirical investigation of catastrophic forgetting.
    """
    return x.reshape(len(x), len(order), -1)[:, order].reshape(x.shape)


def rotated(x: NDArray[Any], degrees: float) -> NDArray[Any]:
    """Images x (N, H, W) or (N, H, W, C) turned anticlockwise about their centre, bilinear, with 0 from outside.

    Lopez-Paz and Ranzato 2017 turn MNIST by angles between 0° and 180°.
    """
    parts = [_turned(x[start : start + CHUNK], math.radians(degrees)) for start in range(0, len(x), CHUNK)]
    return np.concatenate(parts) if parts else x


def _turned(x: NDArray[Any], angle: float) -> NDArray[Any]:
    images = torch.from_numpy(x.astype(np.float32)).reshape(*x.shape[:3], -1).movedim(3, 1)  # (N, C, H, W)
    height, width = x.shape[1:3]
    cos, sin = math.cos(angle), math.sin(angle)
    # Where each pixel comes from, in coordinates that run from -1 to 1 across an image however long its sides are.
    back = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    grid = affine_grid(back.expand(len(x), 2, 3), list(images.shape), align_corners=False)
    turned = grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    values = turned.movedim(1, 3).reshape(x.shape).numpy()
    return (values if x.dtype.kind == "f" else np.rint(values)).astype(x.dtype)
