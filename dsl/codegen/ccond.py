"""Lanes, masks and conditions: what depends on the lane of a vector loop becomes a mask, the rest stays a C condition.

A mask is an AVX-512 mask register where there is one for the lanes, else an int32 vector of 0 and -1.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd

from wpk.dsl.affine import Linear, interval, is_integer, linear
from wpk.dsl.codegen.address import Function, Unit, free_vars
from wpk.dsl.codegen.cshape import Shape
from wpk.dsl.codegen.cstyle import (
    ADD,
    AND,
    ATOM,
    BITAND,
    C_TYPES,
    EQUAL,
    FLOATS,
    LESS,
    MUL,
    OR,
    UNARY,
    Val,
    constant,
    promote,
    vector_type,
)
from wpk.dsl.ir import Binary, Const, Expr, Load, Select, Unary, Var

COMPARISONS = {"<": "lt", "<=": "le", "==": "eq"}


class Conditions(Function, ABC):
    """Prints conditions in the current place, and keeps the mask of active lanes (None: all)."""

    def __init__(self, unit: Unit) -> None:
        super().__init__(unit)
        self.mask: str | None = None
        self.lazy = 0

    def temporary(self, text: str, ctype: str) -> str:
        """A name for a value; its own text where evaluation must stay in place."""
        if self.lazy:
            return f"({text})"
        name = self.claim(f"t{self.number()}")
        self.line(f"const {ctype} {name} = {text};")
        return name

    # -- lanes and masks ----------------------------------------------------------------------------------------------

    def shape(self, dtype: str) -> Shape:
        """The helper shape of the current lanes."""
        return Shape(self.isa, dtype, self.lanes)

    def bit(self, k: int) -> str:
        """C text: is lane ``k`` active?"""
        return self.shape("float32").bit(self.mask or "", k)

    def by_lane(self, e: Expr, dtype: str) -> Val:
        """A vector built of one scalar a lane; inactive lanes are zero."""
        bits = [self.bit(k) for k in range(self.lanes)] if self.mask is not None else None
        outer, self.mask = self.mask, None
        texts = []
        self.lazy += bits is not None
        for k in range(self.lanes):
            with self.lane_fixed(k):
                value = self.convert(self.eval(e), dtype)
            texts.append(str(value) if bits is None else f"{bits[k]} ? {value.at(OR)} : 0")
        self.lazy -= bits is not None
        self.mask = outer
        return Val(f"({vector_type(dtype, self.lanes)}){{{', '.join(texts)}}}", ATOM, self.lanes, dtype)

    def splat(self, v: Val) -> str:
        """The text of a value as a vector of the current lanes."""
        if v.lanes:
            return str(v)
        zero = f"({vector_type(v.dtype, self.lanes)}){{}}"
        return zero if v.const == 0 else f"({zero} + {v.at(MUL)})"

    @contextmanager
    def masked(self, mask: str, invert: bool = False) -> Iterator[None]:
        """Inside: only lanes of ``mask`` (or the others) are active, of those that were."""
        outer = self.mask
        mine = self._not(mask) if invert else mask
        self.mask = mine if outer is None else f"({outer} & {mine})"
        yield
        self.mask = outer

    def _not(self, mask: str) -> str:
        return f"({mask} ^ {(1 << self.lanes) - 1:#x})" if self.shape("float32").has_k else f"(~{mask})"

    def name_mask(self, mask: Val) -> str:
        """A mask in a variable."""
        return self.temporary(str(mask), self.shape("float32").mask)

    def mask_of(self, cond: Val) -> Val:
        """A condition as a mask."""
        if cond.lanes:
            return cond
        if self.shape("float32").has_k:
            return Val(f"({cond.at(OR)} ? {(1 << self.lanes) - 1:#x} : 0)", ATOM, self.lanes, "bool")
        zero = f"({vector_type('int32', self.lanes)}){{}}"
        return Val(f"({zero} - ({cond.at(OR)} ? 1 : 0))", ATOM, self.lanes, "bool")

    # -- conditions ---------------------------------------------------------------------------------------------------

    def cond(self, e: Expr) -> Val:
        """A condition: a known constant, a scalar, or (with lanes) a mask."""
        if isinstance(e, Binary) and e.op in ("and", "or"):
            return self._connective(e)
        if isinstance(e, Binary) and e.op in COMPARISONS:
            return self._comparison(e)
        if isinstance(e, Unary) and e.op == "not":
            a = self.cond(e.a)
            if a.const is not None:
                return constant(not a.const, "bool")
            if a.lanes:
                return Val(self._not(a.at(ATOM)), ATOM, a.lanes, "bool")
            return Val(f"!{a.at(UNARY)}", UNARY, 0, "bool")
        if isinstance(e, Const):
            return constant(bool(e.value), "bool")
        if isinstance(e, Select):
            return self._choice(e)
        value = self.eval(e)
        if not value.lanes:
            return Val(f"{value.at(EQUAL)} != 0", EQUAL, 0, "bool")
        if value.dtype == "bool" and not isinstance(e, Load):
            return value
        ints = f"__builtin_convertvector({value}, {vector_type('int32', value.lanes)})"
        return Val(f"{self.unit.need('mask', 'int32', value.lanes)}({ints})", ATOM, value.lanes, "bool")

    def _choice(self, e: Select) -> Val:
        """A Select of conditions, as ``(c and a) or (not c and b)``."""
        return self.cond(Binary("or", Binary("and", e.cond, e.a), Binary("and", Unary("not", e.cond), e.b)))

    def _connective(self, e: Binary) -> Val:
        a = self.cond(e.a)
        if a.const is not None:
            return self.cond(e.b) if bool(a.const) == (e.op == "and") else a
        if a.lanes:
            name = self.name_mask(a)
            with self.masked(name, invert=e.op == "or"):
                b = self.cond(e.b)
            a = Val(name, ATOM, a.lanes, "bool")
        else:
            self.lazy += 1
            b = self.cond(e.b)
            self.lazy -= 1
        if b.const is not None:
            return a if bool(b.const) == (e.op == "and") else b
        if a.lanes or b.lanes:
            sign = "&" if e.op == "and" else "|"
            x, y = self.mask_of(a), self.mask_of(b)
            return Val(f"({x.at(ATOM)} {sign} {y.at(ATOM)})", ATOM, self.lanes, "bool")
        prec, sign = (AND, "&&") if e.op == "and" else (OR, "||")
        return Val(f"{a.at(BITAND)} {sign} {b.at(BITAND)}", prec, 0, "bool")

    def _comparison(self, e: Binary) -> Val:
        if is_integer(e.a) and is_integer(e.b):
            return self._index_comparison(e)
        a, b = self.same(self.eval(e.a), self.eval(e.b))
        if a.const is not None and b.const is not None:
            return constant({"<": a.const < b.const, "<=": a.const <= b.const, "==": a.const == b.const}[e.op], "bool")
        if not (a.lanes or b.lanes):
            prec = EQUAL if e.op == "==" else LESS
            return Val(f"{a.at(ADD)} {e.op} {b.at(ADD)}", prec, 0, "bool")
        name = self.unit.need(COMPARISONS[e.op], a.dtype, self.lanes)
        return Val(f"{name}({self.splat(a)}, {self.splat(b)})", ATOM, self.lanes, "bool")

    def _index_comparison(self, e: Binary) -> Val:
        """``b - a`` against zero: known from the ranges, a prefix of the lanes, or a comparison."""
        form = linear(e.b, self.ranges).plus(linear(e.a, self.ranges), -1)
        if e.op == "<":
            form.const -= 1  # from here on: form >= 0, or form == 0
        known = _sign(interval(form, self.ranges), e.op == "==")
        if known is not None:
            return constant(known, "bool")
        if self.lane is not None and self.lane in _atoms_vars(form):
            return self._lane_comparison(e, form)
        return self._two_sided(form, e.op)

    def _two_sided(self, form: Linear, op: str) -> Val:
        """``form >= 0`` (or ``== 0``) with negative terms on the left, positive ones and the constant on the right."""
        divisor = 1 if op == "==" else gcd(*form.terms.values())
        form = Linear(form.const // divisor, {a: k // divisor for a, k in form.terms.items()})
        left = Linear(0, {a: -k for a, k in form.terms.items() if k < 0})
        right = Linear(form.const + (op == "<"), {a: k for a, k in form.terms.items() if k > 0})
        prec = EQUAL if op == "==" else LESS
        if right.const < 0 and right.terms:
            left.const, right.const = -right.const, 0
        return Val(f"{self.form_val(left).at(ADD)} {op} {self.form_val(right).at(ADD)}", prec, 0, "bool")

    def _lane_comparison(self, e: Binary, form: Linear) -> Val:
        lane = Var(self.lane or "")
        stride = form.terms.get(lane, 0)
        rest = Linear(form.const, {a: k for a, k in form.terms.items() if a != lane})
        if stride not in (1, -1) or e.op == "==" or self.lane in _atoms_vars(rest):
            a, b = self.same(self.index(e.a), self.index(e.b), "int32")
            name = self.unit.need(COMPARISONS[e.op], "int32", self.lanes)
            return Val(f"{name}({self.splat(a)}, {self.splat(b)})", ATOM, self.lanes, "bool")
        base = self.wide[self.lane or ""][0]
        rest.const += stride * base
        first = self.unit.need("first", "float32", self.lanes)
        if stride == -1:  # k <= rest
            rest.const += 1
            return Val(f"{first}({self.form_val(rest)})", ATOM, self.lanes, "bool")
        bound = rest.times(-1)  # k >= -rest
        return Val(self._not(f"{first}({self.form_val(bound)})"), ATOM, self.lanes, "bool")

    # -- integers and dtypes ------------------------------------------------------------------------------------------

    def index(self, e: Expr) -> Val:
        """Index arithmetic, folded; a vector of int32 when it depends on the lane."""
        form = linear(e, self.ranges)
        if self.lane is None or self.lane not in _atoms_vars(form):
            return self.form_val(form)
        stride = form.terms.pop(Var(self.lane), 0)
        if self.lane in _atoms_vars(form):
            return self.by_lane(e, "int32")
        form.const += stride * self.wide[self.lane][0]
        lanes = ", ".join(str(stride * k) for k in range(self.lanes))
        base = self.form_val(form)
        text = f"({vector_type('int32', self.lanes)}){{{lanes}}}"
        if base.const == 0:
            return Val(text, ATOM, self.lanes, "int32")
        return Val(f"{text} + (int32_t){base.at(UNARY)}", ADD, self.lanes, "int32")

    def same(self, a: Val, b: Val, dtype: str | None = None) -> tuple[Val, Val]:
        """Two operands in their common dtype."""
        if a.dtype == b.dtype and dtype is None:
            return a, b
        common = dtype or promote(a.dtype, b.dtype)
        return self.convert(a, common), self.convert(b, common)

    def convert(self, v: Val, dtype: str) -> Val:
        """A value in another dtype."""
        if v.dtype == dtype:
            return v
        if v.const is not None:
            return constant(float(v.const) if dtype in FLOATS else int(v.const), dtype)
        if v.lanes and v.dtype == "bool":
            one, zero = (self.splat(constant(c, dtype)) for c in (1, 0))
            return Val(f"{self.unit.need('blend', dtype, v.lanes)}({v}, {one}, {zero})", ATOM, v.lanes, dtype)
        if v.lanes:
            return Val(f"__builtin_convertvector({v}, {vector_type(dtype, v.lanes)})", ATOM, v.lanes, dtype)
        return Val(f"({C_TYPES[dtype][0]}){v.at(UNARY)}", UNARY, 0, dtype)


def _sign(span: tuple[int, int] | None, equal: bool) -> bool | None:
    """Is a form with this range >= 0 (or == 0) always, never, or (None) sometimes?"""
    if span is None:
        return None
    lo, hi = span
    if equal:
        return True if lo == hi == 0 else False if hi < 0 or lo > 0 else None
    return True if lo >= 0 else False if hi < 0 else None


def _atoms_vars(form: Linear) -> frozenset[str]:
    return frozenset().union(*(free_vars(a) for a in form.terms))
