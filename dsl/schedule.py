"""Schedules: *how* an algorithm runs. A schedule is a list of frozen steps; each is a pure function on :class:`Scheduled`.

A :class:`Scheduled` is an algorithm and, for each of its stages, a loop nest (order, splits, kinds) and a placement.
Every step checks its legality first and raises :class:`ScheduleError`; :func:`wpk.dsl.lower.lower` makes the loops.
The loops of a reduced stage cover its reduction axes too; its initialization follows the same loops without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from wpk.core.errors import InvalidConfig
from wpk.dsl.affine import loads, substitute
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import BLOCK_KINDS, Binary, Cast, Expr, Load, LoopKind, Scope, Select, Unary

Tail = Literal["cut", "shift", "guard"]


class ScheduleError(InvalidConfig):
    """A step is not legal here; the message names the stage and the loop."""


@dataclass(frozen=True)
class SplitOf:
    """Loop ``parent`` became ``outer`` × ``inner`` with ``inner`` of ``factor``."""

    parent: str
    outer: str
    inner: str
    factor: int
    tail: Tail


@dataclass(frozen=True)
class FuseOf:
    """Loops ``outer`` and ``inner`` became ``fused``."""

    outer: str
    inner: str
    fused: str


@dataclass(frozen=True)
class Nest:
    """The loops of one stage, outermost first, how they came about, and what kind each is (serial when not named)."""

    order: tuple[str, ...]
    relations: tuple[SplitOf | FuseOf, ...] = ()
    kinds: tuple[tuple[str, LoopKind], ...] = ()
    grain: int = 1

    def kind(self, loop: str) -> LoopKind:
        """The kind of ``loop``."""
        return dict(self.kinds).get(loop, "serial")


@dataclass(frozen=True)
class Placement:
    """Where a stage is computed and stored. ``at`` is None at root, else (consumer stage, its loop).

    ``storage`` is the order of its axes in memory; ``lanes`` = (axis, width) splits that axis so that its last
    ``width`` elements are innermost (a vector register). ``whole`` axes are kept in full, whatever part is read.
    ``pad`` = (axis, elements) leaves a gap behind each run of that axis; axes of a ``join`` are one dimension;
    ``swizzle`` as in :class:`wpk.dsl.ir.Buffer`.
    """

    at: tuple[str, str] | None = None
    scope: Scope = "shared"
    storage: tuple[str, ...] | None = None
    lanes: tuple[str, int] | None = None
    whole: tuple[str, ...] = ()
    pad: tuple[str, int] | None = None
    swizzle: int = 0
    join: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class PrefetchOf:
    """At each iteration of ``loop``, ask for what ``tensor`` will give ``distance`` iterations later, moved by ``shift``."""

    loop: str
    tensor: str
    distance: int
    locality: int
    shift: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Scheduled:
    """An algorithm with a nest and a placement for each stage."""

    algorithm: Algorithm
    nests: dict[str, Nest] = field(default_factory=dict)
    placements: dict[str, Placement] = field(default_factory=dict)
    prefetches: dict[str, tuple[PrefetchOf, ...]] = field(default_factory=dict)
    instructions: dict[str, tuple[str, str]] = field(default_factory=dict)
    segments: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    pipelines: dict[str, tuple[str, int, bool]] = field(default_factory=dict)

    def nest(self, stage: str) -> Nest:
        """The nest of a stage; by default its axes in order, then its reduction axes."""
        if stage in self.nests:
            return self.nests[stage]
        found = _stage(self, stage)
        reduced = found.reduce.axes if found.reduce else ()
        return Nest(tuple(a.name for a in (*found.axes, *reduced)))

    def placement(self, stage: str) -> Placement:
        """The placement of a stage; root and shared by default."""
        return self.placements.get(stage, Placement())


def _stage(s: Scheduled, name: str) -> Stage:
    for stage in s.algorithm.stages:
        if stage.name == name:
            return stage
    raise ScheduleError(f"{s.algorithm.name} has no stage {name!r}")


def _require_free(s: Scheduled, stage: str, loops: Iterable[str], where: str) -> None:
    """Refuse to take a loop away that another stage, a prefetch or an instruction is attached to."""
    placed = {p.at[1]: n for n, p in s.placements.items() if p.at and p.at[0] == stage}
    hinted = {p.loop: f"prefetch of {p.tensor}" for p in s.prefetches.get(stage, ())}
    named = {s.instructions[stage][0]: s.instructions[stage][1]} if stage in s.instructions else {}
    cut = {loop: "segment" for owner, loop in s.segments if owner == stage}
    piped = {s.pipelines[stage][0]: "pipeline"} if stage in s.pipelines else {}
    for loop in loops:
        user = {**placed, **hinted, **named, **cut, **piped}.get(loop)
        _require(user is None, f"{where}: {user} is attached to {loop}")


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ScheduleError(message)


def _with_nest(s: Scheduled, stage: str, nest: Nest) -> Scheduled:
    return replace(s, nests={**s.nests, stage: nest})


def _reduction_loops(s: Scheduled, stage: str) -> set[str]:
    """Loops of a stage that carry (part of) a reduction axis."""
    found = _stage(s, stage)
    names = {a.name for a in found.reduce.axes} if found.reduce else set()
    for rel in s.nest(stage).relations:
        if isinstance(rel, SplitOf) and rel.parent in names:
            names |= {rel.outer, rel.inner}
        elif isinstance(rel, FuseOf) and names & {rel.outer, rel.inner}:
            names.add(rel.fused)
    return names


@dataclass(frozen=True)
class Split:
    """Split a loop by a constant factor.

        for i in 0..100:           for i_o in 0..7:  for i_i in 0..16: S(16*i_o + i_i)      (cut: main part)
            S(i)             →     for i_i in 0..4: S(96 + i_i)                             (cut: remainder)

    ``tail`` says what happens when the factor does not divide: ``cut`` adds a remainder, ``shift`` moves the last tile
    back so that it overlaps (pure stages only: elements are computed twice), ``guard`` tests every element.
    Halide ``split`` (TailStrategy), TVM ``split``, Exo ``divide_loop``.
    """

    stage: str
    loop: str
    factor: int
    outer: str
    inner: str
    tail: Tail = "cut"

    def apply(self, s: Scheduled) -> Scheduled:
        nest = s.nest(self.stage)
        where = f"split {self.stage}.{self.loop}"
        _require(self.loop in nest.order, f"{where}: no such loop, found {nest.order}")
        _require(self.factor >= 1, f"{where}: factor {self.factor} is not positive")
        taken = (set(nest.order) | {a.name for a in _stage(s, self.stage).axes}) - {self.loop}
        _require(not taken & {self.outer, self.inner} and self.outer != self.inner, f"{where}: name taken")
        _require(nest.kind(self.loop) == "serial", f"{where}: split before {nest.kind(self.loop)}")
        _require_free(s, self.stage, (self.loop,), where)
        counted = any(
            isinstance(r, SplitOf) and r.tail == "cut" and r.outer == self.loop for r in nest.relations
        )
        _require(not counted, f"{where}: it counts the tiles of a split with a cut tail")
        reduced = _stage(s, self.stage).reduce is not None
        _require(not (reduced and self.tail == "shift"), f"{where}: a shifted tail would add elements twice")
        at = nest.order.index(self.loop)
        order = (*nest.order[:at], self.outer, self.inner, *nest.order[at + 1 :])
        rel = SplitOf(self.loop, self.outer, self.inner, self.factor, self.tail)
        return _with_nest(s, self.stage, replace(nest, order=order, relations=(*nest.relations, rel)))


@dataclass(frozen=True)
class Fuse:
    """Make one loop of two that stand directly inside each other.

        for i in 0..a: for j in 0..b: S(i, j)     →     for f in 0..a*b: S(f // b, f % b)

    Halide ``fuse``, TVM ``fuse``, Exo ``mult_loops``.
    """

    stage: str
    outer: str
    inner: str
    fused: str

    def apply(self, s: Scheduled) -> Scheduled:
        nest = s.nest(self.stage)
        where = f"fuse {self.stage}.({self.outer}, {self.inner})"
        _require(
            self.outer in nest.order and self.inner in nest.order,
            f"{where}: no such loops, found {nest.order}",
        )
        at = nest.order.index(self.outer)
        _require(nest.order[at + 1 : at + 2] == (self.inner,), f"{where}: not directly nested")
        _require(self.fused not in nest.order, f"{where}: name taken")
        _require(
            {nest.kind(self.outer), nest.kind(self.inner)} == {"serial"},
            f"{where}: fuse before marking loops",
        )
        reduced = _reduction_loops(s, self.stage)
        _require(
            (self.outer in reduced) == (self.inner in reduced), f"{where}: mixes a reduction with a pure loop"
        )
        cut = {
            n
            for r in nest.relations
            if isinstance(r, SplitOf) and r.tail == "cut"
            for n in (r.outer, r.inner)
        }
        _require(not cut & {self.outer, self.inner}, f"{where}: part of a split with a cut tail")
        order = (*nest.order[:at], self.fused, *nest.order[at + 2 :])
        rel = FuseOf(self.outer, self.inner, self.fused)
        return _with_nest(s, self.stage, replace(nest, order=order, relations=(*nest.relations, rel)))


@dataclass(frozen=True)
class Reorder:
    """Put loops in a new order (all of the stage's loops, outermost first).

        for i: for j: S(i, j)     →     for j: for i: S(i, j)

    Legal because stages are pure and reductions are order-free. Halide ``reorder``, Exo ``reorder_loops``.
    """

    stage: str
    order: tuple[str, ...]

    def apply(self, s: Scheduled) -> Scheduled:
        nest = s.nest(self.stage)
        same = sorted(self.order) == sorted(nest.order)
        _require(same, f"reorder {self.stage}: {self.order} is not an order of {nest.order}")
        inner = [n for n in self.order[1:] if nest.kind(n) == "parallel"]
        _require(not inner, f"reorder {self.stage}: parallel loop {inner} must stay outermost")
        for rel in nest.relations:
            if isinstance(rel, SplitOf) and rel.tail == "cut":
                parts = _descendants(nest, rel.inner) & set(self.order)
                inside = all(self.order.index(rel.outer) < self.order.index(p) for p in parts)
                _require(
                    inside, f"reorder {self.stage}: {rel.inner} of a cut split must stay inside {rel.outer}"
                )
        return _with_nest(s, self.stage, replace(nest, order=self.order))


def _descendants(nest: Nest, loop: str) -> set[str]:
    """``loop`` and the loops it was split into."""
    names = {loop}
    for rel in nest.relations:
        if isinstance(rel, SplitOf) and rel.parent in names:
            names |= {rel.outer, rel.inner}
    return names


@dataclass(frozen=True)
class _Mark:
    """Base of the steps that set a loop's kind."""

    stage: str
    loop: str

    def mark(self, s: Scheduled, kind: LoopKind, grain: int = 1) -> Scheduled:
        nest = s.nest(self.stage)
        _require(
            self.loop in nest.order, f"{kind} {self.stage}.{self.loop}: no such loop, found {nest.order}"
        )
        kinds = (*((n, k) for n, k in nest.kinds if n != self.loop), (self.loop, kind))
        return _with_nest(s, self.stage, replace(nest, kinds=kinds, grain=max(grain, nest.grain)))


@dataclass(frozen=True)
class Unroll(_Mark):
    """Write a loop's iterations out.   for i in 0..2: S(i)   →   S(0); S(1)"""

    def apply(self, s: Scheduled) -> Scheduled:
        return self.mark(s, "unroll")


@dataclass(frozen=True)
class Vectorize(_Mark):
    """Run a loop's iterations as the lanes of vectors; it must end up innermost.   for i in 0..16: S(i)   →   S(ramp)"""

    def apply(self, s: Scheduled) -> Scheduled:
        return self.mark(s, "vector")


@dataclass(frozen=True)
class Tensorize:
    """Replace a loop and all inside it by an instruction that means the same (checked when the loops are made).

        for v in 0..16: acc[v] += x * w[v]     →     fma16(acc, x, w)

    The instruction is named as in :mod:`wpk.dsl.instr`. Exo ``replace``, TVM ``tensorize``.
    """

    stage: str
    loop: str
    instr: str

    def apply(self, s: Scheduled) -> Scheduled:
        order = s.nest(self.stage).order
        _require(self.loop in order, f"tensorize {self.stage}.{self.loop}: no such loop, found {order}")
        inside = {n for (t, _), n in _placed(s) if t == self.stage}
        blocked = inside & set(order[order.index(self.loop) :])
        _require(
            not blocked, f"tensorize {self.stage}.{self.loop}: another stage is computed inside {blocked}"
        )
        return replace(s, instructions={**s.instructions, self.stage: (self.loop, self.instr)})


def _placed(s: Scheduled) -> list[tuple[tuple[str, str], str]]:
    return [(p.at, p.at[1]) for p in s.placements.values() if p.at is not None]


@dataclass(frozen=True)
class Parallel(_Mark):
    """Divide a loop's iterations among threads, ``grain`` at a time; it must be the outermost loop of a root stage."""

    grain: int = 1

    def apply(self, s: Scheduled) -> Scheduled:
        nest, where = s.nest(self.stage), f"parallel {self.stage}.{self.loop}"
        _require(nest.order[:1] == (self.loop,), f"{where}: not the outermost loop of {nest.order}")
        _require(self.loop not in _reduction_loops(s, self.stage), f"{where}: carries a reduction")
        _require(s.placement(self.stage).at is None, f"{where}: the stage is computed inside another")
        return self.mark(s, "parallel", self.grain)


@dataclass(frozen=True)
class Bind(_Mark):
    """Give a loop's iterations to the blocks (``block.x``, ``block.y``, ``block.z``) or threads of a GPU.

        for i in 0..n: S(i)     →     i = blockIdx.x: S(i)          i = threadIdx.x: S(i)

    A block has as many threads as its largest thread loop; smaller ones leave threads idle.
    Threads have one dimension: fuse what is to be bound. ``min_blocks`` (of a block loop) asks the compiler for registers
    few enough that so many blocks fit a multiprocessor. A reduction is bound after RFactor, its parts summed in order.
    Halide ``gpu_blocks``/``gpu_threads``, TVM ``bind``.
    """

    kind: LoopKind
    min_blocks: int = 1

    def apply(self, s: Scheduled) -> Scheduled:
        where = f"bind {self.stage}.{self.loop} to {self.kind}"
        _require(self.kind in (*BLOCK_KINDS, "thread"), f"{where}: expected blocks or thread")
        _require(self.loop not in _reduction_loops(s, self.stage), f"{where}: carries a reduction")
        is_block = self.kind in BLOCK_KINDS
        _require(
            not is_block or s.placement(self.stage).at is None,
            f"{where}: the stage is computed inside another",
        )
        taken = {n for n, k in s.nest(self.stage).kinds if k == self.kind} - {self.loop}
        _require(not taken, f"{where}: so is {taken}; fuse them")
        _require(self.min_blocks == 1 or is_block, f"{where}: min_blocks belongs to a block loop")
        return self.mark(s, self.kind, self.min_blocks)


@dataclass(frozen=True)
class Pipeline:
    """Make the block stages computed in a loop ``depth - 1`` iterations ahead, in ``depth`` slots of shared memory.

        for k: s = x[k]; use(s)     →     s[0] = x[0];  for k: s[(k+1) % 2] = x[k+1]; use(s[k % 2])          (depth 2)

    Copies from device memory are asynchronous (``cp.async``) where they move 4, 8 or 16 bytes unchanged. With ``fetch`` they are
    boxes, fetched (TMA) by threads of the block that do nothing else.
    TVM ``software_pipeline``, Triton ``num_stages``.
    """

    stage: str
    loop: str
    depth: int
    fetch: bool = False

    def apply(self, s: Scheduled) -> Scheduled:
        nest, where = s.nest(self.stage), f"pipeline {self.stage}.{self.loop}"
        _require(self.loop in nest.order, f"{where}: no such loop, found {nest.order}")
        _require(nest.kind(self.loop) == "serial", f"{where}: a {nest.kind(self.loop)} loop has no order")
        _require((self.stage, self.loop) not in s.segments, f"{where}: the loop is in segments")
        _require(self.depth >= 2, f"{where}: depth {self.depth} is below 2")
        _require(self.stage not in s.pipelines, f"{where}: the stage has a pipeline")
        return replace(s, pipelines={**s.pipelines, self.stage: (self.loop, self.depth, self.fetch)})


@dataclass(frozen=True)
class Segment:
    """Run a loop in pieces that meet at ``points`` (negative: from the end); what a piece's range decides folds away in it.

        for i in 0..n: S(i)     →     for i in 0..1: S(i);  for i in 1..n-1: S(i);  for i in n-1..n: S(i)     (1, -1)

    Tests for padding then cost nothing in the interior. Halide ``partition``, TVM ``loop_partition``, Exo ``cut_loop``.
    """

    stage: str
    loop: str
    points: tuple[int, ...]

    def apply(self, s: Scheduled) -> Scheduled:
        nest, where = s.nest(self.stage), f"segment {self.stage}.{self.loop}"
        _require(self.loop in nest.order, f"{where}: no such loop, found {nest.order}")
        kind = nest.kind(self.loop)
        _require(kind in ("serial", "parallel"), f"{where}: a {kind} loop is one piece")
        named = s.instructions.get(self.stage, ("", ""))[0]
        _require(named != self.loop, f"{where}: the loop is an instruction")
        return replace(s, segments={**s.segments, (self.stage, self.loop): self.points})


@dataclass(frozen=True)
class ComputeAt:
    """Compute a stage inside a loop of its consumer: only the part which that iteration needs.

        for i: a[i] = …                        for i_o:
        for i: b[i] = f(a[i])        →             for i_i: a[i_i] = …          (a holds one tile)
                                                   for i_i: b[…] = f(a[i_i])

    Halide ``compute_at`` + ``store_at``, TVM ``compute_at``.
    """

    stage: str
    consumer: str
    loop: str
    scope: Scope = "thread"

    def apply(self, s: Scheduled) -> Scheduled:
        where = f"compute_at {self.stage} in {self.consumer}.{self.loop}"
        _stage(s, self.stage)
        _require(
            self.loop in s.nest(self.consumer).order,
            f"{where}: no such loop, found {s.nest(self.consumer).order}",
        )
        is_output = any(p.name == _stage(s, self.stage).target for p in s.algorithm.params)
        _require(not is_output, f"{where}: an output is computed at root")
        _require(
            self.stage != self.consumer and not _inside(s, self.consumer, self.stage), f"{where}: a cycle"
        )
        parallel = [k for _, k in s.nest(self.stage).kinds if k == "parallel" or k in BLOCK_KINDS]
        _require(not parallel, f"{where}: the stage has a {' and '.join(parallel[:1])} loop")
        new = replace(s.placement(self.stage), at=(self.consumer, self.loop), scope=self.scope)
        return replace(s, placements={**s.placements, self.stage: new})


def _inside(s: Scheduled, stage: str, ancestor: str) -> bool:
    at = s.placement(stage).at
    return at is not None and (at[0] == ancestor or _inside(s, at[0], ancestor))


@dataclass(frozen=True)
class StoreAs:
    """Choose a stage's storage: order of axes in memory, and ``lanes`` = (axis, width) innermost for vector registers.

    ``whole`` axes are computed and kept in full: then splits of them stay aligned, whatever part the consumer reads.
    With a staged input (:class:`CacheRead`) this is packing. ``pad`` = (axis, elements) makes that axis longer in memory, so
    that what lies next to each other along another one falls on other banks of shared memory; ``swizzle`` (32, 64 or 128, the
    bytes of the last axis) does that without a gap. ``join``: axes that follow each other in memory are one dimension, and padded
    as one: a consumer may count along it in another way than the stage's axes do.
    Halide ``reorder_storage``, TVM ``transform_layout``, ``storage_align``.
    """

    stage: str
    order: tuple[str, ...] | None = None
    lanes: tuple[str, int] | None = None
    whole: tuple[str, ...] = ()
    pad: tuple[str, int] | None = None
    swizzle: int = 0
    join: tuple[tuple[str, ...], ...] = ()

    def apply(self, s: Scheduled) -> Scheduled:
        names = tuple(a.name for a in _stage(s, self.stage).axes)
        order = self.order or names
        _require(sorted(order) == sorted(names), f"store {self.stage}: {order} is not an order of {names}")
        _require(self.lanes is None or self.lanes[0] in names, f"store {self.stage}: no axis {self.lanes}")
        _require(set(self.whole) <= set(names), f"store {self.stage}: no axes {self.whole}")
        padded = self.pad is None or (self.pad[0] in names and self.pad[1] >= 0)
        _require(padded, f"store {self.stage}: no axis or a negative padding in {self.pad}")
        _require(self.swizzle in (0, 32, 64, 128), f"store {self.stage}: no swizzle of {self.swizzle} bytes")
        _require(not (self.swizzle and self.pad), f"store {self.stage}: swizzled rows are whole")
        for group in self.join:
            at = order.index(group[0]) if group and group[0] in order else -1
            _require(order[at : at + len(group)] == group and len(group) > 1, f"store {self.stage}: {group} is no run of {order}")
        _require(not (self.join and self.lanes), f"store {self.stage}: joined axes have no lanes")
        new = replace(
            s.placement(self.stage), storage=order, lanes=self.lanes, whole=self.whole, pad=self.pad, swizzle=self.swizzle,
            join=self.join,
        )  # fmt: skip
        return replace(s, placements={**s.placements, self.stage: new})


@dataclass(frozen=True)
class Inline:
    """Put a pure stage's value where it is read.   a[i] = x[i]+1; b[i] = 2*a[i]   →   b[i] = 2*(x[i]+1)"""

    stage: str

    def apply(self, s: Scheduled) -> Scheduled:
        stage = _stage(s, self.stage)
        plain = stage.reduce is None and stage.scatter is None and s.algorithm.param(stage.target) is None
        _require(plain, f"inline {self.stage}: it is reduced or an output")
        _require_free(s, self.stage, s.nest(self.stage).order, f"inline {self.stage}")
        rest = tuple(_replace_loads(t, stage) for t in s.algorithm.stages if t.name != stage.name)
        return replace(s, algorithm=replace(s.algorithm, stages=rest))


def _replace_loads(user: Stage, stage: Stage) -> Stage:
    def rewrite(expr: Expr) -> Expr:
        if isinstance(expr, Load) and expr.buffer == stage.name:
            env = {a.name: rewrite(i) for a, i in zip(stage.axes, expr.indices, strict=True)}
            return substitute(stage.value, env)
        return _map(expr, rewrite)

    return replace(user, value=rewrite(user.value))


def _map(expr: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """Apply ``f`` to the direct children of an expression."""
    match expr:
        case Load(buffer, indices):
            return Load(buffer, tuple(f(i) for i in indices))
        case Binary(op, a, b):
            return Binary(op, f(a), f(b))
        case Select(c, a, b):
            return Select(f(c), f(a), f(b))
        case Unary(op, a):
            return Unary(op, f(a))
        case Cast(dtype, a):
            return Cast(dtype, f(a))
    return expr


@dataclass(frozen=True)
class CacheRead:
    """Stage a tensor: add a copy of it that ``consumer`` reads instead; place and pack it with ComputeAt and StoreAs.

        c[i] = f(x[i])     →     x_s[i] = x[i];  c[i] = f(x_s[i])

    Halide ``in()``, TVM ``cache_read``, Exo ``stage_mem``.
    """

    tensor: str
    name: str
    consumer: str

    def apply(self, s: Scheduled) -> Scheduled:
        algo, user = s.algorithm, _stage(s, self.consumer)
        where = f"cache_read {self.tensor} in {self.consumer}"
        _require(any(x.buffer == self.tensor for x in loads(user.value)), f"{where}: it does not read it")
        _require(
            algo.param(self.name) is None and all(t.name != self.name for t in algo.stages),
            f"{where}: name taken",
        )
        param = algo.param(self.tensor)
        shape = param.shape if param else tuple(a.extent for a in _stage(s, self.tensor).axes)
        axes = tuple(Axis(f"d{i}", n) for i, n in enumerate(shape))
        copy = Stage(self.name, axes, Load(self.tensor, tuple(a.var for a in axes)))

        def rewrite(expr: Expr) -> Expr:
            expr = _map(expr, rewrite)
            return (
                Load(self.name, expr.indices)
                if isinstance(expr, Load) and expr.buffer == self.tensor
                else expr
            )

        at = next(i for i, t in enumerate(algo.stages) if t.name == user.name)
        stages = (*algo.stages[:at], copy, replace(user, value=rewrite(user.value)), *algo.stages[at + 1 :])
        return replace(s, algorithm=replace(algo, stages=stages))


@dataclass(frozen=True)
class RFactor:
    """Split a reduction in two: partial results over blocks of ``factor``, then the sum of the parts.

        acc[i] = sum_k x[i, k]     →     part[k_o, i] = sum_{k_i} x[i, factor*k_o + k_i];  acc[i] = sum_{k_o} part[k_o, i]

    With ``part`` in registers inside acc's loops this is cache blocking of the reduction; with k_o across lanes or threads it
    is a parallel reduction. ``factor`` must divide the axis. Halide ``rfactor``, TVM ``rfactor``.
    """

    stage: str
    axis: str
    factor: int
    part: str

    def apply(self, s: Scheduled) -> Scheduled:
        stage, where = _stage(s, self.stage), f"rfactor {self.stage}.{self.axis}"
        _require(
            stage.reduce is not None and self.stage not in s.nests, f"{where}: not an unscheduled reduction"
        )
        assert stage.reduce is not None
        _require(stage.reduce.count is None, f"{where}: its first axis is ragged")
        axis = next((a for a in stage.reduce.axes if a.name == self.axis), None)
        _require(axis is not None, f"{where}: no such reduction axis")
        assert axis is not None
        _require(axis.extent % self.factor == 0, f"{where}: {self.factor} does not divide {axis.extent}")
        outer, inner = Axis(f"{axis.name}_o", axis.extent // self.factor), Axis(f"{axis.name}_i", self.factor)
        value = substitute(stage.value, {axis.name: outer.var * self.factor + inner.var})
        kept = tuple(inner if a is axis else a for a in stage.reduce.axes)
        part = Stage(
            self.part, (outer, *stage.axes), value, replace(stage.reduce, axes=kept), dtype=stage.dtype
        )
        read = Load(self.part, (outer.var, *(a.var for a in stage.axes)))
        total = replace(stage, value=read, reduce=Reduce(stage.reduce.op, (outer,), stage.reduce.init))
        at = s.algorithm.stages.index(stage)
        stages = (*s.algorithm.stages[:at], part, total, *s.algorithm.stages[at + 1 :])
        return replace(s, algorithm=replace(s.algorithm, stages=stages))


@dataclass(frozen=True)
class Prefetch:
    """Prefetch what ``tensor`` (read by ``stage``) will give ``distance`` iterations of ``loop`` later.

    for k: S(w[k])     →     for k: prefetch(w[k + distance]); S(w[k])

    ``shift`` moves axes besides: (("ob", 2),) asks for the weights of the tile after this one while this one is computed,
    so that memory and arithmetic overlap.
    """

    stage: str
    tensor: str
    loop: str
    distance: int
    locality: int = 3
    shift: tuple[tuple[str, int], ...] = ()

    def apply(self, s: Scheduled) -> Scheduled:
        where = f"prefetch {self.tensor} in {self.stage}.{self.loop}"
        _require(self.loop in s.nest(self.stage).order, f"{where}: no such loop")
        _require(
            any(x.buffer == self.tensor for x in loads(_stage(s, self.stage).value)),
            f"{where}: not read there",
        )
        new = PrefetchOf(self.loop, self.tensor, self.distance, self.locality, self.shift)
        return replace(s, prefetches={**s.prefetches, self.stage: (*s.prefetches.get(self.stage, ()), new)})


Step = (
    Split
    | Fuse
    | Reorder
    | Unroll
    | Vectorize
    | Tensorize
    | Parallel
    | Bind
    | Pipeline
    | Segment
    | ComputeAt
    | StoreAs
    | Inline
    | CacheRead
    | RFactor
    | Prefetch
)


def schedule(algorithm: Algorithm, steps: Iterable[Step]) -> Scheduled:
    """Apply steps in order. Raises ScheduleError at the first that is not legal."""
    state = Scheduled(algorithm)
    for step in steps:
        state = step.apply(state)
    return state


__all__ = [
    "Bind", "CacheRead", "ComputeAt", "Fuse", "Inline", "Nest", "Parallel", "Pipeline", "Placement", "Prefetch", "RFactor",
    "Reorder", "ScheduleError", "Scheduled", "Segment", "Split", "Step", "StoreAs", "Tensorize", "Unroll", "Vectorize",
    "schedule",
]  # fmt: skip
