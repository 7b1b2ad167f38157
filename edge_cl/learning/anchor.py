"""The anchor of online EWC in three bytes a parameter, and the proximal pull towards it.

Knows flat tensors of one order: θ, θ*, Fisher. Must not know networks, samples or when to consolidate.
"""

from __future__ import annotations

import torch
from torch import Tensor

CODES = 255  # largest code of a byte
MOST_EVIDENCE = 10.0  # consolidations: without a cap the summed Fisher grows for months until nothing can be learnt
SLICES = 8  # the arena is pulled an eighth a step, eight steps' worth at once: one slice stays within the cache
SMALLEST = 1e-30  # keeps 0 / (0 + 1/ηλ) at zero for any λ


class Anchor:
    """θ* and the Fisher diagonal, as float16 and as 8-bit codes on a square-root scale.

    The penalty is ½ λ Σᵢ Fᵢ (θᵢ - θ*ᵢ)² (Kirkpatrick et al. 2017) with one anchor, the latest, and a running sum of
    Fishers (online EWC: Schwarz et al. 2018). It is applied implicitly, as a proximal step after the gradient step:

        θ ← θ + a (θ* - θ),   a = η λ F / (1 + η λ F),

    which has the same minimiser and cannot overshoot: 0 ≤ a < 1 for every λ. The explicit gradient diverges as soon as
    η λ F > 2. Codes: F = (code · scale)², so that small entries keep relative precision (LITERATURE.md §4).
    """

    def __init__(self, n_parameters: int, device: torch.device | str = "cpu") -> None:
        self.theta = torch.zeros(n_parameters, dtype=torch.float16, device=device)
        self.codes = torch.zeros(n_parameters, dtype=torch.uint8, device=device)
        self.scale = 0.0
        self.evidence = 0.0  # consolidations the summed Fisher stands for, at most MOST_EVIDENCE
        length = -(-n_parameters // SLICES)
        self._slices = [slice(start, min(start + length, n_parameters)) for start in range(0, n_parameters, length)]
        self._pull = torch.empty(length, device=device)
        self._target = torch.empty(length, device=device)
        self.turn = 0

    @property
    def nbytes(self) -> int:
        """Bytes held: three a parameter, and the two working slices of the pull."""
        tensors = (self.theta, self.codes, self._pull, self._target)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def fisher(self) -> Tensor:
        """The decoded Fisher diagonal (P,)."""
        return self.codes.to(torch.float32).mul_(self.scale).square_()

    def consolidate(self, theta: Tensor, fisher: Tensor, gamma: float) -> None:
        """Move the anchor to θ (P,) and merge a new Fisher diagonal (P,): F ← γ F + F_new.

        γ in [0, 1] forgets; beyond `MOST_EVIDENCE` consolidations the old sum is scaled down to make room for the new.
        Raises ValueError if the Fisher diagonal is not finite and non-negative.
        """
        if not bool((fisher >= 0).all()) or not bool(torch.isfinite(fisher).all()):
            raise ValueError("fisher: every entry must be finite and at least 0")
        if self.evidence * gamma + 1 > MOST_EVIDENCE:
            gamma = (MOST_EVIDENCE - 1) / self.evidence
        merged = self.fisher().mul_(gamma).add_(fisher)
        self.evidence = gamma * self.evidence + 1
        self.theta.copy_(theta.clamp(-65504, 65504))  # float16's range
        root = merged.sqrt_()
        self.scale = float(root.max()) / CODES
        if self.scale > 0:
            self.codes.copy_(root.div_(self.scale).round_().clamp_(0, CODES))
        else:
            self.codes.zero_()

    def pull(self, theta: Tensor, strength: float) -> None:
        """One proximal step of strength ηλ on an eighth of θ (P,), in place; each eighth has its turn."""
        if self.scale == 0 or strength == 0:
            return
        part = self._slices[self.turn]
        self.turn = (self.turn + 1) % len(self._slices)
        size = part.stop - part.start
        a, target = self._pull[:size], self._target[:size]
        offset = max(1.0 / max(strength * len(self._slices) * self.scale**2, SMALLEST), SMALLEST)
        a.copy_(self.codes[part]).square_()  # F / scale²
        torch.add(a, offset, out=target)
        a.div_(target)  # ηλF / (ηλF + 1)
        target.copy_(self.theta[part])
        theta[part].lerp_(target, a)
