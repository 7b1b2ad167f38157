"""PyTorch modules as a user might bring them, for model.module=user_modules:NAME; of samples (C, L) unless said."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]

PATIENCE_S = 240.0  # how long a loaded machine may take to import torch and onnx, and to export a module


class Convolutional(nn.Module):
    """What exporters fold or rename: BatchNorm behind a convolution, GroupNorm, LayerNorm; a bare parameter, dropout.

    `idle` has no part in an answer.
    """

    def __init__(self, shape: Shape, n_outputs: int) -> None:
        super().__init__()
        self.conv, self.batch_norm = nn.Conv1d(shape[0], 8, 3, padding=1), nn.BatchNorm1d(8)
        self.group_norm, self.layer_norm = nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.scale, self.idle = nn.Parameter(torch.ones(8)), nn.Linear(3, 3)
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(8, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(self.batch_norm(self.conv(x)).relu()) * self.scale[:, None]
        answer: Tensor = self.head(self.dropout(self.layer_norm(h.mean(2))))
        return answer


class Tied(nn.Module):
    """One weight for two layers, and once more transposed."""

    def __init__(self, shape: Shape, n_outputs: int) -> None:
        super().__init__()
        self.inwards, self.twin = nn.Linear(shape[0], shape[0]), nn.Linear(shape[0], shape[0], bias=False)
        self.twin.weight = self.inwards.weight
        self.head = nn.Linear(shape[0], n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.twin(torch.tanh(self.inwards(x.mean(2))))
        answer: Tensor = self.head(torch.tanh(h) @ self.inwards.weight.t())
        return answer


class Attentive(nn.Module):
    """Attention and a GRU: weights that exporters cut and lay out anew."""

    def __init__(self, shape: Shape, n_outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(shape[0], 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.rnn, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.rnn(self.encoder(self.embed(x.transpose(1, 2))))[0][:, -1])
        return answer


class Unsupported(nn.Module):
    """A pooling whose windows differ in size, which ONNX has no operator for."""

    def __init__(self, shape: Shape, n_outputs: int) -> None:
        super().__init__()
        self.pool, self.head = nn.AdaptiveAvgPool1d(7), nn.Linear(7 * shape[0], n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.pool(x).flatten(1))
        return answer


class Computed(nn.Module):
    """A weight that is used as a Python number as well: the graph has that one as a constant."""

    def __init__(self, shape: Shape, n_outputs: int) -> None:
        super().__init__()
        self.head, self.level = nn.Linear(shape[0], n_outputs), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(x.mean(2) * self.level.item()) + self.level
        return answer


class ThroughNumpy(nn.Module):
    """A weight that torch loses sight of: the graph has its double."""

    def __init__(self, shape: Shape, n_outputs: int) -> None:
        super().__init__()
        self.head, self.level = nn.Linear(shape[0], n_outputs), nn.Parameter(torch.ones(shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(x.mean(2) * torch.from_numpy(2 * self.level.detach().numpy()))
        return answer


class Flat(nn.Sequential):
    """For samples of any shape."""

    def __init__(self, shape: Shape, n_outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, n_outputs))


def one_logit_more(shape: Shape, n_outputs: int) -> nn.Module:
    return Flat(shape, n_outputs + 1)


def a_class(shape: Shape, n_outputs: int) -> Any:
    return Flat


def failing(shape: Shape, n_outputs: int) -> nn.Module:
    raise KeyError("no such recipe")


def of_another_shape(shape: Shape, n_outputs: int) -> nn.Module:
    return nn.Linear(2, n_outputs)


def another_each_time(shape: Shape, n_outputs: int) -> nn.Module:
    hidden = random.SystemRandom().randrange(2, 1000)
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(hidden), nn.Linear(hidden, n_outputs))


NOT_CALLABLE = 3
