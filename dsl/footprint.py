"""What a kernel's statements touch and do, loop by loop: the facts under :mod:`wpk.dsl.features`.

Every store is a leaf under a path of loops. An index is taken as a linear form of the loop variables (``//`` and ``%`` scale and
cap it), so that the elements an access touches while its inner loops run are a product over dimensions of distinct values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod

from wpk.core.tensor import DTYPE_BYTES
from wpk.dsl.affine import linear, substitute
from wpk.dsl.fetch import expand as expand_fetch
from wpk.dsl.instr import expand
from wpk.dsl.ir import (
    BLOCK_KINDS,
    Alloc,
    Barrier,
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    Fetch,
    For,
    If,
    Invoke,
    Kernel,
    Load,
    LoopKind,
    Prefetch,
    Select,
    Stmt,
    Store,
    Unary,
    Var,
)  # fmt: skip

LINE = 64

#: Iterations of loops around for which the iterations of one that depends on them are counted.
_MOST_ENUMERATED = 2048

#: Cost of a scalar or vector function in simple operations.
_FUNCTION = {
    "exp": 18, "log": 20, "erf": 22, "tanh": 24, "sigmoid": 22, "sqrt": 8, "rsqrt": 6, "recip": 4, "pow": 40, "/": 6,
}  # fmt: skip

#: variable -> how far the index moves when the variable takes one step
Steps = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop entered: ``trip`` iterations (on average, where that depends on others)."""

    var: str
    trip: int
    kind: LoopKind
    grain: int = 1


@dataclass(frozen=True, slots=True)
class Access:
    """One load or store: for each dimension the steps of its index, and the constant part of the address in elements."""

    buffer: Buffer
    steps: tuple[Steps, ...]
    store: bool
    at: int
    indices: tuple[Expr, ...]

    def moves(self, var: str) -> bool:
        """Whether another element is meant at another value of ``var``."""
        return any(var in s for s in self.steps)

    def strides(self, var: str) -> float:
        """Elements between two neighbouring values of ``var``."""
        total, size = 0.0, 1
        for steps, extent in zip(reversed(self.steps), reversed(self.buffer.shape), strict=True):
            total += steps.get(var, 0.0) * size
            size *= extent
        return total

    def footprints(self, loops: tuple[Loop, ...]) -> list[int]:
        """Bytes touched by all iterations of the loops from depth d on, for d in 0..len(loops)."""
        spans, counts = [1.0] * len(self.steps), [1] * len(self.steps)
        found = [self._bytes(spans, counts)]
        for loop in reversed(loops):
            moved = False
            for i, steps in enumerate(self.steps):
                if loop.var in steps:
                    spans[i] += abs(steps[loop.var]) * (loop.trip - 1)
                    counts[i] *= loop.trip
                    moved = True
            found.append(self._bytes(spans, counts) if moved else found[-1])
        return found[::-1]

    def _bytes(self, spans: list[float], counts: list[int]) -> int:
        """Lines, where more than one element of the innermost dimension or several dimensions are touched."""
        size = DTYPE_BYTES[self.buffer.dtype]
        distinct = [min(int(s), c, n) for s, c, n in zip(spans, counts, self.buffer.shape, strict=True)]
        if not distinct:
            return size
        reach = min(int(spans[-1]), self.buffer.shape[-1]) * size
        row = min(-(-reach // LINE), distinct[-1]) * LINE
        return min(prod(distinct[:-1]) * row, max(prod(self.buffer.shape) * size, 1))


@dataclass(frozen=True, slots=True)
class Work:
    """Operations of one execution: multiply-adds, other arithmetic (functions weighted), conditions, index divisions."""

    fma: int = 0
    other: int = 0
    conditions: int = 0
    divisions: int = 0


@dataclass(slots=True)
class Leaf:
    """A store under its loops, outermost first. ``top``: which of the kernel's outermost statements it is part of."""

    loops: tuple[Loop, ...]
    accesses: tuple[Access, ...]
    work: Work
    reduces: bool
    guards: int
    top: int
    spans: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spans = [a.footprints(self.loops) for a in self.accesses]

    @property
    def target(self) -> Access:
        """The store itself."""
        return self.accesses[-1]

    @property
    def block(self) -> tuple[Loop, ...]:
        """The unrolled and vector loops at the inner end: what the C compiler sees as straight code."""
        inner = len(self.loops)
        while inner and self.loops[inner - 1].kind in ("unroll", "vector"):
            inner -= 1
        return self.loops[inner:]

    def times(self, depth: int | None = None) -> int:
        """How often the loops up to ``depth`` run their body."""
        return prod(loop.trip for loop in self.loops[:depth])


@dataclass(slots=True)
class Nest:
    """All of a kernel: leaves, buffers allocated, prefetches and barriers with how often they run."""

    leaves: list[Leaf] = field(default_factory=list)
    buffers: list[tuple[tuple[Loop, ...], Buffer]] = field(default_factory=list)
    prefetches: list[tuple[tuple[Loop, ...], Prefetch]] = field(default_factory=list)
    loops: list[tuple[tuple[Loop, ...], int]] = field(default_factory=list)  # (path to and with a loop, statement)
    barriers: int = 0


class _Walk:
    """Collects a kernel's nest."""

    def __init__(self, kernel: Kernel) -> None:
        self.nest = Nest()
        self.scope = {b.name: b for b in kernel.params}
        self.trips: dict[str, int] = {}
        self.top = 0

    def body(self, stmts: tuple[Stmt, ...], loops: tuple[Loop, ...], guards: int) -> None:
        for stmt in stmts:
            self.stmt(stmt, loops, guards)
            self.top += not loops

    def stmt(self, stmt: Stmt, loops: tuple[Loop, ...], guards: int) -> None:
        match stmt:
            case For():
                self.loop(stmt, loops, guards)
            case If():
                self.body(stmt.body, loops, guards + 1)
            case Alloc():
                self.alloc(stmt, loops, guards)
            case Store():
                self.store(stmt, loops, guards)
            case Prefetch():
                self.nest.prefetches.append((loops, stmt))
            case Invoke():
                self.body(expand(stmt), loops, guards)
            case Fetch():
                self.body(expand_fetch(stmt), loops, guards)
            case Barrier():
                self.nest.barriers += prod(x.trip for x in loops if x.kind not in BLOCK_KINDS)

    def loop(self, stmt: For, loops: tuple[Loop, ...], guards: int) -> None:
        trip = _extent(stmt, self.trips)
        path = loops if trip == 1 else (*loops, Loop(stmt.var, trip, stmt.kind, stmt.grain))
        self.trips[stmt.var] = trip
        if trip > 1:
            self.nest.loops.append((path, self.top))
        for inner in stmt.body:
            self.stmt(inner, path, guards)

    def alloc(self, stmt: Alloc, loops: tuple[Loop, ...], guards: int) -> None:
        earlier = self.scope.get(stmt.buffer.name)
        self.scope[stmt.buffer.name] = stmt.buffer
        if stmt.buffer.values is None:
            self.nest.buffers.append((loops, stmt.buffer))
        self.body(stmt.body, loops, guards)
        if earlier is not None:
            self.scope[stmt.buffer.name] = earlier

    def store(self, stmt: Store, loops: tuple[Loop, ...], guards: int) -> None:
        found: dict[tuple[str, tuple[Expr, ...]], Access] = {}
        counts = [0, 0, 0, 0]
        self.value(stmt.value, found, counts)
        adds = counts[1] + (stmt.op == "+")
        fma = min(counts[0], adds)
        other = counts[2] + (counts[0] - fma) + (adds - fma) + (stmt.op not in ("", "+"))
        target = self.access(stmt.buffer, stmt.indices, True)
        accesses = [a for a in found.values() if a.buffer.values is None]
        self.nest.leaves.append(
            Leaf(loops, (*accesses, target), Work(fma, other, counts[3], 0), bool(stmt.op), guards, self.top)
        )

    def value(self, e: Expr, found: dict[tuple[str, tuple[Expr, ...]], Access], counts: list[int]) -> None:
        """Loads and operations of a value; ``counts`` are products, sums, other, conditions."""
        match e:
            case Load():
                key = (e.buffer, tuple(e.indices))
                if key not in found:
                    found[key] = self.access(e.buffer, e.indices, False)
            case Binary():
                kind = {"*": 0, "+": 1, "-": 1}.get(e.op, 3 if e.op in ("<", "<=", "==", "and", "or") else 2)
                counts[kind] += _FUNCTION.get(e.op, 1)
                if kind != 3:
                    self.value(e.a, found, counts)
                    self.value(e.b, found, counts)
            case Unary():
                counts[2] += _FUNCTION.get(e.op, 1)
                self.value(e.a, found, counts)
            case Select():
                counts[2] += 1
                for part in (e.cond, e.a, e.b):
                    self.value(part, found, counts)
            case Cast():
                counts[2] += 1
                self.value(e.a, found, counts)

    def access(self, name: str, indices: tuple[Expr, ...], store: bool) -> Access:
        buffer = self.scope[name]
        forms = [_form(i, self.trips) for i in indices]
        at, size = 0, 1
        for (const, _), extent in zip(reversed(forms), reversed(buffer.shape), strict=True):
            at, size = at + int(const) * size, size * extent
        return Access(buffer, tuple(s for _, s in forms), store, at, indices)


def walk(kernel: Kernel) -> Nest:
    """The nest of a lowered kernel."""
    found = _Walk(kernel)
    found.body(kernel.body, (), 0)
    return found.nest


def _extent(loop: For, trips: Mapping[str, int]) -> int:
    """Iterations, on average where the ends depend on other loops."""
    if isinstance(loop.start, Const) and isinstance(loop.stop, Const):
        return max(int(loop.stop.value) - int(loop.start.value), 1)
    count = loop.stop - loop.start
    around = [(v, trips.get(v, 1)) for v in dict.fromkeys(_variables(count))]
    if prod(n for _, n in around) <= _MOST_ENUMERATED:
        return max(round(_mean(count, around)), 1)
    (low, first), (high, last) = _form(loop.start, trips), _form(loop.stop, trips)
    grow = (max(last.get(v, 0.0) - first.get(v, 0.0), 0.0) * (trips.get(v, 1) - 1) for v in {*first, *last})
    return max(int(high - low + sum(grow)), 1)


def _mean(count: Expr, around: Sequence[tuple[str, int]]) -> float:
    """The average of a number of iterations over those of the loops around."""
    values = product(*(range(n) for _, n in around))
    env = ({v: Const(i) for (v, _), i in zip(around, at, strict=True)} for at in values)
    found = [max(linear(substitute(count, e), {}).const, 0) for e in env]
    return sum(found) / len(found)


def _form(e: Expr, trips: Mapping[str, int]) -> tuple[float, dict[str, float]]:
    """Constant and steps of an index."""
    match e:
        case Const():
            return float(e.value), {}
        case Var():
            return 0.0, {e.name: 1.0} if trips.get(e.name, 1) > 1 else {}
        case Binary(op="+" | "-"):
            return _sum(_form(e.a, trips), _form(e.b, trips), 1.0 if e.op == "+" else -1.0)
        case Binary(op="*"):
            a, b = _form(e.a, trips), _form(e.b, trips)
            (const, steps), factor = (a, b[0]) if not b[1] else (b, a[0])
            return const * factor, {v: c * factor for v, c in steps.items()}
        case Binary(op="//" | "%"):
            return _divided(e.op, _form(e.a, trips), max(_form(e.b, trips)[0], 1.0), trips)
        case Binary(op="min" | "max"):
            a, b = _form(e.a, trips), _form(e.b, trips)
            return (a if a[1] else b)[0] if not b[1] else a[0], {**b[1], **a[1]}
        case Select():
            a, b = _form(e.a, trips), _form(e.b, trips)
            return a[0], {**b[1], **a[1]}
    return 0.0, dict.fromkeys(_variables(e), 1.0)


def _divided(
    op: str, form: tuple[float, dict[str, float]], by: float, trips: Mapping[str, int]
) -> tuple[float, dict[str, float]]:
    const, steps = form
    if op == "//":
        return const // by, {v: c / by for v, c in steps.items() if abs(c) * (trips.get(v, 1) - 1) >= 1}
    most = by - 1
    capped = {v: min(abs(c), most / max(trips.get(v, 2) - 1, 1)) for v, c in steps.items() if c % by}
    return const % by, {v: c for v, c in capped.items() if c}


def _sum(
    a: tuple[float, dict[str, float]], b: tuple[float, dict[str, float]], sign: float
) -> tuple[float, dict[str, float]]:
    steps = dict(a[1])
    for v, c in b[1].items():
        total = steps.get(v, 0.0) + sign * c
        if total:
            steps[v] = total
        else:
            steps.pop(v, None)
    return a[0] + sign * b[0], steps


def _variables(e: Expr) -> Iterator[str]:
    match e:
        case Var():
            yield e.name
        case Binary():
            yield from _variables(e.a)
            yield from _variables(e.b)
        case Select():
            for part in (e.cond, e.a, e.b):
                yield from _variables(part)
        case Unary() | Cast():
            yield from _variables(e.a)
        case Load():
            for i in e.indices:
                yield from _variables(i)
