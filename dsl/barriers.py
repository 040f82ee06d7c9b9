"""Barriers: where the threads of a block must wait for each other, found from what each statement reads and writes.

A block's statements are walked in the order in which threads reach them. Reading shared memory that was written since the
last barrier needs one, and so does writing what was read: a loop is walked twice, so that an iteration sees what the one
before left. Barriers go between the statements of a list that all threads of the block run together; where there is none,
the schedule is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from wpk.core.errors import InvalidConfig
from wpk.dsl.affine import linear
from wpk.dsl.instr import find
from wpk.dsl.ir import (
    BLOCK_KINDS,
    Alloc,
    Barrier,
    Binary,
    Buffer,
    Cast,
    Expr,
    For,
    If,
    Invoke,
    Kernel,
    Load,
    Select,
    Stmt,
    Store,
    Unary,
)

Body = tuple[Stmt, ...]


class BarrierError(InvalidConfig):
    """Threads would have to wait for each other where not all of them come by."""


@dataclass
class _Pending:
    """Buffers of the block read and written since the last barrier. Memory of a buffer that is gone may be used again."""

    read: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)

    def copy(self) -> _Pending:
        return _Pending(set(self.read), set(self.written), set(self.gone))

    def merge(self, other: _Pending) -> None:
        self.read |= other.read
        self.written |= other.written
        self.gone |= other.gone

    def clear(self) -> None:
        self.read.clear()
        self.written.clear()
        self.gone.clear()

    def conflicts(self, reads: set[str], writes: set[str]) -> bool:
        touched = self.read | self.written
        return bool(reads & self.written or writes & self.read or (writes and self.gone & touched - writes))


def with_barriers(kernel: Kernel) -> Kernel:
    """The kernel with the barriers that its block buffers need. Raises BarrierError."""
    if not any(_holds_block(s) for s in kernel.body):
        return kernel
    return replace(kernel, body=_Walk(kernel.name).kernels(kernel.body))


def threads_of(body: Body) -> int:
    """Threads of a block: what the largest loop over threads in ``body`` needs."""
    most = 1
    for stmt in body:
        if isinstance(stmt, For | If | Alloc):
            most = max(most, threads_of(stmt.body))
        if isinstance(stmt, For) and stmt.kind == "thread":
            stop = linear(stmt.stop, {}).const
            most = max(most, stop)
    return most


def _holds_block(stmt: Stmt) -> bool:
    if isinstance(stmt, Alloc) and stmt.buffer.scope == "block":
        return True
    return isinstance(stmt, For | If | Alloc) and any(map(_holds_block, stmt.body))


class _Walk:
    """One walk over the kernel; ``whole`` while all threads of the block are together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.threads = 1
        self.whole = True
        self.inside = False
        self.blocks: set[str] = set()
        self.managed: set[str] = set()  # buffers of pipelines, which have barriers of their own
        self.pending = _Pending()

    def kernels(self, body: Body) -> Body:
        """Device memory is global to all kernels; each other statement at the top is a kernel of its own."""
        out: list[Stmt] = []
        for stmt in body:
            if isinstance(stmt, Alloc) and stmt.buffer.scope not in ("block", "register", "thread"):
                out.append(replace(stmt, body=self.kernels(stmt.body)))
            else:
                self.threads, self.pending = threads_of((stmt,)), _Pending()
                out += self.body((stmt,))
        return tuple(out)

    def body(self, stmts: Body) -> Body:
        out: list[Stmt] = []
        for stmt in stmts:
            out += self.stmt(stmt)
        return tuple(out)

    def stmt(self, stmt: Stmt) -> list[Stmt]:
        match stmt:
            case Barrier():
                self.pending.clear()
                return [stmt]
            case Alloc() if stmt.buffer.slots > 1 and stmt.buffer.name not in self.managed:
                return self.pipelined(stmt)
            case Alloc():
                return self.alloc(stmt)
            case For() if stmt.kind in BLOCK_KINDS:
                return [replace(stmt, body=self.body(stmt.body))]
            case For() if stmt.kind == "thread":
                return self.over_threads(stmt)
            case For() if _is_lists(stmt):
                return self.leaf(stmt) if self.is_one_step(stmt) else [self.loop(stmt)]
            case If() if _is_lists(stmt):
                with_whole, self.whole = self.whole, False
                done = self.body(stmt.body)
                self.whole = with_whole
                return [replace(stmt, body=done)]
        return self.leaf(stmt)

    def alloc(self, stmt: Alloc) -> list[Stmt]:
        if stmt.buffer.scope != "block" or stmt.buffer.name in self.managed:
            return [replace(stmt, body=self.body(stmt.body))]
        name = stmt.buffer.name
        self.blocks.add(name)
        self.pending.gone.discard(name)
        done = replace(stmt, body=self.body(stmt.body))
        self.blocks.discard(name)
        self.pending.gone.add(name)
        return [done]

    def pipelined(self, stmt: Alloc) -> list[Stmt]:
        """Slots are kept apart by the pipeline's barriers; as a whole it writes, and reads last, shared memory."""
        names = {a.name for a in _slotted_buffers(stmt)}
        self.blocks |= names
        before = self.leaf(stmt)[:-1]
        self.blocks -= names
        self.managed |= names
        done = self.alloc(stmt)
        self.managed -= names
        self.pending.read |= names
        self.pending.gone |= names
        return [*before, *done]

    def is_one_step(self, stmt: For) -> bool:
        """Do the iterations of a loop, once begun, not wait for each other?"""
        outside, self.pending = self.pending, _Pending()
        inner = self.loop(stmt)
        self.pending = outside
        return not _waits(inner)

    def loop(self, stmt: For) -> For:
        """A loop whose body is made of steps of the whole block."""
        entry = self.pending.copy()
        self.body(stmt.body)
        entry.merge(self.pending)
        self.pending = entry
        return replace(stmt, body=self.body(stmt.body))

    def over_threads(self, stmt: For) -> list[Stmt]:
        """Outermost: the threads' own code, which may hold steps of the whole block. Inside another: such a step."""
        if self.inside or not _is_lists(stmt):
            return self.leaf(stmt)
        mine = linear(stmt.stop, {}).const
        if mine != self.threads or not self.whole:
            raise BarrierError(
                f"{self.name}: {stmt.var} has {mine} of the block's {self.threads} threads, but holds work of all of them"
            )
        self.inside = True
        done = replace(stmt, body=self.body(stmt.body))
        self.inside = False
        return [done]

    def leaf(self, stmt: Stmt) -> list[Stmt]:
        reads, writes = set[str](), set[str]()
        _accesses(stmt, self.blocks, reads, writes)
        before: list[Stmt] = []
        if self.pending.conflicts(reads, writes):
            if not self.whole:
                names = ", ".join(sorted(reads | writes))
                raise BarrierError(f"{self.name}: threads would wait for {names} where not all of the block come by")
            before = [Barrier()]
            self.pending.clear()
        self.pending.read |= reads
        self.pending.written |= writes
        return [*before, stmt]


def _slotted_buffers(stmt: Stmt) -> list[Buffer]:
    """Buffers of a pipeline, which are allocated directly inside each other."""
    if isinstance(stmt, Alloc) and stmt.buffer.slots > 1:
        return [stmt.buffer, *(b for s in stmt.body for b in _slotted_buffers(s))]
    return []


def _waits(stmt: Stmt) -> bool:
    return isinstance(stmt, Barrier) or (isinstance(stmt, For | If | Alloc) and any(map(_waits, stmt.body)))


def _is_lists(stmt: For | If) -> bool:
    """Does a statement hold steps of the whole block: memory of the block, or loops over threads?"""

    def found(s: Stmt) -> bool:
        if isinstance(s, Alloc) and s.buffer.scope == "block":
            return True
        if isinstance(s, For) and s.kind == "thread":
            return True
        return isinstance(s, For | If | Alloc) and any(map(found, s.body))

    return any(map(found, stmt.body))


def _accesses(stmt: Stmt, blocks: set[str], reads: set[str], writes: set[str]) -> None:
    match stmt:
        case For():
            for inner in stmt.body:
                _accesses(inner, blocks, reads, writes)
        case If():
            _loads(stmt.cond, blocks, reads)
            for inner in stmt.body:
                _accesses(inner, blocks, reads, writes)
        case Alloc():
            for inner in stmt.body:
                _accesses(inner, blocks, reads, writes)
        case Store():
            _loads(stmt.value, blocks, reads)
            for i in stmt.indices:
                _loads(i, blocks, reads)
            if stmt.buffer in blocks:
                writes.add(stmt.buffer)
                if stmt.op:
                    reads.add(stmt.buffer)
        case Invoke():
            for operand, (name, _) in zip(find(stmt.instr).operands, stmt.operands, strict=True):
                if name in blocks:
                    if operand.access != "out":
                        reads.add(name)
                    if operand.access != "in":
                        writes.add(name)


def _loads(e: Expr, blocks: set[str], reads: set[str]) -> None:
    match e:
        case Load():
            if e.buffer in blocks:
                reads.add(e.buffer)
            for i in e.indices:
                _loads(i, blocks, reads)
        case Binary():
            _loads(e.a, blocks, reads)
            _loads(e.b, blocks, reads)
        case Select():
            for x in (e.cond, e.a, e.b):
                _loads(x, blocks, reads)
        case Unary() | Cast():
            _loads(e.a, blocks, reads)


__all__ = ["BarrierError", "threads_of", "with_barriers"]
