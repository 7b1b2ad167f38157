"""A user's own PyTorch module behind the same methods as `Network` (network.py): the autograd road.

Knows the module, its modes and the arena its parameters lie in. Must not know losses, replay or anchors; what single
modules of PyTorch know of squared gradients is in per_sample.py.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad, vmap

from edge_cl.learning.arena import Arena, where
from edge_cl.learning.layers import Shape
from edge_cl.learning.per_sample import Use, add_squares, chunks, objection
from edge_cl.learning.products import products
from edge_cl.learning.standardise import Standardise

AGREES = 1e-4  # of a parameter's largest squared gradient; float32 leaves 1e-6
AGREES_ON_A_GPU = 1e-2  # where convolutions may be rounded to TF32
NOTHING = 1e-10  # of the largest of all: what rounding leaves of a gradient that is zero, squared
LARGE = 50_000  # parameters from which a pass a sample is no slower than vmap, whose gradients no longer fit a cache

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
KNOWN = (*DROPOUTS, *BATCH_NORMS, *INSTANCE_NORMS, nn.RReLU, nn.RNNBase, nn.MultiheadAttention)

Road = Callable[["Pass", Tensor, list[Tensor]], None]


@dataclass(frozen=True)
class Call:
    """One call of a module that owns parameters: its input (B, ...) and the place in the graph that made its output."""

    module: nn.Module
    x: Tensor
    output: GradientEdge


@dataclass(slots=True)
class Pass:
    """A forward pass: standardised samples, logits with their graph, and the calls on the way if squares are wanted."""

    x: Tensor
    logits: Tensor
    calls: list[Call] = field(default_factory=list)


class _NoRuleError(Exception):
    """One pass cannot square this network's gradients sample by sample; says what is in the way."""


class TorchNetwork:
    """Standardisation and a PyTorch module, whose learnable parameters become views into one arena.

    The module takes standardised samples, channels first, (B, C, *positions) or (B, D), and gives logits (B, C). It
    stays the user's: its parameters are the arena's memory, so its state_dict sees what was learnt. Parameters with
    requires_grad are learnt, each once, however many modules share it; the others and the buffers are `extras`.
    While learning, the module runs in the mode it was given in. `layout` is a raw sample's, channels last.

    Raises ValueError if nothing in the module can be learnt, if a learnable parameter or the logits are not float32, if
    a forward pass of two samples fails or does not give logits (2, C), or if a BatchNorm keeps no running statistics.
    """

    recordable = False  # as a CUDA graph: nobody knows what a module asks the host for

    def __init__(self, module: nn.Module, layout: Shape, shape: Shape | None = None) -> None:
        self.module, self.layout, self.shape = module, layout, layout if shape is None else shape
        self._pass: Pass | None = None
        self._evaluating = False
        self._channels_last = len(layout) == 3  # convolutions on images are then faster, by up to a quarter
        self._modules = list(module.modules())
        self._has_own_train = any(_overrides_train(type(m)) for m in self._modules)  # does more than set its flag
        _refuse_batch_statistics(module)
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.standardise = Standardise(layout, device)
        self.n_outputs = self._probe(device)  # first, for it gives lazy modules their parameters
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        for name, p in named.items():
            if p.dtype != torch.float32 or p.device != device:
                raise ValueError(f"module: {name} must be float32 on {device} (got {p.dtype} on {p.device})")
        self._parameters = list(named.values())
        self.arena = Arena({name: tuple(p.shape) for name, p in named.items()}, device)
        for p, view in zip(self._parameters, self.arena.views.values(), strict=True):
            view.copy_(p.detach())
        self._bind()
        self._sensitive = [m for m in self._modules if _may_depend_on_mode(m)]
        self._own = self._owned(named)
        self._rules = [(m, name, objection(m)) for name, m in module.named_modules() if m in self._own]
        self._objection = next((_describe(m, name, why) for m, name, why in self._rules if why), None)
        self._squares: Road | None = None  # chosen at the first use

    @property
    def kind(self) -> str:
        """What it is called: the module's class."""
        return type(self.module).__name__

    @property
    def n_parameters(self) -> int:
        """Numbers that are learnt."""
        return self.arena.flat.numel()

    @property
    def honest(self) -> bool:
        """Whether a learning pass answers as a prediction does: nothing in training mode that behaves otherwise there.

        Dropout, batch statistics, RReLU, a recurrent or attention module with dropout; of modules that are not
        PyTorch's own, any whose code names `training` or a dropout function.
        """
        return not any(module.training and _depends_on_mode(module) for module in self._sensitive)

    @property
    def extras(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the arena: frozen parameters and persistent buffers, no copies."""
        kept = {name: value for name, value in self.module.state_dict().items() if isinstance(value, Tensor)}
        learnt = {id(p) for p in self._parameters}
        aliases = {name for name, p in self.module.named_parameters(remove_duplicate=False) if id(p) in learnt}
        return {name: value for name, value in kept.items() if name not in aliases}

    @property
    def fisher_road(self) -> str:
        """How `add_squares` gets its answer: "one pass", or "a pass a sample" with the module in the way and why."""
        return "one pass" if self._objection is None else f"a pass a sample: {self._objection}"

    def to(self, device: torch.device | str) -> TorchNetwork:
        """Move module, parameters and statistics to a device; the parameters are views into the arena there."""
        device = where(device)
        if self.arena.flat.device != device:
            self._pass = None
            self.arena = self.arena.to(device)
            self.standardise = self.standardise.to(device)
            self.module.to(device)
            named = dict(self.module.named_parameters())
            self._parameters = [named[name] for name in self.arena.shapes]  # PyTorch may have made new ones
            self._bind()
        return self

    def widened(self, flat: Tensor, n_outputs: int, rest: Tensor) -> Tensor:
        """Raises ValueError: where a module's classes are, nobody but its author knows."""
        raise ValueError(f"module: has {self.n_outputs} outputs, and its head cannot grow from {n_outputs} by itself")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of raw samples x (B, *shape).

        The graph is kept for `descend` until the next pass, whatever the caller's gradient mode is, but not under
        `torch.inference_mode()`: who only predicts says so with that, and holds no activations.
        """
        self._pass = None  # before a new graph grows, let go of the old one
        h = self._laid_out(self.standardise.forward(x))
        if torch.is_inference_mode_enabled():
            answer: Tensor = self.module(h)
            return answer
        if self._evaluating:
            self._pass = self._recorded(h)
        else:
            with torch.enable_grad():
                self._pass = Pass(h, self.module(h))
        return self._pass.logits.detach()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it `forward` answers as when deployed, and its passes are kept apart from those outside.

        Every submodule's own mode is restored afterwards, whatever happens; so is the pass that `descend` refers to.
        """
        modes = [(module, module.training) for module in self._modules]
        outside = self._pass, self._evaluating
        try:
            self._pass, self._evaluating = None, True
            if self._has_own_train:
                self.module.eval()
            else:
                _set_modes((module, False) for module, _ in modes)
            yield
        finally:
            self._pass, self._evaluating = outside
            if self._has_own_train:
                self.module.train(modes[0][1])
            _set_modes(modes)

    def descend(self, delta: Tensor, learning_rate: float) -> None:
        """One gradient step from delta = ∂loss/∂logits (B, C) of the last forward pass: θ ← θ - η ∂loss/∂θ.

        Raises RuntimeError if there was no forward pass since the last step.
        """
        # No loss, no .grad fields and no optimiser. Where a weight was used in one product, its gradient is not even
        # made: the update is the product with what comes back to its output. The others' are born, added and gone.
        logits, self._pass = self._last().logits, None
        linear = products(logits, self._places)
        taken = {index for product in linear for index in (product.weight, product.bias)}
        rest = [index for index in range(len(self._parameters)) if index not in taken]
        wanted: list[Any] = [*(product.output for product in linear), *(self._parameters[index] for index in rest)]
        found = torch.autograd.grad(logits, wanted, delta, allow_unused=True)
        for product, at_output in zip(linear, found, strict=False):
            if at_output is not None:
                product.add_gradient(at_output, self._views, -learning_rate)
        _add([self._views[index] for index in rest], found[len(linear) :], -learning_rate)

    def add_gradient(self, delta: Tensor, into: Tensor) -> None:
        """into (P,) += ∂loss/∂θ, for what needs the whole gradient before anything moves."""
        logits = self._last().logits
        gradients = torch.autograd.grad(logits, self._parameters, delta, retain_graph=True, allow_unused=True)
        _add(list(self.arena.lay_over(into).values()), gradients, 1.0)

    def add_squares(self, delta: Tensor, into: Tensor) -> None:
        """into (P,) += Σₙ (∂lossₙ/∂θ)² from delta (B, C) = ∂lossₙ/∂logitsₙ, each sample squared by itself.

        One backward pass for all samples if every module that owns parameters has a rule in per_sample.py and the
        answer on two samples agrees with autograd's, one at a time; otherwise a pass a sample, with a UserWarning once.
        `fisher_road` says which. Raises RuntimeError if the last forward pass was not made within `evaluating()`.
        """
        if not self._evaluating:
            raise RuntimeError("add_squares: call forward and add_squares within evaluating()")
        done, views = self._last(), list(self.arena.lay_over(into).values())
        squares = self._squares or self._choose(done.x)
        try:
            squares(done, delta, views)
        except _NoRuleError as error:  # only now: a module that takes samples otherwise than at the first time
            self._fall_back(str(error), self._one_by_one)
            self._one_by_one(done, delta, views)

    def _choose(self, x: Tensor) -> Road:
        """The fastest road that agrees with the slowest one on the first two of the samples x; types prove nothing."""
        if len(x) < 2:
            return self._one_by_one  # one sample shows nothing of what happens between samples
        two = self._recorded(x[:2])
        delta = torch.randn(two.logits.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
        expected = self._zeros()
        self._one_by_one(two, delta, expected)
        largest = max(float(one.max()) for one in expected if one.numel())
        if not 0 < largest < torch.inf:
            return self._one_by_one  # nothing to compare with; ask again next time
        if self._objection is None:
            try:
                value = self._zeros()
                self._one_pass(two, delta, value)
                self._objection = self._disagreement(value, expected, largest)
            except _NoRuleError as error:
                self._objection = str(error)
        if self._objection is None:
            self._squares = self._one_pass
        else:
            small = self.n_parameters < LARGE and self._vmap_agrees(two, delta, expected, largest)
            self._fall_back(self._objection, self._vectorised if small else self._one_by_one)
        return self._squares or self._one_by_one

    def _one_pass(self, done: Pass, delta: Tensor, views: list[Tensor]) -> None:
        """All samples at once: the deltas at every output, and from there each module's own rule."""
        outputs = [call.output for call in done.calls]
        deltas: tuple[Tensor | None, ...] = ()
        if outputs:
            deltas = torch.autograd.grad(done.logits, outputs, delta, retain_graph=True, allow_unused=True)
        uses: dict[int, list[Use]] = {}
        for call, at_output in zip(done.calls, deltas, strict=True):
            if at_output is None:
                continue
            if not len(call.x) == len(at_output) == len(delta):
                raise _NoRuleError(
                    self._about(call.module, f"{len(delta)} samples are {len(call.x)} rows of its input")
                )
            for key, index in self._own[call.module]:
                uses.setdefault(index, []).append(Use(call.module, key, call.x, at_output))
        with torch.no_grad():
            for index, of_one in uses.items():
                add_squares(of_one, views[index])

    def _one_by_one(self, done: Pass, delta: Tensor, views: list[Tensor]) -> None:
        """One forward and backward pass a sample: right for every module, and the measure of the other roads."""
        for n in range(len(delta)):
            with torch.enable_grad():
                logits = self.module(done.x[n : n + 1])
            gradients = torch.autograd.grad(logits, self._parameters, delta[n : n + 1], allow_unused=True)
            used, present = _used(views, gradients)
            torch._foreach_addcmul_(used, present, present)

    def _vectorised(self, done: Pass, delta: Tensor, views: list[Tensor]) -> None:
        """The same by torch.func, some samples at a time."""
        values = dict(zip(self.arena.shapes, (p.detach() for p in self._parameters), strict=True))

        def score(values: dict[str, Tensor], x: Tensor, delta: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.module, values, (x.unsqueeze(0),))
            return (logits * delta).sum()

        gradients = vmap(grad(score), in_dims=(None, 0, 0))
        for part in chunks(len(delta), 2 * self.n_parameters + done.x[0].numel()):
            for view, of_samples in zip(views, gradients(values, done.x[part], delta[part]).values(), strict=True):
                view.add_(of_samples.square().sum(0))

    def _vmap_agrees(self, two: Pass, delta: Tensor, expected: list[Tensor], largest: float) -> bool:
        value = self._zeros()
        try:
            self._vectorised(two, delta, value)
        except Exception:  # whatever torch.func does not take, a pass a sample does
            return False
        return self._disagreement(value, expected, largest) is None

    def _disagreement(self, value: list[Tensor], expected: list[Tensor], largest: float) -> str | None:
        """What is said of the first parameter whose squares are not those expected; None if all are."""
        agrees = AGREES if self.arena.flat.device.type == "cpu" else AGREES_ON_A_GPU
        for index, (one, other) in enumerate(zip(value, expected, strict=True)):
            if one.numel() and not bool(((one - other).abs() <= agrees * float(other.max()) + NOTHING * largest).all()):
                key = list(self.arena.shapes)[index]
                owner = next(m for m, own in self._own.items() if any(i == index for _, i in own))
                return self._about(owner, f"the squares of {key} differ from autograd's, taken one sample at a time")
        return None

    def _fall_back(self, why: str, road: Road) -> None:
        self._objection, self._squares = why, road
        warnings.warn(f"Fisher information by {self.fisher_road}", UserWarning, stacklevel=4)

    def _recorded(self, x: Tensor) -> Pass:
        """A forward pass that notes every call of a module that owns parameters."""
        calls: list[Call] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if not output.requires_grad:
                return None
            # Written over in place, a view would lose its place in the graph; anything else keeps it.
            changed = output.clone() if output._is_view() else None
            x = args[0] if args else kwargs["input"]
            calls.append(Call(module, x.detach(), get_gradient_edge(output if changed is None else changed)))
            return changed

        noted = [] if self._objection else [m for m, _, why in self._rules if why is None]
        handles = [module.register_forward_hook(note, with_kwargs=True) for module in noted]
        try:
            with torch.enable_grad():
                return Pass(x, self.module(x), calls)
        finally:
            for handle in handles:
                handle.remove()

    def _probe(self, device: torch.device) -> int:
        """Classes, from a forward pass of two samples of zeros that leaves the module as it was."""
        if not any(p.requires_grad for p in self.module.parameters()):
            raise ValueError(f"module: must have a parameter with requires_grad (got {type(self.module).__name__})")
        shape = (2, *self.standardise.output_shape)
        zeros = self.standardise.forward(torch.zeros((2, *self.layout), device=device))  # laid out as samples will be
        with self.evaluating(), torch.enable_grad(), _buffers_kept(self.module):
            try:
                logits = self.module(self._laid_out(zeros))
            except RuntimeError:
                self._channels_last = False
            try:
                logits = logits if self._channels_last else self.module(self._laid_out(zeros))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise ValueError(f"module: must take standardised samples of shape {shape} ({error})") from error
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
            raise ValueError(f"module: must give logits (2, C) for samples of shape {shape} (got {got})")
        if logits.dtype != torch.float32:
            raise ValueError(f"module: must give float32 logits (got {logits.dtype})")
        if not logits.requires_grad:
            raise ValueError("module: its logits must depend on a parameter with requires_grad (got constants)")
        return logits.shape[1]

    def _laid_out(self, h: Tensor) -> Tensor:
        """Samples (B, C, *positions) with the strides the module takes.

        A convolution hands on the layout of its input, and what is channels last cannot be flattened by `view`.
        """
        return h if len(self.layout) == 1 or self._channels_last else h.flatten().view(h.shape)

    def _bind(self) -> None:
        self._views = list(self.arena.views.values())
        for p, view in zip(self._parameters, self._views, strict=True):
            p.data = view
        self._places: dict[Tensor, int] = {p: index for index, p in enumerate(self._parameters)}

    def _owned(self, named: dict[str, nn.Parameter]) -> dict[nn.Module, list[tuple[str, int]]]:
        """Modules that own learnable parameters: each one's name there, and its place in the arena's order."""
        index = {id(p): place for place, p in enumerate(named.values())}
        owned = {
            module: [(key, index[id(p)]) for key, p in module.named_parameters(recurse=False) if id(p) in index]
            for module in self._modules
        }
        return {module: own for module, own in owned.items() if own}

    def _last(self) -> Pass:
        if self._pass is None:
            raise RuntimeError("no forward pass to go back through: call forward first, outside torch.inference_mode()")
        return self._pass

    def _about(self, module: nn.Module, why: str) -> str:
        return _describe(module, next(name for m, name, _ in self._rules if m is module), why)

    def _zeros(self) -> list[Tensor]:
        return list(self.arena.lay_over(torch.zeros_like(self.arena.flat)).values())


def _add(views: list[Tensor], gradients: Sequence[Tensor | None], alpha: float) -> None:
    """views += alpha · gradients, all in one call."""
    used, present = _used(views, gradients)
    if used:
        torch._foreach_add_(used, present, alpha=alpha)


def _used(views: list[Tensor], gradients: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """Views and gradients of the parameters that took part in the pass."""
    present = [g for g in gradients if g is not None]
    if len(present) < len(gradients):
        views = [view for view, g in zip(views, gradients, strict=True) if g is not None]
    return views, present


def _overrides_train(kind: type[nn.Module]) -> bool:
    return kind.train is not nn.Module.train or kind.eval is not nn.Module.eval


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for module, mode in modes:
        if module.training != mode:  # a module's attributes are slow to set
            module.training = mode


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Afterwards every buffer is the tensor it was, with the values it had; a lazy one has none yet."""
    places = [(m, key, b) for m in module.modules() for key, b in m.named_buffers(recurse=False)]
    kept = [(m, key, b, b.clone()) for m, key, b in places if not nn.parameter.is_lazy(b)]
    try:
        yield
    finally:
        with torch.no_grad():
            for m, key, b, values in kept:
                b.copy_(values)
                setattr(m, key, b)


def _refuse_batch_statistics(module: nn.Module) -> None:
    for name, m in module.named_modules():
        if isinstance(m, BATCH_NORMS) and not m.track_running_stats:
            why = "must keep running statistics (got track_running_stats=False)"
            raise ValueError(
                f"module: {_describe(m, name, why)}: an answer may not depend on the batch's other samples"
            )


def _may_depend_on_mode(module: nn.Module) -> bool:
    own = type(module).__module__.startswith("torch.nn.modules")
    return isinstance(module, KNOWN) or (not own and _speaks_of_mode(module))


def _depends_on_mode(module: nn.Module) -> bool:
    """Whether one that may do so behaves otherwise in training mode with the settings it has now."""
    if isinstance(module, DROPOUTS):
        return module.p > 0
    if isinstance(module, INSTANCE_NORMS):
        return module.track_running_stats
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.dropout > 0
    return True


def _speaks_of_mode(module: nn.Module) -> bool:
    """Whether the code of a module's class, apart from PyTorch's own, names the mode or something random."""
    ours = [kind for kind in type(module).__mro__ if not kind.__module__.startswith(("torch.nn.modules", "builtins"))]
    found = [f for kind in ours for name, f in vars(kind).items() if not _is_apart_from_a_pass(name)]
    codes = [_code(f) for f in found if callable(f) or isinstance(f, (property, staticmethod, classmethod))]
    forward = _code(module.forward)
    if forward is None:
        return True  # compiled or wrapped: nothing can be read from it
    names = {name for code in (forward, *codes) if code for name in _names_in(code)}
    own = {name for name in names if isinstance(getattr(module, name, None), nn.Module)}  # these speak for themselves
    return any(name in ("training", "rrelu") or "dropout" in name for name in names - own)


def _is_apart_from_a_pass(name: str) -> bool:
    return name.startswith("__") or name in ("train", "eval", "extra_repr")


def _code(function: Any) -> CodeType | None:
    function = function.fget if isinstance(function, property) else getattr(function, "__func__", function)
    return getattr(inspect.unwrap(function), "__code__", None)


def _names_in(code: CodeType) -> set[str]:
    """Names that a function refers to, those of arguments that it passes included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names_in(constant)
        elif isinstance(constant, tuple):
            names |= {one for one in constant if isinstance(one, str)}
    return names


def _describe(module: nn.Module, name: str, why: str) -> str:
    return f"{name or 'the module itself'} ({type(module).__name__}): {why}"
