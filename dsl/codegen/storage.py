"""Where buffers live in generated C: offsets in the workspace, and which registers are vectors.

Allocs nest, so the workspace is a stack: siblings share memory. Buffers that share memory with another one in the same
function must not have `restrict` pointers of their own; they are grouped into pools.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from wpk.dsl.affine import linear
from wpk.dsl.codegen.cstyle import C_TYPES
from wpk.dsl.instr import expand, find
from wpk.dsl.ir import (
    Alloc,
    Binary,
    Buffer,
    Cast,
    Expr,
    For,
    If,
    Invoke,
    Load,
    Prefetch,
    Select,
    Stmt,
    Store,
    Unary,
    Var,
)

ALIGN = 64


def buffer_bytes(buffer: Buffer) -> int:
    """Size in the workspace: a multiple of 64."""
    return -(-prod(buffer.shape) * C_TYPES[buffer.dtype][2] // ALIGN) * ALIGN


@dataclass
class Workspace:
    """Byte offsets by ``id(Alloc)``: of shared buffers from the workspace, of thread buffers from the thread's part."""

    offsets: dict[int, int] = field(default_factory=dict)
    shared_bytes: int = 0
    thread_bytes: int = 0


def plan_workspace(body: tuple[Stmt, ...]) -> Workspace:
    """Stack offsets for all shared and thread Allocs of a kernel.

    Buffers of different dtypes never share memory, so that C's aliasing rules hold.
    """
    plan = Workspace()
    dtypes = {a.buffer.dtype for a in allocs(body) if a.buffer.scope in ("thread", "shared")}
    _place(body, plan, 0, 0, len(dtypes) <= 1)
    return plan


def _place(body: tuple[Stmt, ...], plan: Workspace, shared: int, thread: int, reuse: bool) -> None:
    for stmt in body:
        if not reuse:
            shared, thread = plan.shared_bytes, plan.thread_bytes
        if isinstance(stmt, Alloc):
            after_shared, after_thread = shared, thread
            if stmt.buffer.values is not None:
                pass
            elif stmt.buffer.scope == "shared":
                plan.offsets[id(stmt)] = shared
                after_shared += buffer_bytes(stmt.buffer)
                plan.shared_bytes = max(plan.shared_bytes, after_shared)
            elif stmt.buffer.scope == "thread":
                plan.offsets[id(stmt)] = thread
                after_thread += buffer_bytes(stmt.buffer)
                plan.thread_bytes = max(plan.thread_bytes, after_thread)
            _place(stmt.body, plan, after_shared, after_thread, reuse)
        elif isinstance(stmt, For | If):
            _place(stmt.body, plan, shared, thread, reuse)


def allocs(body: tuple[Stmt, ...]) -> Iterator[Alloc]:
    """Every Alloc in ``body``, outer before inner."""
    for stmt in body:
        if isinstance(stmt, Alloc):
            yield stmt
        if isinstance(stmt, Alloc | For | If):
            yield from allocs(stmt.body)


@dataclass(frozen=True)
class Pool:
    """Buffers of one scope that overlap in memory: their Allocs, and the lowest offset."""

    members: tuple[Alloc, ...]
    offset: int


def pools(body: tuple[Stmt, ...], plan: Workspace, scope: str) -> list[Pool]:
    """The Allocs of a scope in one function, grouped so that different pools do not overlap; by offset."""
    found = [(plan.offsets[id(a)], a) for a in allocs(body) if a.buffer.scope == scope and a.buffer.values is None]
    found.sort(key=lambda pair: pair[0])
    groups: list[list[Alloc]] = []
    end = -1
    for offset, alloc in found:
        if offset >= end:
            groups.append([])
        groups[-1].append(alloc)
        end = max(end, offset + buffer_bytes(alloc.buffer))
    return [Pool(tuple(g), plan.offsets[id(g[0])]) for g in groups]


def used_buffers(body: tuple[Stmt, ...]) -> set[str]:
    """Names of all buffers that ``body`` touches."""
    names: set[str] = set()
    for stmt in body:
        match stmt:
            case For():
                names |= used_buffers(stmt.body) | loaded(stmt.start) | loaded(stmt.stop)
            case Alloc():
                names |= used_buffers(stmt.body)
            case If():
                names |= loaded(stmt.cond) | used_buffers(stmt.body)
            case Store():
                names |= {stmt.buffer} | loaded(stmt.value).union(*map(loaded, stmt.indices))
            case Prefetch():
                names |= {stmt.buffer}.union(*map(loaded, stmt.indices))
            case Invoke():
                names |= {b for b, _ in stmt.operands}
    return names


def loaded(expr: Expr) -> set[str]:
    """Names of the buffers that an expression loads from."""
    names: set[str] = set()
    _collect_loads(expr, names)
    return names


def _collect_loads(expr: Expr, names: set[str]) -> None:
    match expr:
        case Load():
            names.add(expr.buffer)
            for i in expr.indices:
                if type(i) is not Var:
                    _collect_loads(i, names)
        case Binary():
            _collect_loads(expr.a, names)
            _collect_loads(expr.b, names)
        case Select():
            for e in (expr.cond, expr.a, expr.b):
                _collect_loads(e, names)
        case Unary() | Cast():
            _collect_loads(expr.a, names)


# -- registers --------------------------------------------------------------------------------------------------------


def register_lanes(body: tuple[Stmt, ...]) -> dict[int, int]:
    """For each register Alloc, by ``id``: the lanes of its variables; 0 scalars, -1 a C array (mixed lane counts).

    A register buffer is made of vectors when vector loops walk its last dimension with stride one.
    """
    return _Registers().visit(body)


class _Registers:
    """One walk over a kernel: the vector loop around, and the lane counts seen for each register buffer in scope."""

    def __init__(self) -> None:
        self.lane: str = ""
        self.lanes = 0
        self.scope: dict[str, tuple[Alloc, set[int]] | None] = {}
        self.result: dict[int, int] = {}

    def visit(self, body: tuple[Stmt, ...]) -> dict[int, int]:
        for stmt in body:
            self.stmt(stmt)
        return self.result

    def stmt(self, stmt: Stmt) -> None:
        match stmt:
            case For():
                self.loop(stmt)
            case If():
                self.expr(stmt.cond)
                self.visit(stmt.body)
            case Alloc():
                self.alloc(stmt)
            case Store():
                self.access(stmt.buffer, stmt.indices)
                self.expr(stmt.value)
            case Invoke():
                self.invoke(stmt)

    def loop(self, loop: For) -> None:
        if loop.kind != "vector":
            self.visit(loop.body)
            return
        outer = self.lane, self.lanes
        span = linear(loop.stop, {}).plus(linear(loop.start, {}), -1)
        self.lane, self.lanes = loop.var, span.const
        self.visit(loop.body)
        self.lane, self.lanes = outer

    def alloc(self, alloc: Alloc) -> None:
        name = alloc.buffer.name
        hidden = self.scope.get(name)
        seen: set[int] = set()
        tracked = alloc.buffer.scope == "register" and alloc.buffer.values is None and not self.lane
        self.scope[name] = (alloc, seen) if tracked else None
        self.visit(alloc.body)
        if tracked:
            self.result[id(alloc)] = _lanes_of(alloc.buffer, seen)
        self.scope[name] = hidden

    def invoke(self, invoke: Invoke) -> None:
        for operand, (name, indices) in zip(find(invoke.instr).operands, invoke.operands, strict=False):
            entry = self.scope.get(name)
            if entry and operand.shape and operand.kind == "vector":
                entry[1].add(operand.shape[-1])
            for i in indices:
                self.expr(i)
        if invoke.instr and not self.lane:
            return
        self.visit(expand(invoke))

    def access(self, name: str, indices: tuple[Expr, ...]) -> None:
        entry = self.scope.get(name)
        if entry and self.lane and indices and linear(indices[-1], {}).terms.get(Var(self.lane)) == 1:
            entry[1].add(self.lanes)

    def expr(self, e: Expr) -> None:
        match e:
            case Load():
                self.access(e.buffer, e.indices)
                for i in e.indices:
                    if type(i) is not Var:
                        self.expr(i)
            case Binary():
                self.expr(e.a)
                self.expr(e.b)
            case Select():
                self.expr(e.cond)
                self.expr(e.a)
                self.expr(e.b)
            case Unary() | Cast():
                self.expr(e.a)


def _lanes_of(buffer: Buffer, seen: set[int]) -> int:
    if not seen:
        return 0
    lanes = max(seen)
    return lanes if len(seen) == 1 and buffer.shape[-1] % lanes == 0 else -1
