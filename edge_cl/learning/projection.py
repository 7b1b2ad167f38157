"""What a whole gradient can be turned into before it moves anything: A-GEM's projection, and importance-scaled rates.

Knows flat tensors of one order (P,). Must not know networks, losses or replay.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-30  # keeps 0 / 0 at zero


def project(gradient: Tensor, reference: Tensor) -> Tensor:
    """The gradient g (P,) without what would raise the loss whose gradient is r (P,), in place.

        g ← g - min(0, gᵀr) / rᵀr · r

    A-GEM (Chaudhry et al. 2019): gᵀr ≥ 0 afterwards, and g is as it was where that held before.
    """
    along = torch.dot(gradient, reference).clamp_max(0.0) / torch.dot(reference, reference).clamp_min(TINY)
    return gradient.sub_(along * reference)


def scaled_rates(importance: Tensor, strength: float) -> Tensor:
    """Factors (P,) in (0, 1] by which important weights move less: 1 / (1 + s F / mean F); all 1 while F is 0.

    They only ever lower a rate (trap T-08: dividing by the importance itself raises it wherever that is below 1).
    """
    return 1 / (1 + strength * importance / importance.mean().clamp_min(TINY))
