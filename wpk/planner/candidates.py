"""What each node can be: variants × implementations, with measured times where there are any."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wpk.core.errors import InternalError, InvalidConfig
from wpk.core.result import Config, Measurement
from wpk.core.target import Target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.graph.graph import Graph, Node
from wpk.ops import work
from wpk.planner.layouts import Variant, same_bytes, slices, variants
from wpk.providers.protocol import Provider

#: Ops whose payload only ONNX Runtime understands.
OPAQUE = ("onnx", "region")

#: Ops the runtime does by offsets and copies.
MOVES = ("view", "concat", "split")

#: Most copies in place of one concat or split.
_MOST_COPIES = 64

#: What a core does in a second where nothing is measured: float32 operations for each vector lane, and bytes.
_FLOPS_A_LANE, _BYTES = 10e9, 10e9
_CALL = 1e-6

#: The same of a GPU: float32 lanes of a multiprocessor, the share of its peaks that a middling kernel reaches, a kernel's start.
_GPU_LANES, _GPU_SHARE, _GPU_CALL = 128, 0.3, 2e-6
#: How much longer a convolution may take whose operands tensor cores must gather.
_STRIDED = 2.0

#: Implementations this much slower than the fastest are as good; of those the provider that is listed first is taken, so that
#: noise does not decide: generated kernels, then libraries, or the order in which the user named them.
TIE = 0.03

#: Seconds from one native segment to the next through Python, the pool's threads asleep in between.
SEGMENT = 20e-6

Rival = tuple[str, float | str]


class ResultTable(Protocol):
    """Measurements by workload, as :mod:`wpk.tuning` keeps them."""

    def best(self, workload: Workload) -> Sequence[tuple[str, Config, Measurement]]:
        """(provider, config, measurement) of the best of each provider, failures included."""
        ...


@dataclass(frozen=True)
class Implementation:
    """One way to compute a workload. ``seconds`` is measured or, when not ``measured``, a guess.

    ``provider``: a provider's name, ``onnxruntime`` for opaque nodes, or ``move`` for offsets and copies.
    """

    workload: Workload
    provider: str
    config: Config
    seconds: float
    measured: bool
    rivals: tuple[Rival, ...] = ()


@dataclass(frozen=True)
class Alternative:
    """A variant of a node with its best implementation."""

    layouts: Variant
    implementation: Implementation


@dataclass(frozen=True)
class Catalogue:
    """Providers and results, asked for the best implementation of a workload.

    ``segment`` is what it costs, besides the session's own time, to leave the native executor and come back. ``known`` keeps
    the answers given.
    """

    providers: Sequence[Provider]
    results: ResultTable | None
    target: Target
    segment: float = SEGMENT
    known: dict[str, Implementation | None] = field(default_factory=dict, compare=False, repr=False)

    def best(self, workload: Workload) -> Implementation | None:
        """The fastest measured implementation, or the first provider's within ``TIE`` of it; where none is measured, the first
        default that builds; None when none does.
        """
        if workload.key not in self.known:
            self.known[workload.key] = self._find(workload)
        return self.known[workload.key]

    def _find(self, workload: Workload) -> Implementation | None:
        measured, rivals = self._measured(workload)
        rivals += self.rejections(workload, {name for name, _ in rivals})
        if measured is not None:
            name, config, seconds = measured
            others = tuple(r for r in (*rivals, *self._untried({n for n, _ in rivals})) if r[0] != name)
            return Implementation(workload, name, config, seconds, True, others)
        out = {name for name, _ in rivals}
        for provider in self.providers:
            default = None if provider.name in out else self._default(provider, workload)
            if default is not None:
                guess = estimate(workload, self.target) + self._charge(provider.name)
                return Implementation(workload, provider.name, default, guess, False, rivals)
        return None

    def _default(self, provider: Provider, workload: Workload) -> Config | None:
        """The provider's first guess, if it builds. An unsound kernel is a bug, but not one to stop a plan that has others.

        On a GPU a family's first guesses stand in the order of their estimated cost, and differ far more than on a CPU.
        """
        try:
            space = provider.space(workload, self.target)
            guesses = space.first[:1] if self.target.gpu is not None else ()
            config = dict(guesses[0]) if guesses else space.default()
            provider.build(workload, config, self.target)
        except (InvalidConfig, InternalError, ValueError):
            return None
        return config

    def provider(self, name: str) -> Provider:
        """The provider called ``name``. Raises KeyError."""
        return {p.name: p for p in self.providers}[name]

    def _measured(self, workload: Workload) -> tuple[tuple[str, Config, float] | None, tuple[Rival, ...]]:
        names = {p.name for p in self.providers}
        rows = [r for r in (self.results.best(workload) if self.results else ()) if r[0] in names]
        right = [(m.time + self._charge(name), name, config) for name, config, m in rows if m.ok]
        rivals = tuple((name, seconds) for seconds, name, _ in sorted(right, key=lambda r: r[:2]))
        wrong = tuple((name, m.failure or "not measured") for name, _, m in rows if not m.ok)
        if not right:
            return None, (*rivals, *wrong)
        # A session inside a plan breaks it in two and was timed with its weights in cache: for what nothing else computes.
        native = [r for r in right if r[1] != "onnxruntime"] or right
        best = min(seconds for seconds, _, _ in native)
        order = [p.name for p in self.providers]
        tied = [r for r in native if r[0] <= best * (1 + TIE)]
        seconds, name, config = min(tied, key=lambda r: order.index(r[1]))
        return (name, config, seconds), (*rivals, *wrong)

    def _charge(self, provider: str) -> float:
        return self.segment if provider == "onnxruntime" else 0.0

    def _untried(self, known: Container[str]) -> tuple[Rival, ...]:
        """The providers that could compute a workload, but that the tuning had no time for."""
        return tuple((p.name, "not measured: others promised more") for p in self.providers if p.name not in known)

    def rejections(self, workload: Workload, known: Container[str] = ()) -> tuple[Rival, ...]:
        """The providers, but the ``known``, that cannot compute a workload, and why."""
        others = [p for p in self.providers if p.name not in known]
        supports = [(p.name, p.supports(workload, self.target)) for p in others]
        return tuple((name, s.reason) for name, s in supports if not s)


def alternatives(graph: Graph, node: Node, catalogue: Catalogue) -> tuple[Alternative, ...]:
    """What ``node`` can be: measured variants, or all where none is; a session of ONNX Runtime when there is nothing else."""
    if node.op in OPAQUE:
        return (session(graph, node, catalogue),)
    found = [
        Alternative(variant, implementation)
        for variant in variants(graph, node, catalogue.target)
        for implementation in (_implementation(graph, node, variant, catalogue),)
        if implementation is not None
    ]
    # Facts beat guesses: a variant that nobody measured is for nodes of which nothing was.
    measured = tuple(a for a in found if a.implementation.measured)
    return measured or tuple(found) or (session(graph, node, catalogue),)


def session(graph: Graph, node: Node, catalogue: Catalogue) -> Alternative:
    """``node`` in ONNX Runtime, which can compute all; its rivals say why they cannot."""
    workload = graph.workload(node)
    reasons = () if node.op in OPAQUE else catalogue.rejections(workload)
    seconds = estimate(workload, catalogue.target) + catalogue.segment
    made = Implementation(workload, "onnxruntime", {}, seconds, False, reasons)
    return Alternative(variants(graph, node, catalogue.target)[0], made)


def conversion(t: TensorType, layout: str, catalogue: Catalogue) -> Implementation | None:
    """The implementation that brings a tensor of type ``t`` into ``layout``; None when there is none."""
    workload = Workload("convert", (t,), (t.with_layout(layout),))
    if same_bytes(t, layout):
        return Implementation(workload, "move", {}, 0.0, True)
    return catalogue.best(workload)


def _implementation(
    graph: Graph, node: Node, variant: Variant, catalogue: Catalogue
) -> Implementation | None:
    workload = graph.workload(node, variant)
    moved = move(node, workload, catalogue.target) if node.op in MOVES else None
    computed = catalogue.best(workload) if node.op != "view" else None
    found = [i for i in (moved, computed) if i is not None]
    return min(found, key=lambda i: i.seconds, default=None)


def move(node: Node, w: Workload, target: Target) -> Implementation | None:
    """``node`` as offsets and copies, when it is that; costs nothing where the parts can lie in the whole from the start."""
    if node.op == "view":
        return Implementation(w, "move", {}, 0.0, True)
    parts, whole = (w.inputs, w.outputs[0]) if node.op == "concat" else (w.outputs, w.inputs[0])
    cut = slices(node, list(parts), whole)
    if cut is None or cut[0] * len(parts) > _MOST_COPIES:
        return None
    seconds = 0.0 if cut[0] == 1 else estimate(w, target) + 1e-6 * cut[0] * len(parts)
    return Implementation(w, "move", {}, seconds, True)


def _strided(workload: Workload) -> bool:
    """True for a convolution on tensor cores whose sums do not run along memory: they take whole rows of channels."""
    lower = workload.inputs[0].dtype != "float32" or dict(workload.attrs).get("precision") == "tf32"
    return workload.op == "conv" and lower and workload.inputs[0].layout == "ROW"


def estimate(workload: Workload, target: Target) -> float:
    """Seconds of a middling implementation: only for choosing where nothing is measured."""
    cost, cores = work(workload), max(target.threads, 1)
    if target.gpu is not None:
        flops = _GPU_SHARE * 2 * _GPU_LANES * target.gpu.sms * target.gpu.clock_hz
        seconds = max(cost.flops / flops, cost.nbytes / (_GPU_SHARE * target.gpu.memory_bandwidth))
        return (_STRIDED if _strided(workload) else 1.0) * seconds + _GPU_CALL
    return cost.flops / (_FLOPS_A_LANE * target.lanes * cores) + cost.nbytes / (_BYTES * cores) + _CALL
