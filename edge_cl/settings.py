"""Every setting of the daemon: its key, unit, default, limits, and what raising it costs. Knows no file and no YAML.

A part of the program gets numbers from here, never the whole Config. See config.py for the way from a file to a Config.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from edge_cl.units import parse_bytes, parse_duration, parse_time


def _rows(value: object) -> object:
    if value is None or value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    if isinstance(value, str) and value.endswith("s"):
        parse_time(value)
        return value
    raise ValueError("must be auto, null, a whole number of rows, 1 or more, or a time such as 500 ms or 2 s")


def _once(what: str, values: Sequence[str]) -> None:
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if twice is not None:
        raise ValueError(f"every {what} may be there once, {twice} is there twice")


def _urls(value: object) -> object:
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(url, str) and url for url in value):
        raise ValueError("must be a source, such as serial:///dev/ttyUSB0, or a list of several")
    _once("source", value)
    return tuple(value)


def _classes(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 4096):
        return value
    raise ValueError("must be auto or a whole number from 2 to 4096")


def _names(value: object) -> object:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("must be null or a list of class names, such as [normal, unbalance]")
    wrong = next((name for name in value if not isinstance(name, str) or not name.strip()), None)
    if wrong is not None:
        raise ValueError(f"every class name must be a text: put {wrong} in quotes")
    _once("class name", value)
    return tuple(value)


def _quantity(unit: str) -> WithJsonSchema:
    return WithJsonSchema(
        {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": rf"^[0-9.]+ ?{unit}$"}]}
    )


Rows = Annotated[
    int | str | None,
    BeforeValidator(_rows),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "auto"},
                {"type": "null"},
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^[0-9.]+ ?(ms|s)$"},
            ]
        }
    ),
]
Sources = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_urls),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    ),
]
Classes = Annotated[
    int | Literal["auto"],
    BeforeValidator(_classes),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 2, "maximum": 4096}]}),
]
Names = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(_names),
    WithJsonSchema({"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
ImportPath = Annotated[str | None, Field(strict=True, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
FilePath = Annotated[str | None, Field(strict=True, min_length=1)]
Bytes = Annotated[int, BeforeValidator(parse_bytes), _quantity("(B|[kK]B|[MG]B|[KMG]iB)")]
Milliseconds = Annotated[float, BeforeValidator(lambda value: parse_duration(value, "ms")), _quantity("ms")]
Seconds = Annotated[float, BeforeValidator(lambda value: parse_duration(value, "s")), _quantity("s")]
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Group(BaseModel):
    """Settings of one concern: frozen, and closed against keys nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class WindowSettings(Group):
    """How sensor rows become observations."""

    length: Rows = Field(
        default="auto",
        description="Rows in one observation, or a time such as '2 s' if the source says its rate; auto: as the source "
        "suggests; null: a sample is an observation as it is. Longer sees slower patterns, answers later, and every "
        "replay sample takes as many times the bytes.",
    )
    stride: Rows = Field(
        default="auto",
        description="Rows from one window's start to the next, or a time; auto: as the source suggests; null: no "
        "windows. "
        "Larger means fewer observations to learn from and less work.",
    )

    @model_validator(mode="after")
    def _both_or_neither(self) -> WindowSettings:
        if (self.length is None) != (self.stride is None):
            raise ValueError("length and stride must both be null or neither")
        return self


class ModelSettings(Group):
    """The network that learns. A state directory keeps the model it was begun with."""

    kind: Literal[
        "auto", "mlp", "cnn1d", "cnn2d", "nearest_mean", "slda", "slda_random", "autoencoder", "predictor"
    ] = Field(
        default="auto",
        description="The network; auto: by the shape of an observation, (D,) mlp, (T, C) cnn1d, (H, W) or (H, W, C) "
        "cnn2d. A CNN learns more from few samples; an mlp is the fastest step. nearest_mean and slda (streaming "
        "linear discriminant analysis) have class templates and no learning rate; slda_random those of random "
        "features, as many as model.width. autoencoder and predictor need no "
        "labels and tell how unlike the observations so far a new one is.",
    )
    width: Whole = Field(
        default=32,
        ge=1,
        le=4096,
        description="Units of the first hidden layer (channels in a CNN). Parameters, and so bytes and time of a step, "
        "grow about with its square.",
    )
    depth: Whole = Field(
        default=2,
        ge=1,
        le=8,
        description="Hidden layers of an mlp; other kinds have their own. More can tell more apart, and each step "
        "takes longer.",
    )
    module: ImportPath = Field(
        default=None,
        description="A PyTorch module of your own instead of a built-in network, as package.module:function; called "
        "with (shape, n_outputs) it returns a torch.nn.Module. Its steps cost about half as much again.",
    )
    backbone: FilePath = Field(
        default=None,
        description="An ONNX file whose output, flattened, is what the network learns from; it never changes itself. "
        "Replay keeps its features in 8 bits. Each sample costs one run of it.",
    )
    max_classes: Classes = Field(
        default="auto",
        description="Classes there is room for, whether they have come yet or not; auto: those the source names, 16 at "
        "least. Each costs one output row in the model, its anchor and its Fisher.",
    )


class LearningSettings(Group):
    """One online gradient step."""

    batch_size: Whole = Field(
        default=10,
        ge=1,
        le=4096,
        description="New labelled samples in a step. More: fewer, calmer steps, later learning, each step slower.",
    )
    learning_rate: Real = Field(
        default=0.1,
        gt=0,
        le=10,
        description="Step size of plain gradient descent, no unit. Higher learns faster and forgets faster; too high "
        "diverges.",
    )
    label_smoothing: Real = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Part of each target spread evenly over the classes seen, 0 to 1. More keeps the answers modest "
        "and generalises better to other boards; too much blurs classes that are alike. Costs nothing.",
    )
    max_wait_ms: Milliseconds = Field(
        default=100.0,
        gt=0,
        le=60_000,
        allow_inf_nan=False,
        description="Milliseconds the oldest new sample may wait for a full batch; then the step is taken with what is "
        "there. Longer: fuller batches, later learning.",
    )
    threads: Whole = Field(
        default=1,
        ge=1,
        le=256,
        description="CPU threads of the arithmetic. More can make wide models faster and takes the cores from others; "
        "other counts round differently, so repeat a run with the same one.",
    )
    projection: Literal["none", "a-gem"] = Field(
        default="none",
        description="a-gem: new samples move the weights only as far as the loss of the replayed ones does not rise, "
        "and those are not learnt themselves; none: both are learnt. a-gem forgets more, its step takes twice as long.",
    )
    protect: Real = Field(
        default=0.0,
        ge=0,
        description="How much slower important weights learn: their rate is divided by 1 + protect times their Fisher "
        "over its mean; 0: not at all. Higher forgets less and learns new things slower; a step takes longer.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="cpu",
        description="Where the arithmetic is done; auto: on an NVIDIA GPU that torch can use, else on the CPU. A GPU "
        "pays for wide models, and rounds differently from run to run.",
    )


class ReplaySettings(Group):
    """Old samples kept to be learnt again, in the sensor's own integers."""

    memory_bytes: Bytes | None = Field(
        default=512 * 1024,
        description="Bytes for old samples, their labels and logits, or a text such as '512 KiB'; null: what "
        "budget.memory_bytes leaves. More forgets less; a step does not get slower, a consolidation does.",
    )
    samples: Annotated[int, Field(strict=True, ge=0, le=10**9)] | None = Field(
        default=None,
        description="Most samples kept; null: as many as the bytes hold; 0: none, the pull alone protects. More "
        "forgets less.",
    )
    per_step: Whole = Field(
        default=20,
        ge=0,
        le=4096,
        description="Old samples mixed into each step; 0: none. More forgets less; a step takes time in proportion. "
        "The first thing to lower when a step is late.",
    )
    asymmetric: bool = Field(
        default=True,
        description="New samples are told apart among the classes of their own batch only, replayed ones among all "
        "(ER-ACE): what is new does not push out what only replay still shows. Costs nothing.",
    )
    policy: Literal["balanced", "reservoir"] = Field(
        default="balanced",
        description="balanced: an equal share for each class, so that rare ones stay; reservoir: a uniform sample of "
        "all that came. Equal cost.",
    )
    bits: Literal["auto", 2, 4, 8] | None = Field(
        default="auto",
        description="Bits a stored value, over each sample's own span; auto: 8, 4 and 2 are tried on the first "
        "samples, and the fewest that cost nothing are kept; null: the sensor's own integers. Fewer keep more samples "
        "in the same bytes, each one coarser.",
    )


class DistillationSettings(Group):
    """Going on to answer as before: as when a sample was stored, or as at the last consolidation."""

    logits: Real = Field(
        default=0.1,
        ge=0,
        le=100,
        description="Weight of matching the logits stored with each replayed sample (dark experience replay); 0: none "
        "are stored. More forgets less and corrects old mistakes slower; two bytes a class and stored sample.",
    )
    logits_from: Literal["consolidation", "arrival"] = Field(
        default="consolidation",
        description="consolidation: a sample's logits are those of the first consolidation after it came, when its "
        "class is known, and until then it has none; arrival: those of its arrival, as in the paper. Equal cost.",
    )
    replay_labels: Real = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Weight of the replayed samples' labels beside that of new ones; 0: they are learnt from their "
        "stored logits alone. More forgets less and learns new things slower. Costs nothing.",
    )
    teacher: Real = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Weight of answering new samples as the network of the last consolidation would (learning without "
        "forgetting); 0: no teacher. More forgets less, learns slower; four bytes a parameter, and a third more time.",
    )
    temperature: Real = Field(
        default=2.0,
        gt=0,
        le=100,
        description="How much the teacher's answers are softened. Higher teaches more of what it thinks of the other "
        "classes, and less of which it would choose. Costs nothing.",
    )


class ConsolidationSettings(Group):
    """Measuring which weights matter (Fisher), and holding on to them (online EWC)."""

    every_steps: Whole = Field(
        default=100,
        ge=0,
        description="Steps from one consolidation to the next; 0: only by `edge-cl consolidate`. Rarer costs less time "
        "and makes snapshots older.",
    )
    trigger: Literal["timer", "page_hinkley", "adwin"] = Field(
        default="timer",
        description="timer: every so many steps, no matter what; page_hinkley, adwin: as soon as this detector finds "
        "that the loss has risen, with every_steps as the fallback. A detector needs four bytes a parameter more.",
    )
    ewc_lambda: Real = Field(
        default=3.0,
        ge=0,
        description="Strength of the pull towards the anchor, no unit; 0: no pull, replay alone. Higher forgets less "
        "and learns new things slower.",
    )
    gamma: Real = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Part of the old Fisher kept at a merge, 0 to 1. Lower lets go of what is long past; "
        "higher holds on to it. Costs nothing.",
    )
    fisher_samples: Whole = Field(
        default=200,
        ge=1,
        description="Replay samples the Fisher is measured on. More is a steadier measure; a consolidation takes time "
        "in proportion.",
    )
    importance: Literal["fisher", "path"] = Field(
        default="fisher",
        description="What tells which weights matter: the Fisher over the replay memory, or path: what each weight did "
        "for the loss on its way (synaptic intelligence). path needs twelve bytes a parameter more and slower steps.",
    )
    fisher: Literal["exact", "sampled", "empirical"] = Field(
        default="exact",
        description="Labels the Fisher asks about. exact: every class by its probability; sampled: one drawn from the "
        "model; empirical: the one observed. exact is the steadiest, and takes a pass a class.",
    )
    rehearsal_passes: Whole = Field(
        default=10,
        ge=0,
        le=1000,
        description="Passes over the whole replay memory at a consolidation; 0: none. More forgets less; a "
        "consolidation takes time in proportion, and no sample is learnt meanwhile.",
    )
    rehearsal_steps: Whole = Field(
        default=300,
        ge=0,
        description="Most steps, of 32 old samples each, that those passes take together: a large memory gets fewer "
        "passes. More forgets less; a consolidation takes time in proportion, up to budget.consolidation_ms.",
    )


class ExamSettings(Group):
    """Samples never trained on, which tell how much was forgotten."""

    share: Real = Field(
        default=0.03,
        ge=0,
        le=0.5,
        description="Part of the labelled samples set aside for the exam, 0 to 0.5; 0: no exam. More is a surer figure "
        "and less to learn from.",
    )
    samples: Whole = Field(
        default=120,
        ge=0,
        description="Most samples the exam keeps, at one observation's bytes each. More is a surer figure and a longer "
        "consolidation.",
    )


class BudgetSettings(Group):
    """The limits that hold always: planned before the first allocation, measured while running."""

    memory_bytes: Bytes = Field(
        default=8 * 2**20,
        ge=1024,
        le=2**40,
        description="Bytes for all learner state, or a text such as '8 MiB'. More goes to replay if replay.samples is "
        "null; the process itself needs some 300 MiB more for torch.",
    )
    step_ms: Milliseconds = Field(
        default=50.0,
        gt=0,
        le=600_000,
        allow_inf_nan=False,
        description="99 of 100 learning steps take at most this many milliseconds. Higher leaves room for more replay "
        "in a step.",
    )
    predict_ms: Milliseconds = Field(
        default=20.0,
        gt=0,
        le=600_000,
        allow_inf_nan=False,
        description="99 of 100 answers take at most this many milliseconds. Higher leaves room for a wider model.",
    )
    snapshot_bytes: Bytes | None = Field(
        default=None,
        description="Bytes of one snapshot, or a text such as '1 MiB'; null: any. A larger one is never published.",
    )
    consolidation_ms: Milliseconds = Field(
        default=10_000.0,
        gt=0,
        le=600_000,
        allow_inf_nan=False,
        description="Milliseconds that a rehearsal may take, by what the last one took a step. Higher forgets less; "
        "samples wait that long.",
    )


class StorageSettings(Group):
    """What is kept on disk."""

    durability: Literal["sample", "checkpoint"] = Field(
        default="sample",
        description="sample: every learnt sample is in the journal before it counts as taken, and a power cut costs "
        "none of them; checkpoint: no journal, a power cut costs what was learnt since the last checkpoint. The "
        "journal wears the flash by little more than the samples' own bytes.",
    )
    commit_ms: Milliseconds = Field(
        default=100.0,
        ge=0,
        le=60_000,
        allow_inf_nan=False,
        description="Milliseconds a step may wait for others before the journal is brought to the disk with all of "
        "them. Longer wears the flash less; so much may have to be sent again after a power cut.",
    )
    queue_bytes: Bytes = Field(
        default=256 * 1024,
        ge=1024,
        le=2**40,
        description="Bytes of learnt samples that may wait for a slow disk, or a text such as '256 KiB'; at least two "
        "steps always may. When full, a live source's samples are answered but not learnt. Counts in the budget.",
    )
    recovery_s: Seconds = Field(
        default=1.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds of learning after which a checkpoint is due: about so long may a restart take to learn "
        "the journal again. Longer wears the flash less.",
    )
    checkpoint_every_s: Seconds = Field(
        default=300.0,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Most seconds between two checkpoints. Longer wears the flash less; with durability: checkpoint a "
        "power cut costs up to this much learning.",
    )
    journal_bytes: Bytes = Field(
        default=16 * 2**20,
        ge=1024,
        le=2**40,
        description="Bytes of the journal after which a checkpoint is due, or a text such as '16 MiB'; on disk it may "
        "take four times that. More makes checkpoints rarer where samples are large.",
    )


class SnapshotSettings(Group):
    """What is published for deployment after each consolidation."""

    keep: Whole = Field(
        default=3,
        ge=1,
        le=10_000,
        description="Good snapshots kept, the newest ones. Each costs the model's bytes on disk.",
    )
    trial_samples: Whole = Field(
        default=200,
        ge=0,
        le=1_000_000,
        description="Labelled samples that a new snapshot and the one before it both answer; it is rolled back if it "
        "does clearly worse, and good after so many; 0: no trial. More finds smaller losses; two answers a sample.",
    )
    head: Literal["learnt", "nearest_mean", "slda"] = Field(
        default="learnt",
        description="The snapshot's last layer: as learnt, or templates of the replayed samples' features. Templates "
        "favour no recent class; a snapshot takes one pass over the replay memory longer.",
    )
    signing_key: FilePath = Field(
        default=None,
        description="PEM file with an Ed25519 private key that signs every manifest; null: unsigned. Needs the extra "
        "edge-cl[signing].",
    )


class BridgeSettings(Group):
    """Between the source and the learner."""

    queue_bytes: Bytes = Field(
        default=2**20,
        ge=1024,
        le=2**40,
        description="Bytes of samples that may wait for the learner, or a text such as '1 MiB'. More rides out longer "
        "pauses; counts in the memory budget. When full, a live source loses its oldest sample, a recording waits.",
    )
    align_ms: Milliseconds | None = Field(
        default=None,
        gt=0,
        le=3_600_000,
        description="Milliseconds that samples of several streams may lie apart and yet be one sample, with their "
        "channels side by side; the first stream sets the times. null: each is a sample of its own. More finds a "
        "partner more often, and a less fitting one. What waits for one has a part of queue_bytes.",
    )
    label_wait_bytes: Annotated[Bytes, Field(ge=0, le=2**40)] = Field(
        default=0,
        description="Bytes of samples that may wait for a label that comes later (a LABEL frame, `edge-cl label`), or "
        "a text such as '256 KiB'; 0: none wait. More lets labels be later; each sample that waits is written to the "
        "journal. Counts in the memory budget.",
    )
    label_wait_s: Seconds = Field(
        default=3600.0,
        gt=0,
        le=31_536_000,
        allow_inf_nan=False,
        description="Seconds a sample waits for its label; then it goes, counted as label_never. Costs nothing.",
    )
    labels_per_s: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Most labels a second from one stream, or from a person, however they come; null: no limit. What "
        "is above is not learnt, counted as label_flood. Higher lets a faulty or hostile sender steer more.",
    )
    labels_per_class_hour: Annotated[int, Field(strict=True, ge=1, le=2**40)] | None = Field(
        default=None,
        description="Labels of one class that one stream, or a person, may give at once, and again in the course of "
        "each hour; null: no limit. What is above is not learnt, counted as label_quota. Higher lets one voice "
        "outweigh the others.",
    )


class Config(Group):
    """All settings of one daemon."""

    source: Sources = Field(
        default="simulated:motor",
        description="Where samples come from: simulated:motor, recording:PATH.npz, or serial:///dev/ttyUSB0?baud=115200;"
        " or a list of several, each a stream of its own, or, with bridge.align_ms, all of them one sample.",
    )
    labels: Names = Field(
        default=None,
        description="Names of the classes 0, 1, 2 …; null: the source's own names, else numbers. Costs nothing.",
    )
    window: WindowSettings = WindowSettings()
    model: ModelSettings = ModelSettings()
    learning: LearningSettings = LearningSettings()
    replay: ReplaySettings = ReplaySettings()
    distillation: DistillationSettings = DistillationSettings()
    consolidation: ConsolidationSettings = ConsolidationSettings()
    exam: ExamSettings = ExamSettings()
    budget: BudgetSettings = BudgetSettings()
    storage: StorageSettings = StorageSettings()
    snapshots: SnapshotSettings = SnapshotSettings()
    bridge: BridgeSettings = BridgeSettings()

    @model_validator(mode="after")
    def _labels_fit(self) -> Config:
        most = self.model.max_classes
        if self.labels is not None and most != "auto" and len(self.labels) > most:
            raise ValueError(f"labels: {len(self.labels)} names, but model.max_classes is {most}")
        return self

    @model_validator(mode="after")
    def _methods_fit(self) -> Config:
        """Refuses methods that leave each other nothing to do."""
        replayed = self.replay.per_step > 0
        if self.learning.projection != "none" and not replayed:
            raise ValueError("learning.projection: a-gem compares with replayed samples, but replay.per_step is 0")
        if self.distillation.replay_labels == 0 and self.distillation.logits == 0 and replayed:
            raise ValueError("distillation.replay_labels: 0 leaves replayed samples nothing, distillation.logits is 0")
        return self

    @model_validator(mode="after")
    def _unlabelled_fit(self) -> Config:
        """Refuses what only classes have, where it was asked for and the model learns none."""
        kind = self.model.kind
        if kind in ("autoencoder", "predictor"):
            if self.labels is not None:
                raise ValueError(f"labels: model.kind {kind} learns no classes that could have names")
            if self.distillation.teacher > 0:
                raise ValueError(f"distillation.teacher: a teacher softens classes, and model.kind {kind} learns none")
        return self
