"""Hardware instructions: name → (operands, meaning in the IR, text template). The meaning is what the interpreter runs.

An operand is a window on a buffer: a window of rank r covers, from the index given in the :class:`Invoke`, the last r
dimensions of that buffer. The template sees each operand by its kind: ``vector`` as a vector value (assignable when it
is written), ``scalar`` as one element, ``pointer`` as the address of the first element.

On a GPU the meaning is that of one thread, while the hardware runs the instruction for a warp. So an operand of kind ``warp`` is
a tile in shared memory that the warp's threads read together, each from its own place: ``lanes`` says where. Its text
is the tile's: ``{a}`` the address of the row where lane 0 begins, ``{a_at}`` its first column, ``{a_row}`` the elements of a
row in memory, ``{a_swizzle}`` the bytes of its swizzle. An operand of kind ``group`` is the same for a warpgroup, whose 128
threads are its lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from wpk.core.errors import InternalError
from wpk.dsl.ir import Alloc, Barrier, Binary, Expr, For, If, Invoke, Stmt, Store, Var
from wpk.dsl.rewrite import Rewrite

OperandKind = Literal["vector", "scalar", "pointer", "warp", "group"]
Access = Literal["in", "out", "inout"]
#: lane // a % b * c, added up over the (a, b, c) of a dimension
Lanes = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Operand:
    """One window: its name in the meaning and the template, shape, element dtype, how it is used and printed."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    access: Access = "in"
    kind: OperandKind = "vector"
    lanes: tuple[Lanes, ...] = ()  # for each dimension where the lane's window begins


@dataclass(frozen=True)
class Instr:
    """An instruction. ``meaning`` is IR over the operands' names; ``template`` is a C statement with ``{operand}`` fields.

    ``features``: CPU flags (as Linux names them) that it needs beyond the ISA's own. ``helper`` is printed once, in front of what
    uses the instruction. ``ahead``: it reads and writes until a :class:`wpk.dsl.ir.Settle` waits for it.
    """

    name: str
    isa: str
    operands: tuple[Operand, ...]
    meaning: tuple[Stmt, ...]
    template: str
    features: tuple[str, ...] = ()
    helper: str = ""
    ahead: bool = False


_REGISTRY: dict[str, Instr] = {}


def register(instr: Instr) -> Instr:
    """Make an instruction known by its name. Raises InternalError when another one has that name."""
    if _REGISTRY.setdefault(instr.name, instr) != instr:
        raise InternalError(f"two instructions are named {instr.name}")
    return instr


def find(name: str) -> Instr:
    """The instruction ``name``. Raises InternalError when none is registered."""
    if name not in _REGISTRY:
        raise InternalError(f"unknown instruction {name}; registered: {', '.join(sorted(_REGISTRY)) or 'none'}")
    return _REGISTRY[name]


def instructions(isa: str) -> tuple[Instr, ...]:
    """All registered instructions of an ISA, by name."""
    return tuple(i for _, i in sorted(_REGISTRY.items()) if i.isa == isa)


def expand(invoke: Invoke) -> tuple[Stmt, ...]:
    """An Invoke as the statements it means, over the invoked buffers. Raises InternalError on an operand mismatch."""
    instr = find(invoke.instr)
    if len(invoke.operands) != len(instr.operands):
        raise InternalError(
            f"{instr.name} takes {len(instr.operands)} operands, found {len(invoke.operands)}"
        )
    windows = {o.name: (o, buffer, at) for o, (buffer, at) in zip(instr.operands, invoke.operands, strict=True)}

    def moved(buffer: str, indices: tuple[Expr, ...]) -> tuple[str, tuple[Expr, ...]]:
        if buffer not in windows:
            return buffer, indices
        operand, actual, at = windows[buffer]
        rank, lead = len(operand.shape), len(at) - len(operand.shape)
        if lead < 0:
            raise InternalError(f"{instr.name}: {actual} has fewer dimensions than operand {operand.name}")
        tail = tuple(Binary("+", base, i) for base, i in zip(at[lead:], indices, strict=True)) if rank else ()
        return actual, at[:lead] + tail

    known = (For, Store, If, Alloc, Barrier)
    if any(not isinstance(s, known) for s in _statements(instr.meaning)):
        raise InternalError("an instruction's meaning holds loops, stores, ifs and allocs only")
    prefix = f"{instr.name}_"
    return Rewrite(lambda name: Var(prefix + name), moved, lambda name: prefix + name).body(instr.meaning)


def _statements(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    for stmt in body:
        yield stmt
        if isinstance(stmt, For | If | Alloc):
            yield from _statements(stmt.body)
