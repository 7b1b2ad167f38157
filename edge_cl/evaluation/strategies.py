"""The named strategies of `edge-cl evaluate`: each one line of overrides on the configuration that `edge-cl run` has.

The only place where a method of the literature becomes settings. Knows names and texts; neither learners nor streams.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final

from edge_cl.errors import OperatorError

# Every method but the default starts from none: a better default must not make its comparators better.
PLAIN: Final = (
    "learning.label_smoothing=0",
    "replay.asymmetric=false",
    "replay.bits=null",
    "distillation.logits=0",
    "distillation.logits_from=arrival",
    "distillation.replay_labels=1",
    "distillation.teacher=0",
    "learning.projection=none",
    "learning.protect=0",
    "consolidation.ewc_lambda=0",
    "consolidation.rehearsal_passes=0",
)
WITHOUT_REPLAY: Final = (*PLAIN, "replay.samples=0", "replay.per_step=0", "exam.share=0")
# Without replay a slower rate forgets less, and what is anchored should end where the stream changes. Chosen on a part
# of Permuted Fashion-MNIST's training split (docs/RESULTS.md, docs/DESIGN.md).
ANCHORED: Final = (
    "learning.learning_rate=0.02",
    "consolidation.trigger=page_hinkley",
    "consolidation.every_steps=2000",
)


@dataclass(frozen=True)
class Strategy:
    """A name, one sentence, and the overrides `key=value` that make it.

    `replays`: keeps old samples, so that --replay-bytes and --replay-samples say how many. `shuffles`: is played all
    samples in random order, as no stream does: a control and not a method.
    """

    name: str
    summary: str
    overrides: tuple[str, ...] = ()
    replays: bool = True
    shuffles: bool = False


STRATEGIES: Final = {
    strategy.name: strategy
    for strategy in (
        Strategy("default", "What `edge-cl run` uses out of the box."),
        Strategy(
            "fine-tune",
            "Gradient steps on what comes and nothing else: what forgets.",
            (*WITHOUT_REPLAY, "learning.learning_rate=0.01"),
            replays=False,
        ),
        Strategy(
            "ewc",
            "Online EWC alone, no old samples kept (Kirkpatrick et al. 2017; Schwarz et al. 2018).",
            (*WITHOUT_REPLAY, *ANCHORED, "consolidation.ewc_lambda=30"),
            replays=False,
        ),
        Strategy("er", "Experience replay: old samples beside the new in each step (Chaudhry et al. 2019).", PLAIN),
        Strategy(
            "er-ewc",
            "Experience replay and online EWC together.",
            (*PLAIN, "consolidation.ewc_lambda=3"),
        ),
        Strategy(
            "er-ace",
            "Replay in which new samples compete with new classes only (Caccia et al. 2022).",
            (*PLAIN, "replay.asymmetric=true"),
        ),
        Strategy(
            "der",
            "Replay that asks for the logits stored with a sample, not for its label (Buzzega et al. 2020).",
            (*PLAIN, "distillation.logits=0.5", "distillation.replay_labels=0"),
        ),
        Strategy(
            "der++",
            "DER that asks for the label as well (Buzzega et al. 2020).",
            (*PLAIN, "distillation.logits=0.5", "distillation.replay_labels=1"),
        ),
        Strategy(
            "lwf",
            "Learning without forgetting: the answers of the last consolidated weights are kept (Li & Hoiem 2017).",
            (*WITHOUT_REPLAY, "distillation.teacher=1", "distillation.temperature=2"),
            replays=False,
        ),
        Strategy(
            "a-gem",
            "No step may go against the gradient of old samples (Chaudhry et al. 2019).",
            (*PLAIN, "learning.projection=a-gem"),
        ),
        Strategy(
            "si",
            "Synaptic intelligence: importance is summed up along the way, not measured (Zenke et al. 2017).",
            (*WITHOUT_REPLAY, "consolidation.importance=path", "consolidation.ewc_lambda=1"),
            replays=False,
        ),
        Strategy(
            "scaled-rates",
            "The more a weight matters to what was learnt, the lower its learning rate.",
            (*WITHOUT_REPLAY, "learning.protect=1"),
            replays=False,
        ),
        Strategy(
            "nearest-mean",
            "The class whose mean is nearest, no learning rate at all (Mensink et al. 2013).",
            (*WITHOUT_REPLAY, "model.kind=nearest_mean"),
            replays=False,
        ),
        Strategy(
            "slda",
            "Streaming linear discriminant analysis on the raw samples (Hayes & Kanan 2020).",
            (*WITHOUT_REPLAY, "model.kind=slda"),
            replays=False,
        ),
        Strategy(
            "slda-random",
            "Streaming linear discriminant analysis on random features of the samples.",
            (*WITHOUT_REPLAY, "model.kind=slda_random"),
            replays=False,
        ),
        Strategy(
            "iid",
            "One pass over everything shuffled: not a stream, but what one could hope for.",
            WITHOUT_REPLAY,
            replays=False,
            shuffles=True,
        ),
    )
}


MODELS: Final = {
    "auto": "By the shape of a sample: (D,) mlp, (T, C) cnn1d, (H, W) and (H, W, C) cnn2d.",
    "mlp": "Two hidden layers on the flattened sample; the fastest step.",
    "cnn1d": "For windows of a signal: learnt filters, their loudness and level, one hidden layer.",
    "cnn2d": "For images: three strided convolutions and a linear layer.",
}


def strategy_of(name: str) -> Strategy:
    """The strategy of that name. Raises OperatorError, with what was probably meant."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    close = difflib.get_close_matches(name, STRATEGIES, n=1)
    raise OperatorError(
        f"strategy: must be one of {', '.join(STRATEGIES)} (got {name})",
        hint=f"did you mean {close[0]}?" if close else "`edge-cl evaluate --list` says what each of them does",
    )
