"""The anchor of online EWC in three bytes a parameter, and the proximal pull towards it.

Knows flat tensors of one order: θ, θ*, Fisher. Must not know networks, samples or when to consolidate.
"""

from __future__ import annotations

import torch
from torch import Tensor

CODES = 255  # largest code of a byte
MOST_EVIDENCE = 10.0  # consolidations: without a cap the summed Fisher grows for months until nothing can be learnt
SLICES = 16  # a sixteenth of the parameters is pulled a step, sixteen steps' worth at once: it stays within the cache
SMALLEST = 1e-30  # keeps 0 / (0 + 1/ηλ) at zero for any λ
HALF = 65504.0  # float16's range


def slices(on_gpu: bool) -> int:
    """Slices the parameters are pulled in: a GPU is slowed by the number of operations, not by the length of each."""
    return 1 if on_gpu else SLICES


class Anchor:
    """θ* and the Fisher diagonal of the live parameters θ (P,), as float16 and as 8-bit codes on a square-root scale.

    The penalty is ½ λ Σᵢ Fᵢ (θᵢ - θ*ᵢ)² (Kirkpatrick et al. 2017) with one anchor, the latest, and a running sum of
    Fishers (online EWC: Schwarz et al. 2018). It is applied implicitly, as a proximal step after the gradient step:

        θ ← θ + a (θ* - θ),   a = η λ F / (1 + η λ F),

    which has the same minimiser and cannot overshoot: 0 ≤ a ≤ 1 for every λ. The explicit gradient diverges as soon as
    η λ F > 2. Codes: F = (code · scale)², so that small entries keep relative precision (docs/DESIGN.md).

    F is a mean over samples, as the loss is, so a λ means the same for any batch, replay memory and network: a nat of
    divergence from what was known weighs as much as λ nats of loss. A row of the head whose class had not been seen has
    F = 0 exactly and is not held.

    `compact=False` keeps both in float32, eight bytes a parameter: what the three bytes are compared with.
    """

    def __init__(self, theta: Tensor, *, compact: bool = True) -> None:
        P = theta.numel()
        self.live = theta
        self.theta = torch.zeros(P, dtype=torch.float16 if compact else torch.float32, device=theta.device)
        self.codes = torch.zeros(P, dtype=torch.uint8 if compact else torch.float32, device=theta.device)
        self.scale = 0.0
        self.evidence = 0.0  # consolidations the summed Fisher stands for, at most MOST_EVIDENCE
        self.turn = 0  # which slice is pulled next
        length = -(-P // slices(theta.device.type != "cpu"))
        self._pull, self._target = torch.empty(2, length, device=theta.device)
        parts = zip(*(torch.split(tensor, length) for tensor in (theta, self.theta, self.codes)), strict=True)
        self._slices = [(*part, self._pull[: len(part[0])], self._target[: len(part[0])]) for part in parts]
        self.n_slices = len(self._slices)
        self._offset = torch.ones((), device=theta.device)
        self._offset_for = (0.0, 0.0)

    @property
    def nbytes(self) -> int:
        """Bytes held: three a parameter, and the two working slices of the pull."""
        tensors = (self.theta, self.codes, self._pull, self._target)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def fisher(self) -> Tensor:
        """The decoded Fisher diagonal (P,)."""
        return self.codes.to(torch.float32, copy=True).mul_(self.scale).square_()

    def consolidate(self, fisher: Tensor, gamma: float) -> None:
        """Move the anchor to where θ is and merge a new Fisher diagonal (P,): F ← γ F + F_new.

        γ in [0, 1] forgets; γ = 0 leaves the new one alone. Beyond `MOST_EVIDENCE` consolidations the old sum is scaled
        down to make room for the new. Raises ValueError if the Fisher diagonal is not finite and non-negative.
        """
        if not bool((fisher >= 0).all()) or not bool(torch.isfinite(fisher).all()):
            raise ValueError("fisher: every entry must be finite and at least 0")
        if self.evidence * gamma + 1 > MOST_EVIDENCE:
            gamma = (MOST_EVIDENCE - 1) / self.evidence
        merged = self.fisher().mul_(gamma).add_(fisher)
        self.evidence = gamma * self.evidence + 1
        self.theta.copy_(self.live.clamp(-HALF, HALF))
        self._encode(merged)

    def pull(self, strength: float) -> None:
        """One proximal step of strength ηλ on a slice of θ, in place; at its turn each slice gets all turns' worth."""
        if strength == 0 or (self.scale == 0 and self.live.device.type == "cpu"):
            return  # on a GPU nothing may depend on what the host knows: there codes of 0 pull by 0
        live, kept, codes, a, target = self._slices[self.turn]
        self.turn = (self.turn + 1) % self.n_slices
        torch.mul(a.copy_(codes), a, out=a)  # F / scale²
        a.div_(torch.add(a, self.offset_for(strength), out=target))  # ηλF / (ηλF + 1)
        live.lerp_(target.copy_(kept), a)

    def offset_for(self, strength: float) -> Tensor:
        """1 / ηλ in units of the codes, as a tensor: it changes in place, where a captured graph reads it."""
        if self._offset_for != (strength, self.scale):
            self._offset_for = (strength, self.scale)
            self._offset.fill_(max(1.0 / max(strength * self.n_slices * self.scale**2, SMALLEST), SMALLEST))
        return self._offset

    def _encode(self, fisher: Tensor) -> None:
        root = fisher.sqrt()
        if self.codes.dtype != torch.uint8:
            self.scale = 1.0
            self.codes.copy_(root)
            return
        self.scale = float(root.max()) / CODES
        if self.scale > 0:
            self.codes.copy_(root.div_(self.scale).round_().clamp_(0, CODES))
        else:
            self.codes.zero_()
