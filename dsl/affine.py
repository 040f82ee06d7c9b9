"""Integer index arithmetic: linear forms, intervals, simplification.

A linear form is ``const + sum(coefficient * atom)``; an atom is a loop variable or an expression that is not linear
(``a // c``, ``a % c``, ``min``). Simplification knows the range of every variable, so ``(4*i + j) // 4`` is ``i`` where
``0 <= j < 4``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

from wpk.dsl.ir import Binary, Cast, Const, Expr, Load, Select, Unary, Var

#: variable name -> (least, greatest) value
Ranges = Mapping[str, tuple[int, int]]
Terms = dict[Expr, int]

TRUE = Const(True, "bool")
FALSE = Const(False, "bool")


@dataclass(slots=True)
class Linear:
    """``const + sum(terms[atom] * atom)``; no coefficient is zero."""

    const: int
    terms: Terms

    def plus(self, other: Linear, factor: int = 1) -> Linear:
        """``self + factor * other``."""
        terms = dict(self.terms)
        for atom, c in other.terms.items():
            total = terms.get(atom, 0) + factor * c
            if total:
                terms[atom] = total
            else:
                terms.pop(atom, None)
        return Linear(self.const + factor * other.const, terms)

    def times(self, factor: int) -> Linear:
        """``factor * self``."""
        if factor == 0:
            return Linear(0, {})
        return Linear(self.const * factor, {a: c * factor for a, c in self.terms.items()})

    @property
    def is_const(self) -> bool:
        """True when no atom is left."""
        return not self.terms

    def expr(self) -> Expr:
        """The form as an expression, terms in order of first appearance, the constant last."""
        total: Expr | None = None
        for atom, c in self.terms.items():
            term = atom if c in (1, -1) else Binary("*", atom, Const(abs(c)))
            if total is None:
                total = term if c > 0 else Binary("*", atom, Const(c))
            else:
                total = Binary("+" if c > 0 else "-", total, term)
        if total is None:
            return Const(self.const)
        if self.const:
            return Binary("+" if self.const > 0 else "-", total, Const(abs(self.const)))
        return total


def interval(form: Linear, ranges: Ranges) -> tuple[int, int] | None:
    """The least and greatest value of a form, or None when a variable has no range."""
    lo = hi = form.const
    for atom, c in form.terms.items():
        span = _atom_interval(atom, ranges)
        if span is None:
            return None
        a, b = span[0] * c, span[1] * c
        lo, hi = lo + min(a, b), hi + max(a, b)
    return lo, hi


def _atom_interval(atom: Expr, ranges: Ranges) -> tuple[int, int] | None:
    if isinstance(atom, Var):
        return ranges.get(atom.name)
    if not isinstance(atom, Binary) or atom.op not in ("//", "%", "min", "max", "^"):
        return None
    a = interval(linear(atom.a, ranges), ranges)
    b = interval(linear(atom.b, ranges), ranges)
    if b is None:
        return None
    if atom.op == "%":
        return (0, b[0] - 1) if b[0] == b[1] else None
    if a is None:
        return None
    if atom.op == "^":  # bits of an address, of printers only: no operator of the IR
        return (0, (1 << max(a[1], b[1]).bit_length()) - 1) if min(a[0], b[0]) >= 0 else None
    if atom.op == "//":
        return (a[0] // b[0], a[1] // b[0]) if b[0] == b[1] else None
    pick = min if atom.op == "min" else max
    return pick(a[0], b[0]), pick(a[1], b[1])


def linear(expr: Expr, ranges: Ranges) -> Linear:
    """The simplified linear form of an integer expression."""
    if isinstance(expr, Const):
        return Linear(int(expr.value), {})
    if isinstance(expr, Var):
        span = ranges.get(expr.name)
        return Linear(span[0], {}) if span and span[0] == span[1] else Linear(0, {expr: 1})
    if isinstance(expr, Binary):
        return _linear_binary(expr, ranges)
    return Linear(0, {value(expr, ranges): 1})


def _linear_binary(expr: Binary, ranges: Ranges) -> Linear:
    a, b = linear(expr.a, ranges), linear(expr.b, ranges)
    match expr.op:
        case "+":
            return _rejoined(a.plus(b))
        case "-":
            return a.plus(b, -1)
        case "*" if b.is_const:
            return a.times(b.const)
        case "*" if a.is_const:
            return b.times(a.const)
        case "//" if b.is_const and b.const > 0:
            return _divide(a, b.const, ranges)
        case "%" if b.is_const and b.const > 0:
            return _modulo(a, b.const, ranges)
        case "min" | "max":
            return _extreme(expr.op, a, b, ranges)
        case "^" if a.is_const and b.is_const:
            return Linear(a.const ^ b.const, {})
        case "^" if b.is_const and b.const == 0:
            return a
    return Linear(0, {Binary(expr.op, a.expr(), b.expr()): 1})


def _rejoined(form: Linear) -> Linear:
    """``c * (x // c) + x % c`` as x, times any factor."""
    for atom, k in form.terms.items():
        if not isinstance(atom, Binary) or atom.op != "%" or not isinstance(atom.b, Const):
            continue
        above = Binary("//", atom.a, atom.b)
        if form.terms.get(above) == k * int(atom.b.value):
            rest = Linear(form.const, {a: c for a, c in form.terms.items() if a not in (atom, above)})
            return _rejoined(rest.plus(linear(atom.a, {}), k))
    return form


def _parts(form: Linear, c: int) -> tuple[Linear, Linear]:
    """``form = c * whole + rest`` with every term that divides in whole."""
    whole = Linear(form.const // c, {a: k // c for a, k in form.terms.items() if k % c == 0})
    rest = Linear(form.const % c, {a: k for a, k in form.terms.items() if k % c})
    return whole, rest


def _divide(form: Linear, c: int, ranges: Ranges) -> Linear:
    if c == 1:
        return form
    whole, rest = _parts(form, c)
    span = interval(rest, ranges)
    if span and span[0] // c == span[1] // c:
        return Linear(whole.const + span[0] // c, whole.terms)
    coarse = _coarse(rest, c, ranges)
    if coarse:
        return whole.plus(_divide(coarse[1], c // coarse[0], ranges))
    return whole.plus(Linear(0, {Binary("//", rest.expr(), Const(c)): 1}))


def _coarse(form: Linear, c: int, ranges: Ranges) -> tuple[int, Linear, Linear] | None:
    """``form = g * steps + fine`` with g a divisor of c and ``0 <= fine < g``: then form // c is steps // (c / g)."""
    for g in sorted({gcd(k, c) for k in form.terms.values()} - {1}, reverse=True):
        steps, fine = _parts(form, g)
        span = interval(fine, ranges)
        if steps.terms and span and span[0] >= 0 and span[1] < g:
            return g, steps, fine
    return None


def _modulo(form: Linear, c: int, ranges: Ranges) -> Linear:
    if c == 1:
        return Linear(0, {})
    _, rest = _parts(form, c)
    span = interval(rest, ranges)
    if span and span[0] // c == span[1] // c:
        return Linear(rest.const - c * (span[0] // c), rest.terms)
    coarse = _coarse(rest, c, ranges)
    if coarse:
        g, steps, fine = coarse
        return fine.plus(_modulo(steps, c // g, ranges), g)
    return Linear(0, {Binary("%", rest.expr(), Const(c)): 1})


def _extreme(op: str, a: Linear, b: Linear, ranges: Ranges) -> Linear:
    span = interval(a.plus(b, -1), ranges)
    if span and span[1] <= 0:
        return a if op == "min" else b
    if span and span[0] >= 0:
        return b if op == "min" else a
    return Linear(0, {Binary(op, a.expr(), b.expr()): 1})


def index(expr: Expr, ranges: Ranges) -> Expr:
    """An integer expression, simplified."""
    return linear(expr, ranges).expr()


def condition(expr: Expr, ranges: Ranges) -> Expr:
    """A condition, simplified; Const bool when the ranges decide it."""
    if isinstance(expr, Binary):
        if expr.op in ("and", "or"):
            return _connective(expr.op, condition(expr.a, ranges), condition(expr.b, ranges))
        if expr.op in ("<", "<=", "=="):
            return _comparison(expr, ranges)
    if isinstance(expr, Unary) and expr.op == "not":
        inner = condition(expr.a, ranges)
        return Const(not inner.value, "bool") if isinstance(inner, Const) else Unary("not", inner)
    return expr


def _connective(op: str, a: Expr, b: Expr) -> Expr:
    absorbing = op == "or"
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Const):
            return Const(absorbing, "bool") if bool(one.value) == absorbing else other
    return Binary(op, a, b)


def _comparison(expr: Binary, ranges: Ranges) -> Expr:
    if not is_integer(expr.a) or not is_integer(expr.b):
        return Binary(expr.op, value(expr.a, ranges), value(expr.b, ranges))
    difference = linear(expr.a, ranges).plus(linear(expr.b, ranges), -1)
    span = interval(difference, ranges)
    if span:
        lo, hi = span
        if expr.op == "<" and (hi < 0 or lo >= 0):
            return Const(hi < 0, "bool")
        if expr.op == "<=" and (hi <= 0 or lo > 0):
            return Const(hi <= 0, "bool")
        if expr.op == "==" and (lo == hi == 0 or hi < 0 or lo > 0):
            return Const(lo == hi == 0, "bool")
    return Binary(expr.op, linear(expr.a, ranges).expr(), linear(expr.b, ranges).expr())


def is_integer(expr: Expr) -> bool:
    """True when an expression is index arithmetic: variables and int64 constants only."""
    if isinstance(expr, Const):
        return expr.dtype == "int64"
    if isinstance(expr, Binary):
        return is_integer(expr.a) and is_integer(expr.b)
    return isinstance(expr, Var)


def value(expr: Expr, ranges: Ranges) -> Expr:
    """Any expression with its indices and conditions simplified; decided Selects lose the dead arm."""
    if isinstance(expr, Load):
        return Load(expr.buffer, tuple(index(i, ranges) for i in expr.indices))
    if isinstance(expr, Select):
        cond = condition(expr.cond, ranges)
        if isinstance(cond, Const):
            return value(expr.a if cond.value else expr.b, ranges)
        return Select(cond, value(expr.a, ranges), value(expr.b, ranges))
    if isinstance(expr, Binary):
        if is_integer(expr):
            return index(expr, ranges)
        if expr.op in ("and", "or", "<", "<=", "=="):
            return condition(expr, ranges)
        return Binary(expr.op, value(expr.a, ranges), value(expr.b, ranges))
    if isinstance(expr, Unary):
        return Unary(expr.op, value(expr.a, ranges))
    if isinstance(expr, Cast):
        return Cast(expr.dtype, value(expr.a, ranges))
    return expr


def substitute(expr: Expr, env: Mapping[str, Expr]) -> Expr:
    """Replace variables by expressions; nothing is simplified."""
    if isinstance(expr, Var):
        return env.get(expr.name, expr)
    if isinstance(expr, Const):
        return expr
    if isinstance(expr, Load):
        return Load(expr.buffer, tuple(substitute(i, env) for i in expr.indices))
    if isinstance(expr, Binary):
        return Binary(expr.op, substitute(expr.a, env), substitute(expr.b, env))
    if isinstance(expr, Select):
        return Select(substitute(expr.cond, env), substitute(expr.a, env), substitute(expr.b, env))
    if isinstance(expr, Unary):
        return Unary(expr.op, substitute(expr.a, env))
    if isinstance(expr, Cast):
        return Cast(expr.dtype, substitute(expr.a, env))
    raise TypeError(f"not an expression: {expr!r}")


def loads(expr: Expr) -> list[Load]:
    """Every Load in an expression, in order."""
    if isinstance(expr, Load):
        return [expr, *(x for i in expr.indices for x in loads(i))]
    if isinstance(expr, Binary):
        return loads(expr.a) + loads(expr.b)
    if isinstance(expr, Select):
        return loads(expr.cond) + loads(expr.a) + loads(expr.b)
    if isinstance(expr, Unary | Cast):
        return loads(expr.a)
    return []
