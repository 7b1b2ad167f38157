"""Which classes a row is told apart among: those seen, those of its own head, or those that came lately.

Knows class indices. Must not know networks, samples or losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

RECENT = 200  # samples for which a class that came counts as what is new


class Context:
    """Masks to be added to logits: 0 for a class that takes part, -∞ for one that does not.

    A class takes part once it has been seen: in the loss, the Fisher and the answers. With several heads (`split`), a
    row is told apart among the classes of its label's head alone, which is task-incremental learning with one output
    layer (van de Ven & Tolias 2019). Heads need not be known beforehand; a class that none names is in the first.
    `current` is the mask of the classes of the last RECENT samples or so.
    """

    def __init__(self, n_outputs: int, device: torch.device) -> None:
        self.device = device
        self.seen = torch.zeros(n_outputs, dtype=torch.bool)
        self.heads = torch.zeros(n_outputs, dtype=torch.int64)
        self.warm = torch.zeros(n_outputs, dtype=torch.int64)  # samples for which a class will still be current
        self.some_are_cold = False
        self.unseen = torch.empty(n_outputs, device=device)
        self.current = torch.full((n_outputs,), -torch.inf, device=device)
        self.rivals: Tensor | None = None  # (C, C): the mask of a row with each label, if there are several heads
        self.refresh()

    def knows(self, classes: Iterable[int]) -> bool:
        """Whether all of them have been seen."""
        return self._seen.issuperset(classes)

    def meet(self, labels: Tensor) -> None:
        """Take the classes of labels (n,) as seen."""
        self.seen[labels] = True
        self.refresh()

    def come(self, labels: Tensor) -> None:
        """Take the classes of labels (n,) as current, for these samples and the RECENT that follow."""
        self.warm.sub_(len(labels)).clamp_(0)
        self.warm[labels] = RECENT
        self._derive_current()

    def split(self, head: Sequence[int]) -> None:
        """Give these classes a head of their own. Raises ValueError if one is no output of the network."""
        wrong = [c for c in head if not 0 <= c < len(self.heads)]
        if wrong:
            raise ValueError(f"head: classes must be in 0 … {len(self.heads) - 1} (got {wrong[0]})")
        self.heads[list(head)] = int(self.heads.max()) + 1
        self.refresh()

    def refresh(self) -> None:
        """Derive the masks, after what they come from has been restored."""
        self._seen = set(torch.nonzero(self.seen).flatten().tolist())
        self.unseen.copy_(torch.where(self.seen, 0.0, -torch.inf))
        same = self.heads.unsqueeze(0) == self.heads.unsqueeze(1)
        table = torch.where(same & self.seen, 0.0, -torch.inf)
        self.rivals = None if bool(same.all()) else table.to(self.device)
        self._derive_current()

    def of(self, labels: Tensor) -> Tensor:
        """The mask (C,), or (B, C) with several heads, for rows with labels (B,)."""
        return self.unseen if self.rivals is None else self.rivals.index_select(0, labels)

    def _derive_current(self) -> None:
        current = self.warm > 0
        self.some_are_cold = not torch.equal(current, self.seen)
        self.current.copy_(torch.where(current, 0.0, -torch.inf))
