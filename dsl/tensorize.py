"""Tensorize: a loop nest that means what an instruction means becomes that instruction.

The nest is matched against the instruction's meaning, statement by statement: loops by extent, loads and stores by the window of
the buffer they cover, arithmetic by structure. A mismatch is a ScheduleError that says what differs.
"""

from __future__ import annotations

from collections.abc import Mapping

from wpk.core.errors import InvalidConfig
from wpk.dsl import affine
from wpk.dsl.affine import Ranges, linear
from wpk.dsl.instr import Instr
from wpk.dsl.ir import Binary, Cast, Const, Expr, For, Invoke, Load, Select, Stmt, Store, Unary, Var

Window = tuple[str, tuple[Expr, ...]]


class MismatchError(InvalidConfig):
    """The loop nest does not compute what the instruction computes."""


def match(body: tuple[Stmt, ...], instr: Instr, ranges: Ranges) -> Invoke:
    """The Invoke that replaces ``body``. Raises MismatchError when the two do not mean the same."""
    found: dict[str, Window] = {}
    _stmts(body, instr.meaning, {}, found, instr, ranges)
    missing = [o.name for o in instr.operands if o.name not in found]
    if missing:
        raise MismatchError(f"{instr.name}: operand {missing[0]} is not read or written by the loops")
    return Invoke(instr.name, tuple(found[o.name] for o in instr.operands))


def _stmts(
    code: tuple[Stmt, ...], meaning: tuple[Stmt, ...], names: Mapping[str, str], found: dict[str, Window],
    instr: Instr, ranges: Ranges,
) -> None:  # fmt: skip
    if len(code) != len(meaning):
        raise MismatchError(f"{instr.name}: {len(meaning)} statements expected, found {len(code)}")
    for have, want in zip(code, meaning, strict=True):
        if isinstance(have, For) and isinstance(want, For):
            if (have.start, have.stop) != (want.start, want.stop):
                raise MismatchError(
                    f"{instr.name}: loop {have.var} does not run over the instruction's {want.var}"
                )
            _stmts(have.body, want.body, {**names, have.var: want.var}, found, instr, ranges)
        elif isinstance(have, Store) and isinstance(want, Store):
            if have.op != want.op:
                raise MismatchError(
                    f"{instr.name}: store with {want.op or '='} expected, found {have.op or '='}"
                )
            _window(have.buffer, have.indices, want.buffer, want.indices, names, found, instr, ranges)
            _expr(have.value, want.value, names, found, instr, ranges)
        else:
            raise MismatchError(f"{instr.name}: {type(want).__name__} expected, found {type(have).__name__}")


def _expr(
    have: Expr, want: Expr, names: Mapping[str, str], found: dict[str, Window], instr: Instr, ranges: Ranges
) -> None:
    match have, want:
        case Load(), Load():
            _window(have.buffer, have.indices, want.buffer, want.indices, names, found, instr, ranges)
        case Binary(op, a, b), Binary(op2, c, d) if op == op2:
            _expr(a, c, names, found, instr, ranges)
            _expr(b, d, names, found, instr, ranges)
        case Unary(op, a), Unary(op2, c) if op == op2:
            _expr(a, c, names, found, instr, ranges)
        case Cast(dtype, a), Cast(dtype2, c) if dtype == dtype2:
            _expr(a, c, names, found, instr, ranges)
        case Select(p, a, b), Select(q, c, d):
            for x, y in ((p, q), (a, c), (b, d)):
                _expr(x, y, names, found, instr, ranges)
        case Const(), Const() if have == want:
            pass
        case _:
            raise MismatchError(f"{instr.name}: {want} expected, found {have}")


def _window(
    buffer: str, indices: tuple[Expr, ...], operand: str, inner: tuple[Expr, ...], names: Mapping[str, str],
    found: dict[str, Window], instr: Instr, ranges: Ranges,
) -> None:  # fmt: skip
    """Record that ``operand`` is a window of ``buffer``: its last dims move with the instruction's loops, the others stand."""
    lead = len(indices) - len(inner)
    if lead < 0:
        raise MismatchError(f"{instr.name}: {buffer} has fewer dimensions than operand {operand}")
    base: list[Expr] = []
    for i, index in enumerate(indices):
        form = linear(index, ranges)
        moving = {
            Var(names[a.name]): c for a, c in form.terms.items() if isinstance(a, Var) and a.name in names
        }
        fixed = {a: c for a, c in form.terms.items() if not (isinstance(a, Var) and a.name in names)}
        want = linear(inner[i - lead], {}).terms if i >= lead else {}
        if moving != want:
            raise MismatchError(
                f"{instr.name}: {buffer} does not advance as operand {operand} does in dimension {i}"
            )
        base.append(affine.Linear(form.const, fixed).expr())
    window = (buffer, tuple(base))
    if found.setdefault(operand, window) != window:
        raise MismatchError(f"{instr.name}: operand {operand} would be two windows")
