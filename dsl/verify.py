"""The rules every kernel obeys, checked after lowering: a broken rule is a bug of wpk, never of a user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import prod

from wpk.core.errors import InternalError
from wpk.core.tensor import DTYPE_BYTES
from wpk.dsl.affine import linear
from wpk.dsl.fetch import expand as expand_fetch
from wpk.dsl.instr import expand
from wpk.dsl.ir import (
    BINARY_OPS,
    BLOCK_KINDS,
    REDUCE_OPS,
    UNARY_OPS,
    Alloc,
    Barrier,
    Binary,
    Buffer,
    Cast,
    Commit,
    Const,
    Expr,
    Fetch,
    For,
    If,
    Invoke,
    Kernel,
    Load,
    Prefetch,
    Select,
    Settle,
    Stmt,
    Store,
    Unary,
    Var,
)

#: threads of a block
MAX_THREADS = 1024

_COMPARISONS = ("<", "<=", "==")
_KINDS = ("serial", "parallel", "unroll", "vector", *BLOCK_KINDS, "thread", "ring")
_SCOPES = ("global", "shared", "thread", "register", "block")
_PRIVATE = ("thread", "register")


def verify(kernel: Kernel) -> None:
    """Raise InternalError, naming the kernel and what is wrong, unless ``kernel`` keeps all the rules:

    names are defined before use and hide nothing; index counts match; operators, dtypes, scopes and instructions are
    known; inputs and constant tables are never stored to; parallel loops stand outermost, under Allocs of shared buffers or
    tables only; unroll and vector loops have constant bounds, vector loops a power of two of lanes; registers are indexed
    by unrolled variables, and by a vector lane in the last dimension (on a GPU in any). Block and thread loops start at 0 and
    have constant bounds; block loops are outermost; what runs inside a second loop over threads knows nothing of the first one's
    thread.
    """
    try:
        _Verifier().kernel(kernel)
    except InternalError as error:
        raise InternalError(f"kernel {kernel.name}: {error}") from None


class _Verifier:
    """What is in scope at the statement being checked."""

    def __init__(self) -> None:
        self.buffers: dict[str, Buffer] = {}
        self.loops: dict[str, str] = {}  # variable -> kind; serial loops of one iteration count as unrolled
        self.private: set[str] = set()  # registers allocated inside the current vector loop
        self.outermost = True
        self.foreign: set[str] = set()  # variables and buffers of an outer thread, which all threads together cannot know

    def kernel(self, kernel: Kernel) -> None:
        names = [p.name for p in kernel.params]
        if len(set(names)) < len(names):
            raise InternalError(f"two parameters have one name among {names}")
        for p in kernel.params:
            self.buffer(p)
            if p.scope != "global":
                raise InternalError(f"parameter {p.name} has scope {p.scope}, expected global")
            self.buffers[p.name] = p
        self.body(kernel.body)

    def buffer(self, b: Buffer) -> None:
        if b.dtype not in DTYPE_BYTES:
            raise InternalError(f"buffer {b.name} has unknown dtype {b.dtype}")
        if b.scope not in _SCOPES or b.access not in ("in", "out"):
            raise InternalError(f"buffer {b.name} has unknown scope {b.scope} or access {b.access}")
        if any(n < 1 for n in b.shape):
            raise InternalError(f"buffer {b.name} has shape {b.shape}, expected positive extents")
        if b.swizzle and (b.scope != "block" or b.shape[-1] * DTYPE_BYTES[b.dtype] != b.swizzle):
            raise InternalError(f"buffer {b.name} of shape {b.shape} cannot have a swizzle of {b.swizzle} bytes")
        if b.slots > 1 and (b.scope != "block" or not b.shape or b.shape[0] != b.slots):
            raise InternalError(f"buffer {b.name} of shape {b.shape} cannot have {b.slots} slots")
        if b.values is not None and len(b.values) != prod(b.shape):
            raise InternalError(f"table {b.name} has {len(b.values)} values for shape {b.shape}")

    def body(self, stmts: tuple[Stmt, ...]) -> None:
        for stmt in stmts:
            self.stmt(stmt)

    def stmt(self, stmt: Stmt) -> None:
        match stmt:
            case For():
                self.loop(stmt)
            case Store():
                self.store(stmt)
            case If():
                self.condition(stmt.cond)
                with self.inside():
                    self.body(stmt.body)
            case Alloc():
                self.alloc(stmt)
            case Prefetch():
                self.indices(stmt.buffer, stmt.indices, hint=True)
            case Invoke():
                self.invoke(stmt)
            case Fetch():
                self.fetch(stmt)
            case Barrier() | Commit() | Settle():
                pass
            case _:
                raise InternalError(f"unknown statement {type(stmt).__name__}")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Parallel loops may not stand in here."""
        outer, self.outermost = self.outermost, False
        yield
        self.outermost = outer

    # -- loops ----------------------------------------------------------------------------------------------------------

    def loop(self, loop: For) -> None:
        if loop.var in self.loops:
            raise InternalError(f"loop variable {loop.var} hides another one")
        self.index(loop.start)
        self.index(loop.stop)
        kind = self.kind(loop)
        foreign = set(self.foreign)
        if kind == "thread":
            self.foreign |= {v for v, k in self.loops.items() if k == "thread"}
            if self.foreign:
                self.foreign |= {n for n, b in self.buffers.items() if b.scope in _PRIVATE and b.values is None}
        self.loops[loop.var] = kind
        with nullcontext() if kind in BLOCK_KINDS else self.inside():
            self.body(loop.body)
        del self.loops[loop.var]
        self.foreign = foreign
        if kind == "vector":
            self.private.clear()

    def kind(self, loop: For) -> str:
        """The loop's kind, its bounds checked; a single iteration counts as unrolled."""
        if loop.kind not in _KINDS:
            raise InternalError(f"loop {loop.var} has unknown kind {loop.kind}")
        start, stop = linear(loop.start, {}), linear(loop.stop, {})
        fixed = start.is_const and stop.is_const
        if loop.kind == "parallel" or loop.kind in BLOCK_KINDS:
            self.parallel(loop, fixed)
        elif loop.kind == "thread":
            self.threads(loop, fixed, stop.const)
        elif loop.kind == "ring":
            self.ring(loop)
        elif loop.kind == "serial":
            return "unroll" if fixed and stop.const - start.const <= 1 else "serial"
        elif not fixed and not self.unrolled(loop.start, loop.stop):
            raise InternalError(f"{loop.kind} loop {loop.var} has no constant bounds")
        elif loop.kind == "vector":
            lanes = stop.plus(start, -1).const
            if lanes < 1 or lanes & (lanes - 1):
                raise InternalError(f"vector loop {loop.var} has {lanes} lanes, expected a power of two")
            if "vector" in self.loops.values():
                raise InternalError(f"vector loop {loop.var} is inside another vector loop")
        return loop.kind

    def parallel(self, loop: For, fixed: bool) -> None:
        if not self.outermost:
            raise InternalError(f"parallel loop {loop.var} is not outermost")
        if not fixed or loop.grain < 1:
            raise InternalError(f"parallel loop {loop.var} needs constant bounds and a grain of at least 1")
        if loop.kind in BLOCK_KINDS and (linear(loop.start, {}).const != 0 or loop.kind in self.loops.values()):
            raise InternalError(f"{loop.kind} loop {loop.var} does not start at 0, or is inside another one")

    def ring(self, loop: For) -> None:
        """Blocks and their threads stand around a ring, and nothing else: one warp must run it alone."""
        if set(self.loops.values()) - {*BLOCK_KINDS, "thread", "unroll"} or loop.grain < 1:
            raise InternalError(f"ring {loop.var} of {loop.grain} slots is inside {self.loops}")

    def threads(self, loop: For, fixed: bool, count: int) -> None:
        if not fixed or linear(loop.start, {}).const != 0:
            raise InternalError(f"{loop.kind} loop {loop.var} needs constant bounds from 0")
        if count > MAX_THREADS:
            raise InternalError(f"{loop.kind} loop {loop.var} has {count} iterations: a block has {MAX_THREADS} threads")

    def unrolled(self, *exprs: Expr) -> bool:
        """Are all variables of the expressions unrolled?"""
        return all(self.loops.get(v) == "unroll" for e in exprs for v in _variables(e))

    # -- storage ----------------------------------------------------------------------------------------------------------

    def alloc(self, stmt: Alloc) -> None:
        b = stmt.buffer
        self.buffer(b)
        if b.name in self.buffers:
            raise InternalError(f"buffer {b.name} hides another one")
        table = b.values is not None
        if b.scope == "global" and not table:
            raise InternalError(f"global buffer {b.name} is allocated; expected shared, thread or register")
        if b.scope == "shared" and not {"parallel", "thread", *BLOCK_KINDS}.isdisjoint(self.loops.values()):
            raise InternalError(f"shared buffer {b.name} is allocated inside a parallel loop")
        if b.scope == "register" and "vector" in self.loops.values():
            self.private.add(b.name)
        self.buffers[b.name] = b
        if table or b.scope == "shared":
            self.body(stmt.body)
        else:
            with self.inside():
                self.body(stmt.body)
        del self.buffers[b.name]

    def store(self, s: Store) -> None:
        self.indices(s.buffer, s.indices)
        b = self.buffers[s.buffer]
        if b.values is not None or (b.scope == "global" and b.access == "in"):
            raise InternalError(f"{b.name} is stored to, but is an input or a constant table")
        if s.op not in REDUCE_OPS:
            raise InternalError(f"store to {b.name} combines with unknown operator {s.op}")
        if s.ahead and (b.slots == 1 or s.op):
            raise InternalError(f"store ahead to {b.name}, which has no slots for it, or that combines")
        self.expr(s.value)

    def invoke(self, stmt: Invoke) -> None:
        for name, indices in stmt.operands:
            self.indices(name, indices)
        for meant in expand(stmt):
            self.stmt(meant)

    def fetch(self, stmt: Fetch) -> None:
        self.indices(stmt.buffer, stmt.indices)
        self.indices(stmt.source, stmt.origin)
        to, of = self.buffers[stmt.buffer], self.buffers[stmt.source]
        if to.scope != "block" or of.scope not in ("global", "shared") or to.dtype != stmt.dtype or of.dtype != stmt.dtype:
            raise InternalError(f"fetch of {of.name} ({of.scope}, {of.dtype}) to {to.name} ({to.scope}, {to.dtype})")
        if of.shape != stmt.sizes or "ring" not in self.loops.values():
            raise InternalError(f"fetch of {of.name}, whose shape is not {stmt.sizes}, or outside of a ring")
        for meant in expand_fetch(stmt):
            self.stmt(meant)

    def indices(self, name: str, indices: tuple[Expr, ...], hint: bool = False) -> None:
        if name not in self.buffers:
            raise InternalError(f"buffer {name} is used outside its scope")
        if name in self.foreign:
            raise InternalError(f"buffer {name} of one thread is used by all threads of the block together")
        b = self.buffers[name]
        if len(indices) != len(b.shape):
            raise InternalError(f"{name} has {len(b.shape)} dimensions, found {len(indices)} indices")
        for d, index in enumerate(indices):
            self.index(index)
            if b.scope == "register" and b.values is None and not hint:
                self.register_index(b, d, index)

    def register_index(self, b: Buffer, d: int, index: Expr) -> None:
        last = d == len(b.shape) - 1
        for v in _variables(index):
            kind = self.loops.get(v)
            scalars = "thread" in self.loops.values()  # a GPU's lanes are printed one by one
            lane = kind == "vector" and (last or scalars) and b.name not in self.private
            if kind != "unroll" and not lane:
                raise InternalError(f"register {b.name} is indexed by {v} ({kind}) in dimension {d}, expected unrolled loops")

    # -- expressions --------------------------------------------------------------------------------------------------------

    def index(self, e: Expr) -> None:
        self.expr(e)
        if not self.integer(e):
            raise InternalError(f"index {e} is not an integer")

    def integer(self, e: Expr) -> bool:
        match e:
            case Const():
                return e.dtype == "int64"
            case Load():
                return "int" in self.buffers[e.buffer].dtype
            case Cast():
                return "int" in e.dtype
            case Binary():
                arithmetic = e.op not in _COMPARISONS and e.op not in ("and", "or", "/", "pow")
                return arithmetic and self.integer(e.a) and self.integer(e.b)
            case Unary():
                return e.op in ("neg", "abs") and self.integer(e.a)
            case Select():
                return self.integer(e.a) and self.integer(e.b)
        return isinstance(e, Var)

    def condition(self, e: Expr) -> None:
        self.expr(e)
        if not self.boolean(e):
            raise InternalError(f"condition {e} is not a bool")

    def boolean(self, e: Expr) -> bool:
        match e:
            case Const() | Cast():
                return e.dtype == "bool"
            case Load():
                return self.buffers[e.buffer].dtype == "bool"
            case Binary():
                return e.op in _COMPARISONS or e.op in ("and", "or")
            case Unary():
                return e.op == "not"
            case Select():
                return self.boolean(e.a) and self.boolean(e.b)
        return False

    def expr(self, e: Expr) -> None:
        match e:
            case Const() | Cast() if e.dtype not in DTYPE_BYTES:
                raise InternalError(f"unknown dtype {e.dtype} in {e}")
            case Const():
                pass
            case Var():
                if e.name not in self.loops:
                    raise InternalError(f"variable {e.name} is used outside its loop")
                if e.name in self.foreign:
                    raise InternalError(f"variable {e.name} of one thread is used by all threads of the block together")
            case Load():
                self.indices(e.buffer, e.indices)
            case Binary():
                self.known(e.op, BINARY_OPS)
                self.expr(e.a)
                self.expr(e.b)
                if e.op in ("and", "or"):
                    self.condition(e.a)
                    self.condition(e.b)
            case Unary():
                self.known(e.op, UNARY_OPS)
                (self.condition if e.op == "not" else self.expr)(e.a)
            case Select():
                self.condition(e.cond)
                self.expr(e.a)
                self.expr(e.b)
            case Cast():
                self.expr(e.a)
            case _:
                raise InternalError(f"unknown expression {type(e).__name__}")

    def known(self, op: str, ops: tuple[str, ...]) -> None:
        if op not in ops:
            raise InternalError(f"unknown operator {op}")


def _variables(e: Expr) -> Iterator[str]:
    match e:
        case Var():
            yield e.name
        case Load():
            for i in e.indices:
                yield from _variables(i)
        case Binary():
            yield from _variables(e.a)
            yield from _variables(e.b)
        case Select():
            for x in (e.cond, e.a, e.b):
                yield from _variables(x)
        case Unary() | Cast():
            yield from _variables(e.a)
