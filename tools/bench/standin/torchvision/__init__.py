"""An empty stand-in for torchvision, for the peers' process only.

torchvision has no build for a torch without GPU where this was written, and avalanche-lib imports it at its top without
using it in any training step. Every submodule exists and every name in it is a class that does nothing; so what
avalanche takes to import, and its memory, are measured as less than they are. No step touches any of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Nothing:
    """Stands for whatever is asked for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


class _Empty(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return __getattr__(name)


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        return ModuleSpec(name, self, is_package=True) if name.startswith("torchvision.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Nothing,), {})


sys.meta_path.append(_Finder())
