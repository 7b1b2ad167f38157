"""A learnt network with templates of its own features in place of its last layer, for as long as a snapshot is made.

Knows network, replay and templates. The learner itself goes on with the head that it has learnt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from edge_cl.learning.graph import NEVER
from edge_cl.learning.layers import Linear
from edge_cl.learning.network import Network
from edge_cl.learning.prototypes import NearestMean
from edge_cl.learning.replay import Reservoir

AT_ONCE = 256  # samples


@contextmanager
def template_head(network: Network, replay: Reservoir, make: type[NearestMean]) -> Iterator[None]:
    """Within it the network's last layer is the templates of the samples in `replay`.

    f (D,) is what comes into that layer: W, b = templates.logits_head() over all (f, y) held. A class of which none is
    held has probability 0. An old class has as much say in it as a recent one (iCaRL, Rebuffi et al. 2017).
    """
    head = network.layers[-1]
    assert isinstance(head, Linear)
    own = head.own
    learnt = {name: tensor.clone() for name, tensor in own.items()}
    n_classes, n_features = own["weight"].shape
    templates = make(n_classes, n_features, own["weight"].device)
    with torch.inference_mode():
        for start in range(0, replay.size, AT_ONCE):
            places = np.arange(start, min(start + AT_ONCE, replay.size))
            network.forward(torch.tensor(replay.take(places), device=own["weight"].device))
            labels = torch.from_numpy(replay.labels[places].astype(np.int64)).to(own["weight"].device)
            templates.update(head.x, labels)
        W, b = templates.logits_head()
        own["weight"].copy_(W)
        own["bias"].copy_(b.masked_fill_(templates.counts == 0, NEVER))
    try:
        yield
    finally:
        for name, tensor in learnt.items():
            own[name].copy_(tensor)
