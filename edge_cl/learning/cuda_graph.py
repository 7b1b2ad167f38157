"""A function of tensors that stay in place, recorded once on the GPU and replayed from then on.

Knows CUDA graphs. Must not know what is computed: a learning step of a small network is a hundred operations of a few
microseconds each, and launching them one by one takes longer than they do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class CudaGraph:
    """Calls `function`, first as it is, then by replaying what it launched: the same kernels on the same memory.

    Every call does what one call of the function does, the recording itself excepted. What the function reads must
    change in place only; what differs otherwise, a length, belongs into `key`. The result (...) is a copy.
    """

    WARM_UP = 3  # calls before the recording, in which libraries choose their kernels and make their workspaces
    MOST = 8  # recordings; the one that was not used for longest makes way

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function, self._device = function, device
        self._calls: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # in the order of their last use
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, *tensors: Tensor | None, key: Hashable) -> Tensor:
        """function(*tensors), with the tensors in the same places at each call of the same key."""
        key = (key, *(None if tensor is None else tensor.data_ptr() for tensor in tensors))
        with torch.cuda.device(self._device):
            if key not in self._recorded:
                calls = self._calls[key] = self._calls.get(key, 0) + 1
                if calls <= self.WARM_UP:
                    return self._on_side_stream(*tensors)
                if len(self._recorded) == self.MOST:
                    del self._recorded[next(iter(self._recorded))]
                self._recorded[key] = self._record(*tensors)
            graph, result = self._recorded[key] = self._recorded.pop(key)
            graph.replay()
            return result.clone()

    def _record(self, *tensors: Tensor | None) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            result = self._function(*tensors)
        return graph, result

    def _on_side_stream(self, *tensors: Tensor | None) -> Tensor:
        """Where a recording will be made, too, so that the libraries' workspaces belong to the right stream."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._function(*tensors)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result.clone()
