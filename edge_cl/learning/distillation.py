"""Keep answering as before: to logits stored beside a replayed sample, or to those of the last consolidation.

Each is ∂loss/∂logits of a term of the step's loss, for a batch's rows. Must not know networks, replay or labels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def match_logits(logits: Tensor, stored: Tensor, alpha: float) -> Tensor:
    """∂/∂z of 1/M Σ h(|z - s|), dark experience replay (Buzzega et al. 2020); z and s (M, C), so is the result.

    h(r) = α r² as in the paper while 2 α r ≤ 1, and its tangent beyond: a row never pulls harder than a label can, for
    which |∂/∂z| stays below √2. The plain square diverges where η α |features|² is large (docs/DESIGN.md).
    An entry of s that is not a number takes no part: its class had not been seen, or the sample came without logits.
    """
    delta = torch.nan_to_num_(logits - stored, nan=0.0).mul_(2 * alpha)
    return delta.div_(torch.linalg.vector_norm(delta, dim=1, keepdim=True).clamp_min_(1.0).mul_(max(1, len(logits))))


def match_teacher(logits: Tensor, teacher: Tensor, known: Tensor, weight: float, temperature: float) -> Tensor:
    """∂/∂z of w/B Σ T² KL(softmax(t / T) | softmax(z / T)) over the classes `known` (C,) to the teacher; all (B, C).

    Learning without forgetting (Li & Hoiem 2016; Hinton, Vinyals & Dean 2015 for T²): gradient w T (q - q_teacher) / B.
    """
    mask = torch.where(known, 0.0, -torch.inf)
    student = (logits / temperature + mask).softmax(1)
    return student.sub_((teacher / temperature + mask).softmax(1)).mul_(weight * temperature / max(1, len(logits)))
