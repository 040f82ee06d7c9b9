"""Expressions as C: scalars stay scalar until they meet a vector; lane-dependent conditions become masks.

A load in a vector loop is a vector load when its lane stride is one, a scalar when it is zero, and built lane by lane
otherwise. Under a mask, memory of inactive lanes is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from wpk.core.errors import InternalError
from wpk.dsl.affine import interval, is_integer, linear
from wpk.dsl.codegen.address import Binding, Unit
from wpk.dsl.codegen.ccond import COMPARISONS, Conditions
from wpk.dsl.codegen.cmath import FLOAT32_ONLY
from wpk.dsl.codegen.cstyle import (
    ATOM,
    C_TYPES,
    COMPUTE,
    EQUAL,
    FLOATS,
    MUL,
    OR,
    TERNARY,
    UNARY,
    Val,
    add,
    constant,
    divide,
    multiply,
    negate,
    vector_type,
)
from wpk.dsl.ir import Binary, Cast, Const, Expr, Load, Select, Unary, Var

T = TypeVar("T")
_BOOLEAN = frozenset({"and", "or", *COMPARISONS})
_HELPERS = {"exp", "log", "sqrt", "rsqrt", "erf", "tanh", "sigmoid", "floor", "ceil"}


class Expressions(Conditions):
    """Prints expressions in the current place: loop ranges, vector lane, mask."""

    def __init__(self, unit: Unit) -> None:
        super().__init__(unit)
        self.literals: dict[int, Val] = {}
        self.indices: dict[int, bool] = {}
        self.shared: frozenset[int] = frozenset()
        self.known: dict[int, Val] = {}
        self.table: dict[type, Callable[..., Val]] = {
            Const: self._const, Load: self._load, Binary: self._binary, Var: self._var,
            Unary: self._unary, Select: self._select, Cast: self._cast,
        }  # fmt: skip

    def eval(self, e: Expr) -> Val:
        """The value of an expression. Values used more than once in a statement go into a temporary."""
        if id(e) not in self.shared:
            return self.table[type(e)](e)
        if id(e) in self.known:
            value = self.known[id(e)]
            if value.lanes and self.fixed is not None:
                return Val(f"{value.text}[{self.fixed}]", ATOM, 0, value.dtype)
            return value
        value = self.table[type(e)](e)
        here = self.mask is None and self.fixed is None and not self.lazy
        if here and value.const is None and value.dtype != "bool":
            name = self.temporary(str(value), vector_type(value.dtype, value.lanes))
            value = self.known[id(e)] = Val(name, ATOM, value.lanes, value.dtype)
        return value

    # -- leaves -------------------------------------------------------------------------------------------------------

    def _const(self, e: Const) -> Val:
        value = self.literals.get(id(e))
        if value is None:
            value = self.literals[id(e)] = constant(e.value, e.dtype)
        return value

    def _var(self, e: Var) -> Val:
        return self.index(e)

    def _load(self, e: Load) -> Val:
        b = self.buffer(e.buffer)
        const, terms, stride = self.address(e, b)
        if b.names is not None and not terms:
            return self._register(e, b, const, stride)
        if b.values is not None and not terms and stride == 0:
            return self._inside(b, const, b.constants)
        if stride is None or stride not in (0, 1) or (b.values is not None and not terms):
            return self.by_lane(e, b.dtype)
        if b.values is not None:
            b.name = self.unit.table(b.buffer)
        p = self.pointer(b, terms)
        guarded = self.mask is not None and not self.in_bounds(e, b)
        if stride == 0:
            return self._scalar_load(b, f"{p}[{const}]", guarded)
        at = offset(p, const)
        if guarded:
            raw = f"{self.unit.need('loadm', b.buffer.dtype, self.lanes)}({at}, {self.mask})"
        else:
            raw = f"{vector_type(b.buffer.dtype, self.lanes)}_at({at})"
        return self.widen(Val(raw, ATOM, self.lanes, b.buffer.dtype))

    def buffer(self, name: str) -> Binding:
        """The binding of a buffer in scope. Raises InternalError when there is none."""
        if name not in self.bind:
            raise InternalError(f"unknown buffer {name}")
        return self.bind[name]

    def _inside(self, b: Binding, i: int, items: Sequence[T]) -> T:
        if not 0 <= i < len(items):
            raise InternalError(f"element {i} is out of range of {b.buffer.name}{b.buffer.shape}")
        return items[i]

    def _scalar_load(self, b: Binding, text: str, guarded: bool) -> Val:
        value = self.widen(Val(text, ATOM, 0, b.buffer.dtype))
        if not guarded:
            return value
        if not self.shape("float32").has_k:
            any_lane = " | ".join(self.bit(k) for k in range(self.lanes))
            return Val(f"(({any_lane}) ? {value} : 0)", ATOM, 0, value.dtype)
        return Val(f"({self.mask} ? {value} : 0)", ATOM, 0, value.dtype)

    def widen(self, raw: Val) -> Val:
        """An element as loaded, in the dtype it computes as."""
        compute = COMPUTE.get(raw.dtype)
        if compute is None:
            return raw
        if raw.dtype == "bfloat16":
            return Val(f"{self.unit.need('widen', raw.dtype, raw.lanes)}({raw.text})", ATOM, raw.lanes, compute)
        if raw.lanes:
            text = f"__builtin_convertvector({raw.text}, {vector_type(compute, raw.lanes)})"
            return Val(text, ATOM, raw.lanes, compute)
        return Val(f"(float){raw.at(UNARY)}", UNARY, 0, compute)

    def _register(self, e: Load, b: Binding, const: int, stride: int | None) -> Val:
        names = b.names or []
        if b.private:
            name = self._inside(b, const, names)
            if self.fixed is not None:
                return Val(f"{name}[{self.fixed}]", ATOM, 0, b.dtype)
            return Val(name, ATOM, b.lanes, b.dtype)
        if not b.lanes:
            if stride != 0:
                return self.by_lane(e, b.dtype)
            return Val(self._inside(b, const, names), ATOM, 0, b.dtype)
        q, r = divmod(const, b.lanes)
        if stride == 0:
            return Val(f"{self._inside(b, q, names)}[{r}]", ATOM, 0, b.dtype)
        if stride != 1 or r or self.lanes != b.lanes:
            return self._shuffled(e, b) or self.by_lane(e, b.dtype)
        return Val(self._inside(b, q, names), ATOM, b.lanes, b.dtype)

    def _shuffled(self, e: Load, b: Binding) -> Val | None:
        """Lanes of one or two vector registers as one permutation; None when there are more of them, or a mask."""
        places: list[tuple[int, int]] = []
        for k in range(self.lanes):
            with self.lane_fixed(k):
                const, terms, _ = self.address(e, b)
            if terms:
                return None
            places.append(divmod(const, b.lanes))
        sources = tuple(dict.fromkeys(q for q, _ in places))
        if len(sources) > 2 or self.mask is not None:
            return None
        first, second = (self._inside(b, q, b.names or []) for q in (sources[0], sources[-1]))
        ids = ", ".join(str(r if q == sources[0] else r + b.lanes) for q, r in places)
        return Val(f"__builtin_shufflevector({first}, {second}, {ids})", ATOM, self.lanes, b.dtype)

    def in_bounds(self, e: Load, b: Binding) -> bool:
        """Are the indices in range for every value of the loop variables and the lane?"""
        for i, n in zip(e.indices, b.buffer.shape, strict=True):
            span = interval(linear(i, self.ranges), self.ranges)
            if span is None or span[0] < 0 or span[1] >= n:
                return False
        return True

    # -- operators ----------------------------------------------------------------------------------------------------

    def call(self, name: str, dtype: str, *args: Val) -> Val:
        """A helper on values of one dtype; vectors when any argument is one."""
        lanes = max(a.lanes for a in args)
        texts = [self.splat(a) if lanes else str(a) for a in args]
        return Val(f"{self.unit.need(name, dtype, lanes)}({', '.join(texts)})", ATOM, lanes, dtype)

    def _binary(self, e: Binary) -> Val:
        op = e.op
        index = self.indices.get(id(e))
        if index is None:
            index = self.indices[id(e)] = is_integer(e)
        if index:
            return self.index(e)
        if op in _BOOLEAN:
            return self.cond(e)
        a = self.eval(e.a)
        if op == "*" and a.const == 0 and a.dtype == "float32":
            return a
        b = self.eval(e.b)
        if a.dtype != b.dtype:
            a, b = self.same(a, b)
        if op == "+":
            return add(a, b)
        return multiply(a, b) if op == "*" else self.combine(op, a, b, e)

    def combine(self, op: str, a: Val, b: Val, e: Expr) -> Val:
        """``a op b`` of one dtype; ``e`` is the expression it stands for."""
        if op == "-":
            return add(a, negate(b))
        if op == "/":
            return divide(a, b)
        if op == "pow":
            return self._pow(a, b, e)
        if op in ("min", "max"):
            if a.const is not None and b.const is not None:
                return a if (a.const > b.const) == (op == "max") else b
            return self.call(op, a.dtype, a, b)
        if op in ("//", "%"):
            if a.lanes or b.lanes:
                return self.by_lane(e, a.dtype)
            return self.call("floordiv" if op == "//" else "floormod", a.dtype, a, b)
        raise InternalError(f"unknown operator {op}")

    def _pow(self, a: Val, b: Val, e: Expr) -> Val:
        """Quarter powers through square roots, the rest through exp and log."""
        if a.dtype != "float32":
            return self._library("pow", e, a, b)
        if b.const in (0.75, -0.75):
            x = self.named(a)
            root = self.call("sqrt", a.dtype, x)
            value = self.call("sqrt", a.dtype, multiply(x, root))
            return value if b.const == 0.75 else divide(constant(1.0, a.dtype), value)
        if b.const in (0.5, -0.5):
            return self.call("sqrt" if b.const == 0.5 else "rsqrt", a.dtype, a)
        if b.const in (1.0, -1.0):
            return a if b.const == 1.0 else divide(constant(1.0, a.dtype), a)
        if b.const in (2.0, 3.0):
            x = self.named(a)
            square = multiply(x, x)
            return square if b.const == 2.0 else multiply(square, x)
        return self.call("pow", a.dtype, a, b)

    def named(self, v: Val) -> Val:
        """The value in a variable, unless it is a name already."""
        if v.prec == ATOM and "(" not in v.text and not v.neg:
            return v
        return Val(self.temporary(str(v), vector_type(v.dtype, v.lanes)), ATOM, v.lanes, v.dtype)

    def _library(self, name: str, e: Expr, *args: Val) -> Val:
        """float64: the C library, a lane at a time."""
        if any(a.lanes for a in args):
            return self.by_lane(e, args[0].dtype)
        return Val(f"__builtin_{name}({', '.join(map(str, args))})", ATOM, 0, args[0].dtype)

    def _unary(self, e: Unary) -> Val:
        if e.op == "not":
            return self.cond(e)
        a = self.eval(e.a)
        if e.op == "neg":
            return negate(a)
        if e.op == "abs":
            return self.call("fabs", a.dtype, a)
        if a.dtype not in FLOATS:
            a = self.convert(a, "float32")
        if e.op == "recip":
            return divide(constant(1.0, a.dtype), a)
        if e.op not in _HELPERS:
            raise InternalError(f"unknown operator {e.op}")
        if a.dtype == "float64" and e.op in FLOAT32_ONLY:
            return self._double(e, a)
        return self.call(e.op, a.dtype, a)

    def _double(self, e: Unary, a: Val) -> Val:
        if e.op != "sigmoid" or a.lanes:
            return self._library(e.op, e, a)
        return Val(f"1.0 / (1.0 + __builtin_exp(-{a.at(UNARY)}))", MUL, 0, a.dtype)

    def _select(self, e: Select) -> Val:
        c = self.cond(e.cond)
        if c.const is not None:
            return self.eval(e.a if c.const else e.b)
        if c.lanes:
            return self._blend(self.name_mask(c), e)
        self.lazy += 1
        a, b = self.same(self.eval(e.a), self.eval(e.b))
        self.lazy -= 1
        lanes = a.lanes or b.lanes
        x, y = a.at(OR), b.at(OR)
        if lanes:  # C wants both arms of one type, and a load has the type of unaligned memory
            x, y = self._aligned(a), self._aligned(b)
        return Val(f"{c.at(OR)} ? {x} : {y}", TERNARY, lanes, a.dtype)

    def _aligned(self, v: Val) -> str:
        """A value as a vector of the type that variables have."""
        text = self.splat(v)
        if text.startswith("(("):
            return text
        return f"({vector_type(v.dtype, self.lanes)}){text if v.prec == ATOM and not v.neg else f'({text})'}"

    def _blend(self, mask: str, e: Select) -> Val:
        with self.masked(mask):
            a = self.eval(e.a)
        with self.masked(mask, invert=True):
            b = self.eval(e.b)
        a, b = self.same(a, b)
        if b.const == 0 and a.text.startswith("loadm_") and a.prec == ATOM:
            return a  # inactive lanes are zero already
        text = f"{self.unit.need('blend', a.dtype, self.lanes)}({mask}, {self.splat(a)}, {self.splat(b)})"
        return Val(text, ATOM, self.lanes, a.dtype)

    def _cast(self, e: Cast) -> Val:
        a = self.eval(e.a)
        return self.cast(a, e.dtype)

    def cast(self, a: Val, dtype: str) -> Val:
        """``a`` converted to ``dtype``; storage formats round and come back as float32."""
        if dtype == "bool":
            return a if a.dtype == "bool" else Val(f"{a.at(EQUAL)} != 0", EQUAL, a.lanes, "bool")
        if dtype not in COMPUTE:
            return self.convert(a, dtype)
        return self.widen(self.narrow(self.convert(a, "float32"), dtype))

    def narrow(self, v: Val, dtype: str) -> Val:
        """A computed value as the element of storage that it is written to."""
        if dtype == "bfloat16":
            text = f"{self.unit.need('shorten', dtype, v.lanes)}({self.convert(v, 'float32')})"
            return Val(text, ATOM, v.lanes, dtype)
        if v.lanes:
            text = f"__builtin_convertvector({v}, {vector_type(dtype, v.lanes)})"
            return v if v.dtype == dtype else Val(text, ATOM, v.lanes, dtype)
        return v if v.dtype == dtype else Val(f"({C_TYPES[dtype][0]}){v.at(UNARY)}", UNARY, 0, dtype)


def offset(pointer: str, const: int) -> str:
    """``pointer + const`` as C text."""
    if not const:
        return pointer
    return f"{pointer} + {const}" if const > 0 else f"{pointer} - {-const}"
