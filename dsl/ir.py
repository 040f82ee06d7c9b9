"""The IR grammar: the only place that defines nodes.

    expr   := Const | Var | Load | Binary | Unary | Select | Cast
    stmt   := For | Store | If | Alloc | Prefetch | Invoke | Barrier | Commit | Settle | Fetch
    kernel := name, params (buffers), body (stmts)

A program means what :mod:`wpk.dsl.interp` computes: every loop kind runs its iterations in order there, so `kind` is a
promise that the order does not matter, never part of the meaning. Shapes are static; loop variables are int64.
Buffers are row-major; layouts and packing are shapes. Scopes say where a buffer lives:

    global    a parameter of the kernel
    shared    workspace that all threads see; survives from one parallel loop to the next
    thread    workspace of one thread (cache resident); dead when the parallel iteration ends
    register  named C variables: after unrolling every index but a vector lane is a constant
    block     shared memory of a GPU block: made by all its threads together, read by all of them

On a GPU the scopes ``thread`` and ``register`` belong to one thread and ``shared`` is device memory. Loops are bound to
the device by their kind: ``block.x`` (``y``, ``z``) iterations are blocks, ``thread`` iterations the threads of a block
(``threadIdx.x``). A loop over threads *inside* another one is collective: the sequential
meaning runs it once for each iteration outside, the block's threads run it once together. So its body may use neither
the outer thread's variable nor its registers, and what it makes is the same for all (:mod:`wpk.dsl.verify` sees to it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scope = Literal["global", "shared", "thread", "register", "block"]
LoopKind = Literal["serial", "parallel", "unroll", "vector", "block.x", "block.y", "block.z", "thread", "ring"]

#: loops over the blocks of a grid
BLOCK_KINDS = ("block.x", "block.y", "block.z")

#: floor division and modulo; comparisons and and/or give bool
BINARY_OPS = ("+", "-", "*", "/", "//", "%", "min", "max", "pow", "<", "<=", "==", "and", "or")
UNARY_OPS = ("neg", "abs", "exp", "log", "sqrt", "rsqrt", "recip", "erf", "tanh", "sigmoid", "floor", "ceil", "not")
#: how a Store combines with what is there; "" overwrites
REDUCE_OPS = ("", "+", "max", "min")


class Expr:
    """Base of expressions; supplies the operators that let algorithms be written as maths."""

    __slots__ = ()

    def __add__(self, other: Operand) -> Binary:
        return Binary("+", self, wrap(other))

    def __radd__(self, other: Operand) -> Binary:
        return Binary("+", wrap(other), self)

    def __sub__(self, other: Operand) -> Binary:
        return Binary("-", self, wrap(other))

    def __rsub__(self, other: Operand) -> Binary:
        return Binary("-", wrap(other), self)

    def __mul__(self, other: Operand) -> Binary:
        return Binary("*", self, wrap(other))

    def __rmul__(self, other: Operand) -> Binary:
        return Binary("*", wrap(other), self)

    def __truediv__(self, other: Operand) -> Binary:
        return Binary("/", self, wrap(other))

    def __floordiv__(self, other: Operand) -> Binary:
        return Binary("//", self, wrap(other))

    def __mod__(self, other: Operand) -> Binary:
        return Binary("%", self, wrap(other))

    def __lt__(self, other: Operand) -> Binary:
        return Binary("<", self, wrap(other))

    def __le__(self, other: Operand) -> Binary:
        return Binary("<=", self, wrap(other))

    def eq(self, other: Operand) -> Binary:
        """The comparison ``self == other`` (``==`` itself compares trees)."""
        return Binary("==", self, wrap(other))

    def __and__(self, other: Operand) -> Binary:
        return Binary("and", self, wrap(other))


@dataclass(frozen=True, slots=True)
class Const(Expr):
    """A literal; dtype ``int64``, ``bool`` or a float dtype."""

    value: float | int | bool
    dtype: str = "int64"


@dataclass(frozen=True, slots=True)
class Var(Expr):
    """A loop variable (int64)."""

    name: str


@dataclass(frozen=True, slots=True)
class Load(Expr):
    """An element of a buffer. In a Stage's value, ``buffer`` may name another stage or a parameter."""

    buffer: str
    indices: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Binary(Expr):
    """``a op b`` with op of BINARY_OPS."""

    op: str
    a: Expr
    b: Expr


@dataclass(frozen=True, slots=True)
class Unary(Expr):
    """``op(a)`` with op of UNARY_OPS."""

    op: str
    a: Expr


@dataclass(frozen=True, slots=True)
class Select(Expr):
    """``a`` where ``cond`` else ``b``. Loads in the arm not taken are not performed."""

    cond: Expr
    a: Expr
    b: Expr


@dataclass(frozen=True, slots=True)
class Cast(Expr):
    """``a`` converted to ``dtype``."""

    dtype: str
    a: Expr


Operand = Expr | int | float


def wrap(value: Operand) -> Expr:
    """A Python number as a Const: ints become int64, floats float32."""
    if isinstance(value, Expr):
        return value
    return Const(value, "float32") if isinstance(value, float) else Const(value)


@dataclass(frozen=True, slots=True)
class Buffer:
    """Storage: dtype, static row-major shape, scope. ``values`` (flat) makes it a constant table, foldable when unrolled.

    ``access`` of a global buffer is ``in`` or ``out``. With ``slots`` > 1 the first dimension counts what a pipeline has under
    way: it is written that many iterations ahead, and the pipeline's own barriers keep writers and readers apart.
    ``swizzle`` says where elements of a block buffer really lie, without changing what they are: rows of 32, 64 or 128 bytes
    whose 16-byte pieces are exchanged, so that a column of them spreads over all banks (byte address bits 4… ^= bits 7…).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    scope: Scope = "global"
    access: Literal["in", "out"] = "in"
    values: tuple[float, ...] | None = None
    slots: int = 1
    swizzle: int = 0


@dataclass(frozen=True, slots=True)
class For:
    """``for var in start..stop-1``. Extents of unroll and vector loops are constants.

    ``vector``: the body's innermost work runs as lanes; ``stop - start`` is the number of lanes. ``parallel``: iterations
    are divided among threads in chunks of ``grain``; parallel loops are outermost (after Allocs) and never nest. The
    ``grain`` of a block loop is the number of blocks that one multiprocessor shall have room for (registers are cut to fit).
    ``ring``: a serial loop whose fetches, which stand first in its body, are made by threads of the block that do nothing else,
    up to ``grain`` iterations ahead of where all others are done.
    """

    var: str
    start: Expr
    stop: Expr
    kind: LoopKind
    body: tuple[Stmt, ...]
    grain: int = 1


@dataclass(frozen=True, slots=True)
class Store:
    """``buffer[indices] = value``, or ``op=`` when ``op`` is set.

    ``ahead``: nobody reads it before a Barrier that waits for its group (:class:`Commit`), so it may be under way until then.
    """

    buffer: str
    indices: tuple[Expr, ...]
    value: Expr
    op: str = ""
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class If:
    """``body`` runs where ``cond`` holds."""

    cond: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Alloc:
    """``buffer`` (of any scope but global, or a constant table) exists inside ``body``; its content starts undefined."""

    buffer: Buffer
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Prefetch:
    """A hint without meaning: the cache line of ``buffer[indices]`` will be wanted. Out-of-range indices are harmless."""

    buffer: str
    indices: tuple[Expr, ...]
    locality: int = 3
    write: bool = False


@dataclass(frozen=True, slots=True)
class Invoke:
    """One hardware instruction of :mod:`wpk.dsl.instr` on windows: each operand is (buffer, index of its first element)."""

    instr: str
    operands: tuple[tuple[str, tuple[Expr, ...]], ...]


@dataclass(frozen=True, slots=True)
class Barrier:
    """All threads of a block wait for each other (GPU); nothing on a CPU, where parallel loops end in a barrier.

    ``wait``: each first waits until all but its last so many groups of stores ahead are done.
    """

    wait: int | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """The thread's stores ahead since the last one are a group."""


@dataclass(frozen=True, slots=True)
class Settle:
    """The thread waits until all but the last ``left`` of its instructions that run ahead are done (``Instr.ahead``)."""

    left: int = 0


@dataclass(frozen=True, slots=True)
class Side:
    """``count`` elements of a box: by ``stride`` along a dimension of source, by ``step`` along one of buffer."""

    buffer: int
    source: int
    count: int
    step: int = 1
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Fetch:
    """A box of ``source`` goes to ``buffer`` at once: ``buffer[indices + i] = source[origin + i]``, 0 where source ends.

    ``box`` has a side for each extent, slowest first; along all other dimensions the box is one element. ``sizes`` is the shape
    of source, ``dtype`` that of both.
    """

    buffer: str
    indices: tuple[Expr, ...]
    source: str
    origin: tuple[Expr, ...]
    box: tuple[Side, ...]
    sizes: tuple[int, ...]
    dtype: str


Stmt = For | Store | If | Alloc | Prefetch | Invoke | Barrier | Commit | Settle | Fetch


@dataclass(frozen=True, slots=True)
class Kernel:
    """A whole kernel: parameters in argument order, body, and the ISA it is emitted for."""

    name: str
    params: tuple[Buffer, ...]
    body: tuple[Stmt, ...]
